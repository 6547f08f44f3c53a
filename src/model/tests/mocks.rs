//! The adapters against mock servers that others wrote, in all dialects.
//!
//! Each test asks `llmock` (npm package `@copilotkit/aimock`) and `llmposter` (crate, run as a process). Both are
//! installed in the build folder the first time; that takes npm, cargo and their registries.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    graph::{ModelApi, ModelSettings},
    model::{Config, Dialect, Error, Models, Provider, Reply, Request, Timeouts, ToolSpec, tests::collect},
    packages::{build_folder, from_npm, installed},
    value::{Message, Role, ToolStatus, Value},
};

const AIMOCK: &str = "@copilotkit/aimock@1.43.0";
const LLMPOSTER: &str = "0.5.0";
/// How long a mock may take to listen; the machine may be busy.
const STARTED_WITHIN: Duration = Duration::from_secs(60);
const DIALECTS: [Dialect; 3] =
    [Dialect::OpenAi(ModelApi::ChatCompletions), Dialect::OpenAi(ModelApi::Responses), Dialect::Anthropic];

fn aimock() -> PathBuf {
    from_npm(&[AIMOCK]).join(".bin/llmock")
}

fn llmposter() -> PathBuf {
    let root = installed(&format!("llmposter-{LLMPOSTER}"), |root| {
        let mut cargo = Command::new("cargo");
        cargo.args(["install", "llmposter", "--locked", "--no-default-features", "--version", LLMPOSTER]);
        cargo
            .arg("--root")
            .arg(root)
            .arg("--target-dir")
            .arg(build_folder().join("packages/llmposter-build"));
        // What cargo tells this test is meant for this crate.
        cargo.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS").env_remove("RUSTC_WRAPPER");
        cargo
    });
    root.join("bin/llmposter")
}

/// A running mock; it ends with the test.
struct Mock {
    process: Child,
    url: String,
}

impl Drop for Mock {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Mock {
    /// Starts `program` on a free port, and waits until it listens.
    async fn start(program: PathBuf, fixtures: &str) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("bound");
        drop(free);
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/model").join(fixtures);
        let mut command = Command::new(program);
        command.arg("--port").arg(address.port().to_string()).arg("--fixtures").arg(fixtures);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the mock starts");
        let mut mock = Self { process, url: format!("http://{address}/v1") };
        let until = Instant::now() + STARTED_WITHIN;
        while tokio::net::TcpStream::connect(address).await.is_err() {
            let ended = mock.process.try_wait().expect("a child");
            assert!(ended.is_none(), "the mock ended: {ended:?}; is {address} taken?");
            assert!(Instant::now() < until, "the mock does not listen on {address}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        mock
    }

    async fn ask(&self, dialect: Dialect, messages: Vec<Message>) -> (Vec<String>, Result<Reply, Error>) {
        self.ask_within(dialect, messages, Timeouts::default()).await
    }

    async fn ask_within(
        &self,
        dialect: Dialect,
        messages: Vec<Message>,
        timeouts: Timeouts,
    ) -> (Vec<String>, Result<Reply, Error>) {
        let url = Some(self.url.clone());
        let provider = match dialect {
            Dialect::Anthropic => Provider::anthropic(Some("sk-test".to_owned().into()), url),
            Dialect::OpenAi(_) => {
                Provider { dialect, ..Provider::openai(Some("sk-test".to_owned().into()), url) }
            }
        };
        let config =
            Config { providers: [("mock".to_owned(), provider)].into(), timeouts, ..Config::default() };
        let model = Models::new(config).and_then(|models| models.provider("mock")).expect("configured");
        let tool = |name: &str, key: &str| ToolSpec {
            name: name.into(),
            description: "d".into(),
            parameters: json!({"type": "object", "properties": {key: {"type": "string"}}}).into(),
        };
        let request = Request {
            settings: Arc::new(ModelSettings::parse("mock:gpt-4o")),
            system_prompt: Some("Be brief.".into()),
            messages: messages.into_iter().map(Arc::new).collect(),
            tools: vec![tool("get_weather", "city"), tool("get_time", "tz")],
            output_schema: None,
            retry: 0,
        };
        collect(model.call(request.into()).await).await
    }
}

async fn mocks() -> [Mock; 2] {
    let (aimock, llmposter) =
        tokio::task::spawn_blocking(|| (aimock(), llmposter())).await.expect("installed");
    [Mock::start(aimock, "aimock.json").await, Mock::start(llmposter, "llmposter.yaml").await]
}

fn human(text: &str) -> Message {
    Message::new("h", Role::Human, text)
}

#[tokio::test]
async fn text_is_streamed() {
    for mock in mocks().await {
        for dialect in DIALECTS {
            let (pieces, outcome) = mock.ask(dialect, vec![human("plain")]).await;
            let reply = outcome.unwrap_or_else(|error| panic!("{dialect:?}: {error}"));
            assert_eq!(reply.text, "Hello from a mock, with ünïcode ✓.", "{dialect:?}");
            assert_eq!(pieces.concat(), reply.text, "{dialect:?}");
            assert!(pieces.len() > 1, "{dialect:?}: {pieces:?}");
        }
    }
}

#[tokio::test]
async fn tools_are_called_and_answered() {
    for mock in mocks().await {
        for dialect in DIALECTS {
            let reply = mock.ask(dialect, vec![human("two tools")]).await.1.expect("an answer");
            let calls: Vec<_> =
                reply.tool_calls.iter().map(|call| (&*call.name, serde_json::to_value(&call.args))).collect();
            let called = |at: usize| (calls[at].0, calls[at].1.as_ref().expect("JSON").clone());
            assert_eq!(calls.len(), 2, "{dialect:?}");
            assert_eq!(called(0), ("get_weather", json!({"city": "Paris", "unit": "c"})), "{dialect:?}");
            assert_eq!(called(1), ("get_time", json!({"tz": "Europe/Paris"})), "{dialect:?}");

            let answers = reply.tool_calls.iter().map(|call| {
                let (status, artifact) = (ToolStatus::Success, Value::Null);
                let role = Role::Tool { tool_call_id: call.id.clone(), status, artifact };
                Message::new(format!("t-{}", call.id), role, "18")
            });
            let (tool_calls, answers) = (reply.tool_calls.clone(), answers.collect::<Vec<_>>());
            let role = Role::Ai { tool_calls, invalid_tool_calls: Vec::new(), usage: None };
            let asked = [vec![human("two tools"), Message::new("a", role, reply.text)], answers].concat();
            // Neither mock refuses the conversation with calls and results; what it says next is its own affair.
            mock.ask(dialect, asked).await.1.unwrap_or_else(|error| panic!("{dialect:?}: {error}"));
        }
    }
}

#[tokio::test]
async fn failures_are_told_apart() {
    for mock in mocks().await {
        for dialect in DIALECTS {
            for (asked, status) in [("rate limited", 429), ("overloaded", 529)] {
                match mock.ask(dialect, vec![human(asked)]).await.1 {
                    Err(Error::Throttled { status: seen, .. }) => assert_eq!(seen, status, "{dialect:?}"),
                    other => panic!("{dialect:?}: {other:?}"),
                }
            }
            let error = mock.ask(dialect, vec![human("forbidden")]).await.1.expect_err("refused");
            assert_eq!(error.code(), "MODEL_REJECTED", "{dialect:?}");
            let error = mock.ask(dialect, vec![human("broken")]).await.1.expect_err("failed");
            assert_eq!(error.code(), "MODEL_UNAVAILABLE", "{dialect:?}");
        }
    }
}

#[tokio::test]
async fn cut_answers_are_errors_that_may_pass() {
    for mock in mocks().await {
        for dialect in DIALECTS {
            let (pieces, outcome) = mock.ask(dialect, vec![human("cut off")]).await;
            let error = outcome.expect_err("cut");
            assert_eq!(error.code(), "MODEL_UNAVAILABLE", "{dialect:?}: {pieces:?}: {error}");
        }
    }
}

#[tokio::test]
async fn a_slow_start_is_waited_for_up_to_the_limit() {
    for mock in mocks().await {
        for dialect in DIALECTS {
            let patient = mock.ask(dialect, vec![human("slow start")]).await.1.expect("an answer");
            assert_eq!(patient.text, "Better late.", "{dialect:?}");
            let hasty = Timeouts { first_byte: Duration::from_millis(50), ..Timeouts::default() };
            let hasty = mock.ask_within(dialect, vec![human("very slow start")], hasty).await.1;
            assert_eq!(hasty.expect_err("too slow").code(), "MODEL_TIMEOUT", "{dialect:?}");
        }
    }
}

//! The reference servers of the protocol's authors, as programs and over HTTP.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::*;
use crate::{graph::Effect, packages::mcp_server, tool::CallOutcome, value::ToolStatus};

/// Between two looks whether it listens.
const POLL: Duration = Duration::from_millis(50);

/// How long a server may take to listen; the machine may be busy.
const STARTED_WITHIN: Duration = Duration::from_secs(120);

fn everything() -> McpServer {
    program("node", &[&mcp_server("server-everything")], &[])
}

/// The everything server over HTTP; it ends with the test.
struct Http {
    process: Child,
    address: SocketAddr,
}

impl Drop for Http {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Http {
    async fn start() -> Self {
        loop {
            let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let address = free.local_addr().expect("bound");
            drop(free);
            let mut http = Self { process: Self::process(address), address };
            // Somebody else may have taken the port meanwhile: node ends then.
            if http.listens().await {
                return http;
            }
        }
    }

    fn process(address: SocketAddr) -> Child {
        let mut node = Command::new("node");
        node.arg(mcp_server("server-everything"))
            .arg("streamableHttp")
            .env("PORT", address.port().to_string());
        node.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("node starts")
    }

    /// Whether it listens at last, and has not ended.
    async fn listens(&mut self) -> bool {
        let until = Instant::now() + STARTED_WITHIN;
        while tokio::net::TcpStream::connect(self.address).await.is_err() {
            if self.process.try_wait().expect("a child").is_some() {
                return false;
            }
            assert!(Instant::now() < until, "{} is not listened on", self.address);
            tokio::time::sleep(POLL).await;
        }
        true
    }

    fn stop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    async fn restart(&mut self) {
        self.stop();
        self.process = Self::process(self.address);
        assert!(self.listens().await, "{} is taken", self.address);
    }

    fn url(&self) -> String {
        // The server allows one name only.
        format!("http://127.0.0.1:{}/mcp", self.address.port())
    }

    fn server(&self) -> McpServer {
        McpServer::new(McpLink::Http {
            url: self.url().parse().expect("an address"),
            headers: IndexMap::new(),
        })
    }
}

/// What holds for the everything server however it is reached.
async fn works(tools: &[SharedTool], prefix: &str) {
    let tool = |name: &str| find(tools, &format!("{prefix}__{name}"));
    assert_eq!(tool("echo").effect(), Effect::Read);
    assert_eq!(call(&tool("echo"), json!({"message": "hi"})).await, Answer::success("Echo: hi"));
    let wrong = call(&tool("get-sum"), json!({"a": "x"})).await;
    assert_eq!((wrong.status, wrong.outcome), (ToolStatus::Error, CallOutcome::Known));
    let image = call(&tool("get-tiny-image"), json!({})).await.content;
    assert!(image.contains("[image: image/png, ") && !image.contains("iVBOR"), "{image}");
    let structured = call(&tool("get-structured-content"), json!({"location": "Chicago"})).await.content;
    let structured: Json = serde_json::from_str(&structured).expect("JSON, said once");
    assert!(structured["temperature"].is_number(), "{structured}");
    let link = call(&tool("get-resource-links"), json!({"count": 2})).await.content;
    assert!(link.contains("[resource demo://"), "{link}");
    let (answer, told) =
        heard(&tool("trigger-long-running-operation"), json!({"duration": 1, "steps": 2})).await;
    assert!(answer.content.starts_with("Long running operation completed"), "{answer:?}");
    assert!(told.iter().all(|progress| progress.total == Some(2.0)) && !told.is_empty(), "{told:?}");
}

#[tokio::test]
async fn the_everything_server_works_as_a_program() {
    let toolbox = toolbox([("every", everything())]);
    works(&listed(&named(&toolbox, "mcp:every")).await, "every").await;
    toolbox.close().await;
}

#[tokio::test]
async fn the_everything_server_works_over_http_and_is_found_again_after_a_restart() {
    let mut http = Http::start().await;
    let toolbox = toolbox([("every", http.server())]);
    let offer = named(&toolbox, "mcp:every");
    let tools = listed(&offer).await;
    works(&tools, "every").await;
    http.restart().await;
    let echo = find(&tools, "every__echo");
    // The old session is unknown to the new server, which has done nothing then.
    assert_eq!(call(&echo, json!({"message": "again"})).await, Answer::success("Echo: again"));
    http.stop();
    // A connection that breaks while it is written to leaves open what was read of it.
    let broken = call(&echo, json!({"message": "broken"})).await;
    assert_eq!(broken.status, ToolStatus::Error, "{broken:?}");
    let gone = call(&echo, json!({"message": "gone"})).await;
    assert_eq!((gone.outcome, gone.code), (CallOutcome::NotMade, Some("TOOL_MCP_UNAVAILABLE")), "{gone:?}");
    let text = refused(&named(&toolbox_of(&http), "mcp:every")).await;
    assert!(text.starts_with("TOOL_MCP_UNAVAILABLE: the MCP server 'every' is not available"), "{text}");
    toolbox.close().await;
}

fn toolbox_of(http: &Http) -> Toolbox {
    toolbox([("every", http.server())])
}

#[tokio::test]
async fn a_server_that_goes_in_a_call_over_http_leaves_its_fate_open() {
    let mut http = Http::start().await;
    let toolbox = toolbox([("every", http.server())]);
    let tools = listed(&named(&toolbox, "mcp:every")).await;
    let long = find(&tools, "every__trigger-long-running-operation");
    let process = Mutex::new(&mut http);
    let stop = |_| process.lock().expect("nobody panics").stop();
    let answer = call_with(&long, json!({"duration": 600, "steps": 1200}), &stop).await;
    assert_eq!((answer.outcome, answer.code), (CallOutcome::Unknown, Some("TOOL_FAILED")), "{answer:?}");
}

#[tokio::test]
async fn a_definition_reaches_an_address_that_http_tools_may_reach() {
    let http = Http::start().await;
    let set = |url: &str| json!({"name": "every", "runtime": {"type": "mcp", "url": url}});
    let refusal = |config: Config| {
        let toolbox = with_config([], config);
        let offer = defined(&toolbox, set(&http.url()));
        async move { refused(&offer).await }
    };
    assert!(refusal(Config::default()).await.starts_with("TOOL_HOST_NOT_ALLOWED: "));
    let private = refusal(Config { allow_private: false, ..local() }).await;
    assert!(private.starts_with("TOOL_PRIVATE_ADDRESS: "), "{private}");
    let toolbox = with_config([], local());
    let secret = json!({"name": "every", "runtime": {"type": "mcp", "url": http.url(),
        "headers": {"authorization": "Bearer {{ secrets.NONE }}"}}});
    let unknown = refused(&defined(&toolbox, secret)).await;
    assert!(unknown.contains("NONE") && !unknown.starts_with("TOOL_MCP"), "{unknown}");
    let mistaken = refused(&defined(&toolbox, set("ftp://x/"))).await;
    assert!(mistaken.starts_with("TOOL_DEFINITION: "), "{mistaken}");
    works(&listed(&defined(&toolbox, set(&http.url()))).await, "every").await;
    toolbox.close().await;
}

#[tokio::test]
async fn the_filesystem_server_works_as_a_program() {
    let folder = tempfile::tempdir().expect("a folder");
    let place: PathBuf = folder.path().canonicalize().expect("it is there");
    let script = mcp_server("server-filesystem");
    let server = program("node", &[&script, &place.display().to_string()], &[]);
    let toolbox = toolbox([("files", server)]);
    let tools = listed(&named(&toolbox, "mcp:files")).await;
    let (write, read) = (find(&tools, "files__write_file"), find(&tools, "files__read_text_file"));
    assert_eq!((write.effect(), read.effect()), (Effect::Idempotent, Effect::Read));
    let path = place.join("note.txt").display().to_string();
    let written = call(&write, json!({"path": path, "content": "ebb and flow"})).await;
    assert_eq!(written.status, ToolStatus::Success, "{written:?}");
    assert_eq!(fs::read_to_string(&path).expect("it was written"), "ebb and flow");
    assert_eq!(call(&read, json!({"path": path})).await, Answer::success("ebb and flow"));
    let denied = call(&read, json!({"path": "/etc/shadow"})).await;
    assert!(denied.content.starts_with("TOOL_FAILED: Access denied"), "{denied:?}");
    toolbox.close().await;
}

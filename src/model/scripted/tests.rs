use std::{fs, sync::Arc, time::Duration};

use expect_test::{Expect, expect};
use futures::StreamExt;
use serde_json::json;
use tokio::time::Instant;

use super::*;
use crate::{
    model::{Reply, tests::collect},
    value::{Message, Role},
};

fn person(text: &str) -> Message {
    Message::new("h", Role::Human, text)
}

fn model(text: &str) -> Message {
    Message::new("a", Role::Ai { tool_calls: vec![], invalid_tool_calls: vec![], usage: None }, text)
}

fn request(script: Json, messages: Vec<Message>) -> Request {
    let settings = json!({"provider": "scripted", "model": "demo", "script": script});
    Request {
        settings: serde_json::from_value(settings).expect("valid"),
        system_prompt: Some("be nice".into()),
        messages: messages.into_iter().map(Arc::new).collect(),
        tools: Vec::new(),
        output_schema: None,
        retry: 0,
    }
}

async fn play_from(scripted: &Scripted, request: Request) -> (Vec<String>, Result<Reply, Error>) {
    collect(scripted.call(request.into()).await).await
}

async fn ask(request: Request) -> (Vec<String>, Result<Reply, Error>) {
    play_from(&Scripted::new(None), request).await
}

async fn says(script: &Json, messages: Vec<Message>) -> String {
    ask(request(script.clone(), messages)).await.1.expect("answered").text
}

#[tokio::test]
async fn the_conversation_says_which_reply_comes() {
    let script = json!({"replies": [{"text": "one"}, {"text": "two"}]});
    assert_eq!(says(&script, vec![person("a")]).await, "one");
    assert_eq!(says(&script, vec![person("a")]).await, "one");
    assert_eq!(says(&script, vec![person("a"), model("one"), person("b")]).await, "two");
    assert_eq!(says(&script, vec![model("one"), model("two")]).await, "(script ended)");
    assert_eq!(says(&json!({}), vec![]).await, "(script ended)");
}

#[tokio::test]
async fn an_echo_says_what_the_person_said() {
    let script = json!({"echo": true});
    assert_eq!(says(&script, vec![person("hello"), model("x"), person("there")]).await, "echo: there");
    assert_eq!(says(&script, vec![]).await, "echo: ");
    let script = json!({"echo": true, "replies": [{"text": "one"}]});
    assert_eq!(says(&script, vec![person("a")]).await, "one");
    assert_eq!(says(&script, vec![model("one"), person("b")]).await, "echo: b");
}

#[tokio::test]
async fn certain_words_have_their_own_replies() {
    let script = json!({
        "by_user_text": {"weather": [{"text": "rain"}, {"text": "sun"}]},
        "replies": [{"text": "first"}, {"text": "second"}, {"text": "third"}],
    });
    assert_eq!(says(&script, vec![person("x"), model("first"), person("the weather?")]).await, "rain");
    assert_eq!(says(&script, vec![person("the weather?"), model("rain")]).await, "sun");
    assert_eq!(says(&script, vec![person("weather"), model("rain"), model("sun")]).await, "(script ended)");
    assert_eq!(says(&script, vec![person("weather"), model("rain"), person("x")]).await, "second");
}

#[tokio::test]
async fn text_comes_in_words_or_in_the_given_pieces() {
    let pieces = async |line: Json| ask(request(json!({"replies": [line]}), vec![])).await.0;
    assert_eq!(pieces(json!({"text": " Hello  big\nworld "})).await, [" ", "Hello  ", "big\n", "world "]);
    assert_eq!(pieces(json!({"pieces": ["a", "", "b c"]})).await, ["a", "b c"]);
    assert_eq!(pieces(json!({"text": "ab", "pieces": ["a", "b"]})).await, ["a", "b"]);
    assert_eq!(pieces(json!({})).await, [""; 0]);
}

#[tokio::test]
async fn tool_calls_and_usage_are_in_the_reply() {
    let script = json!({"replies": [{}, {
        "text": "Let me look.",
        "tool_calls": [{"name": "f", "args": {"x": 1}}, {"id": "mine", "name": "g"}, {"name": "h", "args": "{"}],
    }]});
    let (_, reply) = ask(request(script, vec![person("one two three"), model("four")])).await;
    expect![[r#"
        Reply {
            text: "Let me look.",
            blocks: [],
            tool_calls: [
                ToolCall {
                    id: "call_1_1",
                    name: "f",
                    args: {
                        "x": Number(
                            Number(1),
                        ),
                    },
                },
                ToolCall {
                    id: "mine",
                    name: "g",
                    args: {},
                },
            ],
            invalid_tool_calls: [
                InvalidToolCall {
                    id: "call_1_3",
                    name: "h",
                    args: "{",
                    error: "the arguments are not valid JSON: EOF while parsing an object at line 1 column 1",
                },
            ],
            usage: Some(
                Usage {
                    input_tokens: 6,
                    output_tokens: 3,
                    total_tokens: 9,
                    input_token_details: {},
                    output_token_details: {},
                },
            ),
            finish_reason: Some(
                "tool_calls",
            ),
            model: Some(
                "demo",
            ),
            refusal: None,
        }
    "#]]
    .assert_debug_eq(&reply.expect("answered"));

    let script = json!({"replies": [{"usage": {"input_tokens": 100, "output_tokens": 20}}]});
    let usage = ask(request(script, vec![])).await.1.expect("answered").usage.expect("given");
    assert_eq!((usage.input_tokens, usage.output_tokens, usage.total_tokens), (100, 20, 120));
}

#[tokio::test]
async fn failures_end_after_the_tries_they_are_for() {
    let fail = |fail: Json| json!({"replies": [{"text": "a b c", "fail": fail}]});
    let outcome = async |script: Json, retry| {
        let (pieces, outcome) = ask(Request { retry, ..request(script, vec![]) }).await;
        let wait = outcome.as_ref().err().and_then(Error::retry_after);
        (pieces.len(), outcome.map(|reply| reply.text).map_err(|error| error.to_string()), wait)
    };
    let down = fail(json!({"times": 2, "status": 503, "message": "down", "retry_after_ms": 40}));
    let error = Err("scripted answered 503: down".to_owned());
    assert_eq!(outcome(down.clone(), 0).await, (0, error.clone(), Some(Duration::from_millis(40))));
    assert_eq!(outcome(down.clone(), 1).await.1, error);
    assert_eq!(outcome(down, 2).await, (3, Ok("a b c".to_owned()), None));

    let cut = fail(json!({"times": 1, "status": 500, "after_pieces": 2}));
    let error = Err("scripted is unavailable: status 500: scripted failure".to_owned());
    assert_eq!(outcome(cut, 0).await, (2, error, None));

    let bad = fail(json!({"times": 1, "status": 400}));
    assert_eq!(
        outcome(bad, 0).await.1,
        Err("scripted refused the request (400): scripted failure".to_owned())
    );
}

#[tokio::test(start_paused = true)]
async fn delays_are_kept() {
    let line = json!({"text": "a b c", "delay_ms": 1000, "token_delay_ms": 100});
    let start = Instant::now();
    let mut stream =
        Scripted::new(None).call(request(json!({"replies": [line]}), vec![]).into()).await.expect("begun");
    let mut times = Vec::new();
    while stream.next().await.is_some() {
        times.push(start.elapsed().as_millis());
    }
    assert_eq!(times, [1000, 1100, 1200, 1200]);
}

async fn check_wrong(script: Json, expected: Expect) {
    let error = ask(request(script, vec![])).await.1.expect_err("refused");
    assert_eq!(error.code(), "MODEL_SETTINGS");
    expected.assert_eq(&error.to_string());
}

#[tokio::test]
async fn a_wrong_script_is_told_where() {
    check_wrong(
        json!({"replies": [{"text": "a"}, {"txt": "b"}]}),
        expect!["model settings: script: replies[1].txt: unknown field `txt`, expected one of `text`, `pieces`, `tool_calls`, `delay_ms`, `token_delay_ms`, `fail`, `usage`"],
    )
    .await;
    check_wrong(
        json!({"replys": []}),
        expect!["model settings: script: replys: unknown field `replys`, expected one of `replies`, `by_user_text`, `echo`"],
    )
    .await;
    check_wrong(
        json!({"replies": [{"tool_calls": [{"args": {}}]}]}),
        expect!["model settings: script: replies[0].tool_calls[0]: missing field `name`"],
    )
    .await;
    check_wrong(
        json!({"by_user_text": {"hi": [{"tool_calls": [{"name": "f", "args": 1}]}]}}),
        expect!["model settings: script: by_user_text.hi[0]: `args` must be an object, or a text"],
    )
    .await;
    check_wrong(
        json!({"replies": [{"text": "ab", "pieces": ["a"]}]}),
        expect!["model settings: script: replies[0]: `pieces` joined must be the `text`"],
    )
    .await;
    check_wrong(
        json!({"replies": [{"fail": {"times": 1, "status": 200}}]}),
        expect!["model settings: script: replies[0]: `fail.status` must be from 400 to 599"],
    )
    .await;
    check_wrong(
        json!({"replies": [{"delay_ms": 3_600_001}]}),
        expect!["model settings: script: replies[0]: a delay is longer than an hour"],
    )
    .await;
}

fn from_file(model: &str) -> Request {
    let mut request = request(Json::Null, vec![]);
    let settings = std::sync::Arc::make_mut(&mut request.settings);
    settings.script = None;
    settings.model = model.to_owned();
    request
}

#[tokio::test]
async fn a_script_may_be_in_a_file() {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("demo-1.json"), r#"{"replies":[{"text":"from a file"}]}"#).expect("written");
    fs::write(dir.path().join("broken.json"), "{").expect("written");
    let scripts = dir.path().join("scripts");
    fs::create_dir(&scripts).expect("made");
    let scripted = Scripted::new(Some(dir.path().to_owned()));
    let reply = play_from(&scripted, from_file("demo-1")).await.1.expect("answered");
    assert_eq!(reply.text, "from a file");

    let refusal = async |scripted: &Scripted, model: &str| {
        play_from(scripted, from_file(model)).await.1.expect_err(model).to_string()
    };
    let error = refusal(&scripted, "missing").await;
    assert_eq!(error, "model settings: script \"missing.json\": entity not found");
    assert!(refusal(&scripted, "broken").await.starts_with("model settings: script \"broken.json\": EOF"));

    // The file is there, outside of the folder of scripts.
    let inner = Scripted::new(Some(scripts));
    for name in ["../demo-1", "..", ".", "", "a/b", "a\\b", ".hidden", "a\0", &"x".repeat(300)] {
        let error = refusal(&inner, name).await;
        assert!(error.ends_with("may have only A-Z a-z 0-9 . _ -"), "{name:?}: {error}");
    }
    assert!(refusal(&Scripted::new(None), "demo-1").await.contains("SCRIPTED_MODELS_DIR"));
}

#[tokio::test]
async fn a_file_that_is_too_large_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = fs::File::create(dir.path().join("big.json")).expect("made");
    file.set_len(MAX_SCRIPT_BYTES + 1).expect("grown");
    let scripted = Scripted::new(Some(dir.path().to_owned()));
    let error = play_from(&scripted, from_file("big")).await.1.expect_err("refused");
    assert!(error.to_string().contains("larger than"), "{error}");
}

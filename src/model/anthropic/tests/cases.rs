//! What can go wrong on the wire, and answers of odd shapes.

use expect_test::{Expect, expect};
use serde_json::{Value as Json, json};

use super::{KEY, call, request};
use crate::{
    graph::ModelSettings,
    model::{
        Config, Models, Request,
        tests::server::{Server, Step, answer, cut},
    },
    value::Value,
};

const EVENTS: &str = "content-type: text/event-stream";
const JSON: &str = "content-type: application/json";

/// A stream of these events, in small chunks.
fn events(events: &[Json]) -> Vec<Step> {
    let text: String = events
        .iter()
        .map(|event| format!("event: {}\ndata: {event}   \n\n", event["type"].as_str().unwrap_or("x")))
        .collect();
    answer(200, &[EVENTS], text.as_bytes(), 13)
}

fn start() -> Json {
    json!({"type": "message_start", "message": {"model": "m-1", "usage": {"input_tokens": 3, "output_tokens": 1}}})
}

fn open(index: u64, block: Json) -> Json {
    json!({"type": "content_block_start", "index": index, "content_block": block})
}

fn text(index: u64, text: &str) -> Json {
    json!({"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": text}})
}

fn args(index: u64, json: &str) -> Json {
    let delta = json!({"type": "input_json_delta", "partial_json": json});
    json!({"type": "content_block_delta", "index": index, "delta": delta})
}

fn close(index: u64) -> Json {
    json!({"type": "content_block_stop", "index": index})
}

fn stop(reason: &str) -> Json {
    json!({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 5}})
}

fn end() -> Json {
    json!({"type": "message_stop"})
}

fn tool(id: &str, name: &str) -> Json {
    json!({"type": "tool_use", "id": id, "name": name, "input": {}})
}

/// The pieces, and the error or what is in the answer.
async fn outcome(steps: Vec<Step>, request: Request) -> String {
    let server = Server::start(vec![steps]);
    match call(&server, request).await {
        (pieces, Err(error)) => format!("{pieces:?} {}: {error}", error.code()),
        (pieces, Ok(reply)) => {
            let calls = reply.tool_calls.iter().map(|it| format!(" {} {:?}", it.id, it.args.len()));
            let wrong =
                reply.invalid_tool_calls.iter().map(|it| format!(" {} {:?} {}", it.id, it.args, it.error));
            let all: String = calls.chain(wrong).collect();
            format!("{pieces:?} {:?}{all}", reply.finish_reason)
        }
    }
}

async fn check(all: &[Json], expected: Expect) {
    expected.assert_eq(&outcome(events(all), request()).await);
}

#[tokio::test]
async fn arguments_that_the_limit_of_tokens_cuts_make_no_call() {
    let cut = |pieces: &[Json]| {
        [&[start(), open(0, tool("a", "f"))], pieces, &[stop("max_tokens"), end()]].concat()
    };
    let reason = "the answer reached its limit of tokens within the arguments";
    for (pieces, args) in [
        (vec![], String::new()),
        (vec![close(0)], String::new()),
        (vec![args(0, "{\"x\":")], "{\"x\":".to_owned()),
        (vec![args(0, "{\"x\":1}")], "{\"x\":1}".to_owned()),
    ] {
        let outcome = outcome(events(&cut(&pieces)), request()).await;
        assert_eq!(outcome, format!("[] Some(\"max_tokens\") a {args:?} {reason}"));
    }
    check(&cut(&[args(0, "{\"x\":1}"), close(0)]), expect![[r#"[] Some("max_tokens") a 1"#]]).await;
    check(
        &cut(&[close(0), open(1, tool("b", "g")), args(1, "{"), close(1)]),
        expect![[r#"[] Some("max_tokens") a 0 b "{" the arguments are not valid JSON: EOF while parsing an object at line 1 column 1"#]],
    )
    .await;
}

#[tokio::test]
async fn errors_in_mid_stream_come_after_the_pieces_before_them() {
    let error = |kind: &str| json!({"type": "error", "error": {"type": kind, "message": "Overloaded"}});
    let begun = [start(), open(0, json!({"type": "text", "text": ""})), text(0, "Hello")];
    check(
        &[&begun[..], &[error("overloaded_error")]].concat(),
        expect![[r#"["Hello"] MODEL_THROTTLED: anthropic answered 529: Overloaded"#]],
    )
    .await;
    check(
        &[&begun[..], &[error("api_error")]].concat(),
        expect![[r#"["Hello"] MODEL_UNAVAILABLE: anthropic is unavailable: Overloaded"#]],
    )
    .await;
    check(
        &[&begun[..], &[start()]].concat(),
        expect![[r#"["Hello"] MODEL_UNAVAILABLE: anthropic is unavailable: the answer began anew after a part of it"#]],
    )
    .await;
    check(
        &begun,
        expect![[r#"["Hello"] MODEL_UNAVAILABLE: anthropic is unavailable: the stream was cut before the answer was complete"#]],
    )
    .await;
    check(
        &[args(7, "{}")],
        expect!["[] MODEL_PROTOCOL: anthropic answered in a way that cannot be read: a piece came before the start of its block"],
    )
    .await;
    let cut = cut(200, &[EVENTS], format!("data: {}\n\n", start()).as_bytes(), 9);
    let outcome = outcome(cut, request()).await;
    assert!(
        outcome.starts_with("[] MODEL_UNAVAILABLE: anthropic is unavailable: the connection broke"),
        "{outcome}"
    );
}

#[tokio::test]
async fn a_status_says_whether_to_ask_again() {
    for (status, kind, code) in [
        (529, "overloaded_error", "MODEL_THROTTLED"),
        (429, "rate_limit_error", "MODEL_THROTTLED"),
        (500, "api_error", "MODEL_UNAVAILABLE"),
        (400, "invalid_request_error", "MODEL_REJECTED"),
        (413, "request_too_large", "MODEL_REJECTED"),
    ] {
        let body =
            json!({"type": "error", "error": {"type": kind, "message": format!("no {KEY}")}}).to_string();
        let outcome = outcome(answer(status, &[JSON], body.as_bytes(), 9), request()).await;
        assert!(outcome.starts_with(&format!("[] {code}: ")) && outcome.ends_with("no […]"), "{outcome}");
    }
}

#[tokio::test]
async fn a_refusal_says_why() {
    let details = |json: Json| {
        let mut stop = stop("refusal");
        stop["delta"]["stop_details"] = json;
        vec![start(), stop, end()]
    };
    for (given, expected) in [
        (json!({"category": "cyber", "explanation": "Not this."}), "Not this."),
        (json!({"category": "cyber", "explanation": null}), "refused as cyber"),
        (json!(null), "no reason given"),
    ] {
        let server = Server::start(vec![events(&details(given))]);
        let reply = call(&server, request()).await.1.expect("an answer");
        assert_eq!(reply.refusal.as_deref(), Some(expected));
    }
}

#[tokio::test]
async fn a_paused_turn_is_gone_on_with() {
    let search = json!({"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}});
    let first = [
        start(),
        open(0, json!({"type": "text", "text": ""})),
        text(0, "Let me see. "),
        close(0),
        open(1, search),
        args(1, "{\"query\":\"x\"}"),
        close(1),
        stop("pause_turn"),
        end(),
    ];
    let second = [
        start(),
        open(0, json!({"type": "text", "text": "It "})),
        text(0, "rains."),
        close(0),
        stop("end_turn"),
        end(),
    ];
    let server = Server::start(vec![events(&first), events(&second)]);
    let (pieces, outcome) = call(&server, request()).await;
    let reply = outcome.expect("an answer");
    assert_eq!(pieces, ["Let me see. ", "It ", "rains."]);
    assert_eq!(reply.finish_reason.as_deref(), Some("end_turn"));
    let usage = reply.usage.expect("counted");
    assert_eq!((usage.input_tokens, usage.output_tokens, usage.total_tokens), (6, 10, 16));
    let blocks: Vec<Json> = reply.blocks.iter().map(Value::to_json).collect();
    let said = json!([{"type": "text", "text": "Let me see. "},
        {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "x"}}]);
    assert_eq!(blocks[..2], said.as_array().expect("a list")[..]);
    assert_eq!(blocks[2..], [json!({"type": "text", "text": "It rains."})]);

    let first = server.request().1["messages"].clone();
    let second = server.request().1["messages"].clone();
    assert_eq!(second[0], first[0]);
    assert_eq!(second[1], json!({"role": "assistant", "content": said}));
    assert_eq!(second.as_array().map(Vec::len), Some(2));
}

fn structured() -> Request {
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    Request { output_schema: Some(schema.into()), ..request() }
}

#[tokio::test]
async fn an_answer_with_a_schema_is_the_arguments_of_a_tool() {
    let steps = |all: &[Json]| events(&[&[start()], all, &[stop("tool_use"), end()]].concat());
    let said = [open(0, json!({"type": "text", "text": ""})), text(0, "Here it is:"), close(0)];
    let given =
        [open(1, tool("t", "give_final_answer")), args(1, "{\"city\":"), args(1, "\"Paris\"}"), close(1)];
    let expected = r#"["{\"city\":", "\"Paris\"}"] Some("tool_use")"#;
    assert_eq!(outcome(steps(&[&said[..], &given].concat()), structured()).await, expected);

    let mut whole = tool("t", "give_final_answer");
    whole["input"] = json!({"city": "Paris"});
    let expected = r#"["{\"city\":\"Paris\"}"] Some("tool_use")"#;
    assert_eq!(outcome(steps(&[open(1, whole), close(1)]), structured()).await, expected);

    // A server that forces nothing answers in text.
    let expected = r#"["Here it is:"] Some("tool_use")"#;
    assert_eq!(outcome(steps(&said), structured()).await, expected);
}

#[tokio::test]
async fn the_request_goes_where_it_should() {
    let all = [start(), stop("end_turn"), end()];
    let server = Server::start(vec![events(&all)]);
    call(&server, request()).await.1.expect("answered");
    let (head, body) = server.request();
    assert!(head.starts_with("post /v1/messages http/1.1\r\n"), "{head}");
    for header in
        [format!("x-api-key: {}\r\n", KEY.to_lowercase()), "anthropic-version: 2023-06-01\r\n".into()]
    {
        assert!(head.contains(&header), "{head}");
    }
    assert!(!head.contains("authorization"), "{head}");
    assert_eq!((&body["model"], &body["stream"]), (&json!("m"), &json!(true)));

    let models = Models::new(Config::default()).and_then(|models| models.provider("anthropic"));
    let settings = ModelSettings::parse("anthropic:m");
    let asked =
        models.expect("configured").call(Request { settings: settings.into(), ..request() }.into()).await;
    let error = asked.err().expect("refused");
    assert_eq!(error.to_string(), "no API key for provider \"anthropic\": set ANTHROPIC_API_KEY");
}

//! Which failures are worth another try, and when: the same in every dialect.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use serde_json::json;

use super::server::{Server, Step, answer, cut};
use crate::{
    graph::ModelApi,
    model::{Chunk, Config, Dialect, Error, Models, Provider, Request, Timeouts, retry::Policy},
    value::{Message, Role},
};

const DIALECTS: [Dialect; 3] =
    [Dialect::OpenAi(ModelApi::ChatCompletions), Dialect::OpenAi(ModelApi::Responses), Dialect::Anthropic];

/// A call in `dialect` to the server at `url`.
async fn call(
    dialect: Dialect,
    url: &str,
    timeouts: Timeouts,
) -> Result<BoxStream<'static, Result<Chunk, Error>>, Error> {
    let provider = match dialect {
        Dialect::OpenAi(_) => Provider::openai(None, Some(url.to_owned())),
        Dialect::Anthropic => Provider::anthropic(None, Some(url.to_owned())),
    };
    let providers = BTreeMap::from([("p".to_owned(), Provider { dialect, ..provider })]);
    let models = Models::new(Config { providers, timeouts, ..Config::default() }).expect("configured");
    let request = Request {
        settings: Arc::new(
            serde_json::from_value(json!({ "provider": "p", "model": "m" })).expect("settings"),
        ),
        system_prompt: None,
        messages: vec![Arc::new(Message::new("h1", Role::Human, "Hello?"))],
        tools: Vec::new(),
        output_schema: None,
        retry: 0,
    };
    models.provider("p").expect("configured").call(request.into()).await
}

/// The failure of a call in `dialect` to the server at `url`.
async fn failure(dialect: Dialect, url: &str, timeouts: Timeouts) -> Error {
    let stream = match call(dialect, url, timeouts).await {
        Ok(stream) => stream,
        Err(error) => return error,
    };
    let parts: Vec<Result<Chunk, Error>> = stream.collect().await;
    parts.into_iter().find_map(Result::err).expect("the call fails")
}

/// The code of a failure, and the milliseconds that the next try waits at least, if there is one.
type Class = (&'static str, Option<u128>);

/// The status and headers of an answer, and its class.
type Case = (u16, &'static [&'static str], Class);

fn class(error: &Error) -> Class {
    (error.code(), Policy::default().delay(0, error, 0).map(|wait| wait.as_millis()))
}

#[tokio::test]
async fn a_status_has_its_class_in_every_dialect() {
    const DATES: [&str; 2] =
        ["date: Wed, 21 Oct 2026 07:28:00 GMT", "retry-after: Wed, 21 Oct 2026 07:28:09 GMT"];
    let cases: [Case; 22] = [
        (429, &[], ("MODEL_THROTTLED", Some(0))),
        (429, &["retry-after: 7"], ("MODEL_THROTTLED", Some(7_000))),
        (429, &["retry-after: 7", "retry-after-ms: 250"], ("MODEL_THROTTLED", Some(250))),
        (429, &DATES, ("MODEL_THROTTLED", Some(9_000))),
        (429, &["retry-after: 86400"], ("MODEL_THROTTLED", Some(30_000))),
        (429, &["retry-after: soon"], ("MODEL_THROTTLED", Some(0))),
        (529, &["retry-after: 3"], ("MODEL_THROTTLED", Some(3_000))),
        (503, &["retry-after: 3"], ("MODEL_THROTTLED", Some(3_000))),
        (500, &[], ("MODEL_UNAVAILABLE", Some(0))),
        (502, &[], ("MODEL_UNAVAILABLE", Some(0))),
        (504, &[], ("MODEL_UNAVAILABLE", Some(0))),
        (408, &[], ("MODEL_UNAVAILABLE", Some(0))),
        (409, &[], ("MODEL_UNAVAILABLE", Some(0))),
        (400, &[], ("MODEL_REJECTED", None)),
        (401, &[], ("MODEL_REJECTED", None)),
        (402, &[], ("MODEL_REJECTED", None)),
        (403, &["retry-after: 3"], ("MODEL_REJECTED", None)),
        (404, &[], ("MODEL_REJECTED", None)),
        (413, &[], ("MODEL_REJECTED", None)),
        (418, &[], ("MODEL_REJECTED", None)),
        (422, &[], ("MODEL_REJECTED", None)),
        (425, &[], ("MODEL_REJECTED", None)),
    ];
    for dialect in DIALECTS {
        for (status, headers, expected) in cases {
            let headers: Vec<&str> =
                headers.iter().copied().chain(["content-type: application/json"]).collect();
            let server = Server::start(vec![answer(status, &headers, br#"{"error":{"message":"no"}}"#, 64)]);
            let error = failure(dialect, &server.url, Timeouts::default()).await;
            assert_eq!(class(&error), expected, "{dialect:?} {status} {headers:?}: {error}");
        }
    }
}

#[tokio::test]
async fn an_answer_begins_with_its_thoughts_and_not_with_a_status_or_an_error() {
    const EVENTS: [&str; 1] = ["content-type: text/event-stream"];
    for dialect in DIALECTS {
        let (thought, error) = match dialect {
            Dialect::OpenAi(ModelApi::ChatCompletions) => (
                json!({ "choices": [{ "index": 0, "delta": { "reasoning_content": "Hm" } }] }),
                json!({ "error": { "type": "server_error", "message": "no" } }),
            ),
            Dialect::OpenAi(ModelApi::Responses) => (
                json!({ "type": "response.created", "response": { "status": "in_progress" } }),
                json!({ "type": "error", "message": "no" }),
            ),
            Dialect::Anthropic => (
                json!({ "type": "message_start", "message": { "model": "m" } }),
                json!({ "type": "error", "error": { "type": "overloaded_error", "message": "no" } }),
            ),
        };
        let sent = |event: &serde_json::Value| format!(": hello\n\ndata: {event}\n\n").into_bytes();
        let steps = cut(200, &EVENTS, &sent(&thought), 4096).into_iter().chain([Step::AwaitHangUp]);
        let server = Server::start(vec![steps.collect()]);
        let mut stream = call(dialect, &server.url, Timeouts::default()).await.expect("begun");
        let first = stream.next().await.expect("a chunk").expect("good");
        assert_eq!(first, Chunk::Begun, "{dialect:?}");
        drop(stream);
        server.hang_up().await;

        let server = Server::start(vec![answer(200, &EVENTS, &sent(&error), 4096)]);
        let stream = call(dialect, &server.url, Timeouts::default()).await.expect("a status of 200");
        let parts: Vec<Result<Chunk, Error>> = stream.collect().await;
        assert!(matches!(&parts[..], [Err(_)]), "{dialect:?}: {parts:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_silent_or_not_there_is_worth_another_try() {
    let timeouts = Timeouts { idle: Duration::from_millis(50), ..Timeouts::default() };
    let impatient = Timeouts { first_byte: Duration::from_millis(50), ..Timeouts::default() };
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n: hello\n\n".to_vec();
    for dialect in DIALECTS {
        let server = Server::start(vec![vec![Step::AwaitHangUp]]);
        let error = failure(dialect, &server.url, impatient).await;
        assert_eq!(class(&error), ("MODEL_TIMEOUT", Some(0)), "{dialect:?}: {error}");

        let server = Server::start(vec![vec![Step::Send(head.clone()), Step::AwaitHangUp]]);
        let error = failure(dialect, &server.url, timeouts).await;
        assert_eq!(class(&error), ("MODEL_TIMEOUT", Some(0)), "{dialect:?}: {error}");

        // Nobody listens there, and no test can come to listen there.
        let error = failure(dialect, "http://127.0.0.1:1/v1", Timeouts::default()).await;
        assert_eq!(class(&error), ("MODEL_UNAVAILABLE", Some(0)), "{dialect:?}: {error}");
    }
}

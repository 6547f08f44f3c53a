//! What can go wrong on the wire, and where the key goes.

use std::time::Duration;

use expect_test::{Expect, expect};
use futures::StreamExt;
use serde_json::json;

use super::{KEY, ask, ask_in_pieces, call, config, request, settings};
use crate::model::{
    Auth, Chunk, Config, Error, Models, Provider, Quirk, Timeouts,
    tests::server::{Server, Step, answer, cut},
};

const EVENTS: &str = "content-type: text/event-stream";
const JSON: &str = "content-type: application/json";
const HELLO: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"Hello\"}}]}\n\n";
const STOP: &str = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
const DONE: &str = "data: [DONE]\n\n";

fn events(events: &[&str]) -> Vec<Step> {
    answer(200, &[EVENTS], events.concat().as_bytes(), 5)
}

/// The pieces and the error or the text of an answer.
async fn outcome(steps: Vec<Step>) -> String {
    let server = Server::start(vec![steps]);
    match ask_in_pieces(&server).await {
        (pieces, Ok(reply)) => format!("{pieces:?} {:?}", reply.finish_reason),
        (pieces, Err(error)) => format!("{pieces:?} {}: {error}", error.code()),
    }
}

async fn check(steps: Vec<Step>, expected: Expect) {
    expected.assert_eq(&outcome(steps).await);
}

#[tokio::test]
async fn an_answer_is_complete_with_a_reason_or_a_done() {
    check(events(&[HELLO, STOP, DONE]), expect![[r#"["Hello"] Some("stop")"#]]).await;
    check(events(&[HELLO, STOP]), expect![[r#"["Hello"] Some("stop")"#]]).await;
    check(events(&[HELLO, DONE]), expect![[r#"["Hello"] None"#]]).await;
    check(events(&[HELLO, STOP.trim_end()]), expect![[r#"["Hello"] Some("stop")"#]]).await;
    check(cut(200, &[EVENTS], [HELLO, STOP].concat().as_bytes(), 9), expect![[r#"["Hello"] Some("stop")"#]])
        .await;
}

#[tokio::test]
async fn a_cut_answer_is_an_error_that_may_pass() {
    check(
        events(&[HELLO]),
        expect![[r#"["Hello"] MODEL_UNAVAILABLE: openai is unavailable: the stream was cut before the answer was complete"#]],
    )
    .await;
    for empty in ["", ": ping\n\n", DONE, "data: {\"choices\":[]}\n\n"] {
        let outcome = outcome(events(&[empty])).await;
        assert_eq!(
            outcome,
            "[] MODEL_UNAVAILABLE: openai is unavailable: the stream ended without an answer"
        );
    }
    let outcome = outcome(cut(200, &[EVENTS], HELLO.as_bytes(), 9)).await;
    assert!(
        outcome.starts_with(r#"["Hello"] MODEL_UNAVAILABLE: openai is unavailable: the connection broke"#)
    );
}

#[tokio::test]
async fn an_error_in_mid_stream_comes_after_the_pieces_before_it() {
    let error = "data: {\"error\":{\"message\":\"overloaded\",\"type\":\"overloaded_error\"}}\n\n";
    let expected = r#"["Hello"] MODEL_THROTTLED: openai answered 529: overloaded"#;
    for steps in [events(&[HELLO, error]), events(&[HELLO, error, DONE])] {
        assert_eq!(outcome(steps).await, expected);
    }
    assert_eq!(outcome(answer(200, &[EVENTS], [HELLO, error].concat().as_bytes(), 4096)).await, expected);
    check(
        events(&[HELLO, "event: error\ndata: {\"message\":\"gone\"}\n\n"]),
        expect![[r#"["Hello"] MODEL_UNAVAILABLE: openai is unavailable: gone"#]],
    )
    .await;
    check(
        events(&[HELLO, "data: {\"choices\":7}\n\n"]),
        expect![[r#"["Hello"] MODEL_PROTOCOL: openai answered in a way that cannot be read: an event is not a chunk (Data error in line 1, column 12)"#]],
    )
    .await;
}

#[tokio::test]
async fn answers_that_are_no_stream_are_understood() {
    let json = |body: serde_json::Value| answer(200, &[JSON], body.to_string().as_bytes(), 7);
    let message =
        json!({"choices": [{"message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}]});
    check(json(message), expect![[r#"["Hi"] Some("stop")"#]]).await;
    let error = json!({"error": {"message": "no such model", "type": "invalid_request_error"}});
    check(json(error), expect!["[] MODEL_REJECTED: openai refused the request (400): no such model"]).await;
    check(
        json(json!({"hello": 1})),
        expect!["[] MODEL_PROTOCOL: openai answered in a way that cannot be read: the answer is not a completion: it has no choices"],
    )
    .await;
    check(
        answer(200, &["content-type: text/html"], b"<html>", 7),
        expect!["[] MODEL_PROTOCOL: openai answered in a way that cannot be read: the answer is a web page; is the base URL right?"],
    )
    .await;
    check(answer(200, &[], [HELLO, STOP].concat().as_bytes(), 7), expect![[r#"["Hello"] Some("stop")"#]])
        .await;
}

#[tokio::test]
async fn a_status_says_whether_to_ask_again() {
    let quota = json!({"error": {"message": "pay", "code": "insufficient_quota"}}).to_string();
    check(
        answer(429, &[JSON], quota.as_bytes(), 7),
        expect!["[] MODEL_REJECTED: openai refused the request (429): pay"],
    )
    .await;
    check(
        answer(502, &["content-type: text/html"], b"<html>Bad gateway</html>", 7),
        expect!["[] MODEL_UNAVAILABLE: openai is unavailable: status 502: no error message in JSON"],
    )
    .await;
    // Ends in mid-body: the status is enough.
    check(
        cut(503, &[JSON], b"{\"error\":{\"mess", 7),
        expect!["[] MODEL_THROTTLED: openai answered 503: no error message in JSON"],
    )
    .await;
}

#[tokio::test]
async fn the_wait_a_provider_asks_for_is_understood() {
    let date = "date: Fri, 20 Nov 2026 23:09:42 GMT";
    for (headers, expected) in [
        (vec!["retry-after: 7"], Some(7_000)),
        (vec!["retry-after: 0.5"], Some(500)),
        (vec!["retry-after: 7", "retry-after-ms: 1500"], Some(1_500)),
        (vec!["retry-after: Fri, 20 Nov 2026 23:10:12 GMT", date], Some(30_000)),
        (vec!["retry-after: Fri, 20 Nov 2026 23:00:00 GMT", date], Some(0)),
        (vec!["retry-after: Fri, 20 Nov 2026 23:10:12 GMT"], None),
        (vec!["retry-after: 99999999999"], Some(86_400_000)),
        (vec!["retry-after: -1"], None),
        (vec!["retry-after: soon"], None),
        (vec![], None),
    ] {
        let server = Server::start(vec![answer(429, &headers, b"{}", 7)]);
        let error = ask(&server).await.expect_err("throttled");
        assert_eq!(error.code(), "MODEL_THROTTLED");
        assert_eq!(error.retry_after(), expected.map(Duration::from_millis), "{headers:?}");
    }
}

#[tokio::test]
async fn neither_key_nor_prompt_comes_back_in_an_error() {
    let message =
        format!("key {KEY} of sk-proj-abc123***xyz asked: Tell me about the weather in Paris. Bearer {KEY}");
    let body = json!({"error": {"message": message}}).to_string();
    for status in [200, 400, 401, 429, 500] {
        check(answer(status, &[JSON], body.as_bytes(), 99), match status {
            200 => expect!["[] MODEL_UNAVAILABLE: openai is unavailable: key […] of […] asked: […] Bearer […]"],
            429 => expect!["[] MODEL_THROTTLED: openai answered 429: key […] of […] asked: […] Bearer […]"],
            500 => expect!["[] MODEL_UNAVAILABLE: openai is unavailable: status 500: key […] of […] asked: […] Bearer […]"],
            400 => expect!["[] MODEL_REJECTED: openai refused the request (400): key […] of […] asked: […] Bearer […]"],
            _ => expect!["[] MODEL_REJECTED: openai refused the request (401): key […] of […] asked: […] Bearer […]"],
        })
        .await;
    }
}

#[tokio::test]
async fn the_request_goes_where_it_should() {
    let server = Server::start(vec![events(&[HELLO, STOP, DONE]), events(&[HELLO, STOP, DONE])]);
    ask(&server).await.expect("answered");
    let (head, body) = server.request();
    assert!(head.starts_with("post /v1/chat/completions http/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("authorization: bearer {}\r\n", KEY.to_lowercase())), "{head}");
    assert_eq!((&body["model"], &body["stream"]), (&json!("m"), &json!(true)));

    // Without a key, no authorization: local servers have none.
    let mut keyless = config(&format!("{}/", server.url));
    keyless.providers.get_mut("openai").expect("configured").key = Some(" ".to_owned().into());
    call(keyless, request(settings())).await.1.expect("answered");
    let (head, _) = server.request();
    assert!(head.starts_with("post /v1/chat/completions http/1.1\r\n"), "{head}");
    assert!(!head.contains("authorization"), "{head}");
}

#[tokio::test]
async fn openai_is_not_asked_without_a_key() {
    let error = call(Config::default(), request(settings())).await.1.expect_err("refused");
    assert_eq!(error.to_string(), "no API key for provider \"openai\": set OPENAI_API_KEY");
}

#[tokio::test]
async fn an_address_of_the_definition_must_be_allowed() {
    let own = Server::start(vec![events(&[HELLO, STOP])]);
    let other = Server::start(vec![events(&[HELLO, STOP])]);
    let mut elsewhere = settings();
    elsewhere.base_url = Some(other.url.clone());

    let error = call(config(&own.url), request(elsewhere.clone())).await.1.expect_err("refused");
    assert_eq!(error.code(), "MODEL_URL_REFUSED");
    assert!(other.seen.try_recv().is_err(), "the other server was asked");

    let host = other.url.trim_end_matches("/v1").to_owned();
    let allowed = Config { allowed_hosts: vec![host], ..config(&own.url) };
    call(allowed, request(elsewhere)).await.1.expect("answered");
    assert!(other.request().0.contains("authorization"));
    assert!(own.seen.try_recv().is_err(), "its own server was asked");
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let target = Server::start(vec![events(&[HELLO, STOP])]);
    let location = format!("location: {}/chat/completions", target.url);
    for status in [301, 302, 307, 308] {
        let server = Server::start(vec![answer(status, &[&location], b"", 7)]);
        let error = ask(&server).await.expect_err("refused");
        assert_eq!(error.code(), "MODEL_REJECTED");
    }
    assert!(target.seen.try_recv().is_err(), "the redirect was followed");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}/secret-path", listener.local_addr().expect("bound"));
    drop(listener);
    let error = call(config(&url), request(settings())).await.1.expect_err("nobody there");
    assert_eq!(error.code(), "MODEL_UNAVAILABLE");
    assert!(error.to_string().contains("no connection") && !error.to_string().contains("secret"), "{error}");
}

/// Limits that a test can wait for, all but one of them long.
fn patient() -> Timeouts {
    let long = Duration::from_secs(60);
    Timeouts { connect: long, first_byte: long, idle: long, call: long }
}

/// How a server that sends `first` and then nothing is told off.
async fn silence_after(first: Vec<Step>, timeouts: Timeouts) -> (Vec<String>, Result<String, Error>) {
    let server = Server::start(vec![first.into_iter().chain([Step::AwaitHangUp]).collect()]);
    let (pieces, outcome) = call(Config { timeouts, ..config(&server.url) }, request(settings())).await;
    server.hang_up().await;
    (pieces, outcome.map(|reply| reply.text))
}

fn expect_timeout(outcome: Result<String, Error>, expected: Duration) {
    match outcome {
        Err(Error::Timeout { limit, .. }) => assert_eq!(limit, expected),
        other => panic!("no timeout but {other:?}"),
    }
}

#[tokio::test]
async fn a_server_that_falls_silent_is_left() {
    let short = Duration::from_millis(60);
    let head = || cut(200, &[EVENTS], b"", 7);
    // In one piece, so that a busy machine cannot fall silent in the middle of it.
    let begun = || cut(200, &[EVENTS], HELLO.as_bytes(), 4096);

    let hasty = Timeouts { first_byte: short, ..patient() };
    expect_timeout(silence_after(Vec::new(), hasty).await.1, short);
    expect_timeout(silence_after(head(), hasty).await.1, short);

    let (pieces, outcome) = silence_after(begun(), Timeouts { idle: short, ..patient() }).await;
    assert_eq!(pieces, ["Hello"]);
    expect_timeout(outcome, short);

    let hurried = Timeouts { call: short, ..patient() };
    expect_timeout(silence_after(Vec::new(), hurried).await.1, short);
    expect_timeout(silence_after(begun(), hurried).await.1, short);
}

#[tokio::test]
async fn a_finished_answer_does_not_wait_for_the_server_to_hang_up() {
    let finished = cut(200, &[EVENTS], [HELLO, STOP].concat().as_bytes(), 4096);
    let quick = Timeouts { idle: Duration::from_millis(60), ..patient() };
    assert_eq!(silence_after(finished, quick).await.1.expect("complete"), "Hello");
    let done = cut(200, &[EVENTS], [HELLO, STOP, DONE].concat().as_bytes(), 7);
    assert_eq!(silence_after(done, patient()).await.1.expect("complete"), "Hello");
}

#[tokio::test]
async fn dropping_the_stream_closes_the_connection() {
    let steps = cut(200, &[EVENTS], HELLO.as_bytes(), 4096).into_iter().chain([Step::AwaitHangUp]).collect();
    let server = Server::start(vec![steps]);
    let provider = Provider::openai(None, Some(server.url.clone()));
    let config = Config { providers: [("openai".to_owned(), provider)].into(), ..Config::default() };
    let model = Models::new(config).and_then(|models| models.provider("openai")).expect("configured");
    let mut stream = model.call(request(settings()).into()).await.expect("begun");
    for expected in [Chunk::Begun, Chunk::Text("Hello".into())] {
        assert_eq!(stream.next().await.expect("a piece").expect("good"), expected);
    }
    drop(stream);
    server.hang_up().await;
}

#[tokio::test]
async fn a_named_provider_is_asked_in_its_own_way() {
    let server = Server::start(vec![events(&[HELLO, STOP, DONE])]);
    let mut config = config(&format!("{}/openai/deployments/gpt", server.url.trim_end_matches("/v1")));
    let provider = config.providers.get_mut("openai").expect("configured");
    provider.auth = Auth::ApiKey;
    provider.query = vec![("api-version".into(), "2024-10-21 &x".into())];
    provider.quirks = [Quirk::NoStreamOptions].into();
    call(config, request(settings())).await.1.expect("answered");
    let (head, body) = server.request();
    let path = "post /openai/deployments/gpt/chat/completions?api-version=2024-10-21+%26x http/1.1\r\n";
    assert!(head.starts_with(path), "{head}");
    assert!(head.contains(&format!("\r\napi-key: {}\r\n", KEY.to_lowercase())), "{head}");
    assert!(!head.contains("authorization"), "{head}");
    assert!(body.get("stream_options").is_none());
}

mod exchanges;

use indexmap::IndexMap;
use serde_json::{Value as Json, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_util::task::TaskTracker;

use super::*;
use crate::{
    graph::ToolDefinition,
    ids::UnixNanos,
    secrets::{self, Given, Secrets},
    telemetry::scrub::Scrubber,
    tool::{CallOutcome, Toolbox},
    value::{State, ToolStatus, Value},
};

/// A server of one fixed reply that hands out the requests it got.
pub(in crate::tool) struct Server {
    pub(in crate::tool) port: u16,
    pub(super) requests: mpsc::UnboundedReceiver<String>,
}

/// A server that answers everything with the same JSON.
pub(super) async fn serve_json(status: &str, json: &Json) -> Server {
    let reply = reply(status, "content-type: application/json\r\n", json.to_string().as_bytes());
    serve(move |_| reply.clone(), Then::Close).await
}

/// A server that answers what is posted with the JSON made of it, takes what nothing is made of, and knows no other
/// methods.
pub(in crate::tool) async fn serve_posted(
    answer: impl Fn(&str) -> Option<Json> + Send + Sync + 'static,
) -> Server {
    let reply = move |request: &str| match answer(request) {
        _ if !request.starts_with("POST ") => reply("405 Method Not Allowed", "", b""),
        None => reply("202 Accepted", "", b""),
        Some(json) => reply("200 OK", "content-type: application/json\r\n", json.to_string().as_bytes()),
    };
    serve(reply, Then::Close).await
}

/// What a server does after it has read a request.
#[derive(Clone, Copy)]
enum Then {
    Close,
    /// Keep the connection open and say no more.
    Stall,
}

async fn serve(reply: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static, then: Then) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let (sender, requests) = mpsc::unbounded_channel();
    TaskTracker::new().spawn(async move {
        let mut stalled = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let request = read_request(&mut stream).await;
            let reply = reply(&request);
            if sender.send(request).is_err() {
                return;
            }
            // A client that has read enough hangs up.
            let _hung_up = stream.write_all(&reply).await;
            if matches!(then, Then::Stall) {
                stalled.push(stream);
            }
        }
    });
    Server { port, requests }
}

async fn read_request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().expect("a number")) {
                return text;
            }
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return text,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}

fn reply(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 {status}\r\nconnection: close\r\n{headers}\r\n").into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

const TEXT: &str = "content-type: text/plain\r\n";

fn local() -> Config {
    Config {
        allowed_hosts: AllowedHosts::parse("127.0.0.1 localhost").expect("hosts"),
        allow_private: true,
        secrets: Secrets::new(
            secrets::Config {
                open: vec!["KEY".to_owned()],
                given: IndexMap::from([("KEY".to_owned(), Given::Value("hunter2".into()))]),
                ..secrets::Config::default()
            },
            &Scrubber::default(),
        ),
        ..Config::default()
    }
}

/// A request to the server on `port` that carries the secret.
fn with_key(port: u16) -> Json {
    json!({"url": format!("http://127.0.0.1:{port}/"), "headers": {"X-Key": {"secret": "KEY"}}})
}

async fn call(config: Config, http: Json, args: Json) -> Answer {
    call_in(&Toolbox::new(config).expect("a client"), http, args).await
}

async fn call_in(toolbox: &Toolbox, http: Json, args: Json) -> Answer {
    let definition: ToolDefinition =
        serde_json::from_value(json!({"name": "web", "http": http})).expect("a definition");
    let tool = toolbox.resolve("web", &IndexMap::from([("web".into(), definition)])).expect("defined");
    let args = Value::from(args).as_map().expect("an object").clone();
    let state = State::new();
    tool.call(Call {
        id: "call_1",
        args: &args,
        state: &state,
        now: UnixNanos(0),
        idempotency_key: "key-1",
        limit: None,
    })
    .await
}

fn error(answer: &Answer) -> &str {
    assert_eq!(answer.status, ToolStatus::Error, "{answer:?}");
    &answer.content
}

#[tokio::test]
async fn a_request_arrives_as_defined_and_its_answer_comes_back_as_it_was() {
    let body = br#"{"b": 1,  "a": [2]}"#;
    let mut server =
        serve(|_| reply("200 OK", "content-type: application/json\r\n", body), Then::Close).await;
    let http = json!({"method": "POST", "url": format!("http://127.0.0.1:{}/v1/{{{{ id }}}}?q={{{{ q }}}}", server.port),
        "headers": {"X-Trace": "t-{{ id }}"}, "body": {"q": "{{ q }}"}});
    let answer = call(local(), http, json!({"id": "a/b", "q": "x y"})).await;
    assert_eq!(answer, Answer::success(r#"{"b": 1,  "a": [2]}"#));
    let request = server.requests.recv().await.expect("a request");
    assert!(request.starts_with("POST /v1/a%2Fb?q=x%20y HTTP/1.1\r\n"), "{request}");
    for part in [
        "x-trace: t-a/b",
        "idempotency-key: key-1",
        "content-type: application/json",
        "user-agent: agent-executor/",
    ] {
        assert!(request.contains(&format!("\r\n{part}")), "{part}: {request}");
    }
    assert!(request.ends_with(r#"{"q":"x y"}"#), "{request}");
}

#[tokio::test]
async fn a_get_carries_no_idempotency_key_and_a_defined_key_wins() {
    let mut server = serve(|_| reply("204 No Content", "", b""), Then::Close).await;
    let url = format!("http://127.0.0.1:{}/", server.port);
    let answer = call(local(), json!({"url": url}), json!({})).await;
    assert_eq!(answer, Answer::success("204 No Content, without content"));
    assert!(!server.requests.recv().await.expect("a request").contains("idempotency-key"));
    let headers = json!({"Idempotency-Key": "{{ order }}"});
    call(local(), json!({"method": "DELETE", "url": url, "headers": headers}), json!({"order": "o-1"})).await;
    let request = server.requests.recv().await.expect("a request");
    assert!(request.contains("idempotency-key: o-1") && !request.contains("key-1"), "{request}");
}

#[tokio::test]
async fn a_secret_arrives_and_never_comes_back() {
    let mut server = serve(|request| reply("200 OK", TEXT, request.as_bytes()), Then::Close).await;
    let headers = json!({"Authorization": "Bearer {{ secrets.KEY }}"});
    let http = json!({"url": format!("http://127.0.0.1:{}/", server.port), "headers": headers});
    let answer = call(local(), http, json!({})).await;
    assert!(server.requests.recv().await.expect("a request").contains("authorization: Bearer hunter2"));
    assert!(
        answer.content.contains("authorization: Bearer ***REDACTED***")
            && !answer.content.contains("hunter2")
    );
}

#[tokio::test]
async fn a_secret_in_a_failure_or_a_redirection_never_comes_back() {
    let failing = serve(|_| reply("403 Forbidden", TEXT, b"bad key hunter2"), Then::Close).await;
    let answer = call(local(), with_key(failing.port), json!({})).await;
    assert_eq!(error(&answer), "TOOL_FAILED: the server answered 403 Forbidden\nbad key ***REDACTED***");
    let moving =
        serve(|_| reply("302 Found", "location: http://a.org/?key=hunter2\r\n", b""), Then::Close).await;
    let answer = call(local(), with_key(moving.port), json!({})).await;
    assert_eq!(
        error(&answer),
        "TOOL_FAILED: the server answered 302 Found, a redirection to 'http://a.org/?key=***REDACTED***'; \
         redirections are not followed"
    );
}

#[tokio::test]
async fn a_redirection_is_not_followed() {
    let mut target = serve(|_| reply("200 OK", TEXT, b"inside"), Then::Close).await;
    let location = format!("location: http://127.0.0.1:{}/\r\n", target.port);
    let server = serve(move |_| reply("307 Temporary Redirect", &location, b""), Then::Close).await;
    let answer = call(local(), json!({"url": format!("http://127.0.0.1:{}/", server.port)}), json!({})).await;
    assert!(error(&answer).contains("redirections are not followed"));
    assert!(target.requests.try_recv().is_err());
}

#[tokio::test]
async fn secrets_go_only_where_the_operator_named_the_host() {
    let headers = json!({"Authorization": "{{ secrets.KEY }}"});
    let config = Config { allowed_hosts: AllowedHosts::parse("*").expect("hosts"), ..local() };
    let answer = call(config, json!({"url": "http://127.0.0.1:9/", "headers": headers}), json!({})).await;
    assert!(error(&answer).starts_with("TOOL_SECRET: secrets are only sent to hosts"), "{}", answer.content);
    let headers = json!({"Authorization": "{{ secrets.OTHER }}"});
    let answer = call(local(), json!({"url": "http://127.0.0.1:9/", "headers": headers}), json!({})).await;
    assert_eq!(
        error(&answer),
        "SECRET_NOT_ALLOWED: the definition '' may not use the secret 'OTHER'; SECRETS_ALLOWED does not allow it"
    );
}

#[tokio::test]
async fn a_host_that_is_not_allowed_is_not_asked() {
    let mut server = serve(|_| reply("200 OK", TEXT, b"x"), Then::Close).await;
    let config = Config { allowed_hosts: AllowedHosts::default(), ..local() };
    let answer = call(config, json!({"url": format!("http://127.0.0.1:{}/", server.port)}), json!({})).await;
    assert_eq!(
        error(&answer),
        "TOOL_HOST_NOT_ALLOWED: the host '127.0.0.1' is not allowed: HTTP_TOOL_ALLOWED_HOSTS does not name it"
    );
    assert!(server.requests.try_recv().is_err());
}

#[tokio::test]
async fn private_addresses_are_refused_however_they_are_written() {
    let mut server = serve(|_| reply("200 OK", TEXT, b"inside"), Then::Close).await;
    for host in [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "169.254.169.254",
        "0.0.0.0",
        "10.0.0.1",
    ] {
        let list = format!("* {}", if host.starts_with("local") { host } else { "" });
        let allowed_hosts = AllowedHosts::parse(&list).expect("hosts");
        let config = Config { allowed_hosts, allow_private: false, ..local() };
        let answer = call(config, json!({"url": format!("http://{host}:{}/", server.port)}), json!({})).await;
        assert!(error(&answer).starts_with("TOOL_PRIVATE_ADDRESS"), "{host}: {}", answer.content);
        assert!(answer.content.contains("HTTP_TOOL_ALLOW_PRIVATE"));
    }
    assert!(server.requests.try_recv().is_err());
    let url = format!("http://localhost:{}/", server.port);
    assert_eq!(call(local(), json!({"url": url}), json!({})).await, Answer::success("inside"));
}

#[tokio::test]
async fn a_server_that_does_not_answer_in_time_is_given_up() {
    for head in [Vec::new(), reply("200 OK", "content-length: 10\r\n", b"half")] {
        let server = serve(move |_| head.clone(), Then::Stall).await;
        let http = json!({"url": format!("http://127.0.0.1:{}/", server.port), "timeout_seconds": 0.1});
        let answer = call(local(), http, json!({})).await;
        assert_eq!(error(&answer), "TOOL_TIMEOUT: no complete answer within 0.1 seconds");
    }
}

#[tokio::test]
async fn a_definition_lowers_the_operators_limits_and_never_raises_them() {
    let requester = HttpRequester::new(local()).expect("a client");
    let limits = |json: Json| {
        let definition = serde_json::from_value(json).expect("a definition");
        let request = RequestTemplate::compile(&definition).expect("no mistakes");
        (requester.timeout(&request).as_secs(), requester.response_limit(&request))
    };
    assert_eq!(limits(json!({"url": "http://a.org"})), (60, 1 << 20));
    assert_eq!(limits(json!({"url": "http://a.org", "timeout_seconds": 5, "max_response_bytes": 9})), (5, 9));
    assert_eq!(
        limits(json!({"url": "http://a.org", "timeout_seconds": 1e9, "max_response_bytes": 1u64 << 40})),
        (60, 1 << 20)
    );
}

#[tokio::test]
async fn a_long_answer_is_cut_and_says_so() {
    let server = serve(|_| reply("200 OK", TEXT, b"0123456789 hunter2"), Then::Close).await;
    let mut http = with_key(server.port);
    http["max_response_bytes"] = json!(14);
    let answer = call(local(), http.clone(), json!({})).await;
    assert_eq!(answer, Answer::success("0123456789 \n[cut: the response is larger than 14 bytes]"));
    http["max_response_bytes"] = json!(18);
    let answer = call(local(), http, json!({})).await;
    assert_eq!(answer, Answer::success("0123456789 ***REDACTED***"));
}

#[tokio::test]
async fn a_compressed_answer_is_measured_unpacked() {
    // 20,000 times the letter a.
    let packed = "1f8b0800000000000203edc13101000000c2a0aceb5fc21a1e4001000000000000000000000000000000000000f0603187bdca204e0000";
    let packed: Vec<u8> = packed
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).expect("ascii"), 16).expect("hex"))
        .collect();
    let headers = format!("{TEXT}content-encoding: gzip\r\ncontent-length: {}\r\n", packed.len());
    let server = serve(move |_| reply("200 OK", &headers, &packed), Then::Close).await;
    let http = json!({"url": format!("http://127.0.0.1:{}/", server.port), "max_response_bytes": 100});
    let answer = call(local(), http, json!({})).await;
    assert_eq!(answer.content, format!("{}\n[cut: the response is larger than 100 bytes]", "a".repeat(100)));
}

#[tokio::test]
async fn an_answer_longer_than_a_model_reads_is_cut() {
    let server = serve(|_| reply("200 OK", TEXT, "é".repeat(200_000).as_bytes()), Then::Close).await;
    let answer = call(local(), json!({"url": format!("http://127.0.0.1:{}/", server.port)}), json!({})).await;
    assert!(answer.content.ends_with("[cut after 100000 characters; ask for less to see the rest]"));
    assert!(answer.content.chars().count() < 100_100);
}

#[tokio::test]
async fn a_failed_answer_keeps_its_status_and_the_beginning_of_its_body() {
    let server =
        serve(|_| reply("500 Internal Server Error", TEXT, "x".repeat(9_000).as_bytes()), Then::Close).await;
    let answer = call(local(), json!({"url": format!("http://127.0.0.1:{}/", server.port)}), json!({})).await;
    assert!(error(&answer).starts_with("TOOL_FAILED: the server answered 500 Internal Server Error\nxxx"));
    assert!(answer.content.len() < 2_200);
}

#[tokio::test]
async fn a_binary_answer_is_a_note() {
    let headers = "content-type: image/png\r\ncontent-length: 4\r\n";
    let server = serve(move |_| reply("200 OK", headers, b"\x89PNG"), Then::Close).await;
    let answer = call(local(), json!({"url": format!("http://127.0.0.1:{}/", server.port)}), json!({})).await;
    assert_eq!(answer, Answer::success("[binary response: image/png, 4 bytes]"));
    let server = serve(|_| reply("200 OK", "", b"\x89PNG\0"), Then::Close).await;
    let answer = call(local(), json!({"url": format!("http://127.0.0.1:{}/", server.port)}), json!({})).await;
    assert_eq!(answer, Answer::success("[binary response: unknown type, 5 bytes]"));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_said_without_the_address() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    drop(listener);
    let http = json!({"url": format!("http://127.0.0.1:{port}/{{{{ x }}}}")});
    let answer = call(local(), http, json!({"x": "private-argument"})).await;
    assert_eq!(answer.outcome, CallOutcome::NotMade, "an irreversible call may be made again");
    assert!(
        error(&answer).starts_with("TOOL_FAILED: could not connect to '127.0.0.1': "),
        "{}",
        answer.content
    );
    assert!(!answer.content.contains("private-argument"));
}

#[tokio::test]
async fn requests_beyond_the_limit_wait_for_their_turn() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, seen) = (now.clone(), most.clone());
    TaskTracker::new().spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (now, most) = (counted.clone(), seen.clone());
            TaskTracker::new().spawn(async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                read_request(&mut stream).await;
                // Long enough for all to be here, were they let in.
                tokio::time::sleep(Duration::from_millis(50)).await;
                now.fetch_sub(1, Ordering::SeqCst);
                stream.write_all(&reply("200 OK", TEXT, b"done")).await.expect("it is read");
            });
        }
    });
    let toolbox = Toolbox::new(Config { max_concurrent: 2, ..local() }).expect("a client");
    let http = json!({"url": format!("http://127.0.0.1:{port}/")});
    let definition: ToolDefinition =
        serde_json::from_value(json!({"name": "web", "http": http})).expect("a definition");
    let tool = toolbox.resolve("web", &IndexMap::from([("web".into(), definition)])).expect("defined");
    let (args, state) = (crate::value::Map::new(), State::new());
    let call =
        || Call { id: "c", args: &args, state: &state, now: UnixNanos(0), idempotency_key: "k", limit: None };
    let answers = futures::future::join_all((0..6).map(|_| async {
        let _turn = tool.turn().await;
        tool.call(call()).await
    }))
    .await;
    assert!(answers.iter().all(|answer| answer.content == "done"), "{answers:?}");
    assert_eq!(most.load(Ordering::SeqCst), 2);
}

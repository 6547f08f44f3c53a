//! The world outside, which knows secrets and repeats them: a model, tools' servers of every kind, a server of tokens, a
//! collector of traces, a sink.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value as Json, json};

use super::{
    CLIENT, IN_ENVIRONMENT, IN_FILE, IN_FOLDER, IN_HEADER, IN_PROGRAM, IN_SEARCH, IN_VAULT, ISSUED,
    MODEL_KEY, NAMED_IN_ARGUMENTS, NAMED_IN_ERROR, Outputs,
};
use crate::doors::{Served, serve};

/// The server; it ends when it is dropped.
pub(super) struct Outside {
    pub(super) served: Served,
    heard: Heard,
}

#[derive(Clone, Default)]
struct Heard {
    /// Every request's headers.
    headers: Arc<Mutex<Vec<String>>>,
    /// Bodies that are outputs of the program.
    bodies: Arc<Mutex<Outputs>>,
}

impl Heard {
    fn note(&self, headers: &HeaderMap) {
        let values = headers.values().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        self.headers.lock().unwrap_or_else(PoisonError::into_inner).extend(values);
    }

    fn keep(&self, name: &str, body: &Bytes) {
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner).push((name.to_owned(), body.to_vec()));
    }
}

impl Outside {
    pub(super) async fn start() -> Result<Self> {
        let heard = Heard::default();
        let router = Router::new()
            .route("/v1/chat/completions", post(answer))
            .route("/echo/{note}", post(echo))
            .route("/search", post(search))
            .route("/token", post(token))
            .route("/mcp", post(mcp))
            .route("/v1/traces", post(traces))
            .route("/sink", post(sink))
            .with_state(heard.clone());
        Ok(Self { served: serve(router).await?, heard })
    }

    /// Whether a request has had this in a header.
    pub(super) fn heard(&self, secret: &str) -> bool {
        let headers = self.heard.headers.lock().unwrap_or_else(PoisonError::into_inner);
        headers.iter().any(|header| header.contains(secret))
    }

    /// Traces and results.
    pub(super) fn received(&self) -> Outputs {
        self.heard.bodies.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn traces(State(heard): State<Heard>, headers: HeaderMap, body: Bytes) {
    heard.note(&headers);
    heard.keep("traces", &body);
}

async fn sink(State(heard): State<Heard>, body: Bytes) {
    heard.keep("sink", &body);
}

/// A provider of searches that refuses and repeats.
async fn search(State(heard): State<Heard>, headers: HeaderMap) -> (StatusCode, String) {
    heard.note(&headers);
    (StatusCode::UNAUTHORIZED, format!("{headers:?}"))
}

/// A server of tokens.
async fn token(State(heard): State<Heard>, headers: HeaderMap) -> axum::Json<Json> {
    heard.note(&headers);
    axum::Json(json!({ "access_token": ISSUED, "token_type": "Bearer", "expires_in": 3_600 }))
}

/// An MCP server with one tool, which sends back the headers.
async fn mcp(State(heard): State<Heard>, headers: HeaderMap, axum::Json(said): axum::Json<Json>) -> Response {
    heard.note(&headers);
    let result = match said["method"].as_str().unwrap_or_default() {
        _ if said.get("id").is_none() => return StatusCode::ACCEPTED.into_response(),
        "initialize" => json!({ "protocolVersion": said["params"]["protocolVersion"],
            "capabilities": { "tools": {} }, "serverInfo": { "name": "outside", "version": "1" } }),
        "tools/list" => {
            let read_only = json!({ "readOnlyHint": true });
            json!({ "tools": [{ "name": "back", "inputSchema": { "type": "object" }, "annotations": read_only }] })
        }
        _ => json!({ "content": [{ "type": "text", "text": format!("{headers:?}") }] }),
    };
    axum::Json(json!({ "jsonrpc": "2.0", "id": said["id"], "result": result })).into_response()
}

/// Sends back what came: the address, and every header as it is, percent-encoded and in base64.
async fn echo(State(heard): State<Heard>, headers: HeaderMap, uri: Uri, body: String) -> String {
    heard.note(&headers);
    let mut lines = vec![uri.to_string(), body];
    for (name, value) in &headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        let percent: String = value
            .bytes()
            .map(|byte| match byte {
                b'-' | b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
                _ => format!("%{byte:02X}"),
            })
            .collect();
        lines.push(format!("{name}: {value} {percent} {}", STANDARD.encode(&*value)));
    }
    lines.join("\n")
}

/// The model `bad` refuses and repeats what it was sent; the other calls the tool and repeats what it knows.
async fn answer(State(heard): State<Heard>, headers: HeaderMap, body: String) -> Response {
    heard.note(&headers);
    let request: Json = serde_json::from_str(&body).unwrap_or_default();
    if request["model"] == "bad" {
        let message = format!("password={NAMED_IN_ERROR}, {IN_VAULT}, {MODEL_KEY}: {headers:?}");
        let body = json!({ "error": { "message": message, "type": "invalid_request_error" } }).to_string();
        return (StatusCode::BAD_REQUEST, body).into_response();
    }
    let has_answer = body.contains("\"tool_call_id\"");
    let deltas = if has_answer { last(&body) } else { first() };
    let chunk = |delta: &Json, reason: Json| {
        let chunk = json!({ "id": "c", "object": "chat.completion.chunk", "model": "good",
            "choices": [{ "index": 0, "delta": delta, "finish_reason": reason }] });
        format!("data: {chunk}\n\n")
    };
    let mut text: String = deltas.iter().map(|delta| chunk(delta, Json::Null)).collect();
    text.push_str(&chunk(&json!({}), json!(if has_answer { "stop" } else { "tool_calls" })));
    text.push_str("data: [DONE]\n\n");
    ([("content-type", "text/event-stream")], text).into_response()
}

/// A secret in two pieces of text, and a call of each tool, with secrets in arguments.
fn first() -> Vec<Json> {
    let (head, tail) = IN_ENVIRONMENT.split_at(7);
    let arguments = json!({ "note": IN_FILE, "password": NAMED_IN_ARGUMENTS, "max_tokens": 7 }).to_string();
    let (begin, end) = arguments.split_at(16);
    let call = |more: Json| json!({ "tool_calls": [more] });
    let whole = |(at, name): (usize, &str)| {
        let arguments = json!({ "query": IN_FILE }).to_string();
        let function = json!({ "name": name, "arguments": arguments });
        call(json!({ "index": at, "id": format!("call_{at}"), "type": "function", "function": function }))
    };
    let others = ["with_token", "worker", "environment", "outside__back", "web_search"];
    let others = others.into_iter().zip(1..).map(|(name, at)| whole((at, name)));
    let first = [
        json!({ "role": "assistant", "content": format!("I use {head}") }),
        json!({ "content": format!("{tail} now.") }),
        call(
            json!({ "index": 0, "id": "call_0", "type": "function", "function": { "name": "echo", "arguments": begin } }),
        ),
        call(json!({ "index": 0, "function": { "arguments": end } })),
    ];
    first.into_iter().chain(others).collect()
}

/// The answer to a conversation in which `body` has everything that the tool said.
fn last(body: &str) -> Vec<Json> {
    let all =
        [IN_ENVIRONMENT, IN_FILE, IN_FOLDER, IN_VAULT, IN_PROGRAM, IN_HEADER, IN_SEARCH, CLIENT, ISSUED];
    let tells = all.map(|secret| format!("{secret} {}", body.contains(secret)));
    vec![
        json!({ "role": "assistant", "content": format!("A token is of no interest: {}", tells.join(", ")) }),
    ]
}

//! The world outside that must not be bothered twice: a model provider and a server of effects, which note every
//! question and every effect before they answer.
//!
//! Each member has a port of its own, so that it is known who asks.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::{Value as Json, json};
use tokio::sync::mpsc;

use crate::doors::{Served, serve};

/// How long an answer takes; enough for a process to die in between.
const ANSWER: Duration = Duration::from_millis(40);

/// What was asked for from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    /// Since the start of the run.
    pub(super) at: Duration,
    pub(super) job_id: String,
    /// Which of the job's calls: the same for every repeat of it.
    pub(super) label: String,
    /// The idempotency key of an effect; none for a model call.
    pub(super) key: Option<String>,
}

/// A member that runs a poison job.
pub(super) type Victim = usize;

/// What was asked for so far.
#[derive(Clone)]
pub(super) struct Counter {
    started: Instant,
    calls: Arc<Mutex<Vec<Call>>>,
    victims: mpsc::UnboundedSender<Victim>,
}

/// The counter as one member sees it.
#[derive(Clone)]
struct Desk {
    counter: Counter,
    member: usize,
}

impl Counter {
    /// A counter, and the members that poison jobs have reached.
    pub(super) fn new(started: Instant) -> (Self, mpsc::UnboundedReceiver<Victim>) {
        let (victims, reached) = mpsc::unbounded_channel();
        (Self { started, calls: Arc::default(), victims }, reached)
    }

    /// Opens the port of a member.
    pub(super) async fn open(&self, member: usize) -> Result<Served> {
        let router = Router::new()
            .route("/v1/chat/completions", post(answer))
            .route("/effect/{job}/{call}", post(effect))
            .with_state(Desk { counter: self.clone(), member });
        serve(router).await
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, job_id: &str, label: String, key: Option<String>) {
        let call = Call { at: self.started.elapsed(), job_id: job_id.to_owned(), label, key };
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    }
}

/// An effect. The key must be there: without it a repeat could not be told from a second effect.
async fn effect(
    State(desk): State<Desk>,
    Path((job, call)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok()).unwrap_or_default();
    desk.counter.note(&job, format!("effect {call}"), Some(key.to_owned()));
    tokio::time::sleep(ANSWER).await;
    (StatusCode::OK, format!("charged {call}")).into_response()
}

/// A model call.
async fn answer(State(desk): State<Desk>, body: String) -> Response {
    let request: Json = serde_json::from_str(&body).unwrap_or_default();
    let messages = request["messages"].as_array().cloned().unwrap_or_default();
    let asked = messages.iter().rposition(|message| message["role"] == "user").unwrap_or(0);
    let text = messages.get(asked).map(|message| text_of(&message["content"])).unwrap_or_default();
    let said = messages.iter().skip(asked).filter(|message| message["role"] == "assistant").count();
    let words: Vec<&str> = text.split(' ').collect();
    let job = words.get(1).copied().unwrap_or_default();
    if words[0] == "poison" {
        // Nobody is there to listen any more when the answer would come.
        let _ = desk.counter.victims.send(desk.member);
        return std::future::pending().await;
    }
    desk.counter.note(job, format!("model {text} #{said}"), None);
    tokio::time::sleep(ANSWER).await;
    let chunks = reply(&words, job, said);
    (StatusCode::OK, [("content-type", "text/event-stream")], chunks).into_response()
}

/// A content is a text, or a list of parts.
fn text_of(content: &Json) -> String {
    let Some(parts) = content.as_array() else { return content.as_str().unwrap_or_default().to_owned() };
    parts.iter().filter_map(|part| part["text"].as_str()).collect()
}

/// What the model says next.
fn reply(words: &[&str], job: &str, said: usize) -> String {
    let number = |at: usize| words.get(at).and_then(|word| word.parse().ok()).unwrap_or(0_usize);
    let name = words.get(2).copied().unwrap_or_default();
    let file = format!("/{name}.md");
    let task =
        |kind: &str| ("task", json!({ "description": format!("work {job} {kind}"), "subagent_type": kind }));
    let charge = |call: String| ("charge", json!({ "job": job, "call": call }));
    let calls = match (words[0], said) {
        ("tally", said) if said < number(2) => {
            (0..number(3)).map(|call| charge(format!("{said}-{call}"))).collect()
        }
        ("lead", 0) => {
            vec![("write_todos", json!({ "todos": [{ "content": "both", "status": "in_progress" }] }))]
        }
        ("lead", 1) => vec![task("research"), task("writing")],
        ("lead", 2) => vec![("ls", json!({ "path": "/" }))],
        ("work", 0) => {
            vec![("write_file", json!({ "file_path": file, "content": "one\ntwo" })), charge(name.to_owned())]
        }
        ("work", 1) => vec![("read_file", json!({ "file_path": file }))],
        _ => Vec::new(),
    };
    let done = match words[0] {
        "tally" => format!("tallied {job}"),
        "lead" => format!("led {job}"),
        "work" => format!("worked {job} {name}"),
        other => format!("{other}?"),
    };
    chunks(said, &calls, &done)
}

/// The answer as server-sent events.
fn chunks(said: usize, calls: &[(&str, Json)], done: &str) -> String {
    let delta = if calls.is_empty() {
        json!({ "role": "assistant", "content": done })
    } else {
        let call = |(at, (name, args)): (usize, &(&str, Json))| {
            json!({ "index": at, "id": format!("c{said}-{at}"), "type": "function",
                "function": { "name": name, "arguments": args.to_string() } })
        };
        let calls: Vec<Json> = calls.iter().enumerate().map(call).collect();
        json!({ "role": "assistant", "content": "working", "tool_calls": calls })
    };
    let finish = if calls.is_empty() { "stop" } else { "tool_calls" };
    let chunk = |delta: Json, finish: Option<&str>| {
        let chunk = json!({ "id": "c", "object": "chat.completion.chunk", "model": "chaos",
            "choices": [{ "index": 0, "delta": delta, "finish_reason": finish }] });
        format!("data: {chunk}\n\n")
    };
    chunk(delta, None) + &chunk(json!({}), Some(finish)) + "data: [DONE]\n\n"
}

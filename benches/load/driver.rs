//! Publishes jobs and listens for their results.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use serde::Deserialize;
use serde_json::{Value as Json, json};

/// No job of this kind takes this long unless something is broken.
const RESULT_WITHIN: Duration = Duration::from_secs(60);
/// Words of a model's answer, a piece each.
const TOKENS: usize = 200;

/// What a turn measured.
#[derive(Default)]
pub(crate) struct Turn {
    /// The ids of the jobs that ran, which are also their threads' ids.
    pub(crate) ids: Vec<String>,
    pub(crate) seconds: f64,
    pub(crate) latencies: Vec<Duration>,
}

impl Turn {
    pub(crate) fn and(&mut self, other: Self) {
        self.ids.extend(other.ids);
        self.seconds += other.seconds;
        self.latencies.extend(other.latencies);
    }

    pub(crate) fn jobs(&self) -> f64 {
        self.ids.len() as f64
    }

    /// The latency that this share of the jobs does not exceed, in milliseconds.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        sorted.get((sorted.len() * percent / 100).min(last)).map_or(0.0, |at| at.as_secs_f64() * 1e3)
    }
}

/// How long a turn lasts: until the time is over or this many jobs have run.
#[derive(Clone, Copy)]
pub(crate) struct Until {
    pub(crate) time: Duration,
    pub(crate) jobs: usize,
}

/// The one field of a result that the driver needs; it shares the machine with what it measures.
#[derive(Deserialize)]
struct ResultOf<'a> {
    #[serde(borrow)]
    subject: std::borrow::Cow<'a, str>,
}

pub(crate) struct Driver {
    client: async_nats::Client,
    results: async_nats::Subscriber,
    /// Start of every job id; two drivers on the same servers need different ones.
    name: &'static str,
    next: usize,
}

impl Driver {
    pub(crate) async fn new(url: &str, name: &'static str) -> Result<Self> {
        let client = async_nats::connect(url).await?;
        let results = client.subscribe("agent.status.>").await?;
        client.flush().await?;
        Ok(Self { client, results, name, next: 0 })
    }

    /// Runs jobs, `in_flight` at a time: each result lets the next job go. A publisher that waits for its
    /// acknowledgement waits beside the job; this one leaves it out.
    pub(crate) async fn run(&mut self, definition: &Json, in_flight: usize, until: Until) -> Result<Turn> {
        let began = Instant::now();
        let mut waiting: HashMap<String, Instant> = HashMap::new();
        let mut turn = Turn::default();
        let definition = definition.to_string();
        loop {
            while began.elapsed() < until.time
                && turn.ids.len() + waiting.len() < until.jobs
                && waiting.len() < in_flight
            {
                let id = format!("{}-{:07}", self.name, self.next);
                self.next += 1;
                let request = request(&id, &definition);
                waiting.insert(id, Instant::now());
                self.client.publish("agent.execute.load", request.into()).await?;
            }
            if waiting.is_empty() {
                break;
            }
            let message = tokio::time::timeout(RESULT_WITHIN, self.results.next()).await;
            let message = message.context("no result in time")?.context("the subscription ended")?;
            let subject = message.subject.as_str();
            let text = || String::from_utf8_lossy(&message.payload).into_owned();
            ensure!(subject == "agent.status.completed", "{subject}: {}", text());
            let result: ResultOf<'_> = serde_json::from_slice(&message.payload)?;
            // A result that came twice counts once.
            if let Some((id, since)) = waiting.remove_entry(&*result.subject) {
                turn.latencies.push(since.elapsed());
                turn.ids.push(id);
            }
        }
        turn.seconds = began.elapsed().as_secs_f64();
        Ok(turn)
    }
}

/// A request as its publisher sends it.
pub(crate) fn request(id: &str, definition: &str) -> String {
    format!(
        r#"{{"job_id":"{id}","agent_definition":{definition},"input":{{"messages":[{{"role":"user","content":"Go."}}]}}}}"#
    )
}

/// A graph of three nodes in a row: a transform, a model that says 200 tokens at once, a transform.
pub(crate) fn three_nodes() -> Json {
    let text = vec!["token"; TOKENS].join(" ");
    let script = json!({ "replies": [{ "text": text }] });
    json!({
        "name": "load",
        "channels": {
            "messages": { "reducer": "messages" },
            "question": { "reducer": "last_value" },
            "answer": { "reducer": "last_value" },
        },
        "nodes": [
            { "id": "first", "type": "transform", "writes": { "question": "'What is measured?'" } },
            { "id": "second", "type": "model",
              "model": { "provider": "scripted", "model": "load", "script": script } },
            { "id": "third", "type": "transform", "writes": { "answer": "messages | length" } },
        ],
        "edges": [
            { "from": "START", "to": "first" },
            { "from": "first", "to": "second" },
            { "from": "second", "to": "third" },
            { "from": "third", "to": "END" },
        ],
    })
}

/// One node whose model takes `delay` before its first token and between two.
pub(crate) fn slow(delay: Duration) -> Json {
    let delay = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    let text = vec!["token"; TOKENS].join(" ");
    let script = json!({ "replies": [{ "text": text, "delay_ms": delay, "token_delay_ms": delay }] });
    json!({
        "name": "slow",
        "channels": { "messages": { "reducer": "messages" } },
        "nodes": [{ "id": "only", "type": "model",
                    "model": { "provider": "scripted", "model": "slow", "script": script } }],
        "edges": [{ "from": "START", "to": "only" }, { "from": "only", "to": "END" }],
    })
}

//! Threads that Python LangGraph and the executor take turns on. The graphs are there twice: as definitions here, and
//! as Python programs in tests/fixtures/langgraph/graphs.py.

mod agents;
mod conformance;
mod failures;
mod flow;
mod questions;

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::{Value as Json, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout},
};

use super::{
    interop,
    world::{WITHIN, World},
};
use crate::executor::Executor;

const DRIVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/langgraph/driver.py");

/// Which classes Python's decoder builds.
#[derive(Clone, Copy, Debug)]
enum Mode {
    /// Any.
    Lenient,
    /// Only those on LangGraph's own list; anything else would reach the graph as a bare value.
    Strict,
}

const MODES: [Mode; 2] = [Mode::Lenient, Mode::Strict];

/// A Python program that runs one of its graphs; see driver.py.
struct Python {
    graph: &'static str,
    _child: Child,
    requests: ChildStdin,
    replies: Lines<BufReader<ChildStdout>>,
}

impl Python {
    async fn start(world: &World, graph: &'static str, mode: Mode) -> Result<Self> {
        let database_url = world.database_url.clone();
        let launch = move || {
            let mut command = tokio::process::Command::from(interop::start(DRIVER)?);
            match mode {
                Mode::Lenient => &mut command,
                Mode::Strict => command.env("LANGGRAPH_STRICT_MSGPACK", "true"),
            };
            command.arg(database_url).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
            anyhow::Ok(command)
        };
        let mut child = tokio::task::spawn_blocking(launch).await??.spawn().context("cannot run Python")?;
        let requests = child.stdin.take().context("a pipe")?;
        let replies = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        Ok(Self { graph, _child: child, requests, replies })
    }

    /// What it answers; its decoder must have understood everything.
    async fn ask(&mut self, op: &str, thread: &str, more: Json) -> Result<Json> {
        let request = with(json!({ "op": op, "graph": self.graph, "thread": thread }), &more);
        self.requests.write_all(format!("{request}\n").as_bytes()).await?;
        let reply = tokio::time::timeout(WITHIN, self.replies.next_line()).await.context("no reply")??;
        let reply: Json = serde_json::from_str(&reply.context("Python has ended")?)?;
        ensure!(reply["ok"] == true, "{request}: {}", reply["error"].as_str().unwrap_or_default());
        ensure!(reply["complaints"] == json!([]), "the decoder complained: {}", reply["complaints"]);
        Ok(reply)
    }

    /// Runs the graph until it stops.
    async fn run(&mut self, thread: &str, more: Json) -> Result<Json> {
        self.ask("run", thread, more).await
    }

    /// Its view of the newest state.
    async fn state(&mut self, thread: &str) -> Result<Json> {
        Ok(self.ask("state", thread, json!({})).await?["state"].take())
    }

    /// Its view of all checkpoints, newest first.
    async fn history(&mut self, thread: &str) -> Result<Vec<Json>> {
        let mut reply = self.ask("history", thread, json!({})).await?;
        serde_json::from_value(reply["history"].take()).context("a list")
    }
}

/// The executor's side of a thread.
struct Ours {
    world: World,
    definition: Json,
    _executor: Executor,
    jobs: u32,
}

impl Ours {
    async fn start(definition: Json) -> Result<Self> {
        Self::start_with(World::start().await?, definition, &[]).await
    }

    async fn start_with(world: World, definition: Json, settings: &[(&str, &str)]) -> Result<Self> {
        let executor = world.executor_with(settings).await?;
        Ok(Self { world, definition, _executor: executor, jobs: 0 })
    }

    /// Runs a job on the thread; the data of its result.
    async fn job(&mut self, thread: &str, more: Json) -> Result<Json> {
        self.jobs += 1;
        let (job_id, definition) = (format!("job-{}", self.jobs), &self.definition);
        let request = json!({ "job_id": job_id, "thread_id": thread, "agent_definition": definition });
        let request = with(request, &more);
        Ok(self.world.run(&request).await?["data"].take())
    }

    /// The same, to the end of the graph.
    async fn completed(&mut self, thread: &str, more: Json) -> Result<Json> {
        let data = self.job(thread, more).await?;
        ensure!(data["result"]["status"] == "completed", "{data}");
        Ok(data)
    }

    /// One superstep; the job ends at its limit unless that was the last one.
    async fn step(&mut self, thread: &str, more: Json) -> Result<()> {
        let request = with(json!({ "config": { "recursion_limit": 1 } }), &more);
        let data = self.job(thread, request).await?;
        let stopped = data["error"]["type"] == "RECURSION_LIMIT" || data["result"]["status"] == "completed";
        ensure!(stopped, "{data}");
        Ok(())
    }
}

/// `request` with more fields.
fn with(mut request: Json, more: &Json) -> Json {
    if let (Some(fields), Some(more)) = (request.as_object_mut(), more.as_object()) {
        fields.extend(more.clone());
    }
    request
}

/// What makes the executor go on where a thread stands, as `invoke(None)` does.
fn go_on() -> Json {
    json!({ "command": { "update": {} } })
}

/// A turn of a person.
fn user(text: &str) -> Json {
    json!({ "input": { "messages": [{ "role": "user", "content": text }] } })
}

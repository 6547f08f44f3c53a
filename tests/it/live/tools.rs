//! Tools in other processes: the example worker in Python over a real broker, beside HTTP, MCP and a script; and what
//! becomes of calls that nobody answers.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    sync::{Arc, Mutex, atomic::Ordering},
};

use anyhow::{Context, Result};
use futures::StreamExt as _;
use serde_json::{Value as Json, json};

use super::{
    effects::Bank,
    interop,
    world::{WITHIN, World, of_type, request, scripted},
};
use crate::{executor::Executor, packages::mcp_server, servers};

/// What the example worker needs, pinned.
const REQUIREMENTS: &[&str] = &["nats-py==2.16.0"];

const WORKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/nats_tool_worker.py");

/// The example worker, until it is dropped.
struct Worker {
    process: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Worker {
    /// Starts it, and waits until it listens.
    async fn start(world: &World) -> Result<Self> {
        let server = world.nats.url();
        let start = move || -> Result<Child> {
            let mut command = interop::start_with(REQUIREMENTS, WORKER)?;
            Ok(command.args(["--server", &server]).stdout(Stdio::piped()).spawn()?)
        };
        let mut process = tokio::task::spawn_blocking(start).await.context("starting Python panicked")??;
        let output = process.stdout.take().context("its output is piped")?;
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let worker = Self { process, lines: lines.clone() };
        // Ends with the process.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                lines.lock().expect("nobody panics with it").push(line);
            }
        });
        let ready = || async { worker.said().iter().any(|line| line == "ready") };
        servers::until("the worker listens", WITHIN, ready).await?;
        Ok(worker)
    }

    fn said(&self) -> Vec<String> {
        self.lines.lock().expect("nobody panics with it").clone()
    }

    /// The headers of the calls of a subject.
    fn headers(&self, subject: &str) -> Vec<Json> {
        let calls = self.said();
        let calls = calls.iter().filter_map(|line| serde_json::from_str::<Json>(line).ok());
        calls.filter(|call| call["subject"] == subject).map(|mut call| call["headers"].take()).collect()
    }
}

/// The tools of the example, with their worker's subjects.
fn example() -> Result<Json> {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/graph-definitions/nats-tool.json"));
    Ok(serde_json::from_str(text)?)
}

/// The answers of tools by the ids of their calls: status and text.
fn answers(events: &[Json]) -> std::collections::HashMap<String, (String, String)> {
    let text = |json: &Json| json.as_str().unwrap_or_default().to_owned();
    let answer = |event: &&Json| {
        let data = &event["data"];
        (text(&data["tool_call_id"]), (text(&data["status"]), text(&data["tool_output"])))
    };
    of_type(events, "on_tool_end").iter().map(answer).collect()
}

const SETTINGS: [(&str, &str); 4] = [
    ("NATS_TOOL_SUBJECTS", "tools.>"),
    ("HTTP_TOOL_ALLOWED_HOSTS", "127.0.0.1"),
    ("HTTP_TOOL_ALLOW_PRIVATE", "true"),
    ("PYTHON_TOOLS", "enabled"),
];

#[tokio::test]
async fn tools_of_every_kind_answer_in_one_job() -> Result<()> {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    let (world, bank) = (World::start().await?, Bank::start().await?);
    bank.stalls.store(false, Ordering::SeqCst);
    let worker = Worker::start(&world).await?;
    let everything = tokio::task::spawn_blocking(|| mcp_server("server-everything")).await?;
    let everything = json!([everything]).to_string();
    let mcp = [
        ("MCP_SERVERS", "every"),
        ("MCP_SERVER_EVERY_COMMAND", "node"),
        ("MCP_SERVER_EVERY_ARGS", &everything),
    ];
    let executor = world.executor_with(&[SETTINGS.as_slice(), &mcp].concat()).await?;

    let mut definition = example()?;
    let tools = definition["tool_definitions"].as_array_mut().context("tools")?;
    let script = "from langchain_core.tools import tool\n\n@tool\ndef vat(net: int) -> str:\n    \"\"\"Adds VAT.\"\"\"\n    return str(net * 119 // 100)\n";
    tools.push(
        json!({ "name": "pay", "description": "Pays.", "http": { "method": "POST", "url": bank.served.url } }),
    );
    tools.push(json!({ "name": "vat", "script": script }));
    let call = |id: &str, name: &str, args: Json| json!({ "id": id, "name": name, "args": args });
    let replies = json!([
        { "tool_calls": [
            call("look", "look_in_stock", json!({ "item": "chair" })),
            call("lamp", "look_in_stock", json!({ "item": "lamp" })),
            call("book", "book_from_stock", json!({ "item": "chair", "pieces": 4 })),
            call("none", "book_from_stock", json!({ "item": "chair", "pieces": 0 })),
            call("pay", "pay", json!({})),
            call("vat", "vat", json!({ "net": 200 })),
            call("echo", "every__echo", json!({ "message": "chairs" })),
        ] },
        { "text": "all is done" }
    ]);
    definition["nodes"][0]["tools"] =
        json!(["look_in_stock", "book_from_stock", "pay", "vat", "mcp:every/echo"]);
    definition["nodes"][0]["model"] = scripted(replies);
    let traceparent = format!("00-{TRACE}-b7ad6b7169203331-01");
    let body = request("furnish", &definition, "four chairs").to_string().into_bytes();
    world.publish_raw(&[("traceparent", &traceparent)], body).await?;
    let result = world.result_of("furnish").await?;
    assert_eq!(result["data"]["result"]["output"], "all is done", "{result}");

    let answers = answers(&world.events_to_the_end("furnish").await?);
    let told = |id: &str| answers.get(id).map(|(status, text)| (status.as_str(), text.as_str()));
    assert!(told("look").is_some_and(|(status, text)| status == "success" && text.contains("\"chair\"")));
    let lamp = "TOOL_FAILED: the service answered an error: 404 there is no lamp; there are chair, table";
    assert_eq!(told("lamp"), Some(("error", lamp)));
    assert_eq!(told("book"), Some(("success", "4 chair booked, 8 left")));
    assert!(told("none").is_some_and(|(_, text)| text.starts_with("TOOL_ARGUMENTS: ")), "{answers:?}");
    assert_eq!(told("pay"), Some(("success", "done")));
    assert_eq!(told("vat"), Some(("success", "238")));
    assert_eq!(told("echo"), Some(("success", "Echo: chairs")));

    // Its lines come through a pipe, later than its answers.
    let is_told = || async { !worker.headers("tools.stock.book").is_empty() };
    servers::until("the worker has told of its call", WITHIN, is_told).await?;
    let [booked] =
        worker.headers("tools.stock.book").try_into().expect("arguments are checked before a call");
    assert_eq!(
        (&booked["Executor-Tool"], &booked["Executor-Tool-Call-Id"]),
        (&json!("book_from_stock"), &json!("book"))
    );
    assert!(booked["Idempotency-Key"].as_str().is_some_and(|key| key.len() == 40), "{booked}");
    assert!(booked["traceparent"].as_str().is_some_and(|trace| trace.contains(TRACE)), "{booked}");
    assert_eq!(bank.keys("POST").len(), 1);
    assert!(executor.terminate().await?.success());
    Ok(())
}

/// An agent that makes one call of an irreversible tool on `subject`.
fn one_call(subject: &str, more: &Json) -> Json {
    let mut tool = json!({ "name": "order", "runtime": { "type": "nats", "subject": subject } });
    more.as_object().into_iter().flatten().for_each(|(name, value)| tool[name] = value.clone());
    let replies = json!([{ "tool_calls": [{ "id": "c1", "name": "order", "args": { "item": "chair" } }] }, { "text": "ordered" }]);
    json!({ "tool_definitions": [tool],
        "nodes": [{ "id": "clerk", "type": "agent", "tools": ["order"], "model": scripted(replies) }] })
}

/// Operators hear of the one call of `order` that failed, and nothing of what was asked.
async fn assert_told(executor: &Executor, code: &str) -> Result<()> {
    let (_, metrics) = executor.get("/metrics").await?;
    let counted = format!("agent_executor_tool_failures_total{{tool=\"order\",code=\"{code}\"}} 1");
    assert!(metrics.lines().any(|line| line == counted), "{counted} is not in {metrics}");
    assert!(executor.terminate().await?.success());
    let log = executor.log();
    let mut lines = log.lines().filter(|line| line.contains("a tool call failed"));
    let line: Json = serde_json::from_str(lines.next().context("a line")?)?;
    assert_eq!(
        (&line["level"], &line["tool"], &line["code"]),
        (&json!("warn"), &json!("order"), &json!(code))
    );
    assert!(lines.next().is_none() && !log.contains("chair"), "{log}");
    Ok(())
}

#[tokio::test]
async fn a_call_that_reached_nobody_is_made_again_when_somebody_listens() -> Result<()> {
    let world = World::start().await?;
    let _executor = world.executor_with(&SETTINGS).await?;
    let retry = json!({ "retry": { "max_attempts": 100, "initial_interval": 0.2, "backoff_factor": 1, "jitter": false } });
    world.publish(&request("orders", &one_call("tools.orders", &retry), "a chair")).await?;
    let retried = || async {
        let events = world.events("orders").await.unwrap_or_default();
        events.iter().any(|(_, event)| event["data"]["code"] == "TOOL_NO_RESPONDERS")
    };
    servers::until("a call has reached nobody", WITHIN, retried).await?;
    let client = async_nats::connect(world.nats.url()).await?;
    let mut calls = client.queue_subscribe("tools.orders", "orders".into()).await?;
    let call = tokio::time::timeout(WITHIN, calls.next()).await?.context("a call")?;
    assert_eq!(serde_json::from_slice::<Json>(&call.payload)?, json!({ "item": "chair" }));
    client.publish(call.reply.context("calls wait for an answer")?, "order 7".into()).await?;
    client.flush().await?;
    let result = world.result_of("orders").await?;
    assert_eq!(result["data"]["result"]["output"], "ordered", "{result}");
    let answers = answers(&world.events_to_the_end("orders").await?);
    assert_eq!(answers.get("c1"), Some(&("success".to_owned(), "order 7".to_owned())));
    Ok(())
}

#[tokio::test]
async fn a_call_that_is_not_answered_in_time_is_asked_about_and_not_repeated() -> Result<()> {
    let world = World::start().await?;
    let client = async_nats::connect(world.nats.url()).await?;
    let mut calls = client.subscribe("tools.orders").await?;
    client.flush().await?;
    let executor = world.executor_with(&SETTINGS).await?;
    let limits = json!({ "timeout_seconds": 1, "retry": { "max_attempts": 5, "initial_interval": 0 } });
    let asked = world.run(&request("silent", &one_call("tools.orders", &limits), "a chair")).await?;
    let value = &asked["data"]["interrupts"][0]["value"];
    assert_eq!((&value["kind"], &value["tool"]), (&json!("unknown_effect"), &json!("order")), "{asked}");
    let call = tokio::time::timeout(WITHIN, calls.next()).await?.context("the call")?;
    let key =
        call.headers.as_ref().and_then(|headers| headers.get("Idempotency-Key")).map(ToString::to_string);
    assert_eq!(value["idempotency_key"].as_str(), key.as_deref());
    client.flush().await?;
    assert!(futures::FutureExt::now_or_never(calls.next()).is_none(), "it was made once");
    assert_told(&executor, "TOOL_TIMEOUT").await
}

#[tokio::test]
async fn a_subject_that_is_not_allowed_is_never_asked() -> Result<()> {
    let world = World::start().await?;
    let client = async_nats::connect(world.nats.url()).await?;
    let mut calls = client.subscribe(">").await?;
    client.flush().await?;
    let executor = world.executor_with(&[("NATS_TOOL_SUBJECTS", ">")]).await?;
    let result = world.run(&request("own", &one_call("agent.execute.more", &json!({})), "x")).await?;
    assert_eq!(result["data"]["result"]["output"], "ordered", "{result}");
    let answers = answers(&world.events_to_the_end("own").await?);
    let text = "TOOL_SUBJECT_NOT_ALLOWED: the subject 'agent.execute.more' is not allowed: it is one of the executor's own";
    assert_eq!(answers.get("c1"), Some(&("error".to_owned(), text.to_owned())));
    client.flush().await?;
    while let Some(Some(message)) = futures::FutureExt::now_or_never(calls.next()) {
        assert_ne!(message.subject.as_str(), "agent.execute.more");
    }
    assert_told(&executor, "TOOL_SUBJECT_NOT_ALLOWED").await
}

//! Neighbours over HTTP: a model provider that stumbles, a sink for results, a collector of traces.

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use axum::{Router, body::Bytes, http::StatusCode, response::IntoResponse, routing::post};
use serde_json::{Value as Json, json};

use super::world::{WITHIN, World, of_type, request};
use crate::{
    doors::{Served, serve},
    servers,
};

/// The trace of whoever asks.
const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// A server that keeps the bodies it gets and gives the answers it is told, the last one again and again.
struct Neighbour {
    served: Served,
    bodies: Arc<Mutex<Vec<Bytes>>>,
}

impl Neighbour {
    async fn start(path: &str, answers: Vec<(StatusCode, &'static str, String)>) -> Result<Self> {
        let bodies: Arc<Mutex<Vec<Bytes>>> = Arc::default();
        let kept = bodies.clone();
        let answer = move |body: Bytes| {
            let kept = kept.clone();
            let answers = answers.clone();
            async move {
                let mut kept = kept.lock().expect("nobody panics with it");
                let (status, kind, text) = answers[kept.len().min(answers.len() - 1)].clone();
                kept.push(body);
                (status, [("content-type", kind)], text).into_response()
            }
        };
        Ok(Self { served: serve(Router::new().route(path, post(answer))).await?, bodies })
    }

    fn bodies(&self) -> Vec<Bytes> {
        self.bodies.lock().expect("nobody panics with it").clone()
    }
}

fn chunk(delta: Json, finish: Option<&str>) -> String {
    let chunk = json!({ "id": "c", "object": "chat.completion.chunk", "model": "gpt-test",
        "choices": [{ "index": 0, "delta": delta, "finish_reason": finish }] });
    format!("data: {chunk}\n\n")
}

/// A streamed answer that calls a tool, then one that is text.
fn provider_answers() -> Vec<(StatusCode, &'static str, String)> {
    let call = |arguments: &str| {
        json!({ "tool_calls": [{ "index": 0, "id": "call_a", "type": "function",
            "function": { "name": "write_file", "arguments": arguments } }] })
    };
    let tools = [
        chunk(json!({ "role": "assistant", "content": null }), None),
        chunk(call("{\"file_path\": \"/a.txt\", "), None),
        chunk(call("\"content\": \"x\"}"), None),
        chunk(json!({}), Some("tool_calls")),
    ];
    let usage =
        json!({ "choices": [], "usage": { "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10 } });
    let text = [
        chunk(json!({ "role": "assistant", "content": "It is " }), None),
        chunk(json!({ "content": "written." }), None),
        chunk(json!({}), Some("stop")),
        format!("data: {usage}\n\ndata: [DONE]\n\n"),
    ];
    let stream = "text/event-stream";
    vec![
        (
            StatusCode::TOO_MANY_REQUESTS,
            "application/json",
            json!({ "error": { "message": "slow down" } }).to_string(),
        ),
        (StatusCode::OK, stream, tools.concat()),
        (StatusCode::OK, stream, text.concat()),
    ]
}

#[tokio::test]
async fn a_provider_a_sink_and_a_collector_get_what_they_were_promised() -> Result<()> {
    let world = World::start().await?;
    let provider = Neighbour::start("/v1/chat/completions", provider_answers()).await?;
    let passing = (StatusCode::SERVICE_UNAVAILABLE, "text/plain", String::new());
    let sink =
        Neighbour::start("/", vec![passing, (StatusCode::ACCEPTED, "text/plain", String::new())]).await?;
    let collector =
        Neighbour::start("/v1/traces", vec![(StatusCode::OK, "application/x-protobuf", String::new())])
            .await?;
    let base_url = format!("{}/v1", provider.served.url);
    let executor = world
        .executor_with(&[
            ("OPENAI_BASE_URL", &base_url),
            ("OPENAI_API_KEY", "sk-test-secret"),
            ("K_SINK", &sink.served.url),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.served.url),
        ])
        .await?;

    let definition = json!({ "edges": [], "nodes": [{ "type": "orchestrator", "name": "main", "tools": [],
        "system_prompt": "Write.", "model": { "provider": "openai", "model_name": "gpt-test" } }] });
    let mut job = request("neighbours", &definition, "please");
    job["trace_id"] = json!("ignored-beside-a-traceparent");
    let traceparent = format!("00-{TRACE_ID}-00f067aa0ba902b7-01");
    world.publish_raw(&[("traceparent", &traceparent)], job.to_string().into_bytes()).await?;
    let result = world.result_of("neighbours").await?;
    assert_eq!(result["data"]["result"]["output"], "It is written.");
    let usage = &result["data"]["usage"];
    assert_eq!(usage["cost_usd"], 0.0);
    assert_eq!(usage["unpriced_models"], json!(["openai:gpt-test"]), "nobody knows its price");
    let of_model = &usage["by_model"]["openai:gpt-test"];
    assert_eq!((&of_model["cost_usd"], &of_model["output_tokens"]), (&Json::Null, &json!(15)));
    assert_eq!(of_model["estimated_calls"], 1, "the first answer comes without a count");
    assert_eq!(result["traceparent"], traceparent);

    let asked: Vec<Json> =
        provider.bodies().iter().map(|body| serde_json::from_slice(body)).collect::<Result<_, _>>()?;
    assert_eq!(asked.len(), 3, "one answer of 429 was tried again");
    assert_eq!(asked[0]["messages"][0], json!({ "role": "system", "content": "Write." }));
    assert_eq!(asked[2]["messages"][3]["tool_call_id"], "call_a");
    let events = world.events_to_the_end("neighbours").await?;
    assert_eq!(of_type(&events, "on_tool_end")[0]["data"]["status"], "success");

    let delivered = || async { sink.bodies().len() == 2 };
    servers::until("the sink has the result after its first refusal", WITHIN, delivered).await?;
    let posted: Json = serde_json::from_slice(sink.bodies().last().context("a body")?)?;
    assert_eq!(posted, result, "the sink gets the same event");

    assert!(executor.terminate().await?.success());
    let spans = collector.bodies().concat();
    for name in [
        "job",
        "superstep",
        "chat gpt-test",
        "execute_tool write_file",
        "checkpoint_commit",
        "graph_compile",
        "result_publish",
        "stream publish",
    ] {
        assert!(contains(&spans, name.as_bytes()), "no span {name:?} was exported");
    }
    let trace_id: Vec<u8> =
        (0..16).map(|i| u8::from_str_radix(&TRACE_ID[2 * i..2 * i + 2], 16)).collect::<Result<_, _>>()?;
    assert!(contains(&spans, &trace_id), "spans join the sender's trace");

    let log = executor.log();
    let lines: Vec<Json> =
        log.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("log lines are JSON")?;
    let ended = lines.iter().find(|line| line["message"] == "job ended").context("the end is logged")?;
    assert_eq!((&ended["job_id"], &ended["trace_id"]), (&json!("neighbours"), &json!(TRACE_ID)));
    for secret in ["sk-test-secret", "please", "It is written"] {
        assert!(!log.contains(secret), "{secret:?} is in the log");
    }
    Ok(())
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

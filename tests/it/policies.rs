//! What nodes say about failing, waiting and repeating: waits that end at once, calls that are not repeated, writes that
//! are used again.

use std::time::Duration;

use agent_executor::{
    ids::ThreadId,
    store::{Cancel, CancelKind, Target, Upkeep},
};
use serde_json::{Value as Json, json};
use tokio::time::Instant;

use crate::stage::{Ended, Stage};

/// Longer than anything a test waits for.
const LONG: u32 = 3_000;

fn push(stage: &Stage, job_id: &str, definition: &Json, config: &Json) {
    let job = json!({ "job_id": job_id, "thread_id": "t", "agent_definition": definition, "config": config,
        "input": { "messages": [{ "role": "user", "content": "go" }] } });
    stage.push(&job);
}

fn events(stage: &Stage) -> Vec<Json> {
    stage.sink.events(&ThreadId::parse("t").expect("valid"))
}

/// Data of the events that say `kind`.
fn told(stage: &Stage, kind: &str) -> Vec<Json> {
    let all = events(stage).into_iter().filter(|event| event["event_type"] == "on_custom");
    all.map(|event| event["data"].clone()).filter(|data| data["kind"] == kind).collect()
}

/// Messages of which readers have heard something.
fn messages(stage: &Stage, node: &str) -> usize {
    let of_node = events(stage).into_iter().filter(|event| event["node"] == node);
    let ids = of_node.filter_map(|event| event["data"]["message_id"].as_str().map(str::to_owned));
    ids.collect::<std::collections::HashSet<_>>().len()
}

fn scripted(line: &Json) -> Json {
    json!({ "provider": "scripted", "model": "test", "script": { "replies": [line] } })
}

/// A node that fails once and waits long, beside one that takes a moment.
fn waiting() -> Json {
    let fails = json!({ "text": "late", "fail": { "times": 1, "status": 503 } });
    let retry = json!({ "initial_interval": LONG, "max_interval": LONG, "jitter": false });
    json!({
        "nodes": [
            { "id": "shaky", "type": "model", "model": scripted(&fails), "retry": retry },
            { "id": "beside", "type": "model", "model": scripted(&json!({ "text": "done", "delay_ms": 300 })) }
        ],
        "edges": [{ "from": "START", "to": "shaky" }, { "from": "START", "to": "beside" },
            { "from": "shaky", "to": "END" }, { "from": "beside", "to": "END" }]
    })
}

#[tokio::test(start_paused = true)]
async fn a_process_that_leaves_does_not_wait_for_a_retry_and_keeps_what_ran_beside_it() {
    let stage = Stage::new();
    push(&stage, "job", &waiting(), &json!({ "timeout_seconds": 4 * LONG }));
    let started = Instant::now();
    stage.run_until(async || !told(&stage, "retry").is_empty()).await;
    // A pull ends within a second; runs are told to leave after a third of the grace, which is another one.
    assert!(started.elapsed() < Duration::from_millis(1_500), "{:?} is the whole grace", started.elapsed());
    assert_eq!(messages(&stage, "beside"), 1);

    stage.settle_all().await;
    let Ended { subject, data, .. } = stage.last_result();
    assert_eq!(subject, "agent.status.completed", "{data}");
    assert_eq!(messages(&stage, "beside"), 1, "what had finished is not run again");
    // The count begins anew: nothing of it is stored.
    let attempts: Vec<_> = told(&stage, "retry").iter().map(|data| data["attempt"].clone()).collect();
    assert_eq!(attempts, [1, 1]);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_job_does_not_wait_for_a_retry() {
    let stage = Stage::new();
    push(&stage, "late", &waiting(), &json!({ "timeout_seconds": 5 }));
    let started = Instant::now();
    stage.settle_all().await;
    assert_eq!(stage.last_result().data["error"]["type"], "JOB_TIMEOUT");
    assert!(started.elapsed() < Duration::from_secs(10));

    push(&stage, "unwanted", &waiting(), &json!({ "timeout_seconds": 4 * LONG }));
    let wish = Cancel { kind: CancelKind::Cancel, by: "somebody".into(), reason: None };
    let wished = std::cell::Cell::new(false);
    let started = Instant::now();
    let ended = async || {
        if told(&stage, "retry").len() == 2 && !wished.replace(true) {
            stage.store.wish("unwanted", Target::Job, &wish).await.expect("the twin answers");
        }
        stage.queue.results().len() == 2
    };
    stage.run_until(ended).await;
    assert_eq!(stage.last_result().data["error"]["type"], "JOB_CANCELLED");
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_a_broken_try_has_said_counts_for_the_budget() {
    let broken = json!({
        "pieces": ["Half of it, ", "and the rest."], "text": "Half of it, and the rest.",
        "fail": { "times": 9, "status": 503, "after_pieces": 1 },
    });
    let definition = json!({ "nodes": [{ "id": "main", "type": "model", "model": scripted(&broken) }] });
    let stage = Stage::new();
    // A try takes 3 tokens to read and 3 to say; each may take 4 at least.
    push(&stage, "job", &definition, &json!({ "budget": { "max_tokens": 15 } }));
    stage.settle_all().await;
    let Ended { data, .. } = stage.last_result();
    assert_eq!(data["error"]["type"], "BUDGET_EXHAUSTED", "{data}");
    let spent = &data["usage"]["by_model"]["scripted:test"];
    assert_eq!((&spent["input_tokens"], &spent["output_tokens"]), (&json!(6), &json!(6)), "{data}");
    assert_eq!(spent["estimated_calls"], 2, "{data}");
}

/// An agent with one call of a tool whose address ends in `end`.
fn calling(method: &str, end: &str, policy: &Json) -> Json {
    let http = json!({ "method": method, "url": format!("https://bank.example.com/{end}") });
    let call = json!([{ "id": "c1", "name": "book", "args": {} }]);
    let replies = json!([{ "text": "booking", "tool_calls": call }, { "text": "over" }]);
    let model = json!({ "provider": "scripted", "model": "test", "script": { "replies": replies } });
    let mut node = json!({ "id": "main", "type": "agent", "tools": ["book"], "model": model });
    for (field, value) in policy.as_object().expect("fields of a node") {
        node[field] = value.clone();
    }
    json!({ "tool_definitions": [{ "name": "book", "description": "books", "http": http }], "nodes": [node] })
}

#[tokio::test(start_paused = true)]
async fn a_call_that_may_be_made_twice_is_made_again_under_its_key_and_no_other_is() {
    let retry = json!({ "retry": { "retry_on": ["any"], "initial_interval": 1 } });
    let stage = Stage::new();
    push(&stage, "again", &calling("PUT", "lost-first", &retry), &json!({}));
    stage.settle_all().await;
    assert_eq!(stage.last_result().data["result"]["output"], "over");
    assert_eq!(stage.outside.requests().len(), 1, "the second call took effect");
    let retries = told(&stage, "retry");
    assert_eq!((retries.len(), &retries[0]["class"]), (1, &json!("tool_error")), "{retries:?}");

    let stage = Stage::new();
    push(&stage, "asks", &calling("POST", "lost", &retry), &json!({}));
    stage.settle_all().await;
    let Ended { subject, data, .. } = stage.last_result();
    assert_eq!(subject, "agent.status.interrupted", "{data}");
    assert_eq!(data["interrupts"][0]["value"]["kind"], "unknown_effect");
    assert_eq!((stage.outside.requests().len(), told(&stage, "retry")), (1, Vec::new()));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_takes_too_long_is_answered_to_the_model_or_asked_about() {
    let limit = json!({ "timeout_seconds": 5 });
    let stage = Stage::new();
    let started = Instant::now();
    push(&stage, "told", &calling("PUT", "slow", &limit), &json!({}));
    stage.settle_all().await;
    assert_eq!(stage.last_result().data["result"]["output"], "over");
    let answers = events(&stage).into_iter().filter(|event| event["event_type"] == "on_tool_end");
    let answers: Vec<_> = answers.map(|event| event["data"]["tool_output"].to_string()).collect();
    assert!(answers.len() == 1 && answers[0].contains("TOOL_TIMEOUT"), "{answers:?}");
    assert!(started.elapsed() < Duration::from_secs(10));

    let stage = Stage::new();
    push(&stage, "asks", &calling("POST", "slow", &limit), &json!({}));
    stage.settle_all().await;
    let Ended { subject, data, .. } = stage.last_result();
    assert_eq!(subject, "agent.status.interrupted", "{data}");
    assert_eq!(stage.outside.requests().len(), 1);
}

fn cached(system_prompt: &str, description: &str) -> Json {
    let replies = json!([{ "text": "one" }, { "text": "two" }, { "text": "three" }, { "text": "four" }]);
    json!({
        "nodes": [{ "id": "say", "type": "model", "prompt": "Say it.", "system_prompt": system_prompt,
            "description": description, "cache": { "ttl_seconds": 600 },
            "model": { "provider": "scripted", "model": "test", "script": { "replies": replies } } }]
    })
}

#[tokio::test(start_paused = true)]
async fn cached_writes_are_used_until_they_are_too_old_or_the_node_says_something_else() {
    let stage = Stage::new();
    let hits = async |job_id: &str, definition: &Json| {
        push(&stage, job_id, definition, &json!({}));
        stage.settle_all().await;
        assert_eq!(stage.last_result().subject, "agent.status.completed");
        told(&stage, "cache").len()
    };
    let brief = cached("Be brief.", "");
    assert_eq!(hits("first", &brief).await, 0);
    assert_eq!(hits("same", &brief).await, 1);
    assert_eq!(hits("described", &cached("Be brief.", "for people")).await, 2);
    assert_eq!(hits("other-prompt", &cached("Be long.", "")).await, 2);
    tokio::time::advance(Duration::from_secs(601)).await;
    assert_eq!(hits("old", &brief).await, 2);
    assert_eq!(hits("renewed", &brief).await, 3);
    assert_eq!(messages(&stage, "say"), 3);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_asks_for_again_is_removed() {
    let stage = Stage::new();
    push(&stage, "first", &cached("Be brief.", ""), &json!({}));
    stage.settle_all().await;
    let kept =
        async || agent_executor::store::NodeCache::expire_cache(&*stage.store, 10).await.expect("answered");
    assert_eq!(kept().await, 0);
    tokio::time::advance(Duration::from_secs(601)).await;
    assert_eq!(kept().await, 1);
}

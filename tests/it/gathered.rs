//! Supersteps that only compute: stored together, told after that, and whole in the history.

use agent_executor::{
    ids::{Namespace, ThreadId},
    store::Checkpoints,
};
use serde_json::{Value as Json, json};

use crate::stage::Stage;

/// More checkpoints than a job here makes.
const ALL: u32 = 100;

/// A chain of these nodes.
fn chain(mut nodes: Vec<Json>) -> Json {
    let name = |nth: usize| format!("n{nth}");
    let count = nodes.len();
    for (nth, node) in nodes.iter_mut().enumerate() {
        node["id"] = json!(name(nth));
    }
    let mut edges: Vec<Json> =
        (1..count).map(|nth| json!({ "from": name(nth - 1), "to": name(nth) })).collect();
    edges.push(json!({ "from": "START", "to": name(0) }));
    edges.push(json!({ "from": name(count - 1), "to": "END" }));
    let channels = json!({ "messages": { "reducer": "messages" }, "count": { "reducer": "add" } });
    json!({ "name": "chain", "recursion_limit": 100, "channels": channels, "nodes": nodes, "edges": edges, "output": ["count"] })
}

fn transforms(count: usize) -> Vec<Json> {
    vec![json!({ "type": "transform", "writes": { "count": "1" } }); count]
}

fn model() -> Json {
    let script = json!({ "replies": [{ "text": "said" }] });
    json!({ "type": "model", "model": { "provider": "scripted", "model": "test", "script": script } })
}

/// What a job left: writes to the store, the steps of its checkpoints, the steps its readers were told of.
struct Left {
    writes: u64,
    stored: Vec<i64>,
    told: Vec<i64>,
}

async fn run(nodes: Vec<Json>, durability: &str) -> Left {
    let stage = Stage::new();
    let job = json!({ "job_id": "j", "thread_id": "t", "agent_definition": chain(nodes), "input": {},
        "config": { "durability": durability } });
    stage.push(&job);
    stage.settle_all().await;
    assert_eq!(stage.last_result().subject, "agent.status.completed");
    let thread = ThreadId::parse("t").expect("valid");
    let history = stage.store.history(&thread, &Namespace::root(), ALL).await.expect("the twin answers");
    let stored = history.iter().rev().map(|saved| saved.metadata.step).collect();
    let events = stage.sink.events(&thread);
    let states = events.iter().filter(|event| event["event_type"] == "on_state_update");
    let told = states.filter_map(|event| event["data"]["step"].as_i64()).collect();
    Left { writes: stage.store.writes(), stored, told }
}

#[tokio::test(start_paused = true)]
async fn supersteps_that_only_compute_cost_no_commit_of_their_own_and_are_all_in_the_history() {
    for durability in ["sync", "async"] {
        let (one, five) = (run(transforms(1), durability).await, run(transforms(5), durability).await);
        assert_eq!(one.writes, five.writes, "{durability}");
        assert_eq!(five.stored, (-1..=5).collect::<Vec<_>>(), "{durability}");
        assert_eq!(five.told, (0..=5).collect::<Vec<_>>(), "{durability}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_model_is_asked_after_everything_before_it_is_stored_and_its_answer_is_stored_at_once() {
    let nodes = |more: usize| [transforms(more), vec![model()], transforms(more)].concat();
    let (without, with) = (run(transforms(1), "sync").await, run(nodes(2), "sync").await);
    assert_eq!(with.writes, without.writes + 2, "before the model, and its answer");
    assert_eq!(with.stored, (-1..=5).collect::<Vec<_>>());
    assert_eq!(with.told, (0..=5).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_long_chain_is_stored_in_parts() {
    let (one, long) = (run(transforms(1), "sync").await, run(transforms(40), "sync").await);
    assert_eq!(long.writes, one.writes + 2, "sixteen checkpoints each, the rest with the end");
    assert_eq!(long.stored, (-1..=40).collect::<Vec<_>>());
    assert_eq!(long.told, (0..=40).collect::<Vec<_>>());
}

//! Stored definitions: found by name, kept for every attempt of a job, and compiled only while they are used.

use agent_executor::{
    graph::{Limits, Stored, compile, compile_with},
    store::{Agents, NewAgent, PutAgent, memory::CrashPoint},
};
use serde_json::{Value as Json, json};

use crate::stage::Stage;

/// A graph that says `text`.
fn saying(text: &str) -> Json {
    json!({ "channels": { "said": {} }, "output": ["said"],
        "nodes": [{ "id": "say", "type": "transform", "writes": { "said": format!("'{text}'") } }] })
}

/// Stores a definition; its hash.
async fn put(stage: &Stage, name: &str, version: &str, definition: &Json) -> String {
    let bytes = definition.to_string();
    let hash = compile(bytes.as_bytes(), &Limits::default()).expect("no mistakes").hash.to_string();
    let (name, version) = (name.to_owned(), version.to_owned());
    let agent = NewAgent { name, version, hash: hash.clone(), definition: bytes.into() };
    assert_eq!(stage.store.put_agent(&agent).await.expect("the twin answers"), PutAgent::New);
    hash
}

fn publish(stage: &Stage, job_id: &str, agent: &str) {
    let job = json!({ "job_id": job_id, "agent": agent, "input": {} });
    stage.push(&job);
}

/// What the job gave back, or the code of its failure.
fn outcome(stage: &Stage, job_id: &str) -> Json {
    let results = stage.queue.results();
    let of_job = |result: &&agent_executor::store::StoredResult| result.job_id.as_str() == job_id;
    let result = results.iter().find(of_job).expect("the job has ended");
    let mut event: Json = serde_json::from_slice(&result.event).expect("results are JSON");
    match event.pointer_mut("/data/result/output/said") {
        Some(said) => said.take(),
        None => event["data"]["error"]["type"].take(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_names_a_definition_by_name_version_or_hash() {
    let stage = Stage::new();
    let first = put(&stage, "greeter", "1", &saying("hello")).await;
    put(&stage, "greeter", "2", &saying("good day")).await;
    let mut template = saying("x");
    template["variables"] = json!({ "task": {} });
    put(&stage, "template", "1", &template).await;
    let references = [
        ("newest", "greeter".to_owned(), "good day"),
        ("version", "greeter@1".to_owned(), "hello"),
        ("hash", format!("sha256:{first}"), "hello"),
        ("shouted-hash", format!("sha256:{}", first.to_uppercase()), "hello"),
        ("no-name", "stranger".to_owned(), "AGENT_NOT_FOUND"),
        ("no-version", "greeter@3".to_owned(), "AGENT_NOT_FOUND"),
        ("no-hash", format!("sha256:{}", "0".repeat(64)), "AGENT_NOT_FOUND"),
        ("not-stamped", "template".to_owned(), "VARIABLES_UNSET"),
    ];
    for (job_id, agent, _) in &references {
        publish(&stage, job_id, agent);
    }
    stage.settle_all().await;
    for (job_id, agent, expected) in &references {
        assert_eq!(outcome(&stage, job_id), *expected, "{agent}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_later_attempt_runs_what_the_first_one_ran_whatever_was_stored_since() {
    // Write 1 accepts the job, write 2 notes the definition, write 3 ends the run.
    for (write, point, expected) in [
        (2, CrashPoint::Before, "good day"),
        (2, CrashPoint::After, "hello"),
        (3, CrashPoint::Before, "hello"),
        (3, CrashPoint::After, "hello"),
    ] {
        let stage = Stage::new();
        put(&stage, "greeter", "1", &saying("hello")).await;
        publish(&stage, "greets", "greeter");
        stage.die_at_write(write, point).await;
        put(&stage, "greeter", "2", &saying("good day")).await;
        stage.settle_all().await;
        assert_eq!(outcome(&stage, "greets"), expected, "died {point:?} write {write}");
    }
}

/// A graph that lets a stored one speak.
fn asking(agent: &str) -> Json {
    json!({ "channels": { "said": {} }, "output": ["said"],
        "nodes": [{ "id": "ask", "type": "subgraph", "agent": agent, "output": { "said": "said" } }] })
}

#[tokio::test(start_paused = true)]
async fn a_graph_may_run_stored_ones_which_may_run_others() {
    let stage = Stage::new();
    let greeter = saying("hello").to_string();
    put(&stage, "greeter", "1", &saying("hello")).await;
    let stored = Stored::from([("greeter@1".to_owned(), greeter.into_bytes().into_boxed_slice())]);
    let middle = asking("greeter@1").to_string();
    let hash = compile_with(middle.as_bytes(), &Limits::default(), &stored).expect("it is stored").hash;
    let agent = NewAgent {
        name: "middle".into(),
        version: "1".into(),
        hash: hash.to_string(),
        definition: middle.into(),
    };
    stage.store.put_agent(&agent).await.expect("the twin answers");
    publish(&stage, "by-name", "middle");
    for (job_id, agent) in [("inline", "middle@1"), ("missing", "nobody@1")] {
        let job = json!({ "job_id": job_id, "agent_definition": asking(agent), "input": {} });
        stage.push(&job);
    }
    stage.settle_all().await;
    let outcomes = ["by-name", "inline", "missing"].map(|job_id| outcome(&stage, job_id));
    assert_eq!(outcomes, ["hello", "hello", "DEFINITION_INVALID"]);
}

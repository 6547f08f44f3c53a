//! What a new job does to those it finds on its thread.

use std::time::Duration;

use agent_executor::{
    ids::Namespace,
    store::{Checkpoints, Saved},
};
use serde_json::{Value as Json, json};

use super::{request, results, thread};
use crate::stage::Stage;

async fn history(stage: &Stage) -> Vec<Saved> {
    stage.store.history(&thread("t"), &Namespace::root(), 100).await.expect("the twin answers")
}

/// A job that makes one tool call, then waits for its model.
fn two_steps(job_id: &str) -> Json {
    let call = json!([{ "id": "c", "name": "ls", "args": { "path": "/" } }]);
    let replies =
        json!([{}, { "text": "first", "tool_calls": call }, { "text": "late", "delay_ms": 600_000 }]);
    // The script goes by what stands in the conversation already: one answer of the job before.
    request(job_id, replies)
}

fn quick(job_id: &str, strategy: &str) -> Json {
    let mut request = request(job_id, json!(vec![json!({ "text": "mine" }); 4]));
    request["multitask_strategy"] = strategy.into();
    request
}

/// Runs a first job to its end, a second one into its middle, and a third one with this strategy.
async fn three_jobs(strategy: &str) -> (Stage, Vec<Saved>) {
    let stage = Stage::new();
    stage.push(&quick("before", "enqueue"));
    stage.settle_all().await;
    let before = history(&stage).await;
    stage.push(&two_steps("running"));
    let texting = async {
        while history(&stage).await.len() < before.len() + 4 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stage.push(&quick("newer", strategy));
        while !results(&stage).iter().any(|result| result["job_id"] == "newer") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let texted = tokio::time::timeout(Duration::from_secs(60), async {
        tokio::join!(texting, async {
            if strategy == "reject" {
                stage.run_until(async || results(&stage).len() == 2).await;
            } else {
                stage.settle_all().await;
            }
        });
    });
    texted.await.expect("the newer job does not wait for the running one");
    (stage, before)
}

fn ends(stage: &Stage) -> Vec<(String, String, String)> {
    let text = |json: &Json| json.as_str().unwrap_or_default().to_owned();
    let end =
        |result: &Json| (text(&result["job_id"]), text(&result["status"]), text(&result["error"]["type"]));
    results(stage).iter().map(end).collect()
}

fn named(job_id: &str, status: &str, code: &str) -> (String, String, String) {
    (job_id.into(), status.into(), code.into())
}

#[tokio::test(start_paused = true)]
async fn reject_turns_the_newer_job_away_and_leaves_the_running_one_alone() {
    let (stage, before) = three_jobs("reject").await;
    assert_eq!(ends(&stage)[1..], [named("newer", "failed", "THREAD_BUSY")]);
    assert!(results(&stage)[1]["error"]["message"].as_str().is_some_and(|said| said.contains("running")));
    assert_eq!(history(&stage).await.len(), before.len() + 4, "the running one keeps what it did");
}

#[tokio::test(start_paused = true)]
async fn interrupt_stops_the_running_job_and_goes_on_from_what_it_did() {
    let (stage, before) = three_jobs("interrupt").await;
    let expected = [named("running", "cancelled", "JOB_INTERRUPTED"), named("newer", "completed", "")];
    assert_eq!(ends(&stage)[1..], expected);
    let history = history(&stage).await;
    assert!(history.len() > before.len() + 4);
    let messages = history[0].checkpoint.values["messages"].messages().count();
    // go, mine; go, first, the tool's answer; go, mine.
    assert_eq!(messages, 7);
}

#[tokio::test(start_paused = true)]
async fn rollback_stops_the_running_job_and_undoes_what_it_did() {
    let (stage, before) = three_jobs("rollback").await;
    let expected = [named("running", "cancelled", "JOB_ROLLED_BACK"), named("newer", "completed", "")];
    assert_eq!(ends(&stage)[1..], expected);
    let history = history(&stage).await;
    let of_job = |saved: &Saved, job_id: &str| saved.metadata.extra["job_id"] == job_id;
    assert!(!history.iter().any(|saved| of_job(saved, "running")));
    let newer: Vec<_> = history.iter().filter(|saved| of_job(saved, "newer")).collect();
    let oldest = newer.last().expect("the newer job has checkpoints");
    assert_eq!(
        oldest.parent.as_ref(),
        Some(&before[0].checkpoint.id),
        "it goes on from where the thread stood"
    );
    assert_eq!(history[0].checkpoint.values["messages"].messages().count(), 4);
}

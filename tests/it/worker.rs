//! What a worker does when its neighbours or its own process fail at the wrong moment, on in-memory twins.

mod cancel;
mod double_text;
mod repair;

use std::time::Duration;

use agent_executor::{
    ids::{JobId, Namespace, ThreadId},
    job::{Config, Decoded, decode},
    queue::Queue,
    store::{Checkpoints, Jobs, Offer, StoredResult, Upkeep, memory::CrashPoint},
};
use serde_json::{Value as Json, json};

use crate::stage::Stage;

pub(crate) fn thread(id: &str) -> ThreadId {
    ThreadId::parse(id).expect("valid")
}

pub(crate) fn request(job_id: &str, replies: Json) -> Json {
    json!({
        "job_id": job_id, "thread_id": "t",
        "input": { "messages": [{ "role": "user", "content": "go" }] },
        "agent_definition": { "edges": [], "nodes": [{ "type": "orchestrator", "name": "main", "tools": [],
            "model": { "provider": "scripted", "model": "test", "script": { "replies": replies } } }] }
    })
}

/// The data of each result with its `status`, in the order of their publication.
pub(crate) fn results(stage: &Stage) -> Vec<Json> {
    let data = |result: &StoredResult| {
        let event: Json = serde_json::from_slice(&result.event).expect("results are JSON");
        let mut data = event["data"].clone();
        data["status"] = result.subject.rsplit('.').next().unwrap_or_default().into();
        data
    };
    stage.queue.results().iter().map(data).collect()
}

#[tokio::test(start_paused = true)]
async fn a_handed_over_thread_stays_owned_while_the_result_before_waits_for_the_broker() {
    let stage = Stage::new();
    let replies = json!([{ "text": "one", "delay_ms": 1000 }, { "text": "two", "delay_ms": 1000 }]);
    for job_id in ["first", "second"] {
        stage.push(&request(job_id, replies.clone()));
    }
    let outage = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        stage.queue.stop();
        // Longer than the lease: without renewal somebody would claim the thread anew.
        tokio::time::sleep(Duration::from_secs(20)).await;
        stage.queue.start();
    };
    tokio::join!(stage.settle_all(), outage);
    let attempts: Vec<_> =
        results(&stage).iter().map(|data| (data["job_id"].clone(), data["attempts"].clone())).collect();
    assert_eq!(attempts, [(json!("first"), json!(1)), (json!("second"), json!(1))]);
    let starts =
        stage.sink.events(&thread("t")).iter().filter(|e| e["event_type"] == "on_attempt_start").count();
    assert_eq!(starts, 2);
}

#[tokio::test(start_paused = true)]
async fn a_handed_over_job_does_not_wait_until_the_delivery_before_is_settled() {
    let stage = Stage::new();
    stage.queue.lose_settlements();
    for job_id in ["first", "second"] {
        let replies = json!([{ "text": "x", "delay_ms": 100 }]);
        stage.push(&request(job_id, replies));
    }
    // Five tries to settle the first, half a second apart, take longer.
    let soon = tokio::time::Instant::now() + Duration::from_secs(2);
    stage.run_until(async || results(&stage).len() == 2 || tokio::time::Instant::now() > soon).await;
    assert_eq!(results(&stage).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_kills_its_process_again_and_again_is_given_up_with_an_end() {
    let stage = Stage::new();
    stage.push(&request("killer", json!([{ "text": "never" }])));
    for death in 0..5 {
        // The first commit: no progress is ever made. A suspect is offered twice, the second time with the lane.
        let first_commit = if death < 2 { 2 } else { 3 };
        stage.die_at_write(first_commit, CrashPoint::Before).await;
    }
    stage.settle_all().await;
    let results = results(&stage);
    assert_eq!(results.len(), 1);
    assert_eq!(results[0]["error"]["type"], "POISON");
    let events = stage.sink.events(&thread("t"));
    let last: Vec<_> = events.iter().rev().take(3).map(|event| event["event_type"].clone()).collect();
    assert_eq!(last, ["end", "error", "on_attempt_start"]);
    let letters = stage.queue.letters();
    assert_eq!((letters.len(), letters[0].reason), (1, "poison"));
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_cut_off_by_its_time_limit_keeps_what_it_reached() {
    for durability in ["sync", "async", "exit"] {
        let stage = Stage::new();
        let call = json!([{ "id": "c", "name": "ls", "args": { "path": "/" } }]);
        let replies =
            json!([{ "text": "quick", "tool_calls": call }, { "text": "slow", "delay_ms": 60_000 }]);
        let mut job = request("late", replies);
        job["config"] = json!({ "timeout_seconds": 5, "durability": durability });
        stage.push(&job);
        stage.settle_all().await;
        let data = &results(&stage)[0];
        assert_eq!(
            (&data["error"]["type"], &data["steps"]),
            (&json!("JOB_TIMEOUT"), &json!(2)),
            "{durability}"
        );
        let newest =
            stage.store.load(&thread("t"), &Namespace::root(), None).await.expect("the twin answers");
        let newest = newest.expect("a checkpoint is stored");
        assert_eq!(data["checkpoint_id"], json!(newest.checkpoint.id), "{durability}");
        assert_eq!(newest.checkpoint.values["messages"].messages().count(), 3, "{durability}");
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_of_earlier_attempts_count() {
    let stage = Stage::new();
    let call = json!([{ "id": "c", "name": "ls", "args": { "path": "/" } }]);
    let usage = json!({ "input_tokens": 10, "output_tokens": 10, "total_tokens": 20 });
    let replies = json!([
        { "text": "first", "tool_calls": call, "usage": usage }, { "text": "second", "usage": usage }
    ]);
    stage.push(&request("spender", replies));
    // Accept, start, model call, tool call: the process dies at the commit of the second model call.
    stage.die_at_write(5, CrashPoint::Before).await;
    stage.settle_all().await;
    let data = &results(&stage)[0];
    assert_eq!((&data["attempts"], &data["usage"]["total_tokens"]), (&json!(2), &json!(40)));
}

/// Real time: the fault this guards against never lets a paused clock advance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_while_an_older_job_of_the_thread_runs_under_a_younger_ones_message() {
    let stage = Stage::new();
    let slow = request("older", json!([{ "text": "late", "delay_ms": 600_000 }]));
    let Decoded::Job(older) = decode(&[], slow.to_string().as_bytes(), &Config::default()) else {
        panic!("the request is readable");
    };
    let offer = Offer::of(&older, 0, Duration::from_secs(1800));
    // Its owner is gone, and so is its message.
    stage.store.process("gone").accept(&offer).await.expect("the twin answers");
    stage.store.expire_leases();
    stage.push(&request("younger", json!([{ "text": "next" }])));

    let has_started = || stage.sink.events(&thread("t")).iter().any(|event| event["job_id"] == "older");
    let drained = tokio::time::timeout(Duration::from_secs(20), stage.drain_when(has_started)).await;
    assert!(drained.is_ok(), "the drain does not end");
    assert!(stage.queue.results().is_empty(), "both jobs are left to others");
    assert_eq!(stage.queue.unsettled(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_worker_removes_what_is_older_than_it_is_kept() {
    let stage = Stage::new();
    stage.push(&request("old", json!([{ "text": "x" }])));
    stage.queue.push(Vec::new(), "not json".into());
    stage.settle_all().await;
    let old = [JobId::parse("old").expect("valid")];
    assert_eq!(stage.store.known(&old).await.expect("the twin answers").len(), 1);
    assert_eq!(stage.store.dead_letters().len(), 1);
    // Nobody is there to do it in the meantime.
    tokio::time::sleep(Duration::from_secs(31 * 24 * 3600)).await;
    stage.drain_when(|| stage.store.dead_letters().is_empty()).await;
    assert!(stage.store.known(&old).await.expect("the twin answers").is_empty());
    let kept = stage.store.load(&thread("t"), &Namespace::root(), None).await.expect("the twin answers");
    assert!(kept.is_some(), "the conversation stays");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_given_up_without_its_message_leaves_a_letter_that_can_be_sent_again() {
    for stream in [Stream::WithoutIt, Stream::MadeAnew] {
        leaves_a_letter(stream).await;
    }
}

/// What has become of the message's stream.
#[derive(PartialEq)]
enum Stream {
    WithoutIt,
    /// Another job's message has its place.
    MadeAnew,
}

async fn leaves_a_letter(stream: Stream) {
    let stage = Stage::new();
    let message = stage.push(&request("killer", json!([{ "text": "x" }])));
    for death in 0..5 {
        let first_commit = if death < 2 { 2 } else { 3 };
        stage.die_at_write(first_commit, CrashPoint::Before).await;
    }
    stage.queue.discard(message).await.expect("the twin answers");
    if stream == Stream::MadeAnew {
        let other = request("other", json!([{ "text": "x" }]));
        stage.queue.replace(message, other.to_string().into());
    }
    let is_given_up = || stage.queue.results().iter().any(|result| result.job_id.as_str() == "killer");
    stage.drain_when(is_given_up).await;
    let results = results(&stage);
    let killer = results.iter().find(|result| result["job_id"] == "killer").expect("it has ended");
    assert_eq!(killer["error"]["type"], "POISON");
    let (stored, sent) = (stage.store.dead_letters(), stage.queue.letters());
    assert_eq!((stored.len(), sent.len()), (1, 1));
    let letter = &stored[0];
    assert_eq!((letter.reason, letter.stream.as_str()), ("poison", "job:killer"));
    let Decoded::Job(job) = decode(&letter.headers, &letter.payload, &Config::default()) else {
        panic!("the letter holds the request");
    };
    assert_eq!((job.job_id.as_str(), job.thread_id.as_str()), ("killer", "t"));
    assert!(job.input.is_some());
}

//! Requests to cancel, whatever state their job is in.

use std::{sync::Arc, time::Duration};

use agent_executor::{
    ids::{Epoch, JobId},
    job::Job,
    queue::Queue,
    run::{self, Attempt, Outcome, Reason, Stop},
    store::{Cancel, CancelKind, Claim, Target, Upkeep, memory::CrashPoint},
};
use bytes::Bytes;
use serde_json::{Value as Json, json};
use tokio::time::Instant;

use super::{request, results, thread};
use crate::stage::Stage;

const BODY: &str = r#"{"action":"cancel","reason":"no need","by":"ann"}"#;

/// The answer to a request; asked as soon as somebody listens.
async fn ask(stage: &Stage, id: &str, body: &str) -> Json {
    loop {
        if let Some(answer) = stage.queue.ask(&format!("agent.control.{id}"), body.as_bytes()) {
            return answer.await.expect("an answer comes");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the job is known, and started when `started`.
async fn known(stage: &Stage, job_id: &str, started: bool) {
    let id = JobId::parse(job_id).expect("valid");
    loop {
        let known = stage.store.known(std::slice::from_ref(&id)).await.expect("the twin answers");
        let has_started = || stage.sink.events(&thread("t")).iter().any(|event| event["job_id"] == job_id);
        if !known.is_empty() && (!started || has_started()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn slow(job_id: &str, seconds: u64) -> Json {
    request(job_id, json!([{ "text": "late", "delay_ms": seconds * 1000 }]))
}

/// Each job with its state.
fn states(answer: &Json) -> Vec<String> {
    let jobs = answer["jobs"].as_array().expect("a list").iter();
    let text = |json: &Json| json.as_str().unwrap_or_default().to_owned();
    jobs.map(|job| format!("{} {}", text(&job["job_id"]), text(&job["state"]))).collect()
}

fn assert_cancelled(result: &Json, job_id: &str) {
    assert_eq!((&result["job_id"], &result["status"]), (&json!(job_id), &json!("cancelled")), "{result}");
    assert_eq!(result["error"]["type"], "JOB_CANCELLED");
    assert_eq!(result["error"]["message"], "cancelled by ann: no need");
}

#[tokio::test(start_paused = true)]
async fn a_running_job_ends_at_once_and_says_who_and_why() {
    let stage = Stage::new();
    stage.push(&slow("j", 600));
    let cancelling = async {
        known(&stage, "j", true).await;
        let asked = Instant::now();
        let answer = ask(&stage, "j", BODY).await;
        assert_eq!(answer, json!({ "jobs": [{ "job_id": "j", "thread_id": "t", "state": "cancelling" }] }));
        asked
    };
    let (asked, ()) = tokio::join!(cancelling, stage.settle_all());
    assert!(asked.elapsed() < Duration::from_secs(1), "the model call is dropped");
    assert_cancelled(&results(&stage)[0], "j");
    let events = stage.sink.events(&thread("t"));
    let last: Vec<_> = events.iter().rev().take(2).collect();
    assert_eq!((&last[0]["event_type"], &last[0]["data"]["status"]), (&json!("end"), &json!("cancelled")));
    assert_eq!(
        (&last[1]["event_type"], &last[1]["data"]["error"]["type"]),
        (&json!("error"), &json!("JOB_CANCELLED"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_job_behind_a_busy_thread_ends_before_its_turn_and_the_others_go_on() {
    let stage = Stage::new();
    stage.push(&slow("first", 20));
    let cancelling = async {
        known(&stage, "first", true).await;
        stage.push(&slow("second", 20));
        stage.push(&slow("third", 1));
        known(&stage, "third", false).await;
        let answer = ask(&stage, "second", BODY).await;
        assert_eq!(states(&answer), ["second cancelled"]);
        assert_cancelled(&results(&stage)[0], "second");
    };
    tokio::join!(cancelling, stage.settle_all());
    let ended: Vec<_> = results(&stage).iter().map(|result| result["job_id"].clone()).collect();
    assert_eq!(ended, ["second", "first", "third"]);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_has_not_come_yet_is_cancelled_when_it_comes() {
    let stage = Stage::new();
    stage.push(&slow("other", 5));
    let cancelling = async {
        let answer = ask(&stage, "j", BODY).await;
        assert!(states(&answer).is_empty() && answer["message"].is_string(), "{answer}");
        stage.push(&slow("j", 600));
    };
    tokio::join!(cancelling, stage.settle_all());
    let results = results(&stage);
    assert_cancelled(results.iter().find(|result| result["job_id"] == "j").expect("it has ended"), "j");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_has_ended_stays_as_it_is() {
    let stage = Stage::new();
    stage.push(&slow("j", 0));
    stage.settle_all().await;
    stage.push(&slow("other", 5));
    let cancelling = async {
        for _ in 0..2 {
            assert_eq!(states(&ask(&stage, "j", BODY).await), ["j succeeded"]);
        }
    };
    tokio::join!(cancelling, stage.settle_all());
    assert_eq!(results(&stage).len(), 2);
    assert_eq!(results(&stage)[0]["status"], "completed");
}

#[tokio::test(start_paused = true)]
async fn a_whole_thread_is_cancelled_and_the_first_who_asks_is_named() {
    let stage = Stage::new();
    stage.push(&slow("a", 600));
    let cancelling = async {
        known(&stage, "a", true).await;
        stage.push(&slow("b", 600));
        known(&stage, "b", false).await;
        let body = r#"{"kind":"thread","by":"ann","reason":"no need"}"#;
        let answer = ask(&stage, "t", body).await;
        assert_eq!(states(&answer), ["a cancelling", "b cancelled"]);
        ask(&stage, "a", r#"{"by":"bob"}"#).await;
        let idle = ask(&stage, "nobody", r#"{"kind":"thread"}"#).await;
        assert!(states(&idle).is_empty(), "{idle}");
    };
    tokio::join!(cancelling, stage.settle_all());
    let results = results(&stage);
    assert_eq!(results.len(), 2);
    for result in &results {
        assert_cancelled(result, result["job_id"].as_str().expect("an id"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_owner_is_dead_ends_with_the_next_one() {
    let stage = Stage::new();
    stage.push(&slow("j", 600));
    stage.die_at_write(2, CrashPoint::After).await;
    let (answer, ()) = tokio::join!(ask(&stage, "j", BODY), stage.settle_all());
    assert_eq!(states(&answer), ["j cancelling"]);
    assert_cancelled(&results(&stage)[0], "j");
}

#[tokio::test(start_paused = true)]
async fn a_database_that_is_away_for_a_moment_only_delays_the_wish() {
    let stage = Stage::new();
    stage.push(&slow("j", 600));
    let cancelling = async {
        known(&stage, "j", true).await;
        stage.store.fail_write(stage.store.writes() + 1, CrashPoint::Before);
        assert_eq!(states(&ask(&stage, "j", BODY).await), ["j cancelling"]);
    };
    tokio::join!(cancelling, stage.settle_all());
    assert_cancelled(&results(&stage)[0], "j");
}

#[tokio::test(start_paused = true)]
async fn a_notice_of_another_process_reaches_the_owner_before_its_next_renewal() {
    let stage = Stage::new();
    stage.push(&slow("j", 600));
    let cancelling = async {
        known(&stage, "j", true).await;
        let told = Instant::now();
        // As if the other process had taken the request.
        let wish = Cancel { kind: CancelKind::Cancel, by: "ann".into(), reason: Some("no need".into()) };
        stage.store.wish("j", Target::Job, &wish).await.expect("noted");
        stage.queue.notice(&[thread("t")]).await;
        while results(&stage).is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(told.elapsed() < Duration::from_millis(500), "{:?}", told.elapsed());
    };
    tokio::join!(cancelling, stage.settle_all());
    assert_cancelled(&results(&stage)[0], "j");
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_cancelled_before_it_has_begun_tells_its_start_all_the_same() {
    let stage = Stage::new();
    let claim = Claim {
        thread_id: thread("t"),
        epoch: Epoch(7),
        job_id: JobId::parse("j").expect("valid"),
        attempt: 2,
        head: None,
        request: Bytes::new(),
        time_left: Duration::from_secs(60),
        cancel: None,
        suspect: false,
    };
    let job = Arc::new(Job::nameless(claim.job_id.clone(), claim.thread_id.clone()));
    let stop = Stop::default();
    let cancel = Cancel { kind: CancelKind::Cancel, by: "ann".into(), reason: None };
    stop.because(Reason::Cancel(cancel));
    let attempt = Attempt::new(stage.ports(stage.store.clone()), claim, job, stop);
    let (report, _) = run::run(attempt).await;
    assert!(matches!(report.expect("nobody fenced it").outcome, Outcome::Cancelled(_)));
    let events = stage.sink.events(&thread("t"));
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["event_type"], "on_attempt_start");
    assert_eq!(events[0]["data"]["supersedes"]["epochs_below"], 7);
}

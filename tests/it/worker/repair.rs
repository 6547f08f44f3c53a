//! What is left behind by processes and brokers that died, and who clears it up.

use std::time::Duration;

use agent_executor::{
    ids::JobId,
    job::{Config, Decoded, decode},
    queue::{Queue, Receipt, Settlement, memory::Memory},
    store::{Jobs, Offer, Record, Upkeep, Verdict, memory::CrashPoint},
};
use serde_json::{Value as Json, json};

use super::{request, results, thread};
use crate::{stage::Stage, stores::record};

fn quick(job_id: &str) -> Json {
    request(job_id, json!([{ "text": "done" }]))
}

/// Delivers the message, and never again; nobody has it.
async fn forget(stage: &Stage, payload: String) {
    stage.queue.push(Vec::new(), payload.into());
    assert_eq!(stage.queue.next(1).await.expect("the twin answers").len(), 1);
    stage.queue.strand();
}

/// Lets a process that is gone have claimed the job.
async fn claimed_by_the_dead(stage: &Stage, request: &Json) {
    let Decoded::Job(job) = decode(&[], request.to_string().as_bytes(), &Config::default()) else {
        panic!("the request is readable");
    };
    let offer = Offer::of(&job, 1, Duration::from_secs(1800));
    stage.store.process("gone").accept(&offer).await.expect("the twin answers");
}

/// Makes a job known whose deadline has passed.
async fn recorded_late(stage: &Stage, job_id: &str) {
    let request = quick(job_id).to_string().into();
    let late = Record { request, timeout: Duration::ZERO, ..record(job_id, job_id, Some(2)) };
    assert!(stage.store.record(&late).await.expect("the twin answers"));
}

fn ends(stage: &Stage) -> usize {
    stage.sink.events(&thread("t")).iter().filter(|event| event["event_type"] == "end").count()
}

fn is_quiet(stage: &Stage, results: usize) -> bool {
    stage.queue.unsettled() == 0 && stage.queue.results().len() == results
}

#[tokio::test(start_paused = true)]
async fn a_result_between_its_end_and_its_publication_is_published_and_told_once_without_its_message() {
    let stage = Stage::new();
    stage.push(&quick("j"));
    // Accept, start, end.
    stage.die_at_write(3, CrashPoint::After).await;
    stage.queue.discard(1).await.expect("the twin answers");
    assert_eq!((results(&stage).len(), ends(&stage)), (0, 0));
    stage.run_until(async || results(&stage).len() == 1).await;
    assert_eq!((results(&stage)[0]["status"].clone(), ends(&stage)), (json!("completed"), 1));
    // Another look finds nothing to do.
    let later = tokio::time::Instant::now() + Duration::from_secs(60);
    stage.run_until(async || tokio::time::Instant::now() > later).await;
    assert_eq!((results(&stage).len(), ends(&stage)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_owner_and_message_are_gone_is_taken_up() {
    let stage = Stage::new();
    claimed_by_the_dead(&stage, &quick("j")).await;
    let began = tokio::time::Instant::now();
    stage.run_until(async || results(&stage).len() == 1).await;
    // The lease of five seconds and two looks a second.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert_eq!((&results(&stage)[0]["attempts"], ends(&stage)), (&json!(2), 1));
}

#[tokio::test(start_paused = true)]
async fn a_thread_that_cannot_be_had_does_not_keep_the_sweep_from_the_others() {
    let stage = Stage::new();
    for job_id in ["a", "b"] {
        let mut job = quick(job_id);
        job["thread_id"] = json!(job_id);
        claimed_by_the_dead(&stage, &job).await;
    }
    stage.store.expire_leases();
    stage.store.fail_write(1, CrashPoint::Before);
    // After the first look, before the second.
    let between = tokio::time::Instant::now() + Duration::from_millis(700);
    stage.run_until(async || tokio::time::Instant::now() > between).await;
    assert_eq!(results(&stage).iter().map(|result| &result["job_id"]).collect::<Vec<_>>(), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_could_not_be_given_back_is_given_back_before_it_lapses() {
    let stage = Stage::new();
    stage.push(&quick("j"));
    // After accept: the first commit, and the release that follows.
    stage.store.fail_writes(2, 2);
    let lease_ends = tokio::time::Instant::now() + Duration::from_secs(5);
    stage.run_until(async || !results(&stage).is_empty() || tokio::time::Instant::now() > lease_ends).await;
    assert_eq!(results(&stage).len(), 1);
    assert_eq!(results(&stage)[0]["attempts"], 2);
}

#[tokio::test(start_paused = true)]
async fn results_that_the_broker_refuses_hide_no_newer_one() {
    let stage = Stage::new();
    stage.queue.stop();
    // As many as one look of the relay takes, and one look of the sweep ends.
    for number in 0..64 {
        recorded_late(&stage, &format!("bad-{number:02}")).await;
    }
    recorded_late(&stage, "newer").await;
    stage.queue.refuse_results("bad");
    let newer = JobId::parse("newer").expect("valid");
    let is_published = async || {
        if stage.store.result(&newer).await.is_ok_and(|result| result.is_some()) {
            stage.queue.start();
        }
        results(&stage).iter().any(|result| result["job_id"] == "newer")
    };
    stage.run_until(is_published).await;
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_taken_up_while_the_process_ends_is_given_back_before_it_has_ended() {
    let stage = Stage::new();
    claimed_by_the_dead(&stage, &quick("j")).await;
    stage.store.expire_leases();
    stage.store.adopt_late(Duration::from_secs(2));
    stage.drain_when(|| stage.store.writes() > 0).await;
    let next = stage.store.process("next").adopt(&thread("t"), false).await.expect("the twin answers");
    assert!(matches!(next, Some(Verdict::Run(_))), "{next:?}");
}

#[tokio::test(start_paused = true)]
async fn jobs_of_the_dead_are_taken_up_while_the_broker_is_away_and_others_are_to_be_ended() {
    let stage = Stage::new();
    claimed_by_the_dead(&stage, &quick("j")).await;
    recorded_late(&stage, "late").await;
    stage.queue.stop();
    let j = JobId::parse("j").expect("valid");
    let is_told = async || stage.store.result(&j).await.is_ok_and(|result| result.is_some());
    let both = async || {
        if is_told().await {
            stage.queue.start();
        }
        results(&stage).len() == 2
    };
    stage.run_until(both).await;
}

#[tokio::test(start_paused = true)]
async fn a_queued_job_that_is_too_late_ends_without_running() {
    let stage = Stage::new();
    stage
        .queue
        .push(Vec::new(), request("first", json!([{ "text": "x", "delay_ms": 30_000 }])).to_string().into());
    let mut late = quick("late");
    late["config"] = json!({ "timeout_seconds": 5 });
    stage.push(&late);
    stage.settle_all().await;
    let results = results(&stage);
    let ended: Vec<_> = results.iter().map(|result| (&result["job_id"], &result["error"]["type"])).collect();
    assert_eq!(ended, [(&json!("late"), &json!("JOB_TIMEOUT")), (&json!("first"), &Json::Null)]);
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_message_of_an_unknown_job_is_run() {
    let stage = Stage::new();
    forget(&stage, quick("j").to_string()).await;
    stage.run_until(async || is_quiet(&stage, 1)).await;
    assert_eq!(results(&stage)[0]["status"], "completed");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_comes_back_after_its_job_has_ended_is_removed_as_often_as_it_comes() {
    let stage = Stage::new();
    stage.push(&quick("j"));
    stage.settle_all().await;
    for _ in 0..2 {
        forget(&stage, quick("j").to_string()).await;
        stage.run_until(async || is_quiet(&stage, 1)).await;
    }
    assert!(stage.queue.letters().is_empty());
    assert_eq!(ends(&stage), 1);
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_message_stays_while_its_job_runs() {
    let stage = Stage::new();
    forget(&stage, request("j", json!([{ "text": "late", "delay_ms": 900_000 }])).to_string()).await;
    let runs = async || stage.sink.events(&thread("t")).iter().any(|event| event["job_id"] == "j");
    let later = async {
        stage.run_until(async || is_quiet(&stage, 1)).await;
    };
    let watched = async {
        while !runs().await {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        // Many rounds of the reconciler.
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(stage.queue.unsettled(), 1);
    };
    tokio::join!(later, watched);
    assert_eq!(results(&stage)[0]["attempts"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_message_that_can_never_run_becomes_a_dead_letter() {
    let stage = Stage::new();
    forget(&stage, "not json".into()).await;
    stage.run_until(async || is_quiet(&stage, 0)).await;
    assert_eq!(stage.queue.letters()[0].reason, "not_json");
    let mut refused = quick("j");
    refused["agent_definition"]["nodes"] = json!([]);
    forget(&stage, refused.to_string()).await;
    stage.run_until(async || is_quiet(&stage, 1)).await;
    let letters = stage.queue.letters();
    assert_eq!((letters.len(), letters[1].reason), (2, "definition_invalid"));
    assert_eq!(letters[1].job_id.as_ref().map(|id| id.as_str()), Some("j"));
    assert_eq!(stage.store.dead_letters().len(), 2);
}

/// A broker that gives a message up after two deliveries, and has done so with this one.
async fn given_up(payload: String) -> Stage {
    let stage = Stage::around(Memory::giving_up_after(2));
    stage.queue.push(Vec::new(), payload.into());
    for _ in 0..2 {
        assert_eq!(stage.queue.next(1).await.expect("the twin answers").len(), 1);
        stage.queue.expire();
    }
    stage
}

#[tokio::test(start_paused = true)]
async fn a_message_that_the_broker_gave_up_ends_its_job_as_failed_and_is_kept() {
    let stage = given_up(quick("j").to_string()).await;
    stage.run_until(async || is_quiet(&stage, 1)).await;
    let result = &results(&stage)[0];
    assert_eq!((&result["status"], &result["error"]["type"]), (&json!("failed"), &json!("MAX_DELIVERIES")));
    let letters = stage.store.dead_letters();
    assert_eq!((letters.len(), letters[0].reason, letters[0].deliveries), (1, "max_deliveries", 2));

    let unreadable = given_up("not json".into()).await;
    unreadable.run_until(async || is_quiet(&unreadable, 0)).await;
    assert_eq!(unreadable.queue.letters()[0].reason, "max_deliveries");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_was_started_outlives_the_message_that_the_broker_gave_up() {
    let stage = given_up(quick("j").to_string()).await;
    claimed_by_the_dead(&stage, &quick("j")).await;
    stage.run_until(async || is_quiet(&stage, 1)).await;
    assert_eq!(results(&stage)[0]["status"], "completed");
    assert!(stage.queue.letters().is_empty() && stage.store.dead_letters().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_terminated_is_noted_and_our_own_letters_stay_as_they_are() {
    let stage = Stage::new();
    stage.queue.push(Vec::new(), "not json".into());
    stage.settle_all().await;
    stage.push(&quick("j"));
    stage.queue.next(1).await.expect("the twin answers");
    stage.queue.settle(&Receipt("2/1".into()), Settlement::Term).await.expect("the twin answers");
    let no_advisory = async || stage.queue.advisories(10).await.is_ok_and(|left| left.is_empty());
    stage.run_until(no_advisory).await;
    let letters = stage.store.dead_letters();
    let kept: Vec<_> = letters.iter().map(|letter| (letter.stream_seq, letter.reason)).collect();
    assert_eq!(kept, [(1, "not_json"), (2, "terminated")]);
}

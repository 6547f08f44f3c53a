//! Messages and jobs that do not fit together, on in-memory twins: real messages would have to age for minutes.

use std::{sync::Arc, time::Duration};

use super::{
    look, repair,
    report::{Finding, Report, Severity},
};
use crate::{
    config::{Config, Sources},
    ids::{JobId, SystemClock, ThreadId},
    job::Job,
    queue::{Queue, memory::Memory},
    store::{
        Claim, Finish, JobState, Jobs, NextJob, Offer, StoredResult, Upkeep, Verdict,
        memory::{Config as StoreConfig, MemoryStore},
    },
};

fn request(job_id: &str) -> String {
    format!(r#"{{"job_id":"{job_id}","agent":"a@1","input":{{"text":"hi"}}}}"#)
}

async fn claimed(store: &MemoryStore, job_id: &str, stream_seq: u64) -> Claim {
    let job = Job::nameless(JobId::parse(job_id).expect("valid"), ThreadId::parse(job_id).expect("valid"));
    let verdict = store
        .accept(&Offer::of(&job, stream_seq, Duration::from_secs(1800)))
        .await
        .expect("the twin answers");
    let Verdict::Run(claim) = &verdict else { panic!("{verdict:?}") };
    claim.clone()
}

async fn published(store: &MemoryStore, claim: Claim) {
    let job_id = claim.job_id.clone();
    let result = StoredResult {
        job_id: job_id.clone(),
        event_id: format!("{job_id}:result"),
        subject: "agent.status.completed".into(),
        event: "{}".into(),
    };
    let (state, next) = (JobState::Succeeded, NextJob::Leave);
    let end = Finish { claim, state, result, body: None, error: None, next, last: None, undo: false };
    store.finish(&end).await.expect("the twin answers");
    store.mark_published(&job_id).await.expect("the twin answers");
}

#[tokio::test(start_paused = true)]
async fn messages_that_nobody_settles_are_compared_with_their_jobs() {
    let config = Config::load(&Sources::default()).expect("the defaults are valid");
    let store = MemoryStore::new(Arc::new(SystemClock), StoreConfig::default(), "a");
    let queue = Memory::new();
    for job_id in ["done", "running", "unknown"] {
        queue.push(Vec::new(), request(job_id).into());
    }
    queue.push(Vec::new(), "no request at all".into());
    assert_eq!(queue.next(10).await.expect("four messages").len(), 4);
    let done = claimed(&store, "done", 1).await;
    published(&store, done).await;
    claimed(&store, "running", 2).await;

    let mut report = Report::default();
    look::at_messages(&config, (&store, &queue), &mut report).await.expect("both answer");
    assert!(report.is_healthy(), "they are young: {report:?}");
    tokio::time::advance(Duration::from_secs(61)).await;
    let found = look::at_messages(&config, (&store, &queue), &mut report).await.expect("both answer");
    let codes: Vec<_> = report.findings.iter().map(|found| (found.code, found.ids.join(" "))).collect();
    assert_eq!(
        codes,
        [("settled_messages", "done".to_owned()), ("unknown_jobs", "unknown".to_owned())],
        "a job that runs and a message that is none are left alone"
    );

    repair::all(&config, (&store, &queue), &found, &mut report).await;
    assert!(report.is_healthy(), "{report:?}");
    assert!(queue.fetch(1).await.expect("it answers").is_none());
    assert_eq!(queue.unsettled(), 3);
    let unknown = JobId::parse("unknown").expect("valid");
    assert_eq!(store.known(&[unknown]).await.expect("it answers").len(), 1);
    let mut again = Report::default();
    look::at_messages(&config, (&store, &queue), &mut again).await.expect("both answer");
    assert!(again.is_healthy(), "{again:?}");
}

#[test]
fn notes_and_what_was_mended_leave_a_system_healthy() {
    let mut report = Report::default();
    let wrong = |code| Finding::wrong(code, "x".to_owned(), 1, "y");
    report.add(Finding { severity: Severity::Note, ..wrong("suspects") });
    assert!(report.is_healthy());
    report.add(wrong("dead_leases"));
    assert!(!report.is_healthy());
    report.repaired("dead_leases", "freed 1 thread".to_owned());
    assert!(report.is_healthy());
}

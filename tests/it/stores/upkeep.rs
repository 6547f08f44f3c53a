//! Double texting, wishes to cancel, and what any process does for jobs of others.

use agent_executor::{
    job::MultitaskStrategy::{Interrupt, Reject, Rollback},
    store::{Cancel, CancelKind, Ending, Met, Target},
};

use super::*;

suite!(
    a_job_that_does_not_want_to_wait_is_rejected,
    a_job_that_interrupts_cancels_those_before_it,
    a_job_decides_about_those_before_it_only,
    of_two_that_do_not_want_to_wait_the_first_runs,
    suspects_are_left_to_those_who_have_a_place_for_them,
    a_rollback_takes_back_what_its_job_did,
    a_wish_reaches_the_owner_with_its_renewal,
    a_wish_can_come_before_its_job,
    a_wish_for_a_thread_meets_its_open_jobs,
    a_cancelled_suspect_needs_no_lane,
    a_queued_job_can_be_ended_without_running,
    threads_of_the_dead_are_found_and_adopted_once,
    queued_jobs_that_nobody_holds_are_found_after_a_while,
    a_recorded_job_waits_for_its_place,
    results_that_wait_are_found,
    jobs_are_known_by_their_results,
    recorded_jobs_keep_the_order_in_which_they_came,
    a_running_job_is_not_turned_away_when_its_message_comes_late,
    a_duty_is_taken_by_one_process_at_a_time,
);

fn wish(kind: CancelKind) -> Cancel {
    Cancel { kind, by: "night shift".into(), reason: Some("too \0 slow".replace('\0', "")) }
}

fn with(policy: MultitaskStrategy, id: &str, seq: u64) -> Offer {
    let mut offer = offer(id, "t", seq);
    offer.record.multitask_strategy = policy;
    offer
}

fn ending(id: &str) -> Ending {
    let result = StoredResult {
        job_id: job(id),
        event_id: format!("{id}:result"),
        subject: "agent.status.cancelled".into(),
        event: format!("result of {id}").into_bytes().into(),
    };
    Ending { state: JobState::Cancelled, result, body: None, error: None }
}

async fn renewed_cancel(store: &dyn Store, claim: &Claim) -> Option<CancelKind> {
    let renewed = store.renew(&[(claim.thread_id.clone(), claim.epoch)]).await.expect("answered");
    renewed[0].cancel.as_ref().map(|cancel| cancel.kind)
}

async fn a_job_that_does_not_want_to_wait_is_rejected(db: &dyn Fixture) {
    let store = db.process("a").await;
    let Ok(Verdict::Run(first)) = store.accept(&with(Reject, "j1", 1)).await else { panic!("it is free") };
    for _ in 0..2 {
        let verdict = store.accept(&with(Reject, "j2", 2)).await.expect("accepted");
        let Verdict::Rejected(cancel) = &verdict else { panic!("{verdict:?}") };
        assert_eq!((cancel.kind, cancel.by.as_str()), (CancelKind::Reject, "j1"));
    }
    // It stays rejected when the thread is free by then.
    store.finish(&ended(&first, NextJob::Leave)).await.expect("finished");
    assert!(matches!(store.accept(&with(Reject, "j2", 2)).await, Ok(Verdict::Rejected(_))));
    assert!(store.end(&ending("j2")).await.expect("answered"));
    assert!(matches!(store.accept(&with(Reject, "j2", 2)).await, Ok(Verdict::DoneUnpublished { .. })));
    claimed(&*store, "j3", "t", 3).await;
}

async fn a_job_that_interrupts_cancels_those_before_it(db: &dyn Fixture) {
    let store = db.process("a").await;
    let first = claimed(&*store, "j1", "t", 1).await;
    assert!(matches!(store.accept(&offer("j2", "t", 2)).await, Ok(Verdict::Parked { .. })));
    assert_eq!(renewed_cancel(&*store, &first).await, None);
    assert!(matches!(store.accept(&with(Interrupt, "j3", 3)).await, Ok(Verdict::Parked { .. })));
    assert_eq!(renewed_cancel(&*store, &first).await, Some(CancelKind::Interrupt));
    // It says so once: a job that comes later is not its business.
    assert!(matches!(store.accept(&offer("j4", "t", 4)).await, Ok(Verdict::Parked { .. })));
    assert!(matches!(store.accept(&with(Interrupt, "j3", 3)).await, Ok(Verdict::Parked { .. })));
    let second = store.finish(&ended(&first, NextJob::Take)).await.expect("finished").expect("j2 waits");
    let by = second.cancel.as_ref().map(|cancel| (cancel.kind, cancel.by.as_str()));
    assert_eq!((second.job_id.as_str(), by), ("j2", Some((CancelKind::Interrupt, "j3"))));
    let third = store.finish(&ended(&second, NextJob::Take)).await.expect("finished").expect("j3 waits");
    assert_eq!((third.job_id.as_str(), third.cancel), ("j3", None));
}

async fn a_job_decides_about_those_before_it_only(db: &dyn Fixture) {
    let store = db.process("a").await;
    let first = claimed(&*store, "j1", "t", 1).await;
    // The newer message is recorded before the older one is heard.
    let newer = Record { multitask_strategy: Interrupt, ..record("j3", "t", None) };
    store.record(&newer).await.expect("recorded");
    store.record(&record("j4", "t", None)).await.expect("recorded");
    assert!(matches!(store.accept(&with(Interrupt, "j2", 2)).await, Ok(Verdict::Parked { .. })));
    assert!(matches!(store.accept(&with(Interrupt, "j3", 3)).await, Ok(Verdict::Parked { .. })));
    assert!(matches!(store.accept(&offer("j4", "t", 4)).await, Ok(Verdict::Parked { .. })));
    let second = store.finish(&ended(&first, NextJob::Take)).await.expect("finished").expect("j2 waits");
    assert_eq!(second.cancel.as_ref().map(|cancel| cancel.by.as_str()), Some("j3"));
    let third = store.finish(&ended(&second, NextJob::Take)).await.expect("finished").expect("j3 waits");
    assert_eq!((third.job_id.as_str(), &third.cancel), ("j3", &None));
    let fourth = store.finish(&ended(&third, NextJob::Take)).await.expect("finished").expect("j4 waits");
    assert_eq!((fourth.job_id.as_str(), &fourth.cancel), ("j4", &None));
}

async fn of_two_that_do_not_want_to_wait_the_first_runs(db: &dyn Fixture) {
    let store = db.process("a").await;
    for id in ["j1", "j2"] {
        let reject = Record { multitask_strategy: Reject, ..record(id, "t", None) };
        store.record(&reject).await.expect("recorded");
    }
    let Ok(Verdict::Run(first)) = store.accept(&with(Reject, "j1", 1)).await else { panic!("it is first") };
    let Ok(Verdict::Rejected(cancel)) = store.accept(&with(Reject, "j2", 2)).await else {
        panic!("the thread is busy")
    };
    assert_eq!(cancel.by, first.job_id.as_str());
    // One that is turned away and has not ended yet holds nobody up.
    store.finish(&ended(&first, NextJob::Leave)).await.expect("finished");
    let verdict = store.accept(&with(Reject, "j3", 3)).await.expect("accepted");
    assert!(!matches!(verdict, Verdict::Rejected(_)), "{verdict:?}");
}

async fn suspects_are_left_to_those_who_have_a_place_for_them(db: &dyn Fixture) {
    for owner in ["a", "b"] {
        claimed(&*db.process(owner).await, "j1", "t1", 1).await;
        db.expire_leases().await;
    }
    let store = db.process("c").await;
    claimed(&*store, "j2", "t2", 2).await;
    db.expire_leases().await;
    assert_eq!(store.orphans(10, true, false).await.expect("answered"), [thread("t2")]);
    assert_eq!(store.orphans(10, true, true).await.expect("answered").len(), 2);
}

async fn a_rollback_takes_back_what_its_job_did(db: &dyn Fixture) {
    let store = db.process("a").await;
    let first = claimed(&*store, "j1", "t", 1).await;
    let base = checkpoint(None, 0, &["x"]);
    store.commit(step(&first, None, &base)).await.expect("stored");
    store.finish(&ended(&first, NextJob::Take)).await.expect("finished");

    // Checkpoints of the suite say that job "j" made them.
    let second = claimed(&*store, "j", "t2", 2).await;
    let mine = checkpoint(None, 0, &["y"]);
    store.commit(step(&second, None, &mine)).await.expect("stored");
    let task = vec![write(7, "~", 0, "items", Value::from("z"))];
    store.commit(writes(&second, &mine.id, task)).await.expect("stored");
    let mut elsewhere = with(Rollback, "j3", 3);
    elsewhere.record.thread_id = thread("t2");
    assert!(matches!(store.accept(&elsewhere).await, Ok(Verdict::Parked { .. })));
    assert_eq!(renewed_cancel(&*store, &second).await, Some(CancelKind::Rollback));
    let undo = Finish { undo: true, state: JobState::Cancelled, ..ended(&second, NextJob::Take) };
    let next = store.finish(&undo).await.expect("finished").expect("j3 waits");
    assert_eq!((next.job_id.as_str(), next.head), ("j3", None));
    let history = store.history(&thread("t2"), &Namespace::root(), 10).await.expect("answered");
    assert!(history.is_empty(), "{history:?}");
    let other = store.load(&thread("t"), &Namespace::root(), None).await.expect("answered");
    assert_eq!(other.map(|saved| saved.checkpoint.id), Some(base.id), "other threads keep theirs");
    // The thread goes on from where it stood.
    let claim = Claim { epoch: next.epoch, ..second };
    let anew = checkpoint(None, 0, &["w"]);
    store.commit(step(&claim, None, &anew)).await.expect("the head is free again");
}

async fn a_wish_reaches_the_owner_with_its_renewal(db: &dyn Fixture) {
    let (owner, other) = (db.process("a").await, db.process("b").await);
    let claim = claimed(&*owner, "j1", "t", 1).await;
    let wished = other.wish("j1", Target::Either, &wish(CancelKind::Cancel)).await.expect("noted").jobs;
    assert_eq!((wished[0].job_id.as_str(), wished[0].state.as_str()), ("j1", "running"));
    let renewed = owner.renew(&[(thread("t"), claim.epoch)]).await.expect("answered");
    assert_eq!(renewed[0].cancel, Some(wish(CancelKind::Cancel)));
    // The next owner hears of it with its claim.
    db.expire_leases().await;
    assert_eq!(claimed(&*other, "j1", "t", 1).await.cancel, Some(wish(CancelKind::Cancel)));
}

async fn a_wish_can_come_before_its_job(db: &dyn Fixture) {
    let store = db.process("a").await;
    let waits = Met { jobs: Vec::new(), waits: true };
    assert_eq!(store.wish("j1", Target::Either, &wish(CancelKind::Cancel)).await.expect("noted"), waits);
    assert_eq!(claimed(&*store, "j1", "t", 1).await.cancel, Some(wish(CancelKind::Cancel)));
    let met = store.wish("nobody", Target::Thread, &wish(CancelKind::Cancel)).await.expect("noted");
    assert_eq!(met, Met::default());
    assert_eq!(claimed(&*store, "nobody", "t2", 2).await.cancel, None, "a thread is no job");
}

async fn a_wish_for_a_thread_meets_its_open_jobs(db: &dyn Fixture) {
    let store = db.process("a").await;
    let first = claimed(&*store, "j1", "t", 1).await;
    store.finish(&ended(&first, NextJob::Take)).await.expect("finished");
    let second = claimed(&*store, "j2", "t", 2).await;
    assert!(matches!(store.accept(&offer("j3", "t", 3)).await, Ok(Verdict::Parked { .. })));
    let wished = store.wish("t", Target::Either, &wish(CancelKind::Cancel)).await.expect("noted").jobs;
    let mut met: Vec<_> = wished.iter().map(|met| met.job_id.as_str()).collect();
    met.sort_unstable();
    assert_eq!(met, ["j2", "j3"]);
    assert_eq!(renewed_cancel(&*store, &second).await, Some(CancelKind::Cancel));
    let doomed = store.doomed(10).await.expect("answered");
    assert_eq!(doomed.iter().map(|doomed| doomed.job_id.as_str()).collect::<Vec<_>>(), ["j3"]);
}

async fn a_cancelled_suspect_needs_no_lane(db: &dyn Fixture) {
    for owner in ["a", "b"] {
        claimed(&*db.process(owner).await, "j1", "t", 1).await;
        db.expire_leases().await;
    }
    let store = db.process("c").await;
    assert!(matches!(store.accept(&offer("j1", "t", 1)).await, Ok(Verdict::NeedLane)));
    store.wish("j1", Target::Job, &wish(CancelKind::Cancel)).await.expect("noted");
    assert!(claimed(&*store, "j1", "t", 1).await.cancel.is_some());
}

async fn a_queued_job_can_be_ended_without_running(db: &dyn Fixture) {
    let store = db.process("a").await;
    let first = claimed(&*store, "j1", "t", 1).await;
    assert!(!store.end(&ending("j1")).await.expect("answered"), "it runs");
    assert!(matches!(store.accept(&offer("j2", "t", 2)).await, Ok(Verdict::Parked { .. })));
    assert!(store.end(&ending("j2")).await.expect("answered"));
    assert!(!store.end(&ending("j2")).await.expect("answered"), "it has ended");
    let Ok(Verdict::DoneUnpublished { result, .. }) = store.accept(&offer("j2", "t", 2)).await else {
        panic!("it has ended")
    };
    assert_eq!(result, ending("j2").result);
    assert_eq!(store.finish(&ended(&first, NextJob::Take)).await.expect("finished"), None);
}

async fn threads_of_the_dead_are_found_and_adopted_once(db: &dyn Fixture) {
    let (dead, living, late) = (db.process("a").await, db.process("b").await, db.process("c").await);
    claimed(&*dead, "j1", "t1", 1).await;
    claimed(&*dead, "j2", "t2", 2).await;
    assert_eq!(living.orphans(10, true, true).await.expect("answered"), []);
    assert!(living.adopt(&thread("t1"), false).await.expect("answered").is_none());
    db.expire_leases().await;
    let kept = claimed(&*living, "j2", "t2", 2).await;
    assert_eq!(living.orphans(10, true, true).await.expect("answered"), [thread("t1")]);
    let adopted = living.adopt(&thread("t1"), false).await.expect("answered");
    let Some(Verdict::Run(claim)) = adopted else { panic!("{adopted:?}") };
    assert_eq!((claim.job_id.as_str(), claim.attempt), ("j1", 2));
    assert_eq!(&claim.request[..], b"request of j1");
    assert!(late.adopt(&thread("t1"), false).await.expect("answered").is_none());
    living.release(&kept).await.expect("released");
    assert_eq!(late.orphans(10, false, true).await.expect("answered"), [thread("t2")]);
}

async fn queued_jobs_that_nobody_holds_are_found_after_a_while(db: &dyn Fixture) {
    let store = db.process("a").await;
    let first = claimed(&*store, "j1", "t", 1).await;
    assert!(matches!(store.accept(&offer("j2", "t", 2)).await, Ok(Verdict::Parked { .. })));
    store.finish(&ended(&first, NextJob::Leave)).await.expect("finished");
    assert_eq!(store.orphans(10, true, true).await.expect("answered"), []);
    db.let_pass(Duration::from_secs(11)).await;
    assert_eq!(store.orphans(10, false, true).await.expect("answered"), []);
    assert_eq!(store.orphans(10, true, true).await.expect("answered"), [thread("t")]);
    let doomed = store.doomed(10).await.expect("answered");
    assert!(doomed.is_empty(), "{doomed:?}");
    db.let_pass(Duration::from_secs(1800)).await;
    let doomed = store.doomed(10).await.expect("answered");
    assert_eq!((doomed[0].job_id.as_str(), &doomed[0].cancel), ("j2", &None));
}

async fn a_recorded_job_waits_for_its_place(db: &dyn Fixture) {
    let store = db.process("a").await;
    assert!(store.record(&record("j1", "t", None)).await.expect("recorded"));
    assert!(!store.record(&record("j1", "t", None)).await.expect("answered"), "it is known");
    // A job that comes with its message is not held up by one that has none.
    assert_eq!(claimed(&*store, "j2", "t", 5).await.job_id.as_str(), "j2");
    db.expire_leases().await;
    store.forget(&job("j1")).await.expect("forgotten");
    assert_eq!(store.known(&[job("j1"), job("j2")]).await.expect("answered").len(), 1);
    // Once its message has come it has its place, and is not forgotten any more.
    store.record(&record("j3", "t3", None)).await.expect("recorded");
    assert_eq!(claimed(&*store, "j3", "t3", 6).await.job_id.as_str(), "j3");
    store.forget(&job("j3")).await.expect("answered");
    assert_eq!(store.known(&[job("j3")]).await.expect("answered").len(), 1);
    // Without its message it is taken up after a while.
    store.record(&record("j4", "t4", None)).await.expect("recorded");
    assert!(store.adopt(&thread("t4"), false).await.expect("answered").is_none());
    db.let_pass(Duration::from_secs(11)).await;
    assert!(matches!(store.adopt(&thread("t4"), false).await, Ok(Some(Verdict::Run(_)))));
}

async fn results_that_wait_are_found(db: &dyn Fixture) {
    let store = db.process("a").await;
    for (id, seq) in [("j1", 1), ("j2", 2)] {
        let claim = claimed(&*store, id, id, seq).await;
        store.finish(&ended(&claim, NextJob::Take)).await.expect("finished");
    }
    let age = Duration::from_secs(5);
    assert_eq!(store.unpublished(age, None, 10).await.expect("answered"), []);
    db.let_pass(Duration::from_secs(6)).await;
    assert_eq!(store.unpublished(age, None, 1).await.expect("answered").len(), 1);
    let waiting = store.unpublished(age, None, 10).await.expect("answered");
    let ids: Vec<_> = waiting.iter().map(|result| result.job_id.as_str()).collect();
    assert_eq!(ids, ["j1", "j2"]);
    assert_eq!(waiting[0].event, "result of j1".as_bytes());
    let behind = async |id: &str| store.unpublished(age, Some(&job(id)), 10).await.expect("answered");
    assert_eq!(behind("j1").await, waiting[1..]);
    assert_eq!((behind("j2").await, behind("never").await), (vec![], vec![]));
    store.mark_published(&job("j1")).await.expect("marked");
    assert_eq!(behind("j1").await.len(), 1, "it holds its place");
    assert_eq!(store.unpublished(age, None, 10).await.expect("answered").len(), 1);
}

async fn jobs_are_known_by_their_results(db: &dyn Fixture) {
    let store = db.process("a").await;
    let claim = claimed(&*store, "j1", "t", 1).await;
    let known = || async { store.known(&[job("j1"), job("never")]).await.expect("answered") };
    assert_eq!(known().await.iter().map(|job| job.published).collect::<Vec<_>>(), [false]);
    store.finish(&ended(&claim, NextJob::Take)).await.expect("finished");
    store.mark_published(&claim.job_id).await.expect("marked");
    assert_eq!(known().await.iter().map(|job| job.published).collect::<Vec<_>>(), [true]);
}

async fn recorded_jobs_keep_the_order_in_which_they_came(db: &dyn Fixture) {
    let store = db.process("a").await;
    for id in ["j9", "j5", "j7"] {
        store.record(&record(id, "t", None)).await.expect("recorded");
        db.let_pass(Duration::from_millis(1)).await;
    }
    db.let_pass(Duration::from_secs(11)).await;
    let Ok(Some(Verdict::Run(first))) = store.adopt(&thread("t"), false).await else { panic!("it is free") };
    let second = store.finish(&ended(&first, NextJob::Take)).await.expect("finished").expect("two wait");
    let third = store.finish(&ended(&second, NextJob::Take)).await.expect("finished").expect("one waits");
    assert_eq!([first, second, third].map(|claim| claim.job_id.to_string()), ["j9", "j5", "j7"]);
}

async fn a_running_job_is_not_turned_away_when_its_message_comes_late(db: &dyn Fixture) {
    let store = db.process("a").await;
    let recorded = Record { multitask_strategy: Reject, ..record("j1", "t", None) };
    store.record(&recorded).await.expect("recorded");
    db.let_pass(Duration::from_secs(11)).await;
    let Ok(Some(Verdict::Run(claim))) = store.adopt(&thread("t"), false).await else { panic!("it is free") };
    assert!(matches!(store.accept(&offer("j2", "t", 1)).await, Ok(Verdict::Parked { .. } | Verdict::Run(_))));
    let late = store.accept(&with(Reject, "j1", 2)).await.expect("accepted");
    assert!(!matches!(late, Verdict::Rejected(_)), "{late:?}");
    assert!(store.finish(&ended(&claim, NextJob::Leave)).await.is_ok());
}

async fn a_duty_is_taken_by_one_process_at_a_time(db: &dyn Fixture) {
    let (one, other) = (db.process("a").await, db.process("b").await);
    let every = Duration::from_secs(30);
    assert!(one.take_duty("look", every).await.expect("answered"));
    assert!(!other.take_duty("look", every).await.expect("answered"));
    assert!(other.take_duty("tidy", every).await.expect("answered"), "duties are apart");
    db.let_pass(Duration::from_secs(31)).await;
    assert!(other.take_duty("look", every).await.expect("answered"));
    assert!(!one.take_duty("look", every).await.expect("answered"));
}

//! Jobs, claims, leases, results.

use std::time::Duration;

use agent_executor::{
    ids::{Epoch, ThreadId},
    store::{DeadLetter, Error, Renewed},
};

use super::*;

suite!(
    a_new_job_runs_once,
    other_jobs_of_a_busy_thread_are_parked,
    the_oldest_open_job_goes_first,
    a_started_job_goes_before_an_older_one,
    a_finished_job_is_published_and_then_done,
    a_job_that_kills_its_owners_is_poison,
    progress_clears_suspicion,
    a_released_job_is_claimed_at_once_and_charges_nothing,
    a_refund_takes_a_crash_back,
    an_owner_that_lost_its_lease_and_asks_again_is_no_crash,
    a_lapsed_lease_stands_while_its_owner_still_runs_the_job,
    all_attempts_of_a_job_share_its_deadline,
    a_finish_hands_the_thread_to_the_next_job,
    a_repeated_finish_changes_nothing,
    a_repeated_finish_does_not_take_a_claim_made_by_an_offer,
    a_finish_that_leaves_frees_the_thread,
    a_finish_stores_the_last_checkpoint_or_nothing,
    a_stale_worker_cannot_write,
    renewals_keep_only_what_is_still_owned,
    a_job_offered_under_another_thread_waits,
    the_full_result_can_be_read_back,
    dead_letters_are_kept_once,
);

async fn a_new_job_runs_once(db: &dyn Fixture) {
    let (first, second) = (db.process("a").await, db.process("b").await);
    let claim = claimed(&*first, "j1", "t", 7).await;
    assert_eq!((claim.attempt, &claim.head, &*claim.request), (1, &None, &b"request of j1"[..]));
    for store in [&first, &second] {
        let verdict = store.accept(&offer("j1", "t", 7)).await.expect("accepted");
        let Verdict::RunningElsewhere { retry_in } = verdict else { panic!("{verdict:?}") };
        assert!(retry_in > Duration::ZERO && retry_in <= Duration::from_secs(600));
    }
}

async fn other_jobs_of_a_busy_thread_are_parked(db: &dyn Fixture) {
    let store = db.process("a").await;
    claimed(&*store, "j1", "t", 1).await;
    let verdict = store.accept(&offer("j2", "t", 2)).await.expect("accepted");
    assert!(matches!(verdict, Verdict::Parked { retry_in } if retry_in > Duration::ZERO), "{verdict:?}");
    // A thread of its own is free.
    claimed(&*store, "j3", "other", 3).await;
}

async fn the_oldest_open_job_goes_first(db: &dyn Fixture) {
    let store = db.process("a").await;
    let first = claimed(&*store, "j1", "t", 1).await;
    for (id, seq) in [("j3", 3), ("j2", 2)] {
        assert!(matches!(store.accept(&offer(id, "t", seq)).await, Ok(Verdict::Parked { .. })));
    }
    assert_eq!(store.finish(&ended(&first, NextJob::Leave)).await.expect("finished"), None);
    // The offer of the youngest is answered with the oldest.
    let claim = claimed(&*store, "j3", "t", 3).await;
    assert_eq!((claim.job_id.as_str(), &*claim.request), ("j2", &b"request of j2"[..]));
}

async fn a_started_job_goes_before_an_older_one(db: &dyn Fixture) {
    let store = db.process("a").await;
    claimed(&*store, "j5", "t", 5).await;
    assert!(matches!(store.accept(&offer("j3", "t", 3)).await, Ok(Verdict::Parked { .. })));
    db.expire_leases().await;
    let claim = claimed(&*store, "j3", "t", 3).await;
    assert_eq!((claim.job_id.as_str(), claim.attempt), ("j5", 2));
}

async fn a_finished_job_is_published_and_then_done(db: &dyn Fixture) {
    let store = db.process("a").await;
    let claim = claimed(&*store, "j1", "t", 1).await;
    let end = ended(&claim, NextJob::Take);
    assert_eq!(store.finish(&end).await.expect("finished"), None);
    let verdict = store.accept(&offer("j1", "t", 1)).await.expect("accepted");
    let Verdict::DoneUnpublished { result, .. } = &verdict else { panic!("{verdict:?}") };
    assert_eq!(*result, end.result);
    for _ in 0..2 {
        store.mark_published(&claim.job_id).await.expect("marked");
        assert!(matches!(store.accept(&offer("j1", "t", 1)).await, Ok(Verdict::Done)));
    }
}

async fn a_job_that_kills_its_owners_is_poison(db: &dyn Fixture) {
    for attempt in 1..=5 {
        let store = db.process(&format!("a{attempt}")).await;
        let mut verdict = store.accept(&offer("j1", "t", 1)).await.expect("accepted");
        if attempt > 2 {
            assert!(matches!(verdict, Verdict::NeedLane), "a suspect runs in the lane: {verdict:?}");
            verdict = store.accept(&in_lane("j1")).await.expect("accepted");
        }
        let Verdict::Run(claim) = &verdict else { panic!("{verdict:?}") };
        assert_eq!((claim.attempt, claim.suspect), (attempt, attempt > 2));
        db.expire_leases().await;
    }
    let store = db.process("b").await;
    let verdict = store.accept(&in_lane("j1")).await.expect("accepted");
    let Verdict::Poison(claim) = &verdict else { panic!("{verdict:?}") };
    assert_eq!(claim.attempt, 6);
    // The claim is a real one: the job can be ended under it.
    store.finish(&ended(claim, NextJob::Take)).await.expect("finished");
}

fn in_lane(id: &str) -> Offer {
    Offer { lane: true, ..offer(id, "t", 1) }
}

async fn progress_clears_suspicion(db: &dyn Fixture) {
    let mut head = None;
    for round in 0..8 {
        let store = db.process(&format!("a{round}")).await;
        let claim = claimed(&*store, "j1", "t", 1).await;
        assert_eq!(claim.head, head);
        if round % 2 == 0 {
            let next = checkpoint(head.as_ref(), round, &["x"]);
            store.commit(step(&claim, head.as_ref(), &next)).await.expect("stored");
            head = Some(next.id);
        }
        db.expire_leases().await;
    }
}

async fn a_released_job_is_claimed_at_once_and_charges_nothing(db: &dyn Fixture) {
    let (first, second) = (db.process("a").await, db.process("b").await);
    for round in 0..4 {
        for store in [&first, &second] {
            let claim = claimed(&**store, "j1", "t", 1).await;
            assert_eq!(claim.job_id.as_str(), "j1", "round {round}");
            for _ in 0..2 {
                store.release(&claim).await.expect("released, also when asked twice");
            }
        }
    }
}

async fn a_refund_takes_a_crash_back(db: &dyn Fixture) {
    let mut store = db.process("a0").await;
    let mut before = claimed(&*store, "j1", "t", 1).await;
    for round in 1..=8 {
        db.expire_leases().await;
        store = db.process(&format!("a{round}")).await;
        let claim = claimed(&*store, "j1", "t", 1).await;
        store.refund(&before).await.expect("refunded");
        before = claim;
    }
}

async fn an_owner_that_lost_its_lease_and_asks_again_is_no_crash(db: &dyn Fixture) {
    let store = db.process("a").await;
    for attempt in 1..=8 {
        assert_eq!(claimed(&*store, "j1", "t", 1).await.attempt, attempt);
        db.expire_leases().await;
    }
}

async fn a_finish_hands_the_thread_to_the_next_job(db: &dyn Fixture) {
    let (owner, other) = (db.process("a").await, db.process("b").await);
    let first = claimed(&*owner, "j1", "t", 1).await;
    let next = checkpoint(None, -1, &["x"]);
    owner.commit(step(&first, None, &next)).await.expect("stored");
    for (id, seq) in [("j3", 3), ("j2", 2)] {
        assert!(matches!(other.accept(&offer(id, "t", seq)).await, Ok(Verdict::Parked { .. })));
    }
    let second = owner.finish(&ended(&first, NextJob::Take)).await.expect("finished").expect("j2 waits");
    assert_eq!((second.job_id.as_str(), second.attempt, &*second.request), ("j2", 1, &b"request of j2"[..]));
    assert_eq!(second.head, Some(next.id.clone()));
    assert!(second.epoch > first.epoch);
    is_fenced(
        owner.commit(step(&first, Some(&next.id), &checkpoint(Some(&next.id), 0, &[]))).await,
        first.epoch,
    );
    let third = owner.finish(&ended(&second, NextJob::Take)).await.expect("finished").expect("j3 waits");
    assert_eq!(third.job_id.as_str(), "j3");
    assert_eq!(owner.finish(&ended(&third, NextJob::Take)).await.expect("finished"), None);
    claimed(&*other, "j4", "t", 4).await;
}

async fn a_repeated_finish_changes_nothing(db: &dyn Fixture) {
    let store = db.process("a").await;
    let first = claimed(&*store, "j1", "t", 1).await;
    assert!(matches!(store.accept(&offer("j2", "t", 2)).await, Ok(Verdict::Parked { .. })));
    let end = ended(&first, NextJob::Take);
    let next = store.finish(&end).await.expect("finished");
    assert!(next.is_some());
    let mut other_bytes = end.clone();
    other_bytes.result.event = b"another result".as_slice().into();
    let again = store.finish(&other_bytes).await.expect("finished before");
    let timeless = |claim: Option<Claim>| claim.map(|claim| Claim { time_left: Duration::ZERO, ..claim });
    assert_eq!(timeless(again), timeless(next.clone()));
    assert_eq!(store.result(&first.job_id).await.expect("readable"), Some(end.result.event.clone()));
    let second = next.expect("checked above");
    store.finish(&ended(&second, NextJob::Take)).await.expect("finished");
    assert_eq!(store.finish(&end).await.expect("finished before"), None, "the handed-on claim has ended");
}

async fn a_repeated_finish_does_not_take_a_claim_made_by_an_offer(db: &dyn Fixture) {
    let store = db.process("a").await;
    let first = claimed(&*store, "j1", "t", 1).await;
    let end = ended(&first, NextJob::Take);
    assert_eq!(store.finish(&end).await.expect("finished"), None);
    claimed(&*store, "j2", "t", 2).await;
    assert_eq!(
        store.finish(&end).await.expect("finished before"),
        None,
        "j2 runs already, under its own claim"
    );
}

async fn a_finish_that_leaves_frees_the_thread(db: &dyn Fixture) {
    let (owner, other) = (db.process("a").await, db.process("b").await);
    let first = claimed(&*owner, "j1", "t", 1).await;
    assert!(matches!(owner.accept(&offer("j2", "t", 2)).await, Ok(Verdict::Parked { .. })));
    assert_eq!(owner.finish(&ended(&first, NextJob::Leave)).await.expect("finished"), None);
    assert_eq!(claimed(&*other, "j2", "t", 2).await.attempt, 1);
}

async fn a_finish_stores_the_last_checkpoint_or_nothing(db: &dyn Fixture) {
    let (store, other) = (db.process("a").await, db.process("b").await);
    let claim = claimed(&*store, "j1", "t", 1).await;
    let first = checkpoint(None, 0, &["x"]);
    let finish = Finish { last: Some(step(&claim, None, &first)), ..ended(&claim, NextJob::Take) };
    store.finish(&finish).await.expect("finished");
    assert_eq!(store.finish(&finish).await.expect("finished before"), None);
    let head = || async { store.load(&thread("t"), &Namespace::root(), None).await.expect("answered") };
    assert_eq!(head().await.map(|saved| saved.checkpoint.id), Some(first.id.clone()));
    assert!(matches!(store.accept(&offer("j1", "t", 1)).await, Ok(Verdict::DoneUnpublished { .. })));

    let stale = claimed(&*store, "j2", "t", 2).await;
    db.expire_leases().await;
    claimed(&*other, "j2", "t", 2).await;
    let next = checkpoint(Some(&first.id), 1, &["y"]);
    let late = Finish { last: Some(step(&stale, Some(&first.id), &next)), ..ended(&stale, NextJob::Take) };
    is_fenced(store.finish(&late).await, stale.epoch);
    assert_eq!(head().await.map(|saved| saved.checkpoint.id), Some(first.id));
}

async fn a_stale_worker_cannot_write(db: &dyn Fixture) {
    let (stale, fresh) = (db.process("a").await, db.process("b").await);
    let old = claimed(&*stale, "j1", "t", 1).await;
    let first = checkpoint(None, -1, &["x"]);
    stale.commit(step(&old, None, &first)).await.expect("stored");
    db.expire_leases().await;
    let new = claimed(&*fresh, "j1", "t", 1).await;
    assert!(new.epoch > old.epoch);

    let next = checkpoint(Some(&first.id), 0, &["stale"]);
    is_fenced(stale.commit(step(&old, Some(&first.id), &next)).await, old.epoch);
    let late = writes(&old, &first.id, vec![write(1, "p", 0, "items", Value::Null)]);
    is_fenced(stale.commit(late).await, old.epoch);
    is_fenced(stale.finish(&ended(&old, NextJob::Take)).await, old.epoch);
    is_fenced(stale.release(&old).await, old.epoch);
    assert_eq!(stale.renew(&[(old.thread_id.clone(), old.epoch)]).await.expect("answered"), vec![]);
    // Nor under the new epoch, which is another owner's.
    let mut forged = old.clone();
    forged.epoch = new.epoch;
    is_fenced(stale.commit(step(&forged, Some(&first.id), &next)).await, new.epoch);
    is_fenced(stale.finish(&ended(&forged, NextJob::Take)).await, new.epoch);

    let saved = fresh.load(&new.thread_id, &Namespace::root(), None).await.expect("readable").expect("there");
    assert_eq!((saved.checkpoint.id, saved.writes), (first.id.clone(), vec![]));
    fresh.commit(step(&new, Some(&first.id), &next)).await.expect("the owner can write");
    fresh.finish(&ended(&new, NextJob::Take)).await.expect("the owner can finish");
    is_fenced(fresh.commit(step(&new, Some(&next.id), &checkpoint(Some(&next.id), 1, &[]))).await, new.epoch);
}

async fn renewals_keep_only_what_is_still_owned(db: &dyn Fixture) {
    let (owner, other) = (db.process("a").await, db.process("b").await);
    let kept = claimed(&*owner, "j1", "t1", 1).await;
    let lost = claimed(&*owner, "j2", "t2", 2).await;
    db.expire_leases().await;
    claimed(&*other, "j2", "t2", 2).await;
    let claims = [&lost, &kept].map(|claim| (claim.thread_id.clone(), claim.epoch));
    // A lease that had run out stands again, because nobody took it over.
    let renewed = owner.renew(&claims).await.expect("answered");
    assert_eq!(renewed, [renewal(kept.thread_id.clone(), kept.epoch)]);
    assert!(matches!(other.accept(&offer("j1", "t1", 1)).await, Ok(Verdict::RunningElsewhere { .. })));
    assert_eq!(owner.renew(&[]).await.expect("answered"), vec![]);
    // Nor does the owner itself keep a claim that it has made anew.
    db.expire_leases().await;
    let anew = claimed(&*owner, "j1", "t1", 1).await;
    let both = [&kept, &anew].map(|claim| (claim.thread_id.clone(), claim.epoch));
    assert_eq!(owner.renew(&both[..1]).await.expect("answered"), vec![]);
    let (thread_id, epoch) = both[1].clone();
    assert_eq!(owner.renew(&both[1..]).await.expect("answered"), [renewal(thread_id, epoch)]);
}

async fn a_job_offered_under_another_thread_waits(db: &dyn Fixture) {
    let store = db.process("a").await;
    claimed(&*store, "j1", "t1", 1).await;
    let verdict = store.accept(&offer("j1", "t2", 9)).await.expect("accepted");
    assert!(matches!(verdict, Verdict::RunningElsewhere { .. }), "{verdict:?}");
    claimed(&*store, "j2", "t2", 2).await;
}

async fn the_full_result_can_be_read_back(db: &dyn Fixture) {
    let store = db.process("a").await;
    let claim = claimed(&*store, "j1", "t", 1).await;
    assert_eq!(store.result(&claim.job_id).await.expect("readable"), None);
    let mut end = ended(&claim, NextJob::Take);
    end.state = JobState::Failed;
    end.body = Some(b"the whole event".as_slice().into());
    end.error = Some(serde_json::json!({"type": "ToolError", "message": "a NUL \0 in it"}));
    store.finish(&end).await.expect("finished");
    assert_eq!(store.result(&claim.job_id).await.expect("readable"), end.body);
    assert_eq!(store.result(&job("unknown")).await.expect("readable"), None);
}

async fn dead_letters_are_kept_once(db: &dyn Fixture) {
    let store = db.process("a").await;
    let letter = |seq, payload: &'static [u8]| DeadLetter {
        stream: "AGENT_EXECUTION".into(),
        stream_seq: seq,
        subject: "agent.execute.x".into(),
        headers: vec![("Nats-Msg-Id".into(), "a\0b".into())],
        payload: payload.into(),
        job_id: Some(job("j1")),
        thread_id: None,
        reason: "malformed",
        error: "not JSON".into(),
        deliveries: 2,
    };
    for (seq, payload) in [(2, &b"two"[..]), (1, b"one"), (2, b"again")] {
        store.bury(&letter(seq, payload)).await.expect("kept");
    }
    let kept = [b"one".to_vec(), b"two".to_vec()].map(|payload| ("malformed".to_owned(), payload));
    assert_eq!(db.letters().await, kept);
    let beyond = store.bury(&letter(u64::MAX, b"")).await;
    assert!(matches!(beyond, Ok(_) | Err(Error::Refused(_))), "{beyond:?}");
    store.ping().await.expect("alive");
}

async fn a_lapsed_lease_stands_while_its_owner_still_runs_the_job(db: &dyn Fixture) {
    let (owner, other) = (db.process("a").await, db.process("b").await);
    let claim = claimed(&*owner, "j1", "t", 1).await;
    db.expire_leases().await;
    let running = Some(claim.epoch);
    for id in ["j1", "j2"] {
        let verdict = owner.accept(&Offer { running, ..offer(id, "t", 2) }).await.expect("accepted");
        assert!(matches!(verdict, Verdict::Parked { .. } | Verdict::RunningElsewhere { .. }), "{verdict:?}");
    }
    // Others cannot know, and an epoch that is not the thread's is no excuse.
    let stolen = claimed(&*other, "j2", "t", 2).await;
    assert!(stolen.epoch > claim.epoch);
    db.expire_leases().await;
    let verdict = owner.accept(&Offer { running, ..in_lane("j1") }).await.expect("accepted");
    assert!(matches!(verdict, Verdict::Run(_)), "{verdict:?}");
}

async fn all_attempts_of_a_job_share_its_deadline(db: &dyn Fixture) {
    let store = db.process("a").await;
    let first = claimed(&*store, "j1", "t", 1).await;
    assert!(first.time_left > Duration::ZERO && first.time_left <= Duration::from_secs(1800));
    store.release(&first).await.expect("released");
    let second = claimed(&*store, "j1", "t", 1).await;
    assert!(second.time_left <= first.time_left, "{:?} > {:?}", second.time_left, first.time_left);
    let mut short = offer("j2", "other", 2);
    short.record.timeout = Duration::ZERO;
    let Ok(Verdict::Run(late)) = store.accept(&short).await else { panic!("the thread is free") };
    assert_eq!(late.time_left, Duration::ZERO);
}

fn renewal(thread_id: ThreadId, epoch: Epoch) -> Renewed {
    Renewed { thread_id, epoch, cancel: None }
}

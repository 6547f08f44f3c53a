//! Dead letters, what operators look at and repair by hand, and the removal of what is old.

use agent_executor::store::{
    Cancel, CancelKind, DeadLetter, Expired, Grace, Letter, LetterFilter, Replayed, Retention, Target, Trail,
};

use super::*;

suite!(
    letters_are_listed_newest_first_and_can_be_told_apart,
    a_letter_keeps_its_message_and_what_its_job_was,
    a_replay_is_noted_once_and_for_every_letter_of_its_job,
    a_discarded_letter_is_kept_with_its_mark,
    a_job_leaves_a_trail_on_its_thread,
    the_overview_names_what_is_wrong,
    a_waiting_job_knows_where_its_message_or_its_copy_stands,
    only_threads_of_the_dead_are_freed_and_their_jobs_are_charged,
    what_is_old_is_removed_in_batches_and_nothing_else,
);

const GRACE: Grace = Grace {
    lease: Duration::from_secs(10),
    waiting: Duration::from_secs(60),
    unpublished: Duration::from_secs(15),
};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn letter(seq: u64, reason: &'static str, of: Option<&str>) -> DeadLetter {
    DeadLetter {
        stream: "AGENT_EXECUTION".into(),
        stream_seq: seq,
        subject: "agent.execute.x".into(),
        headers: vec![("b".into(), "1".into()), ("a".into(), "2".into())],
        payload: format!("payload {seq}").into_bytes().into(),
        job_id: of.map(job),
        thread_id: of.map(|_| thread("t")),
        reason,
        error: format!("error {seq}"),
        deliveries: seq,
    }
}

async fn bury(store: &dyn Store, seq: u64, reason: &'static str, of: Option<&str>) -> i64 {
    assert!(store.bury(&letter(seq, reason, of)).await.expect("kept"), "it is new");
    store.letters(&LetterFilter::default(), 1).await.expect("answered")[0].id
}

fn ids(letters: &[Letter]) -> Vec<i64> {
    letters.iter().map(|letter| letter.id).collect()
}

async fn letters_are_listed_newest_first_and_can_be_told_apart(db: &dyn Fixture) {
    let store = db.process("a").await;
    let first = bury(&*store, 9, "poison", Some("j1")).await;
    db.let_pass(Duration::from_secs(600)).await;
    let second = bury(&*store, 3, "not_json", None).await;
    let third = bury(&*store, 4, "poison", Some("j2")).await;
    assert!(!store.bury(&letter(4, "poison", None)).await.expect("answered"), "kept already");

    let any = LetterFilter::default;
    let minute = Some(Duration::from_secs(60));
    for (filter, limit, expected) in [
        (any(), 10, vec![third, second, first]),
        (any(), 2, vec![third, second]),
        (LetterFilter { below: Some(third), ..any() }, 1, vec![second]),
        (LetterFilter { reason: Some("poison".into()), ..any() }, 10, vec![third, first]),
        (LetterFilter { job_id: Some(job("j1")), ..any() }, 10, vec![first]),
        (LetterFilter { thread_id: Some(thread("t")), ..any() }, 10, vec![third, first]),
        (LetterFilter { newer_than: minute, ..any() }, 10, vec![third, second]),
        (LetterFilter { older_than: minute, ..any() }, 10, vec![first]),
        (LetterFilter { reason: Some("no \0 such".into()), ..any() }, 10, vec![]),
    ] {
        let letters = store.letters(&filter, limit).await.expect("answered");
        assert_eq!(ids(&letters), expected, "{filter:?}");
    }
    let listed = &store.letters(&any(), 1).await.expect("answered")[0];
    assert_eq!((listed.reason.as_str(), listed.error.as_str(), listed.deliveries), ("poison", "error 4", 4));
    assert_eq!((listed.job_id.clone(), listed.thread_id.clone()), (Some(job("j2")), Some(thread("t"))));
}

async fn a_letter_keeps_its_message_and_what_its_job_was(db: &dyn Fixture) {
    let store = db.process("a").await;
    // Checkpoints of the suite say that job "j" made them.
    let claim = claimed(&*store, "j", "t", 1).await;
    let last = checkpoint(None, 0, &["x"]);
    store.commit(step(&claim, None, &last)).await.expect("stored");
    let id = bury(&*store, 1, "poison", Some("j")).await;
    let error = serde_json::json!({"type": "POISON"});
    let end = Finish { state: JobState::Dead, error: Some(error.clone()), ..ended(&claim, NextJob::Take) };
    store.finish(&end).await.expect("finished");

    let whole = store.letter(id).await.expect("answered").expect("it is there");
    assert_eq!((whole.stream.as_str(), whole.stream_seq), ("AGENT_EXECUTION", 1));
    assert_eq!((&whole.payload[..], whole.subject.as_str()), (&b"payload 1"[..], "agent.execute.x"));
    assert_eq!(whole.headers, letter(1, "poison", None).headers);
    let then = &whole.detail["job"];
    assert_eq!((&then["state"], &then["attempts"]), (&"running".into(), &1.into()), "{then}");
    assert_eq!(then["checkpoint_id"], last.id.as_str());
    let now = store.job(&job("j")).await.expect("answered").expect("known");
    assert_eq!((now.state.as_str(), now.error, now.stream_seq), ("dead", Some(error), Some(1)));
    assert_eq!((now.thread_id, now.attempts, now.published), (thread("t"), 1, false));

    let id = bury(&*store, 2, "not_json", None).await;
    assert!(store.letter(id).await.expect("answered").expect("it is there").detail["job"].is_null());
    assert_eq!(store.letter(id + 1000).await.expect("answered"), None);
}

async fn a_replay_is_noted_once_and_for_every_letter_of_its_job(db: &dyn Fixture) {
    let store = db.process("a").await;
    let one = bury(&*store, 1, "poison", Some("j1")).await;
    let two = bury(&*store, 2, "poison", Some("j1")).await;
    let other = bury(&*store, 3, "poison", Some("j2")).await;
    let replay = |number| Replayed {
        id: one,
        number,
        msg_id: format!("dlq:{one}:{number}"),
        job_id: Some("j1~replay".into()),
    };
    assert!(store.mark_replayed(&replay(1)).await.expect("noted"));
    assert!(!store.mark_replayed(&replay(1)).await.expect("answered"), "somebody else was faster");
    let open = store.letters(&LetterFilter::default(), 10).await.expect("answered");
    assert_eq!(ids(&open), [other]);
    let all = LetterFilter { dealt_with: true, ..LetterFilter::default() };
    let letters = store.letters(&all, 10).await.expect("answered");
    let of = |id| letters.iter().find(|letter| letter.id == id).expect("it is kept");
    assert_eq!((of(one).replays, of(two).replays, of(other).replays), (1, 0, 0));
    assert_eq!(of(two).replay_job_id.as_deref(), Some("j1~replay"));
    assert!(of(two).replayed_at.is_some() && of(other).replayed_at.is_none());
    assert!(store.mark_replayed(&replay(2)).await.expect("noted"), "once more, on purpose");
}

async fn a_discarded_letter_is_kept_with_its_mark(db: &dyn Fixture) {
    let store = db.process("a").await;
    let one = bury(&*store, 1, "not_json", None).await;
    let two = bury(&*store, 2, "not_json", None).await;
    assert_eq!(store.discard(&[one, one + 1000]).await.expect("noted"), 1);
    assert_eq!(store.discard(&[one]).await.expect("answered"), 0, "it is discarded");
    let open = store.letters(&LetterFilter::default(), 10).await.expect("answered");
    assert_eq!(ids(&open), [two]);
    let kept = store.letter(one).await.expect("answered").expect("it is kept");
    assert!(kept.letter.discarded_at.is_some());
    assert_eq!(&kept.payload[..], b"payload 1");
}

async fn a_job_leaves_a_trail_on_its_thread(db: &dyn Fixture) {
    let store = db.process("a").await;
    let trail = |id| {
        let store = store.clone();
        async move { store.trail(&thread("t"), &job(id)).await.expect("answered") }
    };
    assert_eq!(trail("j").await, Trail::default());
    let claim = claimed(&*store, "j", "t", 1).await;
    let (first, second) = (checkpoint(None, 0, &["x"]), checkpoint(None, 1, &["y"]));
    store.commit(step(&claim, None, &first)).await.expect("stored");
    assert_eq!(trail("j").await, Trail { last: Some(first.id.clone()), newest: Some(first.id.clone()) });
    let mut other = step(&claim, Some(&first.id), &second);
    for put in &mut other.puts {
        put.metadata.extra.insert("job_id".into(), "other".into());
    }
    store.commit(other).await.expect("stored");
    assert_eq!(trail("j").await, Trail { last: Some(first.id), newest: Some(second.id.clone()) });
    assert_eq!(trail("nobody").await, Trail { last: None, newest: Some(second.id) });
}

async fn the_overview_names_what_is_wrong(db: &dyn Fixture) {
    let (dead, living) = (db.process("a").await, db.process("b").await);
    let look = || async { living.overview(&GRACE).await.expect("answered") };
    claimed(&*dead, "dead", "t1", 1).await;
    let released = claimed(&*dead, "released", "t2", 2).await;
    dead.release(&released).await.expect("released");
    let ended_job = claimed(&*dead, "ended", "t3", 3).await;
    dead.finish(&ended(&ended_job, NextJob::Take)).await.expect("finished");
    bury(&*dead, 1, "not_json", None).await;
    let healthy = look().await;
    assert_eq!((healthy.jobs_running, healthy.jobs_queued, healthy.threads_owned), (2, 0, 1));
    for found in [&healthy.dead_leases, &healthy.stuck_threads, &healthy.unpublished, &healthy.suspects] {
        assert_eq!(found.count, 0, "{healthy:?}");
    }

    db.let_pass(Duration::from_secs(620)).await;
    let suspect = living.adopt(&thread("t2"), false).await.expect("answered");
    assert!(matches!(suspect, Some(Verdict::Run(_))), "{suspect:?}");
    let mut short = offer("late", "t2", 4);
    short.record.timeout = Duration::ZERO;
    assert!(matches!(living.accept(&short).await, Ok(Verdict::Parked { .. })));
    let cancel = Cancel { kind: CancelKind::Cancel, by: "x".into(), reason: None };
    living.wish("late", Target::Job, &cancel).await.expect("noted");
    let sick = look().await;
    assert_eq!((sick.dead_leases.count, &sick.dead_leases.first), (1, &vec!["t1".to_owned()]));
    assert!((15.0..30.0).contains(&sick.dead_leases.oldest_seconds) || sick.version == "memory", "{sick:?}");
    assert_eq!((sick.unpublished.count, &sick.unpublished.first), (1, &vec!["ended".to_owned()]));
    assert_eq!((sick.stuck_threads.count, sick.threads_owned, sick.jobs_to_cancel), (0, 1, 1));
    assert_eq!(sick.dead_letters, [("not_json".to_owned(), 1)].into());

    assert_eq!(living.free_dead(GRACE.lease, 10).await.expect("freed"), [thread("t1")]);
    db.let_pass(Duration::from_secs(61)).await;
    let freed = look().await;
    assert_eq!((freed.stuck_threads.count, &freed.stuck_threads.first), (1, &vec!["t1".to_owned()]));
    assert_eq!((freed.suspects.count, &freed.suspects.first), (1, &vec!["dead".to_owned()]));
    assert_eq!((freed.overdue_jobs.count, &freed.overdue_jobs.first), (1, &vec!["late".to_owned()]));
}

async fn a_waiting_job_knows_where_its_message_or_its_copy_stands(db: &dyn Fixture) {
    let store = db.process("a").await;
    let claim = claimed(&*store, "j1", "t", 7).await;
    let age = Duration::from_secs(15);
    db.let_pass(Duration::from_secs(16)).await;
    assert!(store.waiting(age, 10).await.expect("answered").is_empty(), "somebody runs it");
    store.release(&claim).await.expect("released");
    let seen = || async {
        let waiting = store.waiting(age, 10).await.expect("answered");
        waiting.iter().map(|job| (job.job_id.to_string(), job.message_seq, job.is_copied)).collect::<Vec<_>>()
    };
    assert_eq!(seen().await, [("j1".to_owned(), Some(7), false)]);
    store.copied(&job("j1"), 99).await.expect("noted");
    assert_eq!(seen().await, [("j1".to_owned(), Some(99), true)]);
    // Its place in the order of the thread is the old one.
    assert_eq!(store.job(&job("j1")).await.expect("answered").expect("known").stream_seq, Some(7));
    claimed(&*store, "j2", "t2", 8).await;
    assert_eq!(seen().await.len(), 1);
}

async fn only_threads_of_the_dead_are_freed_and_their_jobs_are_charged(db: &dyn Fixture) {
    let (dead, living) = (db.process("a").await, db.process("b").await);
    let crashes = || async { living.job(&job("j1")).await.expect("answered").expect("known").crashes };
    let grace = Duration::from_secs(10);
    claimed(&*dead, "j1", "t1", 1).await;
    assert!(living.free_dead(grace, 10).await.expect("answered").is_empty(), "its lease stands");
    db.expire_leases().await;
    db.let_pass(Duration::from_secs(3)).await;
    assert!(living.free_dead(grace, 10).await.expect("answered").is_empty(), "it may only be slow");
    db.let_pass(Duration::from_secs(15)).await;
    let kept = claimed(&*living, "j2", "t2", 2).await;
    assert_eq!(living.free_dead(grace, 10).await.expect("freed"), [thread("t1")]);
    assert!(living.free_dead(grace, 10).await.expect("answered").is_empty());
    assert_eq!(crashes().await, 1);
    // The next claim does not charge the same death again.
    let next = claimed(&*living, "j1", "t1", 1).await;
    assert_eq!((next.attempt, crashes().await), (2, 1));
    living.renew(&[(thread("t2"), kept.epoch)]).await.expect("answered");
    living.finish(&ended(&kept, NextJob::Leave)).await.expect("the living have lost nothing");
}

async fn what_is_old_is_removed_in_batches_and_nothing_else(db: &dyn Fixture) {
    let store = db.process("a").await;
    for (id, seq) in [("j1", 1), ("j2", 2), ("j3", 3), ("unpublished", 4)] {
        let claim = claimed(&*store, id, id, seq).await;
        store.finish(&ended(&claim, NextJob::Take)).await.expect("finished");
        if id != "unpublished" {
            store.mark_published(&job(id)).await.expect("marked");
        }
    }
    let open = claimed(&*store, "open", "open", 5).await;
    bury(&*store, 1, "poison", Some("j1")).await;
    let week = Retention { jobs: Some(7 * DAY), dead_letters: Some(30 * DAY) };
    assert_eq!(store.expire(&week, 10).await.expect("answered"), Expired::default());
    db.let_pass(8 * DAY).await;
    let young = claimed(&*store, "young", "young", 6).await;
    store.finish(&ended(&young, NextJob::Take)).await.expect("finished");
    store.mark_published(&job("young")).await.expect("marked");

    let never = Retention { jobs: None, dead_letters: None };
    assert_eq!(store.expire(&never, 10).await.expect("answered"), Expired::default());
    let removed = |jobs| Expired { jobs, ..Expired::default() };
    assert_eq!(store.expire(&week, 2).await.expect("removed"), removed(2));
    assert_eq!(store.expire(&week, 2).await.expect("removed"), removed(1));
    assert_eq!(store.expire(&week, 2).await.expect("answered"), removed(0));
    let all = ["j1", "j2", "j3", "unpublished", "open", "young"].map(job);
    let known = store.known(&all).await.expect("answered");
    let mut known: Vec<_> = known.iter().map(|known| known.job_id.as_str()).collect();
    known.sort_unstable();
    assert_eq!(known, ["open", "unpublished", "young"]);
    store.release(&open).await.expect("its thread is still there");

    db.let_pass(23 * DAY).await;
    assert_eq!(store.expire(&week, 10).await.expect("removed").dead_letters, 1);
    assert!(store.letters(&LetterFilter::default(), 10).await.expect("answered").is_empty());
    // A job that nobody remembers may come again.
    claimed(&*store, "j1", "j1", 9).await;
}

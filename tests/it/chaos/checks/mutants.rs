//! Each check notices what it is for: a history that keeps every promise, and one change per way to break one.

use std::time::Duration;

use serde_json::json;

use super::{ALL, all};
use crate::chaos::counter::Call;
use crate::chaos::history::{
    BuriedRow, CheckpointRow, Event, History, JobRow, Left, Letter, Published, PythonThread, ThreadRow,
};
use crate::chaos::jobs::{Asked, Durability, Expected, Kind};
use crate::chaos::nemesis::Happened;
use crate::chaos::plan::{Blow, Server, What};

/// Two turns of a conversation, the second with two attempts; a tally; poison; a message that is not JSON.
fn fine() -> History {
    let mut history = History::default();
    job(&mut history, ("a", "talk-1"), Kind::Talk, Expected::Completed(json!("heard a")));
    job(&mut history, ("b", "talk-1"), Kind::Talk, Expected::Completed(json!("heard b")));
    job(&mut history, ("c", "c"), Kind::Tally, Expected::Completed(json!("tallied c")));
    job(&mut history, ("p", "p"), Kind::Poison, Expected::Failed("POISON", "poison"));
    history.asked.push(asked(("u", "u"), Kind::Unreadable, Expected::Letter(&["not_json"])));
    for (stream_seq, payload, reason) in [(4, "p", "poison"), (5, "u is no JSON", "not_json")] {
        history.letters.push(Letter { reason: reason.into(), payload: payload.into() });
        history.buried.push(BuriedRow {
            stream_seq,
            job_id: None,
            reason: reason.into(),
            payload: payload.into(),
        });
    }
    line(&mut history, "talk-1", &[("a", 1), ("a", 1), ("b", 2), ("b", 3)]);
    line(&mut history, "c", &[("c", 4), ("c", 4)]);
    claim(&mut history, ("talk-1", "a"), (1, 1), Some("completed"));
    claim(&mut history, ("talk-1", "b"), (2, 1), None);
    claim(&mut history, ("talk-1", "b"), (3, 2), Some("completed"));
    claim(&mut history, ("c", "c"), (4, 1), Some("completed"));
    claim(&mut history, ("p", "p"), (5, 1), Some("failed"));
    history.jobs[1].attempt = 2;
    history.asked[1].polite = true;
    history.asked[2].effects = vec!["effect 0-0".into()];
    history.calls = vec![call("c", "model tally c 1 1 #0", None), call("c", "effect 0-0", Some("k"))];
    let said = |class: &str, text: &str| (class.to_owned(), text.to_owned());
    let talk = vec![
        said("HumanMessage", "turn a"),
        said("AIMessage", "heard a"),
        said("HumanMessage", "turn b"),
        said("AIMessage", "heard b"),
    ];
    history.python = vec![
        PythonThread { thread_id: "talk-1".into(), error: None, messages: talk },
        PythonThread { thread_id: "c".into(), ..PythonThread::default() },
    ];
    history.in_flight = vec![("pod-0".into(), 0.0)];
    history
}

fn asked((job_id, thread_id): (&str, &str), kind: Kind, expected: Expected) -> Asked {
    Asked {
        job_id: job_id.into(),
        thread_id: thread_id.into(),
        kind,
        durability: Durability::Sync,
        expected,
        polite: false,
        by_http: false,
        or: &[],
        family: job_id.into(),
        cancel_after: None,
        effects: Vec::new(),
        irreversible: false,
        payload: String::new(),
    }
}

fn job(history: &mut History, (job_id, thread_id): (&str, &str), kind: Kind, expected: Expected) {
    let (status, data) = match &expected {
        Expected::Completed(output) => ("completed", json!({ "result": { "output": output } })),
        Expected::Failed(code, _) => ("failed", json!({ "error": { "type": code } })),
        Expected::Letter(_) => unreachable!("a letter has no row"),
    };
    let number = history.jobs.len() as u64 + 1;
    let id = format!("{job_id}:result");
    let subject = format!("agent.status.{status}");
    history.asked.push(asked((job_id, thread_id), kind, expected));
    history.results.push(Published {
        stream_seq: number,
        subject: subject.clone(),
        message_id: id.clone(),
        digest: format!("digest of {job_id}"),
        event: json!({ "id": id, "subject": job_id, "data": data }),
    });
    history.jobs.push(JobRow {
        job_id: job_id.into(),
        thread_id: thread_id.into(),
        stream_seq: number as i64,
        state: if kind == Kind::Poison { "dead" } else { "succeeded" }.into(),
        attempt: 1,
        accepted_ms: 10_000.0 * number as f64,
        finished_ms: Some(10_000.0 * number as f64 + 5000.0),
        event_id: Some(id),
        subject: Some(subject),
        digest: Some(format!("digest of {job_id}")),
        published: true,
    });
}

fn line(history: &mut History, thread_id: &str, jobs: &[(&str, i64)]) {
    let mut parent: Option<String> = None;
    for (at, (job_id, epoch)) in jobs.iter().enumerate() {
        let id = format!("id-{at}");
        history.checkpoints.push(CheckpointRow {
            thread_id: thread_id.into(),
            ns: String::new(),
            id: id.clone(),
            parent: parent.replace(id),
            step: at as i64 - 1,
            job_id: Some((*job_id).into()),
            epoch: Some(*epoch),
            attempt: Some(1),
        });
    }
    history.threads.push(ThreadRow { thread_id: thread_id.into(), owner: None, job_id: None, head: parent });
}

fn claim(
    history: &mut History,
    (thread_id, job_id): (&str, &str),
    (epoch, attempt): (u64, u64),
    end: Option<&str>,
) {
    let mut events = vec!["on_attempt_start", "on_state_update"];
    events.extend(end.map(|_| "end"));
    for (at, event_type) in events.into_iter().enumerate() {
        history.events.push(Event {
            thread_id: thread_id.into(),
            epoch,
            seq: at as u64 + 1,
            job_id: job_id.into(),
            attempt,
            event_type: event_type.into(),
            status: end.filter(|_| event_type == "end").map(str::to_owned),
            at_ms: 10_000.0 * epoch as f64 + at as f64,
        });
        if event_type == "end" {
            let result = history.results.iter_mut().find(|result| result.event["subject"] == job_id);
            result.expect("it has ended").event["data"]["last_event_id"] =
                json!(format!("{epoch}-{}", at + 1));
        }
    }
}

fn call(job_id: &str, label: &str, key: Option<&str>) -> Call {
    Call { at: Duration::ZERO, job_id: job_id.into(), label: label.into(), key: key.map(str::to_owned) }
}

/// The events of a job, with their places.
fn place(history: &History, job_id: &str, event_type: &str) -> usize {
    let found = |event: &Event| event.job_id == job_id && event.event_type == event_type;
    history.events.iter().position(found).expect("it is there")
}

/// A change that breaks a promise: the promise, and how.
type Mutant = (&'static str, fn(&mut History));

const MUTANTS: &[Mutant] = &[
    ("every accepted job has exactly one result", |h| drop(h.results.remove(0))),
    ("every accepted job has exactly one result", |h| h.results.extend(h.results[..1].to_vec())),
    ("every accepted job has exactly one result", |h| h.results[0].event["subject"] = json!("stranger")),
    ("every accepted job has exactly one result", |h| h.results[0].message_id = "other".into()),
    ("the results stream and Postgres agree", |h| h.results[0].digest = "other".into()),
    ("the results stream and Postgres agree", |h| h.results[0].subject = "agent.status.failed".into()),
    ("the results stream and Postgres agree", |h| h.jobs[0].published = false),
    ("the results stream and Postgres agree", |h| h.jobs[0].state = "running".into()),
    ("the results stream and Postgres agree", |h| drop(h.jobs.remove(0))),
    ("every job ends as it must", |h| h.results[0].event["data"]["result"]["output"] = json!("heard b")),
    ("every job ends as it must", |h| h.results[0].subject = "agent.status.failed".into()),
    ("every job ends as it must", |h| h.results[3].event["data"]["error"]["type"] = json!("INTERNAL")),
    ("every job ends as it must", |h| h.results[2].subject = "agent.status.interrupted".into()),
    ("dead letters are those that must be", |h| h.jobs[0].state = "dead".into()),
    ("dead letters are those that must be", |h| h.jobs[3].state = "failed".into()),
    ("dead letters are those that must be", |h| drop(h.letters.pop())),
    ("dead letters are those that must be", |h| h.letters.extend(h.letters[..1].to_vec())),
    ("dead letters are those that must be", |h| drop(h.buried.remove(0))),
    ("dead letters are those that must be", |h| h.letters[0].reason = "not_json".into()),
    ("a thread's history is one line", |h| h.checkpoints[2].parent = Some("id-0".into())),
    ("a thread's history is one line", |h| h.checkpoints[1].parent = None),
    ("a thread's history is one line", |h| drop(h.checkpoints.remove(1))),
    ("a thread's history is one line", |h| h.threads[0].head = Some("id-2".into())),
    ("nothing is written under a fenced epoch", |h| h.checkpoints[3].epoch = Some(1)),
    ("nothing is written under a fenced epoch", |h| h.checkpoints[2].epoch = Some(1)),
    ("nothing is written under a fenced epoch", |h| h.checkpoints[0].epoch = None),
    ("no superstep is committed twice", |h| h.checkpoints[3].step = h.checkpoints[2].step),
    ("jobs of a thread do not interleave", |h| h.checkpoints[3].job_id = Some("a".into())),
    ("jobs of a thread keep their order", |h| {
        h.jobs[0].stream_seq = 2;
        h.jobs[1].stream_seq = 1;
        h.jobs[0].accepted_ms = 40_000.0;
    }),
    ("jobs of a thread keep their order", |h| {
        h.asked.swap(0, 1);
        h.asked[1].polite = true;
    }),
    ("Python reads every thread", |h| h.python[1].error = Some("half a message".into())),
    ("Python reads every thread", |h| drop(h.python.pop())),
    ("conversations are whole", |h| h.python[0].messages.swap(1, 2)),
    ("conversations are whole", |h| drop(h.python[0].messages.remove(0))),
    ("conversations are whole", |h| {
        let last = h.python[0].messages[3].clone();
        h.python[0].messages.push(last);
    }),
    ("finished model calls are not repeated", |h| h.calls.extend(h.calls[..1].to_vec())),
    ("finished model calls are not repeated", |h| {
        // In two attempts one question may be repeated, but not two.
        h.jobs[2].attempt = 2;
        h.calls.push(call("c", "model tally c 1 1 #1", None));
        h.calls.extend(h.calls.clone());
    }),
    ("effects are there and keep their keys", |h| drop(h.calls.pop())),
    ("effects are there and keep their keys", |h| h.calls.extend(h.calls[1..].to_vec())),
    ("effects are there and keep their keys", |h| {
        h.jobs[2].attempt = 2;
        h.calls.push(call("c", "effect 0-0", Some("another")));
    }),
    ("effects are there and keep their keys", |h| {
        h.asked[2].irreversible = true;
        h.jobs[2].attempt = 2;
        h.calls.extend(h.calls[1..].to_vec());
    }),
    ("effects are there and keep their keys", |h| h.calls[1].key = Some(String::new())),
    ("effects are there and keep their keys", |h| h.calls.push(call("c", "effect 0-1", Some("k")))),
    ("a stream has one end per job, and it is last", |h| {
        let end = place(h, "a", "end");
        h.events.insert(end + 1, Event { seq: 4, ..h.events[end].clone() });
    }),
    ("a stream has one end per job, and it is last", |h| {
        let end = place(h, "a", "end");
        h.events
            .insert(end + 1, Event { seq: 4, event_type: "on_llm_stream".into(), ..h.events[end].clone() });
    }),
    ("a stream has one end per job, and it is last", |h| h.events.swap(0, 1)),
    ("a stream has one end per job, and it is last", |h| {
        let end = place(h, "a", "end");
        h.events[end].status = Some("failed".into());
    }),
    ("a stream has one end per job, and it is last", |h| {
        h.results[0].event["data"]["last_event_id"] = json!("1-4");
    }),
    ("every job ends in its stream", |h| drop(h.events.remove(place(h, "a", "end")))),
    ("holes in a stream have a reason", |h| drop(h.events.remove(place(h, "a", "on_state_update")))),
    ("holes in a stream have a reason", |h| drop(h.events.remove(place(h, "c", "on_attempt_start")))),
    ("holes in a stream have a reason", |h| {
        let start = place(h, "c", "on_attempt_start");
        h.events[start].event_type = "on_llm_stream".into();
    }),
    ("nothing is left behind", |h| h.threads[0].owner = Some("pod-0/1".into())),
    ("nothing is left behind", |h| h.backlog.pending = 1),
    ("nothing is left behind", |h| {
        h.backlog.stored = 1;
        h.backlog.left = vec![Left { stream_seq: 9, job_id: Some("nobody".into()) }];
    }),
    ("nothing is left behind", |h| {
        h.backlog.stored = 1;
        h.backlog.left = vec![Left { stream_seq: 1, job_id: Some("a".into()) }];
        h.backlog.waited = true;
    }),
    ("nothing is left behind", |h| h.backlog.ack_pending = 1),
    ("nothing is left behind", |h| h.in_flight[0].1 = 1.0),
    ("processes do as they are told", |h| h.trouble.push("pod-0 ended by itself".into())),
];

#[test]
fn a_run_without_a_broken_promise_passes() {
    assert_eq!(all(&fine()), []);
}

#[test]
fn every_mutant_is_caught_by_the_check_it_is_for() {
    for (number, (promise, mutate)) in MUTANTS.iter().enumerate() {
        let mut history = fine();
        mutate(&mut history);
        let broken: Vec<&str> = all(&history).iter().map(|violation| violation.promise).collect();
        assert!(broken.contains(promise), "mutant {number} should break {promise:?}, but broke {broken:?}");
    }
}

#[test]
fn every_check_has_a_mutant() {
    for check in ALL {
        let caught = |(_, mutate): &Mutant| {
            let mut history = fine();
            mutate(&mut history);
            !check(&history).is_empty()
        };
        assert!(MUTANTS.iter().any(caught), "a check that nothing breaks checks nothing");
    }
}

#[test]
fn what_a_fault_explains_is_no_violation() {
    let happened = |what: What, seconds: u64| Happened {
        number: Some(1),
        what,
        text: String::new(),
        from: Duration::from_secs(seconds),
        to: Some(Duration::from_secs(seconds + 1)),
    };
    let broken = |what: What, seconds: u64, mutate: fn(&mut History)| {
        let mut history = fine();
        mutate(&mut history);
        history.happened = vec![happened(what, seconds)];
        all(&history).len()
    };
    // Job a ends after 15 s; its claim is that of 10 s.
    let unheard: fn(&mut History) = |h| drop(h.events.remove(place(h, "a", "end")));
    assert_eq!(broken(What::Member(0, Blow::Kill), 14, unheard), 0);
    assert_eq!(broken(What::Member(0, Blow::Kill), 100, unheard), 1);
    assert_eq!(broken(What::Crash(Server::Nats), 14, unheard), 1);
    // A message that the broker forgot, and nobody has had the time to find.
    let mut history = fine();
    history.backlog.stored = 2;
    let left = |stream_seq, job_id: Option<&str>| Left { stream_seq, job_id: job_id.map(str::to_owned) };
    history.backlog.left = vec![left(1, Some("a")), left(5, None)];
    assert_eq!(all(&history), []);
    // A repeat of an effect that a person has denied, and a job that ends in another way it may end.
    let mut history = fine();
    history.asked[2].irreversible = true;
    history.jobs[2].attempt = 2;
    history.calls.extend(history.calls[1..].to_vec());
    history.denied.push("k".into());
    assert_eq!(all(&history), []);
    let mut history = fine();
    history.asked[0].or = &["JOB_CANCELLED"];
    history.results[0].event["data"]["error"] = json!({ "type": "JOB_CANCELLED" });
    let subject = "agent.status.cancelled";
    history.results[0].subject = subject.into();
    history.jobs[0].subject = Some(subject.into());
    let end = place(&history, "a", "end");
    history.events[end].status = Some("cancelled".into());
    assert_eq!(all(&history), []);
    let hole: fn(&mut History) = |h| drop(h.events.remove(place(h, "a", "on_state_update")));
    assert_eq!(broken(What::Crash(Server::Redis), 10, hole), 0);
    assert_eq!(broken(What::Crash(Server::Redis), 100, hole), 1);
    assert_eq!(broken(What::Member(0, Blow::Kill), 10, hole), 0, "its end was told by others");
    let hole: fn(&mut History) = |h| drop(h.events.remove(place(h, "b", "on_attempt_start")));
    assert_eq!(broken(What::Member(0, Blow::Kill), 20, hole), 1);
}

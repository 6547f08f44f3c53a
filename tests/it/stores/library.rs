//! Stored definitions and whole threads.

use std::collections::BTreeSet;

use agent_executor::{
    pregel::{ERROR, INTERRUPT, SENDS},
    store::{
        AgentFilter, AgentRef, AgentView, Barred, Deadline, EffectRow, EffectState, ExpiredThreads, Leave,
        NewAgent, OldThreads, PutAgent, ThreadFilter, ThreadView,
    },
};

use super::*;

suite!(
    a_version_of_a_name_is_stored_once_and_never_replaced,
    definitions_are_found_by_name_version_and_hash,
    a_job_keeps_the_definition_it_was_given_first,
    threads_are_listed_with_what_they_do,
    an_operator_writes_under_a_claim_and_keeps_jobs_waiting,
    a_thread_that_a_job_goes_on_with_is_left_alone,
    a_deleted_thread_leaves_nothing_and_can_start_again,
    a_copied_thread_has_what_hangs_on_its_checkpoints,
    threads_are_measured_the_largest_first,
    silent_threads_are_removed_or_thinned_out_and_others_are_not,
    thinning_keeps_the_graphs_that_the_newest_checkpoint_has_started,
    a_thread_about_to_run_sends_waits,
    a_deleted_thread_has_no_deadlines,
);

fn agent(name: &str, version: &str, hash: &str) -> NewAgent {
    NewAgent {
        name: name.into(),
        version: version.into(),
        hash: hash.into(),
        definition: format!("{name} {hash}").into_bytes().into(),
    }
}

fn named(name: &str, version: Option<&str>) -> AgentRef {
    AgentRef::Named { name: name.into(), version: version.map(str::to_owned) }
}

async fn put_agent(store: &dyn Store, name: &str, version: &str, hash: &str) -> PutAgent {
    store.put_agent(&agent(name, version, hash)).await.expect("answered")
}

async fn a_version_of_a_name_is_stored_once_and_never_replaced(db: &dyn Fixture) {
    let store = db.process("a").await;
    assert_eq!(put_agent(&*store, "a", "1", "x").await, PutAgent::New);
    assert_eq!(put_agent(&*store, "a", "1", "x").await, PutAgent::Known);
    assert_eq!(put_agent(&*store, "a", "1", "y").await, PutAgent::Taken("x".into()));
    let (view, bytes) = store.agent(&named("a", Some("1"))).await.expect("answered").expect("stored");
    assert_eq!((view.hash.as_str(), &bytes[..], view.bytes), ("x", &b"a x"[..], 3));
}

async fn definitions_are_found_by_name_version_and_hash(db: &dyn Fixture) {
    let store = db.process("a").await;
    for (name, version, hash) in [("b", "2", "x"), ("b", "1", "y"), ("a", "1", "z"), ("B", "1", "x")] {
        assert_eq!(put_agent(&*store, name, version, hash).await, PutAgent::New);
    }
    let found = async |wanted: AgentRef| {
        let found = store.agent(&wanted).await.expect("answered");
        found.map(|(view, _)| format!("{}@{} {}", view.name, view.version, view.versions))
    };
    assert_eq!(found(named("b", None)).await.as_deref(), Some("b@1 2"), "what was put last is the newest");
    assert_eq!(found(named("b", Some("2"))).await.as_deref(), Some("b@2 2"));
    assert_eq!(found(named("b", Some("3"))).await, None);
    assert_eq!(found(AgentRef::Hash("z".into())).await.as_deref(), Some("a@1 1"));
    assert_eq!(found(AgentRef::Hash("no \0 hash".into())).await, None);

    let list = async |filter: AgentFilter, limit| -> Vec<String> {
        let views = store.agents(&filter, limit).await.expect("answered");
        views.iter().map(|AgentView { name, version, .. }| format!("{name}@{version}")).collect()
    };
    let any = AgentFilter::default;
    assert_eq!(list(any(), 10).await, ["B@1", "a@1", "b@1"]);
    assert_eq!(list(any(), 2).await, ["B@1", "a@1"]);
    assert_eq!(list(AgentFilter { after: "a".into(), ..any() }, 10).await, ["b@1"]);
    assert_eq!(list(AgentFilter { prefix: "b".into(), ..any() }, 10).await, ["b@1"]);
    assert_eq!(list(AgentFilter { name: Some("b".into()), ..any() }, 10).await, ["b@1", "b@2"]);
}

async fn a_job_keeps_the_definition_it_was_given_first(db: &dyn Fixture) {
    let store = db.process("a").await;
    put_agent(&*store, "a", "1", "x").await;
    claimed(&*store, "j1", "t1", 1).await;
    let pin = async |id: &str, wanted: &AgentRef| store.pin_agent(&job(id), wanted).await.expect("answered");
    assert_eq!(pin("j1", &named("b", None)).await, None);
    assert_eq!(pin("j1", &named("a", None)).await.as_deref(), Some("x"));
    put_agent(&*store, "a", "2", "y").await;
    assert_eq!(pin("j1", &named("a", None)).await.as_deref(), Some("x"), "a later attempt");
    claimed(&*store, "j2", "t2", 2).await;
    assert_eq!(pin("j2", &named("a", None)).await.as_deref(), Some("y"), "a later job");
    assert_eq!(pin("j2", &AgentRef::Hash("x".into())).await.as_deref(), Some("x"));
    assert_eq!(pin("never heard of", &named("a", None)).await, None);
}

/// Ends the claimed job, with its thread free.
async fn end(store: &dyn Store, claim: &Claim) {
    store.finish(&ended(claim, NextJob::Leave)).await.expect("ended");
    store.mark_published(&claim.job_id).await.expect("marked");
}

/// A thread of one ended job with `steps` checkpoints, the last of which leads nowhere.
async fn grown(store: &dyn Store, id: &str, steps: i64) -> Vec<Checkpoint> {
    let claim = claimed(store, &format!("job of {id}"), id, 1).await;
    let mut all: Vec<Checkpoint> = Vec::new();
    for number in 0..steps {
        let from = all.last().map(|last| last.id.clone());
        let mut next = checkpoint(from.as_ref(), number, &["some", "text"]);
        next.values.retain(|name, _| number + 1 < steps || !name.starts_with("branch:"));
        store.commit(step(&claim, from.as_ref(), &next)).await.expect("committed");
        all.push(next);
    }
    end(store, &claim).await;
    all
}

async fn views(store: &dyn Store, filter: ThreadFilter) -> Vec<ThreadView> {
    store.threads(&filter, 100).await.expect("answered")
}

async fn threads_are_listed_with_what_they_do(db: &dyn Fixture) {
    let store = db.process("a").await;
    grown(&*store, "t1", 3).await;
    let claim = claimed(&*store, "asks", "t2", 2).await;
    let asked = checkpoint(None, 0, &["x"]);
    store.commit(step(&claim, None, &asked)).await.expect("committed");
    let any = ThreadFilter::default;
    let view = &views(&*store, ThreadFilter { id: Some(thread("t2")), ..any() }).await[0];
    assert_eq!(
        (view.owner.as_deref(), view.open_jobs, view.waits),
        (Some("a"), 1, true),
        "it goes on to a node"
    );
    store
        .commit(writes(&claim, &asked.id, vec![write(1, "p", -1, ERROR, "broken".into())]))
        .await
        .expect("committed");
    assert!(
        !views(&*store, ThreadFilter { id: Some(thread("t2")), ..any() }).await[0].waits,
        "it has failed"
    );
    store
        .commit(writes(&claim, &asked.id, vec![write(2, "p", -3, INTERRUPT, "how?".into())]))
        .await
        .expect("committed");
    end(&*store, &claim).await;
    store.accept(&offer("queued", "t2", 3)).await.expect("accepted");
    db.expire_leases().await;

    let all = views(&*store, any()).await;
    let lines: Vec<_> = all
        .iter()
        .map(|view| {
            format!(
                "{} {} {:?} {} {}",
                view.thread_id, view.checkpoints, view.step, view.waits, view.open_jobs
            )
        })
        .collect();
    assert_eq!(lines, ["t1 3 Some(0) false 0", "t2 1 Some(0) true 1"]);
    assert_eq!((all[0].owner.clone(), all[0].job_id.as_deref()), (None, Some("j")));
    assert_eq!(views(&*store, ThreadFilter { after: "t1".into(), ..any() }).await[..], all[1..]);
    assert_eq!(views(&*store, ThreadFilter { prefix: "t1".into(), ..any() }).await[..], all[..1]);
    assert_eq!(store.threads(&any(), 1).await.expect("answered")[..], all[..1]);
    assert_eq!(views(&*store, ThreadFilter { id: Some(thread("t3")), ..any() }).await, []);
    assert_eq!(store.graphs(&thread("t1")).await.expect("answered"), [Namespace::root()]);
    assert_eq!(store.graphs(&thread("t3")).await.expect("answered"), []);
}

async fn an_operator_writes_under_a_claim_and_keeps_jobs_waiting(db: &dyn Fixture) {
    let (store, other) = (db.process("a").await, db.process("b").await);
    let last = grown(&*store, "t", 2).await.pop().expect("it has some");
    let held = store.seize(&thread("t")).await.expect("answered").expect("free");
    assert_eq!(held.head.as_ref(), Some(&last.id));
    let twice = other.seize(&thread("t")).await.expect("answered");
    assert_eq!(twice, Err(Barred::Owned(None)));
    let verdict = other.accept(&offer("j2", "t", 2)).await.expect("accepted");
    assert!(matches!(verdict, Verdict::Parked { .. }), "{verdict:?}");

    let next = checkpoint(Some(&last.id), 2, &["by hand"]);
    let advance = Some(Advance { from: Some(last.id.clone()), to: next.id.clone() });
    let puts = vec![put(&Namespace::root(), Some(&last.id), &next, 2)];
    let commit = Commit { advance, puts, ..Commit::empty(held.thread_id.clone(), held.epoch) };
    store.commit(commit.clone()).await.expect("committed");
    is_fenced(other.commit(commit.clone()).await, held.epoch);
    store.let_go(&held).await.expect("freed");
    let claim = claimed(&*other, "j2", "t", 2).await;
    assert_eq!(claim.head, Some(next.id));
    is_fenced(store.commit(commit).await, held.epoch);
}

async fn a_thread_that_a_job_goes_on_with_is_left_alone(db: &dyn Fixture) {
    let store = db.process("a").await;
    let unknown = thread("never seen");
    assert_eq!(store.seize(&unknown).await.expect("answered"), Err(Barred::Unknown));
    assert_eq!(store.delete_thread(&unknown).await.expect("answered"), Err(Barred::Unknown));
    assert_eq!(views(&*store, ThreadFilter::default()).await, []);

    let id = thread("t");
    let first = grown(&*store, "t", 1).await.remove(0);
    let claim = claimed(&*store, "runs", "t", 2).await;
    let next = checkpoint(Some(&first.id), 1, &[]);
    store.commit(step(&claim, Some(&first.id), &next)).await.expect("committed");
    let owned = Barred::Owned(Some("runs".into()));
    assert_eq!(store.seize(&id).await.expect("answered"), Err(owned.clone()));
    assert_eq!(store.delete_thread(&id).await.expect("answered"), Err(owned.clone()));
    assert_eq!(store.copy_thread(&id, &next.id, &thread("copy")).await.expect("answered"), Err(owned));
    let older = store.copy_thread(&id, &first.id, &thread("older")).await.expect("answered");
    assert_eq!(older, Ok(1), "nobody is at work on an older checkpoint");

    // Its owner has died; somebody will go on from the last checkpoint.
    db.expire_leases().await;
    let open = Barred::Open(Some("runs".into()));
    assert_eq!(store.seize(&id).await.expect("answered"), Err(open.clone()));
    assert_eq!(store.delete_thread(&id).await.expect("answered"), Err(open));
    let claim = claimed(&*store, "runs", "t", 2).await;
    end(&*store, &claim).await;
    assert!(store.seize(&id).await.expect("answered").is_ok());
}

async fn a_deleted_thread_leaves_nothing_and_can_start_again(db: &dyn Fixture) {
    let store = db.process("a").await;
    grown(&*store, "t", 3).await;
    grown(&*store, "other", 2).await;
    assert_eq!(store.delete_thread(&thread("t")).await.expect("answered"), Ok(3));
    assert_eq!(store.history(&thread("t"), &Namespace::root(), 9).await.expect("answered"), []);
    let sizes = store.sizes(Some(&thread("t")), 1).await.expect("answered");
    assert_eq!(sizes[0].tables.keys().collect::<Vec<_>>(), ["executor_job"], "the result stays");
    assert_eq!(views(&*store, ThreadFilter::default()).await.len(), 1);
    let claim = claimed(&*store, "again", "t", 2).await;
    assert_eq!(claim.head, None);
    let first = checkpoint(None, 0, &["new"]);
    store.commit(step(&claim, None, &first)).await.expect("committed");
}

fn effect(claim: &Claim, call_id: &str) -> EffectRow {
    EffectRow {
        ns: Namespace::root(),
        task_id: TaskId::from_digest(7),
        call_id: call_id.into(),
        tool: "taxi".into(),
        effect: agent_executor::graph::Effect::Irreversible,
        idempotency_key: "k".into(),
        state: EffectState::Unknown,
        epoch: claim.epoch,
        asked: 0,
        answer: None,
    }
}

async fn a_copied_thread_has_what_hangs_on_its_checkpoints(db: &dyn Fixture) {
    let store = db.process("a").await;
    let (root, nested) = (Namespace::root(), Namespace::from_stored("main:7"));
    let claim = claimed(&*store, "j", "t", 1).await;
    let mut all: Vec<Checkpoint> = Vec::new();
    for number in 0..3 {
        let from = all.last().map(|last| last.id.clone());
        let next = checkpoint(from.as_ref(), number, &["a"]);
        store.commit(step(&claim, from.as_ref(), &next)).await.expect("committed");
        let mut inner = put(&nested, None, &checkpoint(from.as_ref(), number, &["inner"]), number);
        inner.metadata.parents = [(String::new(), next.id.clone())].into();
        let pending = write(7, "p", 0, "items", "w".into());
        let on = TaskWrites { ns: root.clone(), checkpoint_id: next.id.clone(), writes: vec![pending] };
        let empty = Commit::empty(claim.thread_id.clone(), claim.epoch);
        let effects = vec![effect(&claim, "call")];
        store
            .commit(Commit { puts: vec![inner], writes: vec![on], effects, ..empty })
            .await
            .expect("committed");
        all.push(next);
    }
    end(&*store, &claim).await;
    let (from, to) = (thread("t"), thread("copy"));
    assert_eq!(
        store.copy_thread(&from, &all[1].id, &to).await.expect("answered"),
        Ok(4),
        "two, and one in each"
    );
    for ns in [&root, &nested] {
        let copied = store.history(&to, ns, 9).await.expect("answered");
        let original: Vec<_> =
            store.history(&from, ns, 9).await.expect("answered").into_iter().skip(1).collect();
        assert_eq!(copied, original);
        let ids: Vec<_> = copied.iter().map(|saved| saved.checkpoint.id.clone()).collect();
        assert_eq!(store.checkpoint_ids(&to, ns).await.expect("answered"), ids);
    }
    let task_id = TaskId::from_digest(7);
    assert_eq!(store.effects(&to, &root, &task_id).await.expect("answered").len(), 1);
    let again = store.copy_thread(&from, &all[1].id, &to).await.expect("answered");
    assert_eq!(again, Err(Barred::Exists));
    let nowhere = store.copy_thread(&to, &all[2].id, &thread("copy 2")).await.expect("answered");
    assert_eq!(nowhere, Err(Barred::Unknown));
    assert_eq!(claimed(&*store, "goes on", "copy", 1).await.head, Some(all[1].id.clone()));
}

async fn threads_are_measured_the_largest_first(db: &dyn Fixture) {
    let store = db.process("a").await;
    grown(&*store, "small", 1).await;
    grown(&*store, "large", 9).await;
    let sizes = store.sizes(None, 10).await.expect("answered");
    let ids: Vec<_> = sizes.iter().map(|size| size.thread_id.as_str()).collect();
    assert_eq!(ids, ["large", "small"]);
    for size in &sizes {
        assert_eq!(size.bytes, size.tables.values().sum::<u64>());
        assert!(size.tables["checkpoints"] > 0 && size.tables["checkpoint_blobs"] > 0, "{size:?}");
    }
    assert_eq!(store.sizes(None, 1).await.expect("answered")[..], sizes[..1]);
    assert_eq!(store.sizes(Some(&thread("small")), 9).await.expect("answered")[..], sizes[1..]);
}

async fn silent_threads_are_removed_or_thinned_out_and_others_are_not(db: &dyn Fixture) {
    let store = db.process("a").await;
    let now = Noon::default().now();
    let later = UnixNanos(now.0 + 3_600_000_000_000);
    let last = grown(&*store, "done 1", 3).await.pop().expect("it has some");
    grown(&*store, "done 2", 3).await;
    // One waits for an answer, one has a queued job, and one runs.
    for (id, number) in [("asks", 1), ("queued", 2), ("runs", 3)] {
        let claim = claimed(&*store, &format!("j {id}"), id, number).await;
        let mut first = checkpoint(None, 0, &["x"]);
        first.values.swap_remove("branch:to:next");
        let second = checkpoint(Some(&first.id), 1, &["x"]);
        let second = Checkpoint { values: first.values.clone(), ..second };
        store.commit(step(&claim, None, &first)).await.expect("committed");
        store.commit(step(&claim, Some(&first.id), &second)).await.expect("committed");
        if id == "asks" {
            let question = vec![write(2, "p", -3, INTERRUPT, "how?".into())];
            store.commit(writes(&claim, &second.id, question)).await.expect("committed");
        }
        if id == "queued" {
            store.accept(&offer("waits", id, 9)).await.expect("accepted");
        }
        if id != "runs" {
            end(&*store, &claim).await;
        }
    }
    let expire = async |before, leave, waiting| -> (u64, u64) {
        let old = OldThreads { before, leave, waiting };
        let (mut sum, mut after) = ((0, 0), Some(String::new()));
        while let Some(from) = after {
            let ExpiredThreads { threads, checkpoints, after: next } =
                store.expire_threads(&old, &from, 2).await.expect("answered");
            sum = (sum.0 + threads, sum.1 + checkpoints);
            after = next;
        }
        sum
    };
    assert_eq!(expire(UnixNanos(now.0 - 1_000_000_000), Leave::Nothing, true).await, (0, 0), "none is older");
    let whole = store.history(&thread("done 1"), &Namespace::root(), 1).await.expect("answered");
    assert_eq!(expire(later, Leave::Latest, false).await, (2, 4));
    assert_eq!(expire(later, Leave::Latest, false).await, (0, 0), "nothing is left to thin out");
    let thin = store.history(&thread("done 1"), &Namespace::root(), 9).await.expect("answered");
    assert_eq!(thin, whole, "the newest checkpoint has all its values");
    assert_eq!(thin[0].checkpoint.id, last.id);
    assert_eq!(expire(later, Leave::Latest, true).await, (1, 1), "the one that asks");
    assert_eq!(expire(later, Leave::Nothing, false).await, (2, 2));
    assert_eq!(expire(later, Leave::Nothing, true).await, (1, 1));
    let left: BTreeSet<_> =
        views(&*store, ThreadFilter::default()).await.into_iter().map(|view| view.thread_id).collect();
    assert_eq!(left, BTreeSet::from(["queued".to_owned(), "runs".to_owned()]));
}

async fn thinning_keeps_the_graphs_that_the_newest_checkpoint_has_started(db: &dyn Fixture) {
    let store = db.process("a").await;
    let claim = claimed(&*store, "j", "t", 1).await;
    let (old, new) = (Namespace::from_stored("main:1"), Namespace::from_stored("main:2"));
    let mut first = checkpoint(None, 0, &["x"]);
    first.values.swap_remove("branch:to:next");
    let second = Checkpoint { values: first.values.clone(), ..checkpoint(Some(&first.id), 1, &["x"]) };
    store.commit(step(&claim, None, &first)).await.expect("committed");
    store.commit(step(&claim, Some(&first.id), &second)).await.expect("committed");
    for (ns, root) in [(&old, &first), (&new, &second)] {
        let mut from = None;
        for number in 0..2 {
            let next = checkpoint(from.as_ref(), number, &["inner"]);
            let mut inner = put(ns, from.as_ref(), &next, number);
            inner.metadata.parents = [(String::new(), root.id.clone())].into();
            let empty = Commit::empty(claim.thread_id.clone(), claim.epoch);
            store.commit(Commit { puts: vec![inner], ..empty }).await.expect("committed");
            from = Some(next.id);
        }
    }
    end(&*store, &claim).await;
    let before = UnixNanos(Noon::default().now().0 + 3_600_000_000_000);
    let old_ones = OldThreads { before, leave: Leave::Latest, waiting: false };
    let whole = store.history(&thread("t"), &new, 1).await.expect("answered");
    let expired = store.expire_threads(&old_ones, "", 9).await.expect("answered");
    assert_eq!(
        (expired.threads, expired.checkpoints),
        (1, 4),
        "one root, both of the old graph, one of the new"
    );
    assert_eq!(store.history(&thread("t"), &new, 9).await.expect("answered"), whole);
    assert_eq!(store.history(&thread("t"), &old, 9).await.expect("answered"), []);
}

async fn a_thread_about_to_run_sends_waits(db: &dyn Fixture) {
    let store = db.process("a").await;
    for (number, id, sends) in [(1, "empty", vec![]), (2, "sends", vec!["one".into()])] {
        let claim = claimed(&*store, &format!("j {id}"), id, number).await;
        let mut first = checkpoint(None, 0, &["x"]);
        first.values.swap_remove("branch:to:next");
        first.values.insert(SENDS.into(), Value::list(sends));
        let version = first.versions["items"].clone();
        first.versions.insert(SENDS.into(), version);
        let mut commit = step(&claim, None, &first);
        commit.puts[0].changed.push(SENDS.into());
        store.commit(commit).await.expect("committed");
        end(&*store, &claim).await;
        let view = views(&*store, ThreadFilter { id: Some(thread(id)), ..ThreadFilter::default() }).await;
        assert_eq!(view[0].waits, id == "sends", "{id}");
    }
}

async fn a_deleted_thread_has_no_deadlines(db: &dyn Fixture) {
    let store = db.process("a").await;
    for id in ["t", "u"] {
        grown(&*store, id, 1).await;
        let deadline = Deadline {
            thread_id: thread(id),
            interrupt_id: "1".into(),
            answer: "stop".into(),
            request: b"request".to_vec().into(),
        };
        store.set_deadline(&deadline, Duration::from_secs(60)).await.expect("noted");
    }
    store.delete_thread(&thread("t")).await.expect("answered").expect("it is free");
    db.let_pass(Duration::from_secs(120)).await;
    let left = store.passed(9).await.expect("answered");
    assert_eq!(left.iter().map(|deadline| deadline.thread_id.as_str()).collect::<Vec<_>>(), ["u"]);
}

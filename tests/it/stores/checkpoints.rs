//! Checkpoints: what is stored is what is read, once, in order, by one line of history.

use agent_executor::{
    store::{Error, Store},
    value::{Interrupt, Message, Role, Send},
};

use super::*;

suite!(
    what_is_stored_is_what_is_read,
    a_channel_without_a_value_is_empty,
    unchanged_values_are_not_stored_again_and_still_read,
    the_newest_checkpoint_and_any_older_one_can_be_loaded,
    history_is_a_line,
    a_commit_whose_answer_was_lost_can_be_repeated,
    writes_wait_on_their_checkpoint_in_order,
    ordinary_writes_stay_and_special_ones_are_replaced,
    nested_graphs_have_checkpoints_of_their_own,
    a_root_checkpoint_must_become_the_head,
    one_fenced_thread_does_not_stop_the_others,
    one_bad_commit_does_not_spoil_its_neighbours,
    values_that_cannot_be_stored_are_refused_by_name,
);

fn root() -> Namespace {
    Namespace::root()
}

async fn newest(store: &dyn Store, claim: &Claim) -> agent_executor::store::Saved {
    store.load(&claim.thread_id, &root(), None).await.expect("readable").expect("there is one")
}

async fn what_is_stored_is_what_is_read(db: &dyn Fixture) {
    let store = db.process("a").await;
    let claim = claimed(&*store, "j1", "t", 1).await;
    let message = Message::new("m1", Role::Human, "hello \u{1F600}");
    let mut state = checkpoint(None, -1, &["x"]);
    for (channel, value) in [
        ("messages", Value::list(vec![message.into(), Value::from("plain")])),
        ("count", Value::from(3)),
        ("float", Value::from(serde_json::json!(1e16))),
        ("tiny", Value::from(serde_json::json!(-2.5e-8))),
        ("flag", true.into()),
        ("huge", Value::from(serde_json::json!(u64::MAX))),
        ("quoted", "a \"quote\", a \\u0000 that is none, a \u{7f}".into()),
        ("bytes", Value::Bytes(vec![0, 255].into())),
        ("opaque", Value::Opaque(vec![0xd6, 0x63, 1, 2, 3, 4].into())),
        ("map", Value::from(serde_json::json!({"b": [1, null], "a": {"x": 0.5}}))),
        ("sends", Value::list(vec![Value::Send(Arc::new(Send { node: "w".into(), arg: Value::Null }))])),
        ("join:x+y:j", Value::Set(Arc::new(vec!["x".into()]))),
    ] {
        state.values.insert(channel.into(), value);
        state.versions.insert(channel.into(), "00000000000000000000000000000001.0.5".into());
    }
    let mut commit = step(&claim, None, &state);
    commit.puts[0].changed = state.values.keys().cloned().collect();
    commit.puts[0].metadata.extra.insert("nul".into(), "a\0b".into());
    store.commit(commit).await.expect("stored");

    let saved = newest(&*store, &claim).await;
    assert_eq!(saved.checkpoint, state);
    let mut expected = metadata(0);
    expected.extra.insert("nul".into(), "ab".into());
    assert_eq!((saved.metadata, saved.parent, saved.writes), (expected, None, vec![]));
}

async fn a_channel_without_a_value_is_empty(db: &dyn Fixture) {
    let store = db.process("a").await;
    let claim = claimed(&*store, "j1", "t", 1).await;
    let mut state = checkpoint(None, -1, &["x"]);
    state.values.shift_remove("items");
    store.commit(step(&claim, None, &state)).await.expect("stored");
    let saved = newest(&*store, &claim).await;
    assert!(
        !saved.checkpoint.values.contains_key("items") && saved.checkpoint.versions.contains_key("items")
    );
}

async fn unchanged_values_are_not_stored_again_and_still_read(db: &dyn Fixture) {
    let store = db.process("a").await;
    let claim = claimed(&*store, "j1", "t", 1).await;
    let first = checkpoint(None, -1, &["x"]);
    store.commit(step(&claim, None, &first)).await.expect("stored");
    let mut second = checkpoint(Some(&first.id), 0, &["x"]);
    second.versions.insert("items".into(), first.versions["items"].clone());
    let mut commit = step(&claim, Some(&first.id), &second);
    commit.puts[0].changed = vec!["topic".into()];
    store.commit(commit).await.expect("stored");
    assert_eq!(newest(&*store, &claim).await.checkpoint, second);
}

async fn the_newest_checkpoint_and_any_older_one_can_be_loaded(db: &dyn Fixture) {
    let store = db.process("a").await;
    let claim = claimed(&*store, "j1", "t", 1).await;
    assert_eq!(store.load(&claim.thread_id, &root(), None).await.expect("readable"), None);
    let mut all = Vec::<Checkpoint>::new();
    for number in 0..3 {
        let parent = all.last().map(|parent| parent.id.clone());
        let next = checkpoint(parent.as_ref(), number - 1, &["x"]);
        store.commit(step(&claim, parent.as_ref(), &next)).await.expect("stored");
        all.push(next);
    }
    assert_eq!(newest(&*store, &claim).await.checkpoint, all[2]);
    let older =
        store.load(&claim.thread_id, &root(), Some(&all[1].id)).await.expect("readable").expect("there");
    assert_eq!((&older.checkpoint, older.parent.as_ref()), (&all[1], Some(&all[0].id)));
    let unknown = CheckpointId::next(None, UnixNanos(0), 0, 0);
    assert_eq!(store.load(&claim.thread_id, &root(), Some(&unknown)).await.expect("readable"), None);
    let history = store.history(&claim.thread_id, &root(), 2).await.expect("readable");
    let ids: Vec<_> = history.iter().map(|saved| &saved.checkpoint.id).collect();
    assert_eq!(ids, [&all[2].id, &all[1].id]);
    assert_eq!(store.history(&thread("other"), &root(), 2).await.expect("readable"), vec![]);
}

async fn history_is_a_line(db: &dyn Fixture) {
    let store = db.process("a").await;
    let claim = claimed(&*store, "j1", "t", 1).await;
    let first = checkpoint(None, -1, &["x"]);
    store.commit(step(&claim, None, &first)).await.expect("stored");
    let second = checkpoint(Some(&first.id), 0, &["x"]);
    // From a head that is not the thread's.
    is_fenced(store.commit(step(&claim, None, &second)).await, claim.epoch);
    store.commit(step(&claim, Some(&first.id), &second)).await.expect("stored");
    let fork = checkpoint(Some(&first.id), 0, &["fork"]);
    is_fenced(store.commit(step(&claim, Some(&first.id), &fork)).await, claim.epoch);
    // To an id that sorts below: "newest" would not find it.
    let below = checkpoint(None, -1, &["below"]);
    let mut below = Checkpoint { id: CheckpointId::next(None, UnixNanos(1), 0, 0), ..below };
    below.versions.clear();
    below.values.clear();
    is_fenced(store.commit(step(&claim, Some(&second.id), &below)).await, claim.epoch);
    assert_eq!(store.history(&claim.thread_id, &root(), 10).await.expect("readable").len(), 2);
}

async fn a_commit_whose_answer_was_lost_can_be_repeated(db: &dyn Fixture) {
    let store = db.process("a").await;
    let claim = claimed(&*store, "j1", "t", 1).await;
    let first = checkpoint(None, -1, &["x"]);
    let mut commit = step(&claim, None, &first);
    let written =
        vec![write(1, "p", 0, "items", "x".into()), write(1, "p", -3, "__interrupt__", Value::Null)];
    commit.writes = writes(&claim, &first.id, written.clone()).writes;
    for _ in 0..3 {
        store.commit(commit.clone()).await.expect("stored, once");
    }
    let saved = newest(&*store, &claim).await;
    assert_eq!(saved.checkpoint, first);
    assert_eq!(saved.writes, [written[1].clone(), written[0].clone()]);
    assert_eq!(store.history(&claim.thread_id, &root(), 10).await.expect("readable").len(), 1);
}

async fn writes_wait_on_their_checkpoint_in_order(db: &dyn Fixture) {
    let store = db.process("a").await;
    let claim = claimed(&*store, "j1", "t", 1).await;
    let first = checkpoint(None, -1, &["x"]);
    store.commit(step(&claim, None, &first)).await.expect("stored");
    let interrupt = Interrupt { id: "0".repeat(32).into(), value: "q".into(), response_schema: Value::Null };
    // The order of code points, in which upper case comes first and `~` last.
    let ordered = [
        write(9, "", -4, "__resume__", "yes".into()),
        write(3, "~__pregel_pull, B", 0, "items", Value::list(vec!["b".into()])),
        write(3, "~__pregel_pull, B", 1, "branch:to:x", Value::Null),
        write(1, "~__pregel_pull, a", 0, "items", 1.into()),
        write(
            2,
            "~__pregel_pull, a",
            -3,
            "__interrupt__",
            Value::list(vec![Value::Interrupt(Arc::new(interrupt))]),
        ),
        write(2, "~__pregel_pull, a", 0, "bytes", Value::Bytes(vec![1].into())),
        write(4, "~__pregel_push, 0000000000", 0, "items", 2.into()),
    ];
    for chunk in ordered.rchunks(2) {
        store.commit(writes(&claim, &first.id, chunk.to_vec())).await.expect("stored");
    }
    assert_eq!(newest(&*store, &claim).await.writes, ordered);
    let second = checkpoint(Some(&first.id), 0, &["x"]);
    store.commit(step(&claim, Some(&first.id), &second)).await.expect("stored");
    assert_eq!(
        newest(&*store, &claim).await.writes,
        vec![],
        "they belong to the checkpoint they started from"
    );
}

async fn ordinary_writes_stay_and_special_ones_are_replaced(db: &dyn Fixture) {
    let store = db.process("a").await;
    let claim = claimed(&*store, "j1", "t", 1).await;
    let first = checkpoint(None, -1, &["x"]);
    store.commit(step(&claim, None, &first)).await.expect("stored");
    for round in [1, 2] {
        let both = vec![
            write(1, "p", 0, "items", round.into()),
            write(1, "p", -4, "__resume__", 0.into()),
            write(1, "p", -4, "__resume__", round.into()),
        ];
        store.commit(writes(&claim, &first.id, both)).await.expect("stored");
    }
    let expected = [write(1, "p", -4, "__resume__", 2.into()), write(1, "p", 0, "items", 1.into())];
    assert_eq!(newest(&*store, &claim).await.writes, expected);
}

async fn nested_graphs_have_checkpoints_of_their_own(db: &dyn Fixture) {
    let store = db.process("a").await;
    let claim = claimed(&*store, "j1", "t", 1).await;
    let outer = checkpoint(None, -1, &["outer"]);
    store.commit(step(&claim, None, &outer)).await.expect("stored");
    let ns = root().child("sub", &TaskId::from_digest(7));
    let inner = checkpoint(None, -1, &["inner"]);
    let mut nested = put(&ns, None, &inner, -1);
    nested.metadata.parents = [(String::new(), outer.id.clone())].into();
    let mut commit = writes(&claim, &inner.id, vec![write(1, "p", 0, "items", "inner".into())]);
    commit.writes[0].ns = ns.clone();
    commit.puts = vec![nested];
    store.commit(commit).await.expect("stored");
    let saved = store.load(&claim.thread_id, &ns, None).await.expect("readable").expect("there");
    assert_eq!((&saved.checkpoint, saved.writes.len()), (&inner, 1));
    assert_eq!(saved.metadata.parents[""], outer.id);
    assert_eq!(newest(&*store, &claim).await.checkpoint, outer, "the head has not moved");
}

async fn a_root_checkpoint_must_become_the_head(db: &dyn Fixture) {
    let store = db.process("a").await;
    let claim = claimed(&*store, "j1", "t", 1).await;
    let mut commit = step(&claim, None, &checkpoint(None, -1, &["x"]));
    let elsewhere = Commit { puts: vec![], ..commit.clone() };
    commit.advance = None;
    for wrong in [commit, elsewhere] {
        assert!(matches!(store.commit(wrong).await, Err(Error::Refused(_))));
    }
}

async fn one_fenced_thread_does_not_stop_the_others(db: &dyn Fixture) {
    let (owner, thief) = (db.process("a").await, db.process("b").await);
    let mut claims = Vec::new();
    for number in 0..40 {
        claims.push(claimed(&*owner, &format!("j{number}"), &format!("t{number}"), number).await);
    }
    db.expire_leases().await;
    claimed(&*thief, "j13", "t13", 13).await;
    let commits = claims.iter().map(|claim| owner.commit(step(claim, None, &checkpoint(None, -1, &["x"]))));
    let results = futures::future::join_all(commits).await;
    for (number, (claim, result)) in claims.iter().zip(results).enumerate() {
        if number == 13 {
            is_fenced(result, claim.epoch);
            assert_eq!(owner.load(&claim.thread_id, &root(), None).await.expect("readable"), None);
        } else {
            result.expect("stored");
            assert_eq!(newest(&*owner, claim).await.checkpoint.versions.len(), 3);
        }
    }
}

async fn one_bad_commit_does_not_spoil_its_neighbours(db: &dyn Fixture) {
    let store = db.process("a").await;
    let mut claims = Vec::new();
    for number in 0..8 {
        claims.push(claimed(&*store, &format!("j{number}"), &format!("t{number}"), number).await);
    }
    let commits = claims.iter().enumerate().map(|(number, claim)| {
        let mut state = checkpoint(None, -1, &["x"]);
        if number == 3 {
            state.values.insert("topic".into(), "a\0b".into());
        }
        store.commit(step(claim, None, &state))
    });
    let results = futures::future::join_all(commits).await;
    for (number, result) in results.into_iter().enumerate() {
        assert_eq!(result.is_err(), number == 3, "{number}: {result:?}");
    }
}

async fn values_that_cannot_be_stored_are_refused_by_name(db: &dyn Fixture) {
    let store = db.process("a").await;
    let claim = claimed(&*store, "j1", "t", 1).await;
    let deep = (0..1000).fold(Value::Null, |inner, _| Value::list(vec![inner]));
    for (channel, value) in [("topic", Value::from("a\0b")), ("items", deep)] {
        let mut state = checkpoint(None, -1, &["x"]);
        state.values.insert(channel.into(), value);
        match store.commit(step(&claim, None, &state)).await {
            Err(Error::Unstorable { channel: named, .. }) => assert_eq!(named, channel),
            other => panic!("{other:?}"),
        }
    }
    // In a blob the character is fine.
    let state = checkpoint(None, -1, &["a\0b"]);
    store.commit(step(&claim, None, &state)).await.expect("stored");
    assert_eq!(newest(&*store, &claim).await.checkpoint, state);
}

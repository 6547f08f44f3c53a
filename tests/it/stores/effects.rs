//! The ledger of effects: what is stored is what is read, by the owner of the thread only.

use agent_executor::{
    graph::Effect,
    store::{EffectRow, EffectState, Error, Store},
};

use super::*;

suite!(
    a_call_has_one_row_and_its_newest_state,
    rows_of_a_task_are_found_in_its_graph_only,
    a_fenced_worker_leaves_no_row_and_spoils_none,
    an_effect_may_come_with_a_checkpoint,
    an_answer_that_is_too_large_is_refused,
);

fn row(claim: &Claim, call_id: &str, state: EffectState) -> EffectRow {
    EffectRow {
        ns: Namespace::root(),
        task_id: TaskId::from_digest(7),
        call_id: call_id.into(),
        tool: "pay".into(),
        effect: Effect::Irreversible,
        idempotency_key: "k".repeat(40),
        state,
        epoch: claim.epoch,
        asked: 0,
        answer: None,
    }
}

fn effects(claim: &Claim, effects: Vec<EffectRow>) -> Commit {
    Commit { effects, ..Commit::empty(claim.thread_id.clone(), claim.epoch) }
}

async fn of_task(store: &dyn Store, claim: &Claim) -> Vec<EffectRow> {
    let task = TaskId::from_digest(7);
    store.effects(&claim.thread_id, &Namespace::root(), &task).await.expect("readable")
}

async fn a_call_has_one_row_and_its_newest_state(db: &dyn Fixture) {
    let store = db.process("a").await;
    let claim = claimed(&*store, "j1", "t", 1).await;
    assert_eq!(of_task(&*store, &claim).await, []);
    let intended = row(&claim, "c1", EffectState::Intended);
    store.commit(effects(&claim, vec![intended.clone()])).await.expect("stored");
    assert_eq!(of_task(&*store, &claim).await, std::slice::from_ref(&intended));
    let answer = Value::map([("content", Value::from("paid \u{1F600}")), ("writes", Value::list(vec![]))]);
    let done = EffectRow { state: EffectState::Done, asked: 2, answer: Some(answer), ..intended.clone() };
    let other = row(&claim, "c2", EffectState::Unknown);
    // The last one of a batch wins.
    store.commit(effects(&claim, vec![intended, done.clone(), other.clone()])).await.expect("stored");
    assert_eq!(of_task(&*store, &claim).await, [done, other]);
}

async fn rows_of_a_task_are_found_in_its_graph_only(db: &dyn Fixture) {
    let store = db.process("a").await;
    let claim = claimed(&*store, "j1", "t", 1).await;
    let own = row(&claim, "c1", EffectState::Intended);
    let nested = EffectRow { ns: Namespace::from_stored("n:1"), ..own.clone() };
    let neighbour = EffectRow { task_id: TaskId::from_digest(8), ..own.clone() };
    store.commit(effects(&claim, vec![nested.clone(), neighbour, own.clone()])).await.expect("stored");
    assert_eq!(of_task(&*store, &claim).await, [own]);
    let inside = store.effects(&claim.thread_id, &nested.ns, &nested.task_id).await.expect("readable");
    assert_eq!(inside, [nested]);
}

async fn a_fenced_worker_leaves_no_row_and_spoils_none(db: &dyn Fixture) {
    let (zombie, owner) = (db.process("zombie").await, db.process("owner").await);
    let stale = claimed(&*zombie, "j1", "t", 1).await;
    let neighbour = claimed(&*zombie, "j2", "u", 2).await;
    db.expire_leases().await;
    let claim = claimed(&*owner, "j1", "t", 1).await;
    let intent = |claim: &Claim| effects(claim, vec![row(claim, "c1", EffectState::Intended)]);
    let (refused, stored) = tokio::join!(zombie.commit(intent(&stale)), zombie.commit(intent(&neighbour)));
    assert!(matches!(refused, Err(Error::Fenced { .. })), "a zombie does not call");
    stored.expect("its other thread is still its own");
    assert_eq!(of_task(&*owner, &claim).await, []);
    assert_eq!(of_task(&*owner, &neighbour).await.len(), 1);
    owner.commit(intent(&claim)).await.expect("stored");
    assert_eq!(of_task(&*owner, &claim).await[0].epoch, claim.epoch);
}

async fn an_effect_may_come_with_a_checkpoint(db: &dyn Fixture) {
    let store = db.process("a").await;
    let claim = claimed(&*store, "j1", "t", 1).await;
    let first = checkpoint(None, 0, &["x"]);
    let both =
        Commit { effects: vec![row(&claim, "c1", EffectState::Intended)], ..step(&claim, None, &first) };
    // Repeated, as after a lost answer.
    for _ in 0..2 {
        store.commit(both.clone()).await.expect("stored");
    }
    assert_eq!(of_task(&*store, &claim).await.len(), 1);
    let loaded = store.load(&claim.thread_id, &Namespace::root(), None).await.expect("readable");
    assert_eq!(loaded.map(|saved| saved.checkpoint.id), Some(first.id));
}

async fn an_answer_that_is_too_large_is_refused(db: &dyn Fixture) {
    let store = db.process("a").await;
    let claim = claimed(&*store, "j1", "t", 1).await;
    let answer = Some(Value::from("x".repeat(agent_executor::store::MAX_ANSWER_BYTES)));
    let huge = EffectRow { answer, ..row(&claim, "c1", EffectState::Done) };
    let refused = store.commit(effects(&claim, vec![huge])).await.expect_err("too large");
    assert!(matches!(&refused, Error::Unstorable { channel, .. } if channel == "answer of pay"), "{refused}");
    assert_eq!(of_task(&*store, &claim).await, []);
}

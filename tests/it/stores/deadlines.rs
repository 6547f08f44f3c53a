//! Deadlines of questions: kept, found when they have passed and nothing runs, forgotten.

use agent_executor::store::Deadline;
use serde_json::json;

use super::*;

suite!(a_deadline_keeps_its_time_and_is_found_once_its_thread_is_idle,);

fn deadline(thread_id: &str, interrupt_id: &str) -> Deadline {
    Deadline {
        thread_id: thread(thread_id),
        interrupt_id: interrupt_id.into(),
        answer: json!({ "text": "a \0 in it", "n": 1.5 }),
        request: b"request of j1".to_vec().into(),
    }
}

async fn passed(store: &dyn Store) -> Vec<Deadline> {
    store.passed(10).await.expect("answered")
}

async fn a_deadline_keeps_its_time_and_is_found_once_its_thread_is_idle(db: &dyn Fixture) {
    let store = db.process("a").await;
    let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
    let (first, second) = (deadline("t", "1"), deadline("u", "2"));
    store.set_deadline(&first, 2 * minute).await.expect("noted");
    store.set_deadline(&second, minute).await.expect("noted");
    let later = Deadline { answer: json!("another"), ..first.clone() };
    store.set_deadline(&later, hour).await.expect("it has one already");
    assert_eq!(passed(&*store).await, []);

    db.let_pass(3 * minute).await;
    assert_eq!(passed(&*store).await, [second.clone(), first.clone()]);
    assert_eq!(store.passed(1).await.expect("answered"), std::slice::from_ref(&second));
    assert!(store.record(&record("j", "u", None)).await.expect("recorded"));
    assert_eq!(passed(&*store).await, std::slice::from_ref(&first), "u has a job that waits");

    for _ in 0..2 {
        store.clear_deadline(&first.thread_id, "1").await.expect("forgotten");
    }
    assert_eq!(passed(&*store).await, []);
    store.forget(&job("j")).await.expect("taken back");
    assert_eq!(passed(&*store).await, [second]);
}

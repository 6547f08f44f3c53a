//! The cache of nodes: entries are read back until they are too old, and removed then.

use agent_executor::{
    store::{CacheEntry, CacheKey, Error, MAX_CACHED_BYTES, Store},
    value::{Message, Role},
};

use super::*;

suite!(
    an_entry_is_read_back_by_everybody,
    a_newer_entry_takes_the_place_of_the_older_one,
    entries_are_used_and_kept_as_long_as_they_say,
    an_entry_that_is_too_large_is_refused,
);

const TTL: Duration = Duration::from_secs(60);

fn key(number: u8) -> CacheKey {
    CacheKey([number; 32])
}

fn entry(number: u8, value: Value) -> CacheEntry {
    CacheEntry { key: key(number), node: "say".into(), value, ttl: TTL }
}

async fn read(store: &dyn Store, number: u8) -> Option<Value> {
    store.cached(&key(number)).await.expect("answered")
}

async fn an_entry_is_read_back_by_everybody(db: &dyn Fixture) {
    let (one, other) = (db.process("a").await, db.process("b").await);
    assert_eq!(read(&*one, 1).await, None);
    let message = Value::from(Message::new("m", Role::Human, "hi \u{1F600}"));
    let pair = Value::list(vec!["messages".into(), Value::list(vec![message])]);
    let value = Value::list(vec![pair, Value::list(vec!["count".into(), 7.into()])]);
    one.keep(&entry(1, value.clone())).await.expect("kept");
    assert_eq!(read(&*other, 1).await, Some(value));
    assert_eq!(read(&*other, 2).await, None);
}

async fn a_newer_entry_takes_the_place_of_the_older_one(db: &dyn Fixture) {
    let store = db.process("a").await;
    store.keep(&entry(1, "old".into())).await.expect("kept");
    db.let_pass(TTL - Duration::from_secs(1)).await;
    store.keep(&entry(1, "new".into())).await.expect("kept");
    db.let_pass(Duration::from_secs(30)).await;
    assert_eq!(read(&*store, 1).await, Some("new".into()));
}

async fn entries_are_used_and_kept_as_long_as_they_say(db: &dyn Fixture) {
    let store = db.process("a").await;
    for number in 1..=3 {
        store.keep(&entry(number, "x".into())).await.expect("kept");
    }
    let long = CacheEntry { ttl: 10 * TTL, ..entry(4, "y".into()) };
    store.keep(&long).await.expect("kept");
    assert_eq!(store.expire_cache(10).await.expect("answered"), 0);
    db.let_pass(TTL + Duration::from_secs(1)).await;
    assert_eq!((read(&*store, 1).await, read(&*store, 4).await), (None, Some("y".into())));
    assert_eq!(store.expire_cache(2).await.expect("answered"), 2);
    assert_eq!(store.expire_cache(2).await.expect("answered"), 1);
    assert_eq!(store.expire_cache(2).await.expect("answered"), 0);
    assert_eq!(read(&*store, 4).await, Some("y".into()));
}

async fn an_entry_that_is_too_large_is_refused(db: &dyn Fixture) {
    let store = db.process("a").await;
    let large = entry(1, "x".repeat(MAX_CACHED_BYTES).into());
    assert!(matches!(store.keep(&large).await, Err(Error::Unstorable { .. })));
    assert_eq!(read(&*store, 1).await, None);
}

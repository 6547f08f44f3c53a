//! What only the store in a file has to keep: its file, its lock, and what survives a process.

use agent_executor::{
    ids::SystemClock,
    store::{CacheEntry, CacheKey, Checkpoints, Error, Jobs, NodeCache, Upkeep},
};

use super::*;

fn config(file: PathBuf) -> sqlite::Config {
    sqlite::Config::at(sqlite::Place::File(file))
}

async fn open(file: PathBuf, owner: &str) -> Result<SqliteStore, Error> {
    SqliteStore::open(config(file), Arc::new(SystemClock), owner).await
}

#[tokio::test]
async fn many_processes_open_a_new_file_at_once() {
    let db = in_sqlite();
    let opened = (0..8).map(|_| open(db.file(), "a"));
    let stores = futures::future::join_all(opened).await;
    for store in stores {
        store.expect("the file can be opened").ping().await.expect("it answers");
    }
}

#[tokio::test]
async fn what_one_process_stored_the_next_one_reads() {
    let db = in_sqlite();
    let first = checkpoint(None, -1, &["x"]);
    let claim = {
        let store = db.store("a").await;
        let claim = claimed(&store, "j1", "t", 1).await;
        store.commit(step(&claim, None, &first)).await.expect("stored");
        store.close().await;
        assert!(matches!(store.ping().await, Err(Error::Unavailable(_))), "it is closed");
        claim
    };
    let store = db.store("b").await;
    let saved = store.load(&claim.thread_id, &Namespace::root(), None).await.expect("readable");
    assert_eq!(saved.map(|saved| saved.checkpoint), Some(first));
    let unfinished = store.unfinished(&claim.thread_id).await.expect("readable").expect("it has not ended");
    assert_eq!((unfinished.job_id, unfinished.request), (claim.job_id, claim.request));
    assert_eq!(unfinished.owned_for, Some(Duration::from_secs(600)), "its lease stands");
    db.expire_leases().await;
    let unfinished = store.unfinished(&claim.thread_id).await.expect("readable").expect("it has not ended");
    assert_eq!(unfinished.owned_for, None);
    // One that was not started is left to whoever asked for it.
    assert!(store.record(&record("waits", "u", None)).await.expect("recorded"));
    assert_eq!(store.unfinished(&thread("u")).await.expect("readable"), None);
}

#[tokio::test]
async fn of_many_processes_that_want_a_thread_one_gets_it() {
    let db = in_sqlite();
    let mut stores = Vec::new();
    for number in 0..8 {
        stores.push(db.store(&format!("p{number}")).await);
    }
    let offers = (0..8_u64).map(|number| offer(&format!("j{number}"), "t", number));
    let offers: Vec<_> = offers.collect();
    let asked = stores.iter().zip(&offers).map(|(store, offer)| store.accept(offer));
    let verdicts = futures::future::join_all(asked).await;
    let runs = verdicts.iter().filter(|verdict| matches!(verdict, Ok(Verdict::Run(_)))).count();
    let parked = verdicts.iter().filter(|verdict| matches!(verdict, Ok(Verdict::Parked { .. }))).count();
    assert_eq!((runs, parked), (1, 7), "{verdicts:?}");
}

#[tokio::test]
async fn a_commit_waits_for_a_lock_that_somebody_else_holds() {
    let db = in_sqlite();
    let store = Arc::new(db.store("a").await);
    let claim = claimed(&*store, "j1", "t", 1).await;
    let options = SqliteConnectOptions::new().filename(db.file());
    let mut other = options.connect().await.expect("the file is there");
    let lock = other.begin_with("BEGIN IMMEDIATE").await.expect("it is free");
    let commit = step(&claim, None, &checkpoint(None, -1, &["x"]));
    let mut storing = std::pin::pin!(store.commit(commit));
    // Longer than a read takes, so that the commit meets the lock.
    assert!(futures::poll!(&mut storing).is_pending());
    assert_eq!(
        db.store("reader").await.load(&claim.thread_id, &Namespace::root(), None).await.expect("readable"),
        None,
        "readers do not wait for a writer"
    );
    lock.rollback().await.expect("it is ours");
    storing.await.expect("stored");
}

#[tokio::test]
async fn an_entry_that_comes_to_the_cache_takes_old_ones_away() {
    let db = in_sqlite();
    let (store, ttl) = (db.store("a").await, Duration::from_secs(60));
    let entry =
        |number| CacheEntry { key: CacheKey([number; 32]), node: "say".into(), value: "x".into(), ttl };
    store.keep(&entry(1)).await.expect("kept");
    store.keep(&CacheEntry { ttl: ttl * 9, ..entry(2) }).await.expect("kept");
    db.let_pass(ttl).await;
    store.keep(&entry(3)).await.expect("kept");
    assert_eq!(store.expire_cache(9).await.expect("answered"), 0, "it is gone already");
    let young = store.cached(&CacheKey([2; 32])).await.expect("answered");
    assert_eq!(young, Some("x".into()), "one that may still be used stays");
}

#[tokio::test]
async fn a_database_in_memory_is_its_process_s_own() {
    let open = async |owner| {
        let config = sqlite::Config::at(sqlite::Place::Memory);
        SqliteStore::open(config, Arc::new(SystemClock), owner).await.expect("memory is there")
    };
    let (one, other) = (open("a").await, open("b").await);
    claimed(&one, "j1", "t", 1).await;
    assert_eq!(one.known(&[job("j1")]).await.expect("readable").len(), 1);
    assert_eq!(other.known(&[job("j1")]).await.expect("readable"), []);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_left_alone() {
    let db = in_sqlite();
    let text = "this is a letter to somebody, and no database at all".repeat(100);
    std::fs::write(db.file(), &text).expect("the folder is ours");
    let refused = open(db.file(), "a").await.err().expect("it is no database");
    assert!(matches!(refused, Error::Migration(_)), "{refused:?}");
    assert_eq!(std::fs::read_to_string(db.file()).expect("it is there"), text);
    let nowhere = PathBuf::from("/proc/nowhere/threads.db");
    let refused = open(nowhere, "a").await.err().expect("no folder can be made there");
    assert!(matches!(refused, Error::Unavailable(_)), "{refused:?}");
}

#[tokio::test]
async fn threads_are_for_their_owner_s_eyes() {
    use std::os::unix::fs::PermissionsExt as _;
    let db = in_sqlite();
    let file = db.folder.path().join("state/agent-executor/threads.db");
    open(file.clone(), "a").await.expect("the folders are made");
    let mode =
        |path: &std::path::Path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&file), 0o600);
    assert_eq!(mode(file.parent().expect("a folder")), 0o700);
}

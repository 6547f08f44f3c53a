//! One suite for every store: what the ports promise, run on memory, on SQLite and on a real PostgreSQL.

mod admin;
mod cache;
mod checkpoints;
mod deadlines;
mod effects;
mod in_one_file;
mod jobs;
mod library;
mod postgres;
mod upkeep;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use agent_executor::{
    ids::{CheckpointId, Clock, Epoch, JobId, Namespace, TaskId, ThreadId, UnixNanos},
    job::MultitaskStrategy,
    pregel::{Checkpoint, Metadata, PendingWrite, Source},
    store::{
        Advance, Claim, Commit, Finish, JobState, LetterFilter, Letters, NextJob, Offer, Put, Record, Store,
        StoredResult, TaskWrites, Verdict,
        memory::{self, MemoryStore},
        postgres::{Config, PostgresStore},
        sqlite::{self, SqliteStore},
    },
    value::{Name, Value},
};
use async_trait::async_trait;
use sqlx::{ConnectOptions as _, Connection as _, sqlite::SqliteConnectOptions};

use crate::servers;

/// A database that several processes may look at.
#[async_trait]
pub(crate) trait Fixture: Send + Sync {
    /// A process of its own on the same database.
    async fn process(&self, owner: &str) -> Arc<dyn Store>;
    /// Ends all leases, as if their owners had been silent for long enough.
    async fn expire_leases(&self);
    /// Lets everything that is stored grow older, leases included.
    async fn let_pass(&self, time: Duration);
    /// Reason and payload of the kept dead letters, in the order of their sequence.
    async fn letters(&self) -> Vec<(String, Vec<u8>)>;
}

/// A clock that a test moves: leases in memory end only when a test says so.
#[derive(Default)]
struct Noon(AtomicU64);

impl Clock for Noon {
    fn now(&self) -> UnixNanos {
        UnixNanos(1_800_000_000_000_000_000 + self.0.load(Ordering::Relaxed))
    }
}

pub(crate) struct Memory(MemoryStore, Arc<Noon>);

pub(crate) fn in_memory() -> Memory {
    let clock = Arc::<Noon>::default();
    Memory(MemoryStore::new(clock.clone(), memory::Config::default(), "first"), clock)
}

#[async_trait]
impl Fixture for Memory {
    async fn process(&self, owner: &str) -> Arc<dyn Store> {
        Arc::new(self.0.process(owner))
    }

    async fn expire_leases(&self) {
        self.0.expire_leases();
    }

    async fn let_pass(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).expect("a test is short");
        self.1.0.fetch_add(nanos, Ordering::Relaxed);
    }

    async fn letters(&self) -> Vec<(String, Vec<u8>)> {
        let letters = self.0.dead_letters().into_iter();
        letters.map(|letter| (letter.reason.to_owned(), letter.payload.to_vec())).collect()
    }
}

/// A database of its own in the shared server.
pub(crate) struct InPostgres {
    server: &'static servers::Postgres,
    database: String,
    config: Config,
}

pub(crate) async fn in_postgres() -> InPostgres {
    let fixture = empty_postgres().await;
    PostgresStore::migrate(&fixture.config).await.expect("an empty database can be migrated");
    fixture
}

async fn empty_postgres() -> InPostgres {
    let server = servers::Postgres::shared().await.expect("PostgreSQL starts");
    let url = server.fresh_database().await.expect("a database can be created");
    let database = url.rsplit('/').next().expect("the URL ends in the database").to_owned();
    // Longer than any test: leases end only when a test says so.
    let config = Config { url: Some(url.into()), lease: Duration::from_secs(600), ..Config::default() };
    InPostgres { server, database, config }
}

impl InPostgres {
    async fn sql(&self, statement: &str) -> String {
        self.server.sql(&self.database, statement).await.expect("the statement is sound").trim().to_owned()
    }

    async fn store(&self, owner: &str) -> PostgresStore {
        PostgresStore::connect(&self.config, owner).await.expect("the database is up")
    }
}

#[async_trait]
impl Fixture for InPostgres {
    async fn process(&self, owner: &str) -> Arc<dyn Store> {
        Arc::new(self.store(owner).await)
    }

    async fn expire_leases(&self) {
        self.sql("update executor_thread set lease_until = least(lease_until, clock_timestamp())").await;
    }

    async fn let_pass(&self, time: Duration) {
        let past = format!("- interval '{} milliseconds'", time.as_millis());
        self.sql(&format!(
            "update executor_job set accepted_at = accepted_at {past}, deadline_at = deadline_at {past}, \
                 finished_at = finished_at {past}; \
             update executor_thread set lease_until = lease_until {past}; \
             update executor_dead_letter set created_at = created_at {past}; \
             update executor_cancel set created_at = created_at {past}; \
             update executor_node_cache set expires_at = expires_at {past}; \
             update executor_duty set taken_at = taken_at {past}; \
             update executor_interrupt_deadline set due_at = due_at {past}"
        ))
        .await;
    }

    async fn letters(&self) -> Vec<(String, Vec<u8>)> {
        let all = "select reason, encode(payload, 'escape') from executor_dead_letter order by stream_seq";
        let rows = self.sql(all).await;
        let row = |line: &str| {
            let (reason, payload) = line.split_once('|').expect("two columns");
            (reason.to_owned(), payload.as_bytes().to_vec())
        };
        rows.lines().map(row).collect()
    }
}

/// A database file of its own.
pub(crate) struct InSqlite {
    folder: tempfile::TempDir,
    clock: Arc<Noon>,
}

pub(crate) fn in_sqlite() -> InSqlite {
    let folder = tempfile::tempdir().expect("a folder can be made");
    InSqlite { folder, clock: Arc::default() }
}

impl InSqlite {
    fn file(&self) -> PathBuf {
        self.folder.path().join("threads.db")
    }

    async fn store(&self, owner: &str) -> SqliteStore {
        // Longer than any test: leases end only when a test says so.
        let lease = Duration::from_secs(600);
        let config = sqlite::Config { lease, ..sqlite::Config::at(sqlite::Place::File(self.file())) };
        SqliteStore::open(config, self.clock.clone(), owner).await.expect("the file can be opened")
    }

    async fn sql(&self, statement: &'static str, argument: i64) {
        let options = SqliteConnectOptions::new().filename(self.file()).busy_timeout(Duration::from_secs(5));
        let mut connection = options.connect().await.expect("the file is there");
        let done = sqlx::query(statement).bind(argument).execute(&mut connection).await;
        done.expect("the statement is sound");
        connection.close().await.expect("the file can be closed");
    }
}

#[async_trait]
impl Fixture for InSqlite {
    async fn process(&self, owner: &str) -> Arc<dyn Store> {
        Arc::new(self.store(owner).await)
    }

    async fn expire_leases(&self) {
        let now = i64::try_from(self.clock.now().0).expect("a test is short");
        let ends = "update executor_thread set lease_until = min(lease_until, ?)";
        self.sql(ends, now).await;
    }

    async fn let_pass(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).expect("a test is short");
        self.clock.0.fetch_add(nanos, Ordering::Relaxed);
    }

    async fn letters(&self) -> Vec<(String, Vec<u8>)> {
        let store = self.store("reader").await;
        let all = LetterFilter { dealt_with: true, ..LetterFilter::default() };
        let mut whole = Vec::new();
        for letter in store.letters(&all, 1000).await.expect("readable") {
            whole.extend(store.letter(letter.id).await.expect("readable"));
        }
        whole.sort_by(|a, b| (&a.stream, a.stream_seq).cmp(&(&b.stream, b.stream_seq)));
        whole.into_iter().map(|letter| (letter.letter.reason, letter.payload.to_vec())).collect()
    }
}

/// Makes a test of each function for each store.
macro_rules! suite {
    ($($name:ident),* $(,)?) => {
        mod memory {
            $(
                #[tokio::test]
                async fn $name() {
                    super::$name(&crate::stores::in_memory()).await;
                }
            )*
        }
        mod sqlite {
            $(
                #[tokio::test]
                async fn $name() {
                    super::$name(&crate::stores::in_sqlite()).await;
                }
            )*
        }
        mod postgres {
            $(
                #[tokio::test]
                async fn $name() {
                    super::$name(&crate::stores::in_postgres().await).await;
                }
            )*
        }
    };
}
pub(crate) use suite;

fn job(id: &str) -> JobId {
    JobId::parse(id).expect("a valid id")
}

fn thread(id: &str) -> ThreadId {
    ThreadId::parse(id).expect("a valid id")
}

/// A job that waits when its thread is busy.
pub(crate) fn record(id: &str, thread_id: &str, stream_seq: Option<u64>) -> Record {
    Record {
        job_id: job(id),
        thread_id: thread(thread_id),
        stream_seq,
        multitask_strategy: MultitaskStrategy::Enqueue,
        request: format!("request of {id}").into_bytes().into(),
        timeout: Duration::from_secs(1800),
    }
}

pub(crate) fn offer(id: &str, thread_id: &str, stream_seq: u64) -> Offer {
    Offer { record: record(id, thread_id, Some(stream_seq)), running: None, lane: false }
}

/// Offers a job that must be run.
async fn claimed(store: &dyn Store, id: &str, thread_id: &str, stream_seq: u64) -> Claim {
    let verdict = store.accept(&offer(id, thread_id, stream_seq)).await.expect("accepted");
    let Verdict::Run(claim) = &verdict else { panic!("expected to run, got {verdict:?}") };
    claim.clone()
}

pub(crate) fn ended(claim: &Claim, next: NextJob) -> Finish {
    let id = claim.job_id.as_str();
    Finish {
        claim: claim.clone(),
        state: JobState::Succeeded,
        result: StoredResult {
            job_id: claim.job_id.clone(),
            event_id: format!("{id}:result"),
            subject: "agent.status.completed".into(),
            event: format!("result of {id}").into_bytes().into(),
        },
        body: None,
        error: None,
        next,
        last: None,
        undo: false,
    }
}

/// A checkpoint of `step` above `parent`, with an inline value, a list and an armed branch.
pub(crate) fn checkpoint(parent: Option<&CheckpointId>, step: i64, items: &[&str]) -> Checkpoint {
    static UNIQUE: AtomicU64 = AtomicU64::new(1);
    let unique = UNIQUE.fetch_add(1, Ordering::Relaxed);
    let version = format!("{:032}.{unique:016}", step + 2);
    let channels = ["items", "topic", "branch:to:next"];
    Checkpoint {
        id: CheckpointId::next(parent, Noon::default().now(), step, unique),
        ts: Noon::default().now().isoformat(),
        values: [
            ("items".into(), Value::list(items.iter().map(|item| Value::from(*item)).collect())),
            ("topic".into(), Value::from("weather")),
            ("branch:to:next".into(), Value::Null),
        ]
        .into_iter()
        .collect(),
        versions: channels.map(|channel| (Name::from(channel), version.as_str().into())).into(),
        seen: [("__input__".into(), [].into())].into(),
        updated: Some(vec!["branch:to:next".into(), "items".into(), "topic".into()]),
    }
}

fn metadata(step: i64) -> Metadata {
    let extra = serde_json::json!({"job_id": "j", "attempt": 1, "cost": 0.25});
    Metadata {
        source: Source::Loop,
        step,
        parents: [].into(),
        extra: extra.as_object().expect("an object").clone(),
    }
}

fn put(ns: &Namespace, parent: Option<&CheckpointId>, checkpoint: &Checkpoint, step: i64) -> Put {
    Put {
        ns: ns.clone(),
        checkpoint: Arc::new(checkpoint.clone()),
        metadata: metadata(step),
        parent: parent.cloned(),
        changed: vec!["items".into(), "topic".into(), "branch:to:next".into()],
    }
}

/// The commit that stores `next` above the claim's head.
pub(crate) fn step(claim: &Claim, from: Option<&CheckpointId>, next: &Checkpoint) -> Commit {
    Commit {
        thread_id: claim.thread_id.clone(),
        epoch: claim.epoch,
        advance: Some(Advance { from: from.cloned(), to: next.id.clone() }),
        puts: vec![put(&Namespace::root(), from, next, 0)],
        writes: vec![],
        effects: Vec::new(),
    }
}

fn write(task: u128, path: &str, idx: i32, channel: &str, value: Value) -> PendingWrite {
    PendingWrite {
        task_id: TaskId::from_digest(task),
        task_path: path.into(),
        idx,
        channel: channel.into(),
        value,
    }
}

/// A commit of writes alone.
fn writes(claim: &Claim, on: &CheckpointId, writes: Vec<PendingWrite>) -> Commit {
    Commit {
        thread_id: claim.thread_id.clone(),
        epoch: claim.epoch,
        advance: None,
        puts: vec![],
        writes: vec![TaskWrites { ns: Namespace::root(), checkpoint_id: on.clone(), writes }],
        effects: Vec::new(),
    }
}

fn is_fenced<T: std::fmt::Debug>(result: Result<T, agent_executor::store::Error>, epoch: Epoch) {
    match result {
        Err(agent_executor::store::Error::Fenced { epoch: refused, .. }) => assert_eq!(refused, epoch),
        other => panic!("expected to be fenced, got {other:?}"),
    }
}

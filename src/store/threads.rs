//! Port of whole threads: what operators list, copy, remove and write to by hand, and the removal of old ones.
//!
//! **Invariant:** a thread that a living process owns, or that a started job goes on with, is left alone.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::Serialize;

use super::Error;
use crate::ids::{CheckpointId, Epoch, Namespace, ThreadId, UnixNanos};

/// A thread as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ThreadView {
    /// The thread; one that Python wrote may have an id that no job could have.
    pub thread_id: String,
    /// Checkpoints of its root graph.
    pub checkpoints: u64,
    /// Nested graphs that have checkpoints.
    pub nested: u64,
    /// Its newest root checkpoint.
    pub checkpoint_id: Option<String>,
    /// The step of that.
    pub step: Option<i64>,
    /// When that was made: ISO 8601.
    pub ts: Option<String>,
    /// The job that made it; none of Python's.
    pub job_id: Option<String>,
    /// The hash of the definition it was made with; none of Python's.
    pub definition: Option<String>,
    /// Whether it waits for somebody: for an answer, or to be told to go on.
    pub waits: bool,
    /// The living process that owns it.
    pub owner: Option<String>,
    /// Jobs of the thread that have not ended.
    pub open_jobs: u64,
}

/// Which threads to list.
#[derive(Clone, Debug, Default)]
pub struct ThreadFilter {
    /// This one only.
    pub id: Option<ThreadId>,
    /// Ids that start so.
    pub prefix: String,
    /// Ids behind this one, in the store's order.
    pub after: String,
}

/// What a thread takes in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ThreadSize {
    /// The thread.
    pub thread_id: String,
    /// All of it.
    pub bytes: u64,
    /// By table; values as they are stored, without indexes.
    pub tables: BTreeMap<String, u64>,
}

/// An operator's claim of a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The thread.
    pub thread_id: ThreadId,
    /// What writes to it carry.
    pub epoch: Epoch,
    /// Its newest root checkpoint.
    pub head: Option<CheckpointId>,
}

/// Why an operator may not touch a thread.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Barred {
    /// It has no such checkpoint, or none at all.
    #[error("the thread has no such checkpoint")]
    Unknown,
    /// A living process owns it.
    #[error("the thread is owned by a living process{}", job(.0.as_deref()))]
    Owned(Option<String>),
    /// A job of it has not ended.
    #[error("the thread has a job that has not ended{}", job(.0.as_deref()))]
    Open(Option<String>),
    /// The thread to copy to is there already.
    #[error("the other thread exists already")]
    Exists,
}

fn job(id: Option<&str>) -> String {
    id.map(|id| format!(": {id}")).unwrap_or_default()
}

impl Barred {
    /// The code operators find in TROUBLESHOOTING.md.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "THREAD_NOT_FOUND",
            Self::Owned(_) | Self::Open(_) => "THREAD_BUSY",
            Self::Exists => "THREAD_EXISTS",
        }
    }
}

/// What becomes of threads that have been silent for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Nothing.
    Nothing,
    /// Their newest checkpoint.
    Latest,
}

/// Which threads are old, and what is left of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldThreads {
    /// Their newest checkpoint is from before.
    pub before: UnixNanos,
    /// What is left.
    pub leave: Leave,
    /// Whether also those are removed that wait for somebody.
    pub waiting: bool,
}

/// What one look at old threads came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpiredThreads {
    /// Where to go on; `None` when every thread has been looked at.
    pub after: Option<String>,
    /// Threads of which something was removed.
    pub threads: u64,
    /// Checkpoints removed.
    pub checkpoints: u64,
}

/// Whole threads.
#[async_trait]
pub trait Threads: Send + Sync {
    /// At most `limit` threads with checkpoints, in the order of their ids.
    async fn threads(&self, filter: &ThreadFilter, limit: u32) -> Result<Vec<ThreadView>, Error>;

    /// The graphs of a thread that have checkpoints, the root graph first.
    async fn graphs(&self, thread_id: &ThreadId) -> Result<Vec<Namespace>, Error>;

    /// The checkpoints of a graph of a thread, newest first.
    async fn checkpoint_ids(&self, thread_id: &ThreadId, ns: &Namespace) -> Result<Vec<CheckpointId>, Error>;

    /// The `limit` largest threads, or the one of that name; reads every row.
    async fn sizes(&self, only: Option<&ThreadId>, limit: u32) -> Result<Vec<ThreadSize>, Error>;

    /// Claims a thread that no job goes on with, to be written to by [`commit`](super::Checkpoints::commit).
    async fn seize(&self, thread_id: &ThreadId) -> Result<Result<Held, Barred>, Error>;

    /// Gives a claimed thread back.
    async fn let_go(&self, held: &Held) -> Result<(), Error>;

    /// Removes a thread that has no open job; how many checkpoints that were.
    async fn delete_thread(&self, thread_id: &ThreadId) -> Result<Result<u64, Barred>, Error>;

    /// Copies root checkpoint `at` of a thread, those before it and what hangs on them to `to`, which must have
    /// none; how many checkpoints that were.
    async fn copy_thread(
        &self,
        from: &ThreadId,
        at: &CheckpointId,
        to: &ThreadId,
    ) -> Result<Result<u64, Barred>, Error>;

    /// Looks at `limit` threads behind `after` and removes what is old. Threads with an open job are left alone.
    async fn expire_threads(
        &self,
        old: &OldThreads,
        after: &str,
        limit: u32,
    ) -> Result<ExpiredThreads, Error>;
}

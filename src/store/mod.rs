//! Ports of durable state: checkpoints, jobs, thread ownership, outbox. Home of sqlx and of msgpack.
//!
//! **Invariant:** nothing is written for a thread under an epoch that is no longer the thread's.

pub mod langgraph;
pub mod memory;
pub mod postgres;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    ids::{CheckpointId, Epoch, JobId, Namespace, ThreadId},
    pregel::{Checkpoint, Metadata, PendingWrite},
    value::Name,
};

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The thread belongs to a later epoch: stop, and say nothing to the queue.
    #[error("thread {thread_id} is no longer owned under epoch {epoch}")]
    Fenced {
        /// The thread.
        thread_id: ThreadId,
        /// The epoch that was refused.
        epoch: Epoch,
    },
    /// The database did not answer, or not in time; the same call may succeed later.
    #[error("the database is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database refused the statement for what it carries; it will never succeed.
    #[error("the database refused the data: {0}")]
    Refused(String),
    /// A stored value cannot be decoded.
    #[error("stored {what} of thread {thread_id} cannot be read: {reason}")]
    Corrupt {
        /// The thread.
        thread_id: String,
        /// `checkpoint`, `blob`, `write` or `request`.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A value cannot be written: NUL in a text, an integer beyond 64 bits.
    #[error("channel {channel} holds a value that cannot be stored: {reason}")]
    Unstorable {
        /// The channel.
        channel: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The schema in the database cannot be brought up to date.
    #[error("migration failed: {0}")]
    Migration(String),
}

impl Error {
    /// The code operators find in TROUBLESHOOTING.md.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Fenced { .. } => "STORE_FENCED",
            Self::Unavailable(_) => "STORE_UNAVAILABLE",
            Self::Refused(_) => "STORE_REFUSED",
            Self::Corrupt { .. } => "STORE_CORRUPT",
            Self::Unstorable { .. } => "STORE_UNSTORABLE",
            Self::Migration(_) => "STORE_MIGRATION",
        }
    }
}

/// A claim of a thread: the right to write to it until somebody claims it anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The thread.
    pub thread_id: ThreadId,
    /// The fencing token; every write carries it.
    pub epoch: Epoch,
    /// The job to run under it, which may be an older one of the thread than the one that was offered.
    pub job_id: JobId,
    /// Which attempt of the job this is, from 1.
    pub attempt: u32,
    /// The newest root checkpoint of the thread.
    pub head: Option<CheckpointId>,
    /// The stored request of the job.
    pub request: Bytes,
    /// Time until the job's deadline, which all its attempts share; zero once it has passed.
    pub time_left: Duration,
}

/// What `accept` says about an offered job.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Run the claimed job.
    Run(Claim),
    /// The claimed job has killed too many of its owners: end it as failed.
    Poison(Claim),
    /// Another job of the thread runs; keep the message and offer the job again later.
    Parked {
        /// Time until the lease of the running job ends, unless it is renewed.
        retry_in: Duration,
    },
    /// The job itself runs elsewhere; keep the message and offer it again later.
    RunningElsewhere {
        /// As for `Parked`.
        retry_in: Duration,
    },
    /// The job has ended and its result is published.
    Done,
    /// The job has ended and its result waits to be published.
    DoneUnpublished {
        /// What is to be published.
        result: StoredResult,
        /// How long ago the job ended: whoever ended it may be publishing it right now.
        ended: Duration,
    },
}

/// A result as committed: what is published is exactly this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredResult {
    /// The job.
    pub job_id: JobId,
    /// The id of the CloudEvent and of the message.
    pub event_id: String,
    /// The subject it is published on.
    pub subject: String,
    /// The structured CloudEvent.
    pub event: Bytes,
}

/// A job as it is offered to the store.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The job.
    pub job_id: JobId,
    /// Its thread.
    pub thread_id: ThreadId,
    /// Where its message stands in the stream; jobs of a thread start in this order.
    pub stream_seq: u64,
    /// `enqueue`, `reject`, `interrupt` or `rollback`.
    pub multitask_strategy: &'static str,
    /// The request as it can be decoded again.
    pub request: Bytes,
    /// How long the job may take from now on.
    pub timeout: Duration,
    /// The claim of the thread that this process still runs: its lease stands even when it could not be
    /// renewed in time.
    pub running: Option<Epoch>,
}

/// How a job ended, as the database keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// Completed, or interrupted: nothing left to do for this job.
    Succeeded,
    /// Ended with an error.
    Failed,
    /// Stopped on request.
    Cancelled,
    /// Given up because it killed its owners.
    Dead,
}

impl JobState {
    /// The word in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Dead => "dead",
        }
    }
}

/// The end of a job.
#[derive(Clone, Debug)]
pub struct Finish {
    /// The claim under which it ran.
    pub claim: Claim,
    /// How it ended.
    pub state: JobState,
    /// What will be published.
    pub result: StoredResult,
    /// The full event when `result` only refers to it.
    pub body: Option<Bytes>,
    /// The error as JSON, for operators.
    pub error: Option<serde_json::Value>,
    /// Whether to hand the thread straight to its next queued job; `false` frees the thread.
    pub next: NextJob,
}

/// What to do with the thread after a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextJob {
    /// Claim the next queued job of the thread, if there is one.
    Take,
    /// Leave it to others; for a process that is about to end.
    Leave,
}

/// A stored checkpoint with what was written on top of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// What is stored beside it.
    pub metadata: Metadata,
    /// The checkpoint before it.
    pub parent: Option<CheckpointId>,
    /// Writes of tasks that started from it, in the order (task path, task id, idx).
    pub writes: Vec<PendingWrite>,
}

/// A checkpoint to store.
#[derive(Clone, Debug)]
pub struct Put {
    /// The graph it belongs to.
    pub ns: Namespace,
    /// The checkpoint.
    pub checkpoint: Arc<Checkpoint>,
    /// What is stored beside it.
    pub metadata: Metadata,
    /// The checkpoint before it.
    pub parent: Option<CheckpointId>,
    /// Channels that got a new version with it; their values are stored once, under that version.
    pub changed: Vec<Name>,
}

/// Writes of tasks, to be stored on the checkpoint they started from.
#[derive(Clone, Debug)]
pub struct TaskWrites {
    /// The graph the tasks belong to.
    pub ns: Namespace,
    /// The checkpoint they started from.
    pub checkpoint_id: CheckpointId,
    /// What they wrote.
    pub writes: Vec<PendingWrite>,
}

/// One fenced, atomic write to a thread.
#[derive(Clone, Debug)]
pub struct Commit {
    /// The thread.
    pub thread_id: ThreadId,
    /// The epoch it is written under.
    pub epoch: Epoch,
    /// How the head of the thread moves; `None` for writes and for checkpoints of nested graphs.
    pub advance: Option<Advance>,
    /// Checkpoints, oldest first.
    pub puts: Vec<Put>,
    /// Writes of tasks.
    pub writes: Vec<TaskWrites>,
}

/// A move of a thread's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advance {
    /// The head it moves from; another head refuses the commit as fenced.
    pub from: Option<CheckpointId>,
    /// The head it moves to; sorts above `from`.
    pub to: CheckpointId,
}

/// Checkpoints of threads.
#[async_trait]
pub trait Checkpoints: Send + Sync {
    /// The checkpoint `id`, or the newest one, of a graph of a thread.
    async fn load(
        &self,
        thread_id: &ThreadId,
        ns: &Namespace,
        id: Option<&CheckpointId>,
    ) -> Result<Option<Saved>, Error>;

    /// Stores all of `commit` or nothing. Repeating a commit whose answer was lost changes nothing.
    ///
    /// While the database is away this waits and tries again; it ends with [`Error::Fenced`] when
    /// somebody else has claimed the thread. The write itself goes on when the caller stops waiting.
    async fn commit(&self, commit: Commit) -> Result<(), Error>;

    /// The newest `limit` checkpoints of a graph of a thread, newest first.
    async fn history(&self, thread_id: &ThreadId, ns: &Namespace, limit: u32) -> Result<Vec<Saved>, Error>;
}

/// Jobs, the ownership of threads, and results that wait to be published.
#[async_trait]
pub trait Jobs: Send + Sync {
    /// Records the job if it is new and claims its thread if it is free: one round trip.
    async fn accept(&self, offer: &Offer) -> Result<Verdict, Error>;

    /// Ends a job: fences, stores the terminal state and the result, and hands the thread on.
    /// Repeating a finish whose answer was lost changes nothing and returns the same next claim.
    async fn finish(&self, finish: &Finish) -> Result<Option<Claim>, Error>;

    /// Frees a thread without ending its job: the next claim continues it and nothing is charged to it.
    async fn release(&self, claim: &Claim) -> Result<(), Error>;

    /// Takes this epoch off the job's list of suspected crashes: the owner lost its claim but lives.
    async fn refund(&self, claim: &Claim) -> Result<(), Error>;

    /// Renews the leases of all `claims` in one statement. Claims that are missing in the answer are lost.
    async fn renew(&self, claims: &[(ThreadId, Epoch)]) -> Result<Vec<(ThreadId, Epoch)>, Error>;

    /// Notes that the result of the job is in the results stream.
    async fn mark_published(&self, job_id: &JobId) -> Result<(), Error>;

    /// The full event of a finished job; `None` when the job is unknown or has not ended.
    async fn result(&self, job_id: &JobId) -> Result<Option<Bytes>, Error>;

    /// Keeps a copy of a message that will never be run.
    async fn bury(&self, letter: &DeadLetter) -> Result<(), Error>;

    /// Asks the database for a sign of life.
    async fn ping(&self) -> Result<(), Error>;
}

/// A message that will never be run.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// The stream it came from.
    pub stream: String,
    /// Its place there.
    pub stream_seq: u64,
    /// Its subject.
    pub subject: String,
    /// Its headers.
    pub headers: Vec<(String, String)>,
    /// Its payload, as it came.
    pub payload: Bytes,
    /// The job, when it could be read.
    pub job_id: Option<JobId>,
    /// The thread, when it could be read.
    pub thread_id: Option<ThreadId>,
    /// Why, in one word of [a-z_].
    pub reason: &'static str,
    /// Why, in a sentence.
    pub error: String,
    /// How often it was delivered.
    pub deliveries: u64,
}

/// All that a worker needs of durable state.
pub trait Store: Checkpoints + Jobs {}

impl<T: Checkpoints + Jobs> Store for T {}

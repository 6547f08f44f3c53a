//! Port of jobs: who may run them, how they end, and the outbox of their results.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Commit, Error, Record};
use crate::{
    ids::{CheckpointId, Epoch, JobId, ThreadId},
    job::Job,
};

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
    /// Set when the job is to be ended instead of run.
    pub cancel: Option<Cancel>,
    /// Whether the job is suspected to kill its owners: it runs in the process' lane for such jobs.
    pub suspect: bool,
}

/// Why a job is to end before it is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// What becomes of what it did.
    pub kind: CancelKind,
    /// Who wants it: a person, a program, or the id of another job of the thread.
    #[serde(default)]
    pub by: String,
    /// Why, in their words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What becomes of a job that is to end before it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CancelKind {
    /// Somebody does not want it any more; what it did stays.
    Cancel,
    /// A newer job of the thread takes its place; what it did stays.
    Interrupt,
    /// A newer job of the thread takes its place; what it did is undone.
    Rollback,
    /// The thread was busy, and the job asked not to wait.
    Reject,
}

/// What `accept` says about an offered job.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Run the claimed job.
    Run(Claim),
    /// The claimed job has killed too many of its owners: end it as failed.
    Poison(Claim),
    /// The next job of the thread is suspected to kill its owners: ask again with the process' one lane for such jobs.
    NeedLane,
    /// The thread is busy and the job does not want to wait: end it with [`Jobs::end`].
    Rejected(Cancel),
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
    /// The job, with the place of its message in the stream; jobs of a thread start in this order.
    pub record: Record,
    /// The claim of the thread that this process still runs: its lease stands even when it could not be
    /// renewed in time.
    pub running: Option<Epoch>,
    /// Whether this process holds its lane for suspects for this job.
    pub lane: bool,
}

impl Offer {
    /// `job` from the message at `stream_seq`, for a process that does not run its thread; `timeout` is for a job that
    /// does not name its own.
    pub fn of(job: &Job, stream_seq: u64, timeout: Duration) -> Self {
        Self { record: Record::of(job, Some(stream_seq), timeout), running: None, lane: false }
    }
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
    /// What becomes of the thread.
    pub next: NextJob,
    /// The last checkpoint and writes of the run; they become durable with the end or not at all.
    pub last: Option<Commit>,
    /// Whether to take back everything the job stored, so that the thread stands where the job found it.
    pub undo: bool,
}

/// The end of a job that never ran.
#[derive(Clone, Debug)]
pub struct Ending {
    /// How it ended.
    pub state: JobState,
    /// What will be published.
    pub result: StoredResult,
    /// The full event when `result` only refers to it.
    pub body: Option<Bytes>,
    /// The error as JSON, for operators.
    pub error: Option<serde_json::Value>,
}

/// A renewed lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewed {
    /// The thread.
    pub thread_id: ThreadId,
    /// The epoch of the claim.
    pub epoch: Epoch,
    /// Set when its job is to end.
    pub cancel: Option<Cancel>,
}

/// What to do with the thread after a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextJob {
    /// Claim the next queued job of the thread, if there is one.
    Take,
    /// Leave it to others; for a process that is about to end.
    Leave,
}

/// Jobs, the ownership of threads, and results that wait to be published.
#[async_trait]
pub trait Jobs: Send + Sync {
    /// Records the job if it is new and claims its thread if it is free: one round trip.
    async fn accept(&self, offer: &Offer) -> Result<Verdict, Error>;

    /// Ends a job: fences, stores its last checkpoint, its terminal state and its result in one transaction, and
    /// hands the thread on. Repeating a finish whose answer was lost changes nothing and returns the same next claim.
    ///
    /// While the database is away this waits and tries again, as [`Checkpoints::commit`](super::Checkpoints) does.
    async fn finish(&self, finish: &Finish) -> Result<Option<Claim>, Error>;

    /// Ends a job that was never started; `false` when it is no longer queued.
    async fn end(&self, ending: &Ending) -> Result<bool, Error>;

    /// Frees a thread without ending its job: the next claim continues it and nothing is charged to it.
    async fn release(&self, claim: &Claim) -> Result<(), Error>;

    /// Takes this epoch off the job's list of suspected crashes: the owner lost its claim but lives.
    async fn refund(&self, claim: &Claim) -> Result<(), Error>;

    /// Renews the leases of all `claims` in one statement. Claims that are missing in the answer are lost.
    async fn renew(&self, claims: &[(ThreadId, Epoch)]) -> Result<Vec<Renewed>, Error>;

    /// Notes that the result of the job is in the results stream.
    async fn mark_published(&self, job_id: &JobId) -> Result<(), Error>;

    /// The full event of a finished job; `None` when the job is unknown or has not ended.
    async fn result(&self, job_id: &JobId) -> Result<Option<Bytes>, Error>;

    /// Asks the database for a sign of life.
    async fn ping(&self) -> Result<(), Error>;
}

//! Port of what operators look at and repair by hand, and of the removal of what is old.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::Error;
use crate::ids::{CheckpointId, JobId, ThreadId};

/// A job as an operator sees it.
#[derive(Clone, Debug)]
pub struct JobView {
    /// Its thread.
    pub thread_id: ThreadId,
    /// `queued`, `running`, `succeeded`, `failed`, `cancelled` or `dead`.
    pub state: String,
    /// Where its message stands, or stood.
    pub stream_seq: Option<u64>,
    /// Attempts so far.
    pub attempts: u32,
    /// Owners that vanished without progress.
    pub crashes: u32,
    /// The stored request.
    pub request: Bytes,
    /// Why it failed.
    pub error: Option<Json>,
    /// Whether its result is in the results stream.
    pub published: bool,
}

/// What a job has left on its thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trail {
    /// The job's last checkpoint.
    pub last: Option<CheckpointId>,
    /// The thread's newest checkpoint.
    pub newest: Option<CheckpointId>,
}

/// An open job that nobody runs.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// The job.
    pub job_id: JobId,
    /// Where its message, or the copy of it, stands; `None` when it never had one.
    pub message_seq: Option<u64>,
    /// Whether that is the copy.
    pub is_copied: bool,
    /// The stored request.
    pub request: Bytes,
}

/// From when on something counts as wrong.
#[derive(Clone, Copy, Debug)]
pub struct Grace {
    /// Silence of an owner beyond the end of its lease.
    pub lease: Duration,
    /// Time in which somebody should have taken up a job.
    pub waiting: Duration,
    /// Time in which a result should have been published.
    pub unpublished: Duration,
}

/// Rows of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// How many there are.
    pub count: u64,
    /// Seconds since the oldest came to be so.
    pub oldest_seconds: f64,
    /// The ids of the oldest, at most [`FIRST`].
    pub first: Vec<String>,
}

/// Most ids that are listed of one kind.
pub const FIRST: usize = 20;

/// The state of the store in numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Overview {
    /// The version of the database.
    pub version: String,
    /// Threads that somebody owns.
    pub threads_owned: u64,
    /// Jobs that wait.
    pub jobs_queued: u64,
    /// Jobs that somebody runs, or ran when it died.
    pub jobs_running: u64,
    /// Open jobs that are to end.
    pub jobs_to_cancel: u64,
    /// Wishes to cancel that were noted before their job, or with it.
    pub wishes: u64,
    /// Threads whose owner has died.
    pub dead_leases: Found,
    /// Threads with open jobs that nobody takes up.
    pub stuck_threads: Found,
    /// Queued jobs whose deadline has passed.
    pub overdue_jobs: Found,
    /// Open jobs that owners have died with.
    pub suspects: Found,
    /// Jobs whose result waits to be published.
    pub unpublished: Found,
    /// Letters that nobody has dealt with, by reason.
    pub dead_letters: BTreeMap<String, u64>,
    /// Bytes by table, indexes included.
    pub tables: BTreeMap<String, u64>,
}

/// How long things are kept; `None` is for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Jobs whose result is published, after their end; and wishes to cancel.
    pub jobs: Option<Duration>,
    /// Dead letters, whatever became of them.
    pub dead_letters: Option<Duration>,
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Jobs.
    pub jobs: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Wishes to cancel.
    pub wishes: u64,
    /// Rows of the ledger of effects.
    pub effects: u64,
}

impl Expired {
    /// The largest number; below the limit nothing is left to remove.
    pub fn most(&self) -> u64 {
        self.jobs.max(self.dead_letters).max(self.wishes).max(self.effects)
    }
}

/// Looks and repairs.
#[async_trait]
pub trait Inspect: Send + Sync {
    /// One job.
    async fn job(&self, job_id: &JobId) -> Result<Option<JobView>, Error>;

    /// What a job has left on a thread; the job may be unknown by now.
    async fn trail(&self, thread_id: &ThreadId, job_id: &JobId) -> Result<Trail, Error>;

    /// Everything in numbers; reads every open job and every thread.
    async fn overview(&self, grace: &Grace) -> Result<Overview, Error>;

    /// At most `limit` open jobs, accepted longer than `age` ago, whose thread nobody owns; the oldest first.
    async fn waiting(&self, age: Duration, limit: u32) -> Result<Vec<Waiting>, Error>;

    /// Notes where a copy of the job's message stands; its place in the order of its thread stays.
    async fn copied(&self, job_id: &JobId, stream_seq: u64) -> Result<(), Error>;

    /// Frees at most `limit` threads whose lease ended longer than `grace` ago, and charges their jobs as a claim
    /// would. A living lease is never touched.
    async fn free_dead(&self, grace: Duration, limit: u32) -> Result<Vec<ThreadId>, Error>;

    /// Removes at most `limit` of each kind that are older than allowed; nothing while another process does.
    async fn expire(&self, retention: &Retention, limit: u32) -> Result<Expired, Error>;
}

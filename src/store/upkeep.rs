//! Port of background duties: what any process does so that nothing is stuck when another one dies.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Cancel, Error, StoredResult, Verdict};
use crate::{
    ids::{JobId, ThreadId},
    job::{Job, MultitaskStrategy},
};

/// A job to be known before anybody runs it.
#[derive(Clone, Debug)]
pub struct Record {
    /// The job.
    pub job_id: JobId,
    /// Its thread.
    pub thread_id: ThreadId,
    /// Where its message stands in the stream; `None` before it is published.
    pub stream_seq: Option<u64>,
    /// What it wants when its thread is busy.
    pub multitask_strategy: MultitaskStrategy,
    /// The request as it can be decoded again.
    pub request: Bytes,
    /// How long the job may take from now on.
    pub timeout: Duration,
}

impl Record {
    /// `job` as the store is told of it; `timeout` is for one that does not name its own.
    pub fn of(job: &Job, stream_seq: Option<u64>, timeout: Duration) -> Self {
        Self {
            job_id: job.job_id.clone(),
            thread_id: job.thread_id.clone(),
            stream_seq,
            multitask_strategy: job.multitask_strategy,
            request: serde_json::to_vec(job).expect("a job came from JSON").into(),
            timeout: job.config.timeout().unwrap_or(timeout),
        }
    }
}

/// A queued job that is not to run any more.
#[derive(Clone, Debug)]
pub struct Doomed {
    /// The job.
    pub job_id: JobId,
    /// Its thread.
    pub thread_id: ThreadId,
    /// The stored request.
    pub request: Bytes,
    /// Who does not want it; `None` when its deadline has passed.
    pub cancel: Option<Cancel>,
}

/// What the store knows of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The job.
    pub job_id: JobId,
    /// Whether its result is in the results stream.
    pub published: bool,
}

/// Whose end somebody wishes for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The job of that id, which may be unknown yet.
    Job,
    /// The open jobs of the thread of that id.
    Thread,
    /// The job of that id; if there is none, the thread; if there is none either, a job to come.
    Either,
}

/// A job that a wish to cancel has met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wished {
    /// The job.
    pub job_id: JobId,
    /// Its thread.
    pub thread_id: ThreadId,
    /// `queued`, `running`, or how it had ended before.
    pub state: String,
}

/// What a wish to cancel came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Met {
    /// The jobs it met.
    pub jobs: Vec<Wished>,
    /// Whether it waits for a job of that id to come.
    pub waits: bool,
}

/// Background duties.
#[async_trait]
pub trait Upkeep: Send + Sync {
    /// At most `limit` threads whose owner has died with a job open; with `queued`, also threads whose queued jobs
    /// nobody has taken up for a while. Empty while another process asks.
    /// Without `lane`, those are left out whose job is suspected to kill its owners.
    async fn orphans(&self, limit: u32, queued: bool, lane: bool) -> Result<Vec<ThreadId>, Error>;

    /// Claims the next open job of a thread without a message: [`Verdict::Run`], [`Verdict::Poison`] or
    /// [`Verdict::NeedLane`]; `None` when somebody else owns the thread or nothing is open.
    async fn adopt(&self, thread_id: &ThreadId, lane: bool) -> Result<Option<Verdict>, Error>;

    /// At most `limit` queued jobs that were cancelled or whose deadline has passed.
    async fn doomed(&self, limit: u32) -> Result<Vec<Doomed>, Error>;

    /// At most `limit` results that have waited to be published for longer than `age`, oldest first; with `after`,
    /// only those behind that job's. None when that job is gone.
    async fn unpublished(
        &self,
        age: Duration,
        after: Option<&JobId>,
        limit: u32,
    ) -> Result<Vec<StoredResult>, Error>;

    /// Records a job without claiming its thread; `false` when it is known.
    async fn record(&self, record: &Record) -> Result<bool, Error>;

    /// Takes back a [`Record`] without a place in the stream, unless somebody has met the job since.
    async fn forget(&self, job_id: &JobId) -> Result<(), Error>;

    /// What is known of these jobs; unknown ones are missing.
    async fn known(&self, job_ids: &[JobId]) -> Result<Vec<Known>, Error>;

    /// Notes a wish to cancel.
    async fn wish(&self, id: &str, target: Target, cancel: &Cancel) -> Result<Met, Error>;

    /// Whether a duty that one process at a time does is this one's now: nobody has taken it for `every`.
    async fn take_duty(&self, name: &'static str, every: Duration) -> Result<bool, Error>;
}

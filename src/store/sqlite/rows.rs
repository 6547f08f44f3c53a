//! Rows of threads and jobs as the rules see them, and the times and ids in them.

use bytes::Bytes;
use serde_json::Value as Json;
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::failure::Failure;
use crate::{
    ids::{CheckpointId, Epoch, JobId, ThreadId, UnixNanos},
    job::MultitaskStrategy,
    store::{Cancel, CancelKind, Error, StoredResult},
};

const THREAD: &str = "SELECT epoch, owner, chained_from, job_id, lease_until, head FROM executor_thread \
    WHERE thread_id = ?";

/// Columns of a job; without what may be large.
macro_rules! select_job {
    ($rest:literal) => {
        concat!(
            "SELECT job_id, thread_id, stream_seq, state, policy, attempt, charged, head_at_claim, cancel, \
             decided, deadline_at, finished_at, finished_epoch, error, published_at FROM executor_job ",
            $rest
        )
    };
}
pub(super) use select_job;

const JOB: &str = select_job!("WHERE job_id = ?");

const LARGE: &str = "SELECT request FROM executor_job WHERE job_id = ?";

const RESULT: &str = "SELECT result_event_id, result_subject, result FROM executor_job WHERE job_id = ?";

const NEWEST: &str = "SELECT max(checkpoint_id) FROM checkpoints WHERE thread_id = ? AND checkpoint_ns = ''";

/// A value of ours as JSON text.
pub(super) fn text(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("names, numbers and texts serialise")
}

/// A thread and who owns it.
#[derive(Clone, Debug)]
pub(super) struct Thread {
    pub(super) epoch: Epoch,
    pub(super) owner: Option<String>,
    pub(super) chained_from: Option<Epoch>,
    pub(super) job_id: Option<JobId>,
    pub(super) lease_until: UnixNanos,
    pub(super) head: Option<CheckpointId>,
}

/// A job.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) job_id: JobId,
    pub(super) thread_id: ThreadId,
    pub(super) stream_seq: Option<u64>,
    pub(super) state: String,
    pub(super) policy: MultitaskStrategy,
    pub(super) attempt: u32,
    pub(super) charged: Vec<i64>,
    pub(super) head_at_claim: Option<CheckpointId>,
    pub(super) cancel: Option<Cancel>,
    pub(super) decided: bool,
    pub(super) deadline: UnixNanos,
    pub(super) finished: Option<UnixNanos>,
    pub(super) finished_epoch: Option<Epoch>,
    pub(super) error: Option<Json>,
    pub(super) published: bool,
}

impl Job {
    pub(super) fn is_running(&self) -> bool {
        self.state == "running"
    }

    pub(super) fn is_turned_away(&self) -> bool {
        self.cancel.as_ref().is_some_and(|cancel| cancel.kind == CancelKind::Reject)
    }
}

/// A point in time as it is stored.
pub(super) fn stored_time(time: UnixNanos) -> i64 {
    i64::try_from(time.0).unwrap_or(i64::MAX)
}

/// A place in a stream as it is stored.
pub(super) fn stored_seq(seq: u64) -> Result<i64, Failure> {
    let refused = || Error::Refused(format!("stream sequence {seq} does not fit 63 bits"));
    i64::try_from(seq).map_err(|_| refused().into())
}

pub(super) fn time(stored: i64) -> UnixNanos {
    UnixNanos(u64::try_from(stored).unwrap_or_default())
}

fn corrupt(thread_id: &str, reason: impl ToString) -> Failure {
    let what = "request";
    Error::Corrupt { thread_id: thread_id.to_owned(), what, reason: reason.to_string() }.into()
}

/// A column that holds JSON text.
pub(super) fn json<T: serde::de::DeserializeOwned>(
    row: &SqliteRow,
    column: &str,
) -> Result<Option<T>, Failure> {
    let text: Option<&str> = row.try_get(column)?;
    let read = |text: &str| {
        serde_json::from_str(text).map_err(|error| corrupt("", format_args!("column {column}: {error}")))
    };
    text.map(read).transpose()
}

fn checkpoint_id(thread_id: &str, text: Option<&str>) -> Result<Option<CheckpointId>, Failure> {
    let read = |text| CheckpointId::parse(text).map_err(|error| corrupt(thread_id, error));
    text.map(read).transpose()
}

/// The row of a thread, which is made when it is missing.
pub(super) async fn thread(db: &mut SqliteConnection, thread_id: &ThreadId) -> Result<Thread, Failure> {
    sqlx::query("INSERT OR IGNORE INTO executor_thread (thread_id) VALUES (?)")
        .bind(thread_id.as_str())
        .execute(&mut *db)
        .await?;
    let found = known_thread(db, thread_id).await?;
    found.ok_or_else(|| corrupt(thread_id.as_str(), "the thread is gone"))
}

/// The row of a thread, if there is one.
pub(super) async fn known_thread(
    db: &mut SqliteConnection,
    thread_id: &ThreadId,
) -> Result<Option<Thread>, Failure> {
    let row = sqlx::query(THREAD).bind(thread_id.as_str()).fetch_optional(db).await?;
    let read = |row: SqliteRow| -> Result<Thread, Failure> {
        let job_id: Option<&str> = row.try_get("job_id")?;
        let job_id =
            job_id.map(JobId::parse).transpose().map_err(|error| corrupt(thread_id.as_str(), error))?;
        Ok(Thread {
            epoch: Epoch(row.try_get("epoch")?),
            owner: row.try_get("owner")?,
            chained_from: row.try_get::<Option<i64>, _>("chained_from")?.map(Epoch),
            job_id,
            lease_until: time(row.try_get("lease_until")?),
            head: checkpoint_id(thread_id.as_str(), row.try_get("head")?)?,
        })
    };
    row.map(read).transpose()
}

/// The next fencing token.
pub(super) async fn next_epoch(db: &mut SqliteConnection) -> Result<Epoch, Failure> {
    let next = sqlx::query_scalar("UPDATE executor_epoch SET last = last + 1 RETURNING last");
    Ok(Epoch(next.fetch_one(db).await?))
}

/// The row of a job.
pub(super) async fn job(db: &mut SqliteConnection, job_id: &JobId) -> Result<Option<Job>, Failure> {
    let row = sqlx::query(JOB).bind(job_id.as_str()).fetch_optional(db).await?;
    row.as_ref().map(read_job).transpose()
}

pub(super) fn read_job(row: &SqliteRow) -> Result<Job, Failure> {
    let thread: &str = row.try_get("thread_id")?;
    let unread = |error: crate::ids::Error| corrupt(thread, error);
    let stream_seq: Option<i64> = row.try_get("stream_seq")?;
    let policy: &str = row.try_get("policy")?;
    let policy = MultitaskStrategy::parse(policy)
        .ok_or_else(|| corrupt(thread, format_args!("unknown policy {policy:?}")))?;
    Ok(Job {
        job_id: JobId::parse(row.try_get("job_id")?).map_err(unread)?,
        thread_id: ThreadId::parse(thread).map_err(unread)?,
        stream_seq: stream_seq.and_then(|seq| u64::try_from(seq).ok()),
        state: row.try_get("state")?,
        policy,
        attempt: row.try_get("attempt")?,
        charged: json(row, "charged")?.unwrap_or_default(),
        head_at_claim: checkpoint_id(thread, row.try_get("head_at_claim")?)?,
        cancel: json(row, "cancel")?,
        decided: row.try_get("decided")?,
        deadline: time(row.try_get("deadline_at")?),
        finished: row.try_get::<Option<i64>, _>("finished_at")?.map(time),
        finished_epoch: row.try_get::<Option<i64>, _>("finished_epoch")?.map(Epoch),
        error: json(row, "error")?,
        published: row.try_get::<Option<i64>, _>("published_at")?.is_some(),
    })
}

/// The stored request of a job.
pub(super) async fn request(db: &mut SqliteConnection, job_id: &JobId) -> Result<Bytes, Failure> {
    let request: Vec<u8> = sqlx::query_scalar(LARGE).bind(job_id.as_str()).fetch_one(db).await?;
    Ok(request.into())
}

/// The result of a job that has ended.
pub(super) async fn result(db: &mut SqliteConnection, job_id: &JobId) -> Result<StoredResult, Failure> {
    let row = sqlx::query(RESULT).bind(job_id.as_str()).fetch_one(db).await?;
    Ok(StoredResult {
        job_id: job_id.clone(),
        event_id: row.try_get::<Option<String>, _>(0)?.unwrap_or_default(),
        subject: row.try_get::<Option<String>, _>(1)?.unwrap_or_default(),
        event: row.try_get::<Option<Vec<u8>>, _>(2)?.unwrap_or_default().into(),
    })
}

/// The newest root checkpoint of a thread.
pub(super) async fn newest(
    db: &mut SqliteConnection,
    thread_id: &ThreadId,
) -> Result<Option<CheckpointId>, Failure> {
    let id: Option<String> = sqlx::query_scalar(NEWEST).bind(thread_id.as_str()).fetch_one(db).await?;
    checkpoint_id(thread_id.as_str(), id.as_deref())
}

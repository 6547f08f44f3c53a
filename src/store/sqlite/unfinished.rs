//! What somebody who comes back to a thread finds on it: the job that has not ended.

use std::time::Duration;

use bytes::Bytes;
use sqlx::SqliteConnection;

use super::{
    SqliteStore,
    claims::Claimant,
    failure::Failure,
    rows::{self, Job},
};
use crate::{
    ids::{JobId, ThreadId},
    store::Error,
};

const FIRST: &str = rows::select_job!(
    "WHERE thread_id = ? AND finished_at IS NULL AND state = 'running' ORDER BY job_id LIMIT 1"
);

/// The job of a thread that was started. One that was not is somebody's who waits for the thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// The job.
    pub job_id: JobId,
    /// Its stored request.
    pub request: Bytes,
    /// Time until the lease of whoever owns the thread ends, unless it is renewed; `None` when nobody does.
    pub owned_for: Option<Duration>,
}

impl SqliteStore {
    /// The job of the thread that was started and has not ended, if there is one.
    pub async fn unfinished(&self, thread_id: &ThreadId) -> Result<Option<Unfinished>, Error> {
        let (thread_id, by) = (thread_id.clone(), self.claimant());
        self.link.read(move |db| Box::pin(async move { unfinished(db, &thread_id, &by).await })).await
    }
}

async fn unfinished(
    db: &mut SqliteConnection,
    thread_id: &ThreadId,
    by: &Claimant,
) -> Result<Option<Unfinished>, Failure> {
    let row = sqlx::query(FIRST).bind(thread_id.as_str()).fetch_optional(&mut *db).await?;
    let Some(row) = row else { return Ok(None) };
    let Job { job_id, .. } = rows::read_job(&row)?;
    let thread = rows::known_thread(db, thread_id).await?;
    let standing = thread.filter(|thread| thread.owner.is_some() && thread.lease_until > by.now);
    let request = rows::request(db, &job_id).await?;
    Ok(Some(Unfinished {
        job_id,
        request,
        owned_for: standing.map(|thread| thread.lease_until.since(by.now)),
    }))
}

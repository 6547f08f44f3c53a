//! Looks and repairs by hand, and the removal of what is old.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{
    SqliteStore,
    claims::{self, Claimant},
    failure::Failure,
    rows::{self, stored_seq, time},
};
use crate::{
    ids::{CheckpointId, JobId, ThreadId, UnixNanos},
    store::{Error, Expired, FIRST, Found, Grace, Inspect, JobView, Overview, Retention, Trail, Waiting},
};

const LAST: &str = "SELECT max(checkpoint_id) FROM checkpoints WHERE thread_id = ? AND checkpoint_ns = '' \
    AND json_extract(metadata, '$.job_id') = ?";

/// Each kind with its ids and since when they are so; ?1 to ?3 are now without the graces of leases, waiting, publishing.
const FOUND: &str = "
    SELECT 'dead_leases' AS kind, thread_id AS id, lease_until AS since FROM executor_thread
        WHERE owner IS NOT NULL AND lease_until < ?1
    UNION ALL SELECT 'stuck_threads', j.thread_id, min(j.accepted_at) FROM executor_job j
        JOIN executor_thread t USING (thread_id)
        WHERE j.finished_at IS NULL AND t.owner IS NULL AND j.accepted_at < ?2 GROUP BY j.thread_id
    UNION ALL SELECT 'overdue_jobs', job_id, deadline_at FROM executor_job
        WHERE state = 'queued' AND deadline_at < ?2
    UNION ALL SELECT 'suspects', job_id, accepted_at FROM executor_job
        WHERE finished_at IS NULL AND json_array_length(charged) > 0
    UNION ALL SELECT 'unpublished', job_id, finished_at FROM executor_job
        WHERE published_at IS NULL AND finished_at < ?3
    ORDER BY since, id";

const COUNTS: &str = "SELECT sqlite_version(), \
    (SELECT count(*) FROM executor_thread WHERE owner IS NOT NULL AND lease_until >= ?1), \
    (SELECT count(*) FROM executor_job WHERE state = 'queued'), \
    (SELECT count(*) FROM executor_job WHERE state = 'running'), \
    (SELECT count(*) FROM executor_job WHERE finished_at IS NULL AND cancel IS NOT NULL), \
    (SELECT count(*) FROM executor_cancel)";

const REASONS: &str = "SELECT reason, count(*) FROM executor_dead_letter \
    WHERE replayed_at IS NULL AND discarded_at IS NULL GROUP BY reason";

/// Only the whole file has a size that costs nothing to ask for.
const BYTES: &str = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()";

const WAITING: &str = "SELECT j.job_id, j.copy_seq, j.stream_seq FROM executor_job j \
    JOIN executor_thread t USING (thread_id) \
    WHERE j.finished_at IS NULL AND t.owner IS NULL AND j.accepted_at < ?1 \
    ORDER BY j.accepted_at, j.job_id LIMIT ?2";

const DEAD: &str = "SELECT thread_id FROM executor_thread WHERE owner IS NOT NULL AND lease_until < ?1 \
    ORDER BY thread_id LIMIT ?2";

/// Charges the job that ran for the death of its owner, once.
const CHARGE: &str = "UPDATE executor_job SET charged = json_insert(charged, '$[#]', t.epoch) \
    FROM executor_thread t WHERE t.thread_id = ?1 AND executor_job.job_id = t.job_id \
        AND executor_job.state = 'running' \
        AND NOT EXISTS (SELECT 1 FROM json_each(executor_job.charged) WHERE value = t.epoch)";

/// Without an age nothing is older than it: NULL compares as unknown.
const OLD_JOBS: &str = "DELETE FROM executor_job WHERE job_id IN (SELECT job_id FROM executor_job \
    WHERE published_at IS NOT NULL AND finished_at < ?1 ORDER BY finished_at LIMIT ?2)";

const OLD_LETTERS: &str = "DELETE FROM executor_dead_letter WHERE id IN ( \
    SELECT id FROM executor_dead_letter WHERE created_at < ?1 ORDER BY id LIMIT ?2)";

const OLD_WISHES: &str = "DELETE FROM executor_cancel WHERE job_id IN ( \
    SELECT job_id FROM executor_cancel WHERE created_at < ?1 LIMIT ?2)";

/// One whose outcome is unknown waits for a person, however long.
const OLD_EFFECTS: &str = "DELETE FROM executor_effect WHERE rowid IN ( \
    SELECT rowid FROM executor_effect WHERE state <> 'unknown' AND updated_at < ?1 ORDER BY updated_at LIMIT ?2)";

#[async_trait]
impl Inspect for SqliteStore {
    async fn job(&self, job_id: &JobId) -> Result<Option<JobView>, Error> {
        let job_id = job_id.clone();
        self.link.read(move |db| Box::pin(async move { job(db, &job_id).await })).await
    }

    async fn trail(&self, thread_id: &ThreadId, job_id: &JobId) -> Result<Trail, Error> {
        let (thread_id, job_id) = (thread_id.clone(), job_id.clone());
        self.link.read(move |db| Box::pin(async move { trail(db, &thread_id, &job_id).await })).await
    }

    async fn overview(&self, grace: &Grace) -> Result<Overview, Error> {
        let (grace, by) = (*grace, self.claimant());
        self.link.read(move |db| Box::pin(async move { overview(db, &grace, &by).await })).await
    }

    async fn waiting(&self, age: Duration, limit: u32) -> Result<Vec<Waiting>, Error> {
        let by = self.claimant();
        self.link.read(move |db| Box::pin(async move { waiting(db, age, limit, &by).await })).await
    }

    async fn copied(&self, job_id: &JobId, stream_seq: u64) -> Result<(), Error> {
        let job_id = job_id.clone();
        self.link.write(move |db| Box::pin(async move { copied(db, &job_id, stream_seq).await })).await
    }

    async fn free_dead(&self, grace: Duration, limit: u32) -> Result<Vec<ThreadId>, Error> {
        let by = self.claimant();
        self.link.write(move |db| Box::pin(async move { free_dead(db, grace, limit, &by).await })).await
    }

    async fn expire(&self, retention: &Retention, limit: u32) -> Result<Expired, Error> {
        let (retention, by) = (*retention, self.claimant());
        self.link.write(move |db| Box::pin(async move { expire(db, &retention, limit, &by).await })).await
    }
}

async fn job(db: &mut SqliteConnection, job_id: &JobId) -> Result<Option<JobView>, Failure> {
    let Some(job) = rows::job(db, job_id).await? else { return Ok(None) };
    Ok(Some(JobView {
        thread_id: job.thread_id,
        state: job.state,
        stream_seq: job.stream_seq,
        attempts: job.attempt,
        crashes: u32::try_from(job.charged.len()).unwrap_or(u32::MAX),
        request: rows::request(db, job_id).await?,
        error: job.error,
        published: job.published,
    }))
}

pub(super) async fn trail(
    db: &mut SqliteConnection,
    thread_id: &ThreadId,
    job_id: &JobId,
) -> Result<Trail, Failure> {
    let last: Option<String> =
        sqlx::query_scalar(LAST).bind(thread_id.as_str()).bind(job_id.as_str()).fetch_one(&mut *db).await?;
    let last = last.as_deref().map(CheckpointId::parse).transpose().map_err(|error| Error::Corrupt {
        thread_id: thread_id.to_string(),
        what: "checkpoint",
        reason: error.to_string(),
    })?;
    Ok(Trail { last, newest: rows::newest(db, thread_id).await? })
}

async fn overview(db: &mut SqliteConnection, grace: &Grace, by: &Claimant) -> Result<Overview, Failure> {
    let found = sqlx::query(FOUND)
        .bind(by.before(grace.lease))
        .bind(by.before(grace.waiting))
        .bind(by.before(grace.unpublished))
        .fetch_all(&mut *db)
        .await?;
    let kinds = kinds(&found, by.now)?;
    let of_kind = |kind: &str| kinds.get(kind).cloned().unwrap_or_default();
    let counts = sqlx::query(COUNTS).bind(by.before(grace.lease)).fetch_one(&mut *db).await?;
    let count = |column: usize| {
        Ok::<_, Failure>(u64::try_from(counts.try_get::<i64, _>(column)?).unwrap_or_default())
    };
    let letters: Vec<(String, i64)> = sqlx::query_as(REASONS).fetch_all(&mut *db).await?;
    let bytes: i64 = sqlx::query_scalar(BYTES).fetch_one(db).await?;
    let letters =
        letters.into_iter().map(|(reason, count)| (reason, u64::try_from(count).unwrap_or_default()));
    Ok(Overview {
        version: format!("SQLite {}", counts.try_get::<&str, _>(0)?),
        threads_owned: count(1)?,
        jobs_queued: count(2)?,
        jobs_running: count(3)?,
        jobs_to_cancel: count(4)?,
        wishes: count(5)?,
        dead_leases: of_kind("dead_leases"),
        stuck_threads: of_kind("stuck_threads"),
        overdue_jobs: of_kind("overdue_jobs"),
        suspects: of_kind("suspects"),
        unpublished: of_kind("unpublished"),
        dead_letters: letters.collect(),
        tables: [("all".to_owned(), u64::try_from(bytes).unwrap_or_default())].into(),
    })
}

/// Rows of each kind, which come oldest first.
fn kinds(rows: &[SqliteRow], now: UnixNanos) -> Result<BTreeMap<String, Found>, Failure> {
    let mut kinds: BTreeMap<String, Found> = BTreeMap::new();
    for row in rows {
        let found = kinds.entry(row.try_get("kind")?).or_default();
        if found.count == 0 {
            found.oldest_seconds = now.since(time(row.try_get("since")?)).as_secs_f64();
        }
        found.count += 1;
        if found.first.len() < FIRST {
            found.first.push(row.try_get("id")?);
        }
    }
    Ok(kinds)
}

async fn waiting(
    db: &mut SqliteConnection,
    age: Duration,
    limit: u32,
    by: &Claimant,
) -> Result<Vec<Waiting>, Failure> {
    let rows = sqlx::query(WAITING).bind(by.before(age)).bind(limit).fetch_all(&mut *db).await?;
    let mut waiting = Vec::with_capacity(rows.len());
    for row in &rows {
        let Ok(job_id) = JobId::parse(row.try_get(0)?) else { continue };
        let (copy, place): (Option<i64>, Option<i64>) = (row.try_get(1)?, row.try_get(2)?);
        waiting.push(Waiting {
            message_seq: copy.or(place).and_then(|seq| u64::try_from(seq).ok()),
            is_copied: copy.is_some(),
            request: rows::request(db, &job_id).await?,
            job_id,
        });
    }
    Ok(waiting)
}

async fn copied(db: &mut SqliteConnection, job_id: &JobId, stream_seq: u64) -> Result<(), Failure> {
    sqlx::query("UPDATE executor_job SET copy_seq = ?2 WHERE job_id = ?1 AND finished_at IS NULL")
        .bind(job_id.as_str())
        .bind(stored_seq(stream_seq)?)
        .execute(db)
        .await?;
    Ok(())
}

async fn free_dead(
    db: &mut SqliteConnection,
    grace: Duration,
    limit: u32,
    by: &Claimant,
) -> Result<Vec<ThreadId>, Failure> {
    let rows = sqlx::query(DEAD).bind(by.before(grace)).bind(limit).fetch_all(&mut *db).await?;
    let mut freed = Vec::with_capacity(rows.len());
    for row in &rows {
        let Ok(thread_id) = ThreadId::parse(row.try_get(0)?) else { continue };
        sqlx::query(CHARGE).bind(thread_id.as_str()).execute(&mut *db).await?;
        claims::free(db, &thread_id).await?;
        freed.push(thread_id);
    }
    Ok(freed)
}

async fn expire(
    db: &mut SqliteConnection,
    retention: &Retention,
    limit: u32,
    by: &Claimant,
) -> Result<Expired, Failure> {
    let since = |age: Option<Duration>| age.map(|age| by.before(age));
    let (jobs, letters) = (since(retention.jobs), since(retention.dead_letters));
    let mut removed = [0; 4];
    let kinds = [(OLD_JOBS, jobs), (OLD_LETTERS, letters), (OLD_WISHES, jobs), (OLD_EFFECTS, jobs)];
    for (place, (statement, since)) in removed.iter_mut().zip(kinds) {
        *place = sqlx::query(statement).bind(since).bind(limit).execute(&mut *db).await?.rows_affected();
    }
    let [jobs, dead_letters, wishes, effects] = removed;
    Ok(Expired { jobs, dead_letters, wishes, effects })
}

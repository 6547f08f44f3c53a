//! Looks and repairs by hand, and the removal of what is old.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value as Json;
use sqlx::{Row, postgres::PgRow};

use super::{PostgresStore, jobs::stream_seq, statement::millis};
use crate::{
    ids::{CheckpointId, JobId, ThreadId},
    store::{Error, Expired, FIRST, Grace, Inspect, JobView, Overview, Retention, Trail, Waiting},
};

const JOB: &str = "SELECT thread_id, state, stream_seq, attempt, cardinality(charged) AS crashes, request, error, \
    published_at IS NOT NULL AS published FROM executor_job WHERE job_id = $1";

const TRAIL: &str = "SELECT max(checkpoint_id COLLATE \"C\") FILTER (WHERE metadata ->> 'job_id' = $2) AS last, \
    max(checkpoint_id COLLATE \"C\") AS newest FROM checkpoints WHERE thread_id = $1 AND checkpoint_ns = ''";

/// One statement, so that the numbers fit together. Open jobs and unpublished results have their indexes; owned
/// threads have none, since a renewal would pay for it.
const OVERVIEW: &str = "
    WITH owned AS MATERIALIZED (
        SELECT thread_id, lease_until, lease_until < clock_timestamp() - $1 * interval '1 millisecond' AS dead
        FROM executor_thread WHERE owner IS NOT NULL
    ), open AS MATERIALIZED (
        SELECT j.job_id, j.thread_id, j.state, j.accepted_at, j.deadline_at, j.charged, j.cancel, t.owner
        FROM executor_job j LEFT JOIN executor_thread t USING (thread_id) WHERE j.state IN ('queued', 'running')
    ), found (kind, id, since) AS (
        SELECT 'dead_leases', thread_id, lease_until FROM owned WHERE dead
        UNION ALL SELECT 'stuck_threads', thread_id, min(accepted_at) FROM open
            WHERE owner IS NULL AND accepted_at < clock_timestamp() - $2 * interval '1 millisecond' GROUP BY thread_id
        UNION ALL SELECT 'overdue_jobs', job_id, deadline_at FROM open
            WHERE state = 'queued' AND deadline_at < clock_timestamp() - $2 * interval '1 millisecond'
        UNION ALL SELECT 'suspects', job_id, accepted_at FROM open WHERE cardinality(charged) > 0
        UNION ALL SELECT 'unpublished', job_id, finished_at FROM executor_job
            WHERE published_at IS NULL AND finished_at < clock_timestamp() - $3 * interval '1 millisecond'
    )
    SELECT jsonb_build_object(
        'version', current_setting('server_version'),
        'threads_owned', (SELECT count(*) FROM owned WHERE NOT dead),
        'jobs_queued', (SELECT count(*) FROM open WHERE state = 'queued'),
        'jobs_running', (SELECT count(*) FROM open WHERE state = 'running'),
        'jobs_to_cancel', (SELECT count(*) FROM open WHERE cancel IS NOT NULL),
        'wishes', (SELECT count(*) FROM executor_cancel),
        'dead_letters', (SELECT coalesce(jsonb_object_agg(l.reason, l.count), '{}') FROM (
            SELECT reason, count(*) FROM executor_dead_letter WHERE replayed_at IS NULL AND discarded_at IS NULL
            GROUP BY reason) l),
        'tables', (SELECT coalesce(jsonb_object_agg(relname, pg_total_relation_size(oid)), '{}') FROM pg_class
            WHERE relkind = 'r' AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
              AND (relname LIKE 'checkpoint%' OR relname LIKE 'executor\\_%')))
    || (SELECT coalesce(jsonb_object_agg(k.kind, k.rows), '{}') FROM (
        SELECT kind, jsonb_build_object('count', count(*),
            'oldest_seconds', greatest(0, extract(epoch FROM clock_timestamp() - min(since))),
            'first', to_jsonb((array_agg(id ORDER BY since, id))[1:$4])) AS rows
        FROM found GROUP BY kind) k)";

const WAITING: &str = "SELECT j.job_id, coalesce(j.copy_seq, j.stream_seq), j.request, j.copy_seq IS NOT NULL \
    FROM executor_job j LEFT JOIN executor_thread t USING (thread_id) \
    WHERE j.state IN ('queued', 'running') AND t.owner IS NULL \
      AND j.accepted_at < clock_timestamp() - $1 * interval '1 millisecond' ORDER BY j.accepted_at, j.job_id LIMIT $2";

const COPIED: &str =
    "UPDATE executor_job SET copy_seq = $2 WHERE job_id = $1 AND state IN ('queued', 'running')";

const FREE: &str = "SELECT thread_id FROM executor_free($1, $2)";

const EXPIRE: &str = "SELECT jobs, letters, wishes, effects FROM executor_expire($1, $2, $3)";

#[async_trait]
impl Inspect for PostgresStore {
    async fn job(&self, job_id: &JobId) -> Result<Option<JobView>, Error> {
        let job_id = job_id.to_string();
        let rows = self.link.rows(move || sqlx::query(JOB).bind(job_id.clone())).await?;
        let view = |row: &PgRow| {
            let thread_id = ThreadId::parse(row.try_get("thread_id")?);
            let (attempts, crashes): (i32, i32) = (row.try_get("attempt")?, row.try_get("crashes")?);
            Ok(thread_id.map(|thread_id| JobView {
                thread_id,
                state: row.get("state"),
                stream_seq: seq(row.get("stream_seq")),
                attempts: u32::try_from(attempts).unwrap_or_default(),
                crashes: u32::try_from(crashes).unwrap_or_default(),
                request: Bytes::from(row.get::<Option<Vec<u8>>, _>("request").unwrap_or_default()),
                error: row.get("error"),
                published: row.get("published"),
            }))
        };
        let view = rows.first().map(view).transpose().map_err(|error: sqlx::Error| corrupt(error))?;
        view.transpose().map_err(corrupt)
    }

    async fn trail(&self, thread_id: &ThreadId, job_id: &JobId) -> Result<Trail, Error> {
        let (thread, job) = (thread_id.to_string(), job_id.to_string());
        let rows = self.link.rows(move || sqlx::query(TRAIL).bind(thread.clone()).bind(job.clone())).await?;
        let Some(row) = rows.first() else { return Ok(Trail::default()) };
        let id = |column: &str| {
            let text: Option<&str> = row.try_get(column).map_err(corrupt)?;
            text.map(CheckpointId::parse).transpose().map_err(corrupt)
        };
        Ok(Trail { last: id("last")?, newest: id("newest")? })
    }

    async fn overview(&self, grace: &Grace) -> Result<Overview, Error> {
        let grace = *grace;
        let first = i32::try_from(FIRST).expect("a short list");
        let rows = self.link.rows(move || {
            sqlx::query(OVERVIEW)
                .bind(millis(grace.lease))
                .bind(millis(grace.waiting))
                .bind(millis(grace.unpublished))
                .bind(first)
        });
        let rows = rows.await?;
        let row = rows.first().ok_or_else(|| corrupt("no answer"))?;
        // Kinds of which there is nothing are missing.
        let answer: Json = row.try_get(0).map_err(corrupt)?;
        serde_json::from_value(answer).map_err(corrupt)
    }

    async fn waiting(&self, age: Duration, limit: u32) -> Result<Vec<Waiting>, Error> {
        let rows = self.link.rows(move || sqlx::query(WAITING).bind(millis(age)).bind(most(limit))).await?;
        let waiting = |row: &PgRow| {
            Ok(Waiting {
                job_id: JobId::parse(row.try_get(0).map_err(corrupt)?).map_err(corrupt)?,
                message_seq: seq(row.try_get(1).map_err(corrupt)?),
                is_copied: row.try_get(3).map_err(corrupt)?,
                request: Bytes::from(
                    row.try_get::<Option<Vec<u8>>, _>(2).map_err(corrupt)?.unwrap_or_default(),
                ),
            })
        };
        rows.iter().map(waiting).collect()
    }

    async fn copied(&self, job_id: &JobId, place: u64) -> Result<(), Error> {
        let (job_id, place) = (job_id.to_string(), stream_seq(place)?);
        self.link.rows(move || sqlx::query(COPIED).bind(job_id.clone()).bind(place)).await.map(drop)
    }

    async fn free_dead(&self, grace: Duration, limit: u32) -> Result<Vec<ThreadId>, Error> {
        let rows = self.link.rows(move || sqlx::query(FREE).bind(millis(grace)).bind(most(limit))).await?;
        rows.iter().map(|row| ThreadId::parse(row.try_get(0).map_err(corrupt)?).map_err(corrupt)).collect()
    }

    async fn expire(&self, retention: &Retention, limit: u32) -> Result<Expired, Error> {
        let retention = *retention;
        let rows = self.link.rows(move || {
            sqlx::query(EXPIRE)
                .bind(retention.jobs.map(millis))
                .bind(retention.dead_letters.map(millis))
                .bind(most(limit))
        });
        let rows = rows.await?;
        let Some(row) = rows.first() else { return Ok(Expired::default()) };
        let count = |column: &str| -> Result<u64, Error> {
            let count: i64 = row.try_get(column).map_err(corrupt)?;
            u64::try_from(count).map_err(corrupt)
        };
        Ok(Expired {
            jobs: count("jobs")?,
            dead_letters: count("letters")?,
            wishes: count("wishes")?,
            effects: count("effects")?,
        })
    }
}

fn corrupt(reason: impl ToString) -> Error {
    Error::Corrupt { thread_id: String::new(), what: "request", reason: reason.to_string() }
}

fn most(limit: u32) -> i32 {
    i32::try_from(limit).unwrap_or(i32::MAX)
}

fn seq(stored: Option<i64>) -> Option<u64> {
    stored.and_then(|seq| u64::try_from(seq).ok())
}

//! Background duties: threads without an owner, jobs that must end, results that wait.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::{Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    PostgresStore,
    jobs::{Columns, cancel, complete, stream_seq},
    statement::{millis, plain},
};
use crate::{
    ids::{JobId, ThreadId},
    store::{Cancel, Doomed, Error, Known, Met, Record, StoredResult, Target, Upkeep, Verdict, Wished},
};

const ORPHANS: &str = "SELECT DISTINCT thread_id FROM executor_orphans($1, $2, $3)";

const ADOPT: &str = "SELECT verdict, job_id, epoch, attempt, head, request, time_ms, cancel, suspect \
    FROM executor_adopt($1, $2, $3, $4, $5, $6)";

const DOOMED: &str = "SELECT job_id, thread_id, request, cancel FROM executor_doomed($1)";

const UNPUBLISHED: &str = "SELECT job_id, result_event_id, result_subject, result FROM executor_job \
    WHERE published_at IS NULL AND finished_at < clock_timestamp() - $1 * interval '1 millisecond' \
      AND ($3::text IS NULL OR (finished_at, job_id) > ( \
        SELECT a.finished_at, a.job_id FROM executor_job a WHERE a.job_id = $3)) \
    ORDER BY finished_at, job_id LIMIT $2";

const RECORD: &str = "SELECT executor_record($1, $2, $3, $4, $5, $6)";

const FORGET: &str =
    "DELETE FROM executor_job WHERE job_id = $1 AND state = 'queued' AND stream_seq IS NULL AND attempt = 0";

const KNOWN: &str = "SELECT job_id, published_at IS NOT NULL FROM executor_job WHERE job_id = ANY ($1)";

const WISH: &str = "SELECT job_id, thread_id, state FROM executor_wish($1, $2, $3::jsonb)";

const TAKE_DUTY: &str = "INSERT INTO executor_duty AS d (name, taken_at) VALUES ($1, clock_timestamp()) \
    ON CONFLICT (name) DO UPDATE SET taken_at = clock_timestamp() \
    WHERE d.taken_at <= clock_timestamp() - $2 * interval '1 millisecond' RETURNING true";

#[async_trait]
impl Upkeep for PostgresStore {
    async fn orphans(&self, limit: u32, queued: bool, lane: bool) -> Result<Vec<ThreadId>, Error> {
        let limit = i32::try_from(limit).unwrap_or(i32::MAX);
        let rows = self.link.rows(move || sqlx::query(ORPHANS).bind(limit).bind(queued).bind(lane)).await?;
        rows.iter().map(|row| thread_id(row, 0)).collect()
    }

    async fn adopt(&self, thread_id: &ThreadId, lane: bool) -> Result<Option<Verdict>, Error> {
        let (thread, by) = (thread_id.clone(), self.claimant.clone());
        let nonce = Uuid::new_v4().to_string();
        let rows = self.link.rows(move || {
            sqlx::query(ADOPT)
                .bind(thread.to_string())
                .bind(by.owner.clone())
                .bind(nonce.clone())
                .bind(millis(by.lease))
                .bind(by.max_crashes)
                .bind(lane)
        });
        let rows = rows.await?;
        let mut verdict = rows.first().map(|row| Columns { row, thread_id }.verdict()).transpose()?;
        if let Some(Verdict::Run(claim) | Verdict::Poison(claim)) = &mut verdict {
            complete(&self.link, claim).await?;
        }
        Ok(verdict)
    }

    async fn doomed(&self, limit: u32) -> Result<Vec<Doomed>, Error> {
        let limit = i32::try_from(limit).unwrap_or(i32::MAX);
        let rows = self.link.rows(move || sqlx::query(DOOMED).bind(limit)).await?;
        let doomed = |row: &PgRow| {
            Ok(Doomed {
                job_id: job_id(row, 0)?,
                thread_id: thread_id(row, 1)?,
                request: bytes(row, 2)?,
                cancel: cancel(row.try_get(3).map_err(corrupt)?),
            })
        };
        rows.iter().map(doomed).collect()
    }

    async fn unpublished(
        &self,
        age: Duration,
        after: Option<&JobId>,
        limit: u32,
    ) -> Result<Vec<StoredResult>, Error> {
        let after = after.map(ToString::to_string);
        let statement =
            move || sqlx::query(UNPUBLISHED).bind(millis(age)).bind(i64::from(limit)).bind(after.clone());
        let rows = self.link.rows(statement).await?;
        let result = |row: &PgRow| {
            Ok(StoredResult {
                job_id: job_id(row, 0)?,
                event_id: text(row, 1)?.to_owned(),
                subject: text(row, 2)?.to_owned(),
                event: bytes(row, 3)?,
            })
        };
        rows.iter().map(result).collect()
    }

    async fn record(&self, record: &Record) -> Result<bool, Error> {
        let seq = record.stream_seq.map(stream_seq).transpose()?;
        let record = record.clone();
        let rows = self.link.rows(move || {
            sqlx::query(RECORD)
                .bind(record.job_id.to_string())
                .bind(record.thread_id.to_string())
                .bind(seq)
                .bind(record.multitask_strategy.as_str())
                .bind(record.request.to_vec())
                .bind(millis(record.timeout))
        });
        Ok(rows.await?.first().is_some_and(|row| row.try_get(0).unwrap_or(false)))
    }

    async fn forget(&self, job_id: &JobId) -> Result<(), Error> {
        let job_id = job_id.clone();
        self.link.rows(move || sqlx::query(FORGET).bind(job_id.to_string())).await.map(drop)
    }

    async fn known(&self, job_ids: &[JobId]) -> Result<Vec<Known>, Error> {
        let ids: Vec<String> = job_ids.iter().map(ToString::to_string).collect();
        let rows = self.link.rows(move || sqlx::query(KNOWN).bind(ids.clone())).await?;
        let known =
            |row: &PgRow| Ok(Known { job_id: job_id(row, 0)?, published: row.try_get(1).map_err(corrupt)? });
        rows.iter().map(known).collect()
    }

    async fn wish(&self, id: &str, target: Target, cancel: &Cancel) -> Result<Met, Error> {
        let kind = match target {
            Target::Job => "job",
            Target::Thread => "thread",
            Target::Either => "either",
        };
        let cancel =
            Cancel { by: plain(&cancel.by), reason: cancel.reason.as_deref().map(plain), kind: cancel.kind };
        let cancel = serde_json::to_string(&cancel).map_err(corrupt)?;
        let id = plain(id);
        let rows = self
            .link
            .rows(move || sqlx::query(WISH).bind(id.clone()).bind(kind).bind(cancel.clone()))
            .await?;
        let wished = |row: &PgRow| {
            Ok(Wished {
                job_id: job_id(row, 0)?,
                thread_id: thread_id(row, 1)?,
                state: text(row, 2)?.to_owned(),
            })
        };
        let is_job = |row: &&PgRow| !matches!(row.try_get::<Option<&str>, _>(0), Ok(None));
        let jobs = rows.iter().filter(is_job).map(wished).collect::<Result<Vec<_>, Error>>()?;
        // A row without a job says that the wish waits for one.
        Ok(Met { waits: jobs.len() < rows.len(), jobs })
    }

    async fn take_duty(&self, name: &'static str, every: Duration) -> Result<bool, Error> {
        let rows = self.link.rows(move || sqlx::query(TAKE_DUTY).bind(name).bind(millis(every))).await?;
        Ok(!rows.is_empty())
    }
}

fn corrupt(reason: impl ToString) -> Error {
    Error::Corrupt { thread_id: String::new(), what: "request", reason: reason.to_string() }
}

fn text(row: &PgRow, column: usize) -> Result<&str, Error> {
    row.try_get(column).map_err(corrupt)
}

fn bytes(row: &PgRow, column: usize) -> Result<Bytes, Error> {
    let stored: Option<Vec<u8>> = row.try_get(column).map_err(corrupt)?;
    Ok(stored.unwrap_or_default().into())
}

fn job_id(row: &PgRow, column: usize) -> Result<JobId, Error> {
    JobId::parse(text(row, column)?).map_err(corrupt)
}

fn thread_id(row: &PgRow, column: usize) -> Result<ThreadId, Error> {
    ThreadId::parse(text(row, column)?).map_err(corrupt)
}

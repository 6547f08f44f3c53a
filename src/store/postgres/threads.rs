//! Whole threads.

use std::collections::BTreeMap;

use async_trait::async_trait;
use sqlx::{Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    PostgresStore,
    statement::{millis, plain},
};
use crate::{
    ids::{CheckpointId, Epoch, Namespace, ThreadId},
    store::{
        Barred, Error, ExpiredThreads, Held, Leave, OldThreads, ThreadFilter, ThreadSize, ThreadView, Threads,
    },
};

/// Walks from one thread to the next along the primary key: a thread may have thousands of checkpoints.
const THREADS: &str = "
    WITH RECURSIVE t AS (
        SELECT (SELECT c.thread_id FROM checkpoints c
            WHERE c.thread_id > $1 AND ($4::text IS NULL OR c.thread_id = $4) AND starts_with(c.thread_id, $2)
            ORDER BY c.thread_id LIMIT 1) AS thread_id, 1 AS nr
        UNION ALL
        SELECT (SELECT c.thread_id FROM checkpoints c
            WHERE c.thread_id > t.thread_id AND $4::text IS NULL AND starts_with(c.thread_id, $2)
            ORDER BY c.thread_id LIMIT 1), t.nr + 1
        FROM t WHERE t.thread_id IS NOT NULL AND t.nr < $3
    )
    SELECT t.thread_id, n.roots, n.nested, c.checkpoint_id, c.metadata ->> 'step', c.checkpoint ->> 'ts',
        c.metadata ->> 'job_id', c.metadata ->> 'executor_definition',
        coalesce(executor_waits(t.thread_id, c.checkpoint_id), false),
        CASE WHEN o.lease_until > clock_timestamp() THEN o.owner END,
        (SELECT count(*) FROM executor_job j WHERE j.thread_id = t.thread_id AND j.state IN ('queued', 'running'))
    FROM t
        CROSS JOIN LATERAL (SELECT count(*) FILTER (WHERE x.checkpoint_ns = '') AS roots,
            count(DISTINCT x.checkpoint_ns) FILTER (WHERE x.checkpoint_ns <> '') AS nested
            FROM checkpoints x WHERE x.thread_id = t.thread_id) n
        LEFT JOIN LATERAL (SELECT * FROM checkpoints x WHERE x.thread_id = t.thread_id AND x.checkpoint_ns = ''
            ORDER BY x.checkpoint_id DESC LIMIT 1) c ON true
        LEFT JOIN executor_thread o ON o.thread_id = t.thread_id
    WHERE t.thread_id IS NOT NULL ORDER BY t.nr";

const GRAPHS: &str =
    "SELECT DISTINCT checkpoint_ns COLLATE \"C\" FROM checkpoints WHERE thread_id = $1 ORDER BY 1";

const IDS: &str = "SELECT checkpoint_id FROM checkpoints WHERE thread_id = $1 AND checkpoint_ns = $2 \
    ORDER BY checkpoint_id DESC";

/// 28 bytes are the head of a row; a value counts as it is stored, compressed and out of line.
const SIZES: &str = "
    WITH rows (thread_id, name, bytes) AS (
        SELECT thread_id, 'checkpoints', 28 + pg_column_size(checkpoint) + pg_column_size(metadata)
            + pg_column_size(thread_id) + pg_column_size(checkpoint_ns) + 2 * pg_column_size(checkpoint_id) FROM checkpoints
        UNION ALL
        SELECT thread_id, 'checkpoint_blobs', 28 + coalesce(pg_column_size(blob), 0) + pg_column_size(thread_id)
            + pg_column_size(checkpoint_ns) + pg_column_size(channel) + pg_column_size(version) FROM checkpoint_blobs
        UNION ALL
        SELECT thread_id, 'checkpoint_writes', 28 + pg_column_size(blob) + pg_column_size(thread_id)
            + pg_column_size(checkpoint_ns) + pg_column_size(checkpoint_id) + pg_column_size(task_id)
            + pg_column_size(channel) + pg_column_size(task_path) FROM checkpoint_writes
        UNION ALL
        SELECT thread_id, 'executor_effect', 28 + coalesce(pg_column_size(answer), 0) + pg_column_size(thread_id)
            + pg_column_size(checkpoint_ns) + pg_column_size(task_id) + pg_column_size(call_id) FROM executor_effect
        UNION ALL
        SELECT thread_id, 'executor_job', 28 + coalesce(pg_column_size(request), 0) + coalesce(pg_column_size(result), 0)
            + coalesce(pg_column_size(result_body), 0) + coalesce(pg_column_size(error), 0) + pg_column_size(thread_id)
            + pg_column_size(job_id) FROM executor_job
    ), sums AS (
        SELECT thread_id, name, sum(bytes)::bigint AS bytes FROM rows
        WHERE $1::text IS NULL OR thread_id = $1 GROUP BY thread_id, name
    )
    SELECT thread_id, sum(bytes)::bigint, array_agg(name), array_agg(bytes) FROM sums
    GROUP BY thread_id ORDER BY 2 DESC, 1 LIMIT $2";

const SEIZE: &str = "SELECT verdict, job_id, epoch, head FROM executor_seize($1, $2, $3, $4)";

const LET_GO: &str = "SELECT executor_release($1, $2, $3)";

const DELETE: &str = "SELECT verdict, job_id, checkpoints FROM executor_delete_thread($1)";

const COPY: &str = "SELECT verdict, job_id, checkpoints FROM executor_copy_thread($1, $2, $3)";

const EXPIRE: &str =
    "SELECT last, looked, threads, checkpoints FROM executor_expire_threads($1, $2, $3, $4, $5)";

#[async_trait]
impl Threads for PostgresStore {
    async fn threads(&self, filter: &ThreadFilter, limit: u32) -> Result<Vec<ThreadView>, Error> {
        let filter = filter.clone();
        let rows = self.link.rows(move || {
            sqlx::query(THREADS)
                .bind(plain(&filter.after))
                .bind(plain(&filter.prefix))
                .bind(i32::try_from(limit).unwrap_or(i32::MAX))
                .bind(filter.id.as_ref().map(ToString::to_string))
        });
        let view = |row: &PgRow| {
            Ok(ThreadView {
                thread_id: get(row, 0)?,
                checkpoints: count(row, 1)?,
                nested: count(row, 2)?,
                checkpoint_id: get(row, 3)?,
                step: get::<Option<String>>(row, 4)?.and_then(|step| step.parse().ok()),
                ts: get(row, 5)?,
                job_id: get(row, 6)?,
                definition: get(row, 7)?,
                waits: get(row, 8)?,
                owner: get(row, 9)?,
                open_jobs: count(row, 10)?,
            })
        };
        rows.await?.iter().map(view).collect()
    }

    async fn graphs(&self, thread_id: &ThreadId) -> Result<Vec<Namespace>, Error> {
        let thread_id = thread_id.to_string();
        let rows = self.link.rows(move || sqlx::query(GRAPHS).bind(thread_id.clone())).await?;
        rows.iter().map(|row| get::<&str>(row, 0).map(Namespace::from_stored)).collect()
    }

    async fn checkpoint_ids(&self, thread_id: &ThreadId, ns: &Namespace) -> Result<Vec<CheckpointId>, Error> {
        let (id, ns) = (thread_id.to_string(), ns.to_string());
        let rows = self.link.rows(move || sqlx::query(IDS).bind(id.clone()).bind(ns.clone())).await?;
        rows.iter().map(|row| CheckpointId::parse(get(row, 0)?).map_err(corrupt)).collect()
    }

    async fn sizes(&self, only: Option<&ThreadId>, limit: u32) -> Result<Vec<ThreadSize>, Error> {
        let only = only.map(ToString::to_string);
        let rows =
            self.link.rows(move || sqlx::query(SIZES).bind(only.clone()).bind(i64::from(limit))).await?;
        let size = |row: &PgRow| {
            let (names, bytes): (Vec<String>, Vec<i64>) = (get(row, 2)?, get(row, 3)?);
            let tables: BTreeMap<_, _> =
                names.into_iter().zip(bytes.into_iter().map(i64::unsigned_abs)).collect();
            Ok(ThreadSize { thread_id: get(row, 0)?, bytes: count(row, 1)?, tables })
        };
        rows.iter().map(size).collect()
    }

    async fn seize(&self, thread_id: &ThreadId) -> Result<Result<Held, Barred>, Error> {
        let (id, owner, lease) =
            (thread_id.to_string(), self.claimant.owner.clone(), millis(self.claimant.lease));
        let nonce = Uuid::new_v4().to_string();
        let rows = self.link.rows(move || {
            sqlx::query(SEIZE).bind(id.clone()).bind(owner.clone()).bind(nonce.clone()).bind(lease)
        });
        let rows = rows.await?;
        let row = first(&rows)?;
        let verdict: &str = get(row, 0)?;
        if verdict != "held" {
            return barred(verdict, get(row, 1)?).map(Err);
        }
        let head: Option<&str> = get(row, 3)?;
        let head = head.map(CheckpointId::parse).transpose().map_err(corrupt)?;
        Ok(Ok(Held { thread_id: thread_id.clone(), epoch: Epoch(get(row, 2)?), head }))
    }

    async fn let_go(&self, held: &Held) -> Result<(), Error> {
        let (id, epoch, owner) = (held.thread_id.to_string(), held.epoch.0, self.claimant.owner.clone());
        self.link
            .rows(move || sqlx::query(LET_GO).bind(id.clone()).bind(epoch).bind(owner.clone()))
            .await
            .map(drop)
    }

    async fn delete_thread(&self, thread_id: &ThreadId) -> Result<Result<u64, Barred>, Error> {
        let id = thread_id.to_string();
        done(&self.link.rows(move || sqlx::query(DELETE).bind(id.clone())).await?)
    }

    async fn copy_thread(
        &self,
        from: &ThreadId,
        at: &CheckpointId,
        to: &ThreadId,
    ) -> Result<Result<u64, Barred>, Error> {
        let (from, at, to) = (from.to_string(), at.to_string(), to.to_string());
        done(
            &self
                .link
                .rows(move || sqlx::query(COPY).bind(from.clone()).bind(at.clone()).bind(to.clone()))
                .await?,
        )
    }

    async fn expire_threads(
        &self,
        old: &OldThreads,
        after: &str,
        limit: u32,
    ) -> Result<ExpiredThreads, Error> {
        let old = *old;
        let before = CheckpointId::next(None, old.before, 0, 0).to_string();
        let after = plain(after);
        let rows = self.link.rows(move || {
            sqlx::query(EXPIRE)
                .bind(before.clone())
                .bind(old.leave == Leave::Latest)
                .bind(old.waiting)
                .bind(after.clone())
                .bind(i32::try_from(limit).unwrap_or(i32::MAX))
        });
        let rows = rows.await?;
        // Another process does it right now.
        let Some(row) = rows.first() else { return Ok(ExpiredThreads::default()) };
        let last: String = get(row, 0)?;
        let more = count(row, 1)? == u64::from(limit);
        Ok(ExpiredThreads {
            after: more.then_some(last),
            threads: count(row, 2)?,
            checkpoints: count(row, 3)?,
        })
    }
}

fn corrupt(reason: impl ToString) -> Error {
    Error::Corrupt { thread_id: String::new(), what: "checkpoint", reason: reason.to_string() }
}

fn get<'r, T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>>(
    row: &'r PgRow,
    column: usize,
) -> Result<T, Error> {
    row.try_get(column).map_err(corrupt)
}

fn count(row: &PgRow, column: usize) -> Result<u64, Error> {
    get::<i64>(row, column).map(i64::unsigned_abs)
}

/// Why the database did not do it.
fn barred(verdict: &str, job: Option<String>) -> Result<Barred, Error> {
    match verdict {
        "unknown" => Ok(Barred::Unknown),
        "owned" => Ok(Barred::Owned(job)),
        "open" => Ok(Barred::Open(job)),
        "exists" => Ok(Barred::Exists),
        other => Err(corrupt(format!("unknown verdict {other:?}"))),
    }
}

fn first(rows: &[PgRow]) -> Result<&PgRow, Error> {
    rows.first().ok_or_else(|| corrupt("no answer"))
}

fn done(rows: &[PgRow]) -> Result<Result<u64, Barred>, Error> {
    let row = first(rows)?;
    match get::<&str>(row, 0)? {
        "done" => count(row, 2).map(Ok),
        verdict => barred(verdict, get(row, 1)?).map(Err),
    }
}

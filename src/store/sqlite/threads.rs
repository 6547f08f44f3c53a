//! Whole threads: what operators see of them. What they change stands in `thread_changes`.

use async_trait::async_trait;
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{
    SqliteStore,
    claims::Claimant,
    failure::Failure,
    rows::{self, stored_time},
    thread_changes as changes,
};
use crate::{
    ids::{CheckpointId, Namespace, ThreadId},
    store::{Barred, Error, ExpiredThreads, Held, OldThreads, ThreadFilter, ThreadSize, ThreadView, Threads},
};

/// Whether somebody is to answer before a thread goes on from a root checkpoint: a question stands on it, or it is
/// about to run nodes or sends and none of them has failed. The last is how LangGraph stores that it stops before a node.
/// A channel of sends that is empty is stored as an empty list, in msgpack or as LangGraph's old JSON.
macro_rules! waits {
    ($thread:literal, $checkpoint:literal) => {
        concat!(
            "(EXISTS (SELECT 1 FROM checkpoint_writes w WHERE w.thread_id = ",
            $thread,
            " AND w.checkpoint_ns = '' AND w.checkpoint_id = ",
            $checkpoint,
            " AND w.channel = '__interrupt__') \
              OR ((EXISTS (SELECT 1 FROM checkpoints k, json_each(k.checkpoint, '$.channel_values') v \
                    WHERE k.thread_id = ",
            $thread,
            " AND k.checkpoint_ns = '' AND k.checkpoint_id = ",
            $checkpoint,
            " AND v.key GLOB 'branch:to:*') \
                  OR EXISTS (SELECT 1 FROM checkpoints k JOIN checkpoint_blobs b ON b.thread_id = k.thread_id \
                        AND b.checkpoint_ns = '' AND b.channel = '__pregel_tasks' \
                        AND b.version = CAST(k.checkpoint ->> '$.channel_versions.__pregel_tasks' AS TEXT) \
                    WHERE k.thread_id = ",
            $thread,
            " AND k.checkpoint_ns = '' AND k.checkpoint_id = ",
            $checkpoint,
            " AND b.type <> 'empty' AND b.blob NOT IN (x'90', x'5b5d'))) \
                AND NOT EXISTS (SELECT 1 FROM checkpoint_writes w WHERE w.thread_id = ",
            $thread,
            " AND w.checkpoint_ns = '' AND w.checkpoint_id = ",
            $checkpoint,
            " AND w.channel = '__error__')))"
        )
    };
}
pub(super) use waits;

/// Walks from one thread to the next along the primary key: a thread may have thousands of checkpoints.
const THREADS: &str = concat!(
    "WITH RECURSIVE t (thread_id, nr) AS ( \
        SELECT (SELECT c.thread_id FROM checkpoints c \
            WHERE c.thread_id > ?1 AND (?4 IS NULL OR c.thread_id = ?4) AND substr(c.thread_id, 1, length(?2)) = ?2 \
            ORDER BY c.thread_id LIMIT 1), 1 \
        UNION ALL \
        SELECT (SELECT c.thread_id FROM checkpoints c \
            WHERE c.thread_id > t.thread_id AND ?4 IS NULL AND substr(c.thread_id, 1, length(?2)) = ?2 \
            ORDER BY c.thread_id LIMIT 1), t.nr + 1 \
        FROM t WHERE t.thread_id IS NOT NULL AND t.nr < ?3) \
    SELECT t.thread_id, \
        (SELECT count(*) FROM checkpoints x WHERE x.thread_id = t.thread_id AND x.checkpoint_ns = ''), \
        (SELECT count(DISTINCT x.checkpoint_ns) FROM checkpoints x \
            WHERE x.thread_id = t.thread_id AND x.checkpoint_ns <> ''), \
        c.checkpoint_id, CAST(c.metadata ->> '$.step' AS TEXT), CAST(c.checkpoint ->> '$.ts' AS TEXT), \
        CAST(c.metadata ->> '$.job_id' AS TEXT), CAST(c.metadata ->> '$.executor_definition' AS TEXT), ",
    waits!("t.thread_id", "c.checkpoint_id"),
    ", CASE WHEN o.lease_until > ?5 THEN o.owner END, \
        (SELECT count(*) FROM executor_job j WHERE j.thread_id = t.thread_id AND j.finished_at IS NULL) \
    FROM t \
        LEFT JOIN checkpoints c ON c.thread_id = t.thread_id AND c.checkpoint_ns = '' AND c.checkpoint_id = ( \
            SELECT max(x.checkpoint_id) FROM checkpoints x WHERE x.thread_id = t.thread_id AND x.checkpoint_ns = '') \
        LEFT JOIN executor_thread o ON o.thread_id = t.thread_id \
    WHERE t.thread_id IS NOT NULL AND ?3 > 0 ORDER BY t.nr"
);

const GRAPHS: &str = "SELECT DISTINCT checkpoint_ns FROM checkpoints WHERE thread_id = ? ORDER BY 1";

const IDS: &str = "SELECT checkpoint_id FROM checkpoints WHERE thread_id = ? AND checkpoint_ns = ? \
    ORDER BY checkpoint_id DESC";

/// What stands in the columns; SQLite adds a few bytes per row.
const SIZES: &str = "WITH rows (thread_id, name, bytes) AS ( \
        SELECT thread_id, 'checkpoints', octet_length(checkpoint) + octet_length(metadata) + octet_length(thread_id) \
            + octet_length(checkpoint_ns) + octet_length(checkpoint_id) \
            + coalesce(octet_length(parent_checkpoint_id), 0) FROM checkpoints \
        UNION ALL \
        SELECT thread_id, 'checkpoint_blobs', coalesce(octet_length(blob), 0) + octet_length(thread_id) \
            + octet_length(checkpoint_ns) + octet_length(channel) + octet_length(version) FROM checkpoint_blobs \
        UNION ALL \
        SELECT thread_id, 'checkpoint_writes', octet_length(blob) + octet_length(thread_id) \
            + octet_length(checkpoint_ns) + octet_length(checkpoint_id) + octet_length(task_id) \
            + octet_length(channel) + octet_length(task_path) FROM checkpoint_writes \
        UNION ALL \
        SELECT thread_id, 'executor_effect', coalesce(octet_length(answer), 0) + octet_length(thread_id) \
            + octet_length(checkpoint_ns) + octet_length(task_id) + octet_length(call_id) FROM executor_effect \
        UNION ALL \
        SELECT thread_id, 'executor_job', octet_length(request) + coalesce(octet_length(result), 0) \
            + coalesce(octet_length(result_body), 0) + coalesce(octet_length(error), 0) + octet_length(thread_id) \
            + octet_length(job_id) FROM executor_job \
    ), sums AS ( \
        SELECT thread_id, name, sum(bytes) AS bytes FROM rows WHERE ?1 IS NULL OR thread_id = ?1 \
        GROUP BY thread_id, name) \
    SELECT thread_id, sum(bytes), json_group_object(name, bytes) AS tables FROM sums \
    GROUP BY thread_id ORDER BY 2 DESC, 1 LIMIT ?2";

#[async_trait]
impl Threads for SqliteStore {
    async fn threads(&self, filter: &ThreadFilter, limit: u32) -> Result<Vec<ThreadView>, Error> {
        let (filter, by) = (filter.clone(), self.claimant());
        self.link.read(move |db| Box::pin(async move { list(db, &filter, limit, &by).await })).await
    }

    async fn graphs(&self, thread_id: &ThreadId) -> Result<Vec<Namespace>, Error> {
        let thread_id = thread_id.clone();
        self.link.read(move |db| Box::pin(async move { graphs(db, &thread_id).await })).await
    }

    async fn checkpoint_ids(&self, thread_id: &ThreadId, ns: &Namespace) -> Result<Vec<CheckpointId>, Error> {
        let (thread_id, ns) = (thread_id.clone(), ns.clone());
        self.link.read(move |db| Box::pin(async move { checkpoint_ids(db, &thread_id, &ns).await })).await
    }

    async fn sizes(&self, only: Option<&ThreadId>, limit: u32) -> Result<Vec<ThreadSize>, Error> {
        let only = only.cloned();
        self.link.read(move |db| Box::pin(async move { sizes(db, only.as_ref(), limit).await })).await
    }

    async fn seize(&self, thread_id: &ThreadId) -> Result<Result<Held, Barred>, Error> {
        let (thread_id, by) = (thread_id.clone(), self.claimant());
        self.link.write(move |db| Box::pin(async move { changes::seize(db, &thread_id, &by).await })).await
    }

    async fn let_go(&self, held: &Held) -> Result<(), Error> {
        let (held, by) = (held.clone(), self.claimant());
        self.link.write(move |db| Box::pin(async move { changes::let_go(db, &held, &by).await })).await
    }

    async fn delete_thread(&self, thread_id: &ThreadId) -> Result<Result<u64, Barred>, Error> {
        let (thread_id, by) = (thread_id.clone(), self.claimant());
        self.link.write(move |db| Box::pin(async move { changes::delete(db, &thread_id, &by).await })).await
    }

    async fn copy_thread(
        &self,
        from: &ThreadId,
        at: &CheckpointId,
        to: &ThreadId,
    ) -> Result<Result<u64, Barred>, Error> {
        let (from, at, to, by) = (from.clone(), at.clone(), to.clone(), self.claimant());
        self.link
            .write(move |db| Box::pin(async move { changes::copy(db, (&from, &at), &to, &by).await }))
            .await
    }

    async fn expire_threads(
        &self,
        old: &OldThreads,
        after: &str,
        limit: u32,
    ) -> Result<ExpiredThreads, Error> {
        let (old, after, by) = (*old, after.to_owned(), self.claimant());
        self.link
            .write(move |db| Box::pin(async move { changes::expire(db, &old, (&after, limit), &by).await }))
            .await
    }
}

async fn list(
    db: &mut SqliteConnection,
    filter: &ThreadFilter,
    limit: u32,
    by: &Claimant,
) -> Result<Vec<ThreadView>, Failure> {
    let rows = sqlx::query(THREADS)
        .bind(&filter.after)
        .bind(&filter.prefix)
        .bind(limit)
        .bind(filter.id.as_ref().map(ThreadId::as_str))
        .bind(stored_time(by.now))
        .fetch_all(db)
        .await?;
    rows.iter().map(view).collect()
}

fn view(row: &SqliteRow) -> Result<ThreadView, Failure> {
    Ok(ThreadView {
        thread_id: row.try_get(0)?,
        checkpoints: count(row, 1)?,
        nested: count(row, 2)?,
        checkpoint_id: row.try_get(3)?,
        step: row.try_get::<Option<&str>, _>(4)?.and_then(|step| step.parse().ok()),
        ts: row.try_get(5)?,
        job_id: row.try_get(6)?,
        definition: row.try_get(7)?,
        waits: row.try_get(8)?,
        owner: row.try_get(9)?,
        open_jobs: count(row, 10)?,
    })
}

fn count(row: &SqliteRow, column: usize) -> Result<u64, Failure> {
    Ok(row.try_get::<i64, _>(column)?.unsigned_abs())
}

async fn graphs(db: &mut SqliteConnection, thread_id: &ThreadId) -> Result<Vec<Namespace>, Failure> {
    let found: Vec<String> = sqlx::query_scalar(GRAPHS).bind(thread_id.as_str()).fetch_all(db).await?;
    Ok(found.iter().map(|ns| Namespace::from_stored(ns)).collect())
}

async fn checkpoint_ids(
    db: &mut SqliteConnection,
    thread_id: &ThreadId,
    ns: &Namespace,
) -> Result<Vec<CheckpointId>, Failure> {
    let found: Vec<String> =
        sqlx::query_scalar(IDS).bind(thread_id.as_str()).bind(ns.as_str()).fetch_all(db).await?;
    let read = |id: &String| {
        CheckpointId::parse(id).map_err(|error| Error::Corrupt {
            thread_id: thread_id.to_string(),
            what: "checkpoint",
            reason: error.to_string(),
        })
    };
    Ok(found.iter().map(read).collect::<Result<_, _>>()?)
}

async fn sizes(
    db: &mut SqliteConnection,
    only: Option<&ThreadId>,
    limit: u32,
) -> Result<Vec<ThreadSize>, Failure> {
    let rows = sqlx::query(SIZES).bind(only.map(ThreadId::as_str)).bind(limit).fetch_all(db).await?;
    let size = |row: &SqliteRow| {
        let tables = rows::json(row, "tables")?.unwrap_or_default();
        Ok(ThreadSize { thread_id: row.try_get(0)?, bytes: count(row, 1)?, tables })
    };
    rows.iter().map(size).collect()
}

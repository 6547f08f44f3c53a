//! Checkpoints, writes and the ledger of effects: stored under the fence, read from one moment.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value as Json;
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{
    SqliteStore,
    claims::{Claimant, fenced},
    failure::Failure,
    rows::{self, stored_time},
};
use crate::{
    graph::Effect,
    ids::{CheckpointId, Epoch, JobId, Namespace, TaskId, ThreadId},
    store::{
        Checkpoints, Commit, EffectRow, EffectState, Error, Saved, StoredEffect,
        langgraph::{Rows, StoredBlob, StoredRow, StoredWrite},
    },
};

const HEAD: &str =
    "UPDATE executor_thread SET lease_until = ?2, head = coalesce(?3, head) WHERE thread_id = ?1";

const BLOB: &str = "INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob) \
    VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING";

/// Ordinary writes are immutable; errors, questions and answers are replaced.
const WRITE: &str = "INSERT INTO checkpoint_writes \
        (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path) \
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) \
    ON CONFLICT DO UPDATE SET channel = excluded.channel, type = excluded.type, blob = excluded.blob, \
        task_path = excluded.task_path WHERE excluded.idx < 0";

const CHECKPOINT: &str = "INSERT INTO checkpoints \
        (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata) \
    VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING";

const EFFECT: &str = "INSERT OR REPLACE INTO executor_effect \
        (thread_id, checkpoint_ns, task_id, call_id, tool, effect, idempotency_key, state, epoch, asked, answer, \
         updated_at) \
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

const NEWEST: &str = "SELECT checkpoint_id, checkpoint, metadata, parent_checkpoint_id FROM checkpoints \
    WHERE thread_id = ?1 AND checkpoint_ns = ?2 AND (?3 IS NULL OR checkpoint_id = ?3) \
    ORDER BY checkpoint_id DESC LIMIT ?4";

const BLOB_OF: &str = "SELECT type, blob FROM checkpoint_blobs WHERE thread_id = ? AND checkpoint_ns = ? \
    AND channel = ? AND version = ?";

const WRITES_OF: &str = "SELECT task_id, task_path, idx, channel, coalesce(type, 'null') AS type, blob \
    FROM checkpoint_writes WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ? \
    ORDER BY task_path, task_id, idx";

const EFFECTS_OF: &str = "SELECT call_id, tool, effect, idempotency_key, state, epoch, asked, answer \
    FROM executor_effect WHERE thread_id = ? AND checkpoint_ns = ? AND task_id = ? ORDER BY call_id";

/// Takes back what a job stored, in every namespace, and where its thread stands, in this order.
const UNDO: [&str; 3] = [
    "DELETE FROM checkpoint_writes WHERE thread_id = ?1 AND (checkpoint_ns, checkpoint_id) IN ( \
        SELECT checkpoint_ns, checkpoint_id FROM checkpoints \
        WHERE thread_id = ?1 AND json_extract(metadata, '$.job_id') = ?2)",
    "DELETE FROM checkpoints WHERE thread_id = ?1 AND json_extract(metadata, '$.job_id') = ?2",
    "UPDATE executor_thread SET head = (SELECT base_head FROM executor_job WHERE job_id = ?2) WHERE thread_id = ?1",
];

#[async_trait]
impl Checkpoints for SqliteStore {
    async fn load(
        &self,
        thread_id: &ThreadId,
        ns: &Namespace,
        id: Option<&CheckpointId>,
    ) -> Result<Option<Saved>, Error> {
        Ok(self.saved(thread_id, ns, (id, 1)).await?.pop())
    }

    async fn commit(&self, commit: Commit) -> Result<(), Error> {
        let rows = Rows::encode(&commit, self.config.max_state_bytes)?;
        // The lease counts from when the commit is done, which may be after a wait.
        let (clock, by) = (self.clock.clone(), self.claimant());
        self.link
            .insist(move |db| {
                Box::pin(async move {
                    let by = Claimant { now: clock.now(), ..by };
                    self::commit(db, &commit, &rows, &by).await
                })
            })
            .await
    }

    fn lease(&self) -> Duration {
        self.config.lease
    }

    async fn effects(
        &self,
        thread_id: &ThreadId,
        ns: &Namespace,
        task_id: &TaskId,
    ) -> Result<Vec<EffectRow>, Error> {
        let (thread, ns, task) = (thread_id.clone(), ns.clone(), task_id.clone());
        let rows = self
            .link
            .read(move |db| Box::pin(async move { effects(db, (&thread, &ns), &task).await }))
            .await?;
        rows.into_iter().map(|row| row.into_row(thread_id)).collect()
    }

    async fn history(&self, thread_id: &ThreadId, ns: &Namespace, limit: u32) -> Result<Vec<Saved>, Error> {
        self.saved(thread_id, ns, (None, limit)).await
    }
}

impl SqliteStore {
    async fn saved(
        &self,
        thread_id: &ThreadId,
        ns: &Namespace,
        (id, limit): (Option<&CheckpointId>, u32),
    ) -> Result<Vec<Saved>, Error> {
        let (thread, space, id) = (thread_id.clone(), ns.clone(), id.cloned());
        let rows = self
            .link
            .read(move |db| Box::pin(async move { load(db, (&thread, &space), id.as_ref(), limit).await }))
            .await?;
        rows.into_iter().map(|row| row.into_saved(thread_id).map(|(saved, _)| saved)).collect()
    }
}

/// Stores all of a commit under its fence.
pub(super) async fn commit(
    db: &mut SqliteConnection,
    commit: &Commit,
    rows: &Rows,
    by: &Claimant,
) -> Result<(), Failure> {
    let thread = rows::thread(db, &commit.thread_id).await?;
    let holds = thread.epoch == commit.epoch && thread.owner.as_deref() == Some(&*by.owner);
    let moves = commit.advance.as_ref().is_none_or(|advance| {
        let is_repeated = thread.head.as_ref() == Some(&advance.to);
        let grows = advance.from.as_ref().is_none_or(|from| advance.to > *from);
        is_repeated || (thread.head == advance.from && grows)
    });
    if !holds || !moves {
        return Err(fenced(&commit.thread_id, commit.epoch));
    }
    sqlx::query(HEAD)
        .bind(commit.thread_id.as_str())
        .bind(by.lease_until())
        .bind(commit.advance.as_ref().map(|advance| advance.to.as_str()))
        .execute(&mut *db)
        .await?;
    insert(db, &commit.thread_id, rows).await?;
    insert_effects(db, &commit.thread_id, rows, by).await
}

async fn insert(db: &mut SqliteConnection, thread_id: &ThreadId, rows: &Rows) -> Result<(), Failure> {
    for row in &rows.blobs {
        sqlx::query(BLOB)
            .bind(thread_id.as_str())
            .bind(row.ns.as_str())
            .bind(&*row.channel)
            .bind(&*row.version)
            .bind(row.kind)
            .bind(rows.blob(&row.blob))
            .execute(&mut *db)
            .await?;
    }
    for row in &rows.writes {
        sqlx::query(WRITE)
            .bind(thread_id.as_str())
            .bind(row.ns.as_str())
            .bind(row.checkpoint_id.as_str())
            .bind(row.task_id.as_str())
            .bind(row.idx)
            .bind(&*row.channel)
            .bind(row.kind)
            .bind(rows.blob(&row.blob))
            .bind(&*row.task_path)
            .execute(&mut *db)
            .await?;
    }
    for row in &rows.checkpoints {
        sqlx::query(CHECKPOINT)
            .bind(thread_id.as_str())
            .bind(row.ns.as_str())
            .bind(row.id.as_str())
            .bind(row.parent.as_ref().map(CheckpointId::as_str))
            .bind(&row.checkpoint)
            .bind(&row.metadata)
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}

async fn insert_effects(
    db: &mut SqliteConnection,
    thread_id: &ThreadId,
    rows: &Rows,
    by: &Claimant,
) -> Result<(), Failure> {
    for StoredEffect { row, answer } in &rows.effects {
        sqlx::query(EFFECT)
            .bind(thread_id.as_str())
            .bind(row.ns.as_str())
            .bind(row.task_id.as_str())
            .bind(&*row.call_id)
            .bind(&*row.tool)
            .bind(row.effect.as_str())
            .bind(&row.idempotency_key)
            .bind(row.state.as_str())
            .bind(row.epoch.0)
            .bind(i64::try_from(row.asked).unwrap_or(i64::MAX))
            .bind(answer.as_deref())
            .bind(stored_time(by.now))
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}

/// Takes back what a job stored. Values stay: they are named by channel and version, and a version that comes again
/// has the epoch of another claim in it.
pub(super) async fn undo(
    db: &mut SqliteConnection,
    thread_id: &ThreadId,
    job_id: &JobId,
) -> Result<(), Failure> {
    for statement in UNDO {
        sqlx::query(statement).bind(thread_id.as_str()).bind(job_id.as_str()).execute(&mut *db).await?;
    }
    Ok(())
}

/// The newest `limit` checkpoints of a graph, or the one called `id`.
async fn load(
    db: &mut SqliteConnection,
    (thread_id, ns): (&ThreadId, &Namespace),
    id: Option<&CheckpointId>,
    limit: u32,
) -> Result<Vec<StoredRow>, Failure> {
    let found = sqlx::query(NEWEST)
        .bind(thread_id.as_str())
        .bind(ns.as_str())
        .bind(id.map(CheckpointId::as_str))
        .bind(limit)
        .fetch_all(&mut *db)
        .await?;
    let mut all = Vec::with_capacity(found.len());
    for row in &found {
        all.push(stored(db, (thread_id, ns), row).await?);
    }
    Ok(all)
}

async fn stored(
    db: &mut SqliteConnection,
    (thread_id, ns): (&ThreadId, &Namespace),
    row: &SqliteRow,
) -> Result<StoredRow, Failure> {
    let checkpoint: String = row.try_get("checkpoint")?;
    let parsed: Json = serde_json::from_str(&checkpoint).map_err(|error| Error::Corrupt {
        thread_id: thread_id.to_string(),
        what: "checkpoint",
        reason: error.to_string(),
    })?;
    let mut blobs = Vec::new();
    for (channel, version) in parsed["channel_versions"].as_object().into_iter().flatten() {
        let blob = sqlx::query(BLOB_OF)
            .bind(thread_id.as_str())
            .bind(ns.as_str())
            .bind(channel)
            .bind(version.as_str())
            .fetch_optional(&mut *db)
            .await?;
        if let Some(blob) = blob {
            let (kind, blob) = (blob.try_get(0)?, blob.try_get::<Option<Vec<u8>>, _>(1)?.unwrap_or_default());
            blobs.push(StoredBlob { channel: channel.clone(), kind, blob });
        }
    }
    let id: &str = row.try_get("checkpoint_id")?;
    let writes = sqlx::query(WRITES_OF).bind(thread_id.as_str()).bind(ns.as_str()).bind(id);
    let writes = writes.fetch_all(&mut *db).await?;
    let writes = writes.iter().map(stored_write).collect::<Result<_, _>>()?;
    let (metadata, parent) = (row.try_get("metadata")?, row.try_get("parent_checkpoint_id")?);
    Ok(StoredRow { checkpoint, metadata, parent, blobs, writes })
}

fn stored_write(row: &SqliteRow) -> Result<StoredWrite, Failure> {
    Ok(StoredWrite {
        task_id: row.try_get("task_id")?,
        task_path: row.try_get("task_path")?,
        idx: row.try_get("idx")?,
        channel: row.try_get("channel")?,
        kind: row.try_get("type")?,
        blob: row.try_get("blob")?,
    })
}

/// The rows of a task in the ledger.
async fn effects(
    db: &mut SqliteConnection,
    (thread_id, ns): (&ThreadId, &Namespace),
    task_id: &TaskId,
) -> Result<Vec<StoredEffect>, Failure> {
    let rows = sqlx::query(EFFECTS_OF).bind(thread_id.as_str()).bind(ns.as_str()).bind(task_id.as_str());
    let rows = rows.fetch_all(db).await?;
    let unknown = |what: &str| Error::Corrupt {
        thread_id: thread_id.to_string(),
        what: "effect",
        reason: format!("unknown {what}"),
    };
    let read = |row: &SqliteRow| -> Result<StoredEffect, Failure> {
        let text = |column: &str| row.try_get::<&str, _>(column);
        let row_without_answer = EffectRow {
            ns: ns.clone(),
            task_id: task_id.clone(),
            call_id: text("call_id")?.into(),
            tool: text("tool")?.into(),
            effect: Effect::parse(text("effect")?).ok_or_else(|| unknown("effect"))?,
            idempotency_key: text("idempotency_key")?.to_owned(),
            state: EffectState::parse(text("state")?).ok_or_else(|| unknown("state"))?,
            epoch: Epoch(row.try_get("epoch")?),
            asked: usize::try_from(row.try_get::<i64, _>("asked")?)
                .map_err(|_| unknown("count of answers"))?,
            answer: None,
        };
        Ok(StoredEffect { row: row_without_answer, answer: row.try_get("answer")? })
    };
    rows.iter().map(read).collect()
}

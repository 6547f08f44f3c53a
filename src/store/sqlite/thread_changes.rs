//! Whole threads: what operators change of them, and the removal of old ones.

use sqlx::SqliteConnection;

use super::{
    claims::Claimant,
    failure::Failure,
    rows::{self, stored_time},
    threads::waits,
};
use crate::{
    ids::{CheckpointId, ThreadId},
    store::{Barred, ExpiredThreads, Held, Leave, OldThreads},
};

const IS_KNOWN: &str = "SELECT EXISTS (SELECT 1 FROM checkpoints WHERE thread_id = ?)";

/// ?2: whether jobs that have not started yet count too.
const OPEN: &str = "SELECT job_id FROM executor_job \
    WHERE thread_id = ?1 AND finished_at IS NULL AND (state = 'running' OR ?2) \
    ORDER BY state = 'running' DESC, stream_seq IS NULL, stream_seq, accepted_at LIMIT 1";

const SEIZE: &str = "UPDATE executor_thread SET epoch = ?2, owner = ?3, chained_from = NULL, job_id = NULL, \
    lease_until = ?4, head = ?5 WHERE thread_id = ?1";

const LET_GO: &str = "UPDATE executor_thread SET owner = NULL, chained_from = NULL, lease_until = 0 \
    WHERE thread_id = ? AND epoch = ? AND owner = ?";

/// All that a thread has said and done; its jobs keep their results. The checkpoints come last.
const WIPE: [&str; 5] = [
    "DELETE FROM checkpoint_writes WHERE thread_id = ?",
    "DELETE FROM checkpoint_blobs WHERE thread_id = ?",
    "DELETE FROM executor_effect WHERE thread_id = ?",
    "DELETE FROM executor_interrupt_deadline WHERE thread_id = ?",
    "DELETE FROM checkpoints WHERE thread_id = ?",
];

const FORGET: &str = "UPDATE executor_thread SET epoch = ?2, owner = NULL, chained_from = NULL, job_id = NULL, \
    lease_until = 0, head = NULL WHERE thread_id = ?1";

const IS_ROOT: &str = "SELECT EXISTS (SELECT 1 FROM checkpoints \
    WHERE thread_id = ? AND checkpoint_ns = '' AND checkpoint_id = ?)";

const COPY: &str = "INSERT INTO checkpoints \
        (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata) \
    WITH RECURSIVE chain (id, parent) AS ( \
        SELECT checkpoint_id, parent_checkpoint_id FROM checkpoints \
        WHERE thread_id = ?1 AND checkpoint_ns = '' AND checkpoint_id = ?3 \
        UNION \
        SELECT c.checkpoint_id, c.parent_checkpoint_id FROM checkpoints c JOIN chain h ON c.checkpoint_id = h.parent \
        WHERE c.thread_id = ?1 AND c.checkpoint_ns = '') \
    SELECT ?2, c.checkpoint_ns, c.checkpoint_id, c.parent_checkpoint_id, c.type, c.checkpoint, c.metadata \
    FROM checkpoints c WHERE c.thread_id = ?1 \
      AND CASE WHEN c.checkpoint_ns = '' THEN c.checkpoint_id ELSE c.metadata ->> '$.parents.\"\"' END \
          IN (SELECT id FROM chain)";

/// What was called already must not be called again by the copy.
const COPY_EFFECTS: &str = "INSERT INTO executor_effect \
        (thread_id, checkpoint_ns, task_id, call_id, tool, effect, idempotency_key, state, epoch, asked, answer, \
         updated_at) \
    SELECT ?2, checkpoint_ns, task_id, call_id, tool, effect, idempotency_key, state, epoch, asked, answer, ?3 \
    FROM executor_effect WHERE thread_id = ?1 ON CONFLICT DO NOTHING";

/// What hangs on the copied checkpoints.
const COPY_REST: [&str; 2] = [
    "INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob) \
     SELECT ?2, b.checkpoint_ns, b.channel, b.version, b.type, b.blob \
     FROM checkpoints c, json_each(c.checkpoint, '$.channel_versions') v JOIN checkpoint_blobs b \
         ON b.thread_id = ?1 AND b.checkpoint_ns = c.checkpoint_ns AND b.channel = v.key \
            AND b.version = CAST(v.value AS TEXT) \
     WHERE c.thread_id = ?2 ON CONFLICT DO NOTHING",
    "INSERT INTO checkpoint_writes \
         (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path) \
     SELECT ?2, w.checkpoint_ns, w.checkpoint_id, w.task_id, w.idx, w.channel, w.type, w.blob, w.task_path \
     FROM checkpoints c JOIN checkpoint_writes w \
         ON w.thread_id = ?1 AND w.checkpoint_ns = c.checkpoint_ns AND w.checkpoint_id = c.checkpoint_id \
     WHERE c.thread_id = ?2",
];

const NEXT: &str = "SELECT min(thread_id) FROM checkpoints WHERE thread_id > ?";

const WAITS: &str = concat!("SELECT ", waits!("?1", "?2"));

/// The old of a thread but its newest root checkpoint, and the newest of each nested graph that was started from it, or
/// while it waits of all: a graph that has failed goes on from there, and must not make its calls again. Then what hung
/// on it: sends of checkpoints of older LangGraph versions stand among the writes on the checkpoint before.
const THIN: &str = "DELETE FROM checkpoints WHERE thread_id = ?1 AND NOT ( \
    CASE WHEN checkpoint_ns = '' THEN checkpoint_id = ?2 \
    ELSE (?3 OR coalesce(metadata ->> '$.parents.\"\"' = ?2, false)) AND checkpoint_id = (SELECT max(y.checkpoint_id) FROM checkpoints y \
        WHERE y.thread_id = ?1 AND y.checkpoint_ns = checkpoints.checkpoint_ns) END)";

const THIN_REST: [&str; 2] = [
    "DELETE FROM checkpoint_writes WHERE thread_id = ?1 AND NOT EXISTS ( \
         SELECT 1 FROM checkpoints c WHERE c.thread_id = ?1 AND c.checkpoint_ns = checkpoint_writes.checkpoint_ns \
           AND (c.checkpoint_id = checkpoint_writes.checkpoint_id \
             OR c.parent_checkpoint_id = checkpoint_writes.checkpoint_id \
                AND checkpoint_writes.channel = '__pregel_tasks'))",
    "DELETE FROM checkpoint_blobs WHERE thread_id = ?1 AND NOT EXISTS ( \
         SELECT 1 FROM checkpoints c, json_each(c.checkpoint, '$.channel_versions') v \
         WHERE c.thread_id = ?1 AND c.checkpoint_ns = checkpoint_blobs.checkpoint_ns \
           AND v.key = checkpoint_blobs.channel AND CAST(v.value AS TEXT) = checkpoint_blobs.version)",
];

/// Whether jobs that have not started yet keep an operator away too.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Queued {
    Allowed,
    Barring,
}

async fn is_known(db: &mut SqliteConnection, thread_id: &ThreadId) -> Result<bool, Failure> {
    Ok(sqlx::query_scalar(IS_KNOWN).bind(thread_id.as_str()).fetch_one(db).await?)
}

/// Why nobody but its jobs may touch a thread.
async fn barred(
    db: &mut SqliteConnection,
    thread_id: &ThreadId,
    queued: Queued,
    by: &Claimant,
) -> Result<Option<Barred>, Failure> {
    let thread = rows::known_thread(db, thread_id).await?;
    if let Some(thread) = thread.filter(|thread| thread.owner.is_some() && thread.lease_until > by.now) {
        return Ok(Some(Barred::Owned(thread.job_id.map(|job_id| job_id.to_string()))));
    }
    let open = sqlx::query_scalar(OPEN).bind(thread_id.as_str()).bind(queued == Queued::Barring);
    let open: Option<String> = open.fetch_optional(db).await?;
    Ok(open.map(|job_id| Barred::Open(Some(job_id))))
}

pub(super) async fn seize(
    db: &mut SqliteConnection,
    thread_id: &ThreadId,
    by: &Claimant,
) -> Result<Result<Held, Barred>, Failure> {
    if !is_known(db, thread_id).await? {
        return Ok(Err(Barred::Unknown));
    }
    if let Some(barred) = barred(db, thread_id, Queued::Allowed, by).await? {
        return Ok(Err(barred));
    }
    rows::thread(db, thread_id).await?;
    let (epoch, head) = (rows::next_epoch(db).await?, rows::newest(db, thread_id).await?);
    sqlx::query(SEIZE)
        .bind(thread_id.as_str())
        .bind(epoch.0)
        .bind(&*by.owner)
        .bind(by.lease_until())
        .bind(head.as_ref().map(CheckpointId::as_str))
        .execute(db)
        .await?;
    Ok(Ok(Held { thread_id: thread_id.clone(), epoch, head }))
}

pub(super) async fn let_go(db: &mut SqliteConnection, held: &Held, by: &Claimant) -> Result<(), Failure> {
    let query = sqlx::query(LET_GO).bind(held.thread_id.as_str()).bind(held.epoch.0).bind(&*by.owner);
    query.execute(db).await?;
    Ok(())
}

/// Removes all of a thread under a new epoch; how many checkpoints that were.
async fn wipe(db: &mut SqliteConnection, thread_id: &ThreadId) -> Result<u64, Failure> {
    rows::thread(db, thread_id).await?;
    let mut removed = 0;
    for statement in WIPE {
        removed = sqlx::query(statement).bind(thread_id.as_str()).execute(&mut *db).await?.rows_affected();
    }
    let epoch = rows::next_epoch(db).await?;
    sqlx::query(FORGET).bind(thread_id.as_str()).bind(epoch.0).execute(db).await?;
    Ok(removed)
}

pub(super) async fn delete(
    db: &mut SqliteConnection,
    thread_id: &ThreadId,
    by: &Claimant,
) -> Result<Result<u64, Barred>, Failure> {
    if !is_known(db, thread_id).await? {
        return Ok(Err(Barred::Unknown));
    }
    match barred(db, thread_id, Queued::Barring, by).await? {
        Some(barred) => Ok(Err(barred)),
        None => wipe(db, thread_id).await.map(Ok),
    }
}

/// What a living process does right now with the newest checkpoint cannot be copied: calls could be made twice.
pub(super) async fn copy(
    db: &mut SqliteConnection,
    (from, at): (&ThreadId, &CheckpointId),
    to: &ThreadId,
    by: &Claimant,
) -> Result<Result<u64, Barred>, Failure> {
    let is_root = sqlx::query_scalar(IS_ROOT).bind(from.as_str()).bind(at.as_str());
    if !is_root.fetch_one(&mut *db).await? {
        return Ok(Err(Barred::Unknown));
    }
    if is_known(db, to).await? || barred(db, to, Queued::Barring, by).await?.is_some() {
        return Ok(Err(Barred::Exists));
    }
    let is_newest = rows::newest(db, from).await?.as_ref() == Some(at);
    if let Some(barred) = barred(db, from, Queued::Allowed, by).await?.filter(|_| is_newest) {
        return Ok(Err(barred));
    }
    let copy = sqlx::query(COPY).bind(from.as_str()).bind(to.as_str()).bind(at.as_str());
    let copied = copy.execute(&mut *db).await?.rows_affected();
    for statement in COPY_REST {
        sqlx::query(statement).bind(from.as_str()).bind(to.as_str()).execute(&mut *db).await?;
    }
    let effects = sqlx::query(COPY_EFFECTS).bind(from.as_str()).bind(to.as_str());
    effects.bind(stored_time(by.now)).execute(db).await?;
    Ok(Ok(copied))
}

pub(super) async fn expire(
    db: &mut SqliteConnection,
    old: &OldThreads,
    (after, limit): (&str, u32),
    by: &Claimant,
) -> Result<ExpiredThreads, Failure> {
    let mut expired = ExpiredThreads { after: Some(after.to_owned()), ..ExpiredThreads::default() };
    for _ in 0..limit {
        let next: Option<String> = sqlx::query_scalar(NEXT).bind(&expired.after).fetch_one(&mut *db).await?;
        expired.after = next;
        let Some(found) = &expired.after else { break };
        // Nobody could have written to one whose id is not ours.
        let Ok(thread_id) = ThreadId::parse(found) else { continue };
        let removed = expire_one(db, &thread_id, old, by).await?;
        expired.threads += u64::from(removed > 0);
        expired.checkpoints += removed;
    }
    Ok(expired)
}

/// Removes what is old of a thread; how many checkpoints that were.
async fn expire_one(
    db: &mut SqliteConnection,
    thread_id: &ThreadId,
    old: &OldThreads,
    by: &Claimant,
) -> Result<u64, Failure> {
    let before = CheckpointId::next(None, old.before, 0, 0);
    let newest = rows::newest(db, thread_id).await?;
    let Some(newest) = newest.filter(|newest| *newest < before) else { return Ok(0) };
    if barred(db, thread_id, Queued::Barring, by).await?.is_some() {
        return Ok(0);
    }
    let waits = sqlx::query_scalar(WAITS).bind(thread_id.as_str()).bind(newest.as_str());
    let waits: bool = waits.fetch_one(&mut *db).await?;
    if waits && !old.waiting {
        return Ok(0);
    }
    if old.leave == Leave::Nothing {
        return wipe(db, thread_id).await;
    }
    let thin = sqlx::query(THIN).bind(thread_id.as_str()).bind(newest.as_str()).bind(waits);
    let removed = thin.execute(&mut *db).await?.rows_affected();
    if removed > 0 {
        for statement in THIN_REST {
            sqlx::query(statement).bind(thread_id.as_str()).execute(&mut *db).await?;
        }
    }
    Ok(removed)
}

//! The one statement that writes a batch of commits.
//!
//! **Invariant:** rows of a thread are written only when its fence holds, under the lock of its row.

use std::time::Duration;

use super::{commit::Group, link::Statement};
use crate::store::langgraph::{BlobRow, CheckpointRow, Rows, WriteRow};

/// Fences, rows, and whose fence held.
///
/// `locked` takes the rows in key order, or two batches could deadlock. A head that already is where it should
/// go marks the repetition of a commit that had landed. Ordinary rows are immutable; LangGraph's special writes
/// (errors, questions, answers; their idx is negative) are replaced, the last one of a batch winning.
const COMMIT: &str = r#"
WITH i AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[]) AS i (thread_id, epoch, parent, id)
), locked AS MATERIALIZED (
    SELECT t.thread_id FROM executor_thread t JOIN i USING (thread_id)
    WHERE t.epoch = i.epoch AND t.owner = $5::text
      AND (i.id IS NULL OR t.head = i.id
           OR (t.head IS NOT DISTINCT FROM i.parent
               AND (i.parent IS NULL OR i.id COLLATE "C" > i.parent COLLATE "C")))
    ORDER BY t.thread_id FOR NO KEY UPDATE OF t
), f AS (
    UPDATE executor_thread t SET head = coalesce(i.id, t.head),
        lease_until = clock_timestamp() + $6::bigint * interval '1 millisecond'
    FROM i JOIN locked USING (thread_id) WHERE t.thread_id = i.thread_id RETURNING t.thread_id
), b AS (
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT u.* FROM unnest($7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::bytea[])
        AS u (thread_id, ns, channel, version, type, blob)
    WHERE u.thread_id IN (SELECT thread_id FROM f)
    ON CONFLICT DO NOTHING
), u AS MATERIALIZED (
    SELECT * FROM unnest($13::text[], $14::text[], $15::text[], $16::text[], $17::int[], $18::text[],
                         $19::text[], $20::bytea[], $21::text[]) WITH ORDINALITY
        AS u (thread_id, ns, checkpoint_id, task_id, idx, channel, type, blob, task_path, nr)
    WHERE u.thread_id IN (SELECT thread_id FROM f)
), w AS (
    INSERT INTO checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path)
    SELECT thread_id, ns, checkpoint_id, task_id, idx, channel, type, blob, task_path FROM u WHERE idx >= 0
    ON CONFLICT DO NOTHING
), s AS (
    INSERT INTO checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path)
    SELECT DISTINCT ON (thread_id, ns, checkpoint_id, task_id, idx)
        thread_id, ns, checkpoint_id, task_id, idx, channel, type, blob, task_path
    FROM u WHERE idx < 0 ORDER BY thread_id, ns, checkpoint_id, task_id, idx, nr DESC
    ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
        DO UPDATE SET channel = EXCLUDED.channel, type = EXCLUDED.type, blob = EXCLUDED.blob
), c AS (
    INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
    SELECT u.thread_id, u.ns, u.id, u.parent, u.checkpoint::jsonb, u.metadata::jsonb
    FROM unnest($22::text[], $23::text[], $24::text[], $25::text[], $26::text[], $27::text[])
        AS u (thread_id, ns, id, parent, checkpoint, metadata)
    WHERE u.thread_id IN (SELECT thread_id FROM f)
    ON CONFLICT DO NOTHING
)
SELECT i.thread_id, f.thread_id IS NOT NULL AS ok FROM i LEFT JOIN f USING (thread_id)
"#;

/// The statement for a batch.
pub(super) fn commit(groups: &[Group], owner: &str, lease: Duration) -> Statement {
    let statement = fences(sqlx::query(COMMIT), groups).bind(owner).bind(millis(lease));
    let statement = blobs(statement, groups);
    let statement = writes(statement, groups);
    checkpoints(statement, groups)
}

/// A duration as the statements take it.
pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn fences(statement: Statement, groups: &[Group]) -> Statement {
    let threads: Vec<&str> = groups.iter().map(|group| group.thread_id().as_str()).collect();
    let epochs: Vec<i64> = groups.iter().map(|group| group.epoch().0).collect();
    let from = groups.iter().map(|group| group.advance().and_then(|advance| advance.from.as_ref()));
    let from: Vec<Option<&str>> = from.map(|id| id.map(|id| id.as_str())).collect();
    let to: Vec<Option<&str>> =
        groups.iter().map(|group| group.advance().map(|advance| advance.to.as_str())).collect();
    statement.bind(threads).bind(epochs).bind(from).bind(to)
}

/// All rows of one kind in a batch, each with its thread.
fn all<'a, T: 'a>(
    groups: &'a [Group],
    rows_of: impl Fn(&'a Rows) -> &'a [T] + Copy + 'a,
) -> impl Iterator<Item = (&'a str, &'a Rows, &'a T)> {
    groups.iter().flat_map(move |group| {
        let thread = group.thread_id().as_str();
        group.rows().flat_map(move |rows| rows_of(rows).iter().map(move |row| (thread, rows, row)))
    })
}

fn blobs(statement: Statement, groups: &[Group]) -> Statement {
    let rows: Vec<(&str, &Rows, &BlobRow)> = all(groups, |rows| &rows.blobs).collect();
    statement
        .bind(rows.iter().map(|(thread, ..)| *thread).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., row)| row.ns.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., row)| &*row.channel).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., row)| &*row.version).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., row)| row.kind).collect::<Vec<_>>())
        .bind(rows.iter().map(|(_, rows, row)| rows.blob(&row.blob)).collect::<Vec<_>>())
}

fn writes(statement: Statement, groups: &[Group]) -> Statement {
    let rows: Vec<(&str, &Rows, &WriteRow)> = all(groups, |rows| &rows.writes).collect();
    statement
        .bind(rows.iter().map(|(thread, ..)| *thread).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., row)| row.ns.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., row)| row.checkpoint_id.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., row)| row.task_id.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., row)| row.idx).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., row)| &*row.channel).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., row)| row.kind).collect::<Vec<_>>())
        .bind(rows.iter().map(|(_, rows, row)| rows.blob(&row.blob)).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., row)| &*row.task_path).collect::<Vec<_>>())
}

fn checkpoints(statement: Statement, groups: &[Group]) -> Statement {
    let rows: Vec<(&str, &Rows, &CheckpointRow)> = all(groups, |rows| &rows.checkpoints).collect();
    let parents: Vec<Option<&str>> =
        rows.iter().map(|(.., row)| row.parent.as_ref().map(|id| id.as_str())).collect();
    statement
        .bind(rows.iter().map(|(thread, ..)| *thread).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., row)| row.ns.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., row)| row.id.as_str()).collect::<Vec<_>>())
        .bind(parents)
        .bind(rows.iter().map(|(.., row)| row.checkpoint.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., row)| row.metadata.as_str()).collect::<Vec<_>>())
}

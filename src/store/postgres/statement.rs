//! The one statement that writes a batch of commits and ends; `executor_commit` holds its rules.

use std::time::Duration;

use super::{
    commit::{End, Group},
    link::Statement,
};
use crate::store::{
    NextJob, StoredEffect,
    langgraph::{BlobRow, CheckpointRow, Rows, WriteRow},
};

/// All arguments of the function, in its order.
macro_rules! call {
    () => {
        "SELECT thread_id, ok, job_id, epoch, attempt, head, request, time_ms, cancel, suspect \
         FROM executor_commit($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, \
             $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38, $39)"
    };
}

const COMMIT: &str = call!();

/// The same with rows of the ledger, written where the fence held and under its lock. A statement of its own:
/// most batches have none.
const COMMIT_EFFECTS: &str = concat!(
    "WITH c AS MATERIALIZED (",
    call!(),
    "), e AS ( \
         INSERT INTO executor_effect (thread_id, checkpoint_ns, task_id, call_id, tool, effect, idempotency_key, \
                                      state, epoch, asked, answer) \
         SELECT DISTINCT ON (u.thread_id, u.ns, u.task_id, u.call_id) u.thread_id, u.ns, u.task_id, u.call_id, \
             u.tool, u.effect, u.key, u.state, u.epoch, u.asked, u.answer \
         FROM unnest($40::text[], $41::text[], $42::text[], $43::text[], $44::text[], $45::text[], $46::text[], \
                     $47::text[], $48::bigint[], $49::int[], $50::bytea[]) WITH ORDINALITY \
             AS u (thread_id, ns, task_id, call_id, tool, effect, key, state, epoch, asked, answer, nr) \
         WHERE u.thread_id IN (SELECT thread_id FROM c WHERE ok) \
         ORDER BY u.thread_id, u.ns, u.task_id, u.call_id, u.nr DESC \
         ON CONFLICT (thread_id, checkpoint_ns, task_id, call_id) DO UPDATE SET tool = EXCLUDED.tool, \
             effect = EXCLUDED.effect, idempotency_key = EXCLUDED.idempotency_key, state = EXCLUDED.state, \
             epoch = EXCLUDED.epoch, asked = EXCLUDED.asked, answer = EXCLUDED.answer, \
             updated_at = clock_timestamp()) \
     SELECT * FROM c"
);

/// The statement for a batch.
pub(super) fn commit(groups: &[Group], owner: &str, lease: Duration) -> Statement {
    let has_effects = groups.iter().flat_map(Group::rows).any(|rows| !rows.effects.is_empty());
    let statement = sqlx::query(if has_effects { COMMIT_EFFECTS } else { COMMIT });
    let statement = fences(statement.bind(owner.to_owned()).bind(millis(lease)), groups);
    let statement = blobs(statement, groups);
    let statement = writes(statement, groups);
    let statement = ends(checkpoints(statement, groups), groups);
    if has_effects { effects(statement, groups) } else { statement }
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
    let jobs: Vec<Option<&str>> =
        groups.iter().map(|group| group.end().map(|end| end.claim.job_id.as_str())).collect();
    statement.bind(threads).bind(epochs).bind(from).bind(to).bind(jobs)
}

/// The ends of jobs in a batch.
fn ends(statement: Statement, groups: &[Group]) -> Statement {
    let ends: Vec<&End> = groups.iter().filter_map(Group::end).collect();
    statement
        .bind(ends.iter().map(|end| end.claim.thread_id.as_str()).collect::<Vec<_>>())
        .bind(ends.iter().map(|end| end.claim.epoch.0).collect::<Vec<_>>())
        .bind(ends.iter().map(|end| end.claim.job_id.as_str()).collect::<Vec<_>>())
        .bind(ends.iter().map(|end| end.state.as_str()).collect::<Vec<_>>())
        .bind(ends.iter().map(|end| end.result.event_id.as_str()).collect::<Vec<_>>())
        .bind(ends.iter().map(|end| end.result.subject.as_str()).collect::<Vec<_>>())
        .bind(ends.iter().map(|end| &*end.result.event).collect::<Vec<_>>())
        .bind(ends.iter().map(|end| end.body.as_deref()).collect::<Vec<_>>())
        .bind(
            ends.iter()
                .map(|end| end.error.as_ref().map(|error| without_nul(error).to_string()))
                .collect::<Vec<_>>(),
        )
        .bind(ends.iter().map(|end| end.next == NextJob::Take).collect::<Vec<_>>())
        .bind(ends.iter().map(|end| end.undo).collect::<Vec<_>>())
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

fn effects(statement: Statement, groups: &[Group]) -> Statement {
    let rows: Vec<(&str, &Rows, &StoredEffect)> = all(groups, |rows| &rows.effects).collect();
    let asked = |effect: &StoredEffect| i32::try_from(effect.row.asked).unwrap_or(i32::MAX);
    statement
        .bind(rows.iter().map(|(thread, ..)| *thread).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., effect)| effect.row.ns.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., effect)| effect.row.task_id.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., effect)| &*effect.row.call_id).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., effect)| &*effect.row.tool).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., effect)| effect.row.effect.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., effect)| effect.row.idempotency_key.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., effect)| effect.row.state.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., effect)| effect.row.epoch.0).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., effect)| asked(effect)).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., effect)| effect.answer.as_deref()).collect::<Vec<_>>())
}

/// Postgres has no text with the character U+0000; a dead letter may well contain one.
pub(super) fn plain(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// The same for all texts in JSON.
pub(super) fn without_nul(json: &serde_json::Value) -> serde_json::Value {
    match json {
        serde_json::Value::String(text) => plain(text).into(),
        serde_json::Value::Array(items) => items.iter().map(without_nul).collect(),
        serde_json::Value::Object(map) => {
            map.iter().map(|(key, value)| (plain(key), without_nul(value))).collect()
        }
        serde_json::Value::Null | serde_json::Value::Bool(_) | serde_json::Value::Number(_) => json.clone(),
    }
}

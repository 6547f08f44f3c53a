//! Reads the ledger of effects.

use sqlx::{Row, postgres::PgRow};

use super::link::Link;
use crate::{
    graph::Effect,
    ids::{Epoch, Namespace, TaskId, ThreadId},
    store::{EffectRow, EffectState, Error, StoredEffect},
};

const OF_TASK: &str = "SELECT call_id, tool, effect, idempotency_key, state, epoch, asked, answer \
    FROM executor_effect WHERE thread_id = $1 AND checkpoint_ns = $2 AND task_id = $3 ORDER BY call_id";

/// The rows of a task.
pub(super) async fn of_task(
    link: &Link,
    thread_id: &ThreadId,
    ns: &Namespace,
    task_id: &TaskId,
) -> Result<Vec<EffectRow>, Error> {
    let (thread, space, task) = (thread_id.clone(), ns.clone(), task_id.clone());
    let statement =
        move || sqlx::query(OF_TASK).bind(thread.to_string()).bind(space.to_string()).bind(task.to_string());
    let rows = link.rows(statement).await?;
    let read = |row: &PgRow| {
        let stored = stored(row, ns, task_id).map_err(|error| Error::Corrupt {
            thread_id: thread_id.to_string(),
            what: "effect",
            reason: error.to_string(),
        })?;
        stored.into_row(thread_id)
    };
    rows.iter().map(read).collect()
}

fn stored(row: &PgRow, ns: &Namespace, task_id: &TaskId) -> Result<StoredEffect, sqlx::Error> {
    let unknown = |what: &str| sqlx::Error::Decode(format!("unknown {what}").into());
    let text = |index: usize| row.try_get::<String, _>(index);
    let row_without_answer = EffectRow {
        ns: ns.clone(),
        task_id: task_id.clone(),
        call_id: text(0)?.into(),
        tool: text(1)?.into(),
        effect: Effect::parse(&text(2)?).ok_or_else(|| unknown("effect"))?,
        idempotency_key: text(3)?,
        state: EffectState::parse(&text(4)?).ok_or_else(|| unknown("state"))?,
        epoch: Epoch(row.try_get(5)?),
        asked: usize::try_from(row.try_get::<i32, _>(6)?).map_err(|_| unknown("count of answers"))?,
        answer: None,
    };
    Ok(StoredEffect { row: row_without_answer, answer: row.try_get(7)? })
}

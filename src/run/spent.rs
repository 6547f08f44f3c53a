//! What a job has spent, as it is stored: in the metadata of checkpoints, and beside the writes of tasks that finish
//! before their superstep does.
//!
//! The metadata alone would not do: a crash in the middle of a superstep leaves no checkpoint of what its finished tasks
//! took. As with the answers of a command, what stands beside writes is a mark of a task that does not exist: nobody
//! reads it as a write.

use serde_json::{Map as JsonMap, Value as Json, json};

use super::{Running, metadata::EPOCH, tasks::RESUME_IDX};
use crate::{
    ids::{self, TaskId},
    job::{self, Spent},
    node::Calls,
    pregel::{Metadata, PendingWrite, RESUME},
    value::Value,
};

/// Metadata key: tokens the job has taken so far, by `provider:model`.
const USAGE: &str = "usage";

/// Metadata key: the same by node.
const USAGE_BY_NODE: &str = "usage_by_node";

/// Metadata key: calls the job has made so far, when its definition limits them.
const CALLS: &str = "calls";

/// What the job has spent so far, as it is stored; nothing for a job that has spent nothing.
pub(super) fn so_far(running: &Running) -> impl Iterator<Item = (String, Json)> {
    let spending = &running.scope.spending;
    let spent = spending.spent();
    let sums = [(USAGE, job::stored(&spent.by_model)), (USAGE_BY_NODE, job::stored(&spent.by_node))];
    let calls = spending.limited_calls().map(|Calls { model, tool }| json!({ "model": model, "tool": tool }));
    let all = sums.into_iter().chain([(CALLS, calls)]);
    all.filter_map(|(key, stored)| Some((key.to_owned(), stored?)))
}

fn task_id(running: &Running) -> TaskId {
    let job_id = running.attempt.claim.job_id.as_str();
    TaskId::from_digest(ids::digest(&[b"spent|", job_id.as_bytes()]))
}

/// What is to be stored with writes of tasks; `None` for a job that has asked no model.
pub(super) fn record(running: &Running) -> Option<PendingWrite> {
    let mut spent: JsonMap<String, Json> = so_far(running).collect();
    if let Some(calls) = spent.get_mut(CALLS) {
        // The superstep counts all its calls of tools again, finished or not.
        calls["tool"] = 0.into();
    }
    if spent.is_empty() {
        return None;
    }
    spent.insert(EPOCH.into(), running.attempt.claim.epoch.0.into());
    Some(PendingWrite {
        task_id: task_id(running),
        task_path: "".into(),
        idx: RESUME_IDX,
        channel: RESUME.into(),
        value: Value::from(Json::Object(spent)),
    })
}

/// Takes over what the metadata of a checkpoint of the job say: what earlier attempts have spent counts too.
pub(super) fn restore_from_metadata(running: &Running, metadata: &Metadata) {
    restore(running, &metadata.extra);
}

/// Takes over what an earlier attempt of the job has left among `writes`.
pub(super) fn restore_from_writes(running: &Running, writes: &[PendingWrite]) {
    let task_id = task_id(running);
    for write in writes.iter().filter(|write| write.task_id == task_id) {
        let Json::Object(spent) = write.value.to_json() else { continue };
        // What this attempt has spent is counted already; a node that is run again comes here again.
        if spent.get(EPOCH).and_then(Json::as_i64) != Some(running.attempt.claim.epoch.0) {
            restore(running, &spent);
        }
    }
}

/// Takes over what [`so_far`] has said in an earlier attempt.
fn restore(running: &Running, stored: &JsonMap<String, Json>) {
    let sums = |key: &str| job::restored(stored.get(key));
    running.scope.spending.restore(&Spent { by_model: sums(USAGE), by_node: sums(USAGE_BY_NODE) });
    if let Some(calls) = stored.get(CALLS) {
        let count = |kind: &str| calls.get(kind).and_then(Json::as_u64).unwrap_or_default();
        running.scope.spending.restore_calls(Calls { model: count("model"), tool: count("tool") });
    }
}

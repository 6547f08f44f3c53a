//! What a job has spent, kept beside the writes of tasks that finish before their superstep does.
//!
//! The metadata of checkpoints says it too, but a crash in the middle of a superstep leaves no checkpoint of what its
//! finished tasks took. As with the answers of a command, it is a mark of a task that does not exist: nobody reads it
//! as a write.

use serde_json::{Map as JsonMap, Value as Json};

use super::{
    Running,
    start::{CALLS, EPOCH, restore_from, spending},
    tasks::RESUME_IDX,
};
use crate::{
    ids::{self, TaskId},
    pregel::{PendingWrite, RESUME},
    value::Value,
};

fn task_id(running: &Running) -> TaskId {
    let job_id = running.attempt.claim.job_id.as_str();
    TaskId::from_digest(ids::digest(&[b"spent|", job_id.as_bytes()]))
}

/// What is to be stored with writes of tasks; `None` for a job that has asked no model.
pub(super) fn record(running: &Running) -> Option<PendingWrite> {
    let mut spent: JsonMap<String, Json> = spending(running).collect();
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

/// Takes over what an earlier attempt of the job has left among `writes`.
pub(super) fn restore(running: &Running, writes: &[PendingWrite]) {
    let task_id = task_id(running);
    for write in writes.iter().filter(|write| write.task_id == task_id) {
        let Json::Object(spent) = write.value.to_json() else { continue };
        // What this attempt has spent is counted already; a node that is run again comes here again.
        if spent.get(EPOCH).and_then(Json::as_i64) != Some(running.attempt.claim.epoch.0) {
            restore_from(running, &spent);
        }
    }
}

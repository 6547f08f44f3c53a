//! What the metadata of checkpoints say of the job that made them: the keys, and how what stands under them is read.

use serde_json::Value as Json;

use super::Running;
use crate::{pregel::Metadata, store::Saved, value::Name};

/// Metadata key: the job that made the checkpoint.
pub(super) const JOB_ID: &str = "job_id";

/// Metadata key: the epoch of the attempt that made the checkpoint.
pub(super) const EPOCH: &str = "executor_epoch";

/// Metadata key: supersteps the job has made in its graph, so that a crash does not give it more.
pub(super) const JOB_STEP: &str = "job_step";

/// Metadata key: the nodes of the superstep that made the checkpoint after which runs pause. The checkpoint alone
/// does not tell, and an attempt after a crash must pause there too.
pub(super) const PAUSED_AFTER: &str = "interrupt_after";

/// Whether the checkpoint was made by this job: then its input is in it.
pub(super) fn is_own(running: &Running, saved: &Saved) -> bool {
    let job_id = saved.metadata.extra.get(JOB_ID).and_then(Json::as_str);
    job_id == Some(running.attempt.claim.job_id.as_str())
}

/// Reads what stands under [`PAUSED_AFTER`].
pub(super) fn paused_after(metadata: &Metadata) -> Vec<Name> {
    let names = metadata.extra.get(PAUSED_AFTER).and_then(Json::as_array);
    names.into_iter().flatten().filter_map(Json::as_str).map(Name::from).collect()
}

/// Reads what stands under [`JOB_STEP`]; 0 when nothing does.
pub(super) fn job_step(metadata: &Metadata) -> u64 {
    metadata.extra.get(JOB_STEP).and_then(Json::as_u64).unwrap_or(0)
}

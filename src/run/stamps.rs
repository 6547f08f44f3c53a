//! What a run puts on each checkpoint it makes: an id that sorts above those before it, the time, and metadata.

use std::collections::BTreeMap;

use serde_json::{Map as JsonMap, Value as Json};

use super::{
    Running,
    definition::DEFINITION,
    metadata::{EPOCH, JOB_ID, JOB_STEP},
    spent,
};
use crate::{
    ids::{CheckpointId, Epoch, JobId},
    pregel::{Metadata, Source, Stamp},
};

/// Makes the ids, times and metadata of checkpoints.
pub(super) struct Stamps<'a> {
    pub(super) running: &'a Running,
    /// The greatest id there is; every new one sorts above it.
    pub(super) floor: Option<CheckpointId>,
}

impl Stamps<'_> {
    pub(super) fn next(&mut self, step: i64) -> Stamp {
        let now = self.running.attempt.ports.clock.now();
        let id = CheckpointId::next(self.floor.as_ref(), now, step, fastrand::u64(..));
        self.floor = Some(id.clone());
        Stamp { id, ts: now.isoformat(), epoch: self.running.attempt.claim.epoch }
    }

    pub(super) fn job_id(&self) -> &JobId {
        &self.running.attempt.claim.job_id
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.running.attempt.claim.epoch
    }

    pub(super) fn metadata(
        &self,
        source: Source,
        (step, job_step): (i64, u64),
        parents: &BTreeMap<String, CheckpointId>,
    ) -> Metadata {
        let attempt = &self.running.attempt;
        let mut extra: JsonMap<String, Json> = attempt.job.config.metadata.clone();
        extra.insert(JOB_ID.into(), attempt.claim.job_id.as_str().into());
        extra.insert(EPOCH.into(), attempt.claim.epoch.0.into());
        extra.insert("attempt".into(), attempt.claim.attempt.into());
        extra.insert(JOB_STEP.into(), job_step.into());
        if let Some(hash) = self.running.definition.get() {
            extra.insert(DEFINITION.into(), (**hash).into());
        }
        extra.extend(spent::so_far(self.running));
        Metadata { source, step, parents: parents.clone(), extra }
    }
}

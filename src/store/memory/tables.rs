//! The tables in memory. The rules of their functions, as `migrations/` has them, stand with the ports and in `claims`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use super::{Config, agents, cache, deadlines, letters};
use crate::{
    ids::{CheckpointId, Epoch, JobId, Namespace, TaskId, ThreadId, UnixNanos},
    job::MultitaskStrategy,
    pregel::Version,
    store::{CacheKey, Cancel, Error, JobState, StoredEffect, StoredResult},
    value::Name,
};

/// Who asks, and when.
pub(super) struct Claimant<'a> {
    pub(super) owner: &'a Arc<str>,
    pub(super) now: UnixNanos,
    pub(super) config: Config,
}

impl Claimant<'_> {
    pub(super) fn lease_until(&self) -> UnixNanos {
        self.after(self.config.lease)
    }

    pub(super) fn after(&self, time: Duration) -> UnixNanos {
        UnixNanos(self.now.0.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
    }
}

pub(super) type Graph = (ThreadId, Namespace);

#[derive(Default)]
pub(super) struct Tables {
    pub(super) last_epoch: i64,
    pub(super) threads: BTreeMap<ThreadId, Thread>,
    pub(super) jobs: BTreeMap<JobId, Job>,
    pub(super) checkpoints: BTreeMap<Graph, BTreeMap<CheckpointId, Row>>,
    pub(super) blobs: HashMap<(Graph, Name, Version), Typed>,
    pub(super) writes: BTreeMap<(Graph, CheckpointId), BTreeMap<(TaskId, i32), Written>>,
    pub(super) effects: BTreeMap<(Graph, TaskId, Arc<str>), StoredEffect>,
    pub(super) last_letter: i64,
    pub(super) letters: BTreeMap<(String, u64), letters::Kept>,
    /// Wishes to cancel jobs that nobody has heard of yet.
    pub(super) wishes: BTreeMap<JobId, Cancel>,
    /// Stored definitions, the oldest first.
    pub(super) agents: Vec<agents::Kept>,
    /// The stored definition each job runs.
    pub(super) pins: BTreeMap<JobId, String>,
    pub(super) node_cache: BTreeMap<CacheKey, cache::Cached>,
    /// When each was last taken.
    pub(super) duties: BTreeMap<&'static str, UnixNanos>,
    pub(super) deadlines: BTreeMap<(ThreadId, Arc<str>), deadlines::Due>,
}

#[derive(Clone)]
pub(super) struct Thread {
    pub(super) epoch: Epoch,
    pub(super) owner: Option<Arc<str>>,
    /// The epoch whose finish handed the thread on to this claim.
    pub(super) chained_from: Option<Epoch>,
    pub(super) job_id: Option<JobId>,
    pub(super) lease_until: UnixNanos,
    pub(super) head: Option<CheckpointId>,
}

pub(super) struct Job {
    pub(super) thread_id: ThreadId,
    /// `None`: recorded before its message has a place.
    pub(super) stream_seq: Option<u64>,
    /// The place of a copy of its message.
    pub(super) copy_seq: Option<u64>,
    pub(super) policy: MultitaskStrategy,
    pub(super) attempt: u32,
    pub(super) charged: Vec<Epoch>,
    pub(super) head_at_claim: Option<CheckpointId>,
    /// The head of the thread when the job was first claimed.
    pub(super) base_head: Option<CheckpointId>,
    pub(super) request: Bytes,
    pub(super) accepted: UnixNanos,
    pub(super) deadline: UnixNanos,
    pub(super) cancel: Option<Cancel>,
    pub(super) running: bool,
    /// Whether its policy was applied to the jobs before it.
    pub(super) decided: bool,
    pub(super) end: Option<End>,
}

pub(super) struct End {
    pub(super) state: JobState,
    /// `None`: it never ran.
    pub(super) epoch: Option<Epoch>,
    pub(super) result: StoredResult,
    pub(super) body: Option<Bytes>,
    pub(super) error: Option<serde_json::Value>,
    pub(super) published: bool,
    pub(super) at: UnixNanos,
}

pub(super) struct Row {
    pub(super) parent: Option<CheckpointId>,
    pub(super) checkpoint: String,
    pub(super) metadata: String,
}

pub(super) struct Typed {
    pub(super) kind: &'static str,
    pub(super) blob: Vec<u8>,
}

pub(super) struct Written {
    pub(super) task_path: Arc<str>,
    pub(super) channel: Name,
    pub(super) value: Typed,
}

impl Tables {
    pub(super) fn expire_leases(&mut self, now: UnixNanos) {
        for thread in self.threads.values_mut() {
            thread.lease_until = thread.lease_until.min(now);
        }
    }

    pub(super) fn thread(&mut self, id: &ThreadId) -> &mut Thread {
        self.threads.entry(id.clone()).or_insert(Thread {
            epoch: Epoch(0),
            owner: None,
            chained_from: None,
            job_id: None,
            lease_until: UnixNanos(0),
            head: None,
        })
    }
}

pub(super) fn fenced(thread_id: &ThreadId, epoch: Epoch) -> Error {
    Error::Fenced { thread_id: thread_id.clone(), epoch }
}

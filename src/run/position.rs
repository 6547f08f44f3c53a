//! Where a graph that runs stands: its attempt, the graph and its place, the checkpoint it has reached, what pauses
//! after it.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Running,
    committer::Committer,
    metadata::{job_step, paused_after},
};
use crate::{
    graph::CompiledGraph,
    ids::{CheckpointId, Namespace},
    node::ToolSet,
    pregel::{Checkpoint, PendingWrite},
    store::Saved,
    value::Name,
};

/// The graph that runs, and where.
pub(super) struct Frame {
    pub(super) graph: Arc<CompiledGraph>,
    pub(super) tools: Arc<ToolSet>,
    pub(super) ns: Namespace,
    /// Checkpoints of the graphs around it, by namespace.
    pub(super) parents: BTreeMap<String, CheckpointId>,
    /// Most supersteps.
    pub(super) limit: u32,
}

/// A graph that runs, and the attempt it runs in.
#[derive(Clone, Copy)]
pub(super) struct Here<'a> {
    pub(super) running: &'a Running,
    /// Where the attempt's supersteps go.
    pub(super) committer: &'a Committer,
    pub(super) frame: &'a Frame,
}

/// Where a graph stands.
pub(super) struct Position {
    pub(super) checkpoint: Arc<Checkpoint>,
    pub(super) step: i64,
    /// Supersteps the job has made in this graph, earlier attempts included.
    pub(super) job_step: u64,
    /// Stored writes of tasks that start from the checkpoint.
    pub(super) pending: Vec<PendingWrite>,
    /// Channels that changed in memory only; their values are stored with the next checkpoint.
    pub(super) carried: Vec<Name>,
    /// Whether earlier attempts or jobs may have run tasks from here.
    pub(super) is_known: bool,
    /// Nodes of the superstep before after which runs pause.
    pub(super) ran: Vec<Name>,
}

impl Position {
    /// At a stored checkpoint.
    pub(super) fn resumed(saved: Saved) -> Self {
        let Saved { checkpoint, metadata, writes, .. } = saved;
        let (step, job_step, ran) = (metadata.step, job_step(&metadata), paused_after(&metadata));
        let checkpoint = Arc::new(checkpoint);
        Self { checkpoint, step, job_step, pending: writes, carried: Vec::new(), is_known: true, ran }
    }

    /// At a new checkpoint, `job_step` supersteps into the job.
    pub(super) fn new(checkpoint: Arc<Checkpoint>, step: i64, job_step: u64) -> Self {
        let (pending, carried, ran) = (Vec::new(), Vec::new(), Vec::new());
        Self { checkpoint, step, job_step, pending, carried, is_known: false, ran }
    }
}

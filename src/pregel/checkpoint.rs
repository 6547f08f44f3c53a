//! What is stored after a superstep.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    ids::{CheckpointId, TaskId, UnixNanos},
    value::{Name, State, Value},
};

/// Version of a channel's value: 32 zero-padded digits, a dot and a fraction that is unique per claim.
/// Versions compare as text.
pub type Version = Arc<str>;

/// The state of a graph after a superstep.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Sorts above its parent's id.
    pub id: CheckpointId,
    /// When it was made: ISO 8601 with microseconds and `+00:00`.
    pub ts: String,
    /// Values of the available channels, in no particular order.
    pub values: State,
    /// The version of every channel ever written.
    pub versions: BTreeMap<Name, Version>,
    /// The versions of its trigger channels each node last ran with.
    pub seen: BTreeMap<Name, BTreeMap<Name, Version>>,
    /// Channels the superstep updated and that are still available, sorted; `None` when unknown.
    pub updated: Option<Vec<Name>>,
}

impl Checkpoint {
    /// What a thread without checkpoints starts from; never stored.
    pub fn empty() -> Self {
        Self {
            id: CheckpointId::next(None, UnixNanos(0), 0, 0),
            ts: String::new(),
            values: State::new(),
            versions: BTreeMap::new(),
            seen: BTreeMap::new(),
            updated: None,
        }
    }
}

/// Where a checkpoint came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A job's input.
    Input,
    /// A superstep.
    Loop,
    /// A change made from outside a run.
    Update,
    /// A copy of an older checkpoint.
    Fork,
}

impl Source {
    /// LangGraph's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Loop => "loop",
            Self::Update => "update",
            Self::Fork => "fork",
        }
    }
}

/// What is stored beside a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Metadata {
    /// Where the checkpoint came from.
    pub source: Source,
    /// -1 for the first input, then one more per checkpoint.
    pub step: i64,
    /// The checkpoints of the graphs around this one, by namespace; empty at the root.
    pub parents: BTreeMap<String, CheckpointId>,
    /// Everything else: `job_id`, `executor_epoch`, `attempt` and the job's own metadata.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// A write of a task that has not been applied yet.
#[derive(Clone, Debug, PartialEq)]
pub struct PendingWrite {
    /// The task.
    pub task_id: TaskId,
    /// Its path; writes are applied in the order of these texts.
    pub task_path: Arc<str>,
    /// Position among the task's writes; negative for LangGraph's special channels.
    pub idx: i32,
    /// The channel written to.
    pub channel: Name,
    /// What is written, before the reducer.
    pub value: Value,
}

//! Port of checkpoints: the states of threads, and the fenced writes to them.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{EffectRow, Error};
use crate::{
    ids::{CheckpointId, Epoch, Namespace, TaskId, ThreadId},
    pregel::{Checkpoint, Metadata, PendingWrite},
    value::Name,
};

/// A stored checkpoint with what was written on top of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// What is stored beside it.
    pub metadata: Metadata,
    /// The checkpoint before it.
    pub parent: Option<CheckpointId>,
    /// Writes of tasks that started from it, in the order (task path, task id, idx).
    pub writes: Vec<PendingWrite>,
}

/// A checkpoint to store.
#[derive(Clone, Debug)]
pub struct Put {
    /// The graph it belongs to.
    pub ns: Namespace,
    /// The checkpoint.
    pub checkpoint: Arc<Checkpoint>,
    /// What is stored beside it.
    pub metadata: Metadata,
    /// The checkpoint before it.
    pub parent: Option<CheckpointId>,
    /// Channels that got a new version with it; their values are stored once, under that version.
    pub changed: Vec<Name>,
}

/// Writes of tasks, to be stored on the checkpoint they started from.
#[derive(Clone, Debug)]
pub struct TaskWrites {
    /// The graph the tasks belong to.
    pub ns: Namespace,
    /// The checkpoint they started from.
    pub checkpoint_id: CheckpointId,
    /// What they wrote.
    pub writes: Vec<PendingWrite>,
}

/// One fenced, atomic write to a thread.
#[derive(Clone, Debug)]
pub struct Commit {
    /// The thread.
    pub thread_id: ThreadId,
    /// The epoch it is written under.
    pub epoch: Epoch,
    /// How the head of the thread moves; `None` for writes and for checkpoints of nested graphs.
    pub advance: Option<Advance>,
    /// Checkpoints, oldest first.
    pub puts: Vec<Put>,
    /// Writes of tasks.
    pub writes: Vec<TaskWrites>,
    /// Rows of the ledger of effects; each replaces the row of its call.
    pub effects: Vec<EffectRow>,
}

impl Commit {
    /// A commit that writes nothing.
    pub fn empty(thread_id: ThreadId, epoch: Epoch) -> Self {
        let (puts, writes, effects) = (Vec::new(), Vec::new(), Vec::new());
        Self { thread_id, epoch, advance: None, puts, writes, effects }
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.advance.is_none() && self.puts.is_empty() && self.writes.is_empty() && self.effects.is_empty()
    }
}

/// A move of a thread's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advance {
    /// The head it moves from; another head refuses the commit as fenced.
    pub from: Option<CheckpointId>,
    /// The head it moves to; sorts above `from`.
    pub to: CheckpointId,
}

/// Checkpoints of threads.
#[async_trait]
pub trait Checkpoints: Send + Sync {
    /// The checkpoint `id`, or the newest one, of a graph of a thread.
    async fn load(
        &self,
        thread_id: &ThreadId,
        ns: &Namespace,
        id: Option<&CheckpointId>,
    ) -> Result<Option<Saved>, Error>;

    /// Stores all of `commit` or nothing. Repeating a commit whose answer was lost changes nothing.
    ///
    /// While the database is away this waits and tries again; it ends with [`Error::Fenced`] when
    /// somebody else has claimed the thread. The write itself goes on when the caller stops waiting.
    async fn commit(&self, commit: Commit) -> Result<(), Error>;

    /// How long a thread stays with its owner after a commit, counted from before the commit was handed in.
    fn lease(&self) -> Duration;

    /// What the ledger of effects holds of a task.
    async fn effects(
        &self,
        thread_id: &ThreadId,
        ns: &Namespace,
        task_id: &TaskId,
    ) -> Result<Vec<EffectRow>, Error>;

    /// The newest `limit` checkpoints of a graph of a thread, newest first.
    async fn history(&self, thread_id: &ThreadId, ns: &Namespace, limit: u32) -> Result<Vec<Saved>, Error>;
}

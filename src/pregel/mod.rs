//! The superstep algorithm: channels with versions, plan, apply. Pure, so that tests alone prove it.
//!
//! Follows LangGraph's rules, because a thread must be at home in both.
//!
//! **Invariant:** the same checkpoint and the same writes give the same tasks and the same next state,
//! in whatever order the tasks finished.

mod apply;
mod armed;
mod channel;
mod checkpoint;
mod input;
mod interrupt;
mod messages;
mod pause;
mod plan;

pub use apply::{Applied, Stamp, TaskWrites, apply};
pub use armed::armed;
pub use channel::{fold, is_overwriting, view};
pub use checkpoint::{Checkpoint, Metadata, PendingWrite, Source, Version};
pub use input::{accept_input, mark_resumed};
pub use interrupt::{Answers, Dialogue, Question, has_failed, waiting};
pub use messages::REMOVE_ALL;
pub use pause::{pause, pausing_after};
pub use plan::{Task, TaskInput, plan, restore};

pub use crate::value::MESSAGES;
use crate::value::{Name, Value};

/// Channel of the input of a job, available only in the input checkpoint; also the name of its first task.
pub const START: &str = "__start__";
/// Channel of the tasks scheduled for the next superstep.
pub const SENDS: &str = "__pregel_tasks";
/// Marks a finished task that wrote nothing.
pub const NO_WRITES: &str = "__no_writes__";
/// Channel of a failed task's error.
pub const ERROR: &str = "__error__";
/// Names the node a failed task with an error route belongs to.
pub const ERROR_SOURCE: &str = "__error_source_node__";
/// Channel of the questions of a paused task.
pub const INTERRUPT: &str = "__interrupt__";
/// Channel of the answers to a paused task.
pub const RESUME: &str = "__resume__";

/// The only key of a map that replaces the value of a channel with a reducer.
pub const OVERWRITE: &str = "__overwrite__";

/// Why writes cannot be applied.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Two tasks of one superstep wrote a channel that keeps one value.
    #[error("channel {0:?} got several values in one superstep; give it a reducer")]
    SeveralValues(String),
    /// A write that the channel's reducer cannot fold.
    #[error("channel {channel:?} cannot take the value: {reason}")]
    Unfoldable {
        /// The channel.
        channel: String,
        /// What the reducer expected.
        reason: String,
    },
}

impl Error {
    /// The code operators find in TROUBLESHOOTING.md.
    pub fn code(&self) -> &'static str {
        match self {
            Self::SeveralValues(_) => "STATE_SEVERAL_VALUES",
            Self::Unfoldable { .. } => "STATE_UNFOLDABLE",
        }
    }
}

/// One write of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// The channel.
    pub channel: Name,
    /// What is written, before the reducer.
    pub value: Value,
}

impl Write {
    /// A write of `value` to `channel`.
    pub fn new(channel: impl Into<Name>, value: Value) -> Self {
        Self { channel: channel.into(), value }
    }
}

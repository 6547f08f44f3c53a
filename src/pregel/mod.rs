//! The superstep algorithm: channels with versions, plan, apply. Pure, so that tests alone prove it.
//!
//! Follows LangGraph's rules, because a thread must be at home in both.

mod checkpoint;

pub use checkpoint::{Checkpoint, Metadata, PendingWrite, Source, Version};

/// Channel of the input of a job, available only in the input checkpoint; also the name of its first task.
pub const START: &str = "__start__";
/// Channel of the tasks scheduled for the next superstep.
pub const SENDS: &str = "__pregel_tasks";
/// Marks a finished task that wrote nothing.
pub const NO_WRITES: &str = "__no_writes__";
/// Channel of a failed task's error.
pub const ERROR: &str = "__error__";
/// Channel of the questions of a paused task.
pub const INTERRUPT: &str = "__interrupt__";
/// Channel of the answers to a paused task.
pub const RESUME: &str = "__resume__";

//! How a job enters a thread: its input becomes a checkpoint, or it resumes what is there.

use super::{Applied, Checkpoint, Error, START, Stamp, Task, TaskWrites, Write, apply, plan};
use crate::{graph::CompiledGraph, ids::Namespace, value::Value};

/// LangGraph's name for whoever writes the input.
const INPUT: &str = "__input__";

/// The input checkpoint: tasks that still waited are discarded, then `input` waits for the first superstep.
pub fn accept_input(
    graph: &CompiledGraph,
    ns: &Namespace,
    before: (&Checkpoint, i64),
    input: Value,
    stamp: Stamp,
) -> Result<Applied, Error> {
    let (checkpoint, step) = before;
    let discarded = plan(graph, ns, checkpoint, step + 1).into_iter();
    let mut tasks: Vec<_> = discarded.map(|task| TaskWrites { task, writes: Vec::new() }).collect();
    tasks.push(TaskWrites { task: Task::outside(INPUT), writes: vec![Write::new(START, input)] });
    let mut applied = apply(graph, checkpoint, &tasks, stamp)?;
    applied.checkpoint.seen.entry(INPUT.into()).or_default();
    Ok(applied)
}

/// Notes that a person or a new job continues the thread from here, as LangGraph does on every resume.
pub fn mark_resumed(checkpoint: &mut Checkpoint) {
    checkpoint.seen.insert(super::INTERRUPT.into(), checkpoint.versions.clone());
}

//! How a command continues a thread: an answer, changes of the state, a jump to other nodes.

use std::sync::Arc;

use super::{
    code,
    committer::Step,
    failure,
    start::{Arrival, Stamps, pending},
    superstep::{Frame, Position},
};
use crate::{
    graph::CompiledGraph,
    ids::{Epoch, Namespace, TaskId},
    job::{Command, Failure},
    pregel::{self, Checkpoint, INTERRUPT, PendingWrite, RESUME, Source, Stamp, Task, TaskInput, Write},
    store::{Put, Saved, TaskWrites},
    value::Value,
};

/// LangGraph's place of an answer among a task's writes.
const RESUME_IDX: i32 = -4;

/// Where `command` continues from `base`.
///
/// On the newest checkpoint, what the command writes is stored as LangGraph does, as writes of nobody's task on
/// that checkpoint: tasks that had finished keep their ids and are not run again. When that leaves nothing to
/// run, and on an older checkpoint, it becomes a checkpoint of its own.
pub(super) fn arrive(
    frame: &Frame,
    command: &Command,
    base: Option<Saved>,
    stamps: Stamps<'_>,
) -> Result<Arrival, Failure> {
    let Some(saved) = base else {
        return Err(failure(code::NOTHING_TO_RESUME, "the thread has no checkpoint to continue from"));
    };
    check(&frame.graph, command, &saved)?;
    let is_newest = stamps.floor.as_ref() == Some(&saved.checkpoint.id);
    let writes = writes(command);
    if is_newest {
        let stored = stored(&saved);
        // A command that crashed before its first checkpoint finds its own writes here.
        let news = if stored.ends_with(&writes) { &[][..] } else { &writes[..] };
        let all = [&stored[..], news].concat();
        let arrival = in_place(frame, saved.clone(), &all, stamps.epoch())?;
        let position = &arrival.position;
        let tasks = pregel::plan(&frame.graph, &frame.ns, &position.checkpoint, position.step + 1);
        if writes.is_empty() || !tasks.is_empty() {
            return Ok(arrival.with_writes(&frame.ns, told(command, (stored.len(), news))));
        }
    }
    Ok(as_checkpoint(frame, saved, writes, stamps)?.with_writes(&frame.ns, told(command, (0, &[]))))
}

/// What earlier commands wrote on the checkpoint and no superstep has taken up.
fn stored(saved: &Saved) -> Vec<Write> {
    let nobody = TaskId::null();
    let writes = saved.writes.iter().filter(|write| write.task_id == nobody && write.idx >= 0);
    writes.map(|write| Write::new(write.channel.clone(), write.value.clone())).collect()
}

fn check(graph: &CompiledGraph, command: &Command, saved: &Saved) -> Result<(), Failure> {
    if let Some(unknown) = command.goto.iter().find(|node| graph.node(node).is_none()) {
        return Err(failure(code::BAD_REQUEST, format!("/command/goto: unknown node {unknown:?}")));
    }
    let channels = command.update.iter().flat_map(|update| update.keys());
    if let Some(unknown) = channels.into_iter().find(|channel| !graph.channels.contains_key(channel.as_str()))
    {
        return Err(failure(code::BAD_REQUEST, format!("/command/update: unknown channel {unknown:?}")));
    }
    let waits = saved.writes.iter().any(|write| &*write.channel == INTERRUPT);
    if command.resume.is_some() && !waits {
        return Err(failure(code::NOTHING_TO_RESUME, "no interrupt of the thread waits for an answer"));
    }
    Ok(())
}

/// What the command writes: channels of the state, and the triggers of the nodes it jumps to.
fn writes(command: &Command) -> Vec<Write> {
    let updates = command.update.iter().flatten();
    let updates = updates.map(|(channel, value)| Write::new(channel.as_str(), Value::from(value.clone())));
    let jumps = command.goto.iter().map(|node| Write::new(format!("branch:to:{node}"), pregel::START.into()));
    updates.chain(jumps).collect()
}

/// What is stored on the checkpoint: `writes` behind the `before` that are there already, then the answer.
fn told(command: &Command, (before, writes): (usize, &[Write])) -> Vec<PendingWrite> {
    let answer = command.resume.as_ref().map(|answer| PendingWrite {
        task_id: TaskId::null(),
        task_path: "".into(),
        idx: RESUME_IDX,
        channel: RESUME.into(),
        value: Value::from(answer.clone()),
    });
    let before = i32::try_from(before).unwrap_or(i32::MAX);
    let behind = |write: PendingWrite| PendingWrite { idx: write.idx.saturating_add(before), ..write };
    pending(&nobody(), writes).into_iter().map(behind).chain(answer).collect()
}

/// The task under which LangGraph keeps what a command wrote.
fn nobody() -> Task {
    let (id, triggers) = (TaskId::null(), Vec::new());
    Task { id, path: "".into(), name: "".into(), triggers, input: TaskInput::State }
}

impl Arrival {
    /// The same with writes that are stored on the checkpoint it starts from.
    fn with_writes(mut self, ns: &Namespace, writes: Vec<PendingWrite>) -> Self {
        if !writes.is_empty() {
            let checkpoint_id = self.position.checkpoint.id.clone();
            self.position.pending.extend(writes.iter().cloned());
            self.step.writes.push(TaskWrites { ns: ns.clone(), checkpoint_id, writes });
        }
        self
    }
}

fn in_place(frame: &Frame, saved: Saved, writes: &[Write], epoch: Epoch) -> Result<Arrival, Failure> {
    let mut position = Position { job_step: 0, ..Position::resumed(saved) };
    let mut checkpoint = Checkpoint::clone(&position.checkpoint);
    pregel::mark_resumed(&mut checkpoint);
    if !writes.is_empty() {
        let stamp = Stamp { id: checkpoint.id.clone(), ts: checkpoint.ts.clone(), epoch };
        let tasks = [pregel::TaskWrites { task: nobody(), writes: writes.to_vec() }];
        let applied = pregel::apply(&frame.graph, &checkpoint, &tasks, stamp)?;
        checkpoint = applied.checkpoint;
        position.carried = applied.changed;
    }
    position.checkpoint = Arc::new(checkpoint);
    Ok(Arrival { position, step: Step { puts: Vec::new(), writes: Vec::new() } })
}

fn as_checkpoint(
    frame: &Frame,
    saved: Saved,
    writes: Vec<Write>,
    mut stamps: Stamps<'_>,
) -> Result<Arrival, Failure> {
    let source = if writes.is_empty() { Source::Fork } else { Source::Update };
    let step = saved.metadata.step + 1;
    let mut before = saved.checkpoint;
    pregel::mark_resumed(&mut before);
    let tasks = [pregel::TaskWrites { task: nobody(), writes }];
    let applied = pregel::apply(&frame.graph, &before, &tasks, stamps.next(step))?;
    // Unknown to readers that would otherwise run only what this change triggers.
    let checkpoint = Arc::new(Checkpoint { updated: None, ..applied.checkpoint });
    let put = Put {
        ns: frame.ns.clone(),
        checkpoint: checkpoint.clone(),
        metadata: stamps.metadata(source, (step, 0), &frame.parents),
        parent: Some(before.id),
        changed: applied.changed,
    };
    let position = Position { checkpoint, step, job_step: 0, pending: Vec::new(), carried: Vec::new() };
    Ok(Arrival { position, step: Step { puts: vec![put], writes: Vec::new() } })
}

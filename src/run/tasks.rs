//! The tasks of one superstep, side by side: which are still to be run, how many at a time, what is stored of each.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use futures::{StreamExt, stream};
use tokio::sync::Semaphore;

use super::{
    Error, Reason,
    gathered::is_computed,
    position::{Frame, Here, Position},
    spent,
    task::{self, TaskEnd, Worked},
};
use crate::{
    graph::CompiledGraph,
    job::Failure,
    pregel::{self, ERROR, INTERRUPT, PendingWrite, RESUME, Task, Write},
    store::TaskWrites,
    value::{Interrupt, Name, State, Value},
};

/// Tasks of one superstep that run at the same time; the rest wait. Bounds what one job can ask of a pod.
const PARALLEL_TASKS: usize = 64;

/// LangGraph's place of an error among a task's writes.
const ERROR_IDX: i32 = -1;

/// LangGraph's place of the questions a task waits on.
const INTERRUPT_IDX: i32 = -3;

/// LangGraph's place of the answers a task has been given.
pub(super) const RESUME_IDX: i32 = -4;

/// What the tasks of a superstep left.
pub(super) enum Ran {
    Finished(Finished),
    /// One failed: why, and the marks and writes that are not stored yet.
    Failed(Failure, Vec<PendingWrite>),
    /// None failed, and some wait: for what, and the marks and writes that are not stored yet.
    Interrupted(Vec<Arc<Interrupt>>, Vec<PendingWrite>),
}

pub(super) struct Finished {
    pub(super) tasks: Vec<pregel::TaskWrites>,
    pub(super) unsaved: Vec<PendingWrite>,
}

/// Runs the tasks that no earlier attempt has finished. A task that finishes while others still run has
/// its writes stored at once, so that a crash of its siblings does not repeat it. Once one has failed no other one
/// begins, and those that have begun come to their end: what they do outside is not cut off halfway.
pub(super) async fn run_tasks(
    here: Here<'_>,
    position: &Position,
    tasks: Vec<Task>,
    state: &State,
) -> Result<Ran, Error> {
    let (finished, open) = restored(position, tasks);
    if let Err(failed) = allowed(here, open.iter().chain(finished.iter().map(|done| &done.task))) {
        return Ok(Ran::Failed(failed, Vec::new()));
    }
    let Here { committer, frame, .. } = here;
    let siblings = Siblings {
        here,
        position,
        state,
        lanes: lanes(&frame.graph, &open),
        left: AtomicUsize::new(open.len()),
        has_failed: AtomicBool::new(false),
        is_kept: committer.holds_back() || is_computed(&frame.graph, &open),
    };
    let ends = stream::iter(open).map(|task| siblings.run_one(task));
    let mut ends = ends.buffer_unordered(PARALLEL_TASKS);
    let mut so_far = SoFar { finished, ..SoFar::default() };
    while let Some(ended) = ends.next().await {
        match ended {
            Ok(Some(ended)) => so_far.add(ended),
            Ok(None) => {}
            // It would have waited; the others go on to the end of the superstep.
            Err(Error::Stopped(Reason::Drain)) => so_far.is_leaving = true,
            Err(error) => return Err(error),
        }
    }
    if so_far.is_leaving && so_far.failed.is_none() {
        siblings.store_early(so_far.unsaved).await?;
        return Err(Error::Stopped(Reason::Drain));
    }
    Ok(so_far.into_ran())
}

/// What the tasks of a superstep share while they run side by side.
struct Siblings<'a> {
    here: Here<'a>,
    position: &'a Position,
    state: &'a State,
    lanes: HashMap<Name, Semaphore>,
    /// How many have not ended.
    left: AtomicUsize,
    has_failed: AtomicBool,
    /// Whether their writes wait for the end of the superstep.
    is_kept: bool,
}

/// One task's end, with the marks and writes of it that are not stored yet.
struct OneEnd {
    task: Task,
    end: TaskEnd,
    unsaved: Vec<PendingWrite>,
}

impl Siblings<'_> {
    /// Runs `task`; `None` when it has not begun because another one has failed.
    async fn run_one(&self, task: Task) -> Result<Option<OneEnd>, Error> {
        let _place = match self.lanes.get(&task.name) {
            Some(lane) => lane.acquire().await.ok(),
            None => None,
        };
        if self.has_failed.load(Ordering::Acquire) {
            return Ok(None);
        }
        if !self.is_kept && self.here.running.attempt.stop.is_leaving() {
            return Err(Error::Stopped(Reason::Drain));
        }
        let Worked { end, answers } = task::run(self.here, &task, self.position, self.state).await?;
        if let TaskEnd::Failed(_) = &end {
            self.has_failed.store(true, Ordering::Release);
        }
        let is_last = self.left.fetch_sub(1, Ordering::AcqRel) == 1;
        let mut unsaved = marks(&task, &end, answers);
        if let TaskEnd::Finished(writes) = &end {
            unsaved.extend(pending(&task, writes));
            // Those that wait or fail end the superstep, which stores their marks. What is held back is
            // needed if it ends that way.
            if !is_last && !self.is_kept {
                self.store_early(std::mem::take(&mut unsaved)).await?;
            }
        }
        Ok(Some(OneEnd { task, end, unsaved }))
    }

    /// Stores writes before their superstep ends, with what the job has spent by then.
    async fn store_early(&self, mut writes: Vec<PendingWrite>) -> Result<(), Error> {
        if !writes.is_empty() {
            writes.extend(spent::record(self.here.running));
        }
        match stored_on(self.here.frame, self.position, writes) {
            Some(writes) => self.here.committer.writes(writes).await,
            None => Ok(()),
        }
    }
}

/// What the tasks of a superstep have come to so far.
#[derive(Default)]
struct SoFar {
    finished: Vec<pregel::TaskWrites>,
    /// Marks and writes that are not stored yet.
    unsaved: Vec<PendingWrite>,
    /// What tasks wait for, by their paths.
    waiting: Vec<(Arc<str>, Vec<Arc<Interrupt>>)>,
    /// The first failure.
    failed: Option<Failure>,
    /// Whether a task has not run because the process leaves.
    is_leaving: bool,
}

impl SoFar {
    fn add(&mut self, OneEnd { task, end, unsaved }: OneEnd) {
        self.unsaved.extend(unsaved);
        match end {
            TaskEnd::Finished(writes) => self.finished.push(pregel::TaskWrites { task, writes }),
            TaskEnd::Failed(failed) => {
                self.failed.get_or_insert(failed);
            }
            TaskEnd::Waits(interrupts) => self.waiting.push((task.path, interrupts)),
        }
    }

    fn into_ran(self) -> Ran {
        let Self { finished, unsaved, mut waiting, failed, .. } = self;
        if let Some(failed) = failed {
            return Ran::Failed(failed, unsaved);
        }
        if waiting.is_empty() {
            return Ran::Finished(Finished { tasks: finished, unsaved });
        }
        waiting.sort_by(|a, b| a.0.cmp(&b.0));
        Ran::Interrupted(waiting.into_iter().flat_map(|(_, interrupts)| interrupts).collect(), unsaved)
    }
}

/// The tasks that an earlier attempt has finished, and those that are to be run.
fn restored(position: &Position, tasks: Vec<Task>) -> (Vec<pregel::TaskWrites>, Vec<Task>) {
    let (mut finished, mut open) = (Vec::with_capacity(tasks.len()), Vec::new());
    for task in tasks {
        match pregel::restore(&task, &position.pending) {
            Some(writes) => finished.push(pregel::TaskWrites { task, writes }),
            None => open.push(task),
        }
    }
    (finished, open)
}

/// Whether the job may make the calls among `tasks`. All of them or none: a call that is under way when another one is
/// refused would be lost.
fn allowed<'a>(here: Here<'_>, tasks: impl Iterator<Item = &'a Task>) -> Result<(), Failure> {
    let Here { running, frame, .. } = here;
    let is_call = |task: &&Task| frame.graph.node(&task.name).is_some_and(|node| node.kind.is_call());
    let calls = tasks.filter(is_call).count();
    let counted = running.scope.spending.tool_calls(u64::try_from(calls).unwrap_or(u64::MAX));
    counted.map_err(|error| Failure { node: None, ..error.failure("") })
}

/// Places for the items of maps that bound how many run at the same time.
fn lanes(graph: &CompiledGraph, tasks: &[Task]) -> HashMap<Name, Semaphore> {
    let bounded = tasks.iter().filter_map(|task| {
        let places = graph.node(&task.name)?.items.as_ref()?.max_concurrency?;
        Some((task.name.clone(), Semaphore::new(places)))
    });
    bounded.collect()
}

/// What is stored of a task beside its writes. A failed task stores its error and nothing else, and one that
/// waits its questions and the answers it has got: any other write would count as finished.
fn marks(task: &Task, end: &TaskEnd, answers: Vec<Value>) -> Vec<PendingWrite> {
    let mark = |idx, channel: &str, value| PendingWrite {
        task_id: task.id.clone(),
        task_path: task.path.clone(),
        idx,
        channel: channel.into(),
        value,
    };
    let mut marks = Vec::new();
    match end {
        TaskEnd::Failed(failed) => {
            let text = format!("{}: {}", failed.code, failed.message);
            return vec![mark(ERROR_IDX, ERROR, text.into())];
        }
        TaskEnd::Waits(interrupts) => {
            let questions = interrupts.iter().map(|interrupt| Value::Interrupt(interrupt.clone()));
            marks.push(mark(INTERRUPT_IDX, INTERRUPT, Value::list(questions.collect())));
        }
        TaskEnd::Finished(_) => {}
    }
    if !answers.is_empty() {
        marks.push(mark(RESUME_IDX, RESUME, Value::list(answers)));
    }
    marks
}

/// Writes on the checkpoint that the tasks start from; none when there are none.
pub(super) fn stored_on(frame: &Frame, position: &Position, writes: Vec<PendingWrite>) -> Option<TaskWrites> {
    let checkpoint_id = position.checkpoint.id.clone();
    (!writes.is_empty()).then(|| TaskWrites { ns: frame.ns.clone(), checkpoint_id, writes })
}

/// The writes of a finished task as they are stored.
pub(super) fn pending(task: &Task, writes: &[Write]) -> Vec<PendingWrite> {
    let stored = |(idx, write): (usize, &Write)| PendingWrite {
        task_id: task.id.clone(),
        task_path: task.path.clone(),
        idx: i32::try_from(idx).unwrap_or(i32::MAX),
        channel: write.channel.clone(),
        value: write.value.clone(),
    };
    writes.iter().enumerate().map(stored).collect()
}

//! The superstep loop: plan, run the tasks side by side, apply, commit, tell.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::{StreamExt, future::BoxFuture, stream};
use tracing::Instrument;

use super::{
    Error, Running, code,
    committer::{Committer, Step},
    start::{JOB_STEP, Stamps, pending},
    task,
};
use crate::{
    graph::CompiledGraph,
    ids::{CheckpointId, Namespace},
    job::Failure,
    node::ToolSet,
    pregel::{self, Checkpoint, ERROR, PendingWrite, Source, Task, Write},
    store::{Put, Saved, TaskWrites},
    telemetry::metric,
    value::{Name, State},
};

/// Tasks of one superstep that run at the same time; the rest wait. Bounds what one job can ask of a pod.
const PARALLEL_TASKS: usize = 64;

/// LangGraph's place of an error among a task's writes.
const ERROR_IDX: i32 = -1;

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
}

impl Position {
    /// At a stored checkpoint.
    pub(super) fn resumed(saved: Saved) -> Self {
        let Saved { checkpoint, metadata, writes, .. } = saved;
        let job_step = metadata.extra.get(JOB_STEP).and_then(serde_json::Value::as_u64).unwrap_or(0);
        let (checkpoint, step) = (Arc::new(checkpoint), metadata.step);
        Self { checkpoint, step, job_step, pending: writes, carried: Vec::new() }
    }
}

/// How a graph ended.
pub(super) struct GraphEnd {
    pub(super) how: Ended,
    pub(super) steps: u64,
    pub(super) checkpoint_id: CheckpointId,
    /// Writes of the superstep that did not finish, not stored yet.
    pub(super) unfinished: Vec<TaskWrites>,
}

pub(super) enum Ended {
    /// No task is left; this is the state.
    Done(State),
    /// A task failed, or there were too many supersteps.
    Failed(Failure),
}

/// Runs `frame`'s graph from `position` until no task is left. Boxed because graphs nest.
pub(super) fn run_graph<'a>(
    running: &'a Running,
    committer: &'a Committer,
    frame: &'a Frame,
    position: Position,
) -> BoxFuture<'a, Result<GraphEnd, Error>> {
    Box::pin(supersteps(running, committer, frame, position))
}

async fn supersteps(
    running: &Running,
    committer: &Committer,
    frame: &Frame,
    mut position: Position,
) -> Result<GraphEnd, Error> {
    let mut state = pregel::view(&frame.graph, &position.checkpoint);
    tell_state(running, frame, &position, &state);
    loop {
        let tasks = pregel::plan(&frame.graph, &frame.ns, &position.checkpoint, position.step + 1);
        let end = |how, unfinished| {
            Ok(GraphEnd {
                how,
                steps: position.job_step,
                checkpoint_id: position.checkpoint.id.clone(),
                unfinished,
            })
        };
        if tasks.is_empty() {
            return end(Ended::Done(state), Vec::new());
        }
        if position.job_step >= u64::from(frame.limit) {
            return end(Ended::Failed(too_many(frame.limit)), Vec::new());
        }
        let span = tracing::info_span!("superstep", step = position.step + 1, ns = %frame.ns);
        let ran = run_tasks(running, committer, (frame, &position), tasks, &state).instrument(span).await?;
        let ran = match ran {
            Ran::Finished(ran) => ran,
            Ran::Failed(failed, writes) => {
                let unfinished = stored_on(frame, &position, writes);
                return end(Ended::Failed(failed), unfinished.into_iter().collect());
            }
        };
        let next = match next_position(running, frame, &position, &ran.tasks) {
            Ok(next) => next,
            Err(failed) => return end(Ended::Failed(failed), Vec::new()),
        };
        let writes = stored_on(frame, &position, ran.unsaved).into_iter().collect();
        committer.step(Step { puts: vec![next.put], writes }).await?;
        metrics::counter!(metric::SUPERSTEPS).increment(1);
        position = next.position;
        state = pregel::view(&frame.graph, &position.checkpoint);
        tell_state(running, frame, &position, &state);
    }
}

fn too_many(limit: u32) -> Failure {
    super::failure(code::RECURSION_LIMIT, format!("the run is not over after {limit} supersteps"))
}

/// Readers follow the root graph's state; what a sub-agent did shows when its task has finished.
fn tell_state(running: &Running, frame: &Frame, position: &Position, state: &State) {
    if frame.ns.is_root() {
        running.reach(position.job_step, &position.checkpoint.id);
        let id = position.checkpoint.id.as_str();
        running.scope.emitter.state_update(&frame.ns, state, position.step, id);
    }
}

fn stored_on(frame: &Frame, position: &Position, writes: Vec<PendingWrite>) -> Option<TaskWrites> {
    let checkpoint_id = position.checkpoint.id.clone();
    (!writes.is_empty()).then(|| TaskWrites { ns: frame.ns.clone(), checkpoint_id, writes })
}

/// What the tasks of a superstep left.
enum Ran {
    Finished(Finished),
    /// One failed: why, and the marks and writes that are not stored yet.
    Failed(Failure, Vec<PendingWrite>),
}

struct Finished {
    tasks: Vec<pregel::TaskWrites>,
    unsaved: Vec<PendingWrite>,
}

/// Runs the tasks that no earlier attempt has finished. A task that finishes while others still run has
/// its writes stored at once, so that a crash of its siblings does not repeat it.
async fn run_tasks(
    running: &Running,
    committer: &Committer,
    (frame, position): (&Frame, &Position),
    tasks: Vec<Task>,
    state: &State,
) -> Result<Ran, Error> {
    let mut finished = Vec::with_capacity(tasks.len());
    let mut open = Vec::new();
    for task in tasks {
        match pregel::restore(&task, &position.pending) {
            Some(writes) => finished.push(pregel::TaskWrites { task, writes }),
            None => open.push(task),
        }
    }
    let left = AtomicUsize::new(open.len());
    let run_one = |task: Task| {
        let left = &left;
        async move {
            let outcome =
                task::run(running, committer, frame, (&task, &position.checkpoint.id, state)).await?;
            let is_last = left.fetch_sub(1, Ordering::AcqRel) == 1;
            let Ok(writes) = outcome else { return Ok::<_, Error>((task, outcome, Vec::new())) };
            let stored = pending(&task, &writes);
            if is_last {
                return Ok((task, Ok(writes), stored));
            }
            if let Some(writes) = stored_on(frame, position, stored) {
                committer.writes(writes).await?;
            }
            Ok((task, Ok(writes), Vec::new()))
        }
    };
    let mut running_tasks = stream::iter(open).map(run_one).buffer_unordered(PARALLEL_TASKS);
    let mut unsaved = Vec::new();
    while let Some(ended) = running_tasks.next().await {
        let (task, outcome, stored) = ended?;
        unsaved.extend(stored);
        match outcome {
            Ok(writes) => finished.push(pregel::TaskWrites { task, writes }),
            Err(failed) => {
                unsaved.push(failure_mark(&task, &failed));
                return Ok(Ran::Failed(failed, unsaved));
            }
        }
    }
    Ok(Ran::Finished(Finished { tasks: finished, unsaved }))
}

/// A failed task stores its error and nothing else: any other write would count as finished.
fn failure_mark(task: &Task, failed: &Failure) -> PendingWrite {
    PendingWrite {
        task_id: task.id.clone(),
        task_path: task.path.clone(),
        idx: ERROR_IDX,
        channel: ERROR.into(),
        value: format!("{}: {}", failed.code, failed.message).into(),
    }
}

struct Next {
    position: Position,
    put: Put,
}

fn next_position(
    running: &Running,
    frame: &Frame,
    position: &Position,
    tasks: &[pregel::TaskWrites],
) -> Result<Next, Failure> {
    let (step, job_step) = (position.step + 1, position.job_step + 1);
    let mut stamps = Stamps { running, floor: Some(position.checkpoint.id.clone()) };
    let applied = pregel::apply(&frame.graph, &position.checkpoint, tasks, stamps.next(step))?;
    let mut changed = applied.changed;
    let carried = position.carried.iter().filter(|name| applied.checkpoint.values.contains_key(*name));
    changed.extend(carried.cloned());
    changed.sort();
    changed.dedup();
    let checkpoint = Arc::new(applied.checkpoint);
    let put = Put {
        ns: frame.ns.clone(),
        checkpoint: checkpoint.clone(),
        metadata: stamps.metadata(Source::Loop, (step, job_step), &frame.parents),
        parent: Some(position.checkpoint.id.clone()),
        changed,
    };
    Ok(Next {
        position: Position { checkpoint, step, job_step, pending: Vec::new(), carried: Vec::new() },
        put,
    })
}

/// The marker write of a task that wrote nothing.
pub(super) fn or_no_writes(writes: Vec<Write>) -> Vec<Write> {
    if writes.is_empty() { vec![Write::new(pregel::NO_WRITES, crate::value::Value::Null)] } else { writes }
}

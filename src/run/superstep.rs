//! The superstep loop: plan, run the tasks side by side, apply, commit, tell.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use futures::{StreamExt, future::BoxFuture, stream};
use serde_json::Value as Json;
use tokio::sync::Semaphore;
use tracing::Instrument;

use super::{
    Error, Reason, Running, Untold, code,
    committer::{Committer, Step},
    gathered::is_computed,
    start::{JOB_STEP, Stamps, pending},
    task::{self, TaskEnd, Worked},
};
use crate::{
    graph::{CompiledGraph, Node, NodeKind},
    ids::{CheckpointId, Namespace},
    job::Failure,
    node::ToolSet,
    pregel::{self, Checkpoint, ERROR, INTERRUPT, Metadata, PendingWrite, RESUME, Source, Task, Write},
    store::{Put, Saved, TaskWrites},
    telemetry::metric,
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

/// Metadata key: the nodes of the superstep that made the checkpoint after which runs pause. The checkpoint alone
/// does not tell, and an attempt after a crash must pause there too.
const PAUSED_AFTER: &str = "interrupt_after";

/// Reads what stands under [`PAUSED_AFTER`].
pub(super) fn paused_after(metadata: &Metadata) -> Vec<Name> {
    let names = metadata.extra.get(PAUSED_AFTER).and_then(Json::as_array);
    names.into_iter().flatten().filter_map(Json::as_str).map(Name::from).collect()
}

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
    /// Whether earlier attempts or jobs may have run tasks from here.
    pub(super) is_known: bool,
    /// Nodes of the superstep before after which runs pause.
    pub(super) ran: Vec<Name>,
}

impl Position {
    /// At a stored checkpoint.
    pub(super) fn resumed(saved: Saved) -> Self {
        let Saved { checkpoint, metadata, writes, .. } = saved;
        let job_step = metadata.extra.get(JOB_STEP).and_then(Json::as_u64).unwrap_or(0);
        let (checkpoint, step, ran) = (Arc::new(checkpoint), metadata.step, paused_after(&metadata));
        Self { checkpoint, step, job_step, pending: writes, carried: Vec::new(), is_known: true, ran }
    }

    /// At a new checkpoint, `job_step` supersteps into the job.
    pub(super) fn new(checkpoint: Arc<Checkpoint>, step: i64, job_step: u64) -> Self {
        let (pending, carried, ran) = (Vec::new(), Vec::new(), Vec::new());
        Self { checkpoint, step, job_step, pending, carried, is_known: false, ran }
    }
}

/// How a graph ended.
pub(super) struct GraphEnd {
    pub(super) how: Ended,
    pub(super) steps: u64,
    pub(super) checkpoint_id: CheckpointId,
    /// Writes of the superstep that did not finish, not stored yet.
    pub(super) unfinished: Vec<TaskWrites>,
    /// The last superstep of the root graph: it is stored with the end of the job.
    pub(super) last: Option<LastStep>,
}

/// A superstep that is not stored yet.
pub(super) struct LastStep {
    pub(super) step: Step,
    /// Its number.
    pub(super) number: i64,
}

pub(super) enum Ended {
    /// No task is left; this is the state.
    Done(State),
    /// A task failed, or there were too many supersteps.
    Failed(Failure),
    /// Tasks wait for these answers; the others of their superstep have finished.
    Interrupted(Vec<Arc<Interrupt>>),
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
    tell_state(running, committer, frame, (&position, &state));
    let mut tasks = plan_next(frame, &position);
    loop {
        let end = |how, unfinished| {
            let (steps, checkpoint_id) = (position.job_step, position.checkpoint.id.clone());
            Ok(GraphEnd { how, steps, checkpoint_id, unfinished, last: None })
        };
        if tasks.is_empty() {
            return end(Ended::Done(state), Vec::new());
        }
        if position.job_step >= u64::from(frame.limit) {
            return end(Ended::Failed(too_many(frame.limit)), Vec::new());
        }
        let here = (&*frame.graph, &frame.ns);
        if let Some(pause) = pregel::pause(here, &position.checkpoint, &position.ran, &tasks) {
            return end(Ended::Interrupted(vec![Arc::new(pause)]), Vec::new());
        }
        let computed = is_computed(&frame.graph, &tasks);
        if committer.has_gathered() && (committer.is_due() || !computed) {
            committer.store_gathered().await?;
            tell_untold(running);
        }
        let span = tracing::info_span!("superstep", step = position.step + 1, ns = %frame.ns);
        let ran = run_tasks(running, committer, (frame, &position), tasks, &state).instrument(span).await?;
        let ran = match ran {
            Ran::Finished(ran) => ran,
            Ran::Failed(failed, writes) => {
                let unfinished = stored_on(frame, &position, writes);
                return end(Ended::Failed(failed), unfinished.into_iter().collect());
            }
            Ran::Interrupted(interrupts, writes) => {
                let unfinished = stored_on(frame, &position, writes);
                return end(Ended::Interrupted(interrupts), unfinished.into_iter().collect());
            }
        };
        let next = match next_position(running, frame, &position, &ran.tasks) {
            Ok(next) => next,
            Err(failed) => return end(Ended::Failed(failed), Vec::new()),
        };
        let writes = stored_on(frame, &position, ran.unsaved).into_iter().collect();
        let step = Step { puts: vec![next.put], writes };
        metrics::counter!(metric::SUPERSTEPS).increment(1);
        position = next.position;
        state = pregel::view(&frame.graph, &position.checkpoint);
        tasks = plan_next(frame, &position);
        if tasks.is_empty() && frame.ns.is_root() {
            return Ok(GraphEnd {
                how: Ended::Done(state),
                steps: position.job_step,
                checkpoint_id: position.checkpoint.id.clone(),
                unfinished: Vec::new(),
                last: Some(LastStep { step, number: position.step }),
            });
        }
        let to_store = if computed && frame.ns.is_root() { committer.gather(step) } else { Err(step) };
        if let Err(step) = to_store {
            committer.store_gathered().await?;
            committer.step(step).await?;
        }
        tell_state(running, committer, frame, (&position, &state));
        if running.attempt.stop.is_leaving() {
            return Err(Error::Stopped(Reason::Drain));
        }
    }
}

fn plan_next(frame: &Frame, position: &Position) -> Vec<Task> {
    pregel::plan(&frame.graph, &frame.ns, &position.checkpoint, position.step + 1)
}

fn too_many(limit: u32) -> Failure {
    super::failure(code::RECURSION_LIMIT, format!("the run is not over after {limit} supersteps"))
}

/// Readers follow the root graph's state, once it is stored; what a sub-agent did shows when its task has finished.
fn tell_state(
    running: &Running,
    committer: &Committer,
    frame: &Frame,
    (position, state): (&Position, &State),
) {
    if !frame.ns.is_root() {
        return;
    }
    running.reach(position.job_step, &position.checkpoint.id);
    if committer.has_gathered() {
        running.add_untold(Untold::new(state.clone(), position.step, &position.checkpoint.id));
    } else {
        tell_untold(running);
        let id = position.checkpoint.id.as_str();
        running.scope.emitter.state_update(&frame.ns, state, position.step, id);
    }
}

/// Tells the states that have been stored in the meantime.
fn tell_untold(running: &Running) {
    running.take_untold().iter().for_each(|untold| untold.tell(&running.scope.emitter));
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
    /// None failed, and some wait: for what, and the marks and writes that are not stored yet.
    Interrupted(Vec<Arc<Interrupt>>, Vec<PendingWrite>),
}

struct Finished {
    tasks: Vec<pregel::TaskWrites>,
    unsaved: Vec<PendingWrite>,
}

/// Runs the tasks that no earlier attempt has finished. A task that finishes while others still run has
/// its writes stored at once, so that a crash of its siblings does not repeat it. Once one has failed no other one
/// begins, and those that have begun come to their end: what they do outside is not cut off halfway.
async fn run_tasks(
    running: &Running,
    committer: &Committer,
    (frame, position): (&Frame, &Position),
    tasks: Vec<Task>,
    state: &State,
) -> Result<Ran, Error> {
    let (finished, open) = restored(position, tasks);
    if let Err(failed) = allowed(running, frame, open.iter().chain(finished.iter().map(|done| &done.task))) {
        return Ok(Ran::Failed(failed, Vec::new()));
    }
    let left = AtomicUsize::new(open.len());
    let has_failed = AtomicBool::new(false);
    let is_kept = committer.holds_back() || is_computed(&frame.graph, &open);
    let lanes = lanes(&frame.graph, &open);
    let run_one = |task: Task| {
        let (left, has_failed, lanes) = (&left, &has_failed, &lanes);
        async move {
            let _place = match lanes.get(&task.name) {
                Some(lane) => lane.acquire().await.ok(),
                None => None,
            };
            if has_failed.load(Ordering::Acquire) {
                return Ok(None);
            }
            if !is_kept && running.attempt.stop.is_leaving() {
                return Err(Error::Stopped(Reason::Drain));
            }
            let Worked { end, answers } =
                task::run(running, committer, frame, (&task, position, state)).await?;
            if let TaskEnd::Failed(_) = &end {
                has_failed.store(true, Ordering::Release);
            }
            let is_last = left.fetch_sub(1, Ordering::AcqRel) == 1;
            let mut stored = marks(&task, &end, answers);
            if let TaskEnd::Finished(writes) = &end {
                stored.extend(pending(&task, writes));
                // Those that wait or fail end the superstep, which stores their marks. What is held back is
                // needed if it ends that way.
                if !is_last
                    && !is_kept
                    && let Some(writes) = stored_on(frame, position, std::mem::take(&mut stored))
                {
                    committer.writes(writes).await?;
                }
            }
            Ok::<_, Error>(Some((task, end, stored)))
        }
    };
    let mut running_tasks = stream::iter(open).map(run_one).buffer_unordered(PARALLEL_TASKS);
    let mut so_far = SoFar { finished, ..SoFar::default() };
    while let Some(ended) = running_tasks.next().await {
        match ended {
            Ok(Some(ended)) => so_far.add(ended),
            Ok(None) => {}
            // It would have waited; the others go on to the end of the superstep.
            Err(Error::Stopped(Reason::Drain)) => so_far.is_leaving = true,
            Err(error) => return Err(error),
        }
    }
    if so_far.is_leaving && so_far.failed.is_none() {
        if let Some(writes) = stored_on(frame, position, so_far.unsaved) {
            committer.writes(writes).await?;
        }
        return Err(Error::Stopped(Reason::Drain));
    }
    Ok(so_far.into_ran())
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
    fn add(&mut self, (task, end, stored): (Task, TaskEnd, Vec<PendingWrite>)) {
        self.unsaved.extend(stored);
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
fn allowed<'a>(
    running: &Running,
    frame: &Frame,
    tasks: impl Iterator<Item = &'a Task>,
) -> Result<(), Failure> {
    let calls = tasks.filter(|task| frame.graph.node(&task.name).is_some_and(makes_call)).count();
    let counted = running.scope.spending.tool_calls(u64::try_from(calls).unwrap_or(u64::MAX));
    counted.map_err(|error| Failure { node: None, ..error.failure("") })
}

/// Whether a task of the node is one call of a tool.
fn makes_call(node: &Node) -> bool {
    match &node.kind {
        NodeKind::Tools(_) | NodeKind::Tool(_) => true,
        NodeKind::Model(_)
        | NodeKind::Transform(_)
        | NodeKind::Router(_)
        | NodeKind::Approval(_)
        | NodeKind::Fail(_)
        | NodeKind::Map(_)
        | NodeKind::Gather
        | NodeKind::Subgraph(_)
        | NodeKind::Summary(_) => false,
    }
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
    let mut metadata = stamps.metadata(Source::Loop, (step, job_step), &frame.parents);
    let ran = pregel::pausing_after(&frame.graph, tasks);
    if !ran.is_empty() {
        let names = ran.iter().map(|name| Json::from(&**name));
        metadata.extra.insert(PAUSED_AFTER.into(), names.collect());
    }
    let put = Put {
        ns: frame.ns.clone(),
        checkpoint: checkpoint.clone(),
        metadata,
        parent: Some(position.checkpoint.id.clone()),
        changed,
    };
    Ok(Next { position: Position { ran, ..Position::new(checkpoint, step, job_step) }, put })
}

/// The marker write of a task that wrote nothing.
pub(super) fn or_no_writes(writes: Vec<Write>) -> Vec<Write> {
    if writes.is_empty() { vec![Write::new(pregel::NO_WRITES, Value::Null)] } else { writes }
}

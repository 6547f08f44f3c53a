//! The superstep loop: plan, run the tasks side by side, apply, commit, tell.

use std::sync::Arc;

use futures::future::BoxFuture;
use serde_json::Value as Json;
use tracing::Instrument;

use super::{
    Error, Reason, Running, Untold, code,
    committer::Step,
    failure,
    gathered::is_computed,
    metadata::PAUSED_AFTER,
    position::{Frame, Here, Position},
    stamps::Stamps,
    tasks::{Finished, Ran, run_tasks, stored_on},
};
use crate::{
    ids::CheckpointId,
    job::Failure,
    pregel::{self, Source, Task},
    store::{Put, TaskWrites},
    telemetry::metric,
    value::{Interrupt, State},
};

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

impl GraphEnd {
    /// At `position`, with everything stored.
    fn at(position: &Position, how: Ended) -> Self {
        let (steps, checkpoint_id) = (position.job_step, position.checkpoint.id.clone());
        Self { how, steps, checkpoint_id, unfinished: Vec::new(), last: None }
    }
}

pub(super) enum Ended {
    /// No task is left; this is the state.
    Done(State),
    /// A task failed, or there were too many supersteps.
    Failed(Failure),
    /// Tasks wait for these answers; the others of their superstep have finished.
    Interrupted(Vec<Arc<Interrupt>>),
}

/// Runs the graph from `position` until no task is left. Boxed because graphs nest.
pub(super) fn run_graph(here: Here<'_>, position: Position) -> BoxFuture<'_, Result<GraphEnd, Error>> {
    Box::pin(supersteps(here, position))
}

async fn supersteps(here: Here<'_>, mut position: Position) -> Result<GraphEnd, Error> {
    let Here { running, committer, frame } = here;
    let mut state = pregel::view(&frame.graph, &position.checkpoint);
    tell_state(here, &position, &state);
    let mut tasks = plan_next(frame, &position);
    loop {
        if tasks.is_empty() {
            return Ok(GraphEnd::at(&position, Ended::Done(state)));
        }
        if position.job_step >= u64::from(frame.limit) {
            return Ok(GraphEnd::at(&position, Ended::Failed(too_many(frame.limit))));
        }
        let at = (&*frame.graph, &frame.ns);
        if let Some(pause) = pregel::pause(at, &position.checkpoint, &position.ran, &tasks) {
            return Ok(GraphEnd::at(&position, Ended::Interrupted(vec![Arc::new(pause)])));
        }
        let computed = is_computed(&frame.graph, &tasks);
        if committer.has_gathered() && (committer.is_due() || !computed) {
            committer.store_gathered().await?;
            tell_untold(running);
        }
        let span = tracing::info_span!("superstep", step = position.step + 1, ns = %frame.ns);
        let ran = run_tasks(here, &position, tasks, &state).instrument(span).await?;
        let finished = match ran {
            Ran::Finished(finished) => finished,
            Ran::Failed(failed, writes) => {
                let unfinished = stored_on(frame, &position, writes).into_iter().collect();
                return Ok(GraphEnd { unfinished, ..GraphEnd::at(&position, Ended::Failed(failed)) });
            }
            Ran::Interrupted(interrupts, writes) => {
                let unfinished = stored_on(frame, &position, writes).into_iter().collect();
                return Ok(GraphEnd {
                    unfinished,
                    ..GraphEnd::at(&position, Ended::Interrupted(interrupts))
                });
            }
        };
        let Next { position: reached, step } = match next(here, &position, finished) {
            Ok(next) => next,
            Err(failed) => return Ok(GraphEnd::at(&position, Ended::Failed(failed))),
        };
        metrics::counter!(metric::SUPERSTEPS).increment(1);
        position = reached;
        state = pregel::view(&frame.graph, &position.checkpoint);
        tasks = plan_next(frame, &position);
        if tasks.is_empty() && frame.ns.is_root() {
            let last = Some(LastStep { step, number: position.step });
            return Ok(GraphEnd { last, ..GraphEnd::at(&position, Ended::Done(state)) });
        }
        let may_wait = computed && frame.ns.is_root();
        let to_store = if may_wait { committer.gather(step).err() } else { Some(step) };
        if let Some(step) = to_store {
            committer.store_gathered().await?;
            committer.step(step).await?;
        }
        tell_state(here, &position, &state);
        if running.attempt.stop.is_leaving() {
            return Err(Error::Stopped(Reason::Drain));
        }
    }
}

fn plan_next(frame: &Frame, position: &Position) -> Vec<Task> {
    pregel::plan(&frame.graph, &frame.ns, &position.checkpoint, position.step + 1)
}

fn too_many(limit: u32) -> Failure {
    failure(code::RECURSION_LIMIT, format!("the run is not over after {limit} supersteps"))
}

/// Readers follow the root graph's state, once it is stored; what a sub-agent did shows when its task has finished.
fn tell_state(here: Here<'_>, position: &Position, state: &State) {
    let Here { running, committer, frame } = here;
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

/// What a superstep leads to, and what is to be stored of it.
struct Next {
    position: Position,
    step: Step,
}

fn next(here: Here<'_>, position: &Position, finished: Finished) -> Result<Next, Failure> {
    let Here { running, frame, .. } = here;
    let Finished { tasks, unsaved } = finished;
    let (step, job_step) = (position.step + 1, position.job_step + 1);
    let mut stamps = Stamps { running, floor: Some(position.checkpoint.id.clone()) };
    let applied = pregel::apply(&frame.graph, &position.checkpoint, &tasks, stamps.next(step))?;
    let mut changed = applied.changed;
    let carried = position.carried.iter().filter(|name| applied.checkpoint.values.contains_key(*name));
    changed.extend(carried.cloned());
    changed.sort();
    changed.dedup();
    let checkpoint = Arc::new(applied.checkpoint);
    let mut metadata = stamps.metadata(Source::Loop, (step, job_step), &frame.parents);
    let ran = pregel::pausing_after(&frame.graph, &tasks);
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
    let writes = stored_on(frame, position, unsaved).into_iter().collect();
    let position = Position { ran, ..Position::new(checkpoint, step, job_step) };
    Ok(Next { position, step: Step { puts: vec![put], writes } })
}

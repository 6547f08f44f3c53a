//! The superstep loop: plan, run the tasks side by side, apply, commit, tell.

use std::sync::Arc;

use futures::future::BoxFuture;
use serde_json::Value as Json;
use tracing::Instrument;

use super::{
    Error, Reason, Running, Untold, code,
    committer::{Committer, Step},
    failure,
    gathered::is_computed,
    metadata::PAUSED_AFTER,
    position::{Frame, Position},
    stamps::Stamps,
    tasks::{Ran, run_tasks, stored_on},
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
    failure(code::RECURSION_LIMIT, format!("the run is not over after {limit} supersteps"))
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

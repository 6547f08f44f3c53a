//! Graphs inside graphs: where they start, what is stored of them when they end, and the `subgraph` node.

use std::sync::Arc;

use serde_json::Value as Json;

use super::{
    Error,
    arrival::arrive,
    metadata::{EPOCH, is_own},
    position::{Here, Position},
    spent,
    stamps::Stamps,
    superstep::{Ended, run_graph},
    task::{TaskEnd, TaskRun},
};
use crate::{
    graph::{Expression, SubgraphNode},
    job::Failure,
    node::{self, TaskView},
    pregel::{self, Write},
    value::{Map, Name, State, Value},
};

/// Runs the graph of a `subgraph` node under the task's own namespace, from where an earlier attempt left it.
pub(super) async fn run(run: &TaskRun<'_>, subgraph: &SubgraphNode) -> Result<TaskEnd, Error> {
    let (tools, view) = (&run.here.frame.tools, run.view);
    // A graph has the tools of its own definition and no others.
    let child = run.inside(&subgraph.graph, tools.nested(&view.node.name).unwrap_or(tools));
    let input = || input(view, &subgraph.input);
    Ok(match nested(Here { frame: &child, ..run.here }, input).await? {
        Ended::Done(state) => output(view, &subgraph.output, &state).into(),
        Ended::Failed(failed) => TaskEnd::Failed(from_inside(view, failed)),
        Ended::Interrupted(interrupts) => TaskEnd::Waits(interrupts),
    })
}

/// Runs the nested graph with `input`, or from where an earlier attempt left it, and stores what it leaves.
pub(super) async fn nested(
    here: Here<'_>,
    input: impl FnOnce() -> Result<Map, Failure>,
) -> Result<Ended, Error> {
    let position = match enter(here, input).await? {
        Ok(position) => position,
        Err(failed) => return Ok(Ended::Failed(failed)),
    };
    let ended = run_graph(here, position).await?;
    let waiting = match &ended.how {
        Ended::Interrupted(_) => Some(ended.unfinished),
        Ended::Done(_) | Ended::Failed(_) => {
            for writes in ended.unfinished {
                here.committer.writes(writes).await?;
            }
            None
        }
    };
    here.committer.leave(&here.frame.ns, waiting).await?;
    Ok(ended.how)
}

async fn enter(
    here: Here<'_>,
    input: impl FnOnce() -> Result<Map, Failure>,
) -> Result<Result<Position, Failure>, Error> {
    let Here { running, committer, frame } = here;
    let attempt = &running.attempt;
    if let Some(saved) = attempt.ports.store.load(&attempt.claim.thread_id, &frame.ns, None).await? {
        let is_own = is_own(running, &saved);
        let epoch = saved.metadata.extra.get(EPOCH).and_then(Json::as_i64);
        // What this attempt has spent is counted already; it comes here again when it runs a node again.
        if is_own && epoch != Some(attempt.claim.epoch.0) {
            spent::restore_from_metadata(running, &saved.metadata);
        }
        // Also on a checkpoint of an earlier job: tasks that finish before their superstep leave it there.
        spent::restore_from_writes(running, &saved.writes);
        let mut position = Position::resumed(saved);
        if !is_own && !pauses_on(here, &position) {
            // Only a command leads back into a graph that an earlier job has left.
            pregel::mark_resumed(Arc::make_mut(&mut position.checkpoint));
        }
        // The limit of supersteps is each job's own.
        let job_step = if is_own { position.job_step } else { 0 };
        return Ok(Ok(Position { job_step, ..position }));
    }
    let stamps = Stamps { running, floor: None };
    match input().and_then(|input| arrive(frame, None, input, stamps)) {
        Ok(arrival) => {
            committer.step(arrival.step).await?;
            Ok(Ok(arrival.position))
        }
        Err(failed) => Ok(Err(failed)),
    }
}

/// Whether the graph has paused at `position` and the job answers something else.
fn pauses_on(here: Here<'_>, position: &Position) -> bool {
    let Here { running, frame, .. } = here;
    let Some(unanswered) = running.unanswered.get().filter(|unanswered| !unanswered.is_empty()) else {
        return false;
    };
    let tasks = pregel::plan(&frame.graph, &frame.ns, &position.checkpoint, position.step + 1);
    let paused = pregel::pause((&frame.graph, &frame.ns), &position.checkpoint, &position.ran, &tasks);
    paused.is_some_and(|pause| unanswered.contains(&pause.id))
}

/// What the graph starts with. A channel that has no value yet gives none.
fn input(view: TaskView<'_>, mapping: &[(Name, Expression)]) -> Result<Map, Failure> {
    let is_empty =
        |source: &str| view.graph.channels.contains_key(source) && !view.state.contains_key(source);
    let given = mapping.iter().filter(|(_, expression)| !is_empty(expression.source()));
    given
        .map(|(channel, expression)| Ok((channel.clone(), value(view, expression, view.state, channel)?)))
        .collect()
}

fn output(view: TaskView<'_>, mapping: &[(Name, Expression)], state: &State) -> Result<Vec<Write>, Failure> {
    let write = |(channel, expression): &(Name, Expression)| {
        Ok(Write::new(channel.clone(), value(view, expression, state, channel)?))
    };
    mapping.iter().map(write).collect()
}

fn value(
    view: TaskView<'_>,
    expression: &Expression,
    state: &State,
    channel: &str,
) -> Result<Value, Failure> {
    expression.eval(state).map_err(|error| {
        let what = format!("the expression for {channel}");
        node::Error::Expression { what, reason: error.to_string() }.failure(&view.node.name)
    })
}

/// The failure says which node inside it was.
fn from_inside(view: TaskView<'_>, failed: Failure) -> Failure {
    let node = match failed.node {
        // A graph of one node may be called like the node it stands for.
        Some(inner) if *inner != *view.node.name => format!("{}/{inner}", view.node.name),
        Some(_) | None => view.node.name.to_string(),
    };
    Failure { node: Some(node), ..failed }
}

//! One task: its node's work, or a nested graph, then where it leads.

use std::sync::Arc;

use tracing::Instrument;

use super::{
    Error, Running, code,
    committer::Committer,
    failure,
    start::{Stamps, arrive, is_own, restore_spending},
    superstep::{Ended, Frame, Position, or_no_writes, run_graph},
};
use crate::{
    graph::{CompiledGraph, ExpressionError, Routes},
    ids::CheckpointId,
    job::Failure,
    node::{self, Asked, TaskView},
    pregel::{self, SENDS, Task, TaskInput, Write},
    tool::Answer,
    value::{State, Value},
};

/// Runs `task`, which starts from checkpoint `from` with `state`. The inner error is the task's failure.
pub(super) async fn run(
    running: &Running,
    committer: &Committer,
    frame: &Frame,
    start: (&Task, &CheckpointId, &State),
) -> Result<Result<Vec<Write>, Failure>, Error> {
    let span = tracing::info_span!("node", node = %start.0.name, task_id = %start.0.id);
    work(running, committer, frame, start).instrument(span).await
}

async fn work(
    running: &Running,
    committer: &Committer,
    frame: &Frame,
    (task, from, state): (&Task, &CheckpointId, &State),
) -> Result<Result<Vec<Write>, Failure>, Error> {
    let Some(node) = frame.graph.node(&task.name) else {
        return Ok(Err(failure(code::INTERNAL, format!("no node {:?} in the graph", task.name))));
    };
    let view =
        TaskView { graph: &frame.graph, tools: &frame.tools, ns: &frame.ns, node, id: &task.id, state };
    let scope = &running.scope;
    let worked = match &task.input {
        TaskInput::Send(argument) => match node::asked(view, argument) {
            Ok(asked) => return answer(running, committer, frame, (view, from), asked).await,
            Err(error) => Err(error),
        },
        TaskInput::State | TaskInput::Start(_) => node::run(scope, view).await,
    };
    match worked {
        Ok(writes) => Ok(lead_on(&frame.graph, &node.routes, view, writes)),
        Err(error) => Ok(Err(error.failure(&node.name))),
    }
}

/// Answers a tool call: by the tool, by a sub-agent, or with what is wrong with the call.
async fn answer(
    running: &Running,
    committer: &Committer,
    frame: &Frame,
    (view, from): (TaskView<'_>, &CheckpointId),
    asked: Asked,
) -> Result<Result<Vec<Write>, Failure>, Error> {
    let scope = &running.scope;
    let call = asked.call().clone();
    let started = node::start_tool(scope, view, &call);
    let span = tracing::info_span!(
        "tool_call",
        otel.name = format!("execute_tool {}", call.name),
        gen_ai.operation.name = "execute_tool",
        gen_ai.tool.name = %call.name,
        gen_ai.tool.call.id = %call.id,
    );
    let answer = match asked {
        Asked::Refused(_, answer) => answer,
        Asked::Call(call) => node::run_tool(scope, view, &call).instrument(span).await,
        Asked::Task { subagent_type, description, .. } => {
            let delegated = delegate(running, committer, frame, (view, from), (&subagent_type, &description));
            delegated.instrument(span).await?
        }
    };
    let writes = node::finish_tool(scope, view, &call, started, answer);
    Ok(lead_on(&frame.graph, &view.node.routes, view, writes))
}

/// Runs a sub-agent's graph under the task's own namespace, from where an earlier attempt left it.
async fn delegate(
    running: &Running,
    committer: &Committer,
    frame: &Frame,
    (view, from): (TaskView<'_>, &CheckpointId),
    (subagent_type, description): (&str, &str),
) -> Result<Answer, Error> {
    let subagent = &frame.graph.subagents[subagent_type];
    let ns = frame.ns.child(&view.node.name, view.id);
    let mut parents = frame.parents.clone();
    parents.insert(frame.ns.to_string(), from.clone());
    let limit = subagent.graph.recursion_limit;
    let child = Frame { graph: subagent.graph.clone(), tools: frame.tools.clone(), ns, parents, limit };

    let position = enter(running, committer, &child, (view, description)).await?;
    let position = match position {
        Ok(position) => position,
        Err(failed) => return Ok(refused(subagent_type, &failed)),
    };
    let ended = run_graph(running, committer, &child, position).await?;
    for writes in ended.unfinished {
        committer.writes(writes).await?;
    }
    match ended.how {
        Ended::Done(state) => {
            let (text, writes) = node::merge_back(view.state, &state);
            Ok(Answer { writes, ..Answer::success(&*text) })
        }
        Ended::Failed(failed) => Ok(refused(subagent_type, &failed)),
    }
}

fn refused(subagent_type: &str, failed: &Failure) -> Answer {
    Answer::error(format!("{subagent_type} failed: {}: {}", failed.code, failed.message))
}

async fn enter(
    running: &Running,
    committer: &Committer,
    child: &Frame,
    (view, description): (TaskView<'_>, &str),
) -> Result<Result<Position, Failure>, Error> {
    let attempt = &running.attempt;
    if let Some(saved) = attempt.ports.store.load(&attempt.claim.thread_id, &child.ns, None).await? {
        if is_own(running, &saved) {
            restore_spending(running, &saved);
        }
        return Ok(Ok(Position::resumed(saved)));
    }
    let input = node::child_input(view.state, description, &format!("{}-task", view.id));
    let stamps = Stamps { running, floor: None };
    match arrive(child, None, input, stamps) {
        Ok(arrival) => {
            committer.step(arrival.step).await?;
            Ok(Ok(arrival.position))
        }
        Err(failed) => Ok(Err(failed)),
    }
}

/// Adds where the task leads to what it wrote. A task that sends leads nowhere else.
fn lead_on(
    graph: &CompiledGraph,
    routes: &Routes,
    view: TaskView<'_>,
    mut writes: Vec<Write>,
) -> Result<Vec<Write>, Failure> {
    if !writes.iter().any(|write| &*write.channel == SENDS) {
        let leads = if routes.branch.is_some() {
            let state = pregel::fold(graph, view.state, &writes)?;
            route(routes, &view.node.name, &state)
        } else {
            route(routes, &view.node.name, view.state)
        };
        writes.extend(leads.map_err(|failed| Failure { node: Some(view.node.name.to_string()), ..failed })?);
    }
    Ok(or_no_writes(writes))
}

/// The trigger channels that `routes` write on `state`.
pub(super) fn route(routes: &Routes, node: &str, state: &State) -> Result<Vec<Write>, Failure> {
    let always = routes.always.iter().map(|channel| {
        // A join collects the names of those who arrived; other triggers only have to be news.
        let value = if channel.starts_with("join:") { node.into() } else { Value::Null };
        Write::new(Arc::clone(channel), value)
    });
    let mut writes: Vec<_> = always.collect();
    let Some(branch) = &routes.branch else { return Ok(writes) };
    let target = 'decided: {
        for case in &branch.cases {
            if case.when.eval(state).map_err(condition_failed)? {
                break 'decided case.target.clone();
            }
        }
        branch.otherwise.clone()
    };
    writes.extend(target.map(|channel| Write::new(channel, Value::Null)));
    Ok(writes)
}

fn condition_failed(error: ExpressionError) -> Failure {
    failure(code::CONDITION_FAILED, format!("a condition failed: {error}"))
}

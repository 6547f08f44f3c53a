//! One task: its node's work, or a nested graph, then where it leads.

use std::sync::Arc;

use tracing::Instrument;

use super::{
    Error, Running, code,
    committer::Committer,
    effect, failure,
    start::{Stamps, arrive, is_own, restore_spending},
    superstep::{Ended, Frame, Position, or_no_writes, run_graph},
};
use crate::{
    graph::{CompiledGraph, Effect, ExpressionError, Routes},
    ids::CheckpointId,
    job::Failure,
    node::{self, Asked, TaskView, Told},
    pregel::{self, Answers, Dialogue, SENDS, Task, TaskInput, Write},
    tool::Answer,
    value::{Interrupt, State, Value},
};

/// What became of a task.
pub(super) struct Worked {
    pub(super) end: TaskEnd,
    /// The answers it has used, earlier runs included.
    pub(super) answers: Vec<Value>,
}

/// How a task ended.
pub(super) enum TaskEnd {
    Finished(Vec<Write>),
    Failed(Failure),
    /// It asks, and is run again with the answers.
    Waits(Vec<Arc<Interrupt>>),
}

impl From<Result<Vec<Write>, Failure>> for TaskEnd {
    fn from(result: Result<Vec<Write>, Failure>) -> Self {
        result.map_or_else(Self::Failed, Self::Finished)
    }
}

/// What answers a tool call, if anything does yet.
pub(super) enum Replied {
    Answer {
        answer: Answer,
        /// Whether an earlier attempt made the call.
        is_replayed: bool,
    },
    Waits(Vec<Arc<Interrupt>>),
}

impl From<Answer> for Replied {
    fn from(answer: Answer) -> Self {
        Self::Answer { answer, is_replayed: false }
    }
}

/// Runs `task`, which starts from `position` with `state`.
pub(super) async fn run(
    running: &Running,
    committer: &Committer,
    frame: &Frame,
    start: (&Task, &Position, &State),
) -> Result<Worked, Error> {
    let span = tracing::info_span!("node", node = %start.0.name, task_id = %start.0.id);
    work(running, committer, frame, start).instrument(span).await
}

async fn work(
    running: &Running,
    committer: &Committer,
    frame: &Frame,
    (task, position, state): (&Task, &Position, &State),
) -> Result<Worked, Error> {
    let given = running.answers.get_or_init(Answers::new);
    let mut dialogue = Dialogue::new(&frame.ns, task, &position.pending, given);
    let over = |end, answers| Ok(Worked { end, answers });
    let Some(node) = frame.graph.node(&task.name) else {
        let failed = failure(code::INTERNAL, format!("no node {:?} in the graph", task.name));
        return over(TaskEnd::Failed(failed), Vec::new());
    };
    let view =
        TaskView { graph: &frame.graph, tools: &frame.tools, ns: &frame.ns, node, id: &task.id, state };
    let scope = &running.scope;
    let worked = match &task.input {
        TaskInput::Send(argument) => match node::asked(view, argument) {
            Ok(asked) => {
                let end = answer(running, committer, frame, (view, position, &mut dialogue), asked).await?;
                return over(end, dialogue.into_used());
            }
            Err(error) => Err(error),
        },
        TaskInput::State | TaskInput::Start(_) => node::run(scope, view).await,
    };
    let end = match worked {
        Ok(writes) => lead_on(&frame.graph, &node.routes, view, writes).into(),
        Err(error) => TaskEnd::Failed(error.failure(&node.name)),
    };
    over(end, dialogue.into_used())
}

/// Answers a tool call: by the tool, by a sub-agent, or with what is wrong with the call.
async fn answer(
    running: &Running,
    committer: &Committer,
    frame: &Frame,
    (view, position, dialogue): (TaskView<'_>, &Position, &mut Dialogue<'_>),
    asked: Asked,
) -> Result<TaskEnd, Error> {
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
    let replied = match asked {
        Asked::Refused(_, answer) => answer.into(),
        Asked::Call(call) => match view.tools.get(&call.name) {
            Some(tool) if tool.effect() != Effect::Pure => {
                let asked = (view, &call, tool);
                effect::call(running, committer, position, asked, dialogue).instrument(span).await?
            }
            tool => {
                let pure = async {
                    let _turn = futures::future::OptionFuture::from(tool.map(|tool| tool.turn())).await;
                    node::run_tool(scope, view, &call).await
                };
                pure.instrument(span).await.into()
            }
        },
        Asked::Task { subagent_type, description, .. } => {
            let from = &position.checkpoint.id;
            let delegated = delegate(running, committer, frame, (view, from), (&subagent_type, &description));
            delegated.instrument(span).await?
        }
    };
    match replied {
        Replied::Waits(interrupts) => Ok(TaskEnd::Waits(interrupts)),
        Replied::Answer { answer, is_replayed } => {
            let writes = node::finish_tool(scope, view, &call, Told { started, answer, is_replayed });
            Ok(lead_on(&frame.graph, &view.node.routes, view, writes).into())
        }
    }
}

/// Runs a sub-agent's graph under the task's own namespace, from where an earlier attempt left it.
async fn delegate(
    running: &Running,
    committer: &Committer,
    frame: &Frame,
    (view, from): (TaskView<'_>, &CheckpointId),
    (subagent_type, description): (&str, &str),
) -> Result<Replied, Error> {
    let subagent = &frame.graph.subagents[subagent_type];
    let ns = frame.ns.child(&view.node.name, view.id);
    let mut parents = frame.parents.clone();
    parents.insert(frame.ns.to_string(), from.clone());
    let limit = subagent.graph.recursion_limit;
    let child = Frame { graph: subagent.graph.clone(), tools: frame.tools.clone(), ns, parents, limit };

    let position = enter(running, committer, &child, (view, description)).await?;
    let position = match position {
        Ok(position) => position,
        Err(failed) => return Ok(refused(subagent_type, &failed).into()),
    };
    let ended = run_graph(running, committer, &child, position).await?;
    let waiting = match &ended.how {
        Ended::Interrupted(_) => Some(ended.unfinished),
        Ended::Done(_) | Ended::Failed(_) => {
            for writes in ended.unfinished {
                committer.writes(writes).await?;
            }
            None
        }
    };
    committer.leave(&child.ns, waiting).await?;
    Ok(match ended.how {
        Ended::Done(state) => {
            let (text, writes) = node::merge_back(view.state, &state);
            Answer { writes, ..Answer::success(&*text) }.into()
        }
        Ended::Failed(failed) => refused(subagent_type, &failed).into(),
        Ended::Interrupted(interrupts) => Replied::Waits(interrupts),
    })
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

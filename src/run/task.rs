//! One task: its node's work, or a nested graph, then where it leads.

use std::sync::Arc;

use tracing::Instrument;

use super::{
    Error, approval, code, effect, failure, policy,
    position::{Frame, Here, Position},
    subgraph,
    superstep::Ended,
};
use crate::{
    graph::{CompiledGraph, ExpressionError, FailureClass, Node, NodeKind, Routes, Trigger},
    job::Failure,
    node::{self, Asked, Consent, TaskView, Told, ToolSet},
    pregel::{self, Answers, Dialogue, SENDS, Task, TaskInput, Write},
    tool::{Answer, SharedTool},
    value::{Interrupt, Map, State, ToolCall, Value},
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
    here: Here<'_>,
    task: &Task,
    position: &Position,
    state: &State,
) -> Result<Worked, Error> {
    let span = tracing::info_span!("node", node = %task.name, task_id = %task.id);
    policy::run(here, task, position, state).instrument(span).await
}

/// Runs a task once, as `view` sees it.
pub(super) async fn work(
    here: Here<'_>,
    task: &Task,
    position: &Position,
    view: TaskView<'_>,
) -> Result<Worked, Error> {
    let given = here.running.answers.get_or_init(Answers::new);
    let dialogue = Dialogue::new(&here.frame.ns, task, &position.pending, given);
    let mut run = TaskRun { here, position, view, dialogue };
    let end = match node::find_tools(view).await {
        Ok(()) => run.end(task).await?,
        Err(error) => TaskEnd::Failed(error.failure(&view.node.name)),
    };
    Ok(Worked { end, answers: run.dialogue.into_used() })
}

/// One run of a task.
pub(super) struct TaskRun<'a> {
    /// The graph it belongs to.
    pub(super) here: Here<'a>,
    /// Where it starts from.
    pub(super) position: &'a Position,
    /// What its node sees.
    pub(super) view: TaskView<'a>,
    /// What it asks people.
    pub(super) dialogue: Dialogue<'a>,
}

impl TaskRun<'_> {
    /// Does the node's work, and adds where it leads.
    async fn end(&mut self, task: &Task) -> Result<TaskEnd, Error> {
        let view = self.view;
        let end = match &view.node.kind {
            NodeKind::Tools(_) => {
                let asked = argument(task).ok_or(node::Error::Call).and_then(|sent| node::asked(view, sent));
                self.answer(asked).await?
            }
            NodeKind::Tool(tool) => self.answer(node::call_of(view, tool)).await?,
            NodeKind::Subgraph(inner) => subgraph::run(self, inner).await?,
            NodeKind::Approval(approval) => approval::ask(self, approval).await?,
            NodeKind::Fail(fail) => TaskEnd::Failed(node::failed(view, fail)),
            NodeKind::Model(_)
            | NodeKind::Transform(_)
            | NodeKind::Map(_)
            | NodeKind::Gather
            | NodeKind::Router(_)
            | NodeKind::Summary(_) => match node::run(&self.here.running.scope, view).await {
                Ok(writes) => TaskEnd::Finished(writes),
                Err(error) => TaskEnd::Failed(error.failure(&view.node.name)),
            },
        };
        Ok(match end {
            TaskEnd::Finished(writes) => lead_on(view, writes).into(),
            TaskEnd::Failed(_) | TaskEnd::Waits(_) => end,
        })
    }

    /// The frame of `graph`, which the task runs under a namespace of its own.
    pub(super) fn inside(&self, graph: &Arc<CompiledGraph>, tools: &Arc<ToolSet>) -> Frame {
        let around = self.here.frame;
        let mut parents = around.parents.clone();
        parents.insert(around.ns.to_string(), self.position.checkpoint.id.clone());
        let ns = around.ns.child(&self.view.node.name, self.view.id);
        Frame { graph: graph.clone(), tools: tools.clone(), ns, parents, limit: graph.recursion_limit }
    }

    /// Answers a tool call, if one could be read: by the tool, by a sub-agent, or with what is wrong with the call.
    async fn answer(&mut self, asked: Result<Asked, node::Error>) -> Result<TaskEnd, Error> {
        let (scope, view) = (&self.here.running.scope, self.view);
        let asked = match asked {
            Ok(asked) => asked,
            Err(error) => return Ok(TaskEnd::Failed(error.failure(&view.node.name))),
        };
        let (asked, note) = match node::consent(view, asked, &mut self.dialogue) {
            Consent::Given { asked, note } => (asked, note),
            Consent::Waits(interrupt) => return Ok(TaskEnd::Waits(vec![interrupt])),
        };
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
            Asked::Call(call) => {
                let tool = view.tools.get(&call.name);
                let changes = tool.as_ref().is_some_and(|tool| tool.effect().changes_something())
                    || effect::is_kept(self, &call).await?;
                match tool.as_ref().filter(|_| changes) {
                    Some(tool) => effect::call(self, &call, tool).instrument(span).await?,
                    None => self.pure(&call, tool.as_ref()).instrument(span).await?.into(),
                }
            }
            Asked::Task { subagent_type, description, .. } => {
                self.delegate(&subagent_type, &description).instrument(span).await?
            }
        };
        match replied {
            Replied::Waits(interrupts) => Ok(TaskEnd::Waits(interrupts)),
            Replied::Answer { mut answer, is_replayed } => {
                if let Some(note) = note {
                    answer.content = format!("{note}\n{}", answer.content);
                }
                let told = Told { started, answer, is_replayed };
                let NodeKind::Tool(node) = &view.node.kind else {
                    return Ok(TaskEnd::Finished(node::finish_tool(scope, view, &call, told)));
                };
                let writes = node::finish_call(scope, view, (node, &call), told);
                Ok(writes.map_err(|error| error.failure(&view.node.name)).into())
            }
        }
    }

    /// Makes a call that changes nothing outside, as often as its policy or its node's says.
    async fn pure(&self, call: &ToolCall, tool: Option<&SharedTool>) -> Result<Answer, Error> {
        let mut made = 1;
        loop {
            let answer = {
                let _turn = futures::future::OptionFuture::from(tool.map(|tool| tool.turn())).await;
                node::run_tool(&self.here.running.scope, self.view, call).await
            };
            let own = tool.and_then(|tool| tool.policy().retry.as_ref());
            if !policy::call_again(self, own, &answer, made).await? {
                return Ok(answer);
            }
            made += 1;
        }
    }

    /// Runs a sub-agent's graph under the task's own namespace, from where an earlier attempt left it.
    async fn delegate(&self, subagent_type: &str, description: &str) -> Result<Replied, Error> {
        let (here, view) = (self.here, self.view);
        let subagent = &here.frame.graph.subagents[subagent_type];
        let child = self.inside(&subagent.graph, &here.frame.tools);
        let input = || Ok(node::child_input(view.state, description, &format!("{}-task", view.id)));
        Ok(match subgraph::nested(Here { frame: &child, ..here }, input).await? {
            Ended::Done(state) => {
                let (text, writes) = node::merge_back(view.state, &state);
                Answer { writes, ..Answer::success(&*text) }.into()
            }
            Ended::Failed(failed) => refused(subagent_type, &failed).into(),
            Ended::Interrupted(interrupts) => Replied::Waits(interrupts),
        })
    }
}

/// What the task was sent.
fn argument(task: &Task) -> Option<&Value> {
    match &task.input {
        TaskInput::Send(argument) => Some(argument),
        TaskInput::State | TaskInput::Start(_) => None,
    }
}

/// What the task was sent to read beside the state.
pub(super) fn sent<'a>(task: &'a Task, node: &Node) -> Option<&'a Map> {
    argument(task).and_then(Value::as_map).filter(|_| !matches!(node.kind, NodeKind::Tools(_)))
}

/// The end of a task that has failed for good: the failure of an item may be a result like others.
pub(super) fn given_up(view: TaskView<'_>, failed: Failure) -> TaskEnd {
    match view.node.items.as_ref().and_then(|rules| rules.errors.as_ref()) {
        // What the job has used up is used up for all items, and for what follows them.
        Some(channel) if FailureClass::of(&failed.code) != FailureClass::Final => {
            let error = node::item_error(view.sent, &failed.code, &failed.message);
            lead_on(view, vec![Write::new(channel.clone(), error)]).into()
        }
        Some(_) | None => TaskEnd::Failed(failed),
    }
}

fn refused(subagent_type: &str, failed: &Failure) -> Answer {
    Answer::error(format!("{subagent_type} failed: {}: {}", failed.code, failed.message))
}

/// Adds where the task leads to what it wrote. A task that says itself what runs next leads nowhere else.
pub(super) fn lead_on(view: TaskView<'_>, mut writes: Vec<Write>) -> Result<Vec<Write>, Failure> {
    let routes = &view.node.routes;
    let says_where = |write: &Write| {
        &*write.channel == SENDS || matches!(Trigger::of(&write.channel), Some(Trigger::Branch(_)))
    };
    if !writes.iter().any(says_where) {
        let leads = if routes.branch.is_some() {
            let state = pregel::fold(view.graph, view.state, &writes)?;
            route(routes, &view.node.name, &state)
        } else {
            route(routes, &view.node.name, view.state)
        };
        writes.extend(leads.map_err(|failed| Failure { node: Some(view.node.name.to_string()), ..failed })?);
    }
    if writes.is_empty() {
        // Without any write the task would not count as finished.
        writes.push(Write::new(pregel::NO_WRITES, Value::Null));
    }
    Ok(writes)
}

/// The trigger channels that `routes` write on `state`.
pub(super) fn route(routes: &Routes, node: &str, state: &State) -> Result<Vec<Write>, Failure> {
    let always = routes.always.iter().map(|channel| {
        // A join collects the names of those who arrived; other triggers only have to be news.
        let value = match Trigger::of(channel) {
            Some(Trigger::Join { .. }) => node.into(),
            Some(Trigger::Branch(_)) | None => Value::Null,
        };
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

//! One tool call: checked, announced, run, and answered to the model whatever happens.

use std::{sync::Arc, time::Instant};

use serde::Serialize;
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

use super::{Error, Scope, TaskView, command, scrubbed::clean, tool_node::checked, tool_set::TASK};
use crate::{
    encoding::hex,
    graph::{NodeKind, ToolsNode},
    ids,
    pregel::{MESSAGES, Write},
    stream::EventType,
    telemetry::{label, metric, scrub},
    tool::{self, Answer},
    value::{InvalidToolCall, Message, Role, ToolCall, ToolStatus, Value, map_to_json},
};

/// Characters of an idempotency key: 160 bits in hex, short enough for any provider's header limit.
const KEY_CHARS: usize = 40;

/// What a tool task was sent.
#[derive(Clone, Debug)]
pub enum Asked {
    /// A call to run.
    Call(ToolCall),
    /// A call to delegate to the sub-agent `subagent_type`.
    Task {
        /// The call.
        call: ToolCall,
        /// The sub-agent.
        subagent_type: Arc<str>,
        /// What it shall do.
        description: Arc<str>,
    },
    /// A call that cannot be run, with the answer that says why.
    Refused(ToolCall, Answer),
}

impl Asked {
    /// The call, whatever becomes of it.
    pub fn call(&self) -> &ToolCall {
        match self {
            Self::Call(call) | Self::Task { call, .. } | Self::Refused(call, _) => call,
        }
    }
}

/// The argument of the send that schedules `call`.
pub(super) fn argument(call: &ToolCall) -> Value {
    Value::map([("tool_call", call.to_value())])
}

/// The argument of the send that answers a call whose arguments cannot be read.
pub(super) fn invalid_argument(call: &InvalidToolCall) -> Value {
    Value::map([("invalid_tool_call", call.to_value())])
}

/// Reads what the task was sent, and decides whether it can be run.
pub fn asked(task: TaskView<'_>, argument: &Value) -> Result<Asked, Error> {
    let NodeKind::Tools(node) = &task.node.kind else { return Err(Error::Call) };
    let sent = argument.as_map().ok_or(Error::Call)?;
    if let Some(invalid) = sent.get("invalid_tool_call").and_then(InvalidToolCall::from_value) {
        let reason = format!("the arguments are not a JSON object: {}", invalid.error);
        let call = ToolCall { id: invalid.id, name: invalid.name, args: crate::value::Map::new() };
        return Ok(Asked::Refused(call, tool::Error::Arguments(reason).into()));
    }
    let call = sent.get("tool_call").and_then(ToolCall::from_value).ok_or(Error::Call)?;
    Ok(decide(task, node, call))
}

pub(super) fn decide(task: TaskView<'_>, node: &ToolsNode, call: ToolCall) -> Asked {
    if !task.tools.allow(&node.tools, &call.name) {
        let known = task.tools.names(&node.tools);
        let unknown = tool::Error::Unknown { name: call.name.to_string(), known };
        return Asked::Refused(call, unknown.into());
    }
    // No definition has a tool of its own by that name.
    if &*call.name == TASK { delegation(task, call) } else { checked(task, call) }
}

fn delegation(task: TaskView<'_>, call: ToolCall) -> Asked {
    let text = |key: &str| call.args.get(key).and_then(Value::as_str).map(Arc::from);
    let (Some(description), Some(subagent_type)) = (text("description"), text("subagent_type")) else {
        let missing = tool::Error::Arguments("task needs the texts description and subagent_type".into());
        return Asked::Refused(call, missing.into());
    };
    let subagent_type: Arc<str> = subagent_type;
    if !task.graph.subagents.contains_key(&subagent_type) {
        let known: Vec<_> = task.graph.subagents.keys().map(|name| &**name).collect();
        let reason = format!("unknown subagent_type {subagent_type:?}; the types are: {}", known.join(", "));
        return Asked::Refused(call, tool::Error::Arguments(reason).into());
    }
    Asked::Task { call, subagent_type, description }
}

/// Announces the call.
pub fn start(scope: &Scope, task: TaskView<'_>, call: &ToolCall) -> Instant {
    #[derive(Serialize)]
    struct Start<'a> {
        tool_name: &'a str,
        tool_input: Json,
        tool_call_id: &'a str,
    }
    let mut tool_input = map_to_json(&call.args);
    scrub::hide_named(&mut tool_input);
    let data = Start { tool_name: &call.name, tool_input, tool_call_id: &call.id };
    scope.emitter.emit(EventType::ToolStart, task.origin(), data);
    Instant::now()
}

/// Runs the call, within the time that its node and its tool allow. Whoever calls has the tool's turn.
pub async fn run(scope: &Scope, task: TaskView<'_>, call: &ToolCall) -> Answer {
    let Some(tool) = task.tools.get(&call.name) else { return Answer::error("the tool is not available") };
    let key = idempotency_key(scope, task, call);
    let now = scope.clock.now();
    let tell = |progress| tell_progress(scope, task, call, progress);
    let policy = tool.policy();
    let limit = [task.node.policy.timeout, policy.timeout].into_iter().flatten().min();
    let (id, args, state) = (&*call.id, &call.args, task.state);
    let asked = tool::Call { id, args, state, now, idempotency_key: &key, limit };
    let answer = match limit.filter(|_| !tool.keeps_limit()) {
        None => tool.call_telling(asked, &tell).await,
        Some(limit) => {
            let answered = tokio::time::timeout(limit, tool.call_telling(asked, &tell)).await;
            answered.unwrap_or_else(|_| tool::Error::Timeout(limit).into())
        }
    };
    // A tool may offer more than the graph keeps: what it found, for those who have a channel for it.
    let mut answer = policy.bounded(command::carry_out(task, call, scrubbed(answer)));
    answer.writes.retain(|(channel, _)| task.graph.channels.contains_key(channel));
    if let (ToolStatus::Error, Some(code)) = (answer.status, answer.code) {
        report(call, code);
    }
    answer
}

/// Tells operators that a call was made and failed, also one that is made again or asked about. What was asked and
/// answered is the job's own.
fn report(call: &ToolCall, code: &'static str) {
    tracing::warn!(tool = &*call.name, code, "a tool call failed");
    let tool = label::TOOL.value(&call.name);
    metrics::counter!(metric::TOOL_FAILURES, "tool" => tool, "code" => code).increment(1);
}

/// The answer without known secrets: from here it goes to models, into checkpoints and into the ledger.
fn scrubbed(answer: Answer) -> Answer {
    let scrubber = scrub::Scrubber::process();
    let content = scrubber.text(&answer.content).into_owned();
    let writes = answer.writes.into_iter().map(|(channel, value)| (channel, clean(value))).collect();
    Answer { content, writes, ..answer }
}

/// Tells readers how far a call is.
fn tell_progress(scope: &Scope, task: TaskView<'_>, call: &ToolCall, progress: tool::Progress) {
    let data = json!({
        "kind": "tool_progress",
        "tool_name": &*call.name,
        "tool_call_id": &*call.id,
        "progress": progress.done,
        "total": progress.total,
        "message": progress.message,
    });
    scope.emitter.emit(EventType::Custom, task.origin(), data);
}

/// An answer to a call.
#[derive(Debug)]
pub struct Told {
    /// When the call was announced.
    pub started: Instant,
    /// What the tool answered.
    pub answer: Answer,
    /// Whether an earlier attempt made the call.
    pub is_replayed: bool,
}

/// Reports the answer, and turns it into the task's writes.
pub fn finish(scope: &Scope, task: TaskView<'_>, call: &ToolCall, told: Told) -> Vec<Write> {
    let answer = tell(scope, task, call, told);
    let message = answer_message(task, call, answer.status, answer.content);
    let mut writes = vec![Write::new(MESSAGES, Value::list(vec![message.into()]))];
    writes.extend(answer.writes.into_iter().map(|(channel, value)| Write { channel, value }));
    writes
}

/// Reports the answer, and gives it back.
pub(super) fn tell(scope: &Scope, task: TaskView<'_>, call: &ToolCall, told: Told) -> Answer {
    #[derive(Serialize)]
    struct End<'a> {
        tool_name: &'a str,
        tool_output: &'a str,
        tool_call_id: &'a str,
        status: &'static str,
        duration_ms: u128,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        replayed: bool,
    }
    let Told { started, answer, is_replayed } = told;
    let status = answer.status.as_str();
    let data = End {
        tool_name: &call.name,
        tool_output: &answer.content,
        tool_call_id: &call.id,
        status,
        duration_ms: started.elapsed().as_millis(),
        replayed: is_replayed,
    };
    scope.emitter.emit(EventType::ToolEnd, task.origin(), data);
    // A name the model made up is not a label value: it is unbounded.
    let known = task.tools.get(&call.name).is_some() || &*call.name == TASK;
    let label = if known { label::TOOL.value(&call.name) } else { "unknown".to_owned() };
    metrics::counter!(metric::TOOL_CALLS, "tool" => label, "status" => status).increment(1);
    answer
}

/// The id is made from the task, so that an answer given again replaces the first.
fn answer_message(task: TaskView<'_>, call: &ToolCall, status: ToolStatus, content: String) -> Message {
    let id = ids::dashed(ids::digest(&[task.id.as_str().as_bytes(), b"answer"]));
    let role = Role::Tool { tool_call_id: call.id.clone(), status, artifact: Value::Null };
    Message { name: Some(call.name.clone()), ..Message::new(id, role, content) }
}

/// The same on every attempt: task ids follow from the checkpoint the task starts from.
pub fn idempotency_key(scope: &Scope, task: TaskView<'_>, call: &ToolCall) -> String {
    let parts = [scope.thread_id.as_str(), task.ns.as_str(), task.id.as_str(), &call.id];
    hex(Sha256::digest(parts.join("|")))[..KEY_CHARS].to_owned()
}

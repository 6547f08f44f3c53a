//! What a node's policy makes of its tasks: earlier writes instead of a run, time limits, runs after a failure, and
//! where a failure leads.
//!
//! **Invariant:** runs are counted within one attempt of the job and leave nothing behind, so a crash starts the
//! count anew and never repeats what is stored.
//! **Invariant:** a call that may have taken effect is not repeated here; only the ledger decides about it.

use std::time::Duration;

use serde_json::json;

use super::{
    Error, Reason, Running, cache, code, failure,
    position::{Here, Position},
    task::{self, TaskEnd, TaskRun, Worked},
};
use crate::{
    graph::{FailureClass, Node, NodeKind, Retry},
    job::Failure,
    node::{self, TaskView, Try},
    pregel::{SENDS, Task, Write},
    stream::EventType,
    telemetry::metric,
    tool::Answer,
    value::{State, Value},
};

/// Runs `task` as its node's policy says.
pub(super) async fn run(
    here: Here<'_>,
    task: &Task,
    position: &Position,
    state: &State,
) -> Result<Worked, Error> {
    let Here { running, frame, .. } = here;
    let Some(node) = frame.graph.node(&task.name) else {
        let failed = failure(code::INTERNAL, format!("no node {:?} in the graph", task.name));
        return Ok(finished(TaskEnd::Failed(failed)));
    };
    let sent = task::sent(task, node);
    let local = sent.map(|sent| node::with_sent(state, sent));
    let state = local.as_ref().unwrap_or(state);
    let (graph, tools) = (&*frame.graph, &*frame.tools);
    let first = Try::default();
    let view = TaskView { graph, tools, ns: &frame.ns, node, id: &task.id, state, sent, tries: &first };
    let slot = match earlier(running, view).await {
        Earlier::None => None,
        Earlier::Run(slot) => Some(slot),
        Earlier::End(end) => return Ok(finished(end)),
    };
    let mut number = 0;
    loop {
        let tries = Try::new(number);
        let view = TaskView { tries: &tries, ..view };
        let one = task::work(here, task, position, view);
        let worked = within(limit(node), Box::pin(one)).await.unwrap_or_else(|limit| {
            let failed = node::Error::Timeout(limit.as_secs_f64()).failure(&node.name);
            Ok(finished(TaskEnd::Failed(failed)))
        })?;
        let failed = match &worked.end {
            TaskEnd::Failed(failed) => failed,
            TaskEnd::Finished(writes) => {
                // One that sends itself on is not done yet.
                let is_done = !writes.iter().any(|write| &*write.channel == SENDS);
                if let Some(slot) = slot.filter(|_| is_done) {
                    slot.keep(running, view, writes).await;
                }
                return Ok(worked);
            }
            TaskEnd::Waits(_) => return Ok(worked),
        };
        let Some(again) = next(view, failed) else {
            return Ok(finished(routed(running, view, failed.clone())));
        };
        tell(running, view, &again);
        pause(running, again.wait).await?;
        number += 1;
    }
}

/// What earlier runs of a node have left.
enum Earlier {
    /// Nothing: the node is not cached.
    None,
    /// Nothing yet, and a place for what this run writes.
    Run(cache::Slot),
    /// All there is to do.
    End(TaskEnd),
}

async fn earlier(running: &Running, view: TaskView<'_>) -> Earlier {
    let slot = match cache::Slot::of(view) {
        Ok(Some(slot)) => slot,
        Ok(None) => return Earlier::None,
        Err(error) => return Earlier::End(routed(running, view, error.failure(&view.node.name))),
    };
    match slot.load(running, view).await {
        None => Earlier::Run(slot),
        Some(writes) => {
            let end = task::lead_on(view, writes);
            Earlier::End(end.map_or_else(|failed| routed(running, view, failed), TaskEnd::Finished))
        }
    }
}

fn finished(end: TaskEnd) -> Worked {
    Worked { end, answers: Vec::new() }
}

/// How long one run of a task of `node` may take. Calls of tools have their own limit, which tells the model; and
/// who is delegated to has limits of its own.
fn limit(node: &Node) -> Option<Duration> {
    match &node.kind {
        NodeKind::Model(_)
        | NodeKind::Router(_)
        | NodeKind::Transform(_)
        | NodeKind::Summary(_)
        | NodeKind::Map(_)
        | NodeKind::Gather
        | NodeKind::Subgraph(_) => node.policy.timeout,
        // A question takes no time; the wait for its answer is no run.
        NodeKind::Tools(_) | NodeKind::Tool(_) | NodeKind::Approval(_) | NodeKind::Fail(_) => None,
    }
}

async fn within<T>(limit: Option<Duration>, work: impl Future<Output = T>) -> Result<T, Duration> {
    match limit {
        None => Ok(work.await),
        Some(limit) => tokio::time::timeout(limit, work).await.map_err(|_| limit),
    }
}

/// A run that follows one that failed.
struct Again<'a> {
    code: &'a str,
    class: FailureClass,
    /// The number of the run that failed, from 1.
    attempt: u32,
    max_attempts: u32,
    wait: Duration,
}

/// The run that follows the one in `view`, which failed; `None` when none does.
fn next<'a>(view: TaskView<'_>, failed: &'a Failure) -> Option<Again<'a>> {
    // The call itself has been made as often as it may be.
    let is_called = matches!(view.node.kind, NodeKind::Tool(_)) && failed.code == node::TOOL_FAILED;
    let retry = view.node.policy.retry.as_ref().filter(|_| !is_called)?;
    let (class, attempt) = (FailureClass::of(&failed.code), view.tries.number() + 1);
    let wait = retry.wait(attempt, fastrand::u64(..)).filter(|_| retry.covers(class))?;
    let wait = wait.max(view.tries.asked_to_wait().unwrap_or_default());
    Some(Again { code: &failed.code, class, attempt, max_attempts: retry.max_attempts, wait })
}

/// Codes of calls that may come to something else when they are made again; the others would say the same.
const PASSING: [&str; 6] = [
    "TOOL_FAILED",
    "TOOL_TIMEOUT",
    "TOOL_NO_RESPONDERS",
    "TOOL_AUTHORIZATION",
    "TOOL_MCP_UNAVAILABLE",
    "SECRET_UNAVAILABLE",
];

/// Whether a call of a tool that came to `answer` as the `made`-th is to be made again, by the tool's
/// `own` policy or else its node's; waits until it may be. Only for calls that may be made twice.
pub(super) async fn call_again(
    run: &TaskRun<'_>,
    own: Option<&Retry>,
    answer: &Answer,
    made: u32,
) -> Result<bool, Error> {
    let (running, view) = (run.here.running, run.view);
    let code = answer.code.filter(|code| PASSING.contains(code));
    let (Some(retry), Some(code)) = (own.or(view.node.policy.retry.as_ref()), code) else {
        return Ok(false);
    };
    let class = FailureClass::of(code);
    let Some(wait) = retry.wait(made, fastrand::u64(..)).filter(|_| retry.covers(class)) else {
        return Ok(false);
    };
    tell(running, view, &Again { code, class, attempt: made, max_attempts: retry.max_attempts, wait });
    pause(running, wait).await?;
    Ok(true)
}

fn tell(running: &Running, view: TaskView<'_>, again: &Again<'_>) {
    let Again { code, class, attempt, max_attempts, wait } = *again;
    let node = &view.node.name;
    let class = class.as_str();
    let wait = wait.as_secs_f64();
    tracing::warn!(%node, code, class, attempt, max_attempts, wait, "a node failed and is run again");
    metrics::counter!(metric::NODE_RETRIES, "class" => class).increment(1);
    let data = json!({
        "kind": "retry",
        "node": &**node,
        "attempt": attempt,
        "max_attempts": max_attempts,
        "class": class,
        "code": code,
        "wait_seconds": wait,
        "superseded": view.tries.said(),
    });
    running.scope.emitter.emit(EventType::Custom, view.origin(), data);
}

/// Waits, unless the process leaves: somebody else begins the task anew then.
async fn pause(running: &Running, wait: Duration) -> Result<(), Error> {
    let waited = running.attempt.stop.unless_leaving(tokio::time::sleep(wait)).await;
    waited.ok_or(Error::Stopped(Reason::Drain))
}

/// What a failure for good comes to: the writes that lead to the node that deals with it, or the failure itself.
fn routed(running: &Running, view: TaskView<'_>, failed: Failure) -> TaskEnd {
    let class = FailureClass::of(&failed.code);
    let Some(route) = view.node.policy.on_error.as_ref().filter(|_| class != FailureClass::Final) else {
        return task::given_up(view, failed);
    };
    let class = class.as_str();
    tracing::warn!(node = %view.node.name, code = failed.code, class, "a node failed, and its error is dealt with");
    metrics::counter!(metric::NODE_ERRORS_ROUTED, "class" => class).increment(1);
    let node = failed.node.as_deref().unwrap_or(&view.node.name);
    let error = json!({ "code": failed.code, "message": failed.message, "node": node, "class": class });
    let data = json!({ "kind": "error_routed", "error": error, "superseded": view.tries.said() });
    running.scope.emitter.emit(EventType::Custom, view.origin(), data);
    let target = route.target.clone().map(|channel| Write::new(channel, Value::Null));
    TaskEnd::Finished([Write::new(route.channel.clone(), error.into())].into_iter().chain(target).collect())
}

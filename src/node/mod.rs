//! What a node type does: one model call, one tool call, or expressions. Nodes read the state and return writes.
//!
//! **Invariant:** a node keeps nothing between tasks; what it did is in its writes.

mod accounting;
mod approval;
mod asking;
mod command;
mod consent;
mod correction;
mod delegation;
mod inputs;
mod map;
mod model_call;
mod recall;
mod router;
mod scrubbed;
mod spending;
mod summary;
mod tool_call;
mod tool_node;
mod tool_set;
mod transform;
mod tries;

pub use approval::{failed, question};
pub use consent::{Consent, consent};
pub use delegation::{child_input, merge_back};
pub use inputs::reads;
pub use map::item_error;
pub use spending::{Budget, Calls, Exhausted, Spending};
pub use tool_call::{
    Asked, Told, asked, finish as finish_tool, idempotency_key, run as run_tool, start as start_tool,
};
pub use tool_node::{call_of, finish_call};
pub use tool_set::{ToolSet, find_tools};
pub use tries::Try;

use std::sync::Arc;

use tokio::time::Instant;

use crate::{
    graph::{CompiledGraph, Node, NodeKind},
    ids::{Clock, Namespace, TaskId, ThreadId},
    job::Failure,
    model::{self, Models, retry},
    pregel::Write,
    stream::{Emitter, Origin},
    telemetry::{label, metric, scrub::Scrubber},
    tool,
    value::{Map, Name, State},
};

/// Code of a job that has spent what it may spend.
pub const BUDGET_EXHAUSTED: &str = "BUDGET_EXHAUSTED";

/// Code of a `tool` node whose call failed.
pub const TOOL_FAILED: &str = "NODE_TOOL_FAILED";

/// Why a task failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No model answered.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// An expression or a template failed on this state.
    #[error("{what} failed: {reason}")]
    Expression {
        /// Which one: `prompt`, `system_prompt`, the channel it writes.
        what: String,
        /// Why.
        reason: String,
    },
    /// The model's answer does not satisfy the node's `output_schema`.
    #[error("the answer does not satisfy output_schema: {0}")]
    Output(String),
    /// A router has not chosen where to go on, and has nowhere to go without a choice.
    #[error("no target was chosen: {0}")]
    Undecided(String),
    /// The model refused to answer.
    #[error("the model refused to answer: {0}")]
    Refused(String),
    /// The job has spent what it may spend.
    #[error(transparent)]
    Budget(#[from] Exhausted),
    /// The job has a budget of dollars, and the price of a model is not known.
    #[error("budget.max_cost_usd cannot be kept: no price is known for the model {0:?}")]
    Unpriced(String),
    /// The node took longer than its `timeout_seconds`.
    #[error("the node took longer than {0} s")]
    Timeout(f64),
    /// The list of a map is too long.
    #[error("the list has {count} items, at most {limit} are allowed")]
    TooManyItems {
        /// Its items.
        count: usize,
        /// Items allowed.
        limit: usize,
    },
    /// The call of a `tool` node failed.
    #[error("the tool {tool} failed: {reason}")]
    Tool {
        /// The tool.
        tool: String,
        /// The code of what went wrong, as far as it is known.
        reason: String,
    },
    /// Whoever lists the node's tools does not say which they are.
    #[error(transparent)]
    Tools(tool::Error),
    /// The model that should summarise the conversation wrote nothing.
    #[error("the model wrote no summary of the conversation")]
    Summary,
    /// The node's model was silent for longer than its `idle_timeout_seconds`.
    #[error("the model said nothing for {0} s")]
    Idle(f64),
    /// The job has asked models as often as its definition allows.
    #[error("the job may ask models {0} times (limits.model_calls)")]
    ModelCalls(u64),
    /// The job's next calls of tools are more than its definition allows.
    #[error("the job may call tools {limit} times (limits.tool_calls), and has asked for {asked} calls")]
    ToolCalls {
        /// Calls allowed.
        limit: u64,
        /// Calls asked for, these included.
        asked: u64,
    },
    /// A stored tool call cannot be read.
    #[error("the tool call of this task cannot be read")]
    Call,
}

impl Error {
    /// The code operators find in TROUBLESHOOTING.md.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Model(error) => error.code(),
            Self::Expression { .. } => "NODE_EXPRESSION",
            Self::Output(_) => "NODE_OUTPUT_INVALID",
            Self::Undecided(_) => "NODE_ROUTE_UNDECIDED",
            Self::Refused(_) => "NODE_MODEL_REFUSED",
            Self::Budget(_) => BUDGET_EXHAUSTED,
            Self::Unpriced(_) => "MODEL_PRICE_UNKNOWN",
            Self::Timeout(_) => "NODE_TIMEOUT",
            Self::TooManyItems { .. } => "NODE_TOO_MANY_ITEMS",
            Self::Tool { .. } => TOOL_FAILED,
            Self::Tools(error) => error.code(),
            Self::Summary => "NODE_SUMMARY_EMPTY",
            Self::Idle(_) => "NODE_IDLE_TIMEOUT",
            Self::ModelCalls(_) => "MODEL_CALL_LIMIT",
            Self::ToolCalls { .. } => "TOOL_CALL_LIMIT",
            Self::Call => "NODE_CALL_UNREADABLE",
        }
    }

    /// The failure that results and events report.
    pub fn failure(&self, node: &str) -> Failure {
        let retryable = match self {
            Self::Model(error) => error.is_retryable(),
            Self::Timeout(_) | Self::Idle(_) | Self::Summary => true,
            Self::Tools(error) => matches!(error, tool::Error::McpUnavailable { .. }),
            Self::Expression { .. }
            | Self::Output(_)
            | Self::Undecided(_)
            | Self::Refused(_)
            | Self::Budget(_)
            | Self::Unpriced(_)
            | Self::TooManyItems { .. }
            | Self::Tool { .. }
            | Self::ModelCalls(_)
            | Self::ToolCalls { .. }
            | Self::Call => false,
        };
        let code = self.code().to_owned();
        let message = Scrubber::process().report(&self.to_string()).into_owned();
        Failure { code, message, node: Some(node.to_owned()), retryable }
    }
}

/// `state` with what a task was sent in front of its channels.
pub fn with_sent(state: &State, sent: &Map) -> State {
    let mut local = state.clone();
    let names = sent.iter().filter(|(name, _)| &***name != correction::CORRECTION);
    local.extend(names.map(|(name, value)| (Name::clone(name), value.clone())));
    local
}

/// What all tasks of an attempt share.
pub struct Scope {
    /// Providers of models.
    pub models: Arc<Models>,
    /// Where events go.
    pub emitter: Arc<Emitter>,
    /// What the job has spent.
    pub spending: Spending,
    /// How model calls are tried again.
    pub retry: retry::Policy,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The thread; part of every idempotency key.
    pub thread_id: ThreadId,
}

/// One task, as its node sees it.
#[derive(Clone, Copy)]
pub struct TaskView<'a> {
    /// The graph it belongs to.
    pub graph: &'a CompiledGraph,
    /// Its tools.
    pub tools: &'a ToolSet,
    /// The namespace of that graph.
    pub ns: &'a Namespace,
    /// The node.
    pub node: &'a Node,
    /// The task.
    pub id: &'a TaskId,
    /// The state it reads; of a task that was sent, with what it was sent in front of the channels.
    pub state: &'a State,
    /// What it was sent.
    pub sent: Option<&'a Map>,
    /// Which run of it this is.
    pub tries: &'a Try,
}

impl<'a> TaskView<'a> {
    /// Where tokens are counted: the names of the nodes around the task's graph and its own, without task ids.
    pub fn path(&self) -> String {
        let outer = self.ns.as_str().split('|').filter_map(|part| part.split(':').next());
        let mut parts: Vec<&str> = outer.filter(|part| !part.is_empty()).collect();
        // A graph of one node may be called like the node it stands for.
        if parts.last() != Some(&&*self.node.name) {
            parts.push(&self.node.name);
        }
        parts.join("/")
    }

    /// Who events of this task are about: the agent, for its tools and summaries.
    pub fn origin(&self) -> Origin<'a> {
        Origin { node: self.node.kind.agent().unwrap_or(&self.node.name), ns: self.ns }
    }
}

/// Runs a task that an edge led to and that needs neither a person nor other tasks.
pub async fn run(scope: &Scope, task: TaskView<'_>) -> Result<Vec<Write>, Error> {
    let started = Instant::now();
    let result = dispatch(scope, task).await;
    metrics::histogram!(metric::NODE_SECONDS, "node" => label::NODE.value(&task.node.name))
        .record(started.elapsed().as_secs_f64());
    result
}

async fn dispatch(scope: &Scope, task: TaskView<'_>) -> Result<Vec<Write>, Error> {
    match &task.node.kind {
        NodeKind::Model(node) => model_call::run(scope, task, node).await.map(scrubbed::writes),
        NodeKind::Transform(node) => transform::run(task, node),
        NodeKind::Summary(node) => summary::run(scope, task, node).await.map(scrubbed::writes),
        NodeKind::Router(node) => router::run(scope, task, node).await.map(scrubbed::writes),
        NodeKind::Map(node) => map::run(task, node),
        NodeKind::Gather => Ok(Vec::new()),
        // Those need more than a state: the run answers calls, asks people and runs graphs.
        NodeKind::Tools(_)
        | NodeKind::Tool(_)
        | NodeKind::Subgraph(_)
        | NodeKind::Approval(_)
        | NodeKind::Fail(_) => Err(Error::Call),
    }
}

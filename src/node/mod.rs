//! What a node type does: one model call, one tool call, or expressions. Nodes read the state and return writes.
//!
//! **Invariant:** a node keeps nothing between tasks; what it did is in its writes.

mod delegation;
mod model_call;
mod spending;
mod tool_call;
mod tool_set;
mod transform;

pub use delegation::{child_input, merge_back};
pub use spending::{Budget, Spending};
pub use tool_call::{
    Asked, Told, asked, finish as finish_tool, idempotency_key, run as run_tool, start as start_tool,
};
pub use tool_set::ToolSet;

use std::sync::Arc;

use crate::{
    graph::{CompiledGraph, Node, NodeKind},
    ids::{Clock, Namespace, TaskId, ThreadId},
    job::Failure,
    model::{self, Models, retry},
    pregel::Write,
    stream::{Emitter, Origin},
    value::State,
};

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
    /// The model refused to answer.
    #[error("the model refused to answer: {0}")]
    Refused(String),
    /// The job has spent what it may spend.
    #[error("the budget of {limit} tokens is exhausted ({spent} spent)")]
    Budget {
        /// Tokens allowed.
        limit: u64,
        /// Tokens spent.
        spent: u64,
    },
    /// The node took longer than its `timeout_seconds`.
    #[error("the node took longer than {0} s")]
    Timeout(f64),
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
            Self::Refused(_) => "NODE_MODEL_REFUSED",
            Self::Budget { .. } => "BUDGET_EXHAUSTED",
            Self::Timeout(_) => "NODE_TIMEOUT",
            Self::Call => "NODE_CALL_UNREADABLE",
        }
    }

    /// The failure that results and events report.
    pub fn failure(&self, node: &str) -> Failure {
        let retryable = match self {
            Self::Model(error) => error.is_retryable(),
            Self::Timeout(_) => true,
            Self::Expression { .. }
            | Self::Output(_)
            | Self::Refused(_)
            | Self::Budget { .. }
            | Self::Call => false,
        };
        let code = self.code().to_owned();
        Failure { code, message: self.to_string(), node: Some(node.to_owned()), retryable }
    }
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
    /// The state it reads.
    pub state: &'a State,
}

impl<'a> TaskView<'a> {
    /// Who events of this task are about: the agent, for its tools.
    pub fn origin(&self) -> Origin<'a> {
        let node = match &self.node.kind {
            NodeKind::Tools(tools) => &tools.agent,
            NodeKind::Model(_) | NodeKind::Transform(_) => &self.node.name,
        };
        Origin { node, ns: self.ns }
    }
}

/// Runs a task that an edge led to.
pub async fn run(scope: &Scope, task: TaskView<'_>) -> Result<Vec<Write>, Error> {
    match &task.node.kind {
        NodeKind::Model(node) => model_call::run(scope, task, node).await,
        NodeKind::Transform(node) => transform::run(task, node),
        NodeKind::Tools(_) => Err(Error::Call),
    }
}

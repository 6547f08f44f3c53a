//! From the JSON a person writes to the graph the executor runs: parse → lower → compile.
//!
//! Pure: no clock, no randomness, no I/O. Home of petgraph and of the expression language.
//!
//! **Invariant:** a [`CompiledGraph`] has no mistakes left in it; running one never meets an unknown name.

mod build;
mod channels;
mod compile;
mod compiled;
mod condition;
mod definition;
mod describe;
mod diagnostic;
mod draw;
mod explain;
mod expression;
mod flow;
mod gates;
mod json_schema;
mod kind;
mod lower;
mod mcp;
mod nested;
mod outline;
pub(crate) mod pointer;
mod policy;
mod read;
mod routing;
mod schema;
mod spelling;
mod tools;
mod trigger;
mod variables;

pub use channels::{FILES, TODOS};
pub use compile::{Limits, compile, compile_with};
pub use compiled::{
    ApprovalNode, Argument, Branch, Case, ChannelSpec, Comparison, CompiledGraph, Condition, Edge, FailNode,
    Handover, ItemRules, MapNode, ModelNode, Node, NodeKind, Pauses, Reducer, RouterNode, Routes, Subagent,
    SubgraphNode, SummaryLimits, SummaryNode, ToolNode, ToolsNode, TransformNode,
};
pub use definition::{
    AnswerCaching, Authorization, AuthorizationKind, CacheControl, ClientAuth, DEFAULT_MODEL, Effect,
    HeaderValue, HttpTool, ModelApi, ModelSettings, NatsTool, Pagination, RetryOn, Returns, RuntimeKind,
    SecretRef, Thinking, ToolDefinition, ToolRuntime,
};
pub use describe::describe;
pub use diagnostic::Diagnostic;
pub use draw::{Format, draw};
pub use explain::{ChannelText, Explanation, LoopText, ToolText, explain};
pub use expression::{Error as ExpressionError, Expression, Template};
pub use json_schema::{Schema, SharedSchema};
pub use lower::{BUILTIN_TOOLS, EFFECT_CLASS, GENERAL_PURPOSE, OFFERED_TOOLS, TASK_TOOL};
pub use mcp::McpName;
pub use nested::{MAX_STORED, Stored, references};
pub use outline::{Cluster, EdgeKind, Outline, OutlineEdge, OutlineKind, OutlineNode};
pub use policy::{CachePolicy, CallLimits, ErrorRoute, FailureClass, Policy, Retry};
pub use schema::definition_schema;
pub use tools::{SECRET, check_subject, secret_names};
pub use trigger::{Trigger, is_internal};
pub use variables::{Filling, stamp};

#[cfg(test)]
mod tests;

//! From the JSON a person writes to the graph the executor runs: parse → lower → compile.
//!
//! Pure: no clock, no randomness, no I/O. Home of petgraph and of the expression language.
//!
//! **Invariant:** a [`CompiledGraph`] has no mistakes left in it; running one never meets an unknown name.

mod channels;
mod compile;
mod compiled;
mod condition;
mod definition;
mod describe;
mod diagnostic;
mod expression;
mod flow;
mod json_schema;
mod lower;
mod read;
mod schema;
mod spelling;
mod tools;

pub use compile::{Limits, compile};
pub use compiled::{
    Branch, Case, ChannelSpec, Comparison, CompiledGraph, Condition, Edge, ModelNode, Node, NodeKind,
    Reducer, Routes, Subagent, ToolsNode, TransformNode,
};
pub use definition::{DEFAULT_MODEL, Effect, HttpTool, ModelSettings, ToolDefinition, ToolRuntime};
pub use describe::describe;
pub use diagnostic::Diagnostic;
pub use expression::{Error as ExpressionError, Expression, Template};
pub use json_schema::Schema;
pub use lower::{BUILTIN_TOOLS, GENERAL_PURPOSE, TASK_TOOL};
pub use schema::definition_schema;

#[cfg(test)]
mod tests;

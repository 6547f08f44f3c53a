//! From the JSON a person writes to the graph the executor runs: parse → lower → compile.
//!
//! Pure: no clock, no randomness, no I/O. Home of petgraph and of the expression language.
//!
//! **Invariant:** a [`CompiledGraph`] has no mistakes left in it; running one never meets an unknown name.

mod compile;
mod compiled;
mod definition;
mod diagnostic;
mod expression;
mod lower;
mod schema;

pub use compile::{Limits, compile};
pub use compiled::{
    Branch, Case, ChannelSpec, Comparison, CompiledGraph, Condition, Edge, ModelNode, Node, NodeKind,
    Reducer, Routes, Subagent, ToolsNode, TransformNode,
};
pub use definition::{HttpTool, ModelSettings, ToolDefinition, ToolRuntime};
pub use diagnostic::Diagnostic;
pub use expression::{Expression, Template};
pub use schema::definition_schema;

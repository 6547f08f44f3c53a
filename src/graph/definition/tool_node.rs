//! The `tool` node: one call of a tool, without a model.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// A `tool`: one call of a tool, without a model.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::graph) struct ToolCallNode {
    /// The tool: one of `tool_definitions`, or a built-in one other than `task`.
    pub(in crate::graph) tool: String,
    /// Its arguments; texts in them are templates over the state. A text that is nothing but one `{{ expression }}`
    /// stands for the expression's value, whatever its type.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub(in crate::graph) arguments: IndexMap<String, Json>,
    /// The channel that gets the answer: the value if it is JSON, else the text. Nothing gets it when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) writes: Option<String>,
}

//! Edges and their conditions.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::graph::compiled::Comparison;

/// An edge.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::graph) struct EdgeDefinition {
    /// The node it leaves, or `START`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) source: Option<String>,
    /// The nodes of a join: the target runs once all of them have finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2))]
    pub(in crate::graph) sources: Option<Vec<String>>,
    /// The node it leads to, or `END`.
    pub(in crate::graph) target: String,
    /// When it is taken; of several conditional edges of a node the first that holds is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<ConditionDefinition>")]
    pub(in crate::graph) when: Option<Json>,
    /// Whether it is taken when no conditional edge of its node is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) otherwise: Option<bool>,
    /// `orchestrator`, `specialists` and `orchestration` say who delegates to whom and are not part of the
    /// flow; `flow` is what an edge is otherwise.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) kind: Option<String>,
    /// What people read beside it, and what `requires` calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) label: Option<String>,
}

/// When a conditional edge is taken: an expression over the state, or a comparison.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::graph) enum ConditionDefinition {
    /// A minijinja expression over the state.
    Expression(String),
    /// One comparison.
    Compare(CompareDefinition),
    /// Every condition holds.
    All(AllDefinition),
    /// One condition holds.
    Any(AnyDefinition),
    /// The condition does not hold.
    Not(NotDefinition),
}

/// One comparison.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::graph) struct CompareDefinition {
    /// JSON pointer into the state, its first part a channel; `-1` is the last item of a list.
    #[schemars(regex(pattern = "^/."))]
    pub(in crate::graph) path: String,
    /// The comparison.
    pub(in crate::graph) op: Comparison,
    /// What is compared with; not needed for `exists`.
    #[serde(default)]
    pub(in crate::graph) value: Json,
}

/// Every condition holds.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::graph) struct AllDefinition {
    /// The conditions.
    #[schemars(length(min = 1))]
    pub(in crate::graph) all: Vec<ConditionDefinition>,
}

/// One condition holds.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::graph) struct AnyDefinition {
    /// The conditions.
    #[schemars(length(min = 1))]
    pub(in crate::graph) any: Vec<ConditionDefinition>,
}

/// The condition does not hold.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::graph) struct NotDefinition {
    /// The condition.
    pub(in crate::graph) not: Box<ConditionDefinition>,
}

//! The `subgraph` node: a graph with a state of its own.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map as JsonMap, Value as Json};

/// A `subgraph`: runs another definition on a state of its own.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::graph) struct SubgraphNode {
    /// The definition, written here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) definition: Option<JsonMap<String, Json>>,
    /// The definition, stored: `name@version` or `sha256:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub(in crate::graph) agent: Option<String>,
    /// Channels of the subgraph and the expressions over this graph's state whose values they start with.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub(in crate::graph) input: IndexMap<String, String>,
    /// Channels of this graph and the expressions over the subgraph's last state whose values are written to them.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub(in crate::graph) output: IndexMap<String, String>,
}

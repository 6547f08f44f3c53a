//! The `map` node: the same work for every item of a list.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// A `map`: runs a node once for every item of a list, side by side.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::graph) struct MapNode {
    /// Expression over the state whose value is the list.
    pub(in crate::graph) items: String,
    /// What runs for each item: the id of a node that no edge touches, or a node without edges written here. It is a
    /// `model`, `transform`, `tool` or `subgraph`, and reads `item` and `index` (from 0) beside the state.
    #[schemars(schema_with = "node_schema")]
    pub(in crate::graph) node: Json,
    /// Items that run at the same time; all of them, within the executor's own limit, when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(in crate::graph) max_concurrency: Option<u32>,
    /// Most items; the operator's limit when left out or above it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(in crate::graph) max_items: Option<u32>,
    /// The channel (`append`) that gets `{"index","item","error":{"type","message"}}` for each item that fails. A
    /// failing item fails the run when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) errors: Option<String>,
}

fn node_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": ["string", "object"], "minLength": 1})
}

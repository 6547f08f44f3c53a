//! The agent definition as people write it: the serde types the JSON Schema is generated from.
//!
//! These are the canonical spellings; `spelling.rs` turns the others into them.

mod edge;
mod gate;
mod map;
mod model;
mod node;
mod people;
mod policy;
mod request;
mod subgraph;
mod summarize;
mod tool;
mod tool_node;
mod variable;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map as JsonMap, Value as Json};

use super::compiled::Reducer;
pub(super) use edge::EdgeDefinition;
pub(super) use gate::{Gate, Requirement};
pub(super) use map::MapNode;
pub use model::{AnswerCaching, CacheControl, DEFAULT_MODEL, ModelApi, ModelSettings, Thinking};
pub(super) use node::{AgentNode, CallNode, ExpressionsNode, NodeCommon, NodeDefinition, NodeWork};
pub(super) use people::{APPROVAL, AskNode, ROUTE, RouteNode, StopNode};
pub use policy::RetryOn;
pub(super) use policy::{CacheDefinition, ErrorRouteDefinition, RetryDefinition};
pub use request::{Authorization, AuthorizationKind, ClientAuth, NatsTool, Pagination};
pub(super) use subgraph::SubgraphNode;
pub(super) use summarize::Summarize;
pub use tool::{Effect, HeaderValue, HttpTool, Returns, RuntimeKind, SecretRef, ToolDefinition, ToolRuntime};
pub(super) use tool_node::ToolCallNode;
pub(super) use variable::VariableDefinition;

/// A graph of agents, as JSON.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Definition {
    /// The JSON Schema this file follows, for editors; not interpreted.
    #[serde(rename = "$schema", default, skip_serializing_if = "Option::is_none")]
    pub(super) schema: Option<String>,
    /// What the graph is called; `agent` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    /// The author's version of it; results and `validate` show it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<String>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) description: Option<String>,
    /// The nodes. With an `orchestrator` it is a deep agent, whose `specialist`s are delegated to.
    #[schemars(length(min = 1))]
    pub(super) nodes: Vec<Json>,
    /// The edges; a graph of one node needs none.
    #[serde(default)]
    pub(super) edges: Vec<Json>,
    /// Channels of the state beside `messages` (and `files`, `todos` where built-in tools use them).
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub(super) channels: IndexMap<String, ChannelDefinition>,
    /// What is filled in when agents are stamped from this definition; prompts read it like channels.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub(super) variables: IndexMap<String, VariableDefinition>,
    /// Tools that agents may name beside the built-in ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) tool_definitions: Vec<Json>,
    /// What nodes that say nothing else use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) defaults: Option<Defaults>,
    /// Most supersteps of one job; 25, and 1000 for deep agents, when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(super) recursion_limit: Option<u32>,
    /// Limits of one job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) limits: Option<RunLimits>,
    /// Channels whose values are the output; none means the text of the last AI message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) output: Vec<String>,
    /// What the final text begins with when the job shall end as `failed`; `HALT:` when left out, and an empty text
    /// means that no text does. Named output channels are not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) failure_mark: Option<String>,
    /// Whatever the author wants to keep with it; not interpreted.
    #[serde(default, skip_serializing_if = "JsonMap::is_empty")]
    pub(super) metadata: JsonMap<String, Json>,
}

/// What nodes that say nothing else use.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Defaults {
    /// The model of nodes that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) model: Option<ModelSettings>,
    /// When nodes that say nothing about it are run again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) retry: Option<RetryDefinition>,
}

/// Limits of a job. One that is exceeded fails the job with a code of its own; the state is kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RunLimits {
    /// Most supersteps of one job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(super) recursion: Option<u32>,
    /// Most requests to models, tries that failed included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(super) model_calls: Option<u32>,
    /// Most calls of tools, delegations included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(super) tool_calls: Option<u32>,
    /// Most items that a `map` may have, such as the steps of a plan; a map's own `max_items` may say less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(super) plan_steps: Option<u32>,
}

/// A channel of the state.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ChannelDefinition {
    /// How several writes become one value; `last_value` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reducer: Option<Reducer>,
    /// The value before the first write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) default: Option<Json>,
    /// What it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) description: Option<String>,
}

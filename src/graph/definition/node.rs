//! Nodes: what all of them may say, and what each type says besides.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map as JsonMap, Value as Json};

use super::{
    AskNode, CacheDefinition, ErrorRouteDefinition, MapNode, ModelSettings, Requirement, RetryDefinition,
    RouteNode, StopNode, SubgraphNode, Summarize, ToolCallNode,
};

/// A node.
#[derive(Clone, Debug)]
pub(in crate::graph) struct NodeDefinition {
    /// What every node may say.
    pub(in crate::graph) common: NodeCommon,
    /// What it does, by its type.
    pub(in crate::graph) work: NodeWork,
}

impl NodeDefinition {
    /// What edges call it.
    pub(in crate::graph) fn id(&self) -> &str {
        &self.common.id
    }

    /// What people and models call it.
    pub(in crate::graph) fn name(&self) -> &str {
        &self.common.name
    }
}

/// What every node may say, whatever its type. It stands beside the fields of the type in one object; the two are
/// read apart because serde cannot flatten and refuse unknown fields at once.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::graph) struct NodeCommon {
    /// What edges call it; the name when left out.
    #[schemars(length(min = 1, max = 255))]
    pub(in crate::graph) id: String,
    /// What people and models call it; the id when left out.
    #[schemars(length(min = 1, max = 255))]
    pub(in crate::graph) name: String,
    /// What it is for; of a specialist, what the orchestrator's model is told about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) description: Option<String>,
    /// Gates that every way to it passes; a definition with a way past one is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::graph) requires: Vec<Requirement>,
    /// When it is run again after a failure; `defaults.retry` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) retry: Option<RetryDefinition>,
    /// Seconds one run of it may take; of an agent, each answer of its model and each call of a tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(in crate::graph) timeout_seconds: Option<f64>,
    /// Seconds its model may be silent: until the first piece of an answer, and from one piece to the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(in crate::graph) idle_timeout_seconds: Option<f64>,
    /// When its writes are taken from an earlier run with the same inputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) cache: Option<CacheDefinition>,
    /// Where the run goes on when it has failed for good; the job fails when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) on_error: Option<ErrorRouteDefinition>,
    /// Whether the run stops before each of its turns until a job continues it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(in crate::graph) interrupt_before: bool,
    /// Whether the run stops after each of its turns, unless that was the run's last.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(in crate::graph) interrupt_after: bool,
    /// Whatever the author wants to keep with it; not interpreted.
    #[serde(default, skip_serializing_if = "JsonMap::is_empty")]
    pub(in crate::graph) metadata: JsonMap<String, Json>,
}

/// What a node does, by its type.
#[derive(Clone, Debug)]
pub(in crate::graph) enum NodeWork {
    /// `orchestrator`: an agent that delegates to the specialists.
    Orchestrator(AgentNode),
    /// `specialist`: an agent that is delegated to.
    Specialist(AgentNode),
    /// `agent`: a model that calls tools until it has an answer.
    Agent(AgentNode),
    /// `model`: one call.
    Model(CallNode),
    /// `transform`: expressions that write channels.
    Transform(ExpressionsNode),
    /// `router`: a model chooses where to go on.
    Router(RouteNode),
    /// `approval`: a person is asked.
    Approval(AskNode),
    /// `fail`: the job ends as failed.
    Fail(StopNode),
    /// `map`: a node for every item of a list.
    Map(MapNode),
    /// `subgraph`: another definition on a state of its own.
    Subgraph(SubgraphNode),
    /// `tool`: one call, without a model.
    Tool(ToolCallNode),
}

impl NodeWork {
    /// The agent, when the node is one.
    pub(in crate::graph) fn agent(&self) -> Option<&AgentNode> {
        match self {
            Self::Orchestrator(agent) | Self::Specialist(agent) | Self::Agent(agent) => Some(agent),
            Self::Model(_)
            | Self::Transform(_)
            | Self::Router(_)
            | Self::Approval(_)
            | Self::Fail(_)
            | Self::Map(_)
            | Self::Subgraph(_)
            | Self::Tool(_) => None,
        }
    }
}

/// An `orchestrator`, a `specialist` or an `agent`: a model that calls tools until it has an answer.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::graph) struct AgentNode {
    /// The model; the definition's default when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) model: Option<ModelSettings>,
    /// Instructions. Literal text for orchestrators and specialists; for an `agent` a template over the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) system_prompt: Option<String>,
    /// Names of tools it may call. Orchestrators and specialists have the built-in tools besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::graph) tools: Vec<String>,
    /// How its conversation is shortened when it has grown too long; never when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) summarize: Option<Summarize>,
    /// Which of its tools a person must approve of, call by call, beside those whose definition says so: names, or
    /// `effect:irreversible` and `effect:idempotent` for all tools of that class.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::graph) requires_approval: Vec<String>,
    /// JSON Schema the final answer must satisfy; the answer is then a JSON value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) output_schema: Option<Json>,
    /// How often the model is told what is wrong with an answer and asked again; 2 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 10))]
    pub(in crate::graph) schema_retries: Option<u32>,
    /// The channel that gets the final answer besides `messages`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) writes: Option<String>,
}

/// A `model`: one call.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::graph) struct CallNode {
    /// The model; the definition's default when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) model: Option<ModelSettings>,
    /// Instructions: a template over the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) system_prompt: Option<String>,
    /// The user's turn: a template over the state. The conversation in `messages` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) prompt: Option<String>,
    /// JSON Schema the answer must satisfy; the answer is then a JSON value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) output_schema: Option<Json>,
    /// How often the model is told what is wrong with its answer and asked again; 2 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 10))]
    pub(in crate::graph) schema_retries: Option<u32>,
    /// The channel that gets the answer; `messages` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) writes: Option<String>,
}

/// A `transform`: expressions that write channels.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::graph) struct ExpressionsNode {
    /// Channels and the expressions whose values are written to them.
    #[schemars(extend("minProperties" = 1))]
    pub(in crate::graph) writes: IndexMap<String, String>,
}

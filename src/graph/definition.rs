//! The agent definition as people write it: the serde types the JSON Schema is generated from.
//!
//! These are the canonical spellings; `spelling.rs` turns the others into them.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map as JsonMap, Value as Json};

use super::compiled::{Comparison, Reducer};

/// The provider of a model that names none.
pub(super) const DEFAULT_PROVIDER: &str = "openai";
/// The model of a node that names none, in a definition without a default.
pub const DEFAULT_MODEL: &str = "openai:gpt-4o-mini";

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
    /// The author's version of it; not interpreted.
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
    /// The same limit under another name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) limits: Option<RunLimits>,
    /// Channels whose values are the output; none means the text of the last AI message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) output: Vec<String>,
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
}

/// Limits of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RunLimits {
    /// Most supersteps of one job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(super) recursion: Option<u32>,
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

/// An `orchestrator`, a `specialist` or an `agent`: a model that calls tools until it has an answer.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AgentNode {
    /// What edges call it; the name when left out.
    #[schemars(length(min = 1, max = 255))]
    pub(super) id: String,
    /// What people and models call it; the id when left out.
    #[schemars(length(min = 1, max = 255))]
    pub(super) name: String,
    /// What it is for; of a specialist, what the orchestrator's model is told about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) description: Option<String>,
    /// The model; the definition's default when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) model: Option<ModelSettings>,
    /// Instructions. Literal text for orchestrators and specialists; for an `agent` a template over the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) system_prompt: Option<String>,
    /// Names of tools it may call. Orchestrators and specialists have the built-in tools besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) tools: Vec<String>,
    /// Seconds one model call may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(super) timeout_seconds: Option<f64>,
    /// Whatever the author wants to keep with it; not interpreted.
    #[serde(default, skip_serializing_if = "JsonMap::is_empty")]
    pub(super) metadata: JsonMap<String, Json>,
}

/// A `model`: one call.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CallNode {
    /// What edges call it; the name when left out.
    #[schemars(length(min = 1, max = 255))]
    pub(super) id: String,
    /// What people call it; the id when left out.
    #[schemars(length(min = 1, max = 255))]
    pub(super) name: String,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) description: Option<String>,
    /// The model; the definition's default when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) model: Option<ModelSettings>,
    /// Instructions: a template over the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) system_prompt: Option<String>,
    /// The user's turn: a template over the state. The conversation in `messages` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) prompt: Option<String>,
    /// JSON Schema the answer must satisfy; the answer is then a JSON value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) output_schema: Option<Json>,
    /// The channel that gets the answer; `messages` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) writes: Option<String>,
    /// Seconds the call may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(super) timeout_seconds: Option<f64>,
    /// Whatever the author wants to keep with it; not interpreted.
    #[serde(default, skip_serializing_if = "JsonMap::is_empty")]
    pub(super) metadata: JsonMap<String, Json>,
}

/// A `transform`: expressions that write channels.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExpressionsNode {
    /// What edges call it; the name when left out.
    #[schemars(length(min = 1, max = 255))]
    pub(super) id: String,
    /// What people call it; the id when left out.
    #[schemars(length(min = 1, max = 255))]
    pub(super) name: String,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) description: Option<String>,
    /// Channels and the expressions whose values are written to them.
    #[schemars(extend("minProperties" = 1))]
    pub(super) writes: IndexMap<String, String>,
    /// Whatever the author wants to keep with it; not interpreted.
    #[serde(default, skip_serializing_if = "JsonMap::is_empty")]
    pub(super) metadata: JsonMap<String, Json>,
}

/// A node, by its type.
#[derive(Clone, Debug)]
pub(super) enum NodeDefinition {
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
}

impl NodeDefinition {
    /// What edges call it.
    pub(super) fn id(&self) -> &str {
        match self {
            Self::Orchestrator(node) | Self::Specialist(node) | Self::Agent(node) => &node.id,
            Self::Model(node) => &node.id,
            Self::Transform(node) => &node.id,
        }
    }

    /// What people and models call it.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Orchestrator(node) | Self::Specialist(node) | Self::Agent(node) => &node.name,
            Self::Model(node) => &node.name,
            Self::Transform(node) => &node.name,
        }
    }
}

/// An edge.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EdgeDefinition {
    /// The node it leaves, or `START`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<String>,
    /// The nodes of a join: the target runs once all of them have finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2))]
    pub(super) sources: Option<Vec<String>>,
    /// The node it leads to, or `END`.
    pub(super) target: String,
    /// When it is taken; of several conditional edges of a node the first that holds is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<ConditionDefinition>")]
    pub(super) when: Option<Json>,
    /// Whether it is taken when no conditional edge of its node is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) otherwise: Option<bool>,
    /// `orchestrator`, `specialists` and `orchestration` say who delegates to whom and are not part of the
    /// flow; `flow` is what an edge is otherwise.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<String>,
    /// What people read beside it; not interpreted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) label: Option<String>,
}

/// When a conditional edge is taken: an expression over the state, or a comparison.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum ConditionDefinition {
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
pub(super) struct CompareDefinition {
    /// JSON pointer into the state, its first part a channel; `-1` is the last item of a list.
    #[schemars(regex(pattern = "^/."))]
    pub(super) path: String,
    /// The comparison.
    pub(super) op: Comparison,
    /// What is compared with; not needed for `exists`.
    #[serde(default)]
    pub(super) value: Json,
}

/// Every condition holds.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AllDefinition {
    /// The conditions.
    #[schemars(length(min = 1))]
    pub(super) all: Vec<ConditionDefinition>,
}

/// One condition holds.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AnyDefinition {
    /// The conditions.
    #[schemars(length(min = 1))]
    pub(super) any: Vec<ConditionDefinition>,
}

/// The condition does not hold.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NotDefinition {
    /// The condition.
    pub(super) not: Box<ConditionDefinition>,
}

/// Which model answers, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// `openai`, `scripted`, or the name of a configured OpenAI-compatible provider; `openai` when left out.
    #[serde(default = "default_provider")]
    pub provider: String,
    /// The provider's name of the model.
    #[serde(alias = "model_name")]
    #[schemars(length(min = 1))]
    pub model: String,
    /// Sampling temperature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Most tokens of one answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_tokens: Option<u32>,
    /// Nucleus sampling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Texts at which the answer ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Vec<String>>,
    /// Another address of the provider's API; refused unless the operator allows its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// Models to try, in order, when this one stays unavailable.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fallbacks: Vec<ModelSettings>,
    /// The replies of a `scripted` model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<Json>,
}

impl ModelSettings {
    /// The settings that `provider:model`, or a bare model name, stands for.
    pub fn parse(text: &str) -> Self {
        let (provider, model) = text.split_once(':').unwrap_or((DEFAULT_PROVIDER, text));
        Self {
            provider: provider.into(),
            model: model.into(),
            temperature: None,
            max_tokens: None,
            top_p: None,
            stop: None,
            base_url: None,
            fallbacks: Vec::new(),
            script: None,
        }
    }
}

fn default_provider() -> String {
    DEFAULT_PROVIDER.into()
}

/// A tool that agents of the definition may call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolDefinition {
    /// The name agents and models use.
    #[schemars(regex(pattern = "^[a-zA-Z0-9_-]{1,64}$"))]
    pub name: String,
    /// What the model is told about the tool.
    #[serde(default)]
    pub description: String,
    /// JSON Schema of the arguments, an object; none means any object.
    #[serde(default, alias = "input_schema", alias = "args_schema", skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Json>,
    /// An HTTP request that answers the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpTool>,
    /// A script in another language that answers the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<ToolRuntime>,
    /// What a repeated call would do; by the method of `http` when left out: `irreversible` for `POST` and
    /// `PATCH`, else `idempotent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<Effect>,
}

/// What a call does outside, and so whether it may be made again after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Nothing: it is made again, and nobody keeps account of it.
    Pure,
    /// The same however often it is made under one key: made again with the same key.
    Idempotent,
    /// Something that must not happen twice: never made again unless a person says that it did not happen.
    Irreversible,
}

impl Effect {
    /// The word in definitions and in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pure => "pure",
            Self::Idempotent => "idempotent",
            Self::Irreversible => "irreversible",
        }
    }

    /// The class that [`Effect::as_str`] writes as `text`.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Pure, Self::Idempotent, Self::Irreversible].into_iter().find(|effect| effect.as_str() == text)
    }
}

/// An HTTP request made of templates over the tool's arguments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpTool {
    /// The method; `GET` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Template of the address; inserted arguments are percent-encoded.
    pub url: String,
    /// Templates of header values; `{{ secrets.NAME }}` inserts a secret the operator allows.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub headers: IndexMap<String, String>,
    /// Template of the body, or a JSON value whose texts are templates; none sends no body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Json>,
    /// Seconds the request may take; bounded by the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub timeout_seconds: Option<f64>,
    /// Largest answer in bytes; bounded by the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_response_bytes: Option<u64>,
}

/// Code that came with the definition; never run in this process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolRuntime {
    /// The source text.
    pub script: String,
    /// The language; `python` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// Packages the script needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<String>,
}

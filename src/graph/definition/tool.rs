//! Tools a definition brings along.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

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
    /// `PATCH`, else `idempotent`. A script is `pure` then, unless the operator lets it reach the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<Effect>,
    /// What a good answer means; `text` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returns: Option<Returns>,
    /// Whether a person must approve of each call before it is made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub requires_approval: bool,
}

/// What a tool's good answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Returns {
    /// What the model reads.
    Text,
    /// JSON: `{"update": {channel: value}, "messages": [text or tool message]}`. The channels are written, the model
    /// reads the messages.
    Command,
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
    /// The language, `python` or `javascript`; `python` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// Packages the script needs, as pip writes them; they must be installed where scripts run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<String>,
}

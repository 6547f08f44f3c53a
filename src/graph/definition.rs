//! The agent definition as people write it: the serde types the JSON Schema is generated from.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// Which model answers, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// `openai`, `scripted`, or the name of a configured OpenAI-compatible provider.
    pub provider: String,
    /// The provider's name of the model.
    #[serde(alias = "model_name")]
    pub model: String,
    /// Sampling temperature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Most tokens of one answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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

/// A tool that agents of the definition may call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolDefinition {
    /// The name agents and models use.
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

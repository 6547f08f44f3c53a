//! Tools a definition brings along.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::{Authorization, NatsTool, Pagination, RetryDefinition};

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
    /// A request on a NATS subject that answers the call; also `runtime` with `"type": "nats"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nats: Option<NatsTool>,
    /// A script, or an MCP server, that answers the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<ToolRuntime>,
    /// What a repeated call would do; by the method of `http` when left out: `read` for `GET` and `HEAD`,
    /// `irreversible` for `POST` and `PATCH`, else `idempotent`. A script is `pure` then, unless the operator lets it
    /// reach the network, and `nats` is `irreversible`. For a tool of an MCP server the operator's word counts then, or
    /// the server's hints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<Effect>,
    /// What a good answer means; `text` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returns: Option<Returns>,
    /// Seconds one call may take; what answers it may have a limit of the operator's beside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub timeout_seconds: Option<f64>,
    /// When a call that failed is made again before anybody hears of it; what the node says when left out. Never one
    /// that is `irreversible` and may have taken effect. `retry_on` is `timeout` and `tool_error` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) retry: Option<RetryDefinition>,
    /// Most bytes of an answer; the rest is cut off, and the answer says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_output_bytes: Option<u64>,
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
    /// Nothing, and it depends on nothing outside: it is made again, and nobody keeps account of it.
    Pure,
    /// Nothing, but its answer depends on what is outside: it is made again, and nobody keeps account of it.
    Read,
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
            Self::Read => "read",
            Self::Idempotent => "idempotent",
            Self::Irreversible => "irreversible",
        }
    }

    /// The class that [`Effect::as_str`] writes as `text`.
    pub fn parse(text: &str) -> Option<Self> {
        let all = [Self::Pure, Self::Read, Self::Idempotent, Self::Irreversible];
        all.into_iter().find(|effect| effect.as_str() == text)
    }

    /// Whether a call may leave something changed outside, so that account is kept of it.
    pub fn changes_something(self) -> bool {
        self >= Self::Idempotent
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
    /// Header values: templates, in which `{{ secrets.NAME }}` inserts a secret the operator allows, or such a secret.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub headers: IndexMap<String, HeaderValue>,
    /// Template of the body, or a JSON value whose texts are templates; none sends no body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Json>,
    /// Seconds the request may take; bounded by the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub timeout_seconds: Option<f64>,
    /// Largest answer in bytes, all pages together; bounded by the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_response_bytes: Option<u64>,
    /// How the pages after the first are found; only with `GET`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pagination: Option<Pagination>,
    /// How the request gets the token it is sent with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Authorization>,
}

/// The value of a header.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "must be a text, or {\"secret\": NAME}")]
pub enum HeaderValue {
    /// A template over the tool's arguments.
    Template(String),
    /// A secret, whole.
    Secret(SecretRef),
}

/// A secret by its name; its value is never written in a definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretRef {
    /// The name: letters, digits, `_`, `-` and `.`.
    #[schemars(regex(pattern = "^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,252}$"))]
    pub secret: String,
}

/// What answers the calls of a tool besides a request: a script, which is never run in this process, or an MCP server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolRuntime {
    /// What it is; `script` when left out.
    #[serde(rename = "type", default)]
    pub kind: RuntimeKind,
    /// Of a script: the source text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub script: String,
    /// Of a script: the language, `python` or `javascript`; `python` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// Of a script: packages it needs, as pip writes them; they must be installed where scripts run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<String>,
    /// Of `mcp`: a server by the name the operator gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Of `mcp`: the address of a server that speaks streamable HTTP, on a host that HTTP tools may reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Of `mcp` with `url`: header values: texts, in which `{{ secrets.NAME }}` inserts a secret the operator allows,
    /// or such a secret.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub headers: IndexMap<String, HeaderValue>,
    /// Of `mcp`: the server's tool that this one is. Left out, the definition stands for all tools of the server, each
    /// called by the definition's name, `__` and its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// Of `mcp` without `tool`: the server's tools it stands for; all when left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<String>,
}

/// What a runtime is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeKind {
    /// Code that came with the definition.
    #[default]
    Script,
    /// A server that speaks the Model Context Protocol.
    Mcp,
}

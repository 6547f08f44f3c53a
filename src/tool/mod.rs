//! Port of tools: what an agent can do besides talking.
//!
//! **Invariant:** nothing that came in a message is executed in this process.
//! **Invariant:** an answer has at most [`MAX_RESULT_CHARS`] characters and a note; a cut is always said.

mod builtin;
mod code;
mod definition;
mod http;
mod mcp;
pub mod memory;
mod limits;
pub mod nats;
mod task;
mod toolbox;
mod unusable;

pub use builtin::{BUILTINS, builtin};
pub use code::{CodeRunner, Reply, Request, Sandboxing, Script, ScriptConfig};
pub use definition::{check_definition, validate_args};
pub use http::{AllowedHosts, SearchConfig, WEB_SEARCH, check_http};
pub use limits::CallPolicy;
pub use mcp::{McpConfig, McpLink, McpServer};
pub use nats::AllowedSubjects;
pub use task::task_spec;
pub use toolbox::{Config, Toolbox};

use std::{error::Error as StdError, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{
    graph::Effect,
    ids::UnixNanos,
    model::ToolSpec,
    secrets,
    telemetry::Pass,
    value::{Map, Name, State, ToolStatus, Value},
};

/// Characters of one answer; about 25,000 tokens, more than most models read well in one piece.
pub const MAX_RESULT_CHARS: usize = 100_000;

/// A call of a tool.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// The model's id of the call.
    pub id: &'a str,
    /// The arguments, already checked against the tool's schema.
    pub args: &'a Map,
    /// The state the call sees.
    pub state: &'a State,
    /// The time, for what the tool writes down.
    pub now: UnixNanos,
    /// The same on every attempt of this call; sent to tools that can tell a repeat.
    pub idempotency_key: &'a str,
    /// Most time that whoever calls gives it; `None` leaves it to the tool.
    pub limit: Option<Duration>,
}

/// A tool's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// What the model reads.
    pub content: String,
    /// Whether the call succeeded.
    pub status: ToolStatus,
    /// Channels it writes, beside the message with its answer.
    pub writes: Vec<(Name, Value)>,
    /// Whether it is known what the call did.
    pub outcome: CallOutcome,
    /// Whether `content` is a command that is still to be carried out.
    pub is_command: bool,
    /// The code of what went wrong, when this process made the call; not kept in the ledger.
    pub code: Option<&'static str>,
}

/// Whether it is known what a call did outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallOutcome {
    /// The answer says it.
    Known,
    /// The call went out, and no answer came back that says whether it took effect.
    Unknown,
    /// The call has reached nobody: it may be made again, whatever it does.
    NotMade,
}

impl Answer {
    /// A good answer that writes nothing.
    pub fn success(content: impl Into<String>) -> Self {
        Self::of(ToolStatus::Success, content.into())
    }

    /// An answer that tells the model what went wrong; the run goes on.
    pub fn error(content: impl Into<String>) -> Self {
        Self::of(ToolStatus::Error, content.into())
    }

    fn of(status: ToolStatus, content: String) -> Self {
        let outcome = CallOutcome::Known;
        Self { content, status, writes: Vec::new(), outcome, is_command: false, code: None }
    }

    /// The answer as the ledger keeps it.
    pub fn to_value(&self) -> Value {
        let writes = self
            .writes
            .iter()
            .map(|(channel, value)| Value::list(vec![Value::String(channel.clone()), value.clone()]));
        Value::map([
            ("content", Value::from(self.content.as_str())),
            ("status", Value::from(self.status.as_str())),
            ("writes", Value::list(writes.collect())),
        ])
    }

    /// Reads what [`Answer::to_value`] made.
    pub fn from_value(value: &Value) -> Option<Self> {
        let map = value.as_map()?;
        let status = match map.get("status")?.as_str()? {
            "success" => ToolStatus::Success,
            _ => ToolStatus::Error,
        };
        let pair = |pair: &Value| match pair.as_list()? {
            [channel, value] => Some((Name::from(channel.as_str()?), value.clone())),
            _ => None,
        };
        let writes = map.get("writes")?.as_list()?.iter().map(pair).collect::<Option<_>>()?;
        Some(Self { writes, ..Self::of(status, map.get("content")?.as_str()?.to_owned()) })
    }
}

/// Why a tool cannot answer. The model reads it as `CODE: sentence`; an operator finds the code in
/// TROUBLESHOOTING.md.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No tool has the name the model called.
    #[error("there is no tool '{name}'; the tools are: {}", known.join(", "))]
    Unknown {
        /// What the model called.
        name: String,
        /// What it may call.
        known: Vec<String>,
    },
    /// The arguments do not fit the tool's schema, or a template of the tool.
    #[error("{0}")]
    Arguments(String),
    /// A person has said no to the call.
    #[error("a person has rejected this call{}", .0.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    Rejected(Option<String>),
    /// The definition of the tool has mistakes.
    #[error("the definition of this tool has mistakes: {}", .0.join("; "))]
    Definition(Vec<String>),
    /// The tool is a script, and scripts are not run here.
    #[error(
        "this tool is a {language} script and needs a {language} runtime host, which this executor does not have; \
         the script was not run"
    )]
    RuntimeMissing {
        /// The language of the script.
        language: String,
    },
    /// The script is wrong, or has raised an exception.
    #[error("the script failed: {0}")]
    Script(String),
    /// The script was stopped by a limit.
    #[error("the script was stopped: {0}")]
    Limit(String),
    /// There is nothing to keep a script in.
    #[error("the script was not run: {0}")]
    Sandbox(String),
    /// The operator has not allowed the host.
    #[error("the host '{host}' is not allowed: HTTP_TOOL_ALLOWED_HOSTS does not name it")]
    HostNotAllowed {
        /// The host of the request.
        host: String,
    },
    /// The host has no public address.
    #[error(
        "the host '{host}' has no public address; private addresses are only reached with HTTP_TOOL_ALLOW_PRIVATE=true"
    )]
    PrivateAddress {
        /// The host of the request.
        host: String,
    },
    /// A header asks for a secret that this host must not get.
    #[error("{0}")]
    Secret(String),
    /// A secret that the tool names has no value for this definition.
    #[error(transparent)]
    Unresolved(#[from] secrets::Error),
    /// No answer in time.
    #[error("no complete answer within {:.1} seconds", .0.as_secs_f64())]
    Timeout(Duration),
    /// The tool was reached and did not do what was asked, or could not be reached.
    #[error("{0}")]
    Failed(String),
    /// The request went out, and no answer says what became of it.
    #[error("{0}")]
    Lost(String),
    /// The request has reached nobody.
    #[error("{0}")]
    NotSent(String),
    /// Nobody answers calls of this tool.
    #[error("nobody answers on the subject '{subject}'; the call was not made")]
    NoResponders {
        /// Where somebody should.
        subject: String,
    },
    /// The operator has not allowed the subject.
    #[error("the subject '{subject}' is not allowed: {reason}")]
    SubjectNotAllowed {
        /// The subject of the tool.
        subject: String,
        /// Why not.
        reason: &'static str,
    },
    /// No token was to be had.
    #[error("the token for this request could not be got: {0}")]
    Authorization(String),
    /// There is no provider of searches.
    #[error("web search is off: WEB_SEARCH_API_KEY is not set")]
    SearchOff,
    /// The tool answers with commands, and its answer is none that can be carried out.
    #[error("the answer of the tool is not a command that can be carried out; nothing was written. {0}")]
    Command(String),
    /// No MCP server goes by that name, or the executor has none.
    #[error("{0}")]
    McpServer(String),
    /// The MCP server cannot be reached, or does not speak the protocol.
    #[error("the MCP server '{server}' is not available: {reason}")]
    McpUnavailable {
        /// The server.
        server: String,
        /// Why.
        reason: String,
    },
    /// The MCP server has no such tool, or none that can be called.
    #[error("the MCP server '{server}' has no tool '{tool}' that can be called{why}")]
    McpTool {
        /// The server.
        server: String,
        /// The tool.
        tool: String,
        /// What is wrong with it, or which tools there are.
        why: String,
    },
    /// The client that all tools share could not be made.
    #[error("the HTTP client of the tools could not be made")]
    Client(#[source] Box<dyn StdError + Send + Sync>),
}

impl Error {
    /// The heading in TROUBLESHOOTING.md.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "TOOL_UNKNOWN",
            Self::Arguments(_) => "TOOL_ARGUMENTS",
            Self::Rejected(_) => "TOOL_REJECTED",
            Self::Definition(_) => "TOOL_DEFINITION",
            Self::RuntimeMissing { .. } => "TOOL_RUNTIME_MISSING",
            Self::Script(_) => "TOOL_SCRIPT",
            Self::Limit(_) => "TOOL_LIMIT",
            Self::Sandbox(_) => "TOOL_SANDBOX",
            Self::HostNotAllowed { .. } => "TOOL_HOST_NOT_ALLOWED",
            Self::PrivateAddress { .. } => "TOOL_PRIVATE_ADDRESS",
            Self::Secret(_) => "TOOL_SECRET",
            Self::Unresolved(error) => error.code(),
            Self::Timeout(_) => "TOOL_TIMEOUT",
            Self::Failed(_) | Self::Lost(_) | Self::NotSent(_) => "TOOL_FAILED",
            Self::NoResponders { .. } => "TOOL_NO_RESPONDERS",
            Self::SubjectNotAllowed { .. } => "TOOL_SUBJECT_NOT_ALLOWED",
            Self::Authorization(_) => "TOOL_AUTHORIZATION",
            Self::SearchOff => "TOOL_SEARCH_OFF",
            Self::Command(_) => "TOOL_COMMAND",
            Self::McpServer(_) => "TOOL_MCP_SERVER",
            Self::McpUnavailable { .. } => "TOOL_MCP_UNAVAILABLE",
            Self::McpTool { .. } => "TOOL_MCP_TOOL",
            Self::Client(_) => "TOOL_CLIENT",
        }
    }
}

impl Error {
    /// What is known of a call that ended so.
    fn outcome(&self) -> CallOutcome {
        match self {
            Self::Timeout(_) | Self::Lost(_) | Self::Limit(_) => CallOutcome::Unknown,
            Self::NotSent(_)
            | Self::NoResponders { .. }
            | Self::Authorization(_)
            | Self::Unresolved(_)
            | Self::McpUnavailable { .. } => CallOutcome::NotMade,
            Self::Unknown { .. }
            | Self::Arguments(_)
            | Self::Rejected(_)
            | Self::Definition(_)
            | Self::RuntimeMissing { .. }
            | Self::Script(_)
            | Self::Sandbox(_)
            | Self::HostNotAllowed { .. }
            | Self::PrivateAddress { .. }
            | Self::Secret(_)
            | Self::Failed(_)
            | Self::SubjectNotAllowed { .. }
            | Self::SearchOff
            | Self::Command(_)
            | Self::McpServer(_)
            | Self::McpTool { .. }
            | Self::Client(_) => CallOutcome::Known,
        }
    }
}

impl From<Error> for Answer {
    fn from(error: Error) -> Self {
        let outcome = error.outcome();
        Self { outcome, code: Some(error.code()), ..Self::error(cut(format!("{}: {error}", error.code()))) }
    }
}

/// Something an agent can call.
#[async_trait]
pub trait Tool: Send + Sync {
    /// What the model is told.
    fn spec(&self) -> &ToolSpec;

    /// What a call does outside this process. Calls that change something are kept in the ledger of effects.
    fn effect(&self) -> Effect;

    /// What its definition says about every call, whatever answers it.
    fn policy(&self) -> &CallPolicy {
        CallPolicy::none()
    }

    /// Finds out what a definition leaves open, once; the model is told what is known by then.
    async fn prepare(&self) {}

    /// Waits for a place among the calls that may be made at the same time; to be held during the call. Apart from
    /// the call, so that nothing has to be waited for between the intent of a call and the call.
    async fn turn(&self) -> Option<Pass> {
        None
    }

    /// Whether it ends its calls itself at [`Call::limit`], because it knows then what others cannot: whether anything
    /// was sent, and that it was the time that ended the call.
    fn keeps_limit(&self) -> bool {
        false
    }

    /// Answers a call. Whatever goes wrong is an answer with status `error`: the model reads it.
    async fn call(&self, call: Call<'_>) -> Answer;

    /// As [`Tool::call`], and tells how far the call is; most tools have nothing to tell.
    async fn call_telling(&self, call: Call<'_>, _tell: Tell<'_>) -> Answer {
        self.call(call).await
    }
}

/// How far a call is.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// What is done; it only grows.
    pub done: f64,
    /// What there is to do, if that is known.
    pub total: Option<f64>,
    /// In words.
    pub message: Option<String>,
}

/// Hears how far a call is.
pub type Tell<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// A tool that can be shared between runs.
pub type SharedTool = Arc<dyn Tool>;

/// One name in a definition for tools that somebody else lists.
#[async_trait]
pub trait Offer: Send + Sync {
    /// Finds out which tools they are, unless that is known. Fails when nobody can say, or when one that the
    /// definition names is missing.
    async fn list(&self) -> Result<(), Error>;

    /// The tools that were found last, in the order in which models are told of them.
    fn known(&self) -> Arc<[SharedTool]>;
}

/// An offer that can be shared between runs.
pub type SharedOffer = Arc<dyn Offer>;

/// `text`, or its first [`MAX_RESULT_CHARS`] characters and a note that says so.
fn cut(text: String) -> String {
    shorten(text, MAX_RESULT_CHARS)
}

/// `text`, or its first `limit` characters and a note that says so.
fn shorten(mut text: String, limit: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(limit) {
        text.truncate(end);
        text.push_str(&format!("\n[cut after {limit} characters; ask for less to see the rest]"));
    }
    text
}

/// `text`, or as many of its first characters as have `limit` bytes, and a note that says so.
fn shorten_bytes(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        text.truncate(text.floor_char_boundary(limit));
        text.push_str(&format!("\n[cut after {limit} bytes; ask for less to see the rest]"));
    }
    text
}

//! Port of tools: what an agent can do besides talking.
//!
//! **Invariant:** nothing that came in a message is executed in this process.

mod builtin;
mod http;

use std::sync::Arc;

use async_trait::async_trait;

use crate::{
    ids::UnixNanos,
    model::ToolSpec,
    value::{Map, Name, State, ToolStatus, Value},
};

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
}

impl Answer {
    /// A good answer that writes nothing.
    pub fn success(content: impl Into<String>) -> Self {
        Self { content: content.into(), status: ToolStatus::Success, writes: Vec::new() }
    }

    /// An answer that tells the model what went wrong; the run goes on.
    pub fn error(content: impl Into<String>) -> Self {
        Self { content: content.into(), status: ToolStatus::Error, writes: Vec::new() }
    }
}

/// Something an agent can call.
#[async_trait]
pub trait Tool: Send + Sync {
    /// What the model is told.
    fn spec(&self) -> &ToolSpec;

    /// Answers a call. Whatever goes wrong is an answer with status `error`: the model reads it.
    async fn call(&self, call: Call<'_>) -> Answer;
}

/// A tool that can be shared between runs.
pub type SharedTool = Arc<dyn Tool>;

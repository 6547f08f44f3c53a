//! The port of code: what whoever runs scripts is asked, and what it answers. As JSON this is also what goes between this
//! process and the hosts.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Map as JsonMap, Value as Json};

use super::Error;
use crate::telemetry::Pass;

/// What a runner is asked to do with a script.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request<'a> {
    /// Say which of these packages are missing. Runs no script.
    Check {
        /// Requirements, as pip writes them.
        dependencies: &'a [String],
    },
    /// Say what a model should be told of a tool.
    Describe {
        /// The script with the tool.
        #[serde(flatten)]
        script: Script<'a>,
    },
    /// Call a tool.
    Call {
        /// The script with the tool.
        #[serde(flatten)]
        script: Script<'a>,
        /// The arguments.
        args: Json,
        /// The model's id of the call.
        tool_call_id: &'a str,
        /// The same on every attempt of the call.
        idempotency_key: &'a str,
        /// The state the call sees.
        state: Json,
    },
}

/// A script and the tool in it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Script<'a> {
    /// The source text.
    pub script: &'a str,
    /// The tool's name.
    pub name: &'a str,
    /// Packages the script needs.
    pub dependencies: &'a [String],
    /// Characters of an answer that are of use.
    pub limit: usize,
    /// Seconds the script may take; the runner ends it a little later at the latest.
    pub seconds: f64,
    /// Bytes of memory the script may take.
    pub memory: u64,
}

/// What a runner answers. It comes from where a script ran, so nothing in it is trusted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Check`].
    Checked {
        /// The requirements that are not installed.
        missing: Vec<String>,
    },
    /// To [`Request::Describe`].
    Described {
        /// What the tool is for.
        description: String,
        /// JSON Schema of its arguments.
        parameters: Json,
    },
    /// To [`Request::Call`]: what the model reads.
    Text {
        /// The text.
        content: String,
        /// `error` when the tool says that it failed.
        #[serde(default)]
        status: String,
    },
    /// To [`Request::Call`]: channels to write and messages for the model.
    Command {
        /// Values by channel.
        update: JsonMap<String, Json>,
        /// What the model reads.
        messages: Vec<Json>,
    },
    /// The script took too long and was interrupted.
    OutOfTime,
    /// The script is wrong, or has raised an exception.
    Failed {
        /// Why.
        error: String,
    },
}

impl Reply {
    /// It answers another question than was asked.
    pub(super) fn unexpected(&self) -> Error {
        let kind = match self {
            Self::Checked { .. } => "checked",
            Self::Described { .. } => "described",
            Self::Text { .. } => "text",
            Self::Command { .. } => "command",
            Self::OutOfTime => "out_of_time",
            Self::Failed { .. } => "failed",
        };
        Error::Script(format!("its process gave an answer of the kind '{kind}', which was not asked for"))
    }
}

/// Runs scripts of one language outside of this process.
#[async_trait]
pub trait CodeRunner: Send + Sync {
    /// Waits for a place among the calls at the same time.
    async fn turn(&self) -> Pass;

    /// Does what `request` asks for, once. Dropping the future ends the script.
    async fn run(&self, request: &Request<'_>) -> Result<Reply, Error>;
}

//! CloudEvent ⇄ job: what a message asks for, and the event that reports how it ended. A pure codec.

mod decode;
mod encode;
mod envelope;
mod fields;
mod request;
mod spent;

pub use decode::{Decoded, decode};
pub use encode::{Encoded, MAX_EVENT_BYTES, ResultEvent, Stamp, Totals, encode_result, with_dataref};
pub use request::{Request, encode_request};
pub use spent::{Expense, Spent, restored, stored};

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map as JsonMap, Value as Json, value::RawValue};

use crate::ids::{CheckpointId, JobId, ThreadId};

/// How requests are read and results are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What the `type` of every CloudEvent starts with, without the last dot.
    pub type_prefix: String,
    /// Largest payload of a request in bytes. A definition may have 1 MiB; the rest is for input and envelope.
    pub max_request_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { type_prefix: "dev.my-platform".into(), max_request_bytes: (1 << 20) + (512 << 10) }
    }
}

/// What a message asks for. Serialises to the request the store keeps, and back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The id of this execution.
    pub job_id: JobId,
    /// The thread it runs on.
    pub thread_id: ThreadId,
    /// The graph, or why there is none to run.
    pub task: Task,
    /// State channels to write first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<JsonMap<String, Json>>,
    /// Continues an interrupted thread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Command>,
    /// Continues from this older checkpoint of the thread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_id: Option<CheckpointId>,
    /// How to run it.
    #[serde(default)]
    pub config: JobConfig,
    /// What to do when the thread is busy.
    #[serde(default)]
    pub multitask_strategy: MultitaskStrategy,
    /// W3C `traceparent` of whoever asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Correlation id without a `traceparent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
}

impl Job {
    /// A job of which only the ids are known; reported, never run.
    pub fn nameless(job_id: JobId, thread_id: ThreadId) -> Self {
        Self {
            job_id,
            thread_id,
            task: Task::Invalid(Vec::new()),
            input: None,
            command: None,
            checkpoint_id: None,
            config: JobConfig::default(),
            multitask_strategy: MultitaskStrategy::default(),
            traceparent: None,
            trace_id: None,
        }
    }
}

/// What to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// A definition that came with the message.
    Inline(Box<RawValue>),
    /// A stored definition: `name`, `name@version` or `sha256:…`.
    Stored(String),
    /// Nothing: the request is wrong in these ways, and the job ends as failed.
    Invalid(Vec<String>),
}

/// `command` of a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// The answer to the thread's interrupt, or answers by interrupt id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Json>,
    /// Channels to write before going on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<JsonMap<String, Json>>,
    /// Nodes to run next.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub goto: Vec<String>,
}

/// `config` of a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobConfig {
    /// Most supersteps; the definition's own number when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recursion_limit: Option<u32>,
    /// Seconds the job may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<f64>,
    /// When checkpoints are written.
    #[serde(default)]
    pub durability: Durability,
    /// What it may spend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// Scalars stored in every checkpoint's metadata.
    #[serde(default, skip_serializing_if = "JsonMap::is_empty")]
    pub metadata: JsonMap<String, Json>,
    /// Whether to go on with a thread that holds what the definition does not have.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_incompatible: bool,
    /// Labels; not interpreted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

impl JobConfig {
    /// The job's own time limit, if it asks for one.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout_seconds.map(Duration::from_secs_f64)
    }
}

/// When checkpoints are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Before the next superstep starts.
    #[default]
    Sync,
    /// While the next superstep runs.
    Async,
    /// Once, when the run ends.
    Exit,
}

/// What a job may spend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// Most tokens, read and written together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// Most dollars.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cost_usd: Option<f64>,
    /// Most requests to models, tries that failed included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_model_calls: Option<u64>,
}

/// What to do when the thread is busy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MultitaskStrategy {
    /// Wait for the thread.
    #[default]
    Enqueue,
    /// End as failed.
    Reject,
    /// Stop the running job, keep what it did.
    Interrupt,
    /// Stop the running job, undo what it did.
    Rollback,
}

impl MultitaskStrategy {
    /// Whether it ends the jobs it finds on the thread.
    pub fn stops_others(self) -> bool {
        matches!(self, Self::Interrupt | Self::Rollback)
    }

    /// The word in requests and in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enqueue => "enqueue",
            Self::Reject => "reject",
            Self::Interrupt => "interrupt",
            Self::Rollback => "rollback",
        }
    }

    /// The strategy that [`MultitaskStrategy::as_str`] writes as `text`.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Enqueue, Self::Reject, Self::Interrupt, Self::Rollback]
            .into_iter()
            .find(|strategy| strategy.as_str() == text)
    }
}

/// A failure as readers of results and events see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The code; a heading in TROUBLESHOOTING.md.
    #[serde(rename = "type")]
    pub code: String,
    /// One sentence; never a secret, a prompt or a stack trace.
    pub message: String,
    /// The node it happened in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Whether a new job with the same request may succeed.
    pub retryable: bool,
}

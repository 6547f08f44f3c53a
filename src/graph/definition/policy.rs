//! What any node may say about failing, waiting and repeating.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// When a node that failed is run again, within one attempt of the job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::graph) struct RetryDefinition {
    /// Most runs, the first one included; 3 when left out, 1 for no retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub(in crate::graph) max_attempts: Option<u32>,
    /// Seconds before the second run; 0.5 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3600))]
    pub(in crate::graph) initial_interval: Option<f64>,
    /// How much longer each wait is than the one before; 2 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub(in crate::graph) backoff_factor: Option<f64>,
    /// The longest wait in seconds; 128 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3600))]
    pub(in crate::graph) max_interval: Option<f64>,
    /// Whether up to a second is added to each wait, so that those who failed together do not come back together;
    /// true when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) jitter: Option<bool>,
    /// Which failures are worth another run; `model_unavailable` and `timeout` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub(in crate::graph) retry_on: Option<Vec<RetryOn>>,
}

/// A class of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RetryOn {
    /// No model answered: overloaded, unreachable, or slower than the operator allows.
    ModelUnavailable,
    /// The node, or a call of a tool, took longer than it may.
    Timeout,
    /// A tool failed. Calls that may not be made twice are never made again for it.
    ToolError,
    /// An expression, a template or a condition failed on this state.
    Expression,
    /// The model's answer does not satisfy `output_schema`.
    Output,
    /// Any failure but those that end the job whatever it does: its limits and its budget.
    Any,
}

/// When a node's writes are taken from an earlier run with the same inputs.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::graph) struct CacheDefinition {
    /// An expression over the state whose value tells the inputs apart; everything the node reads when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) key: Option<String>,
    /// Seconds for which the writes may be used again; a day when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_592_000))]
    pub(in crate::graph) ttl_seconds: Option<u32>,
}

/// Where the run goes on when the node has failed for good.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::graph) struct ErrorRouteDefinition {
    /// The node that runs next, or `END`.
    #[schemars(length(min = 1))]
    pub(in crate::graph) target: String,
    /// The channel that gets the error: `{code, message, node, class}`.
    #[schemars(length(min = 1))]
    pub(in crate::graph) writes: String,
}

//! Nodes at which a graph takes a decision: by a model, by a person, or by its author, who ends the run.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::ModelSettings;

/// The channel of a router's choice when it names none.
pub(in crate::graph) const ROUTE: &str = "route";
/// The channel of the answer to an approval when it names none.
pub(in crate::graph) const APPROVAL: &str = "approval";

/// A `router`: a model chooses where to go on.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::graph) struct RouteNode {
    /// The model; the definition's default when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) model: Option<ModelSettings>,
    /// Instructions beside the list of targets, which the model is told anyway: a template over the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) system_prompt: Option<String>,
    /// What is to be classified: a template over the state. The conversation in `messages` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) prompt: Option<String>,
    /// What can be chosen, by the name the model uses.
    #[schemars(extend("minProperties" = 1))]
    pub(in crate::graph) targets: IndexMap<String, RouteTarget>,
    /// Least confidence of a choice, from 0 to 1; 0 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub(in crate::graph) min_confidence: Option<f64>,
    /// The node, or `END`, that follows when the confidence is less or no valid choice was made. When left out, the
    /// job fails then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub(in crate::graph) otherwise: Option<String>,
    /// The channel that gets the choice, `{target, confidence, reasoning}`; `route` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) writes: Option<String>,
}

/// What a router can choose.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::graph) struct RouteTarget {
    /// What the model is told about it.
    pub(in crate::graph) description: String,
    /// The node it leads to, or `END`.
    #[schemars(length(min = 1))]
    pub(in crate::graph) node: String,
}

/// An `approval`: asks a person and waits for the answer.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::graph) struct AskNode {
    /// What is asked: a template over the state.
    pub(in crate::graph) question: String,
    /// What the person should see beside it: an expression over the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) details: Option<String>,
    /// JSON Schema of the answer; another answer is asked for again. Any answer will do when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) response_schema: Option<Json>,
    /// Seconds after which `default` is the answer; nothing but an answer ends the wait when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 31_622_400.0), extend("exclusiveMinimum" = 0))]
    pub(in crate::graph) deadline_seconds: Option<f64>,
    /// The answer when nobody has given one in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) default: Option<Json>,
    /// The channel that gets the answer; `approval` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) writes: Option<String>,
}

/// A `fail`: ends the job as failed.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::graph) struct StopNode {
    /// The `type` of the error in the result.
    #[schemars(regex(pattern = "^[A-Z][A-Z0-9_]{0,63}$"))]
    pub(in crate::graph) code: String,
    /// The error in words: a template over the state.
    pub(in crate::graph) message: String,
}

//! Variables of a template: what is filled in when an agent is stamped from it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// A variable that the prompts of `agent` and `model` nodes may read like a channel.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::graph) struct VariableDefinition {
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) description: Option<String>,
    /// Its value when nothing is filled in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) default: Option<Json>,
    /// Whether it must be filled in; yes, unless there is a default. One that need not be is an empty text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) required: Option<bool>,
    /// What was filled in. It is data: braces in it mean nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) value: Option<Json>,
}

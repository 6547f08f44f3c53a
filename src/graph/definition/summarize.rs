//! When and how an agent shortens its conversation.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ModelSettings;

/// Before a model call on a conversation that has grown too long, its older messages are replaced by a summary.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::graph) struct Summarize {
    /// Tokens of the conversation above which it is summarised.
    #[schemars(range(min = 1))]
    pub(in crate::graph) trigger_tokens: u64,
    /// Newest messages that stay as they are; 20 when left out. A call and its answers stay together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(in crate::graph) keep_messages: Option<u32>,
    /// The model that writes the summary; the agent's when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) model: Option<ModelSettings>,
    /// What that model is told; as with `system_prompt`, a template over the state unless the agent is an
    /// orchestrator or a specialist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::graph) prompt: Option<String>,
}

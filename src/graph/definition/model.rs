//! Which model answers, and how.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// The provider of a model that names none.
const DEFAULT_PROVIDER: &str = "openai";
/// The model of a node that names none, in a definition without a default.
pub const DEFAULT_MODEL: &str = "openai:gpt-4o-mini";

/// Which model answers, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// `openai`, `scripted`, or the name of a configured OpenAI-compatible provider; `openai` when left out.
    #[serde(default = "default_provider")]
    pub provider: String,
    /// The provider's name of the model.
    #[serde(alias = "model_name")]
    #[schemars(length(min = 1))]
    pub model: String,
    /// Sampling temperature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Most tokens of one answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
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

impl ModelSettings {
    /// The settings that `provider:model`, or a bare model name, stands for.
    pub fn parse(text: &str) -> Self {
        let (provider, model) = text.split_once(':').unwrap_or((DEFAULT_PROVIDER, text));
        Self {
            provider: provider.into(),
            model: model.into(),
            temperature: None,
            max_tokens: None,
            top_p: None,
            stop: None,
            base_url: None,
            fallbacks: Vec::new(),
            script: None,
        }
    }
}

fn default_provider() -> String {
    DEFAULT_PROVIDER.into()
}

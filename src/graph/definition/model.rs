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
    /// `openai`, `anthropic`, `scripted`, or the name of a configured provider; `openai` when left out.
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
    /// The interface an OpenAI-compatible provider is asked by; the provider's own unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<ModelApi>,
    /// How an `anthropic` model thinks before it answers; not at all unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking: Option<Thinking>,
    /// Lets an `anthropic` provider keep instructions, tools and conversation for the next call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_control: Option<CacheControl>,
    /// Keeps its answers, for whoever asks the whole same question again; kept nowhere unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<AnswerCaching>,
    /// Models to try, in order, when this one stays unavailable.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fallbacks: Vec<ModelSettings>,
    /// The replies of a `scripted` model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<Json>,
}

/// The interface of an OpenAI-compatible provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelApi {
    /// Chat Completions, which every compatible server speaks.
    ChatCompletions,
    /// Responses.
    Responses,
}

/// How an Anthropic model thinks, in Anthropic's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Thinking {
    /// Up to so many tokens.
    Enabled {
        /// Most tokens of thoughts, 1024 or more; they come on top of the default of `max_tokens`.
        #[schemars(range(min = 1024))]
        budget_tokens: u32,
    },
    /// As much as the model sees fit.
    Adaptive {},
}

/// What Anthropic keeps between calls, in Anthropic's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum CacheControl {
    /// Everything up to the end of the conversation, for a while.
    Ephemeral {
        /// How long: `5m` or `1h`; `5m` unless given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ttl: Option<CacheTtl>,
    },
}

/// How long a kept conversation lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CacheTtl {
    /// Five minutes.
    #[serde(rename = "5m")]
    FiveMinutes,
    /// One hour; writing costs more.
    #[serde(rename = "1h")]
    OneHour,
}

/// How long answers are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AnswerCaching {
    /// Seconds an answer counts; the operator may allow less.
    #[schemars(range(min = 1))]
    pub ttl_seconds: u64,
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
            api: None,
            thinking: None,
            cache_control: None,
            cache: None,
            fallbacks: Vec::new(),
            script: None,
        }
    }
}

fn default_provider() -> String {
    DEFAULT_PROVIDER.into()
}

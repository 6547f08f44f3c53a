//! Port of chat models. Home of reqwest for model calls.
//!
//! **Invariant:** a key never leaves this module except in the request's header for it.

mod address;
mod answer;
mod anthropic;
pub mod breaker;
mod cache;
mod exchange;
mod failure;
mod lenient;
pub mod limit;
mod openai;
mod price;
mod registry;
mod remote;
pub mod retry;
mod scripted;
mod sse;
#[cfg(test)]
mod tests;
mod turn;

pub use cache::{AnswerCache, CacheConfig};
pub use price::{Price, Prices};
pub use registry::{Auth, Config, Dialect, Models, Provider, Quirk, Timeouts};
pub use turn::Turn;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;

use crate::{
    graph::{ModelSettings, SharedSchema},
    value::{InvalidToolCall, Message, ToolCall, Usage, Value},
};

/// What a model is asked.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which model, and how. Shared: a scripted model's script may be large.
    pub settings: Arc<ModelSettings>,
    /// Instructions before the conversation.
    pub system_prompt: Option<String>,
    /// The conversation.
    pub messages: Vec<Arc<Message>>,
    /// Tools the model may ask for.
    pub tools: Vec<ToolSpec>,
    /// JSON Schema the answer must satisfy.
    pub output_schema: Option<SharedSchema>,
    /// Which try of this call it is, from 0; scripted failures depend on it.
    pub retry: u32,
}

/// What a model is told about a tool.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolSpec {
    /// The name it calls.
    pub name: Arc<str>,
    /// What it is for.
    pub description: String,
    /// JSON Schema of its arguments.
    pub parameters: SharedSchema,
}

/// A part of a model's answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Chunk {
    /// The provider answers, be it with thoughts or calls first: before everything else, and at most once. An answer that
    /// comes in one piece needs none.
    Begun,
    /// A piece of text.
    Text(String),
    /// The whole answer; always last, exactly once. Boxed, since every piece is moved as if it were one.
    Done(Box<Reply>),
}

/// A model's whole answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reply {
    /// The text: all pieces joined.
    pub text: String,
    /// The content blocks in the provider's shape, when they hold more than the text and the tool calls:
    /// thoughts, citations, calls of tools that the provider runs. Empty otherwise.
    pub blocks: Vec<Value>,
    /// Tools it asks for.
    pub tool_calls: Vec<ToolCall>,
    /// Calls whose arguments are not a JSON object.
    pub invalid_tool_calls: Vec<InvalidToolCall>,
    /// Tokens it took, when the provider says.
    pub usage: Option<Usage>,
    /// Why it stopped, in the provider's word.
    pub finish_reason: Option<String>,
    /// The model that answered, in the provider's word.
    pub model: Option<String>,
    /// Why the model would not answer.
    pub refusal: Option<String>,
}

/// Why a model did not answer. Never carries a key or a prompt.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such provider is configured.
    #[error("unknown model provider {0:?}; configured: {1}")]
    UnknownProvider(String, String),
    /// The provider's key is not configured.
    #[error("no API key for provider {provider:?}: set {variable}")]
    NoKey {
        /// The provider.
        provider: String,
        /// The environment variable that is missing.
        variable: String,
    },
    /// The definition asks for an address the operator does not allow.
    #[error("base_url {0:?} is not allowed; see MODEL_ALLOWED_HOSTS")]
    UrlRefused(String),
    /// The settings cannot be sent: a script that cannot be read, a number out of range.
    #[error("model settings: {0}")]
    Settings(String),
    /// The provider is overloaded or asks to wait.
    #[error("{provider} answered {status}: {message}")]
    Throttled {
        /// The provider.
        provider: String,
        /// The HTTP status.
        status: u16,
        /// The provider's message, shortened.
        message: String,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
    /// The provider failed, or the connection to it.
    #[error("{provider} is unavailable: {message}")]
    Unavailable {
        /// The provider.
        provider: String,
        /// What happened, shortened.
        message: String,
    },
    /// The provider refused the request; repeating it is no use.
    #[error("{provider} refused the request ({status}): {message}")]
    Rejected {
        /// The provider.
        provider: String,
        /// The HTTP status.
        status: u16,
        /// The provider's message, shortened.
        message: String,
    },
    /// The answer is not what the protocol allows.
    #[error("{provider} answered in a way that cannot be read: {message}")]
    Protocol {
        /// The provider.
        provider: String,
        /// What is wrong with it.
        message: String,
    },
    /// No piece of the answer came for too long, or the whole took too long.
    #[error("{provider} took longer than {limit:?}")]
    Timeout {
        /// The provider.
        provider: String,
        /// The limit that passed.
        limit: Duration,
    },
    /// The provider has failed so often that it is not asked for a while.
    #[error("{provider} has failed too often and is not asked for {} s", retry_in.as_secs_f64().ceil())]
    BreakerOpen {
        /// The provider.
        provider: String,
        /// When it may be asked again.
        retry_in: Duration,
    },
}

impl Error {
    /// The code operators find in TROUBLESHOOTING.md.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownProvider(..) => "MODEL_UNKNOWN_PROVIDER",
            Self::NoKey { .. } => "MODEL_NO_KEY",
            Self::UrlRefused(_) => "MODEL_URL_REFUSED",
            Self::Settings(_) => "MODEL_SETTINGS",
            Self::Throttled { .. } => "MODEL_THROTTLED",
            Self::Unavailable { .. } => "MODEL_UNAVAILABLE",
            Self::Rejected { .. } => "MODEL_REJECTED",
            Self::Protocol { .. } => "MODEL_PROTOCOL",
            Self::Timeout { .. } => "MODEL_TIMEOUT",
            Self::BreakerOpen { .. } => "MODEL_BREAKER_OPEN",
        }
    }

    /// How long to wait before the next try, when that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after, .. } => *retry_after,
            Self::BreakerOpen { retry_in, .. } => Some(*retry_in),
            Self::UnknownProvider(..)
            | Self::NoKey { .. }
            | Self::UrlRefused(_)
            | Self::Settings(_)
            | Self::Unavailable { .. }
            | Self::Rejected { .. }
            | Self::Protocol { .. }
            | Self::Timeout { .. } => None,
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Throttled { .. }
            | Self::Unavailable { .. }
            | Self::Timeout { .. }
            | Self::BreakerOpen { .. } => true,
            Self::UnknownProvider(..)
            | Self::NoKey { .. }
            | Self::UrlRefused(_)
            | Self::Settings(_)
            | Self::Rejected { .. }
            | Self::Protocol { .. } => false,
        }
    }
}

/// A provider of chat models.
#[async_trait]
pub trait ChatModel: Send + Sync {
    /// Asks, and streams the answer. Ends with [`Chunk::Done`] or with an error, never with neither. The question is
    /// shared: whoever asks and whoever answers need it for as long, and a conversation may be large.
    /// Dropping the stream stops the call.
    async fn call(&self, request: Arc<Request>) -> Result<BoxStream<'static, Result<Chunk, Error>>, Error>;

    /// Most tokens of an answer under these settings; `None` when only the model knows.
    fn longest_answer(&self, settings: &ModelSettings) -> Option<u64> {
        settings.max_tokens.map(u64::from)
    }
}

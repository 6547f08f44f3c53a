//! How often and how many at once a provider may be asked under one key: by all processes together, fairly between threads.
//!
//! Calls wait in a line per lane, a lane being a provider and its key. The lane's clerk draws from the [`Pool`] that all
//! processes share, for as many calls as wait, in one round trip; without a pool, or while its server is away, from this
//! process's share.
//!
//! **Invariant:** no answer of the pool and no silence of its server fails a call: it only decides when the call is made.

mod bucket;
mod clerk;
mod desk;
mod line;
mod server;
#[cfg(test)]
mod tests;

pub use bucket::Rates;
pub(super) use desk::{Desk, Lane, Place};
pub use server::ServerPool;

use std::time::Duration;

use async_trait::async_trait;

use super::{Request, ToolSpec};

/// Tokens of an answer that are counted before it is known, unless `max_tokens` is less: answers of agents are mostly short,
/// and what it really took is settled afterwards.
const USUAL_ANSWER: u64 = 1_000;
/// Bytes of a token: of English text about four, of code and other languages fewer; the settlement corrects it.
const BYTES_PER_TOKEN: usize = 4;

/// What a provider allows under one key. Nothing is limited unless it is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Calls in a minute.
    pub requests_per_minute: Option<u64>,
    /// Tokens in a minute, read and written.
    pub tokens_per_minute: Option<u64>,
    /// Calls at the same time.
    pub concurrent: Option<u64>,
}

impl Limits {
    /// Whether anything is limited.
    pub fn are_any(&self) -> bool {
        *self != Self::default()
    }
}

/// What a process asks of the pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// Calls it has under way.
    pub held: usize,
    /// How long the provider asks everybody to wait, from now on; zero when it asks for nothing.
    pub pause: Duration,
    /// Tokens that calls took beyond their estimates, or, below zero, did not take.
    pub settled: i64,
    /// What all processes may use together.
    pub rates: Rates,
    /// The calls it would make, in the order it would make them: the tokens of each, estimated.
    pub calls: Vec<u64>,
}

/// What the pool gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn {
    /// How many of the calls may be made now.
    pub granted: usize,
    /// When to ask again for the next one.
    pub wait: Duration,
    /// Processes that were seen lately, the asking one included.
    pub pods: u32,
    /// How long nobody may ask the provider.
    pub pause: Duration,
}

/// The pool did not answer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Away(pub String);

/// What all processes draw from.
#[async_trait]
pub trait Pool: Send + Sync {
    /// Draws from `lane`; tells at the same time that the process is there.
    async fn draw(&self, lane: &str, draw: &Draw) -> Result<Drawn, Away>;
}

/// Tokens that `request` will take, about.
pub(super) fn estimate(request: &Request) -> u64 {
    let said = request.messages.iter().map(|message| message.content.text().len());
    let tool =
        |tool: &ToolSpec| tool.name.len() + tool.description.len() + tool.parameters.json().to_string().len();
    let system = request.system_prompt.as_ref().map_or(0, String::len);
    let bytes = said.chain(request.tools.iter().map(tool)).sum::<usize>() + system;
    let answer = request.settings.max_tokens.map_or(USUAL_ANSWER, |most| USUAL_ANSWER.min(u64::from(most)));
    u64::try_from(bytes / BYTES_PER_TOKEN).unwrap_or(u64::MAX).saturating_add(answer)
}

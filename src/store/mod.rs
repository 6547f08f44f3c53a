//! Ports of durable state: checkpoints, jobs, thread ownership, outbox, dead letters. Home of sqlx and of msgpack.
//!
//! **Invariant:** nothing is written for a thread under an epoch that is no longer the thread's.

mod agents;
mod cache;
mod checkpoints;
mod deadlines;
mod effect;
mod inspect;
mod jobs;
pub mod langgraph;
mod letters;
pub mod memory;
pub mod postgres;
pub mod sqlite;
mod threads;
mod upkeep;

pub use agents::{AgentFilter, AgentRef, AgentView, Agents, NewAgent, PutAgent};
pub use cache::{CacheEntry, CacheKey, MAX_CACHED_BYTES, NodeCache};
pub use checkpoints::{Advance, Checkpoints, Commit, Put, Saved, TaskWrites};
pub use deadlines::{Deadline, Deadlines};
pub(crate) use effect::StoredEffect;
pub use effect::{EffectRow, EffectState, MAX_ANSWER_BYTES};
pub use inspect::{Expired, FIRST, Found, Grace, Inspect, JobView, Overview, Retention, Trail, Waiting};
pub use jobs::{
    Cancel, CancelKind, Claim, Ending, Finish, JobState, Jobs, NextJob, Offer, Renewed, StoredResult, Verdict,
};
pub use letters::{DeadLetter, Letter, LetterFilter, Letters, PAYLOAD_BYTES, Replayed, WholeLetter};
pub use threads::{
    Barred, ExpiredThreads, Held, Leave, OldThreads, ThreadFilter, ThreadSize, ThreadView, Threads,
};
pub use upkeep::{Doomed, Known, Met, Record, Target, Upkeep, Wished};

use crate::ids::{Epoch, ThreadId};

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The thread belongs to a later epoch: stop, and say nothing to the queue.
    #[error("thread {thread_id} is no longer owned under epoch {epoch}")]
    Fenced {
        /// The thread.
        thread_id: ThreadId,
        /// The epoch that was refused.
        epoch: Epoch,
    },
    /// The database did not answer, or not in time; the same call may succeed later.
    #[error("the database is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database refused the statement for what it carries; it will never succeed.
    #[error("the database refused the data: {0}")]
    Refused(String),
    /// A stored value cannot be decoded.
    #[error("stored {what} of thread {thread_id} cannot be read: {reason}")]
    Corrupt {
        /// The thread.
        thread_id: String,
        /// `checkpoint`, `blob`, `write`, `effect`, `request`, `deadline`, `dead letter` or `cache entry`.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A value cannot be written: NUL in a text, an integer beyond 64 bits.
    #[error("channel {channel} holds a value that cannot be stored: {reason}")]
    Unstorable {
        /// The channel.
        channel: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A commit is larger than `MAX_STATE_BYTES`.
    #[error(
        "the superstep changes {bytes} bytes of state, limit {limit} (MAX_STATE_BYTES); channel {channel} is the largest"
    )]
    TooLarge {
        /// The channel with the largest value.
        channel: String,
        /// Size of the commit.
        bytes: usize,
        /// What it may have.
        limit: usize,
    },
    /// The schema in the database cannot be brought up to date.
    #[error("migration failed: {0}")]
    Migration(String),
}

impl Error {
    /// The code operators find in TROUBLESHOOTING.md.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Fenced { .. } => "STORE_FENCED",
            Self::Unavailable(_) => "STORE_UNAVAILABLE",
            Self::Refused(_) => "STORE_REFUSED",
            Self::Corrupt { .. } => "STORE_CORRUPT",
            Self::Unstorable { .. } => "STORE_UNSTORABLE",
            Self::TooLarge { .. } => "STATE_TOO_LARGE",
            Self::Migration(_) => "STORE_MIGRATION",
        }
    }

    /// Whether the data of the call is at fault: the same call never succeeds, one with other data may.
    pub fn is_of_the_data(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Corrupt { .. } | Self::Unstorable { .. } | Self::TooLarge { .. } => true,
            Self::Fenced { .. } | Self::Unavailable(_) | Self::Migration(_) => false,
        }
    }
}

/// Most bytes of one commit unless the operator says otherwise: many times the context of any model, and small
/// beside what Postgres takes in one statement.
pub const MAX_STATE_BYTES: usize = 32 << 20;

/// All that a process needs of durable state.
pub trait Store:
    Checkpoints + Jobs + Letters + Upkeep + Inspect + Deadlines + Agents + Threads + NodeCache
{
}

impl<T: Checkpoints + Jobs + Letters + Upkeep + Inspect + Deadlines + Agents + Threads + NodeCache> Store
    for T
{
}

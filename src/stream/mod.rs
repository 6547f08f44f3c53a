//! Port of live run events: what happens in a run, as it happens, for whoever watches.
//!
//! **Invariant:** a run never waits for this port, and trouble behind it never fails a run.
//! **Invariant:** within an epoch `seq` grows by exactly 1, so a hole shows what was lost.

pub mod dragonfly;
mod emitter;
mod escape;
pub mod local;
pub mod memory;
mod shelf;
mod tokens;

pub use emitter::{Claimed, Emitter, Origin};
pub use shelf::{Away, MemoryShelf, Shelf};
pub use tokens::{Piece, TokenBuffer, TokenConfig};

use std::{fmt, str::FromStr, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use serde::Deserialize;

use crate::ids::{Epoch, ThreadId};

/// Largest event in bytes. Redis cuts off subscribers who fall 32 MB behind, and an event is sent in one piece; the
/// [`Emitter`] shortens what is larger, a [`Sink`] drops it.
pub const MAX_EVENT_BYTES: usize = 4 * 1024 * 1024;

/// What kind of event it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// A worker starts or resumes the job.
    AttemptStart,
    /// A piece of text from a model.
    LlmStream,
    /// A model is asked again; the text of the try before is no more.
    LlmRetry,
    /// A model has answered, and what that took.
    LlmEnd,
    /// A tool is about to run.
    ToolStart,
    /// A tool has run.
    ToolEnd,
    /// The state after a superstep.
    StateUpdate,
    /// The run waits for a person.
    Interrupt,
    /// Whatever a node emitted.
    Custom,
    /// The run failed.
    Error,
    /// The run is over; always last.
    End,
}

impl EventType {
    /// Every kind, in the order of its discriminant.
    pub const ALL: [Self; 11] = [
        Self::AttemptStart,
        Self::LlmStream,
        Self::LlmRetry,
        Self::LlmEnd,
        Self::ToolStart,
        Self::ToolEnd,
        Self::StateUpdate,
        Self::Interrupt,
        Self::Custom,
        Self::Error,
        Self::End,
    ];

    /// The name in the event.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AttemptStart => "on_attempt_start",
            Self::LlmStream => "on_llm_stream",
            Self::LlmRetry => "on_llm_retry",
            Self::LlmEnd => "on_llm_end",
            Self::ToolStart => "on_tool_start",
            Self::ToolEnd => "on_tool_end",
            Self::StateUpdate => "on_state_update",
            Self::Interrupt => "on_interrupt",
            Self::Custom => "on_custom",
            Self::Error => "error",
            Self::End => "end",
        }
    }

    /// Whether the event may be dropped under pressure; all others are kept and sent again.
    pub fn may_be_dropped(self) -> bool {
        matches!(self, Self::LlmStream)
    }
}

/// The id of a stream entry: `<epoch>-<seq>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryId {
    /// The claim under which the event was emitted.
    pub epoch: Epoch,
    /// From 1, one more per event of the claim.
    pub seq: u64,
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.seq)
    }
}

/// A text that is not `<epoch>-<seq>`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("must be <epoch>-<seq>, two numbers joined by a dash")]
pub struct NotAnEntryId;

impl FromStr for EntryId {
    type Err = NotAnEntryId;

    fn from_str(text: &str) -> Result<Self, NotAnEntryId> {
        let (epoch, seq) = text.split_once('-').ok_or(NotAnEntryId)?;
        let epoch = epoch.parse().map_err(|_| NotAnEntryId)?;
        let seq = seq.parse().map_err(|_| NotAnEntryId)?;
        Ok(Self { epoch: Epoch(epoch), seq })
    }
}

/// An event on its way to its readers, already encoded.
#[derive(Clone, Debug)]
pub struct Event {
    /// The thread it belongs to; names the channel and the stream.
    pub thread_id: ThreadId,
    /// Its place.
    pub id: EntryId,
    /// What kind it is.
    pub event_type: EventType,
    /// The JSON kept in the stream.
    pub entry: Bytes,
    /// The JSON published on the channel; `None` when it is the same.
    pub publish: Option<Bytes>,
}

/// Where events go.
#[async_trait]
pub trait Sink: Send + Sync {
    /// Takes an event without waiting. What it costs to keep is bounded; token events may be dropped.
    fn emit(&self, event: Event);

    /// Waits until everything emitted so far has been sent or given up, or until `limit` has passed.
    async fn flush(&self, limit: Duration);

    /// The newest event readers of a thread can see; `None` when there is none or the server does not answer.
    async fn last(&self, thread_id: &ThreadId) -> Option<LastEvent>;

    /// Asks the server for a sign of life.
    async fn ping(&self) -> bool;
}

/// The newest event of a thread.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct LastEvent {
    /// `<epoch>-<seq>`.
    pub id: String,
    /// The event's type.
    pub event_type: String,
    /// The job it belongs to.
    pub job_id: String,
    /// The attempt of the job.
    pub attempt: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_ids_are_ordered_by_epoch_then_seq_and_read_back_as_written() {
        let id = |text: &str| text.parse::<EntryId>();
        assert!(id("41-17").expect("valid") < id("42-1").expect("valid"));
        assert_eq!(id("41-17").expect("valid").to_string(), "41-17");
        for wrong in ["", "41", "41-", "-17", "a-b", "41-17-1"] {
            assert_eq!(id(wrong), Err(NotAnEntryId), "{wrong}");
        }
    }

    #[test]
    fn all_lists_every_kind_at_its_discriminant() {
        for (place, kind) in EventType::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place);
        }
    }
}

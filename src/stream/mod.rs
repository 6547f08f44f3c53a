//! Port of live run events: what happens in a run, as it happens, for whoever watches.
//!
//! **Invariant:** a run never waits for this port, and trouble behind it never fails a run.
//! **Invariant:** within an epoch `seq` grows by exactly 1, so a hole shows what was lost.

pub mod dragonfly;
pub mod memory;
mod tokens;

pub use tokens::{Piece, TokenBuffer};

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value as Json, json, value::RawValue};

use crate::{
    ids::{Clock, Epoch, JobId, Namespace, ThreadId},
    value::State,
};

/// What kind of event it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// A worker starts or resumes the job.
    AttemptStart,
    /// A piece of text from a model.
    LlmStream,
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
    /// The name in the event.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AttemptStart => "on_attempt_start",
            Self::LlmStream => "on_llm_stream",
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

    /// Waits until everything emitted so far has been sent, or until `limit` has passed.
    async fn flush(&self, limit: Duration);

    /// Asks the server for a sign of life.
    async fn ping(&self) -> bool;
}

/// Emits the events of one claim.
pub struct Emitter {
    sink: Arc<dyn Sink>,
    clock: Arc<dyn Clock>,
    thread_id: ThreadId,
    job_id: JobId,
    epoch: Epoch,
    attempt: u32,
    tokens: TokenConfig,
    /// The last `seq` given out. Held while the event is handed to the sink, so that order is order of `seq`.
    seq: Mutex<u64>,
}

/// How text from models is cut into events.
#[derive(Clone, Copy, Debug)]
pub struct TokenConfig {
    /// Whether events on the channel carry the text so far.
    pub cumulative_text: bool,
    /// Least time between two pieces of one message.
    pub window: Duration,
    /// Most bytes of text a message may publish per second; longer texts come in larger pieces.
    pub bytes_per_second: usize,
}

impl Default for TokenConfig {
    fn default() -> Self {
        Self { cumulative_text: true, window: Duration::from_millis(40), bytes_per_second: 128 * 1024 }
    }
}

/// Who an event is about.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The node; empty for events of the whole run.
    pub node: &'a str,
    /// The namespace of its graph.
    pub ns: &'a Namespace,
}

#[derive(Serialize)]
struct Envelope<'a, D: Serialize> {
    event_type: &'static str,
    data: D,
    id: String,
    seq: u64,
    thread_id: &'a str,
    job_id: &'a str,
    attempt: u32,
    node: &'a str,
    ns: &'a str,
    ts: String,
}

/// Whose events an [`Emitter`] emits.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// The thread.
    pub thread_id: ThreadId,
    /// The job.
    pub job_id: JobId,
    /// The claim.
    pub epoch: Epoch,
    /// The attempt of the job.
    pub attempt: u32,
}

impl Emitter {
    /// An emitter whose first event has `seq` 1.
    pub fn new(sink: Arc<dyn Sink>, clock: Arc<dyn Clock>, claimed: Claimed, tokens: TokenConfig) -> Self {
        let Claimed { thread_id, job_id, epoch, attempt } = claimed;
        Self { sink, clock, thread_id, job_id, epoch, attempt, tokens, seq: Mutex::new(0) }
    }

    /// How text is cut into events.
    pub fn tokens(&self) -> TokenConfig {
        self.tokens
    }

    /// Emits an event whose data is `data`.
    pub fn emit(&self, event_type: EventType, origin: Origin<'_>, data: impl Serialize) {
        self.send(event_type, origin, &data, None::<&()>);
    }

    /// Emits the state after a superstep, with its step and checkpoint.
    pub fn state_update(&self, ns: &Namespace, state: &State, step: i64, checkpoint_id: &str) {
        #[derive(Serialize)]
        struct Update<'a> {
            #[serde(flatten)]
            state: &'a State,
            step: i64,
            checkpoint_id: &'a str,
        }
        let origin = Origin { node: "", ns };
        self.emit(EventType::StateUpdate, origin, Update { state, step, checkpoint_id });
    }

    /// Emits a piece of a model's text.
    pub fn token(&self, origin: Origin<'_>, message_id: &str, piece: &Piece<'_>) {
        #[derive(Serialize)]
        struct Token<'a> {
            token: &'a RawValue,
            offset: usize,
            #[serde(skip_serializing_if = "Option::is_none")]
            cumulative_text: Option<&'a RawValue>,
            message_id: &'a str,
        }
        let short = Token { token: &piece.token, offset: piece.offset, cumulative_text: None, message_id };
        let cumulative = piece.cumulative_text.as_deref().filter(|_| self.tokens.cumulative_text);
        let Some(cumulative_text) = cumulative else {
            return self.send(EventType::LlmStream, origin, &short, None::<&()>);
        };
        let full = Token { cumulative_text: Some(cumulative_text), ..short };
        if piece.last {
            self.send(EventType::LlmStream, origin, &full, None::<&()>);
        } else {
            self.send(EventType::LlmStream, origin, &short, Some(&full));
        }
    }

    fn send<D: Serialize, P: Serialize>(
        &self,
        event_type: EventType,
        origin: Origin<'_>,
        entry: &D,
        publish: Option<&P>,
    ) {
        let ts = self.clock.now().rfc3339_millis();
        let mut last = self.seq.lock().unwrap_or_else(PoisonError::into_inner);
        *last += 1;
        let id = EntryId { epoch: self.epoch, seq: *last };
        let entry = self.encode(event_type, origin, id, &ts, entry);
        let publish = publish.map(|data| self.encode(event_type, origin, id, &ts, data));
        self.sink.emit(Event { thread_id: self.thread_id.clone(), id, event_type, entry, publish });
    }

    fn encode(
        &self,
        event_type: EventType,
        origin: Origin<'_>,
        id: EntryId,
        ts: &str,
        data: impl Serialize,
    ) -> Bytes {
        let envelope = Envelope {
            event_type: event_type.as_str(),
            data,
            id: id.to_string(),
            seq: id.seq,
            thread_id: self.thread_id.as_str(),
            job_id: self.job_id.as_str(),
            attempt: self.attempt,
            node: origin.node,
            ns: origin.ns.as_str(),
            ts: ts.to_owned(),
        };
        serde_json::to_vec(&envelope).expect("events have text keys and finite numbers").into()
    }
}

/// The data of an `error` event and the `error` of a result.
pub fn error_data(error: &Json) -> Json {
    json!({ "error": error })
}

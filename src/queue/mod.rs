//! Port of the message broker: deliveries in, settlements, results and dead letters out; requests to cancel, and
//! what repairs look at.

pub mod control;
pub mod k_sink;
pub mod memory;
pub mod nats;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde_json::Value as Json;

use crate::{
    ids::ThreadId,
    store::{DeadLetter, StoredResult},
};
use control::ControlRequest;

/// Most bytes that one call of [`Queue::next`] brings, beside its first message: when less room than this is left,
/// ask for one message at a time.
pub const PULL_BYTES: usize = 16 * 1024 * 1024;

/// Why the broker did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The broker did not answer, or not in time; the same call may succeed later.
    #[error("the message broker is unavailable: {0}")]
    Unavailable(String),
    /// The broker refused; it needs an operator.
    #[error("the message broker refused: {0}")]
    Refused(String),
    /// A stream or consumer exists that cannot work.
    #[error("{object} cannot be used: {reason}")]
    Unusable {
        /// The stream or consumer.
        object: String,
        /// Which setting is wrong, what it is and what it must be.
        reason: String,
    },
    /// Nobody is there who could answer a request to an executor.
    #[error("no executor is connected to the message broker")]
    NoExecutor,
}

impl Error {
    /// The code operators find in TROUBLESHOOTING.md.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "QUEUE_UNAVAILABLE",
            Self::Refused(_) => "QUEUE_REFUSED",
            Self::Unusable { .. } => "QUEUE_UNUSABLE",
            Self::NoExecutor => "NO_EXECUTOR",
        }
    }
}

/// A message that was delivered and waits to be settled.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The stream it came from.
    pub stream: String,
    /// Its place there.
    pub stream_seq: u64,
    /// Its subject.
    pub subject: String,
    /// Its headers as they came, sorted by name; repeated ones keep their order.
    pub headers: Vec<(String, String)>,
    /// Its payload.
    pub payload: Bytes,
    /// How often it was delivered, this time included.
    pub deliveries: u64,
    /// Where its settlement goes.
    pub receipt: Receipt,
}

/// Names one delivery to the broker.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Receipt(pub String);

/// What becomes of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Done: remove the message.
    Ack,
    /// Deliver it again, after a while.
    Nak(Duration),
    /// Never deliver it again.
    Term,
    /// Say nothing: the message belongs to somebody else now.
    Abandon,
}

/// The message broker.
#[async_trait]
pub trait Queue: Send + Sync {
    /// The next messages: at least one if any come within about a second, at most `max`.
    ///
    /// Let the future end: of a dropped one, messages may be under way that wait for their redelivery then.
    /// An error may come at once; pause before the next call.
    async fn next(&self, max: usize) -> Result<Vec<Delivery>, Error>;

    /// Settles a delivery; returns once the broker has confirmed it. Takes seconds when the broker is away.
    async fn settle(&self, receipt: &Receipt, settlement: Settlement) -> Result<(), Error>;

    /// Tells the broker that these deliveries are still being worked on.
    async fn progress(&self, receipts: &[Receipt]);

    /// Stores a result in the results stream; returns once the broker has confirmed it.
    /// The event id is the message id, so a repeat within the broker's window is dropped.
    async fn publish(&self, result: &StoredResult) -> Result<(), Error>;

    /// Stores a request in the execution stream; returns its place there once the broker has confirmed it.
    async fn submit(&self, request: &Submission) -> Result<u64, Error>;

    /// Stores a dead letter in its stream.
    async fn bury(&self, letter: &DeadLetter) -> Result<(), Error>;

    /// Asks the broker for a sign of life.
    async fn ping(&self) -> bool;

    /// What people ask of jobs, from now on: each request goes to one of the processes that listen. Requests that
    /// nobody can read are answered here. Goes on by itself after an outage; what was asked meanwhile is lost, and
    /// whoever asked knows it.
    async fn control(&self) -> Result<BoxStream<'static, ControlRequest>, Error>;

    /// Answers such a request; an answer that cannot be sent is lost.
    async fn answer(&self, reply: &Receipt, answer: &Json);

    /// Tells every process that these threads have something to look up in the store. It may be lost.
    async fn notice(&self, threads: &[ThreadId]);

    /// Such notices, from now on, one's own included.
    async fn notices(&self) -> Result<BoxStream<'static, Vec<ThreadId>>, Error>;

    /// Messages of the execution stream behind `after_seq` that were delivered, are not settled and were stored
    /// longer than `older_than` ago; the oldest first, at most `limit`, and not more than some megabytes. Ask
    /// again with the last one's place until none is left. Workers may hold them: the store knows.
    ///
    /// Empty for a stream that keeps what is settled: it does not say what is unsettled.
    async fn lingering(
        &self,
        after_seq: u64,
        older_than: Duration,
        limit: usize,
    ) -> Result<Vec<Stored>, Error>;

    /// The message at this place of the execution stream.
    async fn fetch(&self, stream_seq: u64) -> Result<Option<Stored>, Error>;

    /// Removes a message from the execution stream; it may be gone already.
    async fn discard(&self, stream_seq: u64) -> Result<(), Error>;

    /// What the broker has to say about messages it gave up, at most `max`, without waiting. Each comes again
    /// until its receipt is settled with [`Settlement::Ack`].
    async fn advisories(&self, max: usize) -> Result<Vec<Advisory>, Error>;

    /// Stores a message in the execution stream once more; returns its new place.
    async fn resubmit(&self, replay: &Replay) -> Result<u64, Error>;
}

/// A message as it is stored in the execution stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The stream.
    pub stream: String,
    /// Its place there.
    pub stream_seq: u64,
    /// Its subject.
    pub subject: String,
    /// Its headers, sorted by name; repeated ones keep their order.
    pub headers: Vec<(String, String)>,
    /// Its payload.
    pub payload: Bytes,
    /// How long ago it was stored, by this machine's clock and the broker's.
    pub age: Duration,
}

/// The broker's word about a message that it does not deliver any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advisory {
    /// What happened.
    pub kind: AdvisoryKind,
    /// The stream.
    pub stream: String,
    /// The message's place there.
    pub stream_seq: u64,
    /// How often it was delivered.
    pub deliveries: u64,
    /// Where the settlement of the advisory itself goes.
    pub receipt: Receipt,
}

/// Why a message is not delivered any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdvisoryKind {
    /// It was delivered as often as the consumer allows; it is still stored.
    MaxDeliveries,
    /// Somebody terminated it; mostly we ourselves, after its dead letter was stored.
    Terminated,
}

/// A dead letter on its way back into the execution stream.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Its subject.
    pub subject: String,
    /// The headers it had; orders to the broker and what dead letters add are left out.
    pub headers: Vec<(String, String)>,
    /// The payload.
    pub payload: Bytes,
    /// The new message id.
    pub msg_id: String,
    /// What it repeats: `Executor-Replay-Of`.
    pub replay_of: String,
}

/// A request on its way into the execution stream.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The job's id: the message id, so that a repeat within the broker's window is dropped.
    pub job_id: String,
    /// Headers.
    pub headers: Vec<(String, String)>,
    /// The payload.
    pub payload: Bytes,
}

/// Beginnings of the headers that a replay leaves out: orders to the broker, and what dead letters add.
const NOT_REPLAYED: [&str; 2] = ["nats-", "executor-"];

impl Replay {
    /// The headers of the new message.
    fn all_headers(&self) -> Vec<(String, String)> {
        let replayed = |name: &str| {
            let name = name.to_ascii_lowercase();
            !NOT_REPLAYED.iter().any(|beginning| name.starts_with(beginning))
        };
        let kept = self.headers.iter().filter(|(name, _)| replayed(name)).cloned();
        let added = [("Nats-Msg-Id", &self.msg_id), ("Executor-Replay-Of", &self.replay_of)];
        let added = added.map(|(name, text)| (name.to_owned(), text.clone()));
        let mut headers: Vec<_> = kept.chain(added).collect();
        headers.sort_by(|one, two| one.0.cmp(&two.0));
        headers
    }
}

/// An HTTP door that gets every result as well.
#[async_trait]
pub trait ResultSink: Send + Sync {
    /// Delivers a structured CloudEvent, trying again for a while; what stays undelivered is logged.
    async fn deliver(&self, event: Bytes);
}

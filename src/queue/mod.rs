//! Port of the message broker: deliveries in, settlements, results and dead letters out.

pub mod k_sink;
pub mod memory;
pub mod nats;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::store::{DeadLetter, StoredResult};

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
}

impl Error {
    /// The code operators find in TROUBLESHOOTING.md.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "QUEUE_UNAVAILABLE",
            Self::Refused(_) => "QUEUE_REFUSED",
            Self::Unusable { .. } => "QUEUE_UNUSABLE",
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

/// An HTTP door that gets every result as well.
#[async_trait]
pub trait ResultSink: Send + Sync {
    /// Delivers a structured CloudEvent, trying again for a while; what stays undelivered is logged.
    async fn deliver(&self, event: Bytes);
}

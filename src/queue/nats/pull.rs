//! Pulls messages, never more than were asked for.
//!
//! **Invariant:** when a pull returns, no request of it is open at the server: a message that answered a
//! request nobody listens to would wait for its redelivery.
//!
//! Two requests make a pull: one that waits a second for a single message, and, when one came, one that takes
//! what else is there without waiting. One request for many would hold back the first message until the second
//! is over. The second is left out when the first message says that no other waits. Neither has a heartbeat
//! (async-nats 0.51 loses the wake-up after one), and `messages()` is no choice because it fetches 200 messages ahead.

use std::{
    pin::pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_nats::jetstream::{self, consumer::PullConsumer};
use futures::{Stream, StreamExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::{ApiError, Nats, Provision, check, provision};
use crate::{
    queue::{Delivery, Error, PULL_BYTES, Receipt},
    telemetry::metric,
};

/// How long a pull waits for its first message: short, because an open pull delays a drain and outlives a
/// server's restart by seconds.
const EXPIRES: Duration = Duration::from_secs(1);
/// How much later than that the server's word "nothing came" may arrive. A deleted consumer on nats-server
/// 2.9 never says it.
pub(super) const GRACE: Duration = Duration::from_secs(1);
/// The slowest network a message is given time for on its way here: one that has begun to come must not be left.
const SLOWEST_KILOBYTES_PER_SECOND: u32 = 4 * 1024;
/// Most messages of one pull; a burst of large ones ends at [`PULL_BYTES`] before.
pub(super) const MAX_BATCH: usize = 256;

/// How long streams and consumer may take to be looked at and created: eight requests of some milliseconds.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(5);

/// The consumer all pulls go to; replaced when it has to be created again.
#[derive(Debug)]
pub(super) struct Pull(Mutex<PullConsumer>);

impl Pull {
    pub(super) fn new(consumer: PullConsumer) -> Self {
        Self(Mutex::new(consumer))
    }

    pub(super) fn ack_wait(&self) -> Duration {
        check::effective_ack_wait(&self.consumer().cached_info().config)
    }

    fn consumer(&self) -> PullConsumer {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, consumer: PullConsumer) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = consumer;
    }
}

/// How a request ended.
pub(super) enum End {
    /// The server said that it is over, or it got all it asked for.
    Answered,
    /// The server's word that something is wrong, or no word at all.
    Broken(String),
}

impl Nats {
    /// See [`Queue::next`](crate::queue::Queue::next). Takes at most about 2 s when the server is well.
    ///
    /// Do not drop the future: what the server has sent by then waits for its redelivery.
    pub(super) async fn pull(&self, max: usize) -> Result<Vec<Delivery>, Error> {
        if max == 0 {
            return Ok(Vec::new());
        }
        self.connected().await?;
        let consumer = self.pull.consumer();
        let info = &consumer.cached_info().config;
        let expires = Some(info.max_expires).filter(|limit| !limit.is_zero()).unwrap_or(EXPIRES).min(EXPIRES);
        let allowed = usize::try_from(info.max_batch).ok().filter(|limit| *limit > 0).unwrap_or(MAX_BATCH);
        let max = max.min(allowed).min(MAX_BATCH);

        let (mut deliveries, mut pending) = (Vec::new(), 0);
        let grace = GRACE + self.transfer();
        let deadline = Instant::now() + expires + grace;
        let first = consumer.batch().max_messages(1).expires(expires).messages().await;
        let end = match first {
            Ok(messages) => collect(messages, &mut deliveries, &mut pending, deadline).await,
            Err(error) => End::Broken(error.to_string()),
        };
        if deliveries.is_empty() {
            return match end {
                End::Answered => {
                    shows_pending(0);
                    Ok(deliveries)
                }
                End::Broken(reason) => self.repair(reason).await,
            };
        }
        if max > 1 && pending > 0 {
            let deadline = Instant::now() + grace;
            let rest = consumer.fetch().max_messages(max - 1).max_bytes(PULL_BYTES).messages().await;
            // Whatever is wrong shows in the next pull; what has come must be handed out now.
            if let Ok(messages) = rest {
                collect(messages, &mut deliveries, &mut pending, deadline).await;
            }
        }
        shows_pending(pending);
        Ok(deliveries)
    }

    /// How long the largest message of this server may be on its way.
    fn transfer(&self) -> Duration {
        let largest = self.client.server_info().max_payload.min(check::MAX_MESSAGE_BYTES);
        let kilobytes = u32::try_from(largest / 1024).expect("31 MiB fit");
        Duration::from_secs(1) * kilobytes / SLOWEST_KILOBYTES_PER_SECOND
    }

    /// Finds out why a pull broke. Creates the consumer again when it is gone and we may.
    async fn repair(&self, reason: String) -> Result<Vec<Delivery>, Error> {
        match provision::consumer_info(&self.jetstream, &self.config).await {
            Ok(_) => Err(Error::Unavailable(reason)),
            Err(ApiError::Other(error)) => Err(error),
            Err(ApiError::NotFound) if self.config.provision == Provision::Expect => Err(Error::Unusable {
                object: format!("consumer {}", self.config.consumer),
                reason: "it was deleted, and provisioning is off".into(),
            }),
            Err(ApiError::NotFound) => {
                tracing::warn!(consumer = %self.config.consumer, "consumer is gone, creating it again");
                let ensure = Box::pin(provision::ensure(&self.jetstream, &self.config));
                let consumer = timeout(REPAIR_TIMEOUT, ensure)
                    .await
                    .map_err(|_| Error::Unavailable("the consumer could not be created in time".into()))??;
                self.pull.replace(consumer);
                Ok(Vec::new())
            }
        }
    }
}

fn shows_pending(pending: u64) {
    metrics::gauge!(metric::QUEUE_PENDING).set(f64::from(u32::try_from(pending).unwrap_or(u32::MAX)));
}

/// Moves all messages of one request into `deliveries`, and how many were left after the last one into `pending`.
pub(super) async fn collect(
    messages: impl Stream<Item = Result<jetstream::Message, async_nats::Error>>,
    deliveries: &mut Vec<Delivery>,
    pending: &mut u64,
    deadline: Instant,
) -> End {
    let mut messages = pin!(messages);
    loop {
        match timeout_at(deadline, messages.next()).await {
            Ok(Some(Ok(message))) => match delivery(message) {
                Some((delivery, left)) => {
                    deliveries.push(delivery);
                    *pending = left;
                }
                None => tracing::warn!("message without a place in a stream was skipped"),
            },
            Ok(Some(Err(error))) => return End::Broken(error.to_string()),
            Ok(None) => return End::Answered,
            Err(_) => return End::Broken("the broker did not answer a pull in time".into()),
        }
    }
}

/// The message, and how many wait behind it.
fn delivery(message: jetstream::Message) -> Option<(Delivery, u64)> {
    let info = message.info().ok()?;
    let pending = info.pending;
    let (stream, stream_seq) = (info.stream.to_owned(), info.stream_sequence);
    let deliveries = u64::try_from(info.delivered).ok()?;
    let message = message.message;
    let mut headers: Vec<(String, String)> = Vec::new();
    for (name, values) in message.headers.iter().flat_map(async_nats::HeaderMap::iter) {
        headers.extend(values.iter().map(|value| (name.to_string(), value.as_str().to_owned())));
    }
    // The client keeps headers in a hash map; a stable sort keeps repeated ones in order.
    headers.sort_by(|one, two| one.0.cmp(&two.0));
    let delivery = Delivery {
        stream,
        stream_seq,
        subject: message.subject.to_string(),
        headers,
        payload: message.payload,
        deliveries,
        receipt: Receipt(message.reply?.to_string()),
    };
    Some((delivery, pending))
}

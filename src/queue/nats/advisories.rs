//! What the server says about messages it does not deliver any more, kept in a stream.
//!
//! **Invariant:** an advisory that says nothing to us is settled here; nobody waits for its redelivery.

use std::sync::{Mutex, PoisonError};

use async_nats::jetstream::consumer::PullConsumer;
use serde::Deserialize;
use tokio::time::Instant;

use super::{
    Nats, provision,
    pull::{End, GRACE, MAX_BATCH, collect},
};
use crate::queue::{Advisory, AdvisoryKind, Delivery, Error, Settlement};

/// The consumer of advisories; none when the server does not keep them.
#[derive(Debug)]
pub(super) struct Advisories(Mutex<Option<PullConsumer>>);

/// The parts of an advisory that are looked at.
#[derive(Deserialize)]
struct Event {
    r#type: String,
    stream: String,
    stream_seq: u64,
    #[serde(default)]
    deliveries: u64,
}

impl Advisories {
    pub(super) fn new(consumer: Option<PullConsumer>) -> Self {
        Self(Mutex::new(consumer))
    }

    fn consumer(&self) -> Option<PullConsumer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, consumer: Option<PullConsumer>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = consumer;
    }
}

impl Nats {
    pub(super) async fn pull_advisories(&self, max: usize) -> Result<Vec<Advisory>, Error> {
        self.connected().await?;
        let Some(consumer) = self.advisories.consumer().filter(|_| max > 0) else { return Ok(Vec::new()) };
        let mut deliveries = Vec::new();
        let deadline = Instant::now() + GRACE;
        let end = match consumer.fetch().max_messages(max.min(MAX_BATCH)).messages().await {
            Ok(messages) => collect(messages, &mut deliveries, &mut 0, deadline).await,
            Err(error) => End::Broken(error.to_string()),
        };
        if let (End::Broken(reason), true) = (end, deliveries.is_empty()) {
            tracing::debug!(%reason, "advisories cannot be read, looking for their consumer");
            let consumer = Box::pin(provision::ensure_advisories(&self.jetstream, &self.config)).await?;
            self.advisories.replace(consumer);
            return Ok(Vec::new());
        }
        let mut advisories = Vec::with_capacity(deliveries.len());
        for delivery in deliveries {
            match read(&delivery) {
                Some(advisory) => advisories.push(advisory),
                None => self.send_settlement(&delivery.receipt, Settlement::Ack).await?,
            }
        }
        Ok(advisories)
    }
}

/// `None` for another kind of advisory than the two that matter.
fn read(delivery: &Delivery) -> Option<Advisory> {
    let event: Event = serde_json::from_slice(&delivery.payload).ok()?;
    let kind = match event.r#type.rsplit('.').next()? {
        "max_deliver" => AdvisoryKind::MaxDeliveries,
        "terminated" => AdvisoryKind::Terminated,
        _ => return None,
    };
    let (stream_seq, deliveries) = (event.stream_seq, event.deliveries);
    Some(Advisory { kind, stream: event.stream, stream_seq, deliveries, receipt: delivery.receipt.clone() })
}

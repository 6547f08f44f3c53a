//! Stores results, requests and dead letters in their streams.
//!
//! **Invariant:** every message has an id, so that a repeat is dropped: a publish that was reported as timed out
//! may still arrive after a reconnect.

use std::{str::FromStr, time::Duration};

use async_nats::{
    HeaderMap,
    header::{HeaderName, HeaderValue, NATS_EXPECTED_STREAM, NATS_MESSAGE_ID},
    jetstream::{
        self, ErrorCode,
        context::{PublishError, PublishErrorKind},
    },
};
use bytes::Bytes;
use tokio::time::timeout;

use super::{Nats, check, refusal};
use crate::{
    queue::{Error, Replay, Submission},
    store::{DeadLetter, StoredResult},
};

/// How long storing a message may take, from the call to the confirmation.
pub(super) const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest error in a dead letter's header, in characters; the rest is in the store's copy.
const MAX_ERROR_CHARS: usize = 1024;
/// Headers with this prefix are orders to the server.
const ORDERS: &str = "nats-";

impl Nats {
    pub(super) async fn publish_result(&self, result: &StoredResult) -> Result<(), Error> {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, value(&result.event_id));
        headers.insert("Content-Type", "application/cloudevents+json");
        let ack = self.store(result.subject.clone(), headers, result.event.clone()).await?;
        if ack.duplicate {
            tracing::debug!(job_id = %result.job_id, "result was in the stream already");
        }
        Ok(())
    }

    pub(super) async fn publish_request(&self, request: &Submission) -> Result<u64, Error> {
        let mut headers = HeaderMap::new();
        for (name, text) in &request.headers {
            if !name.to_ascii_lowercase().starts_with(ORDERS) {
                headers.append(header_name(name)?, value(text));
            }
        }
        headers.insert(NATS_MESSAGE_ID, value(&request.job_id));
        let ack = self.store(self.config.submit_subject.clone(), headers, request.payload.clone()).await?;
        Ok(ack.sequence)
    }

    pub(super) async fn publish_replay(&self, replay: &Replay) -> Result<u64, Error> {
        let mut headers = HeaderMap::new();
        for (name, text) in replay.all_headers() {
            headers.append(header_name(&name)?, value(&text));
        }
        // The old subject may belong to another stream by now.
        headers.insert(NATS_EXPECTED_STREAM, value(&self.config.execution_stream));
        let ack = self.store(replay.subject.clone(), headers, replay.payload.clone()).await?;
        Ok(ack.sequence)
    }

    pub(super) async fn publish_letter(&self, letter: &DeadLetter) -> Result<(), Error> {
        let mut headers = HeaderMap::new();
        for (name, text) in &letter.headers {
            headers.append(header_name(&harmless(name))?, value(text));
        }
        let error: String = letter.error.chars().take(MAX_ERROR_CHARS).collect();
        headers.insert("Executor-Reason", letter.reason);
        headers.insert("Executor-Error", value(&error));
        headers.insert("Executor-Stream-Seq", letter.stream_seq.to_string());
        headers.insert("Executor-Deliveries", letter.deliveries.to_string());
        headers.insert(NATS_MESSAGE_ID, value(&format!("{}:{}", letter.stream, letter.stream_seq)));
        let subject = format!("agent.dlq.{}", letter.reason);
        let whole = async {
            // A record that JetStream cannot keep would be confirmed by some servers all the same.
            if letter.payload.len() > check::MAX_MESSAGE_BYTES {
                return Err(Stored::TooLarge);
            }
            self.store(subject.clone(), headers.clone(), letter.payload.clone()).await
        };
        match whole.await {
            Err(Stored::TooLarge) => {
                // The headers we add may push a full-size message over the limit of the server or the stream.
                headers.insert("Executor-Payload-Bytes", letter.payload.len().to_string());
                self.store(subject, headers, Bytes::new()).await?;
                Ok(())
            }
            result => Ok(result.map(|_| ())?),
        }
    }

    /// Publishes and waits for the confirmation.
    async fn store(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<jetstream::publish::PublishAck, Stored> {
        self.connected().await.map_err(Stored::Not)?;
        let publish = async { self.jetstream.publish_with_headers(subject, headers, payload).await?.await };
        match timeout(PUBLISH_TIMEOUT, publish).await {
            Ok(result) => result.map_err(|error| not_stored(&error)),
            Err(_) => Err(Stored::Not(Error::Unavailable("a message was not confirmed in time".into()))),
        }
    }
}

/// Why a message was not stored.
enum Stored {
    /// It is larger than the server takes.
    TooLarge,
    /// Another reason.
    Not(Error),
}

impl From<Stored> for Error {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::TooLarge => {
                Self::Refused("the message is larger than the server or the stream takes".into())
            }
            Stored::Not(error) => error,
        }
    }
}

fn not_stored(error: &PublishError) -> Stored {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => Stored::TooLarge,
        // Also what a server says while JetStream is not up yet, so it may pass.
        PublishErrorKind::StreamNotFound
        | PublishErrorKind::TimedOut
        | PublishErrorKind::BrokenPipe
        | PublishErrorKind::MaxAckPending => Stored::Not(Error::Unavailable(error.to_string())),
        PublishErrorKind::WrongLastMessageId | PublishErrorKind::WrongLastSequence => {
            Stored::Not(Error::Refused(error.to_string()))
        }
        PublishErrorKind::Other => {
            let source = std::error::Error::source(error);
            match source.and_then(|source| source.downcast_ref::<jetstream::Error>()) {
                Some(answer) if answer.error_code() == ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => {
                    Stored::TooLarge
                }
                Some(answer) => Stored::Not(refusal(answer)),
                None => Stored::Not(Error::Unavailable(error.to_string())),
            }
        }
    }
}

/// An order such as Nats-Expected-Stream was for the stream the message came from. The old name must not even
/// be a part of the new one: nats-server 2.9 would find it there, and overlook the real Nats-Msg-Id.
fn harmless(name: &str) -> String {
    match name.split_at_checked(ORDERS.len()) {
        Some((prefix, rest)) if prefix.eq_ignore_ascii_case(ORDERS) => format!("Executor-Original-{rest}"),
        _ => name.to_owned(),
    }
}

fn header_name(name: &str) -> Result<HeaderName, Error> {
    HeaderName::from_str(name).map_err(|_| Error::Refused(format!("{name:?} is no name of a header")))
}

/// A header's value on one line.
fn value(text: &str) -> HeaderValue {
    HeaderValue::from(text.replace(char::is_control, " "))
}

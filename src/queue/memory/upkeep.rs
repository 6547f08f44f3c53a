//! Requests, notices and repairs of the broker in memory, and what tests do in the place of people and of a
//! failing server.

use std::time::Duration;

use bytes::Bytes;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use serde_json::Value as Json;
use tokio::sync::{
    broadcast::error::RecvError,
    mpsc::{self, error::TrySendError},
    oneshot,
};
use tokio::time::Instant;

use super::{ADVISORY, MAX_DELIVER, Memory, Message, Place, STREAM, SUBJECT, State};
use crate::{
    ids::ThreadId,
    queue::{
        Error, Receipt, Replay, Stored,
        control::{Cancel, ControlRequest, refusal},
    },
};

/// Requests that wait for a slow listener.
const WAITING_REQUESTS: usize = 64;

impl Memory {
    /// An empty broker that gives a message up after so many deliveries.
    pub fn giving_up_after(max_deliver: u64) -> Self {
        debug_assert!((1..=MAX_DELIVER).contains(&max_deliver));
        Self { max_deliver, ..Self::default() }
    }

    /// What is delivered now never comes again, though it stays stored: what some versions of nats-server do to
    /// messages in flight when they are killed.
    pub fn strand(&self) {
        let mut state = self.state();
        for message in state.messages.values_mut().filter(|message| message.place == Place::Delivered) {
            message.place = Place::Stranded;
        }
    }

    /// Puts another message in this place, delivered to nobody who lives, as a stream that was made anew has it.
    pub fn replace(&self, seq: u64, payload: Bytes) {
        let message = Message {
            subject: SUBJECT.to_owned(),
            headers: Vec::new(),
            payload,
            stored: Instant::now(),
            deliveries: 1,
            place: Place::Stranded,
        };
        self.state().messages.insert(seq, message);
    }

    /// Asks as somebody outside does, on this subject with this body; `None` when nobody listens.
    pub fn ask(&self, subject: &str, body: &[u8]) -> Option<oneshot::Receiver<Json>> {
        let (answer, answered) = oneshot::channel();
        let mut state = self.state();
        let cancel = match Cancel::read(subject, body) {
            Ok(cancel) => cancel,
            Err(problem) => {
                let _ = answer.send(refusal("BAD_REQUEST", &problem));
                return Some(answered);
            }
        };
        state.asked += 1;
        let reply = format!("asked/{}", state.asked);
        state.listeners.retain(|listener| !listener.is_closed());
        let mut request = ControlRequest { cancel, reply: Some(Receipt(reply.clone())) };
        for listener in &state.listeners {
            request = match listener.try_send(request) {
                Ok(()) => {
                    state.asking.insert(reply, answer);
                    return Some(answered);
                }
                Err(TrySendError::Full(request) | TrySendError::Closed(request)) => request,
            };
        }
        None
    }

    pub(super) fn listen(&self) -> Result<BoxStream<'static, ControlRequest>, Error> {
        let (listener, requests) = mpsc::channel(WAITING_REQUESTS);
        self.available()?.listeners.push(listener);
        let next = |mut requests: mpsc::Receiver<_>| async move { Some((requests.recv().await?, requests)) };
        Ok(stream::unfold(requests, next).boxed())
    }

    pub(super) fn tell(&self, reply: &Receipt, answer: &Json) {
        if let Some(asking) = self.state().asking.remove(&reply.0) {
            // Whoever asked may not wait any more.
            let _ = asking.send(answer.clone());
        }
    }

    pub(super) fn hear(&self) -> Result<BoxStream<'static, Vec<ThreadId>>, Error> {
        drop(self.available()?);
        let next = |mut notices: tokio::sync::broadcast::Receiver<_>| async move {
            loop {
                match notices.recv().await {
                    Ok(threads) => return Some((threads, notices)),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return None,
                }
            }
        };
        Ok(stream::unfold(self.notices.subscribe(), next).boxed())
    }

    pub(super) fn settle_advisory(&self, number: &str) -> Result<(), Error> {
        let number: u64 = number
            .parse()
            .map_err(|_| Error::Refused(format!("{ADVISORY}{number} is no receipt of this broker")))?;
        self.available()?.advisories.remove(&number);
        Ok(())
    }

    pub(super) fn find_lingering(
        &self,
        after_seq: u64,
        older_than: Duration,
        limit: usize,
    ) -> Result<Vec<Stored>, Error> {
        let state = self.available()?;
        let reached = after_seq + 1..=state.delivered_seq.max(after_seq + 1);
        let places = state.messages.range(reached).map(|(seq, _)| *seq);
        let stored = places.filter(|seq| *seq <= state.delivered_seq).filter_map(|seq| state.stored(seq));
        Ok(stored.take_while(|message| message.age > older_than).take(limit).collect())
    }

    pub(super) fn push_again(&self, replay: &Replay) -> Result<u64, Error> {
        let mut state = self.available()?;
        if let Some(seq) = state.submitted.get(&replay.msg_id) {
            return Ok(*seq);
        }
        let seq = state.push(&replay.subject, replay.all_headers(), replay.payload.clone());
        state.submitted.insert(replay.msg_id.clone(), seq);
        drop(state);
        self.arrived.notify_waiters();
        Ok(seq)
    }
}

impl State {
    pub(super) fn stored(&self, stream_seq: u64) -> Option<Stored> {
        let message = self.messages.get(&stream_seq)?;
        Some(Stored {
            stream: STREAM.into(),
            stream_seq,
            subject: message.subject.clone(),
            headers: message.headers.clone(),
            payload: Bytes::clone(&message.payload),
            age: message.stored.elapsed(),
        })
    }
}

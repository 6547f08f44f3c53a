//! The broker in memory, for tests and single-process runs: one work queue, results, dead letters, requests.
//!
//! It settles by place in the stream and not by delivery, as JetStream does: the ack of a worker that was
//! overtaken removes the message under its successor. Time passes only when a test says so:
//! [`Memory::expire`] is the end of `ack_wait`, [`Memory::wake`] the end of every nak's delay. Only the age of a
//! stored message follows the clock of tokio.
//!
//! **Invariant:** a message is in exactly one place: waiting, delivered, delayed, stranded, or gone.

mod upkeep;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde_json::Value as Json;
use tokio::{
    sync::{Notify, broadcast, mpsc, oneshot},
    time::{Instant, timeout},
};

use super::{
    Advisory, AdvisoryKind, Delivery, Error, Queue, Receipt, Replay, Settlement, Stored, Submission,
    control::ControlRequest,
};
use crate::{
    ids::ThreadId,
    store::{DeadLetter, StoredResult},
};

/// How long `next` waits for a first message, as the real one does.
const WAIT: Duration = Duration::from_secs(1);
/// The stream's name in deliveries.
const STREAM: &str = "AGENT_EXECUTION";
/// The subject of requests.
const SUBJECT: &str = "agent.execute.request";
/// Deliveries after which a message is given up, as the real one is set up.
const MAX_DELIVER: u64 = 100;
/// Notices that a slow listener may be behind.
const NOTICES: usize = 64;

/// The broker in memory.
#[derive(Debug)]
pub struct Memory {
    state: Mutex<State>,
    arrived: Notify,
    notices: broadcast::Sender<Vec<ThreadId>>,
    max_deliver: u64,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            arrived: Notify::new(),
            notices: broadcast::channel(NOTICES).0,
            max_deliver: MAX_DELIVER,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// By place in the stream.
    messages: BTreeMap<u64, Message>,
    /// Places of requests, by message id.
    submitted: HashMap<String, u64>,
    last_seq: u64,
    results: Vec<StoredResult>,
    letters: Vec<DeadLetter>,
    progressed: Vec<Receipt>,
    /// By their own number.
    advisories: BTreeMap<u64, Advisory>,
    last_advisory: u64,
    /// The highest place that was ever delivered.
    delivered_seq: u64,
    listeners: Vec<mpsc::Sender<ControlRequest>>,
    /// Who waits for answers, by receipt.
    asking: HashMap<String, oneshot::Sender<Json>>,
    asked: u64,
    outage: bool,
    loses_settlements: bool,
    /// What job ids begin with whose results are refused.
    refuses: Option<&'static str>,
}

#[derive(Debug)]
struct Message {
    subject: String,
    headers: Vec<(String, String)>,
    payload: Bytes,
    stored: Instant,
    deliveries: u64,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Waiting,
    Delivered,
    /// Given back with a delay.
    Delayed,
    /// Stored, but never delivered again.
    Stranded,
}

impl Memory {
    /// An empty broker.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn available(&self) -> Result<MutexGuard<'_, State>, Error> {
        let state = self.state();
        if state.outage { Err(Error::Unavailable("outage".into())) } else { Ok(state) }
    }

    /// Lets every call fail from now on.
    pub fn stop(&self) {
        self.state().outage = true;
    }

    /// Refuses results of jobs whose ids begin so, for good.
    pub fn refuse_results(&self, prefix: &'static str) {
        self.state().refuses = Some(prefix);
    }

    /// Lets every settlement go unanswered from now on, and nothing else.
    pub fn lose_settlements(&self) {
        self.state().loses_settlements = true;
    }

    /// Ends the outage; nothing was lost in it.
    pub fn start(&self) {
        self.state().outage = false;
        self.arrived.notify_waiters();
    }

    /// Puts a message into the work queue as a publisher other than us does; returns its place.
    pub fn push(&self, headers: Vec<(String, String)>, payload: Bytes) -> u64 {
        let seq = self.state().push(SUBJECT, headers, payload);
        self.arrived.notify_waiters();
        seq
    }

    /// `ack_wait` ends for all delivered messages: they will be delivered again.
    pub fn expire(&self) {
        self.release(Place::Delivered);
    }

    /// The delay of every nak ends.
    pub fn wake(&self) {
        self.release(Place::Delayed);
    }

    fn release(&self, from: Place) {
        let mut state = self.state();
        let mut exhausted = Vec::new();
        for (seq, message) in state.messages.iter_mut().filter(|(_, message)| message.place == from) {
            if message.redeliver(self.max_deliver) {
                exhausted.push((*seq, message.deliveries));
            }
        }
        for (seq, deliveries) in exhausted {
            state.advise(AdvisoryKind::MaxDeliveries, seq, deliveries);
        }
        drop(state);
        self.arrived.notify_waiters();
    }

    /// Messages that are not settled for good.
    pub fn unsettled(&self) -> usize {
        self.state().messages.len()
    }

    /// The results, oldest first.
    pub fn results(&self) -> Vec<StoredResult> {
        self.state().results.clone()
    }

    /// The dead letters, oldest first.
    pub fn letters(&self) -> Vec<DeadLetter> {
        self.state().letters.clone()
    }

    /// Deliveries progress was reported for, in order, repeats included.
    pub fn progressed(&self) -> Vec<Receipt> {
        self.state().progressed.clone()
    }
}

impl State {
    fn push(&mut self, subject: &str, headers: Vec<(String, String)>, payload: Bytes) -> u64 {
        self.last_seq += 1;
        let (subject, stored) = (subject.to_owned(), Instant::now());
        let message = Message { subject, headers, payload, stored, deliveries: 0, place: Place::Waiting };
        self.messages.insert(self.last_seq, message);
        self.last_seq
    }

    fn take(&mut self, max: usize) -> Vec<Delivery> {
        let waiting = self.messages.iter_mut().filter(|(_, message)| message.place == Place::Waiting);
        let deliver = |(seq, message): (&u64, &mut Message)| {
            message.place = Place::Delivered;
            message.deliveries += 1;
            self.delivered_seq = self.delivered_seq.max(*seq);
            Delivery {
                stream: STREAM.into(),
                stream_seq: *seq,
                subject: message.subject.clone(),
                headers: message.headers.clone(),
                payload: message.payload.clone(),
                deliveries: message.deliveries,
                receipt: Receipt(format!("{seq}/{}", message.deliveries)),
            }
        };
        waiting.take(max).map(deliver).collect()
    }

    fn advise(&mut self, kind: AdvisoryKind, stream_seq: u64, deliveries: u64) {
        self.last_advisory += 1;
        let receipt = Receipt(format!("{ADVISORY}{}", self.last_advisory));
        self.advisories.insert(
            self.last_advisory,
            Advisory { kind, stream: STREAM.into(), stream_seq, deliveries, receipt },
        );
    }

    /// Takes a message back; an advisory when it had its last delivery.
    fn give_back(&mut self, seq: u64, delay: Duration, max_deliver: u64) {
        let Some(message) = self.messages.get_mut(&seq) else { return };
        if !delay.is_zero() {
            message.place = Place::Delayed;
        } else if message.redeliver(max_deliver) {
            let deliveries = message.deliveries;
            self.advise(AdvisoryKind::MaxDeliveries, seq, deliveries);
        }
    }
}

impl Message {
    /// Lets it be delivered again; true when it has been delivered too often for that.
    fn redeliver(&mut self, max_deliver: u64) -> bool {
        let exhausted = self.deliveries >= max_deliver;
        self.place = if exhausted { Place::Stranded } else { Place::Waiting };
        exhausted
    }
}

/// What receipts of advisories begin with.
const ADVISORY: &str = "advisory/";

/// The place in the stream; which delivery it was does not matter, as for JetStream.
fn seq_of(receipt: &Receipt) -> Result<u64, Error> {
    let seq = receipt.0.split('/').next().and_then(|seq| seq.parse().ok());
    seq.ok_or_else(|| Error::Refused(format!("{:?} is no receipt of this broker", receipt.0)))
}

#[async_trait]
impl Queue for Memory {
    async fn next(&self, max: usize) -> Result<Vec<Delivery>, Error> {
        let first = async {
            loop {
                // Listen before looking, or a message that comes in between is missed.
                let arrived = self.arrived.notified();
                let deliveries = self.available()?.take(max);
                if !deliveries.is_empty() || max == 0 {
                    return Ok(deliveries);
                }
                arrived.await;
            }
        };
        timeout(WAIT, first).await.unwrap_or_else(|_| Ok(Vec::new()))
    }

    async fn settle(&self, receipt: &Receipt, settlement: Settlement) -> Result<(), Error> {
        if settlement == Settlement::Abandon {
            return Ok(());
        }
        if self.state().loses_settlements {
            return Err(Error::Unavailable("no answer to a settlement".into()));
        }
        if let Some(number) = receipt.0.strip_prefix(ADVISORY) {
            return self.settle_advisory(number);
        }
        let seq = seq_of(receipt)?;
        let mut state = self.available()?;
        match settlement {
            Settlement::Ack => drop(state.messages.remove(&seq)),
            Settlement::Term => {
                if let Some(message) = state.messages.remove(&seq) {
                    state.advise(AdvisoryKind::Terminated, seq, message.deliveries);
                }
            }
            Settlement::Nak(delay) => state.give_back(seq, delay, self.max_deliver),
            Settlement::Abandon => {}
        }
        drop(state);
        self.arrived.notify_waiters();
        Ok(())
    }

    async fn progress(&self, receipts: &[Receipt]) {
        if let Ok(mut state) = self.available() {
            state.progressed.extend_from_slice(receipts);
        }
    }

    async fn publish(&self, result: &StoredResult) -> Result<(), Error> {
        let mut state = self.available()?;
        if state.refuses.is_some_and(|prefix| result.job_id.as_str().starts_with(prefix)) {
            return Err(Error::Refused("a result that is not wanted".into()));
        }
        if !state.results.iter().any(|stored| stored.event_id == result.event_id) {
            state.results.push(result.clone());
        }
        Ok(())
    }

    async fn submit(&self, request: &Submission) -> Result<u64, Error> {
        let mut state = self.available()?;
        if let Some(seq) = state.submitted.get(&request.job_id) {
            return Ok(*seq);
        }
        let seq = state.push(SUBJECT, request.headers.clone(), request.payload.clone());
        state.submitted.insert(request.job_id.clone(), seq);
        drop(state);
        self.arrived.notify_waiters();
        Ok(seq)
    }

    async fn bury(&self, letter: &DeadLetter) -> Result<(), Error> {
        let mut state = self.available()?;
        let known =
            |stored: &DeadLetter| (&stored.stream, stored.stream_seq) == (&letter.stream, letter.stream_seq);
        if !state.letters.iter().any(known) {
            state.letters.push(letter.clone());
        }
        Ok(())
    }

    async fn ping(&self) -> bool {
        !self.state().outage
    }

    async fn control(&self) -> Result<BoxStream<'static, ControlRequest>, Error> {
        self.listen()
    }

    async fn answer(&self, reply: &Receipt, answer: &Json) {
        self.tell(reply, answer);
    }

    async fn notice(&self, threads: &[ThreadId]) {
        if !self.state().outage {
            // Nobody may listen.
            let _ = self.notices.send(threads.to_vec());
        }
    }

    async fn notices(&self) -> Result<BoxStream<'static, Vec<ThreadId>>, Error> {
        self.hear()
    }

    async fn lingering(
        &self,
        after_seq: u64,
        older_than: Duration,
        limit: usize,
    ) -> Result<Vec<Stored>, Error> {
        self.find_lingering(after_seq, older_than, limit)
    }

    async fn fetch(&self, stream_seq: u64) -> Result<Option<Stored>, Error> {
        Ok(self.available()?.stored(stream_seq))
    }

    async fn discard(&self, stream_seq: u64) -> Result<(), Error> {
        self.available()?.messages.remove(&stream_seq);
        Ok(())
    }

    async fn advisories(&self, max: usize) -> Result<Vec<Advisory>, Error> {
        Ok(self.available()?.advisories.values().take(max).cloned().collect())
    }

    async fn resubmit(&self, replay: &Replay) -> Result<u64, Error> {
        self.push_again(replay)
    }
}

#[cfg(test)]
mod tests;

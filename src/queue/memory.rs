//! The broker in memory, for tests and single-process runs: one work queue, results, dead letters.
//!
//! It settles by place in the stream and not by delivery, as JetStream does: the ack of a worker that was
//! overtaken removes the message under its successor. Time passes only when a test says so:
//! [`Memory::expire`] is the end of `ack_wait`, [`Memory::wake`] the end of every nak's delay.
//!
//! **Invariant:** a message is in exactly one place: waiting, delivered, delayed, or gone.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{sync::Notify, time::timeout};

use super::{Delivery, Error, Queue, Receipt, Settlement, Submission};
use crate::store::{DeadLetter, StoredResult};

/// How long `next` waits for a first message, as the real one does.
const WAIT: Duration = Duration::from_secs(1);
/// The stream's name in deliveries.
const STREAM: &str = "AGENT_EXECUTION";

/// The broker in memory.
#[derive(Debug, Default)]
pub struct Memory {
    state: Mutex<State>,
    arrived: Notify,
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
    outage: bool,
}

#[derive(Debug)]
struct Message {
    headers: Vec<(String, String)>,
    payload: Bytes,
    deliveries: u64,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Waiting,
    Delivered,
    /// Given back with a delay.
    Delayed,
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

    /// Ends the outage; nothing was lost in it.
    pub fn start(&self) {
        self.state().outage = false;
        self.arrived.notify_waiters();
    }

    /// Puts a message into the work queue as a publisher other than us does; returns its place.
    pub fn push(&self, headers: Vec<(String, String)>, payload: Bytes) -> u64 {
        let seq = self.state().push(headers, payload);
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
        for message in self.state().messages.values_mut().filter(|message| message.place == from) {
            message.place = Place::Waiting;
        }
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
    fn push(&mut self, headers: Vec<(String, String)>, payload: Bytes) -> u64 {
        self.last_seq += 1;
        let message = Message { headers, payload, deliveries: 0, place: Place::Waiting };
        self.messages.insert(self.last_seq, message);
        self.last_seq
    }

    fn take(&mut self, max: usize) -> Vec<Delivery> {
        let waiting = self.messages.iter_mut().filter(|(_, message)| message.place == Place::Waiting);
        let deliver = |(seq, message): (&u64, &mut Message)| {
            message.place = Place::Delivered;
            message.deliveries += 1;
            Delivery {
                stream: STREAM.into(),
                stream_seq: *seq,
                subject: "agent.execute.request".into(),
                headers: message.headers.clone(),
                payload: message.payload.clone(),
                deliveries: message.deliveries,
                receipt: Receipt(format!("{seq}/{}", message.deliveries)),
            }
        };
        waiting.take(max).map(deliver).collect()
    }
}

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
        let seq = seq_of(receipt)?;
        let mut state = self.available()?;
        match settlement {
            Settlement::Ack | Settlement::Term => drop(state.messages.remove(&seq)),
            Settlement::Nak(delay) => {
                if let Some(message) = state.messages.get_mut(&seq) {
                    message.place = if delay.is_zero() { Place::Waiting } else { Place::Delayed };
                }
            }
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
        let seq = state.push(request.headers.clone(), request.payload.clone());
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::JobId;

    fn message(text: &'static str) -> (Vec<(String, String)>, Bytes) {
        (Vec::new(), Bytes::from_static(text.as_bytes()))
    }

    fn push(queue: &Memory, text: &'static str) -> u64 {
        let (headers, payload) = message(text);
        queue.push(headers, payload)
    }

    async fn one(queue: &Memory) -> Delivery {
        queue.next(1).await.expect("no outage").pop().expect("a message is there")
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_asked_for_is_delivered_and_in_order() {
        let queue = Memory::new();
        for text in ["a", "b", "c"] {
            push(&queue, text);
        }
        let two = queue.next(2).await.expect("no outage");
        assert_eq!(two.iter().map(|delivery| delivery.stream_seq).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(one(&queue).await.payload, "c");
        assert!(
            queue.next(9).await.expect("no outage").is_empty(),
            "delivered messages are not delivered again"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_pull_gets_a_message_that_comes_later() {
        let queue = Memory::new();
        let (delivered, ()) = tokio::join!(queue.next(5), async {
            tokio::task::yield_now().await;
            push(&queue, "late");
        });
        assert_eq!(delivered.expect("no outage").len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stale_ack_removes_the_message_under_its_successor() {
        let queue = Memory::new();
        push(&queue, "a");
        let stale = one(&queue).await;
        queue.expire();
        let fresh = one(&queue).await;
        assert_eq!((stale.deliveries, fresh.deliveries), (1, 2));
        assert_ne!(stale.receipt, fresh.receipt);
        queue.settle(&stale.receipt, Settlement::Ack).await.expect("no outage");
        assert_eq!(queue.unsettled(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_nak_with_a_delay_waits_for_its_end_and_abandon_for_the_expiry() {
        let queue = Memory::new();
        push(&queue, "a");
        let delivery = one(&queue).await;
        queue.settle(&delivery.receipt, Settlement::Nak(WAIT)).await.expect("no outage");
        assert!(queue.next(1).await.expect("no outage").is_empty());
        queue.wake();
        let delivery = one(&queue).await;
        queue.settle(&delivery.receipt, Settlement::Abandon).await.expect("no outage");
        queue.wake();
        assert!(queue.next(1).await.expect("no outage").is_empty());
        queue.expire();
        let delivery = one(&queue).await;
        queue.settle(&delivery.receipt, Settlement::Nak(Duration::ZERO)).await.expect("no outage");
        assert_eq!(one(&queue).await.deliveries, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn repeats_are_dropped_and_an_outage_loses_nothing() {
        let queue = Memory::new();
        let (headers, payload) = message("a");
        let request = Submission { job_id: "j".into(), headers, payload };
        assert_eq!(queue.submit(&request).await.expect("no outage"), 1);
        assert_eq!(queue.submit(&request).await.expect("no outage"), 1);
        let result = StoredResult {
            job_id: JobId::parse("j").expect("valid"),
            event_id: "j:result".into(),
            subject: "agent.status.completed".into(),
            event: Bytes::new(),
        };
        queue.stop();
        assert!(queue.publish(&result).await.is_err());
        assert!(queue.next(1).await.is_err() && !queue.ping().await);
        queue.start();
        for _ in 0..2 {
            queue.publish(&result).await.expect("no outage");
        }
        assert_eq!(queue.results(), [result]);
        assert_eq!(one(&queue).await.payload, "a");
    }
}

//! Holds events until they are sent, within bounds.
//!
//! **Invariant:** events leave in the order in which they came; what is dropped is left out, nothing moves up.
//! **Invariant:** token events go first: others are dropped only when they alone pass [`HARD_MAX_BYTES`].

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::{
    stream::{Event, EventType, MAX_EVENT_BYTES},
    telemetry::{InUse, Limited, metric},
};

/// Most bytes that wait for a server that is away, tokens or not. It protects the pod: a state of 100 KB after each of
/// 600 supersteps fits.
const HARD_MAX_BYTES: usize = 64 * 1024 * 1024;

/// What an event costs beside its text: its place in the queue and its headers.
const EVENT_OVERHEAD_BYTES: usize = 256;

/// Lanes by worth; the first is dropped from first.
const LANES: usize = 3;

/// An event with its place in the order of arrival.
#[derive(Debug)]
pub(super) struct Queued {
    number: u64,
    pub(super) event: Event,
    /// Whether it was sent before without an answer, so that a refusal means that it arrived then.
    pub(super) is_repeat: bool,
}

impl Queued {
    /// The place in the order of arrival.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// What it costs to keep.
    pub(super) fn bytes(&self) -> usize {
        let publish = self.event.publish.as_ref().map_or(0, bytes::Bytes::len);
        self.event.entry.len() + publish + EVENT_OVERHEAD_BYTES
    }
}

/// How much is taken at once; at least one event comes, however large.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    pub(super) events: usize,
    pub(super) bytes: usize,
}

/// Events on their way to the server.
#[derive(Debug)]
pub(super) struct Queue {
    max: Most,
    waiting: Mutex<Waiting>,
    /// Wakes the one task that takes.
    arrived: Notify,
    /// Wakes those who wait until events are sent.
    progressed: Notify,
    events: InUse,
    bytes: InUse,
}

#[derive(Debug, Default)]
struct Waiting {
    lanes: [VecDeque<Queued>; LANES],
    events: usize,
    bytes: usize,
    next_number: u64,
    /// The first number of what has been taken and not yet settled.
    taken_from: Option<u64>,
}

/// The lane of an event: tokens, what happens in a run, and how it ends.
fn lane(event_type: EventType) -> usize {
    match event_type {
        EventType::LlmStream => 0,
        EventType::AttemptStart
        | EventType::LlmRetry
        | EventType::LlmEnd
        | EventType::ToolStart
        | EventType::ToolEnd
        | EventType::StateUpdate
        | EventType::Custom => 1,
        EventType::Interrupt | EventType::Error | EventType::End => 2,
    }
}

impl Queue {
    pub(super) fn new(max_events: usize, max_bytes: usize) -> Self {
        let max = Most { events: max_events, bytes: max_bytes.min(HARD_MAX_BYTES) };
        Self {
            max,
            waiting: Mutex::default(),
            arrived: Notify::new(),
            progressed: Notify::new(),
            events: InUse::new(Limited::StreamEvents, max_events),
            // Pieces of text are dropped before; this is what the others may take.
            bytes: InUse::new(Limited::StreamBytes, HARD_MAX_BYTES),
        }
    }

    /// Takes an event in; never waits.
    pub(super) fn push(&self, event: Event) {
        let size = event.entry.len().max(event.publish.as_ref().map_or(0, bytes::Bytes::len));
        if size > MAX_EVENT_BYTES {
            return count_dropped(event.event_type);
        }
        let mut waiting = self.locked();
        let number = waiting.next_number;
        waiting.next_number += 1;
        waiting.push_back(Queued { number, event, is_repeat: false });
        let dropped = waiting.shrink(self.max);
        self.show(&waiting);
        drop(waiting);
        self.arrived.notify_one();
        self.report(dropped);
    }

    /// The oldest events, as many as `most` allows; waits until there is one. They must be settled or put back.
    pub(super) async fn next(&self, most: Most) -> Vec<Queued> {
        loop {
            let taken = self.take(most);
            if !taken.is_empty() {
                return taken;
            }
            self.arrived.notified().await;
        }
    }

    /// Whether this many events wait.
    pub(super) fn holds(&self, events: usize) -> bool {
        self.locked().events >= events
    }

    /// What was taken has been sent or given up.
    pub(super) fn settle(&self) {
        self.locked().taken_from = None;
        self.progressed.notify_waiters();
    }

    /// What was taken could not be sent: it goes back to its place, as far as the bounds leave room.
    pub(super) fn put_back(&self, taken: Vec<Queued>) {
        let mut waiting = self.locked();
        waiting.taken_from = None;
        for queued in taken.into_iter().rev() {
            waiting.push_front(Queued { is_repeat: true, ..queued });
        }
        let dropped = waiting.shrink(self.max);
        self.show(&waiting);
        drop(waiting);
        self.report(dropped);
    }

    /// Drops all that waits; returns how many events those were.
    pub(super) fn clear(&self) -> usize {
        let dropped: Vec<EventType> =
            self.take(Most { events: usize::MAX, bytes: usize::MAX }).iter().map(kind).collect();
        let count = dropped.len();
        self.report(dropped);
        self.settle();
        count
    }

    /// Waits until everything that has arrived before the call has left, sent or dropped.
    pub(super) async fn settled(&self) {
        let until = self.locked().next_number;
        loop {
            let progressed = self.progressed.notified();
            if self.locked().oldest().is_none_or(|number| number >= until) {
                return;
            }
            progressed.await;
        }
    }

    fn take(&self, most: Most) -> Vec<Queued> {
        let mut waiting = self.locked();
        let taken = waiting.take(most);
        self.show(&waiting);
        taken
    }

    fn show(&self, waiting: &Waiting) {
        self.events.set(waiting.events);
        self.bytes.set(waiting.bytes);
    }

    fn locked(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, dropped: Vec<EventType>) {
        if dropped.is_empty() {
            return;
        }
        dropped.into_iter().for_each(count_dropped);
        self.progressed.notify_waiters();
    }
}

impl Waiting {
    fn push_back(&mut self, queued: Queued) {
        self.grow(&queued);
        self.lanes[lane(queued.event.event_type)].push_back(queued);
    }

    fn push_front(&mut self, queued: Queued) {
        self.grow(&queued);
        self.lanes[lane(queued.event.event_type)].push_front(queued);
    }

    fn grow(&mut self, queued: &Queued) {
        self.events += 1;
        self.bytes += queued.bytes();
    }

    fn pop(&mut self, lane: usize) -> Option<Queued> {
        let queued = self.lanes[lane].pop_front()?;
        self.events -= 1;
        self.bytes -= queued.bytes();
        Some(queued)
    }

    /// The lane whose first event came first.
    fn first_lane(&self) -> Option<usize> {
        let first = |lane: &usize| self.lanes[*lane].front().map_or(u64::MAX, |queued| queued.number);
        (0..LANES).filter(|lane| !self.lanes[*lane].is_empty()).min_by_key(first)
    }

    fn oldest(&self) -> Option<u64> {
        let waiting = self.first_lane().and_then(|lane| self.lanes[lane].front()).map(|queued| queued.number);
        waiting.into_iter().chain(self.taken_from).min()
    }

    fn take(&mut self, most: Most) -> Vec<Queued> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(lane) = self.first_lane().filter(|_| taken.len() < most.events) {
            bytes += self.lanes[lane].front().map_or(0, Queued::bytes);
            if bytes > most.bytes && !taken.is_empty() {
                break;
            }
            taken.extend(self.pop(lane));
        }
        self.taken_from = taken.first().map(|queued| queued.number);
        taken
    }

    /// Drops the oldest token events until `max` holds, and others until the hard bound holds.
    fn shrink(&mut self, max: Most) -> Vec<EventType> {
        let mut dropped = Vec::new();
        while self.events > max.events || self.bytes > max.bytes {
            let Some(queued) = self.pop(0) else { break };
            dropped.push(kind(&queued));
        }
        for lane in 1..LANES {
            while self.bytes > HARD_MAX_BYTES {
                let Some(queued) = self.pop(lane) else { break };
                dropped.push(kind(&queued));
            }
        }
        dropped
    }
}

fn kind(queued: &Queued) -> EventType {
    queued.event.event_type
}

/// Counts an event that nobody will see.
pub(super) fn count_dropped(event_type: EventType) {
    metrics::counter!(metric::STREAM_DROPPED, "event_type" => event_type.as_str()).increment(1);
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        ids::{Epoch, ThreadId},
        stream::EntryId,
    };

    const ALL: Most = Most { events: usize::MAX, bytes: usize::MAX };

    fn event(event_type: EventType, seq: u64, size: usize) -> Event {
        let id = EntryId { epoch: Epoch(1), seq };
        let thread_id = ThreadId::parse("t").expect("valid");
        Event { thread_id, id, event_type, entry: vec![b'x'; size].into(), publish: None }
    }

    fn seqs(taken: &[Queued]) -> Vec<u64> {
        taken.iter().map(|queued| queued.event.id.seq).collect()
    }

    fn take(queue: &Queue, most: Most) -> Vec<Queued> {
        queue.next(most).now_or_never().unwrap_or_default()
    }

    #[test]
    fn a_full_queue_drops_the_oldest_tokens_and_keeps_the_order_of_the_rest() {
        let queue = Queue::new(4, usize::MAX);
        for seq in 1..=9 {
            let kind = if seq % 3 == 1 { EventType::ToolStart } else { EventType::LlmStream };
            queue.push(event(kind, seq, 10));
        }
        assert_eq!(seqs(&take(&queue, ALL)), [1, 4, 7, 9]);
    }

    #[test]
    fn other_events_are_kept_beyond_the_bounds_of_tokens() {
        let queue = Queue::new(2, 100);
        for seq in 1..=50 {
            queue.push(event(EventType::StateUpdate, seq, 1000));
        }
        queue.push(event(EventType::LlmStream, 51, 1));
        queue.push(event(EventType::End, 52, 1));
        let expected: Vec<u64> = (1..=50).chain([52]).collect();
        assert_eq!(seqs(&take(&queue, ALL)), expected);
    }

    #[test]
    fn at_the_hard_bound_the_end_of_a_run_outlives_its_states() {
        let queue = Queue::new(10, 1000);
        queue.push(event(EventType::End, 1, 1000));
        for seq in 2..=30 {
            queue.push(event(EventType::StateUpdate, seq, MAX_EVENT_BYTES));
        }
        let left = seqs(&take(&queue, ALL));
        assert_eq!(left.first(), Some(&1));
        assert_eq!(left.last(), Some(&30));
        assert_eq!(left.len() - 1, HARD_MAX_BYTES / (MAX_EVENT_BYTES + EVENT_OVERHEAD_BYTES));
    }

    #[test]
    fn an_event_above_the_limit_is_dropped_at_once() {
        let queue = Queue::new(10, 1000);
        queue.push(event(EventType::Custom, 1, MAX_EVENT_BYTES + 1));
        assert!(take(&queue, ALL).is_empty());
    }

    #[test]
    fn a_flush_is_bounded_in_events_and_bytes_but_never_empty() {
        let queue = Queue::new(100, usize::MAX);
        for seq in 1..=6 {
            queue.push(event(EventType::Custom, seq, 1000));
        }
        let flush = |events, bytes| {
            let taken = take(&queue, Most { events, bytes });
            queue.settle();
            seqs(&taken)
        };
        assert_eq!(flush(2, usize::MAX), [1, 2]);
        assert_eq!(flush(9, 2 * (1000 + EVENT_OVERHEAD_BYTES)), [3, 4]);
        assert_eq!(flush(9, 1), [5]);
    }

    #[test]
    fn waiting_ends_when_what_came_before_has_left() {
        let queue = Queue::new(100, usize::MAX);
        assert!(queue.settled().now_or_never().is_some(), "nothing waits");
        queue.push(event(EventType::Custom, 1, 1));
        let mut settled = Box::pin(queue.settled());
        assert!((&mut settled).now_or_never().is_none());
        queue.push(event(EventType::Custom, 2, 1));
        let taken = take(&queue, Most { events: 1, ..ALL });
        assert!((&mut settled).now_or_never().is_none(), "taken is not sent");
        queue.put_back(taken);
        assert!((&mut settled).now_or_never().is_none(), "it came back");
        assert_eq!(seqs(&take(&queue, Most { events: 1, ..ALL })), [1]);
        queue.settle();
        assert!(settled.now_or_never().is_some(), "the second one came later");
        assert_eq!(queue.clear(), 1);
        assert!(queue.settled().now_or_never().is_some());
    }

    proptest! {
        #[test]
        fn order_holds_and_only_tokens_go_missing(
            kinds in proptest::collection::vec(0..EventType::ALL.len(), 0..60),
            failures in proptest::collection::vec(any::<bool>(), 0..60),
        ) {
            let queue = Queue::new(8, usize::MAX);
            let mut sent = Vec::new();
            let mut failures = failures.into_iter();
            for (kind, seq) in kinds.iter().zip(1..) {
                queue.push(event(EventType::ALL[*kind], seq, 1));
                if seq % 5 == 0 {
                    let taken = take(&queue, Most { events: 3, ..ALL });
                    if failures.next().unwrap_or(false) {
                        queue.put_back(taken);
                    } else {
                        sent.extend(seqs(&taken));
                        queue.settle();
                    }
                }
            }
            sent.extend(seqs(&take(&queue, ALL)));
            prop_assert!(sent.is_sorted());
            for (kind, seq) in kinds.iter().zip(1..) {
                let may_be_missing = EventType::ALL[*kind].may_be_dropped();
                prop_assert!(may_be_missing || sent.contains(&seq), "{seq} is missing of {sent:?}");
            }
        }
    }
}

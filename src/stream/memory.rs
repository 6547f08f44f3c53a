//! Keeps run events in this process, by the rules of the server: for tests, and for runs without one.
//!
//! **Invariant:** ids of a thread only grow; an event whose id is not above the last one is refused and counted.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use serde_json::Value as Json;
use tokio::sync::broadcast;

use super::{Event, LastEvent, Sink};
use crate::ids::ThreadId;

/// Events a subscriber may fall behind before it misses some; more than any test emits between two looks.
const SUBSCRIBER_EVENTS: usize = 16 * 1024;

/// A sink that keeps what it gets.
#[derive(Debug)]
pub struct Memory {
    threads: Mutex<HashMap<ThreadId, Thread>>,
    live: broadcast::Sender<Event>,
}

#[derive(Debug, Default)]
struct Thread {
    events: Vec<Event>,
    refused: usize,
}

impl Default for Memory {
    fn default() -> Self {
        Self { threads: Mutex::default(), live: broadcast::channel(SUBSCRIBER_EVENTS).0 }
    }
}

impl Memory {
    /// The stream of a thread: each entry as JSON, in order.
    pub fn events(&self, thread_id: &ThreadId) -> Vec<Json> {
        self.taken(thread_id).iter().map(|event| json(&event.entry)).collect()
    }

    /// What went over the channel of a thread: each message as JSON, in order.
    pub fn published(&self, thread_id: &ThreadId) -> Vec<Json> {
        let taken = self.taken(thread_id);
        taken.iter().map(|event| json(event.publish.as_ref().unwrap_or(&event.entry))).collect()
    }

    /// The events of a thread that were not refused, as they came.
    pub fn taken(&self, thread_id: &ThreadId) -> Vec<Event> {
        self.locked().get(thread_id).map(|thread| thread.events.clone()).unwrap_or_default()
    }

    /// How many events of a thread were refused because their id was not above the last one.
    pub fn refused(&self, thread_id: &ThreadId) -> usize {
        self.locked().get(thread_id).map_or(0, |thread| thread.refused)
    }

    /// The events of all threads from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.live.subscribe()
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<ThreadId, Thread>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn json(bytes: &[u8]) -> Json {
    serde_json::from_slice(bytes).expect("the emitter encodes valid JSON")
}

#[async_trait]
impl Sink for Memory {
    fn emit(&self, event: Event) {
        let mut threads = self.locked();
        let thread = threads.entry(event.thread_id.clone()).or_default();
        if thread.events.last().is_some_and(|last| last.id >= event.id) {
            thread.refused += 1;
            return;
        }
        thread.events.push(event.clone());
        // Sent under the lock, so that subscribers see the order of the stream; that nobody listens is no error.
        let _ = self.live.send(event);
    }

    async fn flush(&self, _limit: Duration) {}

    async fn last(&self, thread_id: &ThreadId) -> Option<LastEvent> {
        let taken = self.taken(thread_id);
        serde_json::from_slice(&taken.last()?.entry).ok()
    }

    async fn ping(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::Epoch,
        stream::{EntryId, EventType},
    };

    fn event(epoch: i64, seq: u64) -> Event {
        Event {
            thread_id: ThreadId::parse("t").expect("valid"),
            id: EntryId { epoch: Epoch(epoch), seq },
            event_type: EventType::Custom,
            entry: format!("[{epoch},{seq}]").into(),
            publish: None,
        }
    }

    #[test]
    fn a_zombies_events_and_repeats_are_refused() {
        let memory = Memory::default();
        let mut live = memory.subscribe();
        for (epoch, seq) in [(1, 1), (1, 2), (2, 1), (1, 3), (2, 1), (2, 2)] {
            memory.emit(event(epoch, seq));
        }
        let thread = event(1, 1).thread_id;
        assert_eq!(Json::from(memory.events(&thread)), serde_json::json!([[1, 1], [1, 2], [2, 1], [2, 2]]));
        assert_eq!(memory.events(&thread), memory.published(&thread));
        assert_eq!(memory.refused(&thread), 2);
        let ids = std::iter::from_fn(|| live.try_recv().ok()).map(|event| event.id.to_string());
        assert_eq!(ids.collect::<Vec<_>>(), ["1-1", "1-2", "2-1", "2-2"]);
    }
}

//! Hands run events to one reader in this process, in order.
//!
//! **Invariant:** what waits to be read is bounded; what does not fit is counted, and the reader hears how much.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::Notify;

use super::{Event, LastEvent, Sink};
use crate::ids::ThreadId;

/// Bytes that may wait before pieces of text are dropped: a terminal that somebody has halted reads nothing.
const TOKENS_UNTIL: usize = 1 << 20;

/// Bytes that may wait at all: some events of the largest size.
const MOST: usize = 8 * super::MAX_EVENT_BYTES;

/// A sink that one reader in this process empties.
#[derive(Debug, Default)]
pub struct Local {
    state: Mutex<State>,
    /// Wakes the reader.
    arrived: Condvar,
    /// Wakes who waits until all is read.
    empty: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Event>,
    bytes: usize,
    missed: u64,
    /// Whether the reader holds an event that it has not dealt with.
    reading: bool,
    closed: bool,
}

/// What the reader gets.
#[derive(Debug)]
pub enum Read {
    /// The next event.
    Event(Event),
    /// So many events were dropped before the next one.
    Missed(u64),
}

impl Local {
    /// The next event, waiting for it in this operating-system thread; `None` once nothing more can come. Asking says
    /// that the one before has been dealt with.
    pub fn next(&self) -> Option<Read> {
        let mut state = self.locked();
        state.reading = false;
        loop {
            if state.missed > 0 {
                state.reading = true;
                return Some(Read::Missed(std::mem::take(&mut state.missed)));
            }
            if let Some(event) = state.waiting.pop_front() {
                state.bytes -= size(&event);
                state.reading = true;
                return Some(Read::Event(event));
            }
            self.empty.notify_waiters();
            if state.closed {
                return None;
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Says that nothing more comes, or that nobody reads any more.
    pub fn close(&self) {
        self.locked().closed = true;
        self.arrived.notify_all();
    }

    async fn read_up(&self) {
        loop {
            let empty = self.empty.notified();
            tokio::pin!(empty);
            empty.as_mut().enable();
            {
                let state = self.locked();
                if (state.waiting.is_empty() && state.missed == 0 && !state.reading) || state.closed {
                    return;
                }
            }
            empty.await;
        }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn size(event: &Event) -> usize {
    event.entry.len()
}

#[async_trait]
impl Sink for Local {
    fn emit(&self, event: Event) {
        let mut state = self.locked();
        if state.closed {
            return;
        }
        let limit = if event.event_type.may_be_dropped() { TOKENS_UNTIL } else { MOST };
        if state.bytes + size(&event) > limit {
            state.missed += 1;
            return;
        }
        state.bytes += size(&event);
        // Readers here get the text in pieces, as the stream has it.
        state.waiting.push_back(Event { publish: None, ..event });
        drop(state);
        self.arrived.notify_one();
    }

    async fn flush(&self, limit: Duration) {
        // A reader that is stuck must not hold up the end.
        let _ = tokio::time::timeout(limit, self.read_up()).await;
    }

    async fn last(&self, _thread_id: &ThreadId) -> Option<LastEvent> {
        None
    }

    async fn ping(&self) -> bool {
        true
    }
}

/// Closes the sink when its reader is gone, so that nobody waits for it.
#[derive(Debug)]
pub struct Reader(pub Arc<Local>);

impl Iterator for Reader {
    type Item = Read;

    fn next(&mut self) -> Option<Read> {
        self.0.next()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.close();
        self.0.empty.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::Epoch,
        stream::{EntryId, EventType},
    };

    fn event(seq: u64, event_type: EventType, bytes: usize) -> Event {
        Event {
            thread_id: ThreadId::parse("t").expect("valid"),
            id: EntryId { epoch: Epoch(1), seq },
            event_type,
            entry: vec![b'x'; bytes].into(),
            publish: None,
        }
    }

    fn seen(read: Option<Read>) -> String {
        match read {
            Some(Read::Event(event)) => event.id.to_string(),
            Some(Read::Missed(count)) => format!("{count} missed"),
            None => "end".to_owned(),
        }
    }

    #[test]
    fn what_does_not_fit_is_counted_and_text_goes_first() {
        let local = Local::default();
        local.emit(event(1, EventType::LlmStream, TOKENS_UNTIL));
        local.emit(event(2, EventType::LlmStream, 1));
        local.emit(event(3, EventType::ToolEnd, 1));
        local.emit(event(4, EventType::StateUpdate, MOST));
        local.close();
        let mut reader = Reader(Arc::new(local));
        let all: Vec<_> = std::iter::from_fn(|| Some(seen(reader.next()))).take(4).collect();
        assert_eq!(all, ["2 missed", "1-1", "1-3", "end"]);
    }

    #[tokio::test]
    async fn a_flush_waits_until_the_last_event_is_dealt_with() {
        let local = Arc::new(Local::default());
        local.emit(event(1, EventType::End, 1));
        let mut reader = Reader(local.clone());
        assert_eq!(seen(reader.next()), "1-1");
        let long = Duration::from_secs(600);
        let mut flush = std::pin::pin!(local.flush(long));
        assert!(futures::poll!(&mut flush).is_pending(), "the reader still holds it");
        let thread = std::thread::spawn(move || seen(reader.next()));
        flush.await;
        local.close();
        assert_eq!(thread.join().expect("it ends"), "end");
    }

    #[tokio::test]
    async fn nobody_waits_for_a_reader_that_is_gone() {
        let local = Arc::new(Local::default());
        drop(Reader(local.clone()));
        local.emit(event(1, EventType::End, 1));
        local.flush(Duration::from_secs(600)).await;
    }
}

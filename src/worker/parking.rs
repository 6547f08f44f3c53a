//! Messages that are held while their threads are busy.
//!
//! **Invariant:** neither many messages, nor large ones, nor those of one thread keep others from being held:
//! what finds no place goes back to the queue. Its job is known to the store by then and runs in its turn.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::Error;
use crate::{
    ids::ThreadId,
    telemetry::{InUse, Limited},
};

/// Messages held for busy threads. Each costs a few kilobytes and a look at the database per second; past this
/// number they go back to the queue.
pub const MAX_PARKED: usize = 256;

/// Messages held for one thread. They run one after the other, so that more of them held here hurry nothing,
/// and four busy threads must not take all places.
const MAX_PARKED_PER_THREAD: usize = 64;

/// The part of the bytes of held messages that parked ones may have: the rest is for those that can run.
const PARKED_SHARE: usize = 2;

/// Places for messages of busy threads.
#[derive(Clone, Debug)]
pub(super) struct Parking(Arc<State>);

#[derive(Debug)]
struct State {
    most_bytes: usize,
    taken: Mutex<Taken>,
    messages: InUse,
    bytes: InUse,
    per_thread: InUse,
}

#[derive(Debug, Default)]
struct Taken {
    messages: usize,
    bytes: usize,
    by_thread: HashMap<ThreadId, usize>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    thread_id: ThreadId,
    bytes: usize,
    state: Arc<State>,
}

impl Parking {
    /// Places within `bytes_in_flight`, which all held messages share.
    pub(super) fn new(bytes_in_flight: usize) -> Self {
        let most_bytes = bytes_in_flight / PARKED_SHARE;
        Self(Arc::new(State {
            most_bytes,
            taken: Mutex::default(),
            messages: InUse::new(Limited::Parked, MAX_PARKED),
            bytes: InUse::new(Limited::ParkedBytes, most_bytes),
            per_thread: InUse::new(Limited::ParkedPerThread, MAX_PARKED_PER_THREAD),
        }))
    }

    /// A place for a message of the thread; [`Error::Crowded`] when there is none.
    pub(super) fn enter(&self, thread_id: &ThreadId, bytes: usize) -> Result<Place, Error> {
        let mut taken = self.0.locked();
        let of_thread = taken.by_thread.get(thread_id).copied().unwrap_or(0);
        let full = if of_thread == MAX_PARKED_PER_THREAD {
            Some(&self.0.per_thread)
        } else if taken.messages == MAX_PARKED {
            Some(&self.0.messages)
        } else if taken.bytes + bytes > self.0.most_bytes {
            Some(&self.0.bytes)
        } else {
            None
        };
        if let Some(full) = full {
            full.turn_away();
            return Err(Error::Crowded);
        }
        taken.messages += 1;
        taken.bytes += bytes;
        taken.by_thread.insert(thread_id.clone(), of_thread + 1);
        self.0.show(&taken);
        Ok(Place { thread_id: thread_id.clone(), bytes, state: self.0.clone() })
    }
}

impl State {
    fn locked(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, taken: &Taken) {
        self.messages.set(taken.messages);
        self.bytes.set(taken.bytes);
        self.per_thread.set(taken.by_thread.values().copied().max().unwrap_or(0));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.state.locked();
        taken.messages -= 1;
        taken.bytes -= self.bytes;
        let left = taken.by_thread.get(&self.thread_id).map_or(0, |count| count - 1);
        if left == 0 {
            taken.by_thread.remove(&self.thread_id);
        } else {
            taken.by_thread.insert(self.thread_id.clone(), left);
        }
        self.state.show(&taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(n: usize) -> ThreadId {
        ThreadId::parse(&format!("t{n}")).expect("valid")
    }

    fn enter(parking: &Parking, n: usize, count: usize) -> Vec<Place> {
        (0..count).map_while(|_| parking.enter(&thread(n), 10).ok()).collect()
    }

    #[test]
    fn one_thread_cannot_take_all_places() {
        let parking = Parking::new(1 << 20);
        let busy = enter(&parking, 1, 1000);
        assert_eq!(busy.len(), MAX_PARKED_PER_THREAD);
        let others: Vec<_> = (2..=4).map(|n| enter(&parking, n, 1000)).collect();
        assert!(others.iter().all(|places| places.len() == MAX_PARKED_PER_THREAD));
        assert!(parking.enter(&thread(5), 10).is_err(), "all places are taken");
        drop(busy);
        assert_eq!(enter(&parking, 5, 1000).len(), MAX_PARKED_PER_THREAD);
        drop(others);
        assert!(parking.0.locked().by_thread.is_empty(), "nothing stays behind");
    }

    #[test]
    fn large_messages_leave_half_of_the_bytes_to_those_that_run() {
        let parking = Parking::new(100);
        let first = parking.enter(&thread(1), 50).expect("there is room");
        assert!(parking.enter(&thread(2), 1).is_err());
        drop(first);
        assert!(parking.enter(&thread(2), 1).is_ok());
    }
}

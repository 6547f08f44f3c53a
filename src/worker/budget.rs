//! How many bytes of messages this process holds, from their pull to their settlement.
//!
//! **Invariant:** the sum passes the limit by at most one message: while little is left, messages are taken one
//! at a time. A message above the limit comes through alone.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

use crate::{
    queue::Delivery,
    telemetry::{InUse, Limited},
};

/// Bytes of held messages.
#[derive(Clone, Debug)]
pub(super) struct Budget(Arc<State>);

#[derive(Debug)]
struct State {
    most: usize,
    used: AtomicUsize,
    freed: Notify,
    in_use: InUse,
}

/// A message that counts until this is dropped.
#[derive(Debug)]
pub(super) struct Weight {
    bytes: usize,
    state: Arc<State>,
}

impl Budget {
    pub(super) fn new(most: usize) -> Self {
        let in_use = InUse::new(Limited::MessageBytes, most);
        Self(Arc::new(State { most, used: AtomicUsize::new(0), freed: Notify::new(), in_use }))
    }

    /// Bytes that may still be taken; waits until there are any.
    pub(super) async fn room(&self) -> usize {
        loop {
            let freed = self.0.freed.notified();
            let room = self.0.most.saturating_sub(self.0.used.load(Ordering::Acquire));
            if room > 0 {
                return room;
            }
            freed.await;
        }
    }

    /// Counts a message that is here, whatever is left.
    pub(super) fn hold(&self, delivery: &Delivery) -> Weight {
        let bytes = weight(delivery);
        let used = self.0.used.fetch_add(bytes, Ordering::AcqRel) + bytes;
        self.0.in_use.set(used);
        Weight { bytes, state: self.0.clone() }
    }
}

/// What a message costs to hold: its payload, and its headers, which a publisher may fill as well.
pub(super) fn weight(delivery: &Delivery) -> usize {
    let headers: usize = delivery.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    delivery.payload.len() + headers
}

impl Drop for Weight {
    fn drop(&mut self) {
        let left = self.state.used.fetch_sub(self.bytes, Ordering::AcqRel) - self.bytes;
        self.state.in_use.set(left);
        // Kept for the one who waits, should it look at the sum right now.
        self.state.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;
    use crate::queue::Receipt;

    fn message(bytes: usize) -> Delivery {
        Delivery {
            stream: "S".into(),
            stream_seq: 1,
            subject: "s".into(),
            headers: vec![("name".into(), "value".into())],
            payload: vec![0; bytes - 9].into(),
            deliveries: 1,
            receipt: Receipt("r".into()),
        }
    }

    #[test]
    fn what_is_used_up_is_waited_for_and_one_message_may_be_larger_than_all() {
        let budget = Budget::new(100);
        assert_eq!(budget.room().now_or_never(), Some(100));
        let small = budget.hold(&message(30));
        assert_eq!(budget.room().now_or_never(), Some(70));
        let large = budget.hold(&message(500));
        let mut room = Box::pin(budget.room());
        assert!((&mut room).now_or_never().is_none());
        drop(small);
        assert!((&mut room).now_or_never().is_none(), "the large one alone is too much");
        drop(large);
        assert_eq!(room.now_or_never(), Some(100));
    }
}

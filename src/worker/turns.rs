//! Deliveries of one thread are offered to the store in the order in which they came.
//!
//! Each delivery has a task of its own, and tasks race; the store can only keep the order of jobs it knows of.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::ids::ThreadId;

/// Who is last in line, per thread.
#[derive(Debug, Default)]
pub(super) struct Turns {
    last: Arc<Mutex<Line>>,
}

#[derive(Debug, Default)]
struct Line {
    next: u64,
    last: HashMap<ThreadId, (u64, oneshot::Receiver<()>)>,
}

/// A place in line. Dropping it lets the next one go.
#[derive(Debug)]
pub(super) struct Turn {
    thread_id: ThreadId,
    number: u64,
    before: Option<oneshot::Receiver<()>>,
    /// Its drop is the signal.
    _done: oneshot::Sender<()>,
    line: Arc<Mutex<Line>>,
}

impl Turns {
    /// The place behind everyone who has lined up for the thread.
    pub(super) fn line_up(&self, thread_id: &ThreadId) -> Turn {
        let (done, after) = oneshot::channel();
        let mut line = lock(&self.last);
        line.next += 1;
        let number = line.next;
        let before = line.last.insert(thread_id.clone(), (number, after)).map(|(_, before)| before);
        Turn { thread_id: thread_id.clone(), number, before, _done: done, line: self.last.clone() }
    }
}

impl Turn {
    /// Waits until everyone before has gone.
    pub(super) async fn come(&mut self) {
        if let Some(before) = self.before.take() {
            // An error means that its holder is gone, which is what is waited for.
            let _ = before.await;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut line = lock(&self.line);
        if line.last.get(&self.thread_id).is_some_and(|(number, _)| *number == self.number) {
            line.last.remove(&self.thread_id);
        }
    }
}

fn lock(line: &Mutex<Line>) -> MutexGuard<'_, Line> {
    line.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn turns_of_a_thread_come_one_after_the_other_and_leave_nothing_behind() {
        let turns = Turns::default();
        let (thread, other) = (ThreadId::parse("t").expect("valid"), ThreadId::parse("o").expect("valid"));
        let mut first = turns.line_up(&thread);
        let mut second = turns.line_up(&thread);
        let mut apart = turns.line_up(&other);
        first.come().await;
        apart.come().await;
        let waiting = tokio::select! {
            biased;
            () = second.come() => false,
            () = tokio::task::yield_now() => true,
        };
        assert!(waiting, "the second comes after the first");
        let mut third = turns.line_up(&thread);
        drop(first);
        drop(second);
        third.come().await;
        drop(third);
        drop(apart);
        assert!(lock(&turns.last).last.is_empty());
    }
}

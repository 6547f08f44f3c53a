//! Calls that wait, in the order in which they come up: each thread in its turn, however many calls it has. Pure.

use std::collections::{HashMap, VecDeque};

use tokio::sync::oneshot;

use crate::ids::ThreadId;

/// A call that waits.
#[derive(Debug)]
struct Waiting {
    number: u64,
    tokens: u64,
    tell: oneshot::Sender<()>,
}

/// A call that is next, or soon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Next {
    pub(super) thread: ThreadId,
    pub(super) number: u64,
    pub(super) tokens: u64,
}

/// The calls that wait in one lane.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// Threads with waiting calls, in their turn.
    turns: VecDeque<ThreadId>,
    waiting: HashMap<ThreadId, VecDeque<Waiting>>,
    len: usize,
    numbers: u64,
}

impl Line {
    /// How many calls wait.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// A new call of `thread` at the end of its calls; its number, and what tells when it may be made.
    pub(super) fn join(&mut self, thread: &ThreadId, tokens: u64) -> (u64, oneshot::Receiver<()>) {
        let (tell, told) = oneshot::channel();
        self.numbers += 1;
        self.len += 1;
        let calls = self.waiting.entry(thread.clone()).or_default();
        if calls.is_empty() {
            self.turns.push_back(thread.clone());
        }
        calls.push_back(Waiting { number: self.numbers, tokens, tell });
        (self.numbers, told)
    }

    /// The calls that come up next, `most` at most.
    pub(super) fn next(&self, most: usize) -> Vec<Next> {
        let mut next = Vec::with_capacity(most.min(self.len));
        for round in 0.. {
            let before = next.len();
            for thread in &self.turns {
                if next.len() == most {
                    return next;
                }
                if let Some(call) = self.waiting.get(thread).and_then(|calls| calls.get(round)) {
                    next.push(Next { thread: thread.clone(), number: call.number, tokens: call.tokens });
                }
            }
            if next.len() == before {
                break;
            }
        }
        next
    }

    /// Tells a call that it may be made, and puts its thread behind the others; `false` when the call is gone.
    pub(super) fn call(&mut self, next: &Next) -> bool {
        let Some(waiting) = self.remove(&next.thread, next.number) else { return false };
        if let Some(place) = self.turns.iter().position(|thread| *thread == next.thread) {
            let thread = self.turns.remove(place);
            self.turns.extend(thread);
        }
        waiting.tell.send(()).is_ok()
    }

    /// Takes out a call that does not wait any longer, if it is there.
    pub(super) fn leave(&mut self, thread: &ThreadId, number: u64) {
        // Whoever leaves has dropped the other end.
        drop(self.remove(thread, number));
    }

    fn remove(&mut self, thread: &ThreadId, number: u64) -> Option<Waiting> {
        let calls = self.waiting.get_mut(thread)?;
        let place = calls.iter().position(|call| call.number == number)?;
        let waiting = calls.remove(place)?;
        self.len -= 1;
        if calls.is_empty() {
            self.waiting.remove(thread);
            self.turns.retain(|other| other != thread);
        }
        Some(waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(name: &str) -> ThreadId {
        ThreadId::parse(name).expect("a thread id")
    }

    fn names(line: &Line, most: usize) -> String {
        line.next(most).iter().map(|next| next.thread.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_thread_with_many_calls_waits_its_turn_like_the_others() {
        let mut line = Line::default();
        let mut told: Vec<_> = (0..5).map(|_| line.join(&thread("a"), 1).1).collect();
        told.extend(["b", "c", "b"].map(|name| line.join(&thread(name), 1).1));
        assert_eq!((names(&line, 99).as_str(), line.len()), ("a b c a b a a a", 8));
        assert_eq!(names(&line, 2), "a b");

        let first = line.next(1).remove(0);
        assert!(line.call(&first));
        assert_eq!(names(&line, 4), "b c a b", "its thread is behind the others");
        assert!(!line.call(&first), "nobody is called twice");
        assert_eq!(told[0].try_recv(), Ok(()));
        told.push(line.join(&thread("d"), 1).1);
        assert_eq!(names(&line, 4), "b c a d");
    }

    #[test]
    fn whoever_leaves_is_not_called() {
        let mut line = Line::default();
        let (number, told) = line.join(&thread("a"), 1);
        let (_, other) = line.join(&thread("b"), 1);
        let next = line.next(2);
        line.leave(&thread("a"), number);
        assert_eq!((line.call(&next[0]), names(&line, 9).as_str()), (false, "b"));
        drop((told, other));
        assert!(!line.call(&next[1]), "it has gone without a word");
        assert_eq!((line.len(), line.next(9).len()), (0, 0));
    }
}

//! Commits the database gave up on: each is tried on a connection of its own, beside the batches of the others.
//!
//! **Invariant:** at most one commit of a thread is here; the thread's later ones wait for it in the backlog.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::task::JoinSet;

use super::commit::{Committer, Entry};
use crate::ids::ThreadId;

/// Commits that are tried at once. Each costs a connection while it waits for its lock; the rest take turns.
const LANES: usize = 4;

/// Between two tries; the wait for a lock itself takes seconds.
pub(super) const PAUSE: Duration = Duration::from_millis(500);

/// The commits of one commit task that wait.
#[derive(Default)]
pub(super) struct Late {
    waiting: VecDeque<Entry>,
    tries: JoinSet<Tried>,
    threads: HashSet<ThreadId>,
}

/// What became of a try: the entry when it is to be tried again.
pub(super) type Tried = Result<ThreadId, Box<Entry>>;

impl Late {
    pub(super) fn is_empty(&self) -> bool {
        self.threads.is_empty()
    }

    /// Whether later commits of the thread have to wait.
    pub(super) fn holds(&self, thread_id: &ThreadId) -> bool {
        self.threads.contains(thread_id)
    }

    pub(super) fn add(&mut self, entry: Entry) {
        self.threads.insert(entry.thread_id().clone());
        self.waiting.push_back(entry);
    }

    /// Starts as many tries as there are lanes.
    pub(super) fn start(&mut self, committer: &Arc<Committer>) {
        while self.tries.len() < LANES
            && let Some(entry) = self.waiting.pop_front()
        {
            let committer = committer.clone();
            self.tries.spawn(async move { committer.try_alone(entry).await });
        }
    }

    /// Waits for the end of one try; for ever when there is none. May be cancelled.
    pub(super) async fn tried(&mut self) {
        match self.tries.join_next().await {
            Some(result) => self.note(result),
            None => std::future::pending().await,
        }
    }

    /// Notes the tries that have ended, without waiting.
    pub(super) fn collect(&mut self) {
        while let Some(result) = self.tries.try_join_next() {
            self.note(result);
        }
    }

    fn note(&mut self, result: Result<Tried, tokio::task::JoinError>) {
        match result {
            Ok(Ok(thread_id)) => {
                self.threads.remove(&thread_id);
            }
            Ok(Err(entry)) => self.waiting.push_back(*entry),
            // As if the commit task itself had panicked.
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(error) => tracing::error!(%error, "a commit was cut off"),
        }
    }
}

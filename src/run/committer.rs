//! When checkpoints and writes become durable: before the next superstep, beside it, or at the end.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::Error;
use crate::{
    ids::{CheckpointId, Epoch, ThreadId},
    job::Durability,
    store::{self, Advance, Commit, Put, Store, TaskWrites},
};

/// Commits of one attempt, in order.
pub(super) struct Committer {
    store: Arc<dyn Store>,
    tracker: TaskTracker,
    thread_id: ThreadId,
    epoch: Epoch,
    durability: Durability,
    /// The thread's head: what the last root commit moved it to. Only the root graph moves it.
    head: Mutex<Option<CheckpointId>>,
    /// `async`: the commit that is on its way. `exit`: nothing.
    in_flight: tokio::sync::Mutex<Option<OnItsWay>>,
    /// `exit`: the newest root checkpoint, with every channel that changed since the run began.
    held: Mutex<Option<Put>>,
}

/// A commit that runs beside the next superstep.
type OnItsWay = JoinHandle<Result<(), store::Error>>;

/// What a superstep leaves behind.
pub(super) struct Step {
    /// Checkpoints, oldest first.
    pub(super) puts: Vec<Put>,
    /// Writes of its tasks that are not stored yet.
    pub(super) writes: Vec<TaskWrites>,
}

impl Step {
    pub(super) fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.writes.is_empty()
    }
}

impl Committer {
    pub(super) fn new(attempt: &super::Attempt, head: Option<CheckpointId>) -> Self {
        Self {
            store: attempt.ports.store.clone(),
            tracker: attempt.ports.tracker.clone(),
            thread_id: attempt.claim.thread_id.clone(),
            epoch: attempt.claim.epoch,
            durability: attempt.job.config.durability,
            head: Mutex::new(head),
            in_flight: tokio::sync::Mutex::default(),
            held: Mutex::default(),
        }
    }

    /// Stores the writes of one finished task while its siblings still run.
    pub(super) async fn writes(&self, writes: TaskWrites) -> Result<(), Error> {
        match self.durability {
            Durability::Exit => Ok(()),
            Durability::Sync | Durability::Async => {
                let commit = Commit { advance: None, puts: Vec::new(), writes: vec![writes], ..self.empty() };
                self.commit(commit).await
            }
        }
    }

    /// Stores a superstep.
    pub(super) async fn step(&self, step: Step) -> Result<(), Error> {
        if self.durability == Durability::Exit {
            self.hold(step);
            return Ok(());
        }
        let advance = self.advance(&step.puts);
        self.commit(Commit { advance, puts: step.puts, writes: step.writes, ..self.empty() }).await
    }

    /// The end of the run: whatever is held or on its way becomes durable now.
    pub(super) async fn finish(&self, unfinished: Vec<TaskWrites>) -> Result<(), Error> {
        arrived(&mut *self.in_flight.lock().await).await?;
        let held = lock(&self.held).take();
        if held.is_none() && unfinished.is_empty() {
            return Ok(());
        }
        let puts: Vec<_> = held.into_iter().collect();
        let advance = self.advance(&puts);
        let commit = Commit { advance, puts, writes: unfinished, ..self.empty() };
        self.store.commit(commit).instrument(commit_span()).await?;
        Ok(())
    }

    fn empty(&self) -> Commit {
        let (thread_id, epoch) = (self.thread_id.clone(), self.epoch);
        Commit { thread_id, epoch, advance: None, puts: Vec::new(), writes: Vec::new() }
    }

    /// How a commit with these checkpoints moves the head, and notes that it does.
    fn advance(&self, puts: &[Put]) -> Option<Advance> {
        let newest = puts.iter().rfind(|put| put.ns.is_root())?;
        let to = newest.checkpoint.id.clone();
        let from = lock(&self.head).replace(to.clone());
        Some(Advance { from, to })
    }

    async fn commit(&self, commit: Commit) -> Result<(), Error> {
        if self.durability == Durability::Sync {
            self.store.commit(commit).instrument(commit_span()).await?;
            return Ok(());
        }
        // Nested graphs commit side by side: whoever comes next waits for the commit before, so that they stay
        // in order and none fails unheard.
        let mut in_flight = self.in_flight.lock().await;
        arrived(&mut in_flight).await?;
        let store = self.store.clone();
        let commit = async move { store.commit(commit).await };
        *in_flight = Some(self.tracker.spawn(commit.instrument(commit_span())));
        Ok(())
    }

    /// `exit` keeps one checkpoint of the root graph; nested graphs start over if the run does.
    fn hold(&self, step: Step) {
        let mut held = lock(&self.held);
        for mut put in step.puts.into_iter().filter(|put| put.ns.is_root()) {
            if let Some(before) = held.take() {
                put.parent = before.parent;
                put.changed.extend(before.changed);
                put.changed.sort();
                put.changed.dedup();
            }
            *held = Some(put);
        }
    }
}

/// Waits for the commit that is on its way; a caller that stops waiting leaves it in its place.
async fn arrived(place: &mut Option<OnItsWay>) -> Result<(), Error> {
    let Some(on_its_way) = place else { return Ok(()) };
    let lost = |error: tokio::task::JoinError| store::Error::Unavailable(Box::new(error));
    let result = on_its_way.await;
    *place = None;
    Ok(result.map_err(lost)??)
}

fn commit_span() -> tracing::Span {
    tracing::info_span!("checkpoint_commit")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

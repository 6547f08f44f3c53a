//! When checkpoints and writes become durable: before the next superstep, beside it, or at the end.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::{Error, gathered::Gathered};
use crate::{
    ids::{CheckpointId, Epoch, Namespace, ThreadId},
    job::Durability,
    store::{self, Advance, Commit, EffectRow, Put, Store, TaskWrites},
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
    /// `exit`: what is stored at the end.
    held: Mutex<Held>,
    /// `sync` and `async`: supersteps that are stored with the one after them.
    gathered: Mutex<Gathered>,
}

/// What `exit` keeps back.
#[derive(Default)]
struct Held {
    /// The newest checkpoint of each graph that has not ended, with every channel that changed since the last
    /// one that is stored.
    puts: BTreeMap<Namespace, Put>,
    /// Writes of nested graphs that wait for an answer.
    writes: Vec<TaskWrites>,
}

/// A commit that runs beside the next superstep.
type OnItsWay = JoinHandle<Result<(), store::Error>>;

/// What supersteps leave behind.
#[derive(Default)]
pub(super) struct Step {
    /// Checkpoints, oldest first.
    pub(super) puts: Vec<Put>,
    /// Writes of their tasks that are not stored yet.
    pub(super) writes: Vec<TaskWrites>,
}

impl Step {
    /// This one and the one after it.
    pub(super) fn and(mut self, next: Self) -> Self {
        self.puts.extend(next.puts);
        self.writes.extend(next.writes);
        self
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
            gathered: Mutex::default(),
        }
    }

    /// Whether writes are stored at the end only: those of a superstep that has not finished.
    pub(super) fn holds_back(&self) -> bool {
        self.durability == Durability::Exit
    }

    /// Stores the writes of one finished task while its siblings still run.
    pub(super) async fn writes(&self, writes: TaskWrites) -> Result<(), Error> {
        match self.durability {
            Durability::Exit => Ok(()),
            Durability::Sync | Durability::Async => {
                self.commit(Commit { writes: vec![writes], ..self.empty() }).await
            }
        }
    }

    /// Stores `writes` on a checkpoint that is stored, whatever the durability.
    pub(super) async fn at_once(&self, writes: Vec<TaskWrites>) -> Result<(), Error> {
        arrived(&mut *self.in_flight.lock().await).await?;
        self.store.commit(Commit { writes, ..self.empty() }).instrument(commit_span()).await?;
        Ok(())
    }

    /// Stores a row of the ledger now, whatever the durability, after everything that its task follows from:
    /// a call made from a state that is lost could not be told from a new one.
    pub(super) async fn effect(&self, row: EffectRow) -> Result<(), Error> {
        {
            // Held until what was held back is stored: a call beside this one may follow from it too.
            let mut in_flight = self.in_flight.lock().await;
            arrived(&mut in_flight).await?;
            self.release().await?;
        }
        self.store.commit(Commit { effects: vec![row], ..self.empty() }).instrument(commit_span()).await?;
        Ok(())
    }

    /// Stores what `exit` holds back.
    async fn release(&self) -> Result<(), Error> {
        let puts = std::mem::take(&mut lock(&self.held).puts);
        if puts.is_empty() {
            return Ok(());
        }
        let puts: Vec<_> = puts.into_values().collect();
        let commit = Commit { advance: self.advance(&puts), puts, ..self.empty() };
        self.store.commit(commit).instrument(commit_span()).await?;
        Ok(())
    }

    /// A nested graph has ended: with `waiting` writes it waits for an answer, without it is done with.
    pub(super) async fn leave(&self, ns: &Namespace, waiting: Option<Vec<TaskWrites>>) -> Result<(), Error> {
        if self.durability == Durability::Exit {
            let mut held = lock(&self.held);
            match waiting {
                Some(writes) => held.writes.extend(writes),
                None => {
                    held.puts.remove(ns);
                }
            }
            return Ok(());
        }
        for writes in waiting.into_iter().flatten() {
            self.writes(writes).await?;
        }
        Ok(())
    }

    /// Lets a superstep of the root graph wait for the next one; gives it back when it has to be stored now.
    pub(super) fn gather(&self, step: Step) -> Result<(), Step> {
        if self.durability == Durability::Exit { Err(step) } else { lock(&self.gathered).add(step) }
    }

    /// Whether supersteps wait.
    pub(super) fn has_gathered(&self) -> bool {
        !lock(&self.gathered).is_empty()
    }

    /// Whether they have waited long enough.
    pub(super) fn is_due(&self) -> bool {
        lock(&self.gathered).is_due()
    }

    /// Stores what waits.
    pub(super) async fn store_gathered(&self) -> Result<(), Error> {
        let gathered = lock(&self.gathered).take();
        match gathered {
            None => Ok(()),
            Some(step) => self.step(step).await,
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

    /// The end of the run: what is left to store with it. Whatever was on its way has arrived then.
    pub(super) async fn last(
        &self,
        step: Option<Step>,
        unfinished: Vec<TaskWrites>,
    ) -> Result<Option<Commit>, Error> {
        let alone = match step.map(|step| self.gather(step)) {
            Some(Err(step)) => {
                self.store_gathered().await?;
                step
            }
            Some(Ok(())) | None => Step::default(),
        };
        arrived(&mut *self.in_flight.lock().await).await?;
        let gathered = lock(&self.gathered).take();
        let mut step = gathered.unwrap_or_default().and(alone);
        if self.durability == Durability::Exit {
            self.hold(step);
            let held = std::mem::take(&mut *lock(&self.held));
            step = Step { puts: held.puts.into_values().collect(), writes: held.writes };
        }
        let advance = self.advance(&step.puts);
        step.writes.extend(unfinished);
        let commit = Commit { advance, puts: step.puts, writes: step.writes, ..self.empty() };
        Ok(Some(commit).filter(|commit| !commit.is_empty()))
    }

    /// Stores what is left while the run does not end: somebody else goes on with it.
    pub(super) async fn save(&self) -> Result<(), Error> {
        match self.last(None, Vec::new()).await? {
            None => Ok(()),
            Some(commit) => Ok(self.store.commit(commit).instrument(commit_span()).await?),
        }
    }

    fn empty(&self) -> Commit {
        Commit::empty(self.thread_id.clone(), self.epoch)
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

    /// `exit` keeps one checkpoint of each graph; nested graphs that end leave none.
    fn hold(&self, step: Step) {
        let mut held = lock(&self.held);
        for mut put in step.puts {
            if let Some(before) = held.puts.remove(&put.ns) {
                put.parent = before.parent;
                put.changed.extend(before.changed);
                put.changed.sort();
                put.changed.dedup();
            }
            held.puts.insert(put.ns.clone(), put);
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

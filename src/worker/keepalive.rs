//! Signs of life: to the queue for held messages, to the store for claimed threads. Two tasks per process, so that
//! neither server keeps the other from hearing them.
//!
//! **Invariant:** only an answer of the store takes a claim for lost; while it is away, runs go on.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use super::Worker;
use crate::{
    ids::{Epoch, ThreadId},
    queue::Receipt,
    run::{Reason, Stop},
    store::{Claim, Renewed},
    telemetry::metric,
};

/// Held messages and owned claims.
#[derive(Default)]
pub(super) struct Keepalive {
    held: Arc<Mutex<HashSet<Receipt>>>,
    claims: Claims,
    look: Notify,
}

/// Owned claims. One that is ending has no stop: nobody needs to hear that it is over.
type Claims = Arc<Mutex<HashMap<(ThreadId, Epoch), Option<Stop>>>>;

/// A message that is kept alive until this is dropped.
pub(super) struct Held {
    receipt: Receipt,
    held: Arc<Mutex<HashSet<Receipt>>>,
}

/// A claim that is renewed until this is dropped, from the moment the store granted it.
pub(super) struct Owned {
    pub(super) claim: Claim,
    /// Tells whoever runs it to stop.
    pub(super) stop: Stop,
    granted: Instant,
    claims: Claims,
}

impl Keepalive {
    pub(super) fn hold(&self, receipt: &Receipt) -> Held {
        lock(&self.held).insert(receipt.clone());
        Held { receipt: receipt.clone(), held: self.held.clone() }
    }

    pub(super) fn own(&self, claim: Claim) -> Owned {
        let stop = Stop::default();
        lock(&self.claims).insert((claim.thread_id.clone(), claim.epoch), Some(stop.clone()));
        metrics::gauge!(metric::IN_FLIGHT).increment(1.0);
        Owned { claim, stop, granted: Instant::now(), claims: self.claims.clone() }
    }

    /// The epoch under which this process owns the thread.
    pub(super) fn owned(&self, thread_id: &ThreadId) -> Option<Epoch> {
        let claims = lock(&self.claims);
        claims.keys().filter(|(owned, _)| owned == thread_id).map(|(_, epoch)| *epoch).max()
    }

    /// Claims that are owned.
    pub(super) fn running(&self) -> usize {
        lock(&self.claims).len()
    }

    /// Asks the store about all claims now: one of them is to be cancelled.
    pub(super) fn look(&self) {
        self.look.notify_one();
    }

    /// Tells every run to stop at its next boundary because the process ends.
    pub(super) fn leave_all(&self) {
        for stop in lock(&self.claims).values().flatten() {
            stop.leave();
        }
    }

    /// Tells every run to stop because the process ends.
    pub(super) fn stop_all(&self) {
        for stop in lock(&self.claims).values().flatten() {
            stop.because(Reason::Drain);
        }
    }

    fn receipts(&self) -> Vec<Receipt> {
        lock(&self.held).iter().cloned().collect()
    }

    fn claims(&self) -> Vec<(ThreadId, Epoch)> {
        lock(&self.claims).keys().cloned().collect()
    }

    /// Stops the runs of `asked` that the store did not renew, and those that are to be cancelled.
    fn stop_lost(&self, asked: &[(ThreadId, Epoch)], renewed: &[Renewed]) {
        let kept: HashSet<_> = renewed.iter().map(|renewed| (&renewed.thread_id, renewed.epoch)).collect();
        let claims = lock(&self.claims);
        for Renewed { thread_id, epoch, cancel } in renewed {
            let stop = claims.get(&(thread_id.clone(), *epoch)).and_then(Option::as_ref);
            if let (Some(cancel), Some(stop)) = (cancel, stop) {
                stop.because(Reason::Cancel(cancel.clone()));
            }
        }
        for lost in asked.iter().filter(|(thread_id, epoch)| !kept.contains(&(thread_id, *epoch))) {
            if let Some(Some(stop)) = claims.get(lost) {
                tracing::warn!(thread_id = %lost.0, epoch = lost.1.0, "the thread was claimed by somebody else");
                stop.because(Reason::Fenced);
            }
        }
    }
}

impl Owned {
    /// The claim as it is now: a handed-over job may have waited for its turn.
    pub(super) fn claim_now(&self) -> Claim {
        let time_left = self.claim.time_left.saturating_sub(self.granted.elapsed());
        Claim { time_left, ..self.claim.clone() }
    }

    /// The claim is about to end: it is still renewed, but losing it is no news.
    pub(super) fn ends(&self) {
        if let Some(stop) = lock(&self.claims).get_mut(&self.key()) {
            *stop = None;
        }
    }

    fn key(&self) -> (ThreadId, Epoch) {
        (self.claim.thread_id.clone(), self.claim.epoch)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.held).remove(&self.receipt);
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        lock(&self.claims).remove(&self.key());
        metrics::gauge!(metric::IN_FLIGHT).decrement(1.0);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Renews claims until `end`. Apart from [`report_progress`], so that a database that hangs does not let
/// messages be delivered again.
pub(super) async fn renew_claims(worker: Arc<Worker>, end: CancellationToken) {
    let mut due = interval(worker.config.renew_every);
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            _ = due.tick() => {}
            () = worker.keepalive.look.notified() => {}
        }
        let asked = worker.keepalive.claims();
        if asked.is_empty() {
            continue;
        }
        match worker.ports.store.renew(&asked).await {
            Ok(renewed) => worker.keepalive.stop_lost(&asked, &renewed),
            // The claims stay ours while their epochs stand; commits are fenced whatever the lease says.
            Err(error) => tracing::warn!(code = error.code(), %error, "leases could not be renewed"),
        }
    }
}

/// Tells the broker of held messages until `end`.
pub(super) async fn report_progress(worker: Arc<Worker>, end: CancellationToken) {
    let mut due = interval(worker.config.progress_every);
    while end.run_until_cancelled(due.tick()).await.is_some() {
        worker.queue.progress(&worker.keepalive.receipts()).await;
    }
}

fn interval(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

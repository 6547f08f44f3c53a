//! What this process does for jobs of others: takes up those whose owner has died, ends those that must not run,
//! publishes results that wait.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Error, Worker, delivery::Slot, handback, job, retell};
use crate::{
    ids::{JobId, ThreadId},
    queue,
    store::{Doomed, StoredResult, Verdict},
    telemetry::{Reserved, metric},
};

/// Time between two looks for threads whose owner has died: with a lease of five seconds their jobs run again
/// about four and a half seconds after a crash.
const SWEEP_EVERY: Duration = Duration::from_millis(500);

/// Looks between two that also ask for queued jobs nobody has taken up: those read every open job.
const QUEUED_EVERY: u32 = 10;

/// Threads taken up in one look; the rest is for others, or for the next look.
const SWEPT_AT_ONCE: usize = 16;

/// How long a look waits for a slot: those of an idle process come back from a pull within a second.
const SLOT_WAIT: Duration = Duration::from_millis(1500);

/// Queued jobs ended in one look.
const ENDED_AT_ONCE: u32 = 64;

/// Of these, how many at the same time.
const ENDED_SIDE_BY_SIDE: usize = 8;

/// Time between two looks for results that wait.
const RELAY_EVERY: Duration = Duration::from_secs(2);

/// How long whoever ended a job may take to publish its result before the relay does.
const RELAY_AGE: Duration = Duration::from_secs(5);

/// Results published in one look, so that a broker that comes back after hours is not flooded.
const RELAYED_AT_ONCE: u32 = 64;

/// What a process waits of the time between two rounds of a duty: jitter lets it come early, and its own last round must
/// not keep it from the next.
pub(super) const EARLY: f64 = 0.75;

/// Takes up what nobody runs and ends what must not run, until the process drains.
pub(super) async fn sweep(worker: Arc<Worker>) {
    for look in 0_u32.. {
        let tick = worker.orders.drain.run_until_cancelled(tokio::time::sleep(jittered(SWEEP_EVERY)));
        if tick.await.is_none() {
            return;
        }
        let swept = match end_doomed(&worker).await {
            Ok(_) => take_up(&worker, look.is_multiple_of(QUEUED_EVERY)).await,
            Err(error) => Err(error),
        };
        if let Err(error) = swept {
            tracing::warn!(%error, "jobs without an owner could not be looked for");
        }
    }
}

/// Publishes results that wait until `end`.
pub(super) async fn relay(worker: Arc<Worker>, end: CancellationToken) {
    let mut after = None;
    while end.run_until_cancelled(tokio::time::sleep(jittered(RELAY_EVERY))).await.is_some() {
        after = publish_waiting(&worker, after).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "results that wait could not be published");
            None
        });
    }
}

/// Processes that start together must not ask together.
pub(super) fn jittered(period: Duration) -> Duration {
    period.mul_f64(0.8 + 0.4 * fastrand::f64())
}

async fn take_up(worker: &Arc<Worker>, queued: bool) -> Result<(), Error> {
    let Ok(first) = timeout(SLOT_WAIT, worker.slots.reserve()).await else { return Ok(()) };
    let mut slots = vec![first];
    while slots.len() < SWEPT_AT_ONCE {
        let Some(slot) = worker.slots.try_reserve() else { break };
        slots.push(slot);
    }
    let limit = u32::try_from(slots.len()).unwrap_or(u32::MAX);
    let orphans = worker.ports.store.orphans(limit, queued, worker.lane.is_free()).await?;
    // A lease of ours may have lapsed while the database was away: its run goes on.
    let orphans = orphans.into_iter().filter(|thread_id| worker.keepalive.owned(thread_id).is_none());
    let adopt = |(thread_id, slot): (ThreadId, Reserved)| async move {
        // One that cannot be had, its row locked or unreadable, must not stand in the way of the others.
        if let Err(error) = adopt(worker, &thread_id, slot.take()).await {
            tracing::warn!(%thread_id, %error, "a job without an owner is not taken up");
        }
    };
    stream::iter(orphans.zip(slots)).for_each_concurrent(SWEPT_AT_ONCE, adopt).await;
    Ok(())
}

/// Claims the thread's next job and lets it run in `slot`.
async fn adopt(worker: &Arc<Worker>, thread_id: &ThreadId, slot: Slot) -> Result<(), Error> {
    if worker.orders.drain.is_cancelled() {
        return Ok(());
    }
    let mut lane = None;
    let mut verdict = worker.ports.store.adopt(thread_id, false).await?;
    if matches!(verdict, Some(Verdict::NeedLane)) {
        let Some(place) = worker.lane.try_reserve() else { return Ok(()) };
        lane = Some(place.take());
        verdict = worker.ports.store.adopt(thread_id, true).await?;
    }
    let (claim, given_up) = match verdict {
        Some(Verdict::Run(claim)) => (claim, false),
        Some(Verdict::Poison(claim)) => (claim, true),
        // Somebody else was faster.
        None
        | Some(
            Verdict::NeedLane
            | Verdict::Rejected(_)
            | Verdict::Parked { .. }
            | Verdict::RunningElsewhere { .. }
            | Verdict::Done
            | Verdict::DoneUnpublished { .. },
        ) => return Ok(()),
    };
    if worker.orders.drain.is_cancelled() {
        return handback::give_back(worker, &claim).await;
    }
    metrics::counter!(metric::ADOPTED).increment(1);
    tracing::warn!(
        job_id = %claim.job_id, thread_id = %claim.thread_id, attempt = claim.attempt,
        "a job whose owner is gone is taken up"
    );
    let owned = worker.keepalive.own(claim);
    let worker = worker.clone();
    worker.tracker.clone().spawn(async move {
        if given_up {
            if let Err(error) = job::give_up(&worker, owned, None).await {
                tracing::warn!(%error, "a job could not be given up");
            }
            drop(slot);
        } else {
            job::chain(worker, owned, slot).await;
        }
        drop(lane);
    });
    Ok(())
}

/// Ends queued jobs that are not to run any more; those that this has ended. Their results go out beside the
/// caller, who must not wait for the broker: the sweep would take up nothing while that is away.
pub(super) async fn end_doomed(worker: &Arc<Worker>) -> Result<Vec<JobId>, Error> {
    let doomed = worker.ports.store.doomed(ENDED_AT_ONCE).await?;
    let end = |doomed: Doomed| async move {
        job::end_doomed(worker, &doomed).await.unwrap_or_else(|error| {
            tracing::warn!(job_id = %doomed.job_id, %error, "a queued job could not be ended");
            None
        })
    };
    let ended = stream::iter(doomed).map(end).buffer_unordered(ENDED_SIDE_BY_SIDE);
    let results: Vec<StoredResult> = ended.filter_map(std::future::ready).collect().await;
    let ended = results.iter().map(|result| result.job_id.clone()).collect();
    if !results.is_empty() {
        worker.tracker.spawn(publish_once(worker.clone(), results));
    }
    Ok(ended)
}

/// Publishes results while the broker answers; the rest is left to the relay.
async fn publish_once(worker: Arc<Worker>, results: Vec<StoredResult>) {
    for result in &results {
        match worker.queue.publish(result).await {
            Ok(()) => job::note_published(&worker, result).await,
            Err(error) => {
                tracing::warn!(job_id = %result.job_id, code = error.code(), %error, "a result waits");
                if matches!(error, queue::Error::Unavailable(_)) || worker.orders.hurry.is_cancelled() {
                    return;
                }
            }
        }
    }
}

/// Publishes results that wait behind that of job `after`. Where the next look begins: behind these, or anew, so
/// that however many the broker refuses hide no newer one.
async fn publish_waiting(worker: &Arc<Worker>, after: Option<JobId>) -> Result<Option<JobId>, Error> {
    let waiting = worker.ports.store.unpublished(RELAY_AGE, after.as_ref(), RELAYED_AT_ONCE).await?;
    let is_full = waiting.len() >= usize::try_from(RELAYED_AT_ONCE).unwrap_or(usize::MAX);
    let last = waiting.last().map(|result| result.job_id.clone()).filter(|_| is_full);
    for result in waiting {
        retell::end(worker, &result.job_id).await;
        match worker.queue.publish(&result).await {
            Ok(()) => {}
            Err(error @ queue::Error::Unavailable(_)) => return Err(error.into()),
            // It must not stand in the way of the others.
            Err(error) => {
                tracing::error!(job_id = %result.job_id, code = error.code(), %error, "a result is refused");
                continue;
            }
        }
        tracing::warn!(job_id = %result.job_id, "a result that waited is published");
        metrics::counter!(metric::RELAYED).increment(1);
        job::note_published(worker, &result).await;
    }
    Ok(last)
}

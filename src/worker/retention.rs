//! Removes what is older than it is kept: ended jobs with their results, dead letters, wishes to cancel, ledger rows,
//! cached writes of nodes and, when the operator says so, checkpoints of threads that have been silent for long.
//!
//! Unless he does, checkpoints stay: they are the conversation, and belong to whoever owns the thread. The row of a
//! thread stays anyway, for a claim could just be looking for it.

use std::{sync::Arc, time::Duration};

use super::{Error, Worker};
use crate::{
    ids::UnixNanos,
    store::{Expired, OldThreads},
};

/// Wait before the first round: pods that scale with the load may live for minutes only.
const FIRST_AFTER: Duration = Duration::from_secs(60);

/// Time between two rounds; what is kept for days may be kept an hour longer.
const EVERY: Duration = Duration::from_secs(3600);

/// Rows of each kind removed by one statement: some milliseconds, so that nobody waits for its locks.
const BATCH: u32 = 500;

/// Pause between two batches: half of the database's time at most.
const PAUSE: Duration = Duration::from_millis(20);

/// Batches of one round: five million jobs, what 1,400 a second leave in an hour.
const MOST_BATCHES: u32 = 10_000;

/// Threads looked at by one statement. Most are not old; of those that are, each may have a thousand rows.
const THREAD_BATCH: u32 = 50;

/// One process in this time looks through all threads.
const THREADS_EVERY: Duration = Duration::from_secs(1800);

/// Removes what is old, until the process drains.
pub(super) async fn keep_tidy(worker: Arc<Worker>) {
    let mut wait = FIRST_AFTER;
    loop {
        let jittered = wait.mul_f64(0.5 + fastrand::f64());
        if worker.orders.drain.run_until_cancelled(tokio::time::sleep(jittered)).await.is_none() {
            return;
        }
        wait = EVERY;
        match forget_writes(&worker).await {
            Ok(0) => {}
            Ok(entries) => {
                tracing::info!(entries, "removed writes of nodes that are too old to be used again")
            }
            Err(error) => tracing::warn!(%error, "old writes of nodes could not be removed"),
        }
        match round(&worker).await {
            Ok(removed) if removed == Expired::default() => {}
            Ok(Expired { jobs, dead_letters, wishes, effects }) => {
                tracing::info!(jobs, dead_letters, wishes, effects, "removed what is older than it is kept");
            }
            Err(error) => tracing::warn!(%error, "what is older than it is kept could not be removed"),
        }
        match old_threads(&worker).await {
            Ok((0, 0)) => {}
            Ok((threads, checkpoints)) => {
                tracing::info!(threads, checkpoints, "removed checkpoints of silent threads")
            }
            Err(error) => tracing::warn!(%error, "checkpoints of silent threads could not be removed"),
        }
    }
}

/// Removes what the cache of nodes may not use any more.
async fn forget_writes(worker: &Worker) -> Result<u64, Error> {
    let mut all = 0;
    for _ in 0..MOST_BATCHES {
        let removed = worker.ports.store.expire_cache(BATCH).await?;
        all += removed;
        let pause = worker.orders.drain.run_until_cancelled(tokio::time::sleep(PAUSE));
        if removed < u64::from(BATCH) || pause.await.is_none() {
            break;
        }
    }
    Ok(all)
}

async fn round(worker: &Worker) -> Result<Expired, Error> {
    let mut all = Expired::default();
    for _ in 0..MOST_BATCHES {
        let removed = worker.ports.store.expire(&worker.config.retention, BATCH).await?;
        all.jobs += removed.jobs;
        all.dead_letters += removed.dead_letters;
        all.wishes += removed.wishes;
        all.effects += removed.effects;
        let pause = worker.orders.drain.run_until_cancelled(tokio::time::sleep(PAUSE));
        if removed.most() < u64::from(BATCH) || pause.await.is_none() {
            break;
        }
    }
    Ok(all)
}

/// Threads of which something was removed, and how many checkpoints.
async fn old_threads(worker: &Worker) -> Result<(u64, u64), Error> {
    let retention = worker.config.threads;
    let Some(age) = retention.after else { return Ok((0, 0)) };
    let store = &worker.ports.store;
    if !store.take_duty("threads", THREADS_EVERY).await? {
        return Ok((0, 0));
    }
    let age = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
    let before = UnixNanos(worker.ports.clock.now().0.saturating_sub(age));
    let old = OldThreads { before, leave: retention.leave, waiting: retention.waiting };
    let (mut threads, mut checkpoints, mut after) = (0, 0, String::new());
    loop {
        let expired = store.expire_threads(&old, &after, THREAD_BATCH).await?;
        threads += expired.threads;
        checkpoints += expired.checkpoints;
        let Some(next) = expired.after else { return Ok((threads, checkpoints)) };
        after = next;
        let pause = worker.orders.drain.run_until_cancelled(tokio::time::sleep(PAUSE));
        if pause.await.is_none() {
            return Ok((threads, checkpoints));
        }
    }
}

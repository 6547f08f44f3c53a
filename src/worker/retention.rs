//! Removes what is older than it is kept: ended jobs with their results, dead letters, wishes to cancel, ledger rows.
//!
//! Checkpoints stay: they are the conversation, and belong to whoever owns the thread. The row of a thread stays
//! with them, for a claim could just be looking for it.

use std::{sync::Arc, time::Duration};

use super::{Error, Worker};
use crate::store::Expired;

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

/// Removes what is old, until the process drains.
pub(super) async fn keep_tidy(worker: Arc<Worker>) {
    let mut wait = FIRST_AFTER;
    loop {
        let jittered = wait.mul_f64(0.5 + fastrand::f64());
        if worker.orders.drain.run_until_cancelled(tokio::time::sleep(jittered)).await.is_none() {
            return;
        }
        wait = EVERY;
        match round(&worker).await {
            Ok(removed) if removed == Expired::default() => {}
            Ok(Expired { jobs, dead_letters, wishes, effects }) => {
                tracing::info!(jobs, dead_letters, wishes, effects, "removed what is older than it is kept");
            }
            Err(error) => tracing::warn!(%error, "what is older than it is kept could not be removed"),
        }
    }
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

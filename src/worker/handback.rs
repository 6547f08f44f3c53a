//! Claims that this process gives back although their jobs have not ended.
//!
//! **Invariant:** a job is not charged for a process that lives, however long the database was away: a claim that
//! could not be given back in time is taken off the job's list of crashes later.

use std::{sync::Arc, time::Duration};

use super::{Error, Worker};
use crate::{
    store::{self, Claim},
    telemetry::metric,
};

/// Wait between two tries while the database is away.
const PAUSE: Duration = Duration::from_secs(3);

/// Tries in all: an outage of ten minutes. After a longer one a job keeps one charge.
const TRIES: u32 = 200;

/// Claims that may wait to be given back at once: ten times the jobs that run by default.
pub(super) const MOST: usize = 1024;

/// Frees the thread of `claim` for others and charges nothing. While the database is away it is tried again beside
/// the caller, who hears of the error.
pub(super) async fn give_back(worker: &Arc<Worker>, claim: &Claim) -> Result<(), Error> {
    metrics::counter!(metric::HANDED_BACK).increment(1);
    let given = once(worker, claim).await;
    if let Err(store::Error::Unavailable(_)) = &given {
        later(worker, claim);
    }
    Ok(given?)
}

/// Takes a lost claim off the job's list of crashes: its owner lives.
pub(super) async fn refund(worker: &Arc<Worker>, claim: &Claim) {
    if let Err(store::Error::Unavailable(_)) = worker.ports.store.refund(claim).await {
        later(worker, claim);
    }
}

async fn once(worker: &Worker, claim: &Claim) -> Result<(), store::Error> {
    match worker.ports.store.release(claim).await {
        // Somebody claimed the thread since.
        Err(store::Error::Fenced { .. }) => worker.ports.store.refund(claim).await,
        released => released,
    }
}

fn later(worker: &Arc<Worker>, claim: &Claim) {
    let Ok(place) = worker.returns.clone().try_acquire_owned() else {
        tracing::warn!(job_id = %claim.job_id, "too many claims wait to be given back; this one lapses");
        return;
    };
    let (worker, claim) = (worker.clone(), claim.clone());
    worker.tracker.clone().spawn(async move {
        let _place = place;
        for _ in 0..TRIES {
            let hurried = worker.orders.hurry.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none();
            match once(&worker, &claim).await {
                Err(store::Error::Unavailable(_)) if !hurried => {}
                Ok(()) => return tracing::info!(job_id = %claim.job_id, "a claim is given back late"),
                Err(error) => {
                    return tracing::warn!(job_id = %claim.job_id, %error, "a claim could not be given back");
                }
            }
        }
    });
}

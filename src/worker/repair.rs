//! What the broker alone does not bring to an end: messages it has forgotten, and messages it gave up.
//!
//! **Invariant:** a message is removed only when its job's result is published, or its dead letter kept.
//! **Invariant:** everything here may be done twice: a killed broker brings back what it had forgotten to forget.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{
    Error, Worker,
    delivery::read,
    job,
    letter::{self, stored_defect},
    upkeep::{EARLY, jittered},
};
use crate::{
    ids::JobId,
    job::{Decoded, Failure, Job},
    queue::{Advisory, AdvisoryKind, Settlement, Stored},
    run::{Outcome, code},
    store::{self, DeadLetter},
    telemetry::metric,
};

/// Messages of one look at the stream.
const AT_ONCE: usize = 64;

/// Looks of one round: more messages than a consumer may have unsettled.
const MAX_LOOKS: usize = 1000;

/// Time between two looks for what the broker gave up.
const ADVISORIES_EVERY: Duration = Duration::from_secs(5);

/// Compares messages that were delivered long ago with the jobs in the store, until the process drains.
pub(super) async fn reconcile(worker: Arc<Worker>) {
    let every = worker.config.reconcile_every;
    let drain = &worker.orders.drain;
    while drain.run_until_cancelled(tokio::time::sleep(jittered(every))).await.is_some() {
        if let Err(error) = one_round(&worker, every.mul_f64(EARLY)).await {
            tracing::warn!(%error, "forgotten messages could not be looked for");
        }
    }
}

async fn one_round(worker: &Arc<Worker>, every: Duration) -> Result<(), Error> {
    if !worker.ports.store.take_duty("reconcile", every).await? {
        return Ok(());
    }
    let mut after = 0;
    for _ in 0..MAX_LOOKS {
        let found = worker.queue.lingering(after, worker.config.lingering, AT_ONCE).await?;
        let Some(last) = found.last() else { return Ok(()) };
        after = last.stream_seq;
        compare(worker, found).await?;
        if worker.orders.drain.is_cancelled() {
            return Ok(());
        }
    }
    Ok(())
}

async fn compare(worker: &Arc<Worker>, found: Vec<Stored>) -> Result<(), Error> {
    let found: Vec<_> = found
        .into_iter()
        .map(|message| (read(worker, &message.headers, &message.payload), message))
        .collect();
    let ids: Vec<JobId> = found.iter().filter_map(|(decoded, _)| job_of(decoded)).collect();
    let known = worker.ports.store.known(&ids).await?.into_iter();
    let known: HashMap<JobId, bool> = known.map(|known| (known.job_id, known.published)).collect();
    for (decoded, message) in found {
        match settle(worker, &message, decoded, &known).await {
            Ok(()) => {}
            Err(away @ Error::Store(store::Error::Unavailable(_))) => return Err(away),
            Err(error) => {
                tracing::warn!(stream_seq = message.stream_seq, %error, "a forgotten message stays");
            }
        }
    }
    Ok(())
}

fn job_of(decoded: &Decoded) -> Option<JobId> {
    match decoded {
        Decoded::Job(job) => Some(job.job_id.clone()),
        Decoded::Unreadable { .. } => None,
    }
}

async fn settle(
    worker: &Arc<Worker>,
    message: &Stored,
    decoded: Decoded,
    known: &HashMap<JobId, bool>,
) -> Result<(), Error> {
    let action = match decoded {
        Decoded::Unreadable { reason, error } => {
            letter::keep(worker, &letter::letter(message, None, (reason, error), 0)).await?;
            worker.queue.discard(message.stream_seq).await?;
            "buried"
        }
        Decoded::Job(job) => match known.get(&job.job_id) {
            None => {
                worker.record(&job, Some(message.stream_seq)).await?;
                "recorded"
            }
            Some(true) => {
                clear(worker, message, &job, 0).await?;
                "discarded"
            }
            // Somebody runs it, or will.
            Some(false) => return Ok(()),
        },
    };
    tracing::warn!(
        stream_seq = message.stream_seq,
        action,
        "a message that the broker had forgotten is settled"
    );
    metrics::counter!(metric::RECONCILED, "action" => action).increment(1);
    Ok(())
}

/// Removes the message of a job whose result is published; one that can never run is kept as a dead letter.
async fn clear(worker: &Worker, message: &Stored, job: &Job, deliveries: u64) -> Result<(), Error> {
    if let Some(defect) = stored_defect(worker, &job.job_id).await? {
        letter::keep(worker, &letter::letter(message, Some(job), defect, deliveries)).await?;
    }
    Ok(worker.queue.discard(message.stream_seq).await?)
}

/// Brings messages that the broker gave up to their end, until the process drains.
pub(super) async fn hear_advisories(worker: Arc<Worker>) {
    let drain = &worker.orders.drain;
    while drain.run_until_cancelled(tokio::time::sleep(jittered(ADVISORIES_EVERY))).await.is_some() {
        let advisories = match worker.queue.advisories(AT_ONCE).await {
            Ok(advisories) => advisories,
            Err(error) => {
                tracing::debug!(code = error.code(), %error, "advisories cannot be read");
                continue;
            }
        };
        for advisory in advisories {
            let done = match take_in(&worker, &advisory).await {
                // It comes again until it is acked.
                Ok(()) => worker.queue.settle(&advisory.receipt, Settlement::Ack).await.map_err(Error::from),
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                tracing::warn!(stream_seq = advisory.stream_seq, %error, "an advisory is not taken in");
            }
        }
    }
}

async fn take_in(worker: &Arc<Worker>, advisory: &Advisory) -> Result<(), Error> {
    let message = worker.queue.fetch(advisory.stream_seq).await?;
    match (advisory.kind, message) {
        (AdvisoryKind::MaxDeliveries, Some(message)) => given_up(worker, advisory, &message).await,
        // Somebody was faster.
        (AdvisoryKind::MaxDeliveries, None) => Ok(()),
        (AdvisoryKind::Terminated, message) => {
            let letter = terminated(worker, advisory, message);
            worker.ports.store.bury(&letter::kept(worker, &letter)).await?;
            Ok(())
        }
    }
}

/// Ends the job of a message that is not delivered any more, unless somebody has started it.
async fn given_up(worker: &Arc<Worker>, advisory: &Advisory, message: &Stored) -> Result<(), Error> {
    let deliveries = advisory.deliveries;
    let sentence = format!("the broker gave the message up after {deliveries} deliveries");
    let job = match read(worker, &message.headers, &message.payload) {
        Decoded::Job(job) => *job,
        Decoded::Unreadable { error, .. } => {
            let defect = ("max_deliveries", format!("{sentence}: {error}"));
            letter::keep(worker, &letter::letter(message, None, defect, deliveries)).await?;
            return Ok(worker.queue.discard(message.stream_seq).await?);
        }
    };
    worker.record(&job, Some(message.stream_seq)).await?;
    let code = code::MAX_DELIVERIES.to_owned();
    let failure = Failure { code, message: sentence, node: None, retryable: true };
    job::end_waiting(worker, &job, Outcome::Failed(failure)).await?;
    let known = worker.ports.store.known(std::slice::from_ref(&job.job_id)).await?;
    if known.first().is_some_and(|known| known.published) {
        clear(worker, message, &job, deliveries).await?;
    }
    // Otherwise it was started: it ends without its message, which is then found as a forgotten one.
    Ok(())
}

/// The letter of a terminated message. Mostly it was us, after keeping one: then this one changes nothing. A work
/// queue has removed the message by now.
fn terminated(worker: &Worker, advisory: &Advisory, message: Option<Stored>) -> DeadLetter {
    let defect = ("terminated", "somebody terminated the message".to_owned());
    let Some(message) = message else {
        let Advisory { stream, stream_seq, deliveries, .. } = advisory;
        let (stream_seq, payload) = (*stream_seq, &bytes::Bytes::new());
        let gone = letter::Message { stream, stream_seq, subject: "", headers: &[], payload };
        return letter::letter(gone, None, (defect.0, format!("{}, which is gone", defect.1)), *deliveries);
    };
    let decoded = read(worker, &message.headers, &message.payload);
    let job = match &decoded {
        Decoded::Job(job) => Some(&**job),
        Decoded::Unreadable { .. } => None,
    };
    letter::letter(&message, job, defect, advisory.deliveries)
}

//! One delivery, from its bytes to its settlement.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use serde_json::Value as Json;

use tokio::sync::OwnedSemaphorePermit;

use super::{
    Error, Worker,
    job::{self, Ended},
    keepalive::Owned,
    report::POISON,
    retell,
    settle::settle,
    turns::Turn,
};
use crate::{
    ids::JobId,
    job::{Decoded, Failure, Job, Task, decode},
    queue::{Delivery, Receipt, Settlement},
    run::code,
    store::{self, DeadLetter, Offer, Verdict},
    telemetry::metric,
};

/// Longest time a parked message goes without asking whether its thread is free: another process may have
/// freed it without a word.
const PARKED_LOOK: Duration = Duration::from_secs(1);

/// How long whoever ended a job may take to publish its result before somebody else does: well above a
/// broker's answer. Later than that, its process has died between the two.
const PUBLISHING: Duration = Duration::from_secs(2);

/// Shortest such time: the lease that is waited for may be about to end.
const SHORTEST_LOOK: Duration = Duration::from_millis(100);

/// Tries to settle a delivery. What is left unsettled is delivered again and found done.
const SETTLE_TRIES: u32 = 5;

/// Wait between two of them.
const SETTLE_PAUSE: Duration = Duration::from_millis(500);

/// A slot, while a job runs in it.
pub(super) type Slot = OwnedSemaphorePermit;

/// What is left to do after a delivery: the thread's next job, in the same slot.
type Follow = Option<(Owned, Slot)>;

/// A delivery that has been read, with its place in its thread's line.
pub(super) struct Arrived {
    delivery: Delivery,
    decoded: Decoded,
    turn: Option<Turn>,
}

impl Arrived {
    /// Reads `delivery`; to be called in the order in which deliveries came.
    pub(super) fn new(worker: &Worker, delivery: Delivery) -> Self {
        // A panic in here would end the pull loop, and the next process would meet the same message.
        let read = || decode(&delivery.headers, &delivery.payload, &worker.codec);
        let decoded = catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Decoded::Unreadable {
            reason: "undecodable",
            error: "reading the message made the executor panic; its log has the place".into(),
        });
        let turn = match &decoded {
            Decoded::Job(job) => Some(worker.turns.line_up(&job.thread_id)),
            Decoded::Unreadable { .. } => None,
        };
        Self { delivery, decoded, turn }
    }
}

pub(super) async fn handle(worker: Arc<Worker>, arrived: Arrived, slot: Slot) {
    let Arrived { delivery, decoded, turn } = arrived;
    let held = worker.keepalive.hold(&delivery.receipt);
    let job_id = match &decoded {
        Decoded::Job(job) => Some(job.job_id.clone()),
        Decoded::Unreadable { .. } => None,
    };
    let (result, follow) = match Box::pin(carry(&worker, &delivery, decoded, (turn, slot))).await {
        Ok(follow) => (Ok(()), follow),
        Err((error, follow)) => (Err(error), follow),
    };
    let settlement = settle(&result, delivery.deliveries);
    report(&delivery, job_id.as_ref(), &result, settlement);
    drop(held);
    settle_for_sure(&worker, &delivery.receipt, settlement).await;
    if let Some((claim, slot)) = follow {
        worker.tracker.spawn(job::chain(worker.clone(), claim, slot));
    }
}

fn report(delivery: &Delivery, job_id: Option<&JobId>, result: &Result<(), Error>, settlement: Settlement) {
    let Err(error) = result else {
        return metrics::counter!(metric::NATS_PROCESSED).increment(1);
    };
    metrics::counter!(metric::NATS_FAILED).increment(1);
    tracing::warn!(
        job_id = job_id.map(JobId::as_str),
        stream_seq = delivery.stream_seq,
        deliveries = delivery.deliveries,
        ?settlement,
        %error,
        "delivery not done"
    );
}

async fn settle_for_sure(worker: &Worker, receipt: &Receipt, settlement: Settlement) {
    let tries = match settlement {
        Settlement::Ack | Settlement::Term => SETTLE_TRIES,
        // A second nak would hit the message under its next worker.
        Settlement::Nak(_) | Settlement::Abandon => 1,
    };
    for _ in 0..tries {
        match worker.queue.settle(receipt, settlement).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(code = error.code(), %error, "a delivery could not be settled"),
        }
        tokio::time::sleep(SETTLE_PAUSE).await;
    }
}

/// Carries the delivery to its end. The error may come with a next job, because the job itself has ended.
async fn carry(
    worker: &Arc<Worker>,
    delivery: &Delivery,
    decoded: Decoded,
    (turn, slot): (Option<Turn>, Slot),
) -> Result<Follow, (Error, Follow)> {
    if worker.orders.drain.is_cancelled() {
        // It came with the last pull; another process starts it sooner than this one could end it.
        return Err((Error::Drained, None));
    }
    let job = match decoded {
        Decoded::Job(job) => *job,
        Decoded::Unreadable { reason, error } => {
            return Err((bury(worker, delivery, None, (reason, error)).await, None));
        }
    };
    let offered = offer(worker, delivery, &job, (turn, slot)).await;
    let Offered { follow, refused } = offered.map_err(|error| (error, None))?;
    let invalid = match &job.task {
        Task::Invalid(problems) => Some(("bad_request", problems.join("; "))),
        Task::Inline(_) | Task::Stored(_) => None,
    };
    match invalid.or(refused) {
        None => Ok(follow),
        Some(defect) => Err((bury(worker, delivery, Some(&job), defect).await, follow)),
    }
}

/// A job that has ended.
struct Offered {
    follow: Follow,
    /// Why it will never run, when that is how it ended.
    refused: Option<Defect>,
}

/// Why a job could never run: reason and sentence.
type Defect = (&'static str, String);

/// What a failure says about its message, when no other run of it could end differently.
fn defect(failure: &Failure) -> Option<Defect> {
    let reason = match failure.code.as_str() {
        code::BAD_REQUEST => "bad_request",
        code::DEFINITION_INVALID => "definition_invalid",
        code::AGENT_NOT_FOUND => "agent_not_found",
        POISON => "poison",
        _ => return None,
    };
    Some((reason, failure.message.clone()))
}

/// The same for a job that ended earlier, from its stored result.
async fn stored_defect(worker: &Worker, job: &Job) -> Result<Option<Defect>, Error> {
    let Some(event) = worker.ports.store.result(&job.job_id).await? else { return Ok(None) };
    let event: Json = serde_json::from_slice(&event).unwrap_or_default();
    let failure: Option<Failure> = serde_json::from_value(event["data"]["error"].clone()).ok();
    Ok(failure.as_ref().and_then(defect))
}

/// Keeps a copy of the message in both places before it is terminated.
async fn bury(worker: &Worker, delivery: &Delivery, job: Option<&Job>, (reason, error): Defect) -> Error {
    let letter = DeadLetter {
        stream: delivery.stream.clone(),
        stream_seq: delivery.stream_seq,
        subject: delivery.subject.clone(),
        headers: delivery.headers.clone(),
        payload: delivery.payload.clone(),
        job_id: job.map(|job| job.job_id.clone()),
        thread_id: job.map(|job| job.thread_id.clone()),
        reason,
        error,
        deliveries: delivery.deliveries,
    };
    if let Err(error) = worker.ports.store.bury(&letter).await {
        return error.into();
    }
    if let Err(error) = worker.queue.bury(&letter).await {
        return error.into();
    }
    metrics::counter!(metric::DEAD_LETTERS, "reason" => reason).increment(1);
    Error::DeadLetter { reason }
}

/// Offers the job to the store until it has ended, wherever it runs.
async fn offer(
    worker: &Arc<Worker>,
    delivery: &Delivery,
    job: &Job,
    (mut turn, slot): (Option<Turn>, Slot),
) -> Result<Offered, Error> {
    let request = serde_json::to_vec(job).expect("a job came from JSON");
    let mut offer = Offer {
        job_id: job.job_id.clone(),
        thread_id: job.thread_id.clone(),
        stream_seq: delivery.stream_seq,
        multitask_strategy: job.multitask_strategy.as_str(),
        request: request.into(),
        timeout: job.config.timeout().unwrap_or(worker.config.job_timeout),
        running: None,
    };
    let mut slot = slot;
    if let Some(turn) = &mut turn {
        turn.come().await;
    }
    loop {
        offer.running = worker.keepalive.owned(&job.thread_id);
        let verdict = accept(worker, &offer).await;
        // The store knows of the job now, and keeps the order from here on.
        drop(turn.take());
        let retry_in = match verdict? {
            Verdict::Run(claim) => {
                let owned = worker.keepalive.own(claim);
                match run_up_to(worker, &job.job_id, owned).await? {
                    Reached::Ended(ended) => {
                        let Ended { next, failure } = *ended;
                        let refused = failure.as_ref().and_then(defect);
                        return Ok(Offered { follow: next.map(|owned| (owned, slot)), refused });
                    }
                    Reached::NotYet => continue,
                }
            }
            Verdict::Poison(claim) => {
                // The next offer finds the job done, or the thread free for it.
                job::give_up(worker, worker.keepalive.own(claim)).await?;
                continue;
            }
            Verdict::Done => {
                return Ok(Offered { follow: None, refused: stored_defect(worker, job).await? });
            }
            Verdict::DoneUnpublished { ended, .. } if ended < PUBLISHING => PUBLISHING - ended,
            Verdict::DoneUnpublished { result, .. } => {
                retell::end(worker, job, &result).await;
                job::publish(worker, &result).await?;
                return Ok(Offered { follow: None, refused: stored_defect(worker, job).await? });
            }
            Verdict::Parked { retry_in } | Verdict::RunningElsewhere { retry_in } => retry_in,
        };
        drop(slot);
        slot = park(worker, job, retry_in).await?;
    }
}

/// How far a thread's jobs have got.
enum Reached {
    /// The delivery's own job has ended; perhaps the next one of the thread was handed over.
    Ended(Box<Ended>),
    /// Older jobs have ended, or were given to others; the own job is to be offered again.
    NotYet,
}

/// Runs the thread's jobs from `owned` on, up to the delivery's own. Older jobs go first; their own messages
/// are settled by whoever holds them.
async fn run_up_to(worker: &Arc<Worker>, own: &JobId, owned: Owned) -> Result<Reached, Error> {
    let mut next = Some(owned);
    while let Some(owned) = next {
        let job_id = owned.claim.job_id.clone();
        match job::run(worker, owned).await {
            Ok(ended) if job_id == *own => return Ok(Reached::Ended(Box::new(ended))),
            Ok(ended) => next = ended.next,
            Err(error) if job_id == *own => return Err(error),
            // Neither would end better at the next offer: the message goes back to the queue.
            Err(error @ (Error::Drained | Error::Store(store::Error::Unavailable(_)))) => return Err(error),
            Err(error) => {
                // What became of an older job does not decide about this message.
                tracing::warn!(%job_id, %error, "an older job of the thread was not carried to its end");
                next = None;
            }
        }
    }
    Ok(Reached::NotYet)
}

async fn accept(worker: &Worker, offer: &Offer) -> Result<Verdict, Error> {
    let accepted = worker.ports.store.accept(offer).await;
    if matches!(accepted, Err(store::Error::Unavailable(_))) {
        worker.store_away.store(true, std::sync::atomic::Ordering::Relaxed);
    }
    Ok(accepted?)
}

/// Waits outside of a slot until the thread may be free.
async fn park(worker: &Worker, job: &Job, retry_in: Duration) -> Result<Slot, Error> {
    let Ok(_place) = worker.parking.clone().try_acquire_owned() else { return Err(Error::Crowded) };
    let freed = worker.freed(&job.thread_id);
    let look_in = retry_in.clamp(SHORTEST_LOOK, PARKED_LOOK);
    tokio::select! {
        () = worker.orders.drain.cancelled() => return Err(Error::Drained),
        () = freed.notified() => {}
        () = tokio::time::sleep(look_in) => {}
    }
    tokio::select! {
        () = worker.orders.drain.cancelled() => Err(Error::Drained),
        slot = worker.slots.clone().acquire_owned() => slot.map_err(|_| Error::Drained),
    }
}

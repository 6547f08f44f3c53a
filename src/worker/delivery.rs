//! One delivery, from its bytes to its settlement.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use super::{
    Error, Worker,
    budget::{Weight, weight},
    job::{self, AtHand, Published},
    keepalive::Owned,
    letter::{self, Defect, defect, stored_defect},
    retell,
    settle::settle,
    turns::Turn,
};
use crate::{
    ids::JobId,
    job::{Decoded, Job, Task, decode},
    queue::{Delivery, Receipt, Settlement},
    store::{self, Claim, Offer, Verdict},
    telemetry::{Pass, metric},
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
pub(super) type Slot = Pass;

/// A delivery that has been read, with its place in its thread's line.
pub(super) struct Arrived {
    delivery: Delivery,
    decoded: Decoded,
    turn: Option<Turn>,
    weight: Weight,
}

impl Arrived {
    /// Reads `delivery`; to be called in the order in which deliveries came.
    pub(super) fn new(worker: &Worker, delivery: Delivery) -> Self {
        let decoded = read(worker, &delivery.headers, &delivery.payload);
        let turn = match &decoded {
            Decoded::Job(job) => Some(worker.turns.line_up(&job.thread_id)),
            Decoded::Unreadable { .. } => None,
        };
        let weight = worker.budget.hold(&delivery);
        Self { delivery, decoded, turn, weight }
    }
}

/// Reads a message. A panic in here would end its loop, and the next process would meet the same message.
pub(super) fn read(worker: &Worker, headers: &[(String, String)], payload: &[u8]) -> Decoded {
    let read = || decode(headers, payload, &worker.codec);
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Decoded::Unreadable {
        reason: "undecodable",
        error: "reading the message made the executor panic; its log has the place".into(),
    })
}

pub(super) async fn handle(worker: Arc<Worker>, arrived: Arrived, slot: Slot) {
    let Arrived { delivery, decoded, turn, weight: _weight } = arrived;
    let held = worker.keepalive.hold(&delivery.receipt);
    let job_id = match &decoded {
        Decoded::Job(job) => Some(job.job_id.clone()),
        Decoded::Unreadable { .. } => None,
    };
    let result = Box::pin(carry(&worker, &delivery, decoded, (turn, slot))).await;
    let settlement = settle(&result, delivery.deliveries);
    report(&delivery, job_id.as_ref(), &result, settlement);
    drop(held);
    settle_for_sure(&worker, &delivery.receipt, settlement).await;
}

fn report(delivery: &Delivery, job_id: Option<&JobId>, result: &Result<(), Error>, settlement: Settlement) {
    let Err(error) = result else {
        return metrics::counter!(metric::NATS_PROCESSED).increment(1);
    };
    metrics::counter!(metric::NATS_FAILED).increment(1);
    if matches!(error, Error::Crowded) {
        // Its job is known to the store and will run; a long line of them is no news each.
        tracing::debug!(stream_seq = delivery.stream_seq, %error, "delivery handed back");
        return;
    }
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

/// Carries the delivery to its end.
async fn carry(
    worker: &Arc<Worker>,
    delivery: &Delivery,
    decoded: Decoded,
    (turn, slot): (Option<Turn>, Slot),
) -> Result<(), Error> {
    if worker.orders.drain.is_cancelled() {
        // It came with the last pull; another process starts it sooner than this one could end it.
        return Err(Error::Drained);
    }
    let job = match decoded {
        Decoded::Job(job) => Arc::<Job>::from(job),
        Decoded::Unreadable { reason, error } => {
            return Err(bury(worker, delivery, None, (reason, error)).await);
        }
    };
    let refused = offer(worker, delivery, &job, (turn, slot)).await?;
    let invalid = match &job.task {
        Task::Invalid(problems) => Some(("bad_request", problems.join("; "))),
        Task::Inline(_) | Task::Stored(_) => None,
    };
    match invalid.or(refused) {
        None => Ok(()),
        Some(defect) => Err(bury(worker, delivery, Some(&job), defect).await),
    }
}

/// Keeps a copy of the message before it is terminated.
async fn bury(worker: &Worker, delivery: &Delivery, job: Option<&Job>, defect: Defect) -> Error {
    let reason = defect.0;
    let kept = letter::keep(worker, &letter::letter(delivery, job, defect, delivery.deliveries)).await;
    kept.err().unwrap_or(Error::DeadLetter { reason })
}

/// Offers the job to the store until it has ended, wherever it runs; why it will never run, when that is how it ended.
async fn offer(
    worker: &Arc<Worker>,
    delivery: &Delivery,
    job: &Arc<Job>,
    (mut turn, mut slot): (Option<Turn>, Slot),
) -> Result<Option<Defect>, Error> {
    let mut offer = Offer::of(job, delivery.stream_seq, worker.config.job_timeout);
    let at_hand = AtHand { job: job.clone(), request: offer.record.request.clone() };
    let mut offered = Offered { worker, delivery, at_hand, lane: None, has_told: false };
    if let Some(turn) = &mut turn {
        turn.come().await;
    }
    loop {
        offer.running = worker.keepalive.owned(&job.thread_id);
        offer.lane = offered.lane.is_some();
        let verdict = accept(worker, &offer).await;
        // The store knows of the job now, and keeps the order from here on.
        drop(turn.take());
        match offered.heed(verdict?).await? {
            Next::Again => {}
            Next::Lane => {
                drop(slot);
                let (entered, lane) = enter_lane(worker, job, weight(delivery)).await?;
                (slot, offered.lane) = (entered, Some(lane));
            }
            Next::Wait(retry_in) => {
                offered.lane = None;
                drop(slot);
                slot = park(worker, job, (weight(delivery), retry_in)).await?;
            }
            Next::Ended { defect, next } => {
                follow(worker, next, slot);
                return Ok(defect);
            }
        }
    }
}

/// A delivery's job, while it is offered to the store.
struct Offered<'a> {
    worker: &'a Arc<Worker>,
    delivery: &'a Delivery,
    at_hand: AtHand,
    /// The place of suspects, while it is held for this job.
    lane: Option<Slot>,
    /// Whether the owner of the thread has been told that this job wants it to stop.
    has_told: bool,
}

/// What follows from an answer of the store.
enum Next {
    /// The job is offered again at once.
    Again,
    /// The same, with the place of suspects.
    Lane,
    /// The same, when the thread has been freed, or after this time.
    Wait(Duration),
    /// The job has ended.
    Ended {
        /// Why it will never run, when that is how it ended.
        defect: Option<Defect>,
        /// The claim of the thread's next job, when the store handed it over.
        next: Option<Box<Owned>>,
    },
}

impl Next {
    /// The job has ended, and nothing was handed over.
    fn over(defect: Option<Defect>) -> Self {
        Self::Ended { defect, next: None }
    }
}

impl Offered<'_> {
    /// Does what the store has answered.
    async fn heed(&mut self, verdict: Verdict) -> Result<Next, Error> {
        let Self { worker, at_hand: AtHand { job, .. }, .. } = self;
        Ok(match verdict {
            Verdict::Run(claim) => self.run(claim).await?,
            Verdict::NeedLane => Next::Lane,
            Verdict::Rejected(cancel) => {
                let is_over = job::end_waiting(worker, job, job::unwanted(&cancel)).await?;
                if is_over { Next::over(None) } else { Next::Again }
            }
            Verdict::Poison(claim) => {
                // The next offer finds the job done, or the thread free for it.
                let message = Some(self.delivery).filter(|_| claim.job_id == job.job_id);
                job::give_up(worker, worker.keepalive.own(claim), message).await?;
                Next::Again
            }
            Verdict::Done => Next::over(ended_before(worker, job).await?),
            Verdict::DoneUnpublished { ended, .. } if ended < PUBLISHING => Next::Wait(PUBLISHING - ended),
            Verdict::DoneUnpublished { result, .. } => {
                // Readers need not wait for the broker.
                let defect = ended_before(worker, job).await?;
                job::publish(worker, &result).await?;
                Next::over(defect)
            }
            Verdict::Parked { retry_in } => {
                if job.multitask_strategy.stops_others() && !std::mem::replace(&mut self.has_told, true) {
                    worker.tell_owner(&job.thread_id).await;
                }
                Next::Wait(retry_in)
            }
            Verdict::RunningElsewhere { retry_in } => Next::Wait(retry_in),
        })
    }

    /// Runs the thread's jobs from the claimed one on, up to this one.
    async fn run(&mut self, claim: Claim) -> Result<Next, Error> {
        if !claim.suspect {
            self.lane = None;
        }
        let owned = self.worker.keepalive.own(claim);
        let Some(Published { next, failure }) = run_up_to(self.worker, &self.at_hand, owned).await? else {
            self.lane = None;
            return Ok(Next::Again);
        };
        Ok(Next::Ended { defect: failure.as_ref().and_then(defect), next: next.map(Box::new) })
    }
}

/// Starts the thread's next job, if there is one, at once: neither settling the delivery nor its letter is its concern.
fn follow(worker: &Arc<Worker>, next: Option<Box<Owned>>, slot: Slot) {
    if let Some(next) = next {
        worker.tracker.spawn(job::chain(worker.clone(), *next, slot));
    }
}

/// The job ended earlier, perhaps unheard; what its message deserves shows in its stored result.
async fn ended_before(worker: &Worker, job: &Job) -> Result<Option<Defect>, Error> {
    retell::end(worker, &job.job_id).await;
    stored_defect(worker, &job.job_id).await
}

/// Runs the thread's jobs from `owned` on, up to the delivery's own. Older jobs go first; their own messages
/// are settled by whoever holds them. `None` when they have ended, or were given to others, and the own job is to be
/// offered again.
async fn run_up_to(worker: &Arc<Worker>, at_hand: &AtHand, owned: Owned) -> Result<Option<Published>, Error> {
    let own = &at_hand.job.job_id;
    let mut next = Some(owned);
    while let Some(owned) = next {
        let job_id = owned.claim.job_id.clone();
        match job::run(worker, owned, Some(at_hand)).await {
            Ok(ended) if job_id == *own => return Ok(Some(ended)),
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
    Ok(None)
}

async fn accept(worker: &Worker, offer: &Offer) -> Result<Verdict, Error> {
    let accepted = worker.ports.store.accept(offer).await;
    if matches!(accepted, Err(store::Error::Unavailable(_))) {
        worker.store_away.store(true, std::sync::atomic::Ordering::Relaxed);
    }
    Ok(accepted?)
}

/// Waits for the one place of jobs that are suspected to kill their process, then for a slot.
async fn enter_lane(worker: &Worker, job: &Job, bytes: usize) -> Result<(Slot, Slot), Error> {
    let _place = worker.parking.enter(&job.thread_id, bytes)?;
    let enter = async {
        let lane = worker.lane.enter().await;
        (worker.slots.enter().await, lane)
    };
    tokio::select! {
        () = worker.orders.drain.cancelled() => Err(Error::Drained),
        entered = enter => Ok(entered),
    }
}

/// Waits outside of a slot until the thread may be free.
async fn park(worker: &Worker, job: &Job, (bytes, retry_in): (usize, Duration)) -> Result<Slot, Error> {
    let _place = worker.parking.enter(&job.thread_id, bytes)?;
    let freed = worker.freed(&job.thread_id);
    let look_in = retry_in.clamp(SHORTEST_LOOK, PARKED_LOOK);
    tokio::select! {
        () = worker.orders.drain.cancelled() => return Err(Error::Drained),
        () = freed.notified() => {}
        () = tokio::time::sleep(look_in) => {}
    }
    tokio::select! {
        () = worker.orders.drain.cancelled() => Err(Error::Drained),
        slot = worker.slots.enter() => Ok(slot),
    }
}

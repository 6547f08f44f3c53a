//! One claimed job: run, make its end durable, tell about it, publish its result.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tracing::Instrument;

use super::{Error, Orders, Worker, delivery::Slot, handback, keepalive::Owned, letter, report};
use crate::{
    job::{Failure, Job, Spent, Totals},
    queue::{self, Delivery},
    run::{self, Attempt, Ended, Outcome, Reason, Report},
    store::{self, Cancel, CancelKind, Claim, Doomed, NextJob, StoredResult},
    telemetry::{self, label, metric},
};

/// First wait after the store or the queue was away; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// An outage of minutes is asked about every few seconds: soon enough, and no storm when it ends.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// How long the end of a job may take to be stored once the process was told to hurry.
const LAST_ANSWER: Duration = Duration::from_secs(2);

/// Longest wait for the last events of a job whose thread is left to others.
const LAST_EVENTS: Duration = Duration::from_millis(300);

/// A job as its message says it, with the request the store was given.
pub(super) struct AtHand {
    pub(super) job: Arc<Job>,
    pub(super) request: Bytes,
}

/// A job that has ended, its result published.
pub(super) struct Published {
    /// The claim of the thread's next job, when the store handed it over.
    pub(super) next: Option<Owned>,
    /// Why it failed, when it did.
    pub(super) failure: Option<Failure>,
}

/// Runs the claimed job to its published result, or gives it up for somebody else to continue. `at_hand` is the job
/// as its message says it, when the claim is for that very request.
pub(super) async fn run(
    worker: &Arc<Worker>,
    owned: Owned,
    at_hand: Option<&AtHand>,
) -> Result<Published, Error> {
    let claim = &owned.claim;
    let span = tracing::info_span!(
        "job",
        otel.name = "job",
        otel.kind = "consumer",
        job_id = %claim.job_id,
        thread_id = %claim.thread_id,
        attempt = claim.attempt,
        trace_id = tracing::field::Empty,
    );
    let mut job = match at_hand {
        Some(at_hand) if at_hand.request == claim.request => Ok(at_hand.job.clone()),
        Some(_) | None => serde_json::from_slice(&claim.request).map(Arc::new),
    };
    if let Ok(job) = &mut job {
        join_trace(&span, job);
        // Without a sender's trace, readers of the result may join ours.
        if job.traceparent.is_none()
            && let Some(ours) = telemetry::traceparent_of(&span)
        {
            Arc::make_mut(job).traceparent = Some(ours);
        }
    }
    async move {
        tracing::info!("job started");
        match (job, &owned.claim.cancel) {
            (job, Some(cancel)) => {
                let outcome = match &job {
                    Ok(job) => unwanted(&run::carried_out(cancel, job)),
                    Err(_) => unwanted(cancel),
                };
                end_early(worker, owned, job.ok(), outcome).await
            }
            (Ok(job), None) => attempt(worker, owned, job).await,
            (Err(error), None) => {
                let reason = format!("the stored request cannot be read: {error}");
                end_early(worker, owned, None, Outcome::internal(reason)).await
            }
        }
    }
    .instrument(span)
    .await
}

fn join_trace(span: &tracing::Span, job: &Job) {
    if let Some(traceparent) = &job.traceparent {
        telemetry::set_parent(span, traceparent);
    }
    let of_parent = job.traceparent.as_deref().and_then(telemetry::trace_id);
    if let Some(trace_id) = of_parent.or(job.trace_id.as_deref()) {
        span.record("trace_id", trace_id);
    }
}

/// Ends a job that has killed too many of its owners, and leaves the thread free. `delivery` is of the job itself,
/// when it is in hand.
pub(super) async fn give_up(
    worker: &Arc<Worker>,
    owned: Owned,
    delivery: Option<&Delivery>,
) -> Result<(), Error> {
    let Claim { attempt, head, .. } = &owned.claim;
    let last = head.as_ref().map(|id| format!("; the thread's last checkpoint is {id}"));
    let message = format!(
        "given up: attempts of this job ended with their process, {attempt} so far{}",
        last.unwrap_or_default()
    );
    // First: of a job that has ended nobody would make one who has no message of it.
    if let Err(error) = letter::keep_claimed(worker, &owned.claim, delivery, &message).await {
        let _ = handback::give_back(worker, &owned.claim).await;
        return Err(error);
    }
    let code = run::code::POISON.to_owned();
    let outcome = Outcome::Failed(Failure { code, message, node: None, retryable: false });
    match end_early(worker, owned, None, outcome).await?.next {
        None => Ok(()),
        Some(next) => handback::give_back(worker, &next.claim).await,
    }
}

/// How a job ends that somebody does not want: what was turned away has failed.
pub(super) fn unwanted(cancel: &Cancel) -> Outcome {
    let failure = run::unwanted(cancel);
    match cancel.kind {
        CancelKind::Reject => Outcome::Failed(failure),
        CancelKind::Cancel | CancelKind::Interrupt | CancelKind::Rollback => Outcome::Cancelled(failure),
    }
}

/// Runs the jobs the thread hands over, one after the other, in one slot.
pub(super) async fn chain(worker: Arc<Worker>, owned: Owned, slot: Slot) {
    let _slot = slot;
    let mut next = Some(owned);
    while let Some(owned) = next {
        let (job_id, thread_id) = (owned.claim.job_id.clone(), owned.claim.thread_id.clone());
        next = match run(&worker, owned, None).await {
            Ok(ended) => ended.next,
            // Its message is held by somebody, who offers the job again.
            Err(error) => {
                tracing::warn!(%job_id, %thread_id, %error, "a handed-over job was not carried to its end");
                None
            }
        };
    }
}

async fn attempt(worker: &Arc<Worker>, owned: Owned, job: Arc<Job>) -> Result<Published, Error> {
    let started = Instant::now();
    if worker.orders.hurry.is_cancelled() {
        owned.stop.because(Reason::Drain);
    }
    let attempt = Attempt::new(worker.ports.clone(), owned.claim_now(), job.clone(), owned.stop.clone());
    let emitter = attempt.emitter.clone();
    // A task of its own: a panic in a node ends this job, not the process.
    let ran = worker.tracker.spawn(run::run(attempt).in_current_span()).await;
    let (result, spent) = ran.unwrap_or_else(|_| (Ok(Report::early(Outcome::panicked())), Spent::default()));
    let report = match result {
        Ok(report) => report,
        Err(error) => hand_back(worker, &owned.claim, error).await?,
    };
    let elapsed = started.elapsed();
    finish(worker, owned, Ended { job: &job, report, emitter: &emitter, spent, elapsed }).await
}

/// What an unfinished run means: freed for others, abandoned in silence, or failed for good.
async fn hand_back(worker: &Arc<Worker>, claim: &Claim, error: run::Error) -> Result<Report, Error> {
    match error {
        run::Error::Stopped(Reason::Drain) => {
            handback::give_back(worker, claim).await?;
            tracing::info!("job handed back");
            Err(Error::Drained)
        }
        run::Error::Stopped(Reason::Fenced) | run::Error::Store(store::Error::Fenced { .. }) => {
            handback::refund(worker, claim).await;
            Err(store::Error::Fenced { thread_id: claim.thread_id.clone(), epoch: claim.epoch }.into())
        }
        run::Error::Store(away @ store::Error::Unavailable(_)) => {
            let _ = handback::give_back(worker, claim).await;
            Err(away.into())
        }
        run::Error::Stopped(Reason::Cancel(cancel)) => Ok(Report::early(unwanted(&cancel))),
        run::Error::Store(error) => Ok(Report::early(Outcome::unstorable(&error))),
    }
}

/// Ends a claimed job that is not run.
async fn end_early(
    worker: &Arc<Worker>,
    owned: Owned,
    job: Option<Arc<Job>>,
    outcome: Outcome,
) -> Result<Published, Error> {
    let claim = owned.claim.clone();
    let nameless = || Arc::new(Job::nameless(claim.job_id.clone(), claim.thread_id.clone()));
    let job = job.unwrap_or_else(nameless);
    let attempt = Attempt::new(worker.ports.clone(), claim, job, owned.stop.clone());
    attempt.tell_start(None);
    let (spent, elapsed) = (Spent::default(), Duration::ZERO);
    let report = Report::early(outcome);
    let ended = Ended { job: &attempt.job, report, emitter: &attempt.emitter, spent, elapsed };
    finish(worker, owned, ended).await
}

/// Ends a job that was never started, and publishes its result. `false` when it is no longer queued.
pub(super) async fn end_waiting(worker: &Arc<Worker>, job: &Job, outcome: Outcome) -> Result<bool, Error> {
    let Some(result) = end_unstarted(worker, job, outcome).await? else { return Ok(false) };
    publish(worker, &result).await?;
    Ok(true)
}

/// Ends a job that was never started; its result, which is still to be published. `None` when it is no longer queued.
async fn end_unstarted(
    worker: &Arc<Worker>,
    job: &Job,
    outcome: Outcome,
) -> Result<Option<StoredResult>, Error> {
    let report = Report::early(outcome);
    let written = report::result(worker, job, &report.outcome, &Totals::default());
    let ending = written.ending(&report.outcome);
    if !worker.ports.store.end(&ending).await? {
        return Ok(None);
    }
    worker.announce(&job.thread_id);
    count(&report, Duration::ZERO);
    Ok(Some(ending.result))
}

/// Ends a queued job that is not to run any more; its result, which is still to be published.
pub(super) async fn end_doomed(worker: &Arc<Worker>, doomed: &Doomed) -> Result<Option<StoredResult>, Error> {
    let job: Result<Job, _> = serde_json::from_slice(&doomed.request);
    let job = job.unwrap_or_else(|_| Job::nameless(doomed.job_id.clone(), doomed.thread_id.clone()));
    let outcome = match &doomed.cancel {
        Some(cancel) => unwanted(cancel),
        None => Outcome::Failed(run::late(job.config.timeout().unwrap_or(worker.config.job_timeout))),
    };
    end_unstarted(worker, &job, outcome).await
}

/// Makes the end durable, tells readers of the stream, publishes the result.
async fn finish(worker: &Arc<Worker>, owned: Owned, mut ended: Ended<'_>) -> Result<Published, Error> {
    // A renewal that is on its way while the claim ends must not look like a loss.
    owned.ends();
    let has_last = ended.report.last.is_some();
    let stored = match store_end(worker, &owned, &mut ended).await {
        Err(Error::Store(error)) if has_last && error.is_of_the_data() => {
            // What the run held last cannot be stored: the job ends where the superstep before left it.
            ended.report = Report::early(Outcome::unstorable(&error));
            store_end(worker, &owned, &mut ended).await?
        }
        stored => stored?,
    };
    let claim = owned.claim.clone();
    drop(owned);
    ended.tell();
    if stored.next.is_none() && worker.orders.drain.is_cancelled() {
        // Another process may start the thread's next job at once, and its higher epoch would shut out our end.
        worker.ports.sink.flush(LAST_EVENTS).await;
    }
    worker.announce(&claim.thread_id);
    count(&ended.report, ended.elapsed);
    if let Err(error) = publish(worker, &stored.result).await {
        if let Some(next) = stored.next {
            // Told to hurry: the result is safe in the outbox, the next job is for others.
            handback::give_back(worker, &next.claim).await?;
        }
        return Err(error);
    }
    Ok(Published { next: stored.next, failure: ended.report.outcome.failure().cloned() })
}

/// A job's end that is durable.
struct Stored {
    result: StoredResult,
    next: Option<Owned>,
}

async fn store_end(worker: &Arc<Worker>, owned: &Owned, ended: &mut Ended<'_>) -> Result<Stored, Error> {
    let numbers = ended.totals(owned.claim.attempt);
    let written = report::result(worker, ended.job, &ended.report.outcome, &numbers);
    let next = if worker.orders.drain.is_cancelled() { NextJob::Leave } else { NextJob::Take };
    let finish = ended.finish(&owned.claim, written, next);
    let result = finish.result.clone();
    let answered = until_answered(worker, || worker.ports.store.finish(&finish)).await;
    if let Err(Error::Store(store::Error::Fenced { .. })) = &answered {
        // Whoever took the thread charged the job for our death; we live.
        handback::refund(worker, &owned.claim).await;
    }
    let next = answered?.map(|claim| worker.keepalive.own(claim));
    Ok(Stored { result, next })
}

fn count(report: &Report, elapsed: Duration) {
    let status = report.outcome.status();
    metrics::counter!(metric::JOBS, "status" => status).increment(1);
    metrics::histogram!(metric::JOB_SECONDS).record(elapsed.as_secs_f64());
    let duration_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    let steps = report.steps;
    match report.outcome.failure() {
        None => tracing::info!(status, duration_ms, steps, "job ended"),
        Some(Failure { code, message, node, .. }) => {
            if status == "failed" {
                metrics::counter!(metric::JOB_FAILURES, "code" => label::CODE.value(code)).increment(1);
            }
            let node = node.as_deref();
            tracing::warn!(status, duration_ms, steps, %code, node, error = %message, "job ended");
        }
    }
}

/// The wait between two calls of a server that is away.
struct Pause {
    next: Duration,
}

impl Pause {
    fn new() -> Self {
        Self { next: FIRST_PAUSE }
    }

    /// Waits, longer each time; a process that is told to hurry waits no more.
    async fn wait(&mut self, orders: &Orders) {
        tokio::select! {
            () = tokio::time::sleep(self.next) => self.next = (self.next * 2).min(LONGEST_PAUSE),
            () = orders.hurry.cancelled() => {}
        }
    }
}

/// Calls the store until it answers; what was stored stays stored when an answer is lost. Told to hurry, it leaves
/// the end to others after a moment.
async fn until_answered<T, F>(worker: &Worker, call: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, store::Error>>,
{
    let mut pause = Pause::new();
    loop {
        let answered = tokio::select! {
            answered = call() => answered,
            () = hurried(worker) => Err(store::Error::Unavailable("no answer in time".into())),
        };
        match answered {
            Err(away @ store::Error::Unavailable(_)) => {
                if worker.orders.hurry.is_cancelled() {
                    return Err(away.into());
                }
                tracing::warn!(code = away.code(), error = %away, "the end of a job waits for the database");
            }
            answered => return Ok(answered?),
        }
        pause.wait(&worker.orders).await;
    }
}

/// Resolves a moment after the process was told to hurry.
async fn hurried(worker: &Worker) {
    worker.orders.hurry.cancelled().await;
    tokio::time::sleep(LAST_ANSWER).await;
}

/// Publishes a stored result until the broker confirms it, then notes that it did.
pub(super) async fn publish(worker: &Arc<Worker>, result: &StoredResult) -> Result<(), Error> {
    let mut pause = Pause::new();
    let span = || tracing::info_span!("result_publish");
    while let Err(error) = worker.queue.publish(result).instrument(span()).await {
        tracing::warn!(code = error.code(), %error, "a result waits for the broker");
        // A refusal needs an operator; until then the result is safe in the outbox, and its message comes again.
        if worker.orders.hurry.is_cancelled() || !matches!(error, queue::Error::Unavailable(_)) {
            return Err(error.into());
        }
        pause.wait(&worker.orders).await;
    }
    note_published(worker, result).await;
    Ok(())
}

/// What is left to do with a result that is in the results stream.
pub(super) async fn note_published(worker: &Worker, result: &StoredResult) {
    if let Err(error) = worker.ports.store.mark_published(&result.job_id).await {
        // Harmless: whoever finds it unmarked publishes it again under the same id.
        tracing::warn!(code = error.code(), %error, "a published result could not be marked");
    }
    if let Some(sink) = worker.result_sink.clone() {
        worker.posts.post(sink, result.event.clone());
    }
}

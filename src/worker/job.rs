//! One claimed job: run, make its end durable, tell about it, publish its result.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::Instrument;

use super::{Error, Worker, delivery::Slot, keepalive::Owned, report};
use crate::{
    job::{Failure, Job, MultitaskStrategy},
    queue,
    run::{self, Attempt, Outcome, Reason, Report, Stop, tell_end},
    store::{self, Claim, Finish, NextJob, StoredResult},
    stream::Emitter,
    telemetry::{self, metric},
    value::Usage,
};

/// First wait after the store or the queue was away; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// An outage of minutes is asked about every few seconds: soon enough, and no storm when it ends.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// Longest wait for the last events of a job whose thread is left to others.
const LAST_EVENTS: Duration = Duration::from_millis(300);

/// A job that has ended, its result published.
pub(super) struct Ended {
    /// The claim of the thread's next job, when the store handed it over.
    pub(super) next: Option<Owned>,
    /// Why it failed, when it did.
    pub(super) failure: Option<Failure>,
}

/// Runs the claimed job to its published result, or gives it up for somebody else to continue.
pub(super) async fn run(worker: &Arc<Worker>, owned: Owned) -> Result<Ended, Error> {
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
    let mut job: Result<Job, _> = serde_json::from_slice(&claim.request);
    if let Ok(job) = &mut job {
        join_trace(&span, job);
        // Without a sender's trace, readers of the result may join ours.
        job.traceparent = job.traceparent.take().or_else(|| telemetry::traceparent_of(&span));
    }
    async move {
        tracing::info!("job started");
        if let Ok(job) = &job {
            warn_of_unkept(job);
        }
        match job {
            Ok(job) => attempt(worker, owned, job).await,
            Err(error) => {
                let reason = format!("the stored request cannot be read: {error}");
                end_early(worker, owned, failure(run::code::INTERNAL, reason)).await
            }
        }
    }
    .instrument(span)
    .await
}

/// What a request may ask for and does not get yet; said rather than passed over.
fn warn_of_unkept(job: &Job) {
    if job.config.budget.is_some_and(|budget| budget.max_cost_usd.is_some()) {
        tracing::warn!("budget.max_cost_usd is not enforced: no prices are known");
    }
    if job.multitask_strategy != MultitaskStrategy::Enqueue {
        tracing::warn!(
            strategy = job.multitask_strategy.as_str(),
            "this multitask_strategy acts like enqueue"
        );
    }
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

/// Ends a job that has killed too many of its owners, and leaves the thread free.
pub(super) async fn give_up(worker: &Arc<Worker>, owned: Owned) -> Result<(), Error> {
    let attempts = owned.claim.attempt;
    let message = format!("given up: attempts of this job ended with their process, {attempts} so far");
    match end_early(worker, owned, failure(report::POISON, message)).await?.next {
        None => Ok(()),
        Some(next) => Ok(worker.ports.store.release(&next.claim).await?),
    }
}

fn failure(code: &str, message: String) -> Failure {
    Failure { code: code.to_owned(), message, node: None, retryable: false }
}

/// Runs the jobs the thread hands over, one after the other, in one slot.
pub(super) async fn chain(worker: Arc<Worker>, owned: Owned, slot: Slot) {
    let _slot = slot;
    let mut next = Some(owned);
    while let Some(owned) = next {
        let (job_id, thread_id) = (owned.claim.job_id.clone(), owned.claim.thread_id.clone());
        next = match run(&worker, owned).await {
            Ok(ended) => ended.next,
            // Its message is held by somebody, who offers the job again.
            Err(error) => {
                tracing::warn!(%job_id, %thread_id, %error, "a handed-over job was not carried to its end");
                None
            }
        };
    }
}

async fn attempt(worker: &Arc<Worker>, owned: Owned, job: Job) -> Result<Ended, Error> {
    let started = Instant::now();
    if worker.orders.hurry.is_cancelled() {
        owned.stop.because(Reason::Drain);
    }
    let attempt = Attempt::new(worker.ports.clone(), owned.claim_now(), job.clone(), owned.stop.clone());
    let emitter = attempt.emitter.clone();
    // A task of its own: a panic in a node ends this job, not the process.
    let ran = worker.tracker.spawn(run::run(attempt).in_current_span()).await;
    let (result, usage_by_model) = ran.unwrap_or_else(|_| (Ok(panicked()), BTreeMap::new()));
    let ended = match result {
        Ok(ended) => ended,
        Err(error) => match hand_back(worker, &owned.claim, error).await {
            Err(error) => return Err(error),
            Ok(failed) => failed,
        },
    };
    let elapsed = started.elapsed();
    let told = Told { job: &job, report: &ended, emitter: &emitter, usage_by_model, elapsed };
    finish(worker, owned, told).await
}

fn panicked() -> Report {
    let message = "a part of the executor panicked; its log has the place".to_owned();
    Report { outcome: Outcome::Failed(failure(run::code::INTERNAL, message)), steps: 0, checkpoint_id: None }
}

/// What an unfinished run means: freed for others, abandoned in silence, or failed for good.
async fn hand_back(worker: &Worker, claim: &Claim, error: run::Error) -> Result<Report, Error> {
    match error {
        run::Error::Stopped(Reason::Drain) => {
            worker.ports.store.release(claim).await?;
            tracing::info!("job handed back");
            Err(Error::Drained)
        }
        run::Error::Stopped(Reason::Fenced) | run::Error::Store(store::Error::Fenced { .. }) => {
            let _ = worker.ports.store.refund(claim).await;
            Err(store::Error::Fenced { thread_id: claim.thread_id.clone(), epoch: claim.epoch }.into())
        }
        run::Error::Store(away @ store::Error::Unavailable(_)) => {
            let _ = worker.ports.store.release(claim).await;
            Err(away.into())
        }
        run::Error::Store(error) => {
            let outcome = Outcome::Failed(failure(error.code(), error.to_string()));
            Ok(Report { outcome, steps: 0, checkpoint_id: None })
        }
    }
}

/// What a job's end is told from.
struct Told<'a> {
    job: &'a Job,
    report: &'a Report,
    emitter: &'a Emitter,
    usage_by_model: BTreeMap<String, Usage>,
    elapsed: Duration,
}

/// Ends a claimed job that is not run.
async fn end_early(worker: &Arc<Worker>, owned: Owned, failed: Failure) -> Result<Ended, Error> {
    let claim = owned.claim.clone();
    let job = Job::nameless(claim.job_id.clone(), claim.thread_id.clone());
    let attempt = Attempt::new(worker.ports.clone(), claim, job, owned.stop.clone());
    attempt.tell_start(None);
    let report = Report { outcome: Outcome::Failed(failed), steps: 0, checkpoint_id: None };
    let (usage_by_model, elapsed) = (BTreeMap::new(), Duration::ZERO);
    let told =
        Told { job: &attempt.job, report: &report, emitter: &attempt.emitter, usage_by_model, elapsed };
    finish(worker, owned, told).await
}

/// Makes the end durable, tells readers of the stream, publishes the result.
async fn finish(worker: &Arc<Worker>, owned: Owned, mut told: Told<'_>) -> Result<Ended, Error> {
    let usage_by_model = std::mem::take(&mut told.usage_by_model);
    let numbers = report::totals(&owned.claim, told.report, usage_by_model, told.elapsed);
    let result = report::result(worker, told.job, told.report, &numbers);
    let finish = Finish {
        state: report::state(&told.report.outcome),
        body: result.body,
        error: report::error(&told.report.outcome),
        next: if worker.orders.drain.is_cancelled() { NextJob::Leave } else { NextJob::Take },
        result: result.stored,
        claim: owned.claim.clone(),
    };
    // A renewal that is on its way while the claim ends must not look like a loss.
    owned.ends();
    let next = until_answered(worker, &owned.stop, || worker.ports.store.finish(&finish)).await?;
    let next = next.map(|claim| worker.keepalive.own(claim));
    drop(owned);
    let outcome = &told.report.outcome;
    let (status, failed) = (report::status(outcome), report::failure_of(outcome));
    tell_end(told.emitter, status, failed, &report::final_result(outcome));
    if finish.next == NextJob::Leave {
        // Another process may start the thread's next job at once, and its higher epoch would shut out our end.
        worker.ports.sink.flush(LAST_EVENTS).await;
    }
    worker.announce(&finish.claim.thread_id);
    count(&told, status);
    if let Err(error) = publish(worker, &finish.result).await {
        if let Some(next) = next {
            // Told to hurry: the result is safe in the outbox, the next job is for others.
            worker.ports.store.release(&next.claim).await?;
        }
        return Err(error);
    }
    Ok(Ended { next, failure: failed.cloned() })
}

fn count(told: &Told<'_>, status: &'static str) {
    metrics::counter!(metric::JOBS, "status" => status).increment(1);
    metrics::histogram!(metric::JOB_SECONDS).record(told.elapsed.as_secs_f64());
    let duration_ms = u64::try_from(told.elapsed.as_millis()).unwrap_or(u64::MAX);
    let steps = told.report.steps;
    match report::failure_of(&told.report.outcome) {
        None => tracing::info!(status, duration_ms, steps, "job ended"),
        Some(Failure { code, message, node, .. }) => {
            let node = node.as_deref();
            tracing::warn!(status, duration_ms, steps, %code, node, error = %message, "job ended");
        }
    }
}

/// Calls the store until it answers; what was stored stays stored when an answer is lost.
async fn until_answered<T, F>(worker: &Worker, stop: &Stop, call: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, store::Error>>,
{
    let mut pause = FIRST_PAUSE;
    loop {
        match call().await {
            Err(away @ store::Error::Unavailable(_)) => {
                if worker.orders.hurry.is_cancelled() {
                    return Err(away.into());
                }
                tracing::warn!(code = away.code(), error = %away, "the end of a job waits for the database");
            }
            answered => return Ok(answered?),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            reason = stop.told() => {
                if reason == Reason::Fenced {
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
}

/// Publishes a stored result until the broker confirms it, then notes that it did.
pub(super) async fn publish(worker: &Arc<Worker>, result: &StoredResult) -> Result<(), Error> {
    let mut pause = FIRST_PAUSE;
    let span = || tracing::info_span!("result_publish");
    while let Err(error) = worker.queue.publish(result).instrument(span()).await {
        tracing::warn!(code = error.code(), %error, "a result waits for the broker");
        // A refusal needs an operator; until then the result is safe in the outbox, and its message comes again.
        if worker.orders.hurry.is_cancelled() || !matches!(error, queue::Error::Unavailable(_)) {
            return Err(error.into());
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    if let Err(error) = worker.ports.store.mark_published(&result.job_id).await {
        // Harmless: whoever finds it unmarked publishes it again under the same id.
        tracing::warn!(code = error.code(), %error, "a published result could not be marked");
    }
    if let Some(sink) = worker.result_sink.clone() {
        worker.posts.post(sink, result.event.clone());
    }
    Ok(())
}

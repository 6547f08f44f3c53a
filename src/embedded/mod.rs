//! Jobs of one person in this process: claimed, run and ended over a database file, without a queue.
//!
//! **Invariant:** a thread is written by one process at a time: a job runs under a claim that is renewed, and every
//! write is fenced by its epoch.
//! **Invariant:** a job that was started is ended before another one of its thread starts.

mod outcome;
mod waits;

pub use outcome::Done;
pub use waits::waiting;

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::{
    ids::{JobId, ThreadId},
    job::{self, Job, Spent, Stamp, Totals},
    run::{self, Attempt, Ended, Outcome, Ports, Reason, Report, Stop, Written},
    store::{
        self, Cancel, CancelKind, Checkpoints, Claim, Jobs, NextJob, Offer, Upkeep, Verdict,
        sqlite::SqliteStore,
    },
};

/// How long a job may take that does not say: a person waits, and a job may go on after weeks.
const NO_LIMIT: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Renewals per lease: two may be late before it ends.
const RENEWALS_PER_LEASE: u32 = 3;

/// Longest wait before the thread is asked for again; its owner may end it long before its lease.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Why a session stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database file.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The process was told to end; the job goes on when its thread is run again.
    #[error("stopped before the job had ended")]
    Left,
}

/// What a person may want to know while nothing else is to be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Another process owns the thread, or died a moment ago.
    Waits,
    /// This unfinished job of the thread goes on.
    GoesOn(JobId),
}

/// Stops what a session does; clones stop the same.
#[derive(Clone, Debug, Default)]
pub struct Brake {
    /// Ends the job as cancelled; what it did stays.
    pub cancel: CancellationToken,
    /// Leaves the job to whoever runs the thread next.
    pub leave: CancellationToken,
}

/// Runs jobs of threads in one database file.
pub struct Session {
    /// The file.
    pub store: Arc<SqliteStore>,
    /// What runs need; its store is the same one.
    pub ports: Arc<Ports>,
    /// How results are written.
    pub codec: job::Config,
    /// Hears of waits.
    pub notify: fn(Notice),
}

impl Session {
    /// Runs the job of the thread that has not ended, if there is one: its request, and how it ended. A job whose
    /// owner is alive is waited for.
    pub async fn take_up(&self, thread_id: &ThreadId, brake: &Brake) -> Result<Option<(Bytes, Done)>, Error> {
        let mut is_new = true;
        loop {
            let Some(found) = self.store.unfinished(thread_id).await? else { return Ok(None) };
            if found.owned_for.is_none()
                && let Some(Verdict::Run(claim) | Verdict::Poison(claim)) =
                    self.store.adopt(thread_id, true).await?
            {
                (self.notify)(Notice::GoesOn(claim.job_id.clone()));
                let request = claim.request.clone();
                return Ok(Some((request, self.carry(claim, brake).await?)));
            }
            self.say_once(&mut is_new);
            if brake.wait(found.owned_for.unwrap_or(ASK_AGAIN).min(ASK_AGAIN)).await.is_err() {
                return Err(Error::Left);
            }
        }
    }

    /// Runs `job` after those that stand before it on its thread.
    pub async fn run(&self, job: &Job, brake: &Brake) -> Result<Done, Error> {
        // Jobs of a thread start in the order in which they were asked for.
        let place = self.ports.clock.now().0;
        let offer = Offer { lane: true, ..Offer::of(job, place, NO_LIMIT) };
        let mut is_new = true;
        loop {
            let retry_in = match self.store.accept(&offer).await? {
                Verdict::Run(claim) | Verdict::Poison(claim) => {
                    let is_own = claim.job_id == job.job_id;
                    if !is_own {
                        (self.notify)(Notice::GoesOn(claim.job_id.clone()));
                    }
                    let done = self.carry(claim, brake).await?;
                    if is_own {
                        return Ok(done);
                    }
                    continue;
                }
                // Whoever had the thread took the job along.
                Verdict::Done | Verdict::DoneUnpublished { .. } => return self.stored(&job.job_id).await,
                Verdict::Rejected(cancel) => return self.end_waiting(job, &cancel).await,
                Verdict::Parked { retry_in } | Verdict::RunningElsewhere { retry_in } => retry_in,
                Verdict::NeedLane => ASK_AGAIN,
            };
            self.say_once(&mut is_new);
            match brake.wait(retry_in.min(ASK_AGAIN)).await {
                Ok(()) => {}
                Err(Braked::Cancel) => return self.end_waiting(job, &by_hand()).await,
                Err(Braked::Leave) => return Err(Error::Left),
            }
        }
    }

    fn say_once(&self, is_new: &mut bool) {
        if std::mem::take(is_new) {
            (self.notify)(Notice::Waits);
        }
    }

    /// Runs a claimed job to its end.
    async fn carry(&self, claim: Claim, brake: &Brake) -> Result<Done, Error> {
        let started = Instant::now();
        let stop = Stop::default();
        if let Some(cancel) = &claim.cancel {
            stop.because(Reason::Cancel(cancel.clone()));
        }
        let job: Result<Job, _> = serde_json::from_slice(&claim.request);
        let unread = job.as_ref().err().map(|error| format!("the stored request cannot be read: {error}"));
        let nameless = || Job::nameless(claim.job_id.clone(), claim.thread_id.clone());
        let job = Arc::new(job.unwrap_or_else(|_| nameless()));
        let attempt = Attempt::new(self.ports.clone(), claim.clone(), job.clone(), stop.clone());
        let emitter = attempt.emitter.clone();
        let (result, spent) = match unread {
            Some(reason) => (Ok(Report::early(Outcome::internal(reason))), Spent::default()),
            None => {
                // A task of its own: a panic in a node ends this job, not the process.
                let ran = self.ports.tracker.spawn(run::run(attempt));
                let ran = self.watch(ran, (&claim, &stop), brake).await;
                ran.unwrap_or_else(|_| (Ok(Report::early(Outcome::panicked())), Spent::default()))
            }
        };
        let report = match result {
            Ok(report) => report,
            Err(error) => self.unfinished(&claim, error).await?,
        };
        let ended = Ended { job: &job, report, emitter: &emitter, spent, elapsed: started.elapsed() };
        self.finish(claim, ended).await
    }

    /// Waits for `ran`; meanwhile renews the claim, and passes on what a person wants.
    async fn watch<T>(
        &self,
        ran: impl Future<Output = T>,
        (claim, stop): (&Claim, &Stop),
        brake: &Brake,
    ) -> T {
        let mut renewals = tokio::time::interval(self.store.lease() / RENEWALS_PER_LEASE);
        renewals.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ran = std::pin::pin!(ran);
        loop {
            tokio::select! {
                ended = &mut ran => return ended,
                () = brake.cancel.cancelled() => break,
                () = brake.leave.cancelled() => break,
                _ = renewals.tick() => self.renew(claim, stop).await,
            }
        }
        // Leaving wins: a process that is told to end does not end its job.
        let reason = if brake.leave.is_cancelled() { Reason::Drain } else { Reason::Cancel(by_hand()) };
        stop.because(reason);
        loop {
            tokio::select! {
                ended = &mut ran => return ended,
                _ = renewals.tick() => self.renew(claim, stop).await,
            }
        }
    }

    async fn renew(&self, claim: &Claim, stop: &Stop) {
        match self.store.renew(&[(claim.thread_id.clone(), claim.epoch)]).await {
            Ok(renewed) => match renewed.into_iter().next() {
                None => stop.because(Reason::Fenced),
                Some(renewed) => {
                    if let Some(cancel) = renewed.cancel {
                        stop.because(Reason::Cancel(cancel));
                    }
                }
            },
            // The claim stays ours while its epoch stands; commits are fenced whatever the lease says.
            Err(error) => tracing::warn!(code = error.code(), %error, "the lease could not be renewed"),
        }
    }

    /// What an unfinished run means: the thread is given back, or the job has failed for good.
    async fn unfinished(&self, claim: &Claim, error: run::Error) -> Result<Report, Error> {
        let error = match error {
            run::Error::Stopped(Reason::Cancel(cancel)) => {
                return Ok(Report::early(Outcome::Cancelled(run::unwanted(&cancel))));
            }
            run::Error::Stopped(Reason::Drain) => Error::Left,
            run::Error::Stopped(Reason::Fenced) => {
                Error::Store(store::Error::Fenced { thread_id: claim.thread_id.clone(), epoch: claim.epoch })
            }
            run::Error::Store(error @ (store::Error::Fenced { .. } | store::Error::Unavailable(_))) => {
                Error::Store(error)
            }
            run::Error::Store(error) => return Ok(Report::early(Outcome::unstorable(&error))),
        };
        // Whoever comes next need not wait for the lease; if that fails too, it ends by itself.
        if let Err(error) = self.store.release(claim).await {
            tracing::debug!(code = error.code(), %error, "the thread could not be given back");
        }
        Err(error)
    }

    /// Makes the end durable and tells about it.
    async fn finish(&self, claim: Claim, mut ended: Ended<'_>) -> Result<Done, Error> {
        let has_last = ended.report.last.is_some();
        match self.store_end(&claim, &mut ended).await {
            Err(error) if has_last && error.is_of_the_data() => {
                // What the run held last cannot be stored: the job ends where the superstep before left it.
                ended.report = Report::early(Outcome::unstorable(&error));
                self.store_end(&claim, &mut ended).await?;
            }
            stored => stored?,
        }
        // Nobody else waits for the result.
        self.store.mark_published(&claim.job_id).await?;
        ended.tell();
        Ok(Done { job_id: claim.job_id, outcome: ended.report.outcome })
    }

    async fn store_end(&self, claim: &Claim, ended: &mut Ended<'_>) -> Result<(), store::Error> {
        let written = self.written(ended.job, &ended.report.outcome, &ended.totals(claim.attempt));
        // The process whose person asked for it runs it.
        let finish = ended.finish(claim, written, NextJob::Leave);
        self.store.finish(&finish).await.map(drop)
    }

    /// Ends a job that has not been started; if somebody has started it meanwhile, it is left to them.
    async fn end_waiting(&self, job: &Job, cancel: &Cancel) -> Result<Done, Error> {
        let outcome = Report::early(Outcome::Cancelled(run::unwanted(cancel))).outcome;
        let written = self.written(job, &outcome, &Totals::default());
        if !self.store.end(&written.ending(&outcome)).await? {
            return Err(Error::Left);
        }
        self.store.mark_published(&job.job_id).await?;
        Ok(Done { job_id: job.job_id.clone(), outcome })
    }

    /// The result of a job that ended now.
    fn written(&self, job: &Job, outcome: &Outcome, numbers: &Totals) -> Written {
        let stamp = Stamp { ended_at: self.ports.clock.now(), config: &self.codec };
        outcome::written(job, outcome, numbers, stamp)
    }

    /// How a job ended that another process carried.
    async fn stored(&self, job_id: &JobId) -> Result<Done, Error> {
        let event = self.store.result(job_id).await?.unwrap_or_default();
        Ok(Done { job_id: job_id.clone(), outcome: outcome::read(&event) })
    }
}

/// Why a wait was cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Braked {
    Cancel,
    Leave,
}

impl Brake {
    async fn wait(&self, time: Duration) -> Result<(), Braked> {
        tokio::select! {
            () = self.leave.cancelled() => Err(Braked::Leave),
            () = self.cancel.cancelled() => Err(Braked::Cancel),
            () = tokio::time::sleep(time) => Ok(()),
        }
    }
}

fn by_hand() -> Cancel {
    Cancel { kind: CancelKind::Cancel, by: String::new(), reason: Some("by hand".into()) }
}

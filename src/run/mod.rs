//! One run: from its last checkpoint to its outcome, superstep by superstep.
//!
//! **Invariant:** an event that tells of a superstep is emitted only after that superstep is durable.
//! **Invariant:** a run ends with an error only when its outcome is not for it to decide: fenced, stopped, or
//! the store is away. Everything else is an [`Outcome`].

mod amend;
mod approval;
mod arrival;
mod cache;
mod check;
mod command;
mod committer;
mod definition;
mod effect;
mod ended;
mod failures;
mod gathered;
mod graphs;
mod metadata;
mod outcome;
mod policy;
mod position;
mod spent;
mod stamps;
mod start;
mod stop;
mod subgraph;
mod superstep;
mod task;
mod tasks;

pub use amend::{Occasion, fork, update};
pub use check::{Alone, Checked, Rejected, check, check_tools_here, compile, compile_alone};
pub use definition::{DEFINITION, referred};
pub use ended::{Ended, Written};
pub use failures::{carried_out, code, late, unwanted};
pub use graphs::{Graphs, Prepared};
pub use outcome::{Outcome, Output, Report, Untold};
pub use stop::{Reason, Stop};

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use serde_json::{Value as Json, json};
use tokio_util::task::TaskTracker;

use committer::Committer;
use failures::failure;
use outcome::{halted, output};

use crate::{
    ids::{CheckpointId, Clock, Namespace},
    job::{Failure, Job, Spent},
    model::{Models, retry},
    node::{Budget, Scope, Spending},
    pregel::Answers,
    store,
    store::{Cancel, CancelKind, Claim, Store},
    stream::{Claimed, Emitter, EventType, Origin, Sink, TokenConfig},
    tool::Toolbox,
    value::Cost,
};

/// Why a run ended without an outcome.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store refused or did not answer.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The process told the run to stop.
    #[error("stopped: {0:?}")]
    Stopped(Reason),
}

/// How long a run that is told to stop may take to store what it holds: the process ends, and the database
/// may be away.
const SAVE_LIMIT: Duration = Duration::from_secs(2);

/// What runs need of the process; shared by all of them.
pub struct Ports {
    /// Durable state.
    pub store: Arc<dyn Store>,
    /// Providers of models.
    pub models: Arc<Models>,
    /// Tools.
    pub toolbox: Arc<Toolbox>,
    /// Where events go.
    pub sink: Arc<dyn Sink>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Compiled graphs.
    pub graphs: Graphs,
    /// How text is cut into events.
    pub tokens: TokenConfig,
    /// How model calls are tried again.
    pub retry: retry::Policy,
    /// Longest a job may run when it does not say.
    pub job_timeout: Duration,
    /// Runs what must not be cancelled with its caller.
    pub tracker: TaskTracker,
}

/// One attempt of a job under a claim.
pub struct Attempt {
    pub(crate) ports: Arc<Ports>,
    /// The claim it runs under.
    pub claim: Claim,
    /// The job.
    pub job: Arc<Job>,
    /// Tells it to stop.
    pub stop: Stop,
    /// Emits the events of the claim.
    pub emitter: Arc<Emitter>,
}

/// What every part of a running attempt sees.
struct Running {
    attempt: Attempt,
    scope: Scope,
    reached: Mutex<Reached>,
    /// States of the root graph that are not stored yet.
    untold: Mutex<Vec<Untold>>,
    /// There once the run has something to commit.
    committer: OnceLock<Committer>,
    /// What the job's command answers; none when it has none.
    answers: OnceLock<Answers>,
    /// The questions and pauses that wait on beside those; none when the job answers nothing.
    unanswered: OnceLock<BTreeSet<Arc<str>>>,
    /// The hash of the definition it runs.
    definition: OnceLock<Arc<str>>,
    /// The author's version of the definition, once it is compiled.
    version: OnceLock<Option<Arc<str>>>,
}

impl Attempt {
    /// An attempt that has not started.
    pub fn new(ports: Arc<Ports>, claim: Claim, job: Arc<Job>, stop: Stop) -> Self {
        let claimed = Claimed {
            thread_id: claim.thread_id.clone(),
            job_id: claim.job_id.clone(),
            epoch: claim.epoch,
            attempt: claim.attempt,
        };
        let emitter = Emitter::new(ports.sink.clone(), ports.clock.clone(), claimed, ports.tokens);
        Self { ports, claim, job, stop, emitter: Arc::new(emitter) }
    }

    /// Emits the first event of the claim.
    pub fn tell_start(&self, resumed_from: Option<&CheckpointId>) {
        let ns = Namespace::root();
        let mut data = json!({ "attempt": self.claim.attempt, "resumed_from": resumed_from });
        if self.claim.attempt > 1 {
            data["supersedes"] = json!({ "epochs_below": self.claim.epoch.0, "after": resumed_from });
        }
        self.emitter.emit(EventType::AttemptStart, Origin { node: "", ns: &ns }, data);
    }
}

/// Emits what a job waits for.
pub fn tell_interrupts(emitter: &Emitter, interrupts: &Json) {
    let origin = Origin { node: "", ns: &Namespace::root() };
    emitter.emit(EventType::Interrupt, origin, json!({ "interrupts": interrupts }));
}

/// Emits the last events of a job: `error` (of a failed one) and `end`.
pub fn tell_end(emitter: &Emitter, status: &str, error: Option<&Failure>, final_result: &Json) {
    let ns = Namespace::root();
    if let Some(error) = error {
        let origin = Origin { node: error.node.as_deref().unwrap_or_default(), ns: &ns };
        emitter.emit(EventType::Error, origin, json!({ "error": error }));
    }
    let data = json!({ "status": status, "final_result": final_result });
    emitter.emit(EventType::End, Origin { node: "", ns: &ns }, data);
}

/// Runs the attempt to its end; also says what it spent. The caller makes the outcome durable, then tells
/// it by [`Ended::tell`].
pub async fn run(attempt: Attempt) -> (Result<Report, Error>, Spent) {
    let running = prepare(attempt);
    let stop = running.attempt.stop.clone();
    let result = tokio::select! {
        biased;
        reason = stop.told() => running.stopped(reason).await,
        result = Box::pin(start::run(&running)) => result,
    };
    let result = match result {
        // At a boundary; what is not stored yet is what other durabilities hold back.
        Err(Error::Stopped(Reason::Drain)) => running.leave().await,
        result => result,
    };
    // Stopped before its thread was loaded: even so its end is not the first thing readers hear of the claim.
    if result.is_ok() && running.scope.emitter.is_silent() {
        running.attempt.tell_start(None);
    }
    let version = running.version.get().cloned().flatten();
    let told = |report: Report| Report { outcome: report.outcome.scrubbed(), version, ..report };
    (result.map(told), running.scope.spending.spent())
}

fn prepare(attempt: Attempt) -> Running {
    let asked = attempt.job.config.budget.unwrap_or_default();
    let budget = Budget {
        max_tokens: asked.max_tokens,
        max_cost: asked.max_cost_usd.map(Cost::from_dollars),
        max_model_calls: asked.max_model_calls,
    };
    let scope = Scope {
        models: attempt.ports.models.clone(),
        emitter: attempt.emitter.clone(),
        spending: Spending::new(budget),
        retry: attempt.ports.retry,
        clock: attempt.ports.clock.clone(),
        thread_id: attempt.claim.thread_id.clone(),
    };
    Running {
        attempt,
        scope,
        reached: Mutex::default(),
        untold: Mutex::default(),
        committer: OnceLock::new(),
        answers: OnceLock::new(),
        unanswered: OnceLock::new(),
        definition: OnceLock::new(),
        version: OnceLock::new(),
    }
}

/// How far the root graph has got.
#[derive(Clone, Debug, Default)]
struct Reached {
    steps: u64,
    checkpoint_id: Option<CheckpointId>,
}

impl Running {
    fn reach(&self, steps: u64, checkpoint_id: &CheckpointId) {
        let reached = Reached { steps, checkpoint_id: Some(checkpoint_id.clone()) };
        *self.reached.lock().unwrap_or_else(PoisonError::into_inner) = reached;
    }

    fn add_untold(&self, untold: Untold) {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner).push(untold);
    }

    fn take_untold(&self) -> Vec<Untold> {
        std::mem::take(&mut *self.untold.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn stopped(&self, reason: Reason) -> Result<Report, Error> {
        match reason {
            Reason::Cancel(cancel) => self.cancelled(&carried_out(&cancel, &self.attempt.job)).await,
            // A drain stores first; see below.
            Reason::Drain | Reason::Fenced => Err(Error::Stopped(reason)),
        }
    }

    /// Stores what the run holds: others go on from there.
    async fn leave(&self) -> Result<Report, Error> {
        if let Some(committer) = self.committer.get() {
            // What is not stored by then is done again elsewhere.
            let _ = tokio::time::timeout(SAVE_LIMIT, committer.save()).await;
        }
        Err(Error::Stopped(Reason::Drain))
    }

    async fn timed_out(&self) -> Result<Report, Error> {
        let limit = self.attempt.job.config.timeout().unwrap_or(self.attempt.ports.job_timeout);
        self.cut_off(Outcome::Failed(late(limit))).await
    }

    async fn cancelled(&self, cancel: &Cancel) -> Result<Report, Error> {
        let outcome = Outcome::Cancelled(unwanted(cancel));
        match cancel.kind {
            CancelKind::Rollback => Ok(Report::early(outcome)),
            CancelKind::Cancel | CancelKind::Interrupt | CancelKind::Reject => self.cut_off(outcome).await,
        }
    }

    /// The end of a run that is cut off: what it has reached is kept.
    async fn cut_off(&self, outcome: Outcome) -> Result<Report, Error> {
        let last = match self.committer.get() {
            None => None,
            Some(committer) => committer.last(None, Vec::new()).await?,
        };
        let reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let checkpoint_id = reached.checkpoint_id.map(|id| id.to_string());
        let untold = self.take_untold();
        Ok(Report { outcome, steps: reached.steps, checkpoint_id, last, untold, version: None })
    }
}

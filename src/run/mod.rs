//! One run: from its last checkpoint to its outcome, superstep by superstep.
//!
//! **Invariant:** an event that tells of a superstep is emitted only after that superstep is durable.
//! **Invariant:** a run ends with an error only when its outcome is not for it to decide: fenced, stopped, or
//! the store is away. Everything else is an [`Outcome`].

mod amend;
mod approval;
mod cache;
mod check;
mod command;
mod committer;
mod definition;
mod effect;
mod gathered;
mod graphs;
mod policy;
mod start;
mod subgraph;
mod superstep;
mod task;

pub use amend::{Occasion, fork, update};
pub use check::{Alone, Checked, Rejected, check, check_packages, compile, compile_alone};
pub use definition::{DEFINITION, referred};
pub use graphs::{Graphs, Prepared};

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use serde_json::{Value as Json, json};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use committer::Committer;

use crate::{
    ids::{CheckpointId, Clock, Namespace},
    job::{Failure, Job, Spent},
    model::{Models, retry},
    node::{Budget, Scope, Spending},
    pregel::{self, Answers},
    store,
    store::{Cancel, CancelKind, Claim, Commit, Store},
    stream::{Claimed, Emitter, EventType, Origin, Sink, TokenConfig},
    tool::Toolbox,
    value::State,
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

/// Why a run is told to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Somebody else has claimed the thread.
    Fenced,
    /// The process ends.
    Drain,
    /// Somebody does not want the job any more.
    Cancel(Cancel),
}

/// How long a run that is told to stop may take to store what it holds: the process ends, and the database
/// may be away.
const SAVE_LIMIT: Duration = Duration::from_secs(2);

/// Tells a run to stop; the first reason counts.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    token: CancellationToken,
    reason: Arc<OnceLock<Reason>>,
    leave: CancellationToken,
}

impl Stop {
    /// Stops the run.
    pub fn because(&self, reason: Reason) {
        // A second reason changes nothing: the run is already stopping.
        let _ = self.reason.set(reason);
        self.token.cancel();
    }

    /// Lets the run go on to the end of its superstep and stops it there, because the process ends.
    pub fn leave(&self) {
        self.leave.cancel();
    }

    /// Whether to stop at the next boundary of supersteps.
    fn is_leaving(&self) -> bool {
        self.leave.is_cancelled()
    }

    /// What `work` comes to; `None` when the process leaves before.
    async fn unless_leaving<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.leave.run_until_cancelled(work).await
    }

    /// Waits until the run is told to stop.
    pub async fn told(&self) -> Reason {
        self.token.cancelled().await;
        self.reason.get().cloned().unwrap_or(Reason::Drain)
    }
}

/// Most characters of the text of a run that failed by its own word; errors stand in results whole.
const MAX_HALTED_CHARS: usize = 10_000;

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// All the way to END.
    Completed(Output),
    /// It waits for a person: `[{id, value, response_schema?}]`.
    Interrupted(Json),
    /// It failed.
    Failed(Failure),
    /// Somebody did not want it any more.
    Cancelled(Failure),
}

/// What a completed run gives back.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// The text of the last AI message, or the output channels.
    pub output: Json,
    /// The run's virtual files, when it has any.
    pub files: Option<Json>,
}

/// How a run ended, with its numbers.
#[derive(Clone, Debug)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// Supersteps of the job, earlier attempts included.
    pub steps: u64,
    /// The newest root checkpoint.
    pub checkpoint_id: Option<String>,
    /// What is to be stored with the end of the job.
    pub last: Option<Commit>,
    /// The states after the supersteps that are stored with it, to be told of then.
    pub untold: Vec<Untold>,
    /// The author's version of the definition, when it has one.
    pub version: Option<Arc<str>>,
}

/// A state that readers have not heard of.
#[derive(Clone, Debug)]
pub struct Untold {
    state: State,
    step: i64,
    checkpoint_id: String,
}

impl Untold {
    /// After superstep `step` of the root graph, which made the checkpoint.
    fn new(state: State, step: i64, checkpoint_id: &CheckpointId) -> Self {
        Self { state, step, checkpoint_id: checkpoint_id.to_string() }
    }

    fn tell(&self, emitter: &Emitter) {
        emitter.state_update(&Namespace::root(), &self.state, self.step, &self.checkpoint_id);
    }
}

impl Report {
    /// Of a job that ended before its graph made a step.
    pub fn early(outcome: Outcome) -> Self {
        Self { outcome, steps: 0, checkpoint_id: None, last: None, untold: Vec::new(), version: None }
    }

    /// Tells readers the states after the last supersteps, and what the run waits for. To be called once that is
    /// stored.
    pub fn tell_last(&self, emitter: &Emitter) {
        self.untold.iter().for_each(|untold| untold.tell(emitter));
        if let Outcome::Interrupted(interrupts) = &self.outcome {
            tell_interrupts(emitter, interrupts);
        }
    }

    /// How many events [`Report::tell_last`] and [`tell_end`] are going to emit.
    pub fn events_left(&self) -> u64 {
        let of_outcome = match &self.outcome {
            Outcome::Completed(_) => 0,
            // What it waits for, or its error.
            Outcome::Interrupted(_) | Outcome::Failed(_) | Outcome::Cancelled(_) => 1,
        };
        u64::try_from(self.untold.len()).expect("a count fits 64 bits") + of_outcome + 1
    }
}

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

/// Runs the attempt to its end; also says what it spent. The caller makes the outcome durable, then calls
/// [`tell_end`].
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
    (result.map(|report| Report { version, ..report }), running.scope.spending.spent())
}

fn prepare(attempt: Attempt) -> Running {
    let budget = Budget { max_tokens: attempt.job.config.budget.and_then(|budget| budget.max_tokens) };
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

/// The failure of a job that took too long.
pub fn late(limit: Duration) -> Failure {
    let message = format!("the job took longer than {} s", limit.as_secs_f64());
    Failure { code: code::JOB_TIMEOUT.into(), message, node: None, retryable: true }
}

/// `cancel` as it is carried out on `job`: what goes on from questions of earlier jobs is not taken back, since its
/// writes stand among theirs.
pub fn carried_out(cancel: &Cancel, job: &Job) -> Cancel {
    let goes_on = cancel.kind == CancelKind::Rollback && job.command.is_some();
    Cancel { kind: if goes_on { CancelKind::Interrupt } else { cancel.kind }, ..cancel.clone() }
}

/// What readers hear of a job that somebody did not want any more.
pub fn unwanted(cancel: &Cancel) -> Failure {
    let Cancel { kind, by, reason } = cancel;
    let reason = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let (code, message, retryable) = match kind {
        CancelKind::Cancel if by.is_empty() => (code::JOB_CANCELLED, format!("cancelled{reason}"), false),
        CancelKind::Cancel => (code::JOB_CANCELLED, format!("cancelled by {by}{reason}"), false),
        CancelKind::Interrupt => {
            (code::JOB_INTERRUPTED, format!("job {by} took its place on the thread"), false)
        }
        CancelKind::Rollback => (
            code::JOB_ROLLED_BACK,
            format!("job {by} took its place on the thread; what it did is undone"),
            false,
        ),
        CancelKind::Reject => (code::THREAD_BUSY, format!("the thread is busy with job {by}"), true),
    };
    Failure { code: code.into(), message, node: None, retryable }
}

/// Codes of failures that a run itself decides on.
pub mod code {
    /// The request is wrong.
    pub const BAD_REQUEST: &str = "BAD_REQUEST";
    /// The definition has mistakes.
    pub const DEFINITION_INVALID: &str = "DEFINITION_INVALID";
    /// Variables of the definition have no value.
    pub const VARIABLES_UNSET: &str = "VARIABLES_UNSET";
    /// No such stored definition.
    pub const AGENT_NOT_FOUND: &str = "AGENT_NOT_FOUND";
    /// No such checkpoint on the thread.
    pub const CHECKPOINT_NOT_FOUND: &str = "CHECKPOINT_NOT_FOUND";
    /// The command resumes, but nothing waits for an answer.
    pub const NOTHING_TO_RESUME: &str = "NOTHING_TO_RESUME";
    /// The command answers one question, and several wait.
    pub const RESUME_AMBIGUOUS: &str = "RESUME_AMBIGUOUS";
    /// The command answers a question that does not wait.
    pub const RESUME_UNKNOWN: &str = "RESUME_UNKNOWN";
    /// The run needs more supersteps than it may have.
    pub const RECURSION_LIMIT: &str = "RECURSION_LIMIT";
    /// A conditional edge could not be decided.
    pub const CONDITION_FAILED: &str = "CONDITION_FAILED";
    /// Somebody did not want the job any more.
    pub const JOB_CANCELLED: &str = "JOB_CANCELLED";
    /// A newer job of the thread asked for its place.
    pub const JOB_INTERRUPTED: &str = "JOB_INTERRUPTED";
    /// As before, and what the job did was undone.
    pub const JOB_ROLLED_BACK: &str = "JOB_ROLLED_BACK";
    /// The job did not want to wait for a busy thread.
    pub const THREAD_BUSY: &str = "THREAD_BUSY";
    /// The thread holds what the definition does not have.
    pub const DEFINITION_INCOMPATIBLE: &str = "DEFINITION_INCOMPATIBLE";
    /// The job took too long.
    pub const JOB_TIMEOUT: &str = "JOB_TIMEOUT";
    /// The final text says that the run has failed.
    pub const AGENT_HALTED: &str = "AGENT_HALTED";
    /// A part of this program broke its own rules; the process lives on.
    pub const INTERNAL: &str = "INTERNAL";
}

/// A failure of the whole run, which a new job with the same request would meet again.
fn failure(code: &str, message: impl Into<String>) -> Failure {
    Failure { code: code.into(), message: message.into(), node: None, retryable: false }
}

/// What the state gives back at the end: the output channels if there are any, else the last AI message,
/// else every channel but the built-in ones.
fn output(graph: &crate::graph::CompiledGraph, state: &State) -> Output {
    let files = state.get("files").filter(|files| files.as_map().is_some_and(|files| !files.is_empty()));
    let last_answer = || {
        let messages = state.get("messages")?;
        let is_ai = |message: &&Arc<crate::value::Message>| message.type_name() == "ai";
        let answer = messages.messages().rfind(is_ai)?.content.text();
        Some(Json::String(answer.to_string()))
    };
    let channels = |names: &mut dyn Iterator<Item = &crate::value::Name>| {
        let pairs = names.filter_map(|name| Some((name.to_string(), state.get(name)?.to_json())));
        Json::Object(pairs.collect())
    };
    let is_builtin = |name: &str| matches!(name, "messages" | "files" | "todos");
    let output = if graph.output.is_empty() {
        last_answer().unwrap_or_else(|| channels(&mut graph.channels.keys().filter(|name| !is_builtin(name))))
    } else {
        channels(&mut graph.output.iter())
    };
    Output { output, files: files.map(crate::value::Value::to_json) }
}

/// The failure of a run whose final text begins with the mark of failure. Named output channels are no text, and an
/// answer before the last question of a person is not of this run.
fn halted(graph: &crate::graph::CompiledGraph, state: &State) -> Option<Failure> {
    let mark = graph.failure_mark.as_deref().filter(|_| graph.output.is_empty())?;
    let since = state.get(pregel::MESSAGES)?.messages().rev().take_while(|m| m.type_name() != "human");
    let text =
        since.filter(|message| message.type_name() == "ai").map(|message| message.content.text()).next()?;
    let text = text.trim();
    let said = text.char_indices().nth(MAX_HALTED_CHARS).map_or(text, |(end, _)| &text[..end]);
    text.starts_with(mark).then(|| failure(code::AGENT_HALTED, said))
}

impl From<pregel::Error> for Failure {
    fn from(error: pregel::Error) -> Self {
        failure(error.code(), error.to_string())
    }
}

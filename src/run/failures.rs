//! Failures that a run itself decides on: their codes and what they say.

use std::time::Duration;

use crate::{
    job::{Failure, Job},
    pregel,
    store::{Cancel, CancelKind},
};

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

/// Codes of failures that a run itself decides on, or whoever carries its job.
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
    /// The job was given up because its attempts ended with their process.
    pub const POISON: &str = "POISON";
    /// The job's message was delivered as often as the broker allows, before anybody could start it.
    pub const MAX_DELIVERIES: &str = "MAX_DELIVERIES";
    /// A part of this program broke its own rules; the process lives on.
    pub const INTERNAL: &str = "INTERNAL";
}

/// A failure of the whole run, which a new job with the same request would meet again.
pub(super) fn failure(code: &str, message: impl Into<String>) -> Failure {
    Failure { code: code.into(), message: message.into(), node: None, retryable: false }
}

impl From<pregel::Error> for Failure {
    fn from(error: pregel::Error) -> Self {
        failure(error.code(), error.to_string())
    }
}

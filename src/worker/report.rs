//! What an ended job looks like to the store, to readers of the stream and to consumers of results.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value as Json, json};

use super::Worker;
use crate::{
    job::{Failure, Job, ResultEvent, Spent, Stamp, Totals, encode_result, with_dataref},
    run::{Outcome, Report},
    store::{JobState, StoredResult},
    stream::EntryId,
};

/// Code of a job that was given up because its attempts ended with their process.
pub(super) const POISON: &str = "POISON";

/// Code of a job whose message was delivered as often as the broker allows, before anybody could start it.
pub(super) const MAX_DELIVERIES: &str = "MAX_DELIVERIES";

/// A result on its way to the outbox.
pub(super) struct Encoded {
    pub(super) stored: StoredResult,
    /// The full event, when the stored one only refers to it.
    pub(super) body: Option<Bytes>,
}

pub(crate) fn totals(
    attempts: u32,
    report: &Report,
    spent: Spent,
    elapsed: Duration,
    last_event: Option<EntryId>,
) -> Totals {
    Totals {
        spent,
        duration_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        steps: report.steps,
        attempts,
        checkpoint_id: report.checkpoint_id.clone(),
        last_event_id: last_event.map(|id| id.to_string()),
        agent_version: report.version.as_deref().map(str::to_owned),
    }
}

pub(super) fn result(worker: &Worker, job: &Job, report: &Report, numbers: &Totals) -> Encoded {
    let event = event(&report.outcome);
    let stamp = Stamp { ended_at: worker.ports.clock.now(), config: &worker.codec };
    let whole = encode_result(job, &event, numbers, stamp);
    let (encoded, body) = if whole.is_too_large() {
        let url = format!("{}/jobs/{}/result", worker.public_url, url_path(job.job_id.as_str()));
        (with_dataref(&whole, &url), Some(whole.event))
    } else {
        (whole, None)
    };
    let stored = StoredResult {
        job_id: job.job_id.clone(),
        event_id: encoded.event_id,
        subject: encoded.subject,
        event: encoded.event,
    };
    Encoded { stored, body }
}

/// What is reported of an outcome.
pub(crate) fn event(outcome: &Outcome) -> ResultEvent {
    match outcome {
        Outcome::Completed(output) => {
            ResultEvent::Completed { output: output.output.clone(), files: output.files.clone() }
        }
        Outcome::Interrupted(interrupts) => {
            ResultEvent::Interrupted { interrupts: interrupts.clone(), count: 1 }
        }
        Outcome::Failed(failure) => ResultEvent::Failed(failure.clone()),
        Outcome::Cancelled(failure) => ResultEvent::Cancelled(failure.clone()),
    }
}

/// A job id as one segment of a path.
fn url_path(job_id: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let encode =
        |byte: u8| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    job_id.bytes().map(encode).collect()
}

pub(crate) fn state(outcome: &Outcome) -> JobState {
    match outcome {
        Outcome::Completed(_) | Outcome::Interrupted(_) => JobState::Succeeded,
        Outcome::Failed(failure) if [POISON, MAX_DELIVERIES].contains(&failure.code.as_str()) => {
            JobState::Dead
        }
        Outcome::Failed(_) => JobState::Failed,
        Outcome::Cancelled(_) => JobState::Cancelled,
    }
}

pub(crate) fn status(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Completed(_) => "completed",
        Outcome::Interrupted(_) => "interrupted",
        Outcome::Failed(_) => "failed",
        Outcome::Cancelled(_) => "cancelled",
    }
}

pub(crate) fn failure_of(outcome: &Outcome) -> Option<&Failure> {
    match outcome {
        Outcome::Failed(failure) | Outcome::Cancelled(failure) => Some(failure),
        Outcome::Completed(_) | Outcome::Interrupted(_) => None,
    }
}

pub(crate) fn error(outcome: &Outcome) -> Option<Json> {
    failure_of(outcome).map(|failure| json!(failure))
}

/// `final_result` of the `end` event: the same object as `result` in the CloudEvent, null without one.
pub(crate) fn final_result(outcome: &Outcome) -> Json {
    match outcome {
        Outcome::Completed(output) => {
            let mut result = json!({ "output": output.output, "status": "completed" });
            if let Some(files) = &output.files {
                result["files"] = files.clone();
            }
            result
        }
        Outcome::Interrupted(_) | Outcome::Failed(_) | Outcome::Cancelled(_) => Json::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_ids_are_safe_in_a_path() {
        assert_eq!(url_path("job-1_a.b~c"), "job-1_a.b~c");
        assert_eq!(url_path("a/b?c é"), "a%2Fb%3Fc%20%C3%A9");
    }
}

//! How a job ended, as the file keeps it and as it is read back.

use std::time::Duration;

use serde_json::Value as Json;

use crate::{
    ids::{JobId, UnixNanos},
    job::{self, Failure, Job, Spent, Stamp, encode_result},
    run::{Outcome, Output, Report, code},
    store::StoredResult,
    stream::Emitter,
    worker::report,
};

/// A job that has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    /// The job.
    pub job_id: JobId,
    /// How it ended.
    pub outcome: Outcome,
}

/// What a job's end is told from.
pub(super) struct Ended<'a> {
    pub(super) job: &'a Job,
    pub(super) report: Report,
    pub(super) emitter: &'a Emitter,
    pub(super) spent: Spent,
    pub(super) elapsed: Duration,
}

impl Ended<'_> {
    /// The result of this attempt.
    pub(super) fn result(&self, attempt: u32, (ended_at, config): (UnixNanos, &job::Config)) -> StoredResult {
        let last = self.emitter.id_in(self.report.events_left());
        let numbers = report::totals(attempt, &self.report, self.spent.clone(), self.elapsed, Some(last));
        let event = report::event(&self.report.outcome);
        stored(self.job, encode_result(self.job, &event, &numbers, Stamp { ended_at, config }))
    }
}

/// The result of a job that was never started.
pub(super) fn unstarted(
    job: &Job,
    ended: &Report,
    (ended_at, config): (UnixNanos, &job::Config),
) -> StoredResult {
    let numbers = report::totals(0, ended, Spent::default(), Duration::ZERO, None);
    let event = report::event(&ended.outcome);
    stored(job, encode_result(job, &event, &numbers, Stamp { ended_at, config }))
}

fn stored(job: &Job, encoded: job::Encoded) -> StoredResult {
    let job::Encoded { subject, event_id, event } = encoded;
    StoredResult { job_id: job.job_id.clone(), event_id, subject, event }
}

/// The outcome that a stored result tells.
pub(super) fn read(event: &[u8]) -> Outcome {
    let event: Json = serde_json::from_slice(event).unwrap_or_default();
    let data = &event["data"];
    let failure = serde_json::from_value::<Failure>(data["error"].clone());
    let kind = event["type"].as_str().and_then(|kind| kind.rsplit('.').next()).unwrap_or_default();
    match (kind, failure) {
        ("completed", _) => {
            let result = &data["result"];
            let (output, files) = (result["output"].clone(), result.get("files").cloned());
            Outcome::Completed(Output { output, files })
        }
        ("interrupted", _) => Outcome::Interrupted(data["interrupts"].clone()),
        ("cancelled", Ok(failure)) => Outcome::Cancelled(failure),
        (_, Ok(failure)) => Outcome::Failed(failure),
        (_, Err(error)) => Outcome::Failed(Failure {
            code: code::INTERNAL.to_owned(),
            message: format!("the stored result cannot be read: {error}"),
            node: None,
            retryable: false,
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ids::ThreadId;

    #[test]
    fn an_outcome_is_read_as_it_was_stored() {
        let job = Job::nameless(JobId::parse("j").expect("valid"), ThreadId::parse("t").expect("valid"));
        let failure =
            Failure { code: "X".into(), message: "why".into(), node: Some("main".into()), retryable: true };
        for outcome in [
            Outcome::Completed(Output { output: json!("text"), files: None }),
            Outcome::Completed(Output { output: json!({"a": 1}), files: Some(json!({"/a": {}})) }),
            Outcome::Interrupted(json!([{"id": "i", "value": "?"}])),
            Outcome::Failed(failure.clone()),
            Outcome::Cancelled(failure),
        ] {
            let config = job::Config::default();
            let stored = unstarted(&job, &Report::early(outcome.clone()), (UnixNanos(0), &config));
            assert_eq!(read(&stored.event), outcome);
        }
        assert!(matches!(read(b"no JSON"), Outcome::Failed(failure) if failure.code == "INTERNAL"));
    }
}

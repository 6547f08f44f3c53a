//! How a job ended, as the file keeps it and as it is read back.

use serde_json::Value as Json;

use crate::{
    ids::JobId,
    job::{Failure, Job, Stamp, Totals, encode_result},
    run::{Outcome, Output, Written},
};

/// A job that has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    /// The job.
    pub job_id: JobId,
    /// How it ended.
    pub outcome: Outcome,
}

/// The result of a job that ended so.
pub(super) fn written(job: &Job, outcome: &Outcome, numbers: &Totals, stamp: Stamp<'_>) -> Written {
    Written::new(job, encode_result(job, &outcome.result_event(), numbers, stamp), None)
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
        (_, Err(error)) => Outcome::internal(format!("the stored result cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        ids::{ThreadId, UnixNanos},
        job::Config,
    };

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
            let stamp = Stamp { ended_at: UnixNanos(0), config: &Config::default() };
            let written = written(&job, &outcome, &Totals::default(), stamp);
            assert_eq!(read(&written.result.event), outcome);
        }
        assert!(matches!(read(b"no JSON"), Outcome::Failed(failure) if failure.code == "INTERNAL"));
    }
}

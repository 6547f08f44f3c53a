//! From an outcome to the CloudEvent that reports it.
//!
//! Written by hand rather than with the SDK's builder: that keeps extensions in a hash map, so the same event
//! would have different bytes each time. A test lets the SDK read what is written here.
//!
//! **Invariant:** the same job, outcome, numbers and time give the same bytes.

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map as JsonMap, Value as Json, json};

use super::{Config, Failure, Job, Spent};
use crate::ids::{JobId, UnixNanos};

/// Largest event that is published whole; NATS refuses messages above 1 MiB, headers included.
pub const MAX_EVENT_BYTES: usize = 900 * 1024;

/// The `source` of every result.
const SOURCE: &str = "agent-executor-service";

/// How a job ended, as its result reports it.
#[derive(Clone, Debug)]
pub enum ResultEvent {
    /// `{"output", "status": "completed", "files"?}`.
    Completed {
        /// The text of the last AI message, or the output channels.
        output: Json,
        /// The run's virtual files, when it has any.
        files: Option<Json>,
    },
    /// It waits for a person.
    Interrupted {
        /// `[{id, value, response_schema?}]`.
        interrupts: Json,
        /// The how-manieth interrupted result of the job this is, from 1.
        count: u32,
    },
    /// It failed.
    Failed(Failure),
    /// Somebody stopped it.
    Cancelled(Failure),
}

impl ResultEvent {
    /// The last word of the subject and of the event's type.
    pub fn status(&self) -> &'static str {
        match self {
            Self::Completed { .. } => "completed",
            Self::Interrupted { .. } => "interrupted",
            Self::Failed(_) => "failed",
            Self::Cancelled(_) => "cancelled",
        }
    }

    /// The event's id: one per job for terminal results, so that consumers and the stream can drop repeats.
    fn id(&self, job_id: &JobId) -> String {
        match self {
            Self::Interrupted { count, .. } => format!("{job_id}:interrupted:{count}"),
            Self::Completed { .. } | Self::Failed(_) | Self::Cancelled(_) => format!("{job_id}:result"),
        }
    }

    /// The member of the data that tells the outcome.
    fn outcome(&self) -> (&'static str, Json) {
        match self {
            Self::Completed { output, files } => {
                let mut result = json!({"output": output, "status": "completed"});
                if let Some(files) = files {
                    result["files"] = files.clone();
                }
                ("result", result)
            }
            Self::Interrupted { interrupts, .. } => ("interrupts", interrupts.clone()),
            Self::Failed(failure) | Self::Cancelled(failure) => {
                ("error", serde_json::to_value(failure).expect("a failure holds texts and booleans"))
            }
        }
    }
}

/// Numbers of a job.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Tokens and dollars.
    pub spent: Spent,
    /// Milliseconds from the claim to the end, of this attempt.
    pub duration_ms: u64,
    /// Supersteps of this job.
    pub steps: u64,
    /// Attempts, this one included.
    pub attempts: u32,
    /// The last checkpoint.
    pub checkpoint_id: Option<String>,
    /// The id of the job's last event in the stream of its thread; none for a job that never started.
    pub last_event_id: Option<String>,
    /// The author's version of the definition, when it has one.
    pub agent_version: Option<String>,
}

/// A result, ready to be stored and published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The subject it is published on.
    pub subject: String,
    /// The id of the CloudEvent and of the message.
    pub event_id: String,
    /// The structured CloudEvent.
    pub event: Bytes,
}

impl Encoded {
    /// Whether the event must be stored and replaced by a reference before it can be published.
    pub fn is_too_large(&self) -> bool {
        self.event.len() > MAX_EVENT_BYTES
    }
}

/// A CloudEvent in the order in which people read it.
#[derive(Serialize)]
struct Event<'a> {
    specversion: &'static str,
    id: &'a str,
    #[serde(rename = "type")]
    kind: String,
    source: &'static str,
    subject: &'a str,
    time: String,
    datacontenttype: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
    data: JsonMap<String, Json>,
}

/// The event that reports how `job` ended at `ended_at`. Its `type` starts with `config.type_prefix`.
///
/// `job` is reported under its ids and its `traceparent`; nothing else of the request shows.
pub fn encode_result(job: &Job, outcome: &ResultEvent, numbers: &Totals, stamp: Stamp<'_>) -> Encoded {
    let status = outcome.status();
    let event_id = outcome.id(&job.job_id);
    let (member, value) = outcome.outcome();
    let mut data = JsonMap::new();
    data.insert("job_id".into(), job.job_id.as_str().into());
    data.insert("thread_id".into(), job.thread_id.as_str().into());
    data.insert(member.into(), value);
    data.insert("usage".into(), numbers.spent.to_json());
    data.insert("duration_ms".into(), numbers.duration_ms.into());
    data.insert("steps".into(), numbers.steps.into());
    data.insert("attempts".into(), numbers.attempts.into());
    data.insert("checkpoint_id".into(), numbers.checkpoint_id.as_deref().into());
    if let Some(id) = &numbers.last_event_id {
        data.insert("last_event_id".into(), id.as_str().into());
    }
    if let Some(version) = &numbers.agent_version {
        data.insert("agent_version".into(), version.as_str().into());
    }
    let event = Event {
        specversion: "1.0",
        id: &event_id,
        kind: format!("{}.agent.{status}", stamp.config.type_prefix),
        source: SOURCE,
        subject: job.job_id.as_str(),
        time: stamp.ended_at.rfc3339_millis(),
        datacontenttype: "application/json",
        traceparent: job.traceparent.as_deref(),
        data,
    };
    let event = Bytes::from(serde_json::to_vec(&event).expect("the event has text keys only"));
    Encoded { subject: format!("agent.status.{status}"), event_id, event }
}

/// When and under whose name a result is written.
#[derive(Clone, Copy, Debug)]
pub struct Stamp<'a> {
    /// The time the job ended.
    pub ended_at: UnixNanos,
    /// Gives the type's prefix.
    pub config: &'a Config,
}

/// The same event without what makes it large: `result` keeps its `status`, and `dataref` leads to the whole.
/// Subject and id stay, so a repeat is still dropped.
pub fn with_dataref(encoded: &Encoded, url: &str) -> Encoded {
    let mut event: JsonMap<String, Json> =
        serde_json::from_slice(&encoded.event).expect("encode_result wrote a JSON object");
    event.insert("dataref".into(), url.into());
    if let Some(data) = event.get_mut("data").and_then(Json::as_object_mut) {
        let status = encoded.subject.rsplit('.').next().unwrap_or_default();
        for large in ["result", "interrupts"] {
            if let Some(value) = data.get_mut(large) {
                *value = json!({ "status": status });
            }
        }
    }
    let event = Bytes::from(serde_json::to_vec(&event).expect("the event has text keys only"));
    Encoded { event, ..encoded.clone() }
}

#[cfg(test)]
mod tests {
    use cloudevents::AttributesReader;
    use expect_test::{Expect, expect};

    use super::*;
    use crate::{
        job::{Decoded, Expense, decode},
        value::{Cost, Usage},
    };

    const NOON: UnixNanos = UnixNanos(1_800_000_000_123_456_700);

    fn job() -> Job {
        let headers = [(
            "traceparent".to_owned(),
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned(),
        )];
        let payload = br#"{"job_id": "j1", "thread_id": "t1", "agent": "a", "input": {}}"#;
        match decode(&headers, payload, &Config::default()) {
            Decoded::Job(job) => *job,
            Decoded::Unreadable { error, .. } => panic!("{error}"),
        }
    }

    fn totals() -> Totals {
        let usage = Usage { input_tokens: 3, output_tokens: 2, total_tokens: 5, ..Usage::default() };
        let expense = Expense::of_call(usage, Some(Cost::from_dollars(0.0025)));
        let models = ["openai:gpt-4o", "scripted:demo"].map(|model| (model.to_owned(), expense.clone()));
        Totals {
            spent: Spent { by_model: models.into(), by_node: [("main".to_owned(), expense)].into() },
            duration_ms: 1200,
            steps: 4,
            attempts: 2,
            checkpoint_id: Some("1f1e533b-1e75-67ed-bfff-4b5d0ac8932d".into()),
            ..Totals::default()
        }
    }

    fn encoded(outcome: &ResultEvent, totals: &Totals) -> Encoded {
        encode_result(&job(), outcome, totals, Stamp { ended_at: NOON, config: &Config::default() })
    }

    fn check(encoded: &Encoded, expected: &Expect) {
        let event: Json = serde_json::from_slice(&encoded.event).expect("JSON");
        let text = serde_json::to_string_pretty(&event).expect("JSON");
        expected.assert_eq(&format!("{} {}\n{text}", encoded.subject, encoded.event_id));
        let read: cloudevents::Event = serde_json::from_slice(&encoded.event).expect("the SDK reads it");
        assert_eq!(read.id(), encoded.event_id);
        assert_eq!(read.subject(), Some("j1"));
        assert!(read.time().is_some());
    }

    #[test]
    fn a_completed_job_reports_its_output_and_its_numbers() {
        let outcome = ResultEvent::Completed { output: "done".into(), files: Some(json!({"/a": {}})) };
        check(
            &encoded(&outcome, &totals()),
            &expect![[r#"
                agent.status.completed j1:result
                {
                  "specversion": "1.0",
                  "id": "j1:result",
                  "type": "dev.my-platform.agent.completed",
                  "source": "agent-executor-service",
                  "subject": "j1",
                  "time": "2027-01-15T08:00:00.123Z",
                  "datacontenttype": "application/json",
                  "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                  "data": {
                    "job_id": "j1",
                    "thread_id": "t1",
                    "result": {
                      "output": "done",
                      "status": "completed",
                      "files": {
                        "/a": {}
                      }
                    },
                    "usage": {
                      "input_tokens": 6,
                      "output_tokens": 4,
                      "total_tokens": 10,
                      "cost_usd": 0.005,
                      "by_model": {
                        "openai:gpt-4o": {
                          "input_tokens": 3,
                          "output_tokens": 2,
                          "total_tokens": 5,
                          "cost_usd": 0.0025
                        },
                        "scripted:demo": {
                          "input_tokens": 3,
                          "output_tokens": 2,
                          "total_tokens": 5,
                          "cost_usd": 0.0025
                        }
                      },
                      "by_node": {
                        "main": {
                          "input_tokens": 3,
                          "output_tokens": 2,
                          "total_tokens": 5,
                          "cost_usd": 0.0025
                        }
                      }
                    },
                    "duration_ms": 1200,
                    "steps": 4,
                    "attempts": 2,
                    "checkpoint_id": "1f1e533b-1e75-67ed-bfff-4b5d0ac8932d"
                  }
                }"#]],
        );
    }

    #[test]
    fn a_failed_job_reports_its_error_in_place_of_the_result() {
        let failure = Failure {
            code: "NODE_FAILED".into(),
            message: "no".into(),
            node: Some("main".into()),
            retryable: false,
        };
        let failed = encoded(&ResultEvent::Failed(failure.clone()), &Totals::default());
        check(
            &failed,
            &expect![[r#"
            agent.status.failed j1:result
            {
              "specversion": "1.0",
              "id": "j1:result",
              "type": "dev.my-platform.agent.failed",
              "source": "agent-executor-service",
              "subject": "j1",
              "time": "2027-01-15T08:00:00.123Z",
              "datacontenttype": "application/json",
              "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
              "data": {
                "job_id": "j1",
                "thread_id": "t1",
                "error": {
                  "type": "NODE_FAILED",
                  "message": "no",
                  "node": "main",
                  "retryable": false
                },
                "usage": {
                  "input_tokens": 0,
                  "output_tokens": 0,
                  "total_tokens": 0,
                  "cost_usd": 0.0,
                  "by_model": {},
                  "by_node": {}
                },
                "duration_ms": 0,
                "steps": 0,
                "attempts": 0,
                "checkpoint_id": null
              }
            }"#]],
        );
        let cancelled = encoded(&ResultEvent::Cancelled(failure), &Totals::default());
        assert_eq!(cancelled.subject, "agent.status.cancelled");
        assert_eq!(cancelled.event_id, failed.event_id, "a job has one terminal result");
    }

    #[test]
    fn each_interrupt_of_a_job_has_an_id_of_its_own() {
        let interrupt = |count| ResultEvent::Interrupted { interrupts: json!([{"id": "i"}]), count };
        let second = encoded(&interrupt(2), &Totals::default());
        assert_eq!(second.event_id, "j1:interrupted:2");
        let event: Json = serde_json::from_slice(&second.event).expect("JSON");
        assert_eq!(event["type"], "dev.my-platform.agent.interrupted");
        assert_eq!(event["data"]["interrupts"], json!([{"id": "i"}]));
        assert_eq!(event["data"].get("result"), None);
    }

    #[test]
    fn a_large_event_is_replaced_by_a_reference() {
        let event_of = |encoded: &Encoded| -> Json { serde_json::from_slice(&encoded.event).expect("JSON") };
        let output = Json::from("x".repeat(MAX_EVENT_BYTES));
        let large = encoded(&ResultEvent::Completed { output, files: None }, &totals());
        assert!(large.is_too_large());
        let small = with_dataref(&large, "http://executor/results/j1");
        assert!(!small.is_too_large());
        assert_eq!((&small.subject, &small.event_id), (&large.subject, &large.event_id));
        let mut expected = event_of(&large);
        expected["data"]["result"] = json!({"status": "completed"});
        expected["dataref"] = json!("http://executor/results/j1");
        assert_eq!(event_of(&small), expected);
        let read: cloudevents::Event = serde_json::from_slice(&small.event).expect("the SDK reads it");
        assert_eq!(read.id(), small.event_id);
    }
}

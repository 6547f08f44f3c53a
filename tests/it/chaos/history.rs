//! What a run left behind, as plain data: what was asked, what the servers hold, what went wrong when. The checks
//! look at nothing else, so that a test can make one up.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value as Json;

use super::counter::Call;
use super::jobs::Asked;
use super::nemesis::Happened;

/// Everything the checks look at.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    pub(super) asked: Vec<Asked>,
    /// Messages of the results stream, in its order.
    pub(super) results: Vec<Published>,
    /// Messages of the stream of dead letters.
    pub(super) letters: Vec<Letter>,
    pub(super) jobs: Vec<JobRow>,
    pub(super) threads: Vec<ThreadRow>,
    /// By thread, namespace and id.
    pub(super) checkpoints: Vec<CheckpointRow>,
    pub(super) buried: Vec<BuriedRow>,
    pub(super) calls: Vec<Call>,
    /// Idempotency keys of effects of which a person said that they did not happen.
    pub(super) denied: Vec<String>,
    /// Events by thread, in the order of the stream.
    pub(super) events: Vec<Event>,
    pub(super) backlog: Backlog,
    pub(super) happened: Vec<Happened>,
    /// What members and servers did that nobody told them to.
    pub(super) trouble: Vec<String>,
    /// What LangGraph's own reader says; one entry per thread.
    pub(super) python: Vec<PythonThread>,
    /// Jobs that members still count as in flight.
    pub(super) in_flight: Vec<(String, f64)>,
    /// When the run started, in milliseconds since 1970.
    pub(super) started_ms: f64,
}

/// A message of the results stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Published {
    pub(super) stream_seq: u64,
    pub(super) subject: String,
    /// The header `Nats-Msg-Id`.
    pub(super) message_id: String,
    /// SHA-256 of the bytes, in hex.
    pub(super) digest: String,
    pub(super) event: Json,
}

/// A message of the stream of dead letters.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Letter {
    pub(super) reason: String,
    pub(super) payload: String,
}

/// A row of `executor_job`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct JobRow {
    pub(super) job_id: String,
    pub(super) thread_id: String,
    pub(super) stream_seq: i64,
    pub(super) state: String,
    pub(super) attempt: u64,
    pub(super) accepted_ms: f64,
    pub(super) finished_ms: Option<f64>,
    pub(super) event_id: Option<String>,
    pub(super) subject: Option<String>,
    /// SHA-256 of the stored result, in hex.
    pub(super) digest: Option<String>,
    pub(super) published: bool,
}

/// A row of `executor_thread`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct ThreadRow {
    pub(super) thread_id: String,
    pub(super) owner: Option<String>,
    pub(super) job_id: Option<String>,
    pub(super) head: Option<String>,
}

/// A row of `checkpoints`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct CheckpointRow {
    pub(super) thread_id: String,
    pub(super) ns: String,
    pub(super) id: String,
    pub(super) parent: Option<String>,
    pub(super) step: i64,
    pub(super) job_id: Option<String>,
    pub(super) epoch: Option<i64>,
    pub(super) attempt: Option<i64>,
}

/// A row of `executor_dead_letter`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct BuriedRow {
    pub(super) stream_seq: i64,
    pub(super) job_id: Option<String>,
    pub(super) reason: String,
    /// The message as text.
    pub(super) payload: String,
}

/// An entry of a thread's event stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Event {
    pub(super) thread_id: String,
    pub(super) epoch: u64,
    pub(super) seq: u64,
    pub(super) job_id: String,
    pub(super) attempt: u64,
    pub(super) event_type: String,
    /// Of an `end`.
    pub(super) status: Option<String>,
    /// Since the start of the run; negative when clocks disagree.
    pub(super) at_ms: f64,
}

/// What is left to do.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Backlog {
    /// Messages of the stream of requests.
    pub(super) stored: u64,
    pub(super) pending: u64,
    pub(super) ack_pending: u64,
    /// Messages that are still stored.
    pub(super) left: Vec<Left>,
    /// Whether members were given the time they need to find messages that the broker has forgotten.
    pub(super) waited: bool,
}

/// A request that is still stored.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Left {
    pub(super) stream_seq: u64,
    pub(super) job_id: Option<String>,
}

/// A thread as LangGraph's `PostgresSaver` decodes it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct PythonThread {
    pub(super) thread_id: String,
    /// Why it cannot be read.
    pub(super) error: Option<String>,
    /// Class and text of the messages of its newest checkpoint.
    pub(super) messages: Vec<(String, String)>,
}

impl History {
    /// Whether a fault of this sort was going on within `slack` of the span, in milliseconds since the start.
    pub(super) fn disturbed(
        &self,
        (from_ms, to_ms): (f64, f64),
        slack: Duration,
        sort: impl Fn(&Happened) -> bool,
    ) -> bool {
        let slack = slack.as_secs_f64() * 1000.0;
        let ms = |at: Duration| at.as_secs_f64() * 1000.0;
        self.happened.iter().filter(|fault| sort(fault)).any(|fault| {
            let ended = fault.to.map_or(f64::INFINITY, ms);
            ms(fault.from) <= to_ms + slack && from_ms - slack <= ended
        })
    }

    /// The last job of a family: the one that was asked for, or the last answer to its questions.
    pub(super) fn last_of<'a>(&'a self, asked: &'a Asked) -> &'a Asked {
        self.asked.iter().rfind(|other| other.family == asked.family).unwrap_or(asked)
    }

    /// Whether everything that a message asked for is done: a killed broker forgets that it was told so, and brings the
    /// message back without ever delivering it again.
    pub(super) fn is_done(&self, left: &Left) -> bool {
        let ended =
            left.job_id.as_deref().and_then(|job_id| self.job(job_id)).is_some_and(|job| job.published);
        ended || self.buried.iter().any(|buried| u64::try_from(buried.stream_seq) == Ok(left.stream_seq))
    }

    pub(super) fn job(&self, job_id: &str) -> Option<&JobRow> {
        self.jobs.iter().find(|job| job.job_id == job_id)
    }
}

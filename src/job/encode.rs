//! From an outcome to the CloudEvent that reports it.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::Value as Json;

use super::{Failure, Job};
use crate::{ids::UnixNanos, value::Usage};

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

/// Numbers of a job.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Tokens by `provider:model`.
    pub usage_by_model: BTreeMap<String, Usage>,
    /// Milliseconds from the claim to the end, of this attempt.
    pub duration_ms: u64,
    /// Supersteps of this job.
    pub steps: u64,
    /// Attempts, this one included.
    pub attempts: u32,
    /// The last checkpoint.
    pub checkpoint_id: Option<String>,
}

/// The subject, the event id and the structured CloudEvent.
pub fn encode_result(
    _job: &Job,
    _event: &ResultEvent,
    _totals: &Totals,
    _time: UnixNanos,
) -> (String, String, Bytes) {
    todo!("owner: edges helper")
}

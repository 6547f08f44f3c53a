//! Port of deadlines: what is answered when nobody has answered a question in time.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value as Json;

use super::Error;
use crate::ids::ThreadId;

/// The answer to a question when nobody gives one.
#[derive(Clone, Debug, PartialEq)]
pub struct Deadline {
    /// The thread that waits.
    pub thread_id: ThreadId,
    /// The question.
    pub interrupt_id: Arc<str>,
    /// The answer.
    pub answer: Json,
    /// The stored request of the job that asked.
    pub request: Bytes,
}

/// Questions that are answered by themselves. Whoever finds a deadline looks whether its question still waits: they
/// are set before it does, and nobody takes them back when it is answered.
#[async_trait]
pub trait Deadlines: Send + Sync {
    /// Notes that the question is answered when `after` has passed from now. One that has a deadline keeps it.
    async fn set_deadline(&self, deadline: &Deadline, after: Duration) -> Result<(), Error>;

    /// At most `limit` deadlines that have passed, oldest first, of threads on which no job waits or runs.
    async fn passed(&self, limit: u32) -> Result<Vec<Deadline>, Error>;

    /// Forgets a deadline.
    async fn clear_deadline(&self, thread_id: &ThreadId, interrupt_id: &str) -> Result<(), Error>;
}

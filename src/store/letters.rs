//! Port of dead letters: copies of messages that will never be run.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value as Json;

use super::Error;
use crate::ids::{JobId, ThreadId, UnixNanos};

/// Header that says how large a payload was of which less is kept.
pub const PAYLOAD_BYTES: &str = "Executor-Payload-Bytes";

/// A message that will never be run.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// The stream it came from; `job:<job_id>` when its message was gone.
    pub stream: String,
    /// Its place there.
    pub stream_seq: u64,
    /// Its subject; empty when its message was gone.
    pub subject: String,
    /// Its headers.
    pub headers: Vec<(String, String)>,
    /// Its payload, as it came.
    pub payload: Bytes,
    /// The job, when it could be read.
    pub job_id: Option<JobId>,
    /// The thread, when it could be read.
    pub thread_id: Option<ThreadId>,
    /// Why, in one word of [a-z_].
    pub reason: &'static str,
    /// Why, in a sentence.
    pub error: String,
    /// How often it was delivered.
    pub deliveries: u64,
}

/// A kept letter as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Its number.
    pub id: i64,
    /// When it was kept.
    pub kept_at: UnixNanos,
    /// Why, in one word.
    pub reason: String,
    /// Why, in a sentence.
    pub error: String,
    /// The job, when it could be read.
    pub job_id: Option<JobId>,
    /// Its thread.
    pub thread_id: Option<ThreadId>,
    /// How often the message was delivered.
    pub deliveries: u64,
    /// How often it was sent again.
    pub replays: u32,
    /// When it was sent again last.
    pub replayed_at: Option<UnixNanos>,
    /// The job that runs as.
    pub replay_job_id: Option<String>,
    /// When somebody decided that nothing is to be done.
    pub discarded_at: Option<UnixNanos>,
}

/// A kept letter with its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeLetter {
    /// What is listed of it.
    pub letter: Letter,
    /// The stream the message came from.
    pub stream: String,
    /// Its place there.
    pub stream_seq: u64,
    /// Its subject.
    pub subject: String,
    /// Its headers.
    pub headers: Vec<(String, String)>,
    /// Its payload.
    pub payload: Bytes,
    /// `{"error", "job"?: {"state", "attempts", "crashes", "error", "checkpoint_id"}}`: the job as it was then.
    pub detail: Json,
}

/// Which letters are asked for; all conditions hold.
#[derive(Clone, Debug, Default)]
pub struct LetterFilter {
    /// Kept for this reason.
    pub reason: Option<String>,
    /// Of this job.
    pub job_id: Option<JobId>,
    /// Of this thread.
    pub thread_id: Option<ThreadId>,
    /// Kept at most so long ago.
    pub newer_than: Option<Duration>,
    /// Kept at least so long ago.
    pub older_than: Option<Duration>,
    /// With a smaller number than this: the place to go on from.
    pub below: Option<i64>,
    /// Also those that were replayed or discarded.
    pub dealt_with: bool,
}

/// A letter that was sent again.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// The letter.
    pub id: i64,
    /// The how-manieth time, from 1.
    pub number: u32,
    /// The id of the new message.
    pub msg_id: String,
    /// The job it runs as.
    pub job_id: Option<String>,
}

/// Dead letters.
#[async_trait]
pub trait Letters: Send + Sync {
    /// Keeps a copy of a message, once per place in its stream, and what is known of its job. `false` when it is
    /// kept already.
    async fn bury(&self, letter: &DeadLetter) -> Result<bool, Error>;

    /// At most `limit` letters, the newest first.
    async fn letters(&self, filter: &LetterFilter, limit: u32) -> Result<Vec<Letter>, Error>;

    /// One letter.
    async fn letter(&self, id: i64) -> Result<Option<WholeLetter>, Error>;

    /// Notes that a letter was sent again, and with it every open letter of the same job. `false` when somebody
    /// else has noted that replay, or a later one.
    async fn mark_replayed(&self, replayed: &Replayed) -> Result<bool, Error>;

    /// Notes that nothing is to be done about open letters; how many there were among `ids`.
    async fn discard(&self, ids: &[i64]) -> Result<u64, Error>;
}

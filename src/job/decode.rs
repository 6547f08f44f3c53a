//! From a message to a job: three forms told apart without guessing.

use super::Job;
use crate::ids::{JobId, ThreadId};

/// What a message turned out to be.
#[derive(Debug)]
pub enum Decoded {
    /// A job to run; its task is `Task::Invalid` when only the ids could be used.
    Job(Box<Job>),
    /// Not a job: no job id can be read.
    Unreadable {
        /// One word of [a-z_] for the dead letter.
        reason: &'static str,
        /// A sentence.
        error: String,
    },
}

/// Reads a message.
pub fn decode(_headers: &[(String, String)], _payload: &[u8], _type_prefix: &str) -> Decoded {
    let _ = (JobId::parse(""), ThreadId::parse(""));
    todo!("owner: edges helper")
}

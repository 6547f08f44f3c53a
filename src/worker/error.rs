//! Why a delivery was not carried to its end.

use crate::{queue, store};

/// Why a delivery was not carried to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The message can never be run; a copy of it is kept as a dead letter.
    #[error("dead letter: {reason}")]
    DeadLetter {
        /// Why, in one word.
        reason: &'static str,
    },
    /// The store refused or is away.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The queue is away, or refused.
    #[error(transparent)]
    Queue(#[from] queue::Error),
    /// The process ends before the job does.
    #[error("handed back: the process ends")]
    Drained,
    /// Too many messages wait for busy threads already.
    #[error("handed back: too many messages wait for busy threads")]
    Crowded,
}

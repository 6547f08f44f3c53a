//! One run of a task: which one it is, and what there is to say if it fails.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// One run of a task within an attempt of its job.
#[derive(Debug, Default)]
pub struct Try {
    number: u32,
    left: Mutex<Left>,
}

/// What a run leaves to those who decide about the next.
#[derive(Debug, Default)]
struct Left {
    said: Vec<String>,
    asked_to_wait: Option<Duration>,
}

impl Try {
    /// The run with this number, from 0.
    pub fn new(number: u32) -> Self {
        Self { number, left: Mutex::default() }
    }

    /// Its number, from 0.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Notes that readers have heard a part of this message.
    pub(super) fn says(&self, message_id: &str) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.said.push(message_id.to_owned());
    }

    /// Notes that a provider asks to wait.
    pub(super) fn waits(&self, time: Duration) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.asked_to_wait = left.asked_to_wait.max(Some(time));
    }

    /// The messages readers have heard a part of.
    pub fn said(&self) -> Vec<String> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).said.clone()
    }

    /// Whether readers have heard a part of this message.
    pub(super) fn has_said(&self, message_id: &str) -> bool {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).said.iter().any(|said| said == message_id)
    }

    /// How long a provider asks to wait.
    pub fn asked_to_wait(&self) -> Option<Duration> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).asked_to_wait
    }
}

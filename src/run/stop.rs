//! How a run is told to stop, and why.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

use crate::store::Cancel;

/// Why a run is told to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Somebody else has claimed the thread.
    Fenced,
    /// The process ends.
    Drain,
    /// Somebody does not want the job any more.
    Cancel(Cancel),
}

/// Tells a run to stop; the first reason counts.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    token: CancellationToken,
    reason: Arc<OnceLock<Reason>>,
    leave: CancellationToken,
}

impl Stop {
    /// Stops the run.
    pub fn because(&self, reason: Reason) {
        // A second reason changes nothing: the run is already stopping.
        let _ = self.reason.set(reason);
        self.token.cancel();
    }

    /// Lets the run go on to the end of its superstep and stops it there, because the process ends.
    pub fn leave(&self) {
        self.leave.cancel();
    }

    /// Whether to stop at the next boundary of supersteps.
    pub(super) fn is_leaving(&self) -> bool {
        self.leave.is_cancelled()
    }

    /// What `work` comes to; `None` when the process leaves before.
    pub(super) async fn unless_leaving<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.leave.run_until_cancelled(work).await
    }

    /// Waits until the run is told to stop.
    pub async fn told(&self) -> Reason {
        self.token.cancelled().await;
        self.reason.get().cloned().unwrap_or(Reason::Drain)
    }
}

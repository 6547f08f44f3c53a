//! How the end of a job is written down and told: the numbers of its result, its entry in the store, its last events.

use std::time::Duration;

use bytes::Bytes;

use super::{Outcome, Report, tell_end};
use crate::{
    job::{Encoded, Job, Spent, Totals},
    store::{Claim, Ending, Finish, NextJob, StoredResult},
    stream::Emitter,
};

/// A claimed job that has ended.
pub struct Ended<'a> {
    /// The job.
    pub job: &'a Job,
    /// How it ended.
    pub report: Report,
    /// Emits the events of its claim.
    pub emitter: &'a Emitter,
    /// What it spent.
    pub spent: Spent,
    /// From the claim to the end.
    pub elapsed: Duration,
}

/// A result as it is to be stored.
pub struct Written {
    /// What will be published.
    pub result: StoredResult,
    /// The full event when `result` only refers to it.
    pub body: Option<Bytes>,
}

impl Ended<'_> {
    /// The numbers of the result, after `attempts` attempts.
    pub fn totals(&self, attempts: u32) -> Totals {
        let last = self.emitter.id_in(self.report.events_left());
        Totals {
            spent: self.spent.clone(),
            duration_ms: u64::try_from(self.elapsed.as_millis()).unwrap_or(u64::MAX),
            steps: self.report.steps,
            attempts,
            checkpoint_id: self.report.checkpoint_id.clone(),
            last_event_id: Some(last.to_string()),
            agent_version: self.report.version.as_deref().map(str::to_owned),
        }
    }

    /// What makes the end durable; with it goes what the run held last.
    pub fn finish(&mut self, claim: &Claim, written: Written, next: NextJob) -> Finish {
        let outcome = &self.report.outcome;
        Finish {
            claim: claim.clone(),
            state: outcome.state(),
            result: written.result,
            body: written.body,
            error: outcome.error(),
            next,
            undo: outcome.undoes(),
            last: self.report.last.take(),
        }
    }

    /// Tells readers of the stream. To be called once the end is durable.
    pub fn tell(&self) {
        let outcome = &self.report.outcome;
        self.report.tell_last(self.emitter);
        tell_end(self.emitter, outcome.status(), outcome.failure(), &outcome.final_result());
    }
}

impl Written {
    /// What is published is `encoded`.
    pub fn new(job: &Job, encoded: Encoded, body: Option<Bytes>) -> Self {
        let Encoded { subject, event_id, event } = encoded;
        Self { result: StoredResult { job_id: job.job_id.clone(), event_id, subject, event }, body }
    }

    /// The end of a job that never ran.
    pub fn ending(self, outcome: &Outcome) -> Ending {
        let Self { result, body } = self;
        Ending { state: outcome.state(), result, body, error: outcome.error() }
    }
}

//! The result of an ended job, as consumers get it: whole, or by reference.

use super::Worker;
use crate::{
    encoding::{UNRESERVED, percent},
    job::{Job, Stamp, Totals, encode_result, with_dataref},
    run::{Outcome, Written},
};

/// The result of a job that ended now.
pub(super) fn result(worker: &Worker, job: &Job, outcome: &Outcome, numbers: &Totals) -> Written {
    let stamp = Stamp { ended_at: worker.ports.clock.now(), config: &worker.codec };
    let whole = encode_result(job, &outcome.result_event(), numbers, stamp);
    if !whole.is_too_large() {
        return Written::new(job, whole, None);
    }
    let url = format!("{}/jobs/{}/result", worker.public_url, percent(job.job_id.as_str(), UNRESERVED));
    Written::new(job, with_dataref(&whole, &url), Some(whole.event))
}

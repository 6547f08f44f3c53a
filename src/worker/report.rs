//! The result of an ended job, as consumers get it: whole, or by reference.

use super::Worker;
use crate::{
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
    let url = format!("{}/jobs/{}/result", worker.public_url, url_path(job.job_id.as_str()));
    Written::new(job, with_dataref(&whole, &url), Some(whole.event))
}

/// A job id as one segment of a path.
fn url_path(job_id: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let encode =
        |byte: u8| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    job_id.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_ids_are_safe_in_a_path() {
        assert_eq!(url_path("job-1_a.b~c"), "job-1_a.b~c");
        assert_eq!(url_path("a/b?c é"), "a%2Fb%3Fc%20%C3%A9");
    }
}

//! Settings that make sense alone but not together.

use std::collections::BTreeSet;

use super::{Config, Problem, compose::PER_TERM};
use crate::queue::nats;

/// Adds what does not fit together to `problems`.
pub(super) fn check(config: &Config, problems: &mut Vec<Problem>) {
    // A setting that cannot be read stands at its default, which says nothing about the others.
    let unread: BTreeSet<String> = problems.iter().map(|problem| problem.name.clone()).collect();
    let mut refuse = |wrong: bool, names: &[&str], message: String| {
        if wrong && !names.iter().any(|name| unread.contains(*name)) {
            problems.push(Problem::new(names[0], message));
        }
    };
    let (worker, ack_wait) = (&config.worker, config.nats.ack_wait);
    refuse(
        worker.progress_every * PER_TERM > ack_wait,
        &["NATS_ACK_WAIT_SECONDS"],
        format!("must be three times the time between signs of life, {:?}", worker.progress_every),
    );
    let lease = config.postgres.lease;
    refuse(
        worker.renew_every * PER_TERM > lease,
        &["LEASE_SECONDS"],
        format!("must be three times the time between renewals, {:?}", worker.renew_every),
    );
    refuse(
        lease > ack_wait,
        &["LEASE_SECONDS", "NATS_ACK_WAIT_SECONDS"],
        format!(
            "must not be more than NATS_ACK_WAIT_SECONDS, {ack_wait:?}: a redelivery would find a dead owner"
        ),
    );
    refuse(
        worker.retention.jobs.is_some_and(|kept| kept < nats::RESULTS_MAX_AGE),
        &["RETENTION_JOBS_DAYS"],
        "must be 0 or at least 7: results stay in their stream that long, and large ones refer to the job's row"
            .to_owned(),
    );
    let timeouts = config.models.timeouts;
    refuse(
        timeouts.call < timeouts.first_byte || timeouts.call < timeouts.idle,
        &["MODEL_CALL_TIMEOUT_SECONDS", "MODEL_FIRST_BYTE_TIMEOUT_SECONDS", "MODEL_IDLE_TIMEOUT_SECONDS"],
        "must not be less than the time to the first piece or between two".to_owned(),
    );
    refuse(
        config.limits.max_bytes > config.job.max_request_bytes,
        &["MAX_DEFINITION_BYTES", "MAX_REQUEST_BYTES"],
        "must not be more than MAX_REQUEST_BYTES: a definition comes inside a request".to_owned(),
    );
    sizes(config, &mut refuse);
    for problem in config.nats.problems() {
        refuse(true, &["NATS settings:"], problem);
    }
}

/// What a request may be must have its place in the bounds around it.
fn sizes(config: &Config, refuse: &mut impl FnMut(bool, &[&str], String)) {
    let request = config.job.max_request_bytes;
    refuse(
        config.worker.max_bytes_in_flight < request,
        &["MAX_BYTES_IN_FLIGHT", "MAX_REQUEST_BYTES"],
        format!("must not be less than MAX_REQUEST_BYTES, {request}: one request would use it up"),
    );
    refuse(
        config.postgres.max_state_bytes < request,
        &["MAX_STATE_BYTES", "MAX_REQUEST_BYTES"],
        format!(
            "must not be less than MAX_REQUEST_BYTES, {request}: the input of a job is part of its state"
        ),
    );
}

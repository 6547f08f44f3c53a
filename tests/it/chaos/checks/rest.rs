//! What must not be left when everything is over.

use super::{Complaints, Violation};
use crate::chaos::history::{Backlog, History};

/// No lease, no message, no slot.
pub(super) fn nothing_is_left(history: &History) -> Vec<Violation> {
    let mut complaints = Complaints::about("nothing is left behind");
    for thread in &history.threads {
        complaints.unless(thread.owner.is_none(), &thread.thread_id, || {
            format!("{:?} still owns it, for {:?}", thread.owner, thread.job_id)
        });
    }
    let Backlog { stored, pending, ack_pending, left, waited } = &history.backlog;
    complaints
        .unless(*pending == 0, "AGENT_EXECUTION", || format!("{pending} messages wait to be delivered"));
    let forgotten = !waited && *stored > 0 && left.iter().all(|left| history.is_done(left));
    complaints.unless((*stored, *ack_pending) == (0, 0) || forgotten, "AGENT_EXECUTION", || {
        format!("{stored} messages are stored, {ack_pending} unsettled: {left:?}")
    });
    for (member, in_flight) in &history.in_flight {
        complaints.unless(*in_flight == 0.0, member, || format!("it counts {in_flight} jobs in flight"));
    }
    complaints.found
}

/// Processes end only when they are told to, and then they do.
pub(super) fn nobody_misbehaved(history: &History) -> Vec<Violation> {
    let mut complaints = Complaints::about("processes do as they are told");
    for trouble in &history.trouble {
        complaints.unless(false, "", || trouble.clone());
    }
    complaints.found
}

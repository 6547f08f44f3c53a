//! What readers of the streams see.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Complaints, Violation, grouped};
use crate::chaos::history::{Event, History, Published};
use crate::chaos::jobs::Expected;
use crate::chaos::nemesis::{Happened, touches_redis};
use crate::chaos::plan::What;

/// How long events may be late or lost after a fault at the Redis server: until the connection is back.
const AFTERMATH: Duration = Duration::from_secs(10);

/// Events of each thread.
fn streams(history: &History) -> BTreeMap<&str, Vec<&Event>> {
    grouped(&history.events, |event| event.thread_id.as_str())
}

/// Ids grow, a job has at most one `end` of the status of its result, and nothing of it comes after.
pub(super) fn a_job_ends_once_and_last(history: &History) -> Vec<Violation> {
    let mut complaints = Complaints::about("a stream has one end per job, and it is last");
    for (thread_id, events) in streams(history) {
        for pair in events.windows(2) {
            let ids = [(pair[0].epoch, pair[0].seq), (pair[1].epoch, pair[1].seq)];
            complaints.unless(ids[0] < ids[1], thread_id, || format!("ids do not grow: {ids:?}"));
        }
        let mut ended: BTreeMap<&str, &Event> = BTreeMap::new();
        for event in events {
            let id = (event.epoch, event.seq);
            if let Some(end) = ended.get(event.job_id.as_str()) {
                complaints.unless(false, &event.job_id, || {
                    let at = (end.epoch, end.seq);
                    format!("{} {id:?} comes after its end {at:?} in {thread_id}", event.event_type)
                });
            }
            if event.event_type == "end" {
                ended.insert(&event.job_id, event);
                let subject =
                    history.job(&event.job_id).and_then(|job| job.subject.clone()).unwrap_or_default();
                let status = event.status.as_deref().unwrap_or_default();
                complaints.unless(subject == format!("agent.status.{status}"), &event.job_id, || {
                    format!("it ends as {status:?}, its result is on {subject:?}")
                });
                let of_job = |result: &&Published| result.event["subject"] == event.job_id.as_str();
                let named =
                    history.results.iter().find(of_job).map(|result| &result.event["data"]["last_event_id"]);
                let id = format!("{}-{}", event.epoch, event.seq);
                complaints.unless(named.is_some_and(|named| *named == id), &event.job_id, || {
                    format!("its end is {id}, its result says {named:?}")
                });
            }
        }
    }
    complaints.found
}

/// A job that has ended has told its readers, unless a fault at its end explains why not.
pub(super) fn every_job_ends_in_its_stream(history: &History) -> Vec<Violation> {
    let mut complaints = Complaints::about("every job ends in its stream");
    let took_a_process =
        |fault: &Happened| matches!(fault.what, What::Member(..)) || touches_redis(fault.what);
    for asked in history.asked.iter().filter(|asked| !matches!(asked.expected, Expected::Letter(_))) {
        let told =
            history.events.iter().any(|event| event.event_type == "end" && event.job_id == asked.job_id);
        // One that never started has no claim to tell it under.
        let started = history.job(&asked.job_id).filter(|job| job.attempt > 0);
        let Some(finished) = started.and_then(|job| job.finished_ms) else { continue };
        let at = finished - history.started_ms;
        let explained = history.disturbed((at, at), AFTERMATH, took_a_process);
        complaints.unless(told || explained, &asked.job_id, || format!("no end in {}", asked.thread_id));
    }
    complaints.found
}

/// Whether an event may have been told by another process than the one that ran the job.
fn is_told_again(event: &Event) -> bool {
    matches!(event.event_type.as_str(), "on_interrupt" | "error" | "end")
}

/// Within a claim `seq` starts at 1 and grows by one; what is missing was lost to a fault at the Redis server, or in
/// front of an end that was told by others, with the process that ran the job.
pub(super) fn holes_have_a_reason(history: &History) -> Vec<Violation> {
    let mut complaints = Complaints::about("holes in a stream have a reason");
    for (thread_id, events) in streams(history) {
        let mut before: Option<&Event> = None;
        for event in events {
            let same_claim = before.filter(|before| before.epoch == event.epoch);
            let wanted = same_claim.map_or(1, |before| before.seq + 1);
            let from = before.map_or(event.at_ms, |before| before.at_ms);
            let sort = |fault: &Happened| {
                let took_a_process = matches!(fault.what, What::Member(..));
                touches_redis(fault.what) || (took_a_process && is_told_again(event))
            };
            let explained = || history.disturbed((from, event.at_ms), AFTERMATH, sort);
            complaints.unless(event.seq == wanted || explained(), thread_id, || {
                format!("{}-{} of {} should be seq {wanted}", event.epoch, event.seq, event.job_id)
            });
            let starts = same_claim.is_some() || event.seq != 1 || event.event_type == "on_attempt_start";
            complaints.unless(starts, thread_id, || {
                format!("claim {} starts with {}", event.epoch, event.event_type)
            });
            before = Some(event);
        }
    }
    complaints.found
}

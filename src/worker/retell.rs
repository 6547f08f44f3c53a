//! The last events of a job whose process died after its end was durable and before its readers heard of it.
//!
//! **Invariant:** they are told under the ids they would have had, so the server takes them once, whoever is first:
//! the process that ended the job, late, or any that tells them again.

use serde_json::Value as Json;

use super::Worker;
use crate::{
    ids::{JobId, ThreadId},
    job::Failure,
    run::{tell_end, tell_interrupts},
    stream::{Claimed, Emitter, EntryId},
};

/// Tells the end of a job from its stored result, if readers of its thread have not heard of it.
///
/// Best effort, like all events: with a server away, readers ask for the result instead.
pub(super) async fn end(worker: &Worker, job_id: &JobId) {
    let Ok(Some(event)) = worker.ports.store.result(job_id).await else { return };
    let event: Json = serde_json::from_slice(&event).unwrap_or_default();
    let Some((claimed, end)) = claimed(&event) else { return };
    let Some(last) = worker.ports.sink.last(&claimed.thread_id).await else { return };
    if last.id.parse().is_ok_and(|last: EntryId| last >= end) {
        return;
    }
    let data = &event["data"];
    let failure: Option<Failure> = serde_json::from_value(data["error"].clone()).ok();
    let interrupts = Some(&data["interrupts"]).filter(|interrupts| !interrupts.is_null());
    let before_end = u64::from(failure.is_some()) + u64::from(interrupts.is_some());
    let ports = &worker.ports;
    let emitter = Emitter::new(ports.sink.clone(), ports.clock.clone(), claimed, ports.tokens)
        .after(end.seq.saturating_sub(before_end + 1));
    if let Some(interrupts) = interrupts {
        tell_interrupts(&emitter, interrupts);
    }
    let status = event["type"].as_str().and_then(|kind| kind.rsplit('.').next()).unwrap_or_default();
    tell_end(&emitter, status, failure.as_ref(), &data["result"]);
}

/// The claim under which the job ended, and the id of its last event; none when it never started.
fn claimed(event: &Json) -> Option<(Claimed, EntryId)> {
    let data = &event["data"];
    let end: EntryId = data["last_event_id"].as_str()?.parse().ok()?;
    let claimed = Claimed {
        thread_id: ThreadId::parse(data["thread_id"].as_str()?).ok()?,
        job_id: JobId::parse(data["job_id"].as_str()?).ok()?,
        epoch: end.epoch,
        attempt: data["attempts"].as_u64().and_then(|attempts| u32::try_from(attempts).ok())?,
    };
    Some((claimed, end))
}

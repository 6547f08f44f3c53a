//! The last events of a job whose process died after its end was durable and before its readers heard of it.

use std::time::Duration;

use serde_json::Value as Json;

use super::Worker;
use crate::{
    job::{Failure, Job},
    run::tell_end,
    store::StoredResult,
    stream::{Claimed, Emitter, EntryId, EventType, LastEvent},
};

/// Longest wait for events of this process that may be the missing ones.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// Tells the end of `job` from its stored result, if its stream does not end with it.
///
/// Best effort, like all events: with the server away, readers ask for the result instead.
pub(super) async fn end(worker: &Worker, job: &Job, stored: &StoredResult) {
    worker.ports.sink.flush(FLUSH_LIMIT).await;
    let Some(last) = worker.ports.sink.last(&job.thread_id).await else { return };
    if last.job_id != job.job_id.as_str() || last.event_type == EventType::End.as_str() {
        return;
    }
    let body = worker.ports.store.result(&job.job_id).await.ok().flatten();
    let event: Json =
        serde_json::from_slice(&body.unwrap_or_else(|| stored.event.clone())).unwrap_or_default();
    if let Some(emitter) = continued(worker, job, &last) {
        let status = stored.subject.rsplit('.').next().unwrap_or_default();
        let failure: Option<Failure> = serde_json::from_value(event["data"]["error"].clone()).ok();
        tell_end(&emitter, status, failure.as_ref(), &event["data"]["result"]);
    }
}

/// An emitter that goes on where the dead process stopped.
fn continued(worker: &Worker, job: &Job, last: &LastEvent) -> Option<Emitter> {
    let id: EntryId = last.id.parse().ok()?;
    let claimed = Claimed {
        thread_id: job.thread_id.clone(),
        job_id: job.job_id.clone(),
        epoch: id.epoch,
        attempt: last.attempt,
    };
    let ports = &worker.ports;
    Some(Emitter::new(ports.sink.clone(), ports.clock.clone(), claimed, ports.tokens).after(id.seq))
}

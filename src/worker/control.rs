//! Requests to cancel from outside, and notices of other processes that a job of ours is to end.
//!
//! **Invariant:** a request is answered only after its wish is stored: from then on the job ends whatever dies.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{PAUSE, Worker, upkeep};
use crate::{
    ids::{JobId, ThreadId},
    queue::control::{Cancel, ControlRequest, answer, refusal},
    store::{self, Met},
};

/// Requests carried out side by side; more wait.
const REQUESTS_AT_ONCE: usize = 16;

/// How long a wish may take to be stored, the database being away: whoever asked waits five seconds.
const NOTED_WITHIN: Duration = Duration::from_secs(4);

/// Wait between two tries to store it.
const NOTE_PAUSE: Duration = Duration::from_millis(200);

/// How long an answer waits for the ends of queued jobs, so that it can tell of them.
const ENDED_WITHIN: Duration = Duration::from_millis(500);

/// Carries out what people and programs ask for, until `end`.
pub(super) async fn serve(worker: Arc<Worker>, end: CancellationToken) {
    loop {
        let Some(requests) = end.run_until_cancelled(worker.queue.control()).await else { return };
        match requests {
            Ok(requests) => {
                let requests = requests.take_until(end.cancelled());
                requests.for_each_concurrent(REQUESTS_AT_ONCE, |request| carry_out(&worker, request)).await;
            }
            Err(error) => tracing::debug!(code = error.code(), %error, "no requests can be taken"),
        }
        if end.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
            return;
        }
    }
}

/// Listens to the notices of all processes until `end`.
pub(super) async fn hear(worker: Arc<Worker>, end: CancellationToken) {
    loop {
        let Some(notices) = end.run_until_cancelled(worker.queue.notices()).await else { return };
        match notices {
            Ok(mut notices) => {
                while let Some(Some(threads)) = end.run_until_cancelled(notices.next()).await {
                    take_notice(&worker, &threads);
                }
            }
            Err(error) => tracing::debug!(code = error.code(), %error, "no notices can be heard"),
        }
        if end.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
            return;
        }
    }
}

fn take_notice(worker: &Worker, threads: &[ThreadId]) {
    if threads.iter().any(|thread_id| worker.keepalive.owned(thread_id).is_some()) {
        worker.keepalive.look();
    }
    for thread_id in threads {
        // A message that waits for its thread may find that its job has ended.
        worker.announce(thread_id);
    }
}

async fn carry_out(worker: &Arc<Worker>, request: ControlRequest) {
    let ControlRequest { cancel, reply } = request;
    let said = match note(worker, &cancel).await {
        Ok(met) => {
            tracing::info!(target_id = %cancel.target, jobs = met.jobs.len(), waits = met.waits, "cancel");
            let ended = act(worker, &met).await;
            answer(&met, &ended)
        }
        Err(error) => {
            tracing::warn!(target_id = %cancel.target, code = error.code(), %error, "a cancel is not stored");
            refusal(error.code(), "the wish could not be stored; nothing is cancelled")
        }
    };
    if let Some(reply) = &reply {
        worker.queue.answer(reply, &said).await;
    }
}

/// Stores the wish; tries again while the database is away for a moment.
async fn note(worker: &Worker, cancel: &Cancel) -> Result<Met, store::Error> {
    let (target, wish) = (cancel.target_kind(), cancel.wish());
    let noted = async {
        loop {
            match worker.ports.store.wish(&cancel.target, target, &wish).await {
                Err(store::Error::Unavailable(_)) => tokio::time::sleep(NOTE_PAUSE).await,
                answered => return answered,
            }
        }
    };
    let late = |_| Err(store::Error::Unavailable("no answer in time".into()));
    timeout(NOTED_WITHIN, noted).await.unwrap_or_else(late)
}

/// Hurries what the store would make known by itself within seconds; the jobs that have ended by it.
async fn act(worker: &Arc<Worker>, met: &Met) -> Vec<JobId> {
    let running = met.jobs.iter().filter(|job| job.state == "running");
    let running: Vec<ThreadId> = running.map(|job| job.thread_id.clone()).collect();
    if !running.is_empty() {
        worker.keepalive.look();
        worker.queue.notice(&running).await;
    }
    if !met.jobs.iter().any(|job| job.state == "queued") {
        return Vec::new();
    }
    // A task of its own: it publishes, and the broker may be slow.
    let ending = worker.clone();
    let ending = worker.tracker.spawn(async move { upkeep::end_doomed(&ending).await });
    match timeout(ENDED_WITHIN, ending).await {
        Ok(Ok(Ok(ended))) => ended,
        // The sweep ends them.
        Ok(Ok(Err(_)) | Err(_)) | Err(_) => Vec::new(),
    }
}

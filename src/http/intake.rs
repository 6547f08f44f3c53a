//! Takes one execution request and stores it in the queue, as it came.

use std::time::Duration;

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use serde::Serialize;
use tokio::time::timeout;

use super::{State as Doors, refusal::Refusal};
use crate::{
    job::Job,
    queue::{self, Submission},
    run,
    store::Record,
};

/// Longest time for a body to arrive; slower senders hold memory for nothing.
const BODY_LIMIT: Duration = Duration::from_secs(30);
/// Longest wait for the database to hear of a request first; without it the broker alone keeps it.
const RECORD_LIMIT: Duration = Duration::from_secs(1);
/// Longest wait for the broker to confirm; callers of HTTP give up soon after. Shorter than the ten seconds after
/// which a recorded job without a message is run.
const SUBMIT_LIMIT: Duration = Duration::from_secs(8);
/// Headers that belong to the request rather than to its way here; `ce-` ones do too.
const KEPT_HEADERS: [&str; 3] = ["content-type", "traceparent", "tracestate"];

#[derive(Serialize)]
struct Accepted<'a> {
    job_id: &'a str,
    thread_id: &'a str,
    status: &'static str,
}

/// `POST /`: a CloudEvent, structured or binary, or bare data.
pub(super) async fn submit(State(doors): State<Doors>, request: Request) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    let payload = read(body, doors.max_body_bytes).await?;
    let headers = kept(&parts.headers);
    let checked = run::check(&headers, &payload, &doors.job, &doors.limits);
    let job = checked.map_err(|rejected| Refusal::bad_request(rejected.message, rejected.details))?.job;
    let submission = Submission { job_id: job.job_id.to_string(), headers, payload };
    let is_recorded = record(&doors, &job).await;
    if let Err(refusal) = store(&doors, &submission).await {
        if is_recorded {
            forget(&doors, &job).await;
        }
        return Err(refusal);
    }
    tracing::info!(job_id = %job.job_id, thread_id = %job.thread_id, "request stored");
    let (job_id, thread_id) = (job.job_id.as_str(), job.thread_id.as_str());
    Ok((StatusCode::ACCEPTED, Json(Accepted { job_id, thread_id, status: "queued" })).into_response())
}

/// Lets the database know the job before the broker has it: a message that a broker confirms and loses is run all the
/// same. Whether this call made it known; best effort, because the broker's word is enough to accept a request.
async fn record(doors: &Doors, job: &Job) -> bool {
    let record = Record::of(job, None, doors.job_timeout);
    match timeout(RECORD_LIMIT, doors.records.record(&record)).await {
        Ok(Ok(is_new)) => is_new,
        Ok(Err(error)) => {
            tracing::warn!(job_id = %job.job_id, code = error.code(), %error, "a request is not recorded first");
            false
        }
        Err(_) => {
            tracing::warn!(job_id = %job.job_id, "a request is not recorded first: no answer in time");
            // It may have been all the same.
            true
        }
    }
}

/// Takes the record back. A message that the broker has stored in spite of its silence makes the job known again.
async fn forget(doors: &Doors, job: &Job) {
    if !matches!(timeout(RECORD_LIMIT, doors.records.forget(&job.job_id)).await, Ok(Ok(()))) {
        tracing::warn!(job_id = %job.job_id, "a refused request stays recorded and may run");
    }
}

async fn read(body: Body, limit: usize) -> Result<Bytes, Refusal> {
    let late = |_| {
        let message = format!("the body took longer than {} s", BODY_LIMIT.as_secs());
        Refusal::new(StatusCode::REQUEST_TIMEOUT, "BODY_TIMEOUT", message)
    };
    timeout(BODY_LIMIT, collect(body, limit)).await.map_err(late)?
}

async fn collect(body: Body, limit: usize) -> Result<Bytes, Refusal> {
    let mut chunks = body.into_data_stream();
    let mut payload = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let cut_off = |_| Refusal::bad_request("the body ended before it was whole", Vec::new());
        let chunk = chunk.map_err(cut_off)?;
        if payload.len() + chunk.len() > limit {
            let message = format!("the body is larger than {limit} bytes");
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE", message));
        }
        payload.extend_from_slice(&chunk);
    }
    Ok(payload.into())
}

fn kept(headers: &HeaderMap) -> Vec<(String, String)> {
    let is_kept = |name: &str| KEPT_HEADERS.contains(&name) || name.starts_with("ce-");
    headers
        .iter()
        .filter(|(name, _)| is_kept(name.as_str()))
        .filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())))
        .collect()
}

async fn store(doors: &Doors, submission: &Submission) -> Result<(), Refusal> {
    let stored = timeout(SUBMIT_LIMIT, doors.queue.submit(submission)).await;
    let error = match stored {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(error)) => error,
        Err(_) => queue::Error::Unavailable(format!("no answer within {} s", SUBMIT_LIMIT.as_secs())),
    };
    let code = error.code();
    tracing::warn!(error = &error as &dyn std::error::Error, code, "a request cannot be stored");
    Err(Refusal::unavailable(code, "the request cannot be stored now; it was not accepted"))
}

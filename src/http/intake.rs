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
    queue::{self, Submission},
    run,
};

/// Longest time for a body to arrive; slower senders hold memory for nothing.
const BODY_LIMIT: Duration = Duration::from_secs(30);
/// Longest wait for the broker to confirm; callers of HTTP give up soon after.
const SUBMIT_LIMIT: Duration = Duration::from_secs(10);
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
    store(&doors, &submission).await?;
    tracing::info!(job_id = %job.job_id, thread_id = %job.thread_id, "request stored");
    let (job_id, thread_id) = (job.job_id.as_str(), job.thread_id.as_str());
    Ok((StatusCode::ACCEPTED, Json(Accepted { job_id, thread_id, status: "queued" })).into_response())
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

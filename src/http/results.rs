//! Stored results: where the `dataref` of a large result leads.

use axum::{
    extract::{Path, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};

use super::{State as Doors, refusal::Refusal};
use crate::ids::JobId;

/// The full result event of a job that has ended.
pub(super) async fn result(
    State(doors): State<Doors>,
    Path(job_id): Path<String>,
) -> Result<Response, Refusal> {
    let unknown = || Refusal::new(StatusCode::NOT_FOUND, "NOT_FOUND", "no result of such a job is stored");
    let job_id = JobId::parse(&job_id).map_err(|_| unknown())?;
    match doors.jobs.result(&job_id).await {
        Ok(Some(event)) => Ok(([(CONTENT_TYPE, "application/cloudevents+json")], event).into_response()),
        Ok(None) => Err(unknown()),
        Err(error) => {
            let code = error.code();
            tracing::warn!(error = &error as &dyn std::error::Error, code, "a result cannot be read");
            Err(Refusal::unavailable(code, "the result cannot be read now"))
        }
    }
}

//! The one shape of every answer that is not what was asked for.

use std::any::Any;

use axum::{
    Json,
    http::{Method, StatusCode, Uri, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::{graph::Diagnostic, telemetry::scrub::Scrubber};

/// Seconds after which a caller may try again; about as long as a reconnect takes.
const RETRY_SECONDS: &str = "2";

/// Why a request is not done.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) details: Vec<Diagnostic>,
}

#[derive(Serialize)]
struct Body {
    error: Shape,
}

#[derive(Serialize)]
struct Shape {
    code: &'static str,
    message: String,
    details: Vec<Diagnostic>,
}

impl Refusal {
    /// A refusal without details.
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), details: Vec::new() }
    }

    /// The request is wrong in these ways.
    pub(super) fn bad_request(message: impl Into<String>, details: Vec<Diagnostic>) -> Self {
        Self { details, ..Self::new(StatusCode::BAD_REQUEST, "BAD_REQUEST", message) }
    }

    /// Something behind this door does not answer; the same request may succeed later.
    pub(super) fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self { status, code, message, details } = self;
        let clean = |text: String| Scrubber::process().report(&text).into_owned();
        let scrubbed =
            |diagnostic: Diagnostic| Diagnostic { message: clean(diagnostic.message), ..diagnostic };
        let (message, details) = (clean(message), details.into_iter().map(scrubbed).collect());
        let body = Json(Body { error: Shape { code, message, details } });
        if status == StatusCode::SERVICE_UNAVAILABLE {
            return (status, [(RETRY_AFTER, RETRY_SECONDS)], body).into_response();
        }
        (status, body).into_response()
    }
}

/// No such door.
pub(super) async fn not_found(uri: Uri) -> Refusal {
    let message = format!("there is nothing at {}", uri.path());
    Refusal::new(StatusCode::NOT_FOUND, "NOT_FOUND", message)
}

/// A door that does not open this way.
pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> Refusal {
    let message = format!("{} does not take {method}", uri.path());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", message)
}

/// A mistake of ours; what it was is for the log alone.
pub(super) fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text");
    tracing::error!(panic = text, "a request panicked");
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL", "the request could not be answered")
        .into_response()
}

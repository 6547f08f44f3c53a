//! The doors while the process still connects: it lives, it counts, it can do nothing yet.

use std::{future::Future, io};

use axum::{Json, Router, http::StatusCode, response::IntoResponse, routing::get};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{probe, refusal::Refusal};
use crate::telemetry::PrometheusHandle;

/// Answers on `listener` while `start` runs, then gives the listener back with what came of it.
///
/// Without this, a database that comes up minutes later lets the platform's liveness probe kill a process
/// that only waits for it.
pub async fn meanwhile<T>(
    listener: TcpListener,
    metrics: PrometheusHandle,
    start: impl Future<Output = T>,
) -> io::Result<(TcpListener, T)> {
    let socket = listener.into_std()?;
    let own = TcpListener::from_std(socket.try_clone()?)?;
    let started = CancellationToken::new();
    let serving = axum::serve(own, router(metrics)).with_graceful_shutdown(started.clone().cancelled_owned());
    let starting = async {
        let result = start.await;
        started.cancel();
        result
    };
    // A request that never ends must not hold up the start: what serves it is dropped with its listener.
    let mut serving = std::pin::pin!(serving.into_future());
    let mut starting = std::pin::pin!(starting);
    let result = tokio::select! {
        result = &mut starting => result,
        served = &mut serving => {
            served?;
            starting.await
        }
    };
    Ok((TcpListener::from_std(socket)?, result))
}

fn router(metrics: PrometheusHandle) -> Router {
    Router::new()
        .route("/health", get(probe::health))
        .route("/ready", get(ready))
        .route("/metrics", get(|| async move { probe::rendered(&metrics) }))
        .fallback(not_yet)
}

async fn ready() -> impl IntoResponse {
    let services = json!({"postgres": false, "dragonfly": false, "nats": false});
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "not_ready", "services": services})))
}

async fn not_yet() -> Refusal {
    Refusal::unavailable("QUEUE_UNAVAILABLE", "the service is starting; nothing was accepted")
}

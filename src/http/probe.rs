//! What a platform asks: does it live, can it work, what does it count.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
};
use serde::Serialize;
use tokio::time::timeout;

use super::State as Doors;
use crate::telemetry::PrometheusHandle;

/// Longest wait for one service; probes of platforms give up after about a second.
const ASK_LIMIT: Duration = Duration::from_millis(900);

#[derive(Serialize)]
pub(super) struct Health {
    status: &'static str,
    version: &'static str,
}

#[derive(Serialize)]
struct Readiness {
    status: &'static str,
    services: Services,
}

#[derive(Serialize)]
struct Services {
    postgres: bool,
    dragonfly: bool,
    nats: bool,
}

/// The process lives; nobody else is asked, so that a dead database restarts no pod.
pub(super) async fn health() -> Json<Health> {
    Json(Health { status: "healthy", version: env!("CARGO_PKG_VERSION") })
}

/// Whether the process can take jobs. Live events are best effort, so their server does not count.
pub(super) async fn ready(State(doors): State<Doors>) -> impl IntoResponse {
    let (postgres, dragonfly, nats) = tokio::join!(
        timeout(ASK_LIMIT, doors.jobs.ping()),
        timeout(ASK_LIMIT, doors.sink.ping()),
        timeout(ASK_LIMIT, doors.queue.ping()),
    );
    let services = Services {
        postgres: matches!(postgres, Ok(Ok(()))),
        dragonfly: matches!(dragonfly, Ok(true)),
        nats: matches!(nats, Ok(true)),
    };
    let (code, status) = match (doors.draining.is_cancelled(), services.postgres && services.nats) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        (false, false) => (StatusCode::SERVICE_UNAVAILABLE, "not_ready"),
        (false, true) => (StatusCode::OK, "ready"),
    };
    (code, Json(Readiness { status, services }))
}

/// Prometheus text.
pub(super) async fn metrics(State(doors): State<Doors>) -> impl IntoResponse {
    rendered(&doors.metrics)
}

/// The metrics as Prometheus reads them.
pub(super) fn rendered(metrics: &PrometheusHandle) -> impl IntoResponse + use<> {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render())
}

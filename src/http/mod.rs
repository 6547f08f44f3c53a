//! Home of axum: probes, metrics, intake of requests, stored results.
//!
//! **Invariant:** whatever goes wrong is answered as `{"error":{"code","message","details"}}`.
//! **Invariant:** a 202 is sent only after the broker has confirmed that it keeps the request.

mod intake;
mod probe;
mod refusal;
mod results;
mod starting;
#[cfg(test)]
mod tests;

pub use starting::meanwhile;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    routing::{get, post},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    graph, job,
    queue::Queue,
    store::{Jobs, Upkeep},
    stream::Sink,
    telemetry::PrometheusHandle,
};

/// How long open connections may go on after a request to stop; probes and submits are short.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Where the door is and how wide.
#[derive(Clone, Debug)]
pub struct Config {
    /// The IP address to listen on.
    pub address: IpAddr,
    /// The port; 0 takes a free one.
    pub port: u16,
    /// Largest request body in bytes.
    pub max_body_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { address: Ipv4Addr::UNSPECIFIED.into(), port: 8080, max_body_bytes: 1 << 20 }
    }
}

/// What the doors lead to.
#[derive(Clone)]
pub struct State {
    /// Takes requests.
    pub queue: Arc<dyn Queue>,
    /// Keeps results.
    pub jobs: Arc<dyn Jobs>,
    /// Hears of requests before the broker does.
    pub records: Arc<dyn Upkeep>,
    /// How long a job may take that does not say.
    pub job_timeout: Duration,
    /// Only asked whether it lives.
    pub sink: Arc<dyn Sink>,
    /// The metrics of the process.
    pub metrics: PrometheusHandle,
    /// Cancelled when the process stops taking jobs; from then on it is not ready.
    pub draining: CancellationToken,
    /// How requests are read.
    pub job: job::Config,
    /// How large a definition may be.
    pub limits: graph::Limits,
    /// Largest request body in bytes.
    pub max_body_bytes: usize,
}

/// Opens the port.
pub async fn bind(config: &Config) -> io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::new(config.address, config.port)).await
}

/// Answers until `shutdown`, then lets open requests end for at most two seconds.
pub async fn serve(listener: TcpListener, state: State, shutdown: CancellationToken) -> io::Result<()> {
    let closing = shutdown.clone();
    let serving = axum::serve(listener, router(state)).with_graceful_shutdown(closing.cancelled_owned());
    let too_long = async {
        shutdown.cancelled().await;
        tokio::time::sleep(CLOSE_LIMIT).await;
    };
    tokio::select! {
        served = serving => served,
        () = too_long => Ok(()),
    }
}

/// All doors.
fn router(state: State) -> Router {
    Router::new()
        .route("/", post(intake::submit))
        .route("/health", get(probe::health))
        .route("/ready", get(probe::ready))
        .route("/metrics", get(probe::metrics))
        .route("/jobs/{job_id}/result", get(results::result))
        .fallback(refusal::not_found)
        .method_not_allowed_fallback(refusal::method_not_allowed)
        .layer(CatchPanicLayer::custom(refusal::panicked))
        .with_state(state)
}

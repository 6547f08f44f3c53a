//! Throw-away HTTP servers of a few routes, on ports of their own.

use anyhow::Result;
use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// A running server; it takes no more connections when it is dropped.
pub(crate) struct Served {
    /// `http://127.0.0.1:<port>`.
    pub(crate) url: String,
    pub(crate) port: u16,
    _end: DropGuard,
}

/// Opens a port for `router`.
pub(crate) async fn serve(router: Router) -> Result<Served> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let end = CancellationToken::new();
    let ended = end.clone().cancelled_owned();
    TaskTracker::new().spawn(axum::serve(listener, router).with_graceful_shutdown(ended).into_future());
    Ok(Served { url: format!("http://{address}"), port: address.port(), _end: end.drop_guard() })
}

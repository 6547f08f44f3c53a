//! A TCP proxy that can be told to misbehave: what stands between the program and a server when a test needs a network
//! that breaks. Needs nothing but tokio; shared through `#[path]` like `servers`.
//!
//! **Invariant:** bytes are never altered, reordered or lost within a connection that lives on: a connection of which
//! anything was swallowed is cut when the black hole ends.
//! **Invariant:** nothing outlives the [`Proxy`]; its drop closes the port and every connection.
#![allow(dead_code, reason = "every user of this shared file needs a different part of it")]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Largest piece that is carried at once.
const PIECE_BYTES: usize = 16 * 1024;
/// Pieces on their way per direction; a full way holds up the sender, as a full window does.
const PIECES: usize = 256;

/// What the proxy does with connections and their bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Carries everything at once.
    Pass,
    /// Resets every connection, and every new one.
    Cut,
    /// Accepts connections and swallows what comes, from both sides: nobody learns that the other one is away.
    BlackHole,
    /// Carries everything later: towards the server, and back.
    Delay {
        /// Latency towards the server.
        up: Duration,
        /// Latency of its answers.
        down: Duration,
    },
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

/// A port of 127.0.0.1 that leads to a server.
pub(crate) struct Proxy {
    port: u16,
    mode: watch::Sender<Mode>,
    end: CancellationToken,
}

impl Proxy {
    /// Opens a port that leads to `port` of 127.0.0.1, which need not be open yet.
    pub(crate) async fn start(port: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("cannot open a proxy's port")?;
        let own = listener.local_addr()?.port();
        let (mode, told) = watch::channel(Mode::Pass);
        let end = CancellationToken::new();
        let to = SocketAddr::from(([127, 0, 0, 1], port));
        TaskTracker::new().spawn(end.clone().run_until_cancelled_owned(accept(listener, to, told)));
        Ok(Self { port: own, mode, end })
    }

    /// The port clients connect to.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Changes what happens from now on, to connections that exist as well.
    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Connections see the sender go as well.
        self.end.cancel();
    }
}

async fn accept(listener: TcpListener, to: SocketAddr, mode: watch::Receiver<Mode>) {
    let connections = TaskTracker::new();
    // An error of accept concerns one connection: its client is gone again.
    loop {
        if let Ok((client, _)) = listener.accept().await {
            connections.spawn(carry(client, to, mode.clone()));
        }
    }
}

/// One connection, until one of its ends or the proxy is done with it.
async fn carry(client: TcpStream, to: SocketAddr, mut mode: watch::Receiver<Mode>) {
    let now = *mode.borrow_and_update();
    match now {
        Mode::Cut => return reset(&client),
        Mode::BlackHole => {
            // The client believes that it is connected; it hears the truth when the hole closes.
            let _ = mode.wait_for(|mode| *mode != Mode::BlackHole).await;
            return reset(&client);
        }
        Mode::Pass | Mode::Delay { .. } => {}
    }
    let Ok(server) = TcpStream::connect(to).await else { return reset(&client) };
    // Requests are small and answered one by one: waiting for more to send would add a delay of its own.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let broken = CancellationToken::new();
    let up = Direction { way: Way::Up, mode: mode.clone(), broken: broken.clone() };
    let down = Direction { way: Way::Down, mode: mode.clone(), broken: broken.clone() };
    // Dropping the halves closes both sockets.
    tokio::select! {
        _ = async { tokio::join!(up.carry(from_client, to_server), down.carry(from_server, to_client)) } => {}
        _ = mode.wait_for(|mode| *mode == Mode::Cut) => {}
        () = broken.cancelled() => {}
    }
}

/// A client that is refused sees a reset, as from a machine that knows no such connection.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

/// A piece and when it arrives.
type Piece = (Instant, Vec<u8>);

/// One way of a connection.
struct Direction {
    way: Way,
    mode: watch::Receiver<Mode>,
    /// Ends the connection, because bytes of it were swallowed.
    broken: CancellationToken,
}

impl Direction {
    /// Carries until the sender is done, and then says so to the other end.
    async fn carry(self, from: OwnedReadHalf, to: OwnedWriteHalf) {
        let (pieces, on_the_way) = mpsc::channel(PIECES);
        tokio::join!(self.read(from, pieces), write(on_the_way, to));
    }

    async fn read(self, mut from: OwnedReadHalf, pieces: mpsc::Sender<Piece>) {
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let length = from.read(&mut buffer).await.unwrap_or(0);
            let mode = *self.mode.borrow();
            let latency = match (mode, self.way) {
                (Mode::BlackHole, _) => return self.swallow(from).await,
                (Mode::Delay { up, .. }, Way::Up) => up,
                (Mode::Delay { down, .. }, Way::Down) => down,
                (Mode::Pass | Mode::Cut, _) => Duration::ZERO,
            };
            let piece = (Instant::now() + latency, buffer[..length].to_vec());
            if length == 0 || pieces.send(piece).await.is_err() {
                return;
            }
        }
    }

    /// Loses everything, the end of the sender included, until the hole closes; then the connection is over.
    async fn swallow(mut self, mut from: OwnedReadHalf) {
        let mut lost = vec![0; PIECE_BYTES];
        let lose = async { while let Ok(1..) = from.read(&mut lost).await {} };
        let closed = async {
            let _ = self.mode.wait_for(|mode| *mode != Mode::BlackHole).await;
        };
        // Whoever sends must not notice by a full window that nobody reads.
        tokio::select! {
            () = closed => {}
            () = async { lose.await; std::future::pending().await } => {}
        }
        self.broken.cancel();
    }
}

async fn write(mut pieces: mpsc::Receiver<Piece>, mut to: OwnedWriteHalf) {
    while let Some((due, piece)) = pieces.recv().await {
        tokio::time::sleep_until(due).await;
        if to.write_all(&piece).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

//! One connection to the server that comes back by itself.
//!
//! **Invariant:** a command ends within its timeout, connected or not; nothing is kept inside fred to be sent later.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use fred::{
    clients::{Client, WithOptions},
    error::{Error as FredError, ErrorKind},
    interfaces::{ClientLike, StreamsInterface},
    types::{
        Builder, ConnectHandle, RespVersion,
        config::{Config as Server, Options, ReconnectPolicy, TcpConfig},
    },
};
use secrecy::ExposeSecret;

use super::{super::LastEvent, Config, Error};

/// How long opening a connection may take, and each of the commands that greet the server. Far above a healthy
/// network's round trip, and below [`super::writer`]'s patience with a link.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the server may be silent before the connection is replaced: a half-open one ends here.
const LINK_PATIENCE: Duration = Duration::from_secs(5);

/// Milliseconds between attempts to connect; constant, since a single connection per process burdens no server.
const RECONNECT_MS: u32 = 200;

/// Commands that may wait inside fred. The writer has one flush on its way, readiness probes one ping each.
const MAX_COMMANDS: usize = 1024;

/// The current connection, replaced when it gets stuck.
pub(super) struct Link {
    config: Config,
    open: Mutex<Open>,
    /// Since when the server is silent, as far as somebody notes it.
    silent: Mutex<Option<Instant>>,
}

struct Open {
    client: Client,
    task: ConnectHandle,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    /// Starts to connect; whether that succeeds shows later.
    pub(super) fn open(config: Config) -> Result<Self, Error> {
        let open = Mutex::new(connect(&config)?);
        Ok(Self { config, open, silent: Mutex::default() })
    }

    /// The connection, for commands that end within `timeout` and are tried once.
    pub(super) fn client(&self, timeout: Duration) -> WithOptions<Client> {
        let options =
            Options { max_attempts: Some(1), timeout: Some(timeout), fail_fast: true, ..Options::default() };
        self.locked().client.with_options(&options)
    }

    pub(super) async fn ping(&self) -> Result<(), fred::error::Error> {
        self.client(self.config.command_timeout).ping::<()>(None).await
    }

    /// The newest entry of a stream.
    pub(super) async fn last(&self, key: &str) -> Option<LastEvent> {
        let client = self.client(self.config.command_timeout);
        let newest: Vec<(String, HashMap<String, String>)> =
            client.xrevrange_values(key, "+", "-", Some(1)).await.ok()?;
        let (_, fields) = newest.into_iter().next()?;
        serde_json::from_str(fields.get("event")?).ok()
    }

    /// Waits for `pause`, and then until there is a connection, but not longer than `patience`.
    pub(super) async fn connected(&self, pause: Duration, patience: Duration) {
        tokio::time::sleep(pause).await;
        let client = self.locked().client.clone();
        if !client.is_connected() {
            // Whether there is one shows with the next command.
            let _ = tokio::time::timeout(patience, client.wait_for_connect()).await;
        }
    }

    /// Notes what came of a command, and replaces a connection over which nothing has been heard for long.
    pub(super) fn note(&self, error: Option<&FredError>) {
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        // Any other error is an answer.
        let is_silent = error.is_some_and(|error| {
            matches!(error.kind(), ErrorKind::Timeout | ErrorKind::IO | ErrorKind::Canceled)
        });
        if !is_silent {
            *silent = None;
            return;
        }
        let since = *silent.get_or_insert_with(Instant::now);
        if since.elapsed() > LINK_PATIENCE {
            *silent = None;
            self.renew();
        }
    }

    /// Drops the connection with all it has in flight and makes a new one.
    pub(super) fn renew(&self) {
        // The address was understood when the link was opened.
        if let Ok(open) = connect(&self.config) {
            *self.locked() = open;
        }
    }

    fn locked(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn connect(config: &Config) -> Result<Open, Error> {
    let client = builder(config)?.build().map_err(Error::Address)?;
    let task = client.connect();
    Ok(Open { client, task })
}

/// fred's settings for this server: it connects again for ever, and no command outlives a connection.
pub(super) fn builder(config: &Config) -> Result<Builder, Error> {
    let mut builder = Builder::from_config(server(config)?);
    builder.set_policy(ReconnectPolicy::new_constant(0, RECONNECT_MS));
    builder.with_connection_config(|connection| {
        connection.connection_timeout = CONNECT_TIMEOUT;
        connection.internal_command_timeout = CONNECT_TIMEOUT;
        connection.max_command_attempts = 1;
        connection.max_command_buffer_len = MAX_COMMANDS;
        // A password may be corrected while we run.
        connection.reconnect_on_auth_error = true;
        connection.tcp = TcpConfig { nodelay: Some(true), ..TcpConfig::default() };
    });
    builder.with_performance_config(|performance| {
        performance.default_command_timeout = config.command_timeout;
    });
    Ok(builder)
}

/// The address, credentials and protocol of the server.
pub(super) fn server(config: &Config) -> Result<Server, Error> {
    let url = config.url.expose_secret();
    let known = ["redis", "rediss", "valkey", "valkeys"];
    let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
    if !known.contains(&scheme) {
        let kind = fred::error::ErrorKind::Url;
        return Err(Error::Address(fred::error::Error::new(kind, "unknown scheme")));
    }
    let mut server = Server::from_url_centralized(url).map_err(Error::Address)?;
    // Otherwise a server that is away at the start would never be tried again.
    server.fail_fast = false;
    // Dragonfly's RESP3 answers to stream commands differ from Redis'.
    server.version = RespVersion::RESP2;
    Ok(server)
}

//! Opens the connection.

use std::time::Duration;

use async_nats::{
    Client, ConnectErrorKind as Kind, ConnectOptions, Event, ServerAddr, jetstream::context::ContextBuilder,
};
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    Config, Nats, Patience, RECONNECT_PAUSE, advisories, check, provision, publish::PUBLISH_TIMEOUT, pull,
};
use crate::{encoding::from_percent, job::MAX_EVENT_BYTES, queue::Error};

/// Smallest `max_payload` of a server: the largest event that is published whole, and room for its headers.
const SMALLEST_PAYLOAD: usize = MAX_EVENT_BYTES + 16 * 1024;

/// How long one attempt to connect may take: DNS, TCP and TLS over a slow link.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Commands the client keeps while it is disconnected: more than the deliveries that may be held (5000 slots
/// and 256 parked).
const CLIENT_CAPACITY: usize = 8192;
/// Messages of one subscription that wait to be looked at: more than the largest pull (256), and few enough to be
/// no flood when somebody sends large requests to cancel.
const SUBSCRIPTION_CAPACITY: usize = 512;
/// How long the server may take to answer an API request: in a cluster it asks its peers.
const API_TIMEOUT: Duration = Duration::from_secs(5);

impl Nats {
    /// Connects, creates what is missing and checks what exists.
    ///
    /// Fails with [`Error::Unavailable`] when `patience` ends, and at once with [`Error::Refused`] when the
    /// credentials are wrong or with [`Error::Unusable`] when a stream or consumer cannot work.
    pub async fn connect(config: Config, patience: Patience) -> Result<Self, Error> {
        let deadline = match patience {
            Patience::Forever => None,
            Patience::For(time) => Some(Instant::now() + time),
        };
        let mut last = String::from("no attempt was finished");
        loop {
            let attempt = Box::pin(Self::connect_once(&config));
            let result = match deadline {
                None => attempt.await,
                Some(deadline) => match timeout_at(deadline, attempt).await {
                    Ok(result) => result,
                    Err(_) => {
                        Err(Error::Unavailable(format!("it did not answer in time; before that: {last}")))
                    }
                },
            };
            match result {
                Err(Error::Unavailable(reason)) if deadline.is_none_or(|end| Instant::now() < end) => {
                    let servers = config.servers().join(",");
                    tracing::warn!(%reason, %servers, "message broker is not available, trying again");
                    last = reason;
                    sleep(RECONNECT_PAUSE.1).await;
                }
                result => return result,
            }
        }
    }

    async fn connect_once(config: &Config) -> Result<Self, Error> {
        let client = open(config).await?;
        check_payload(client.server_info().max_payload)?;
        let version = client.server_info().version;
        if check::loses_redeliveries(&version) {
            tracing::warn!(%version, "this nats-server may never deliver messages again that were in flight when it was killed; use 2.10.26 or later");
        }
        // After a publish that was given up, its place among those under way is free again as soon.
        let context = ContextBuilder::new().timeout(API_TIMEOUT).ack_timeout(PUBLISH_TIMEOUT);
        let jetstream = context.build(client.clone());
        let consumer = provision::ensure(&jetstream, config).await?;
        let advisories = provision::ensure_advisories(&jetstream, config).await?;
        Ok(Self {
            client,
            jetstream,
            config: config.clone(),
            pull: pull::Pull::new(consumer),
            advisories: advisories::Advisories::new(advisories),
        })
    }
}

/// A result of full size, with its headers, must fit into a message: otherwise it could never be published.
pub(super) fn check_payload(max_payload: usize) -> Result<(), Error> {
    if max_payload > check::MAX_MESSAGE_BYTES {
        tracing::warn!(
            max_payload,
            longest = check::MAX_MESSAGE_BYTES,
            "JetStream keeps no message above 32 MiB in files: streams made by this program refuse them, others may lose them"
        );
    }
    if max_payload >= SMALLEST_PAYLOAD {
        return Ok(());
    }
    let reason = format!("max_payload is {max_payload} bytes, results need {SMALLEST_PAYLOAD}");
    Err(Error::Unusable { object: "the server".into(), reason })
}

pub(super) async fn open(config: &Config) -> Result<Client, Error> {
    let addresses: Result<Vec<ServerAddr>, _> = config.urls.iter().map(|url| url.parse()).collect();
    let addresses = addresses.map_err(|_| Error::Refused("a server's URL cannot be read".into()))?;
    let mut options = ConnectOptions::new()
        .name(&config.name)
        .connection_timeout(CONNECT_TIMEOUT)
        .max_reconnects(None)
        .reconnect_delay_callback(|attempts| {
            let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(10);
            (RECONNECT_PAUSE.0 * 2_u32.pow(doublings)).min(RECONNECT_PAUSE.1)
        })
        .client_capacity(CLIENT_CAPACITY)
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .event_callback(|event| async move { log(&event) });
    // The client itself takes no notice of what stands before the `@` of a URL.
    if let Some((user, password)) = addresses.iter().find_map(credentials) {
        options = match password {
            Some(password) => options.user_and_password(user, password),
            None => options.token(user),
        };
    }
    if let Some(file) = &config.creds_file {
        options = options
            .credentials_file(file)
            .await
            .map_err(|error| Error::Refused(format!("credentials file {}: {error}", file.display())))?;
    }
    options.connect(addresses).await.map_err(|error| match error.kind() {
        Kind::Authentication | Kind::AuthorizationViolation | Kind::ServerParse => {
            Error::Refused(error.to_string())
        }
        Kind::Dns | Kind::TimedOut | Kind::Tls | Kind::Io | Kind::MaxReconnects => {
            Error::Unavailable(error.to_string())
        }
    })
}

/// User and password of a URL, or a token alone.
fn credentials(address: &ServerAddr) -> Option<(String, Option<String>)> {
    let decoded = |text: &str| from_percent(text).unwrap_or_else(|| text.to_owned());
    Some((decoded(address.username()?), address.password().map(decoded)))
}

fn log(event: &Event) {
    match event {
        Event::Connected => tracing::info!("connected to the message broker"),
        Event::Draining | Event::Closed => tracing::debug!(%event, "connection to the message broker ends"),
        Event::Disconnected
        | Event::LameDuckMode
        | Event::SlowConsumer(_)
        | Event::ServerError(_)
        | Event::ClientError(_) => tracing::warn!(%event, "trouble with the message broker"),
    }
}

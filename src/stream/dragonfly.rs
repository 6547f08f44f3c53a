//! Home of fred: sends run events to a Redis-protocol server and reads them back.
//!
//! A thread's events are published on the channel `langgraph:stream:{thread_id}` and appended to the stream of the
//! same name, both in one Lua call per thread and flush. Only commands that Dragonfly documents are used, over RESP2.
//!
//! **Invariant:** the server refuses an entry whose id is not above the last one, and what is refused is not published:
//! neither a zombie's events nor a repeated flush reach anybody twice.
//! **Invariant:** what waits for the server is bounded in events and bytes, whatever the server does.

mod append;
mod link;
mod notice;
mod queue;
mod reader;
mod script;
mod shelf;
mod writer;

pub use notice::Notice;
pub use reader::{Followed, ReadEvent, Reader};
pub use script::Script;
pub use shelf::DragonflyShelf;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{link::Link, queue::Queue, writer::Writer};
use super::{Event, LastEvent, Sink};
use crate::ids::ThreadId;

/// Why the server of live events cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configured address cannot be understood.
    #[error("the address of the stream server must be redis[s]://[user:password@]host[:port][/database]")]
    Address(#[source] fred::error::Error),
    /// The server does not answer.
    #[error("the stream server does not answer")]
    Unavailable(#[source] fred::error::Error),
}

impl Error {
    /// The heading in TROUBLESHOOTING.md.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Address(_) => "STREAM_ADDRESS",
            Self::Unavailable(_) => "STREAM_UNAVAILABLE",
        }
    }
}

/// Where the server is, and how much is kept there and here.
#[derive(Clone, Debug)]
pub struct Config {
    /// `redis://[user:password@]host[:port][/database]`, or `rediss://` for TLS.
    pub url: SecretString,
    /// About how many entries the stream of a thread keeps.
    pub max_len: u64,
    /// How long a stream outlives its last event.
    pub ttl: Duration,
    /// How long the server may take to answer a small command.
    pub command_timeout: Duration,
    /// Events waiting to be sent from which on the oldest token events are dropped.
    pub max_events: usize,
    /// Bytes waiting to be sent from which on the oldest token events are dropped.
    pub max_bytes: usize,
}

impl Config {
    /// The defaults for the server at `url`.
    pub fn new(url: SecretString) -> Self {
        Self {
            url,
            // A model that writes for five minutes makes 7,500 pieces; a late reader should get all of them.
            max_len: 10_000,
            ttl: Duration::from_hours(1),
            command_timeout: Duration::from_millis(300),
            max_events: 4096,
            max_bytes: 8 * 1024 * 1024,
        }
    }

    /// The URL of a server without TLS, for settings that come as parts. The host may be an IPv6 address.
    pub fn url_from_parts(
        host: &str,
        port: u16,
        password: Option<&SecretString>,
    ) -> Result<SecretString, Error> {
        let address = |error: url::ParseError| Error::Address(error.into());
        let host =
            if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.into() };
        let mut url = url::Url::parse(&format!("redis://{host}:{port}")).map_err(address)?;
        let password = password.map(ExposeSecret::expose_secret);
        url.set_password(password).map_err(|()| address(url::ParseError::EmptyHost))?;
        Ok(String::from(url).into())
    }

    /// Whether the address can be understood; nobody is asked.
    pub fn check(&self) -> Result<(), Error> {
        link::server(self).map(drop)
    }
}

/// The name of a thread's channel and of its stream.
fn key(thread_id: &ThreadId) -> String {
    format!("langgraph:stream:{thread_id}")
}

/// Sends events to the server from one task with a connection of its own.
pub struct Dragonfly {
    queue: Arc<Queue>,
    link: Arc<Link>,
}

impl Dragonfly {
    /// Starts the sending task on `tracker`; it ends, without what still waits, when `cancel` is cancelled.
    ///
    /// The server need not be there yet. Must be called inside a tokio runtime.
    pub fn start(
        config: Config,
        tracker: &TaskTracker,
        cancel: CancellationToken,
    ) -> Result<Arc<Self>, Error> {
        let queue = Arc::new(Queue::new(config.max_events, config.max_bytes));
        let link = Arc::new(Link::open(config.clone())?);
        tracker.spawn(Writer::new(config, queue.clone(), link.clone()).run(cancel));
        Ok(Arc::new(Self { queue, link }))
    }
}

#[async_trait]
impl Sink for Dragonfly {
    fn emit(&self, event: Event) {
        self.queue.push(event);
    }

    async fn flush(&self, limit: Duration) {
        // Running out of time is the caller's bound, not a failure.
        let _ = tokio::time::timeout(limit, self.queue.settled()).await;
    }

    async fn last(&self, thread_id: &ThreadId) -> Option<LastEvent> {
        self.link.last(&key(thread_id)).await
    }

    async fn ping(&self) -> bool {
        self.link.ping().await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_become_a_url_that_hides_nothing_from_the_client() {
        let password = SecretString::from("p@ss/w:rd");
        let url = Config::url_from_parts("dragonfly", 6380, Some(&password)).expect("valid");
        let server = link::server(&Config::new(url)).expect("valid");
        assert_eq!(server.password.as_deref(), Some("p@ss/w:rd"));
        assert_eq!(server.username, None);
        assert!(Config::url_from_parts("::1", 6379, None).is_ok());
        assert!(Config::url_from_parts("no host", 6379, None).is_err());
    }

    #[test]
    fn an_address_that_is_none_is_refused_and_its_password_stays_secret() {
        for wrong in ["", "localhost:6379", "http://h", "redis-cluster://h:1", "redis://u:secret@h:1/x"] {
            let config = Config::new(wrong.into());
            let error = config.check().expect_err(wrong);
            assert_eq!(error.code(), "STREAM_ADDRESS");
            assert!(!format!("{error:?} {config:?}").contains("secret"), "{error:?}");
        }
        assert!(Config::new("rediss://h".into()).check().is_ok(), "TLS is understood");
    }
}

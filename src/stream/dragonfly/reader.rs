//! Follows the events of a thread: first the stream, then the channel.
//!
//! **Invariant:** ids only grow, and none is left out that the stream still has: whenever the channel may have missed
//! something (a hole, a reconnect, silence), the stream is read from the last id seen.
//! **Invariant:** what the stream has not is told of, once, before what follows it.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use fred::{
    clients::{Client, SubscriberClient},
    error::{Error as FredError, ErrorKind},
    interfaces::{ClientLike, EventInterface, PubsubInterface, StreamsInterface},
    types::{ConnectHandle, InfoKind, Message, Value, config::Server},
};
use futures::{Stream, stream::try_unfold};
use serde::Deserialize;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::{Config, Error, Notice, key, link};
use crate::{ids::ThreadId, stream::EntryId};

/// How long the server must be away until a reader gives up; a restart takes seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two attempts to read from a server that is away.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// How long the first connection may take; a person waits for it.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// How long one command of a reader may take: a page of large states is megabytes.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// Silence after which the stream is looked at, in case the channel has died without a sign.
const SILENCE: Duration = Duration::from_secs(1);

/// Entries read from the stream at once.
const PAGE: usize = 256;

/// Messages a slow reader may fall behind; what it misses it reads from the stream.
const BEHIND: usize = 1024;

/// An event as its readers get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadEvent {
    /// Its place in the stream.
    pub id: EntryId,
    /// What kind it is, as in [`crate::stream::EventType::as_str`]; a newer sender may know more kinds.
    pub event_type: String,
    /// The event as JSON. From the channel it has the text so far with every piece, from the stream with the last.
    pub json: String,
}

/// What a reader is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Followed {
    /// An event.
    Event(ReadEvent),
    /// Something is missing here.
    Notice(Notice),
}

/// Reads events of threads.
pub struct Reader {
    config: Config,
    reads: Arc<Connection<Client>>,
}

/// A client whose connection ends with it.
struct Connection<C> {
    client: C,
    task: ConnectHandle,
}

impl<C> Drop for Connection<C> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Reader {
    /// Connects to the server, which must answer within five seconds.
    pub async fn connect(config: Config) -> Result<Self, Error> {
        let config = Config { command_timeout: COMMAND_TIMEOUT, ..config };
        let client = link::builder(&config)?.build().map_err(Error::Address)?;
        let reads = Arc::new(opened(client).await.map_err(Error::Unavailable)?);
        Ok(Self { config, reads })
    }

    /// What the server calls itself, with its version.
    pub async fn server(&self) -> Result<String, Error> {
        let section = Some(InfoKind::Server);
        let info: String = self.reads.client.info(section).await.map_err(Error::Unavailable)?;
        let value = |name: &str| info.lines().find_map(|line| line.trim().strip_prefix(name));
        let dragonfly = value("dragonfly_version:").map(|version| format!("dragonfly {version}"));
        let redis = || value("redis_version:").map(|version| format!("redis {version}"));
        Ok(dragonfly.or_else(redis).unwrap_or_else(|| "unknown".to_owned()))
    }

    /// The events of a thread after `from` (or from the first one that the stream still has), and on as they happen.
    ///
    /// It ends after an error only: the `end` event ends a job, and the thread's next job may follow.
    pub fn follow(
        &self,
        thread_id: &ThreadId,
        from: Option<EntryId>,
    ) -> impl Stream<Item = Result<Followed, Error>> + Send + use<> {
        let follow = Follow {
            config: self.config.clone(),
            reads: self.reads.clone(),
            key: key(thread_id),
            channel: None,
            last: from,
            gone_after: None,
            ready: VecDeque::new(),
            is_behind: true,
        };
        try_unfold(follow, |mut follow| async move {
            let followed = follow.next().await.map_err(Error::Unavailable)?;
            Ok(Some((followed, follow)))
        })
    }
}

async fn opened<C: ClientLike>(client: C) -> Result<Connection<C>, FredError> {
    let connection = Connection { task: client.connect(), client };
    match tokio::time::timeout(CONNECT_PATIENCE, connection.client.wait_for_connect()).await {
        Ok(connected) => connected.map(|()| connection),
        Err(_) => Err(FredError::new(ErrorKind::Timeout, "no connection in time")),
    }
}

/// One reader's way through one thread.
struct Follow {
    config: Config,
    reads: Arc<Connection<Client>>,
    key: String,
    channel: Option<Channel>,
    /// The id of the last event that was read or skipped.
    last: Option<EntryId>,
    /// The last id of which was told that the stream has it no longer.
    gone_after: Option<EntryId>,
    ready: VecDeque<Followed>,
    /// Whether the stream may have events that the channel did not bring.
    is_behind: bool,
}

struct Channel {
    connection: Connection<SubscriberClient>,
    messages: Receiver<Message>,
    connects: Receiver<Server>,
}

/// What the channel brought.
enum Heard {
    Message(Message),
    /// Nothing for a while.
    Silence,
    /// Messages were lost on the way to us.
    Loss,
    /// There is a new connection, without a subscription.
    Reconnect,
}

impl Follow {
    async fn next(&mut self) -> Result<Followed, FredError> {
        loop {
            if let Some(followed) = self.ready.pop_front() {
                return Ok(followed);
            }
            if self.is_behind {
                // Before the stream is read, so that what comes after the reading comes through the channel.
                if self.channel.is_none() {
                    self.channel = Some(Channel::open(&self.config, &self.key).await?);
                }
                self.is_behind = self.read_page(None).await?;
                continue;
            }
            let Some(channel) = &mut self.channel else {
                self.is_behind = true;
                continue;
            };
            match channel.hear().await? {
                Heard::Message(message) => self.take(message).await?,
                Heard::Loss => self.is_behind = true,
                Heard::Reconnect => self.resubscribe().await?,
                Heard::Silence => {
                    self.is_behind = self.read_page(None).await?;
                    if !self.ready.is_empty() {
                        self.resubscribe().await?;
                    }
                }
            }
        }
    }

    /// Makes an event of a message, after those the channel left out before it.
    async fn take(&mut self, message: Message) -> Result<(), FredError> {
        if message.channel != self.key {
            return Ok(());
        }
        let Some(event) = read_event(message.value, None) else { return Ok(()) };
        if self.last.is_some_and(|last| event.id <= last) {
            return Ok(());
        }
        if !follows(self.last, event.id) {
            while self.read_page(Some(event.id)).await? {}
        }
        self.come_to(event.id);
        self.ready.push_back(Followed::Event(event));
        Ok(())
    }

    /// Goes on to the event `next`, and tells what is missing before it.
    fn come_to(&mut self, next: EntryId) {
        let told = self.last.is_some() && self.gone_after == self.last;
        let missing = Notice::between(self.last, next).filter(|_| !told);
        self.ready.extend(missing.map(Followed::Notice));
        self.last = Some(next);
    }

    /// A page that was asked for from the last event on begins with it, unless the stream has it no longer.
    fn look_for_last(&mut self, oldest: Option<EntryId>) {
        let Some(last) = self.last else { return };
        let is_there = oldest.is_some_and(|oldest| oldest == last || follows(Some(last), oldest));
        if !is_there && self.gone_after != Some(last) {
            self.gone_after = Some(last);
            self.ready.push_back(Followed::Notice(Notice::Gone { after: Some(last), oldest }));
        }
    }

    /// Reads the next entries of the stream, those before `until` only; returns whether there may be more.
    async fn read_page(&mut self, until: Option<EntryId>) -> Result<bool, FredError> {
        let page = self.page().await?;
        let (is_full, before) = (page.len() == PAGE, self.last);
        self.look_for_last(page.first().and_then(|(id, _)| id.parse().ok()));
        for (id, mut fields) in page {
            let Ok(id) = id.parse::<EntryId>() else { continue };
            if until.is_some_and(|until| id >= until) {
                return Ok(false);
            }
            if self.last.is_some_and(|last| id <= last) {
                continue;
            }
            self.come_to(id);
            let value = fields.remove("event").unwrap_or(Value::Null);
            self.ready.extend(read_event(value, Some(id)).map(Followed::Event));
        }
        // A page without a readable id would come again and again.
        Ok(is_full && self.last != before)
    }

    /// The entries from the last one seen on, which is asked for again because not every server knows open ranges.
    async fn page(&self) -> Result<Vec<(String, std::collections::HashMap<String, Value>)>, FredError> {
        let started = Instant::now();
        let count = u64::try_from(PAGE).expect("a page fits");
        loop {
            let start = self.last.map_or_else(|| "-".to_owned(), |last| last.to_string());
            let client = &self.reads.client;
            match client.xrange_values(&self.key, start, "+", Some(count)).await {
                Ok(page) => return Ok(page),
                Err(error) if started.elapsed() > PATIENCE => return Err(error),
                Err(_) => tokio::time::sleep(RETRY_PAUSE).await,
            }
        }
    }

    /// Subscribes on the current connection; should it fail, the next silence brings the next attempt.
    async fn resubscribe(&mut self) -> Result<(), FredError> {
        self.is_behind = true;
        if let Some(channel) = &self.channel
            && let Err(error) = channel.connection.client.subscribe(&self.key).await
        {
            tracing::debug!(%error, "subscription failed");
        }
        Ok(())
    }
}

impl Channel {
    async fn open(config: &Config, key: &str) -> Result<Self, FredError> {
        let mut builder = link::builder(config).map_err(|error| match error {
            Error::Address(cause) | Error::Unavailable(cause) => cause,
        })?;
        builder.with_performance_config(|performance| performance.broadcast_channel_capacity = BEHIND);
        let client = builder.build_subscriber_client()?;
        let messages = client.message_rx();
        let connection = opened(client).await?;
        let connects = connection.client.reconnect_rx();
        connection.client.subscribe(key).await?;
        Ok(Self { connection, messages, connects })
    }

    async fn hear(&mut self) -> Result<Heard, FredError> {
        let closed = |_| FredError::new(ErrorKind::Canceled, "the client has ended");
        tokio::select! {
            biased;
            _ = self.connects.recv() => Ok(Heard::Reconnect),
            heard = tokio::time::timeout(SILENCE, self.messages.recv()) => match heard {
                Err(_) => Ok(Heard::Silence),
                Ok(Ok(message)) => Ok(Heard::Message(message)),
                Ok(Err(RecvError::Lagged(_))) => Ok(Heard::Loss),
                Ok(Err(error @ RecvError::Closed)) => Err(closed(error)),
            }
        }
    }
}

/// Whether nothing can be missing between two events.
fn follows(last: Option<EntryId>, next: EntryId) -> bool {
    // Where an epoch ends, nothing but the stream tells.
    last.is_some_and(|last| last.epoch == next.epoch && last.seq + 1 == next.seq)
}

/// An event from its JSON; `None` for what no emitter wrote.
fn read_event(value: Value, id: Option<EntryId>) -> Option<ReadEvent> {
    #[derive(Deserialize)]
    struct Head {
        id: String,
        event_type: String,
    }
    let json = value.into_string()?;
    let head: Head = serde_json::from_str(&json).ok()?;
    let id = id.or_else(|| head.id.parse().ok())?;
    Some(ReadEvent { id, event_type: head.event_type, json })
}

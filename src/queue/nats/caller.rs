//! Calls of tools that are subjects: requests on a connection of their own.
//!
//! **Invariant:** the connection that carries deliveries and acks never waits for a tool.

use std::fmt;

use async_nats::{
    Client, HeaderMap, Message,
    client::{Request, RequestErrorKind},
};
use async_trait::async_trait;
use tokio::{
    sync::OnceCell,
    time::{Instant, timeout_at},
};

use super::{Config, connect, is_connected};
use crate::tool::nats::{Incoming, Outgoing, Requester, Unanswered};

/// Carries calls of tools to the broker; connects when there is a first one.
pub struct Caller {
    config: Config,
    client: OnceCell<Client>,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Caller {
    /// A caller for the broker of `config`, not yet connected.
    pub fn new(config: Config) -> Self {
        let name = format!("{}-tools", config.name);
        Self { config: Config { name, ..config }, client: OnceCell::new() }
    }

    /// The connection, when it is there.
    async fn client(&self) -> Result<&Client, Unanswered> {
        let opened = self.client.get_or_try_init(|| Box::pin(connect::open(&self.config))).await;
        let client = opened.map_err(|error| Unanswered::NotSent(error.to_string()))?;
        // What waits in the client's buffer would be sent after the reconnect, when nobody waits for the answer.
        if !is_connected(client).await {
            return Err(Unanswered::NotSent("the connection to the message broker is down".into()));
        }
        Ok(client)
    }
}

#[async_trait]
impl Requester for Caller {
    async fn request(&self, request: Outgoing) -> Result<Incoming, Unanswered> {
        let deadline = Instant::now() + request.timeout;
        let client = timeout_at(deadline, self.client()).await.unwrap_or_else(|_| {
            Err(Unanswered::NotSent("the message broker could not be connected in time".into()))
        })?;
        let mut headers = HeaderMap::new();
        request.headers.into_iter().for_each(|(name, value)| headers.insert(name, value));
        // An inbox of its own: the shared one would remember every call that was given up.
        let message = Request::new()
            .payload(request.payload)
            .headers(headers)
            .inbox(client.new_inbox())
            .timeout(Some(deadline.saturating_duration_since(Instant::now())));
        match client.send_request(request.subject, message).await {
            Ok(message) => Ok(incoming(message)),
            Err(error) => Err(match error.kind() {
                RequestErrorKind::NoResponders => Unanswered::NoResponders,
                RequestErrorKind::TimedOut => Unanswered::TimedOut,
                RequestErrorKind::InvalidSubject | RequestErrorKind::MaxPayloadExceeded => {
                    Unanswered::NotSent(error.to_string())
                }
                RequestErrorKind::Other => Unanswered::Lost(error.to_string()),
            }),
        }
    }
}

fn incoming(message: Message) -> Incoming {
    let headers = message.headers.unwrap_or_default();
    let one = |name: &async_nats::HeaderName, values: &Vec<async_nats::HeaderValue>| {
        let value = values.first().map(ToString::to_string).unwrap_or_default();
        (name.to_string(), value)
    };
    let headers = headers.iter().map(|(name, values)| one(name, values)).collect();
    Incoming { headers, payload: message.payload }
}

//! Requests to cancel and notices between processes: plain messages that no stream keeps.
//!
//! **Invariant:** what is lost here delays something and loses nothing: whoever asks learns it, and notices only
//! hurry what leases tell within seconds anyway.

use std::time::Duration;

use async_nats::{
    Client, Message, Subject,
    client::{Request, RequestErrorKind},
};
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use serde_json::Value as Json;
use tokio::time::timeout;

use super::Nats;
use crate::{
    ids::ThreadId,
    queue::{
        Error, Queue, Receipt,
        control::{Cancel, ControlRequest, NOTICE_SUBJECT, SUBJECT, refusal},
    },
};

/// How long an executor may take to record a cancellation and answer; a person waits.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a message may take to leave this process.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);
/// Threads in one notice: with ids of 255 characters, four bytes each, it stays below 600 KB.
const NOTICE_THREADS: usize = 500;

impl Nats {
    /// Asks the executors to cancel; the answer of the one that took the request.
    pub async fn cancel(&self, cancel: &Cancel) -> Result<Json, Error> {
        self.connected().await?;
        let request = Request::new().payload(cancel.body().into()).timeout(Some(CANCEL_TIMEOUT));
        match self.client.send_request(cancel.subject(), request).await {
            Ok(message) => serde_json::from_slice(&message.payload).map_err(|error| {
                Error::Refused(format!("the answer to a request to cancel cannot be read: {error}"))
            }),
            Err(error) => Err(match error.kind() {
                RequestErrorKind::NoResponders => Error::NoExecutor,
                RequestErrorKind::TimedOut => {
                    Error::Unavailable("no executor answered a request to cancel in time".into())
                }
                RequestErrorKind::InvalidSubject
                | RequestErrorKind::MaxPayloadExceeded
                | RequestErrorKind::Other => Error::Unavailable(error.to_string()),
            }),
        }
    }

    pub(super) async fn control_requests(&self) -> Result<BoxStream<'static, ControlRequest>, Error> {
        self.connected().await?;
        let group = self.config.consumer.clone();
        let subscribed = self.client.queue_subscribe(format!("{SUBJECT}.>"), group).await;
        let requests = subscribed.map_err(|error| Error::Unavailable(error.to_string()))?;
        self.known().await;
        let client = self.client.clone();
        Ok(requests.filter_map(move |message| read(client.clone(), message)).boxed())
    }

    pub(super) async fn heard_notices(&self) -> Result<BoxStream<'static, Vec<ThreadId>>, Error> {
        self.connected().await?;
        let subscribed = self.client.subscribe(NOTICE_SUBJECT).await;
        let notices = subscribed.map_err(|error| Error::Unavailable(error.to_string()))?;
        self.known().await;
        let read = |message: Message| async move {
            let threads = serde_json::from_slice::<Vec<ThreadId>>(&message.payload);
            threads.inspect_err(|error| tracing::debug!(%error, "a notice cannot be read")).ok()
        };
        Ok(notices.filter_map(read).boxed())
    }

    pub(super) async fn send_notice(&self, threads: &[ThreadId]) {
        if self.connected().await.is_err() {
            return;
        }
        for part in threads.chunks(NOTICE_THREADS) {
            let body = serde_json::to_vec(part).expect("ids are JSON");
            send(&self.client, Subject::from_static(NOTICE_SUBJECT), body.into()).await;
        }
    }

    /// Waits until the server has taken the subscription: an answer on the same connection comes behind it. If the
    /// server is away, it learns of it when it is back.
    async fn known(&self) {
        if !Queue::ping(self).await {
            tracing::debug!("the message broker took too long to take a subscription");
        }
    }
}

/// The request in a message; one that cannot be read is answered here.
async fn read(client: Client, message: Message) -> Option<ControlRequest> {
    match Cancel::read(message.subject.as_str(), &message.payload) {
        Ok(cancel) => {
            Some(ControlRequest { cancel, reply: message.reply.map(|reply| Receipt(reply.to_string())) })
        }
        Err(problem) => {
            tracing::debug!(%problem, "a request to cancel cannot be read");
            if let Some(reply) = message.reply {
                send_answer(&client, reply.to_string(), &refusal("BAD_REQUEST", &problem)).await;
            }
            None
        }
    }
}

pub(super) async fn send_answer(client: &Client, reply: String, answer: &Json) {
    send(client, Subject::from(reply), answer.to_string().into()).await;
}

async fn send(client: &Client, subject: Subject, body: Bytes) {
    match timeout(SEND_TIMEOUT, client.publish(subject, body)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a message could not be sent"),
        Err(_) => tracing::debug!("a message took too long to send"),
    }
}

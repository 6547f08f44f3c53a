//! The broker on NATS JetStream; home of async_nats.
//!
//! **Invariant:** every wait ends: no call of this module takes longer than about fifteen seconds, whatever the
//! server does; only [`Nats::connect`] with [`Patience::Forever`] waits on.
//! **Invariant:** nothing is sent into a broken connection: what waits in the client's buffer would reach the
//! server after the reconnect, when nobody listens for the answer any more.

mod advisories;
mod caller;
mod check;
mod connect;
mod control;
mod examine;
mod provision;
mod publish;
mod pull;
mod settle;
mod upkeep;
mod watch;

pub use caller::Caller;
pub use check::RESULTS_MAX_AGE;
pub use examine::{Doubt, Examined, Numbers};
pub use watch::Results;

use std::{fmt, path::PathBuf, time::Duration};

use async_nats::{
    Client, ServerAddr,
    connection::State,
    jetstream::{self, Context, ErrorCode, context::RequestErrorKind, response::Response, stream},
};
use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value as Json;
use tokio::time::{Instant, sleep, timeout};

use super::{
    Advisory, Delivery, Error, Queue, Receipt, Replay, Settlement, Stored, Submission,
    control::ControlRequest,
};
use crate::{
    ids::ThreadId,
    store::{DeadLetter, StoredResult},
};

/// Shortest and longest pause between attempts to reconnect: with the client's own pauses (up to 4 s) a 6 s
/// outage took 8 s.
const RECONNECT_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How long a sign of life may take; probes are asked every few seconds.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the last flush and the drain may take each; the process is about to end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a call waits for a lost connection to come back before it reports it.
const RECONNECT_WAIT: Duration = Duration::from_secs(1);

/// Where the broker is and what its streams are called.
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    /// Servers of one cluster: `nats://host:4222`, `tls://…`; user and password may stand in the URL.
    pub urls: Vec<String>,
    /// A `.creds` file with a JWT and its seed.
    pub creds_file: Option<PathBuf>,
    /// What the connection is called in the server's monitoring.
    pub name: String,
    /// The stream of requests.
    pub execution_stream: String,
    /// What the stream of requests takes when we create it.
    pub execution_subjects: String,
    /// Where [`Queue::submit`] publishes; one of `execution_subjects`.
    pub submit_subject: String,
    /// The durable pull consumer all workers share.
    pub consumer: String,
    /// The stream of results (`agent.status.>`).
    pub results_stream: String,
    /// The stream of dead letters (`agent.dlq.>`).
    pub dlq_stream: String,
    /// The stream that keeps what the server says about messages it gave up.
    pub advisories_stream: String,
    /// What happens when a stream or the consumer is missing.
    pub provision: Provision,
    /// Copies of each message in streams we create.
    pub replicas: usize,
    /// Time after which an unsettled message without progress is delivered again, when we create the consumer.
    pub ack_wait: Duration,
    /// What the rest of the process needs of the consumer, whoever made it.
    pub needs: Needs,
}

/// What the process needs of the consumer; less is refused at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Shortest ack wait: the lease of a thread, or a redelivery would find its dead owner's lease still running.
    pub ack_wait: Duration,
    /// Fewest unsettled messages: as many as one process may hold, running and parked.
    pub ack_pending: usize,
}

/// What happens when a stream or the consumer is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provision {
    /// It is created.
    Create,
    /// It is an error.
    Expect,
}

/// How long to try to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Until the broker answers; each failure is logged.
    Forever,
    /// For this long.
    For(Duration),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            urls: vec!["nats://localhost:4222".into()],
            creds_file: None,
            name: "agent-executor".into(),
            execution_stream: "AGENT_EXECUTION".into(),
            execution_subjects: "agent.execute.>".into(),
            submit_subject: "agent.execute.request".into(),
            consumer: "agent-executor-workers".into(),
            results_stream: "AGENT_RESULTS".into(),
            dlq_stream: "AGENT_DLQ".into(),
            advisories_stream: "AGENT_ADVISORIES".into(),
            provision: Provision::Create,
            replicas: 1,
            ack_wait: Duration::from_secs(30),
            needs: Needs { ack_wait: Duration::from_secs(5), ack_pending: 356 },
        }
    }
}

impl fmt::Debug for Config {
    /// Leaves out user and password of the URLs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("urls", &self.servers())
            .field("creds_file", &self.creds_file)
            .field("execution_stream", &self.execution_stream)
            .field("consumer", &self.consumer)
            .field("results_stream", &self.results_stream)
            .field("dlq_stream", &self.dlq_stream)
            .field("advisories_stream", &self.advisories_stream)
            .field("provision", &self.provision)
            .field("ack_wait", &self.ack_wait)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// The servers without user and password.
    fn servers(&self) -> Vec<String> {
        self.urls.iter().map(|url| without_password(url)).collect()
    }

    /// Subjects that belong to this program, as patterns: nothing else may be sent there.
    pub fn own_subjects(&self) -> Vec<String> {
        let fixed = ["agent.status.>", "agent.dlq.>", "agent.control.>", "agent.notice.>"];
        let requests = [&self.execution_subjects, &self.submit_subject].map(String::clone);
        requests.into_iter().chain(fixed.map(str::to_owned)).collect()
    }

    /// What is wrong with the values, one sentence each; empty when nothing is.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.urls.is_empty() {
            problems.push("no NATS server is given".into());
        }
        for url in &self.urls {
            if url.parse::<ServerAddr>().is_err() {
                problems.push(format!("{:?} is no NATS URL", without_password(url)));
            }
        }
        for name in [
            &self.execution_stream,
            &self.consumer,
            &self.results_stream,
            &self.dlq_stream,
            &self.advisories_stream,
        ] {
            if name.is_empty() || name.contains(|c: char| c.is_whitespace() || ".*>/\\".contains(c)) {
                problems.push(format!("{name:?} is no name of a stream or consumer"));
            }
        }
        if !check::covers(&self.execution_subjects, &self.submit_subject) {
            problems.push(format!(
                "requests are published on {:?}, which is not among {:?}",
                self.submit_subject, self.execution_subjects
            ));
        }
        problems
    }
}

/// The URL without what stands before `@`.
fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("nats", url));
    format!("{scheme}://{}", rest.rsplit_once('@').map_or(rest, |(_, host)| host))
}

/// A connection to the broker, with its streams and its consumer checked.
#[derive(Debug)]
pub struct Nats {
    client: Client,
    jetstream: Context,
    config: Config,
    pull: pull::Pull,
    advisories: advisories::Advisories,
}

impl Nats {
    /// The time after which the broker delivers an unsettled message again, as it is really set: progress
    /// must be sent about three times as often.
    pub fn ack_wait(&self) -> Duration {
        self.pull.ack_wait()
    }

    /// Sends what is still buffered and closes the connection. Every settlement must have been made before:
    /// after it they fail. Ends within seconds whatever the server does.
    pub async fn close(&self) {
        if timeout(CLOSE_TIMEOUT, self.client.flush()).await.is_err() {
            tracing::warn!("message broker took too long to flush");
        }
        if !matches!(timeout(CLOSE_TIMEOUT, self.client.drain()).await, Ok(Ok(()))) {
            tracing::warn!("connection to the message broker was not drained");
        }
    }

    /// Waits a moment for a lost connection.
    async fn connected(&self) -> Result<(), Error> {
        if is_connected(&self.client).await {
            return Ok(());
        }
        Err(Error::Unavailable("the connection is down".into()))
    }
}

/// Whether the connection is there, after a moment's wait for a lost one.
async fn is_connected(client: &Client) -> bool {
    let deadline = Instant::now() + RECONNECT_WAIT;
    while client.connection_state() != State::Connected {
        if Instant::now() >= deadline {
            return false;
        }
        // The client offers no wait for its state.
        sleep(RECONNECT_PAUSE.0).await;
    }
    true
}

/// Why an API request failed.
enum ApiError {
    /// The stream, consumer or message does not exist.
    NotFound,
    /// Anything else.
    Other(Error),
}

impl From<ApiError> for Error {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::NotFound => Self::Refused("the stream, consumer or message does not exist".into()),
            ApiError::Other(error) => error,
        }
    }
}

/// The body of a request that asks for everything: the server takes `{}` but no `null`.
#[derive(Serialize)]
struct Nothing {}

/// Asks the JetStream API.
async fn api<T: DeserializeOwned>(
    jetstream: &Context,
    subject: &str,
    body: &(impl Serialize + Sync),
) -> Result<T, ApiError> {
    let response = jetstream.request(subject.to_owned(), body).await.map_err(|error| match error.kind() {
        RequestErrorKind::NoResponders => {
            ApiError::Other(Error::Unavailable("JetStream is not enabled, or not up yet".into()))
        }
        RequestErrorKind::TimedOut | RequestErrorKind::InvalidSubject | RequestErrorKind::Other => {
            ApiError::Other(Error::Unavailable(error.to_string()))
        }
    })?;
    match response {
        Response::Ok(answer) => Ok(answer),
        Response::Err { error } => Err(match error.error_code() {
            ErrorCode::STREAM_NOT_FOUND
            | ErrorCode::CONSUMER_NOT_FOUND
            | ErrorCode::NO_MESSAGE_FOUND
            | ErrorCode::SEQUENCE_NOT_FOUND => ApiError::NotFound,
            _ => ApiError::Other(refusal(&error)),
        }),
    }
}

/// What the server's error means: 5xx with "temporarily" pass, others need an operator.
fn refusal(error: &jetstream::Error) -> Error {
    match error.error_code() {
        ErrorCode::CLUSTER_NOT_AVAILABLE | ErrorCode::INSUFFICIENT_RESOURCES | ErrorCode::STREAM_OFFLINE => {
            Error::Unavailable(error.to_string())
        }
        _ => Error::Refused(error.to_string()),
    }
}

#[async_trait]
impl Queue for Nats {
    async fn next(&self, max: usize) -> Result<Vec<Delivery>, Error> {
        self.pull(max).await
    }

    async fn settle(&self, receipt: &Receipt, settlement: Settlement) -> Result<(), Error> {
        self.send_settlement(receipt, settlement).await
    }

    async fn progress(&self, receipts: &[Receipt]) {
        self.send_progress(receipts).await;
    }

    async fn publish(&self, result: &StoredResult) -> Result<(), Error> {
        self.publish_result(result).await
    }

    async fn submit(&self, request: &Submission) -> Result<u64, Error> {
        self.publish_request(request).await
    }

    async fn bury(&self, letter: &DeadLetter) -> Result<(), Error> {
        self.publish_letter(letter).await
    }

    async fn ping(&self) -> bool {
        // A flush only empties the client's buffer; the state of a stream is an answer of JetStream itself.
        let subject = format!("STREAM.INFO.{}", self.config.execution_stream);
        let answer = timeout(PING_TIMEOUT, api::<stream::Info>(&self.jetstream, &subject, &Nothing {}));
        self.client.connection_state() == State::Connected && matches!(answer.await, Ok(Ok(_)))
    }

    async fn control(&self) -> Result<BoxStream<'static, ControlRequest>, Error> {
        self.control_requests().await
    }

    async fn answer(&self, reply: &Receipt, answer: &Json) {
        control::send_answer(&self.client, reply.0.clone(), answer).await;
    }

    async fn notice(&self, threads: &[ThreadId]) {
        self.send_notice(threads).await;
    }

    async fn notices(&self) -> Result<BoxStream<'static, Vec<ThreadId>>, Error> {
        self.heard_notices().await
    }

    async fn lingering(
        &self,
        after_seq: u64,
        older_than: Duration,
        limit: usize,
    ) -> Result<Vec<Stored>, Error> {
        self.find_lingering(after_seq, older_than, limit).await
    }

    async fn fetch(&self, stream_seq: u64) -> Result<Option<Stored>, Error> {
        self.stored_at(stream_seq).await
    }

    async fn discard(&self, stream_seq: u64) -> Result<(), Error> {
        self.delete(stream_seq).await
    }

    async fn advisories(&self, max: usize) -> Result<Vec<Advisory>, Error> {
        self.pull_advisories(max).await
    }

    async fn resubmit(&self, replay: &Replay) -> Result<u64, Error> {
        self.publish_replay(replay).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_shown_without_user_and_password() {
        let urls = ["nats://u:hunter2@a:4222", "tls://hunter2@b", "c:4222"].map(str::to_owned).into();
        let config = Config { urls, ..Config::default() };
        assert_eq!(config.servers(), ["nats://a:4222", "tls://b", "nats://c:4222"]);
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}

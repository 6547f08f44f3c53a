//! One server over the life of this process: its session, made again after it was lost, and the list of its tools.
//!
//! **Invariant:** a call is made again here only when it cannot have reached the server before.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use reqwest::{
    Client,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use rmcp::{model::JsonObject, service::ServiceError};
use secrecy::ExposeSecret;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::task::TaskTracker;

use super::{
    McpLink, McpServer, answer,
    failure::{Fate, fate},
    listing::Listing,
    session::Session,
};
use crate::{
    graph::Effect,
    secrets::Asker,
    telemetry::{
        Gate,
        scrub::{Values, is_recognisable},
    },
    tool::{
        Answer, Call, Error, Tell,
        http::{Admitted, HttpRequester, Redaction, RequestTemplate},
    },
};

/// How often a session is begun in a row: one that was lost while nobody looked, and one that was lost just then.
const SESSIONS: usize = 2;

/// Calls in a row that may take too long, by whoever's limit, before a program is taken for stuck.
const STUCK: u32 = 3;

/// Codes of errors under which servers over HTTP say that they do not know a session.
const SESSION_CODES: [i32; 2] = [-32_000, -32_600];

/// Least length of a secret that is looked for in answers; shorter ones stand in any text.
const MIN_SECRET_BYTES: usize = 4;

/// How a server is reached.
pub(super) enum Link {
    /// A program of the operator's.
    Program(McpLink),
    /// The operator's address.
    Address { client: Client, url: String, headers: HeaderMap },
    /// The address of a definition, under the rules of HTTP tools.
    Defined { request: Box<RequestTemplate>, requester: Arc<HttpRequester>, asker: Asker },
}

impl Link {
    /// What the operator says, with the client that reaches addresses.
    pub(super) fn of(link: &McpLink, client: &Client) -> Self {
        let McpLink::Http { url, headers } = link else { return Self::Program(link.clone()) };
        let headers = headers.iter().filter_map(|(name, value)| {
            // Settings that are no headers were refused when they were read.
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            let mut value = HeaderValue::from_str(value.expose_secret()).ok()?;
            value.set_sensitive(true);
            Some((name, value))
        });
        Self::Address { client: client.clone(), url: url.to_string(), headers: headers.collect() }
    }

    /// Begins a session with a server that gets `own` secrets, or those that its definition names.
    async fn open(&self, own: Option<&Arc<Values>>, tracker: &TaskTracker) -> Result<Session, Refused> {
        let mut secrets = own.cloned();
        let begun = match self {
            Self::Program(McpLink::Process { command, arguments, environment }) => {
                let program = (command.as_str(), arguments.as_slice());
                Session::with_program(program, environment, secrets.clone(), tracker).await
            }
            Self::Program(McpLink::Http { .. }) => Err("it has no command".to_owned()),
            Self::Address { client, url, headers } => {
                Session::with_address(client.clone(), (url, headers), secrets.clone(), tracker).await
            }
            Self::Defined { request, requester, asker } => {
                let admitted = requester.admit(request, asker).await.map_err(Refused::Rules)?;
                let Admitted { client, url, headers, sent } = admitted;
                secrets = sent;
                Session::with_address(client, (url.as_str(), &headers), secrets.clone(), tracker).await
            }
        };
        // No server may say a secret, not even one that it has refused.
        begun.map_err(|why| Refused::Server(Redaction::with(secrets.as_ref()).apply(why)))
    }
}

/// Why there is no session.
enum Refused {
    /// The operator's rules.
    Rules(Error),
    /// The server, or what is between us.
    Server(String),
}

/// A server.
pub(super) struct Server {
    /// For people.
    name: String,
    link: Link,
    connect_timeout: Duration,
    call_timeout: Duration,
    /// The operator's word on what its calls do.
    pub(super) effect: Option<Effect>,
    allowed: Vec<String>,
    /// The secrets among what the operator gives it.
    secrets: Option<Arc<Values>>,
    pub(super) calls: Gate,
    tracker: TaskTracker,
    /// Who begins a session, or lists.
    turn: Semaphore,
    state: Mutex<State>,
    /// Counts the sessions.
    sessions: AtomicU64,
}

#[derive(Default)]
struct State {
    session: Option<Arc<Session>>,
    /// The list, and the number of the session it was made in.
    listing: Option<(Arc<Listing>, u64)>,
}

impl Server {
    /// One of the operator's.
    pub(super) fn named(
        name: &str,
        (server, link): (&McpServer, Link),
        connect_timeout: Duration,
        tracker: &TaskTracker,
    ) -> Self {
        Self {
            name: name.to_owned(),
            link,
            connect_timeout,
            call_timeout: server.timeout,
            effect: server.effect,
            allowed: server.tools.clone(),
            secrets: Values::of(secrets_of(&server.link).iter().map(String::as_str)).map(Arc::new),
            calls: Gate::unmetered(server.max_concurrent),
            tracker: tracker.clone(),
            turn: Semaphore::new(1),
            state: Mutex::default(),
            sessions: AtomicU64::default(),
        }
    }

    /// One that a definition brings along; its calls count among those of HTTP tools.
    pub(super) fn addressed(
        link: Link,
        requester: &HttpRequester,
        connect_timeout: Duration,
        tracker: &TaskTracker,
    ) -> Self {
        let name = match &link {
            Link::Defined { request, .. } => request.origin.host_str().unwrap_or_default().to_owned(),
            Link::Program(_) | Link::Address { .. } => String::new(),
        };
        Self {
            name,
            link,
            connect_timeout,
            call_timeout: requester.max_timeout(),
            effect: None,
            allowed: Vec::new(),
            secrets: None,
            calls: requester.calls(),
            tracker: tracker.clone(),
            turn: Semaphore::new(1),
            state: Mutex::default(),
            sessions: AtomicU64::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unavailable(&self, reason: String) -> Error {
        Error::McpUnavailable { server: self.name.clone(), reason }
    }

    /// There is no tool `name`.
    pub(super) fn missing(&self, name: &str, listing: &Listing) -> Error {
        Error::McpTool { server: self.name.clone(), tool: name.to_owned(), why: listing.why_not(name) }
    }

    /// The list of its tools: the one that is known, unless the server has changed it or was begun anew.
    pub(super) async fn listing(&self) -> Result<Arc<Listing>, Error> {
        if let Some(listing) = self.known() {
            return Ok(listing);
        }
        let until = Instant::now() + self.connect_timeout;
        match timeout_at(until, Box::pin(self.list())).await {
            Ok(listed) => listed,
            Err(_) => {
                // It may be stuck, and what it listed before may have changed: the next one begins anew.
                let mut state = self.state();
                let (stuck, _) = (state.session.take(), state.listing.take());
                drop(state);
                if let Some(session) = stuck {
                    self.has_lost(&session, "it has not listed its tools in time");
                }
                let limit = self.connect_timeout.as_secs_f64();
                Err(self.unavailable(format!("it has not listed its tools within {limit} seconds")))
            }
        }
    }

    /// The list, when there is no reason to ask again. One that has gone away is asked again when it is called.
    fn known(&self) -> Option<Arc<Listing>> {
        let state = self.state();
        let (listing, session) = state.listing.as_ref()?;
        let has_changed = state.session.as_ref().is_some_and(|session| session.has_changed());
        let is_of_this = *session == self.sessions.load(Ordering::Acquire);
        (is_of_this && !has_changed).then(|| listing.clone())
    }

    async fn list(&self) -> Result<Arc<Listing>, Error> {
        let mut tries = SESSIONS;
        loop {
            let session = self.session().await?;
            let _turn = self.turn.acquire().await.expect("nobody closes it");
            // Somebody else may have been quicker.
            if let Some(listing) = self.known() {
                return Ok(listing);
            }
            let number = self.sessions.load(Ordering::Acquire);
            tries -= 1;
            match session.tools().await {
                Ok(tools) => {
                    let listing = Arc::new(Listing::of(tools, &self.allowed, &session.redaction()));
                    self.state().listing = Some((listing.clone(), number));
                    return Ok(listing);
                }
                Err(why) => {
                    self.forget(&session, "it could not list its tools");
                    if tries == 0 {
                        let why = session.redaction().apply(session.explained(why).await);
                        return Err(self.unavailable(format!("it cannot list its tools: {why}")));
                    }
                }
            }
        }
    }

    /// The session, begun if there is none that lives.
    async fn session(&self) -> Result<Arc<Session>, Error> {
        if let Some(session) = self.living() {
            return Ok(session);
        }
        let _turn = self.turn.acquire().await.expect("nobody closes it");
        if let Some(session) = self.living() {
            return Ok(session);
        }
        let opened =
            timeout(self.connect_timeout, Box::pin(self.link.open(self.secrets.as_ref(), &self.tracker)))
                .await;
        let late = |_| {
            let limit = self.connect_timeout.as_secs_f64();
            Err(Refused::Server(format!("it did not begin a session within {limit} seconds")))
        };
        let session = match opened.unwrap_or_else(late) {
            Ok(session) => Arc::new(session),
            Err(Refused::Rules(error)) => return Err(error),
            Err(Refused::Server(why)) => return Err(self.unavailable(why)),
        };
        tracing::debug!(server = self.name, "a session with an MCP server has begun");
        self.sessions.fetch_add(1, Ordering::AcqRel);
        self.state().session = Some(session.clone());
        Ok(session)
    }

    fn living(&self) -> Option<Arc<Session>> {
        let mut state = self.state();
        // A session that has ended takes its program along.
        if let Some(ended) = state.session.take_if(|session| !session.is_alive()) {
            self.has_lost(&ended, "it has ended the connection");
        }
        state.session.clone()
    }

    /// The next one who asks begins another session.
    fn forget(&self, session: &Arc<Session>, why: &str) {
        let forgotten = self.state().session.take_if(|current| Arc::ptr_eq(current, session));
        if let Some(session) = forgotten {
            self.has_lost(&session, why);
        }
    }

    /// Tells people. What servers say themselves stays out of the log: it may be made of arguments.
    fn has_lost(&self, session: &Session, why: &str) {
        if session.is_over_http() {
            // Servers end idle sessions as they like.
            tracing::info!(server = self.name, why, "a session with an MCP server was lost");
        } else {
            tracing::warn!(server = self.name, why, "a session with an MCP server was lost");
        }
    }

    /// Calls a tool by the server's name for it.
    pub(super) async fn call(
        &self,
        (tool, arguments): (&str, JsonObject),
        call: &Call<'_>,
        tell: Tell<'_>,
    ) -> Answer {
        // The caller's limit is for all of it; the server's own begins once there is a session.
        let ends = call.limit.map(|limit| Instant::now() + limit);
        let until = |limit: Duration| {
            let own = Instant::now() + limit;
            ends.map_or(own, |ends| ends.min(own))
        };
        let limit = call.limit.map_or(self.call_timeout, |limit| limit.min(self.call_timeout));
        let mut made = 0;
        loop {
            let begun = timeout_at(until(self.connect_timeout), Box::pin(self.session())).await;
            let session = match begun {
                Ok(Ok(session)) => session,
                Ok(Err(error)) => return error.into(),
                Err(_) => return self.unavailable("no session has begun in time".to_owned()).into(),
            };
            made += 1;
            let until = until(self.call_timeout);
            let asked = session.call((tool, arguments.clone()), call.idempotency_key, tell);
            let answered = timeout_at(until, asked).await;
            if answered.is_ok() {
                session.is_answering();
            }
            let error = match answered {
                Ok(Ok(result)) => return answer::answer(&result, &session.redaction()),
                Ok(Err(error)) => error,
                Err(_) => {
                    // A program that answers nothing any more is begun anew; calls that it still works on keep it.
                    if session.is_late() >= STUCK && !session.is_over_http() {
                        self.forget(&session, "it has answered none of the last calls in time");
                    }
                    return Error::Timeout(limit).into();
                }
            };
            if may_be_over(&session, &error) {
                self.forget(&session, "a call failed");
            }
            let told = |why| session.redaction().apply(why);
            match fate(&error, &session.redaction()) {
                Fate::NotMade(_) if made < SESSIONS => {}
                Fate::Refused(why) => return Error::Failed(told(why)).into(),
                Fate::NotMade(why) => return self.unavailable(told(session.explained(why).await)).into(),
                Fate::Unknown(why) => return Error::Lost(told(session.explained(why).await)).into(),
            }
        }
    }

    /// Ends its session.
    pub(super) async fn close(&self) {
        let session = self.state().session.take();
        if let Some(session) = session.and_then(Arc::into_inner) {
            session.close().await;
        }
    }
}

/// Whether the session may be of no use any more. Some servers answer in words when they do not know it.
fn may_be_over(session: &Session, error: &ServiceError) -> bool {
    let ServiceError::McpError(error) = error else { return true };
    session.is_over_http() && SESSION_CODES.contains(&error.code.0)
}

/// What a server is given and must not send back: the secrets in its environment or its headers, and all headers that
/// stand in texts by no chance.
fn secrets_of(link: &McpLink) -> Vec<String> {
    let (McpLink::Process { environment: pairs, .. } | McpLink::Http { headers: pairs, .. }) = link;
    let pairs = pairs.iter().map(|(name, value)| (name.as_str(), value.expose_secret()));
    let mut secrets = McpLink::secrets_among(pairs);
    if let McpLink::Http { headers, .. } = link {
        let values = headers.values().map(|value| value.expose_secret().to_owned());
        secrets.extend(values.filter(|value| is_recognisable(value)));
    }
    secrets.retain(|secret| secret.len() >= MIN_SECRET_BYTES);
    secrets
}

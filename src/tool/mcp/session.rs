//! One session with a server: made, asked for tools, asked to call them, ended.
//!
//! **Invariant:** a call that nobody waits for any more is cancelled at the server.

use std::{
    collections::HashMap,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use indexmap::IndexMap;
use reqwest::{
    Client,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use rmcp::{
    RoleClient, ServiceExt,
    model::{
        CallToolRequest, CallToolRequestParams, CallToolResult, ClientRequest, JsonObject,
        PaginatedRequestParams, RequestMetaObject, ServerResult,
    },
    service::{PeerRequestOptions, RequestHandle, RunningService, ServiceError},
    transport::{
        StreamableHttpClientTransport, async_rw::AsyncRwTransport,
        common::client_side_sse::ExponentialBackoff,
        streamable_http_client::StreamableHttpClientTransportConfig,
    },
};
use secrecy::SecretString;
use tokio::{sync::broadcast::error::RecvError, time::Instant};
use tokio_util::task::TaskTracker;

use super::{ear::Ear, failure, listing::MAX_TOOLS, process::Process, wire::Wire};
use crate::{
    telemetry::scrub::Values,
    tool::{Progress, Tell, http::Redaction},
};

/// Largest message of a server in bytes, an answer with an image included.
pub(super) const MAX_MESSAGE_BYTES: usize = 8 << 20;

/// Most pages of a list of tools; more of them than tools are a server that turns in circles.
const MAX_PAGES: usize = 100;

/// Least time between two words on the progress of one call; readers want to see that it goes on.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// How often a broken stream of answers is taken up again, when the server lets it be.
const STREAM_TRIES: usize = 3;

/// Longest wait for that.
const STREAM_PAUSE: Duration = Duration::from_secs(2);

/// Longest wait until a server has been told that nobody waits for its answer, or that a session ends.
const FAREWELL_LIMIT: Duration = Duration::from_secs(2);

/// What a call carries beside its arguments.
const IDEMPOTENCY_KEY: &str = "agent-executor/idempotency-key";

/// Whether a header is the protocol's own.
pub(super) fn is_reserved(name: &str) -> bool {
    ["accept", "content-type", "mcp-session-id", "mcp-protocol-version", "last-event-id"]
        .iter()
        .any(|reserved| name.eq_ignore_ascii_case(reserved))
}

/// A session with a server.
pub(super) struct Session {
    service: RunningService<RoleClient, Ear>,
    ear: Ear,
    process: Option<Process>,
    /// The secrets that the server was given.
    secrets: Option<Arc<Values>>,
    /// Calls in a row that have taken too long.
    late: AtomicU32,
    tracker: TaskTracker,
}

impl Session {
    /// Starts a program and a session with it; fails with why there is none.
    pub(super) async fn with_program(
        (command, arguments): (&str, &[String]),
        environment: &IndexMap<String, SecretString>,
        secrets: Option<Arc<Values>>,
        tracker: &TaskTracker,
    ) -> Result<Self, String> {
        let started = Process::start((command, arguments), environment, tracker);
        let (process, output, input) =
            started.map_err(|error| format!("'{command}' cannot be started: {error}"))?;
        let ear = Ear::new();
        let transport = AsyncRwTransport::new(output, input).with_max_line_length(MAX_MESSAGE_BYTES);
        match Box::pin(ear.clone().serve(transport)).await {
            Ok(service) => Ok(Self {
                service,
                ear,
                process: Some(process),
                secrets,
                late: AtomicU32::default(),
                tracker: tracker.clone(),
            }),
            Err(error) => {
                let said = process.complaint().await.map(|said| format!("; it said: {said}"));
                let why = failure::refused_session(&error, &Redaction::with(secrets.as_ref()));
                Err(format!("{why}{}", said.unwrap_or_default()))
            }
        }
    }

    /// Begins a session with the server at `url`.
    pub(super) async fn with_address(
        client: Client,
        (url, headers): (&str, &HeaderMap),
        secrets: Option<Arc<Values>>,
        tracker: &TaskTracker,
    ) -> Result<Self, String> {
        let headers: HashMap<HeaderName, HeaderValue> =
            headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let mut again = ExponentialBackoff::default();
        again.max_times = Some(STREAM_TRIES);
        again.max_delay = Some(STREAM_PAUSE);
        let mut config = StreamableHttpClientTransportConfig::with_uri(url)
            .custom_headers(headers)
            .max_sse_event_size(MAX_MESSAGE_BYTES)
            // Whoever calls decides what becomes of a call when its session is gone.
            .reinit_on_expired_session(false)
            // Calls have passed a gate already.
            .max_concurrent_requests(usize::MAX);
        config.retry_config = Arc::new(again);
        let transport = StreamableHttpClientTransport::with_client(Wire(client), config);
        let ear = Ear::new();
        match Box::pin(ear.clone().serve(transport)).await {
            Ok(service) => Ok(Self {
                service,
                ear,
                process: None,
                secrets,
                late: AtomicU32::default(),
                tracker: tracker.clone(),
            }),
            Err(error) => Err(failure::refused_session(&error, &Redaction::with(secrets.as_ref()))),
        }
    }

    /// Whether the server can still be asked.
    pub(super) fn is_alive(&self) -> bool {
        !self.service.is_closed() && !self.service.is_transport_closed()
    }

    /// Whether it goes over HTTP.
    pub(super) fn is_over_http(&self) -> bool {
        self.process.is_none()
    }

    /// Of what the server must not tell anybody: the secrets it was given, however short, and those of the process.
    pub(super) fn redaction(&self) -> Redaction {
        Redaction::with(self.secrets.as_ref())
    }

    /// What is known of the end of a program besides `why`.
    pub(super) async fn explained(&self, why: String) -> String {
        let said = match &self.process {
            Some(process) => process.last_complaint().await,
            None => None,
        };
        said.map_or_else(|| why.clone(), |said| format!("{why}; among its last words: {said}"))
    }

    /// A call has been answered.
    pub(super) fn is_answering(&self) {
        self.late.store(0, Ordering::Release);
    }

    /// One more call has taken too long; how many did in a row.
    pub(super) fn is_late(&self) -> u32 {
        self.late.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Whether the server has said that its tools are others now.
    pub(super) fn has_changed(&self) -> bool {
        self.ear.has_changed()
    }

    /// All tools of the server.
    pub(super) async fn tools(&self) -> Result<Vec<rmcp::model::Tool>, String> {
        self.ear.lists();
        let (mut tools, mut cursor) = (Vec::new(), None);
        for _ in 0..MAX_PAGES {
            let page =
                cursor.take().map(|cursor| PaginatedRequestParams::default().with_cursor(Some(cursor)));
            let page = self.service.list_tools(page).await;
            let page = page.map_err(|error| match failure::fate(&error, &self.redaction()) {
                failure::Fate::Refused(why) | failure::Fate::NotMade(why) | failure::Fate::Unknown(why) => {
                    why
                }
            })?;
            tools.extend(page.tools);
            if tools.len() > MAX_TOOLS {
                return Err(format!("it has more than {MAX_TOOLS} tools"));
            }
            match page.next_cursor {
                Some(next) if !next.is_empty() => cursor = Some(next),
                Some(_) | None => return Ok(tools),
            }
        }
        Err(format!("its list of tools has more than {MAX_PAGES} pages"))
    }

    /// Calls a tool; `tell` hears how far it is. Without an answer the call is cancelled when this is dropped.
    pub(super) async fn call(
        &self,
        (tool, arguments): (&str, JsonObject),
        key: &str,
        tell: Tell<'_>,
    ) -> Result<CallToolResult, ServiceError> {
        let mut progress = self.ear.progress();
        let mut params = CallToolRequestParams::new(tool.to_owned());
        params = params.with_arguments(arguments);
        let request = ClientRequest::CallToolRequest(CallToolRequest::new(params));
        let mut meta = RequestMetaObject::default();
        meta.insert(IDEMPOTENCY_KEY.to_owned(), key.into());
        let options = PeerRequestOptions::no_options().with_meta(meta);
        let handle = self.service.send_cancellable_request(request, options).await?;
        let token = handle.progress_token.clone();
        let mut open = Open { handle: Some(handle), tracker: self.tracker.clone() };
        let mut teller = Teller { tell, redaction: self.redaction(), last: None };
        let mut is_heard = true;
        loop {
            let heard = async { if is_heard { progress.recv().await } else { pending().await } };
            tokio::select! {
                biased;
                answered = open.answer() => {
                    while let Ok((about, said)) = progress.try_recv() {
                        teller.hear(about == token, said);
                    }
                    let ServerResult::CallToolResult(result) = answered? else {
                        return Err(ServiceError::UnexpectedResponse);
                    };
                    return Ok(result);
                }
                heard = heard => match heard {
                    Ok((about, said)) => teller.hear(about == token, said),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => is_heard = false,
                },
            }
        }
    }

    /// Ends the session: the server hears of it, and a program is given the time to end itself.
    pub(super) async fn close(mut self) {
        // A server that does not listen is left.
        let _ = self.service.close_with_timeout(FAREWELL_LIMIT).await;
        if let Some(process) = &mut self.process {
            process.end().await;
        }
    }
}

/// A call whose answer has not come; dropping it cancels the call.
struct Open {
    handle: Option<RequestHandle<RoleClient>>,
    tracker: TaskTracker,
}

impl Open {
    async fn answer(&mut self) -> Result<ServerResult, ServiceError> {
        let Some(handle) = &mut self.handle else { return Err(ServiceError::TransportClosed) };
        let answered = (&mut handle.rx).await;
        self.handle = None;
        answered.map_err(|_| ServiceError::TransportClosed)?
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let (Some(handle), Ok(runtime)) = (self.handle.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        let farewell = async move {
            let cancelled = handle.cancel(Some("nobody waits for the answer any more".into()));
            let _ = tokio::time::timeout(FAREWELL_LIMIT, cancelled).await;
        };
        self.tracker.spawn_on(farewell, &runtime);
    }
}

/// Passes on how far one call is, not too often.
struct Teller<'a> {
    tell: Tell<'a>,
    redaction: Redaction,
    last: Option<(Instant, f64)>,
}

impl Teller<'_> {
    fn hear(&mut self, is_mine: bool, said: Progress) {
        let is_due = self.last.is_none_or(|(at, done)| at.elapsed() >= PROGRESS_EVERY && said.done > done);
        if is_mine && is_due {
            self.last = Some((Instant::now(), said.done));
            let message = said.message.map(|text| self.redaction.apply(text));
            (self.tell)(Progress { message, ..said });
        }
    }
}

//! A provider behind HTTP: where it is, how it is asked, and what its failures mean. Every dialect goes through here.
//!
//! **Invariant:** a redirect is never followed: the key goes to the address it was meant for and nowhere else.
//! **Invariant:** the request lives as long as its stream: dropping that closes the connection.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::stream::BoxStream;
use reqwest::{
    Client, Response,
    header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use secrecy::{ExposeSecret, SecretString};
use time::{OffsetDateTime, format_description::well_known::Rfc2822};
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::{
    Auth, Chunk, Error, Provider, Request, Timeouts,
    address::{self, AllowedHosts},
    answer::Assemble,
    exchange::Exchange,
    failure::{Complaint, Judge},
};

/// Most bytes of a failing answer that are read; its message is at the start of it.
const MAX_ERROR_BYTES: usize = 64 << 10;
/// Longest wait a header may ask for; more is a mistake of the server's clock.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// A provider's server.
pub(super) struct Remote {
    provider: Arc<str>,
    base_url: Url,
    key: Option<SecretString>,
    key_variable: String,
    auth: Auth,
    /// Name and value of what is added to every address.
    query: Vec<(String, String)>,
    allowed: Arc<AllowedHosts>,
    timeouts: Timeouts,
    /// For http addresses. Clients are made at the first call that needs them.
    plain: OnceLock<Client>,
    /// For https addresses: reading the machine's certificates takes a while, and a machine without any can
    /// still ask local servers.
    secure: OnceLock<Client>,
}

/// One request to a provider, ready to be sent.
pub(super) struct Call {
    /// What was asked.
    pub(super) request: Arc<Request>,
    /// Where it goes.
    pub(super) url: Url,
    /// Headers of the dialect.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// The JSON text.
    pub(super) body: Vec<u8>,
    /// What puts the answer together.
    pub(super) assembly: Box<dyn Assemble>,
}

/// What a call needs to turn its failures into errors.
pub(super) struct Caller {
    provider: Arc<str>,
    key: Option<SecretString>,
    pub(super) request: Arc<Request>,
}

impl Remote {
    /// The provider at its configured address; asks nobody yet.
    pub(super) fn new(
        name: &str,
        provider: Provider,
        allowed: Arc<AllowedHosts>,
        timeouts: Timeouts,
    ) -> Result<Self, Error> {
        Ok(Self {
            provider: name.into(),
            base_url: address::operators(name, &provider.base_url)?,
            key: provider.key.filter(|key| !key.expose_secret().trim().is_empty()),
            key_variable: provider.key_variable,
            auth: provider.auth,
            query: provider.query,
            allowed,
            timeouts,
            plain: OnceLock::new(),
            secure: OnceLock::new(),
        })
    }

    /// Where requests go: `path` below the provider's address, or below the one its definition asks for.
    ///
    /// Fails with [`Error::NoKey`] when the host is `wants_key` and there is none.
    pub(super) fn endpoint(&self, request: &Request, path: &str, wants_key: &str) -> Result<Url, Error> {
        let mut url = match &request.settings.base_url {
            Some(asked) => self.allowed.check(asked, &self.base_url)?,
            None => self.base_url.clone(),
        };
        if url.host_str() == Some(wants_key) && self.key.is_none() {
            let (provider, variable) = (self.provider.to_string(), self.key_variable.clone());
            return Err(Error::NoKey { provider, variable });
        }
        let base = url.path().trim_end_matches('/');
        // An address that says the version already is meant, too.
        let path = match path.strip_prefix("/v1") {
            Some(rest) if base.ends_with("/v1") => rest,
            _ => path,
        };
        let path = format!("{base}{path}");
        url.set_path(&path);
        if !self.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&self.query);
        }
        Ok(url)
    }

    /// Sends the request, and streams the answer.
    pub(super) async fn send(
        &self,
        start: Instant,
        call: Call,
    ) -> Result<BoxStream<'static, Result<Chunk, Error>>, Error> {
        let Call { request, url, headers, body, assembly } = call;
        let mut all = self.headers()?;
        all.extend(headers);
        let sent = self.client(&url)?.post(url).headers(all).body(body).send();
        let caller = Caller { provider: self.provider.clone(), key: self.key.clone(), request };
        let limit = self.timeouts.first_byte.min(self.timeouts.call);
        let response = match timeout_at(start + limit, sent).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) if error.is_timeout() => return Err(caller.timeout(self.timeouts.connect)),
            Ok(Err(error)) => return Err(caller.broken(&error)),
            Err(_) => return Err(caller.timeout(limit)),
        };
        if !response.status().is_success() {
            return Err(failed(&caller, response, start + limit).await);
        }
        Exchange::new(caller, (response, assembly), self.timeouts, start).stream()
    }

    fn client(&self, url: &Url) -> Result<&Client, Error> {
        let is_plain = url.scheme() == "http";
        let made = if is_plain { &self.plain } else { &self.secure };
        if let Some(client) = made.get() {
            return Ok(client);
        }
        let mut builder = Client::builder()
            .user_agent(concat!("agent-executor/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.timeouts.connect)
            .redirect(reqwest::redirect::Policy::none());
        if is_plain {
            builder = builder.tls_certs_only([]);
        }
        if address::is_loopback(&self.base_url) {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| {
            Error::Settings(format!("no HTTP client for {:?}: {}", self.provider, deepest(&error)))
        })?;
        Ok(made.get_or_init(|| client))
    }

    fn headers(&self) -> Result<HeaderMap, Error> {
        let mut headers = HeaderMap::from_iter([
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (ACCEPT, HeaderValue::from_static("text/event-stream, application/json")),
            // Compressors hold pieces back until they have enough of them.
            (ACCEPT_ENCODING, HeaderValue::from_static("identity")),
        ]);
        if let Some(key) = &self.key {
            let key = key.expose_secret().trim();
            let (name, value) = match self.auth {
                Auth::Bearer => (AUTHORIZATION, format!("Bearer {key}")),
                Auth::ApiKey => (HeaderName::from_static("api-key"), key.to_owned()),
                Auth::XApiKey => (HeaderName::from_static("x-api-key"), key.to_owned()),
            };
            let mut value = HeaderValue::from_str(&value)
                .map_err(|_| Error::Settings(format!("{} cannot be sent in a header", self.key_variable)))?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        Ok(headers)
    }
}

impl Caller {
    /// The judge of this call's failures.
    pub(super) fn judge(&self) -> Judge<'_> {
        let messages = &self.request.messages;
        let said = messages.iter().map(|message| message.content.text());
        let calls = messages.iter().flat_map(|message| message.tool_calls());
        let arguments = calls.map(|call| serde_json::to_string(&call.args).unwrap_or_default().into());
        let system = self.request.system_prompt.iter().map(|text| Arc::from(text.as_str()));
        Judge {
            provider: &self.provider,
            key: self.key.as_ref().map(|key| key.expose_secret().trim()),
            prompt: said.chain(arguments).chain(system).collect(),
        }
    }

    /// `limit` has passed.
    pub(super) fn timeout(&self, limit: Duration) -> Error {
        Error::Timeout { provider: self.provider.to_string(), limit }
    }

    /// The provider failed.
    pub(super) fn unavailable(&self, message: &str) -> Error {
        Error::Unavailable { provider: self.provider.to_string(), message: message.to_owned() }
    }

    /// The answer is not what the protocol allows.
    pub(super) fn protocol(&self, message: &str) -> Error {
        Error::Protocol { provider: self.provider.to_string(), message: self.judge().clean(message) }
    }

    /// The connection could not be made, or broke.
    pub(super) fn broken(&self, error: &reqwest::Error) -> Error {
        let what = if error.is_connect() { "no connection" } else { "the connection broke" };
        self.unavailable(&self.judge().clean(&format!("{what}: {}", deepest(error))))
    }
}

/// The innermost cause: the outer ones repeat the address.
fn deepest(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// The error that a failing answer is.
async fn failed(caller: &Caller, mut response: Response, deadline: Instant) -> Error {
    let status = response.status().as_u16();
    let retry_after = retry_after(response.headers());
    let mut body = Vec::new();
    // The status says enough when the rest of the body does not come.
    while let Ok(Ok(Some(piece))) = timeout_at(deadline, response.chunk()).await {
        let room = MAX_ERROR_BYTES - body.len();
        body.extend_from_slice(&piece[..piece.len().min(room)]);
        if body.len() == MAX_ERROR_BYTES {
            break;
        }
    }
    caller.judge().status(status, Complaint::from_body(&body), retry_after)
}

/// How long the server asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date. A date is
/// taken relative to the answer's own, so that clocks need not agree.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let number = |name: &str| text(name)?.parse::<f64>().ok();
    let date = |name: &str| OffsetDateTime::parse(text(name)?, &Rfc2822).ok();
    let seconds = number("retry-after-ms").map(|millis| millis / 1000.0).or_else(|| number("retry-after"));
    let wait = match seconds {
        Some(seconds) => Duration::try_from_secs_f64(seconds).ok()?,
        // A date that has passed asks for no wait.
        None => (date("retry-after")? - date("date")?).try_into().unwrap_or_default(),
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

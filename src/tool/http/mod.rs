//! Tools that are one HTTP request: the only tools that leave the process.
//!
//! **Invariant:** a request goes to the host its definition names, when the operator allows that host, and to no
//! private address unless the operator allows those.
//! **Invariant:** no answer carries a secret; arguments and answers are not logged.

mod address;
mod body;
mod hosts;
mod reply;
mod request;

pub use hosts::AllowedHosts;

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use reqwest::{Client, Method, Response, StatusCode, header::LOCATION, redirect};
use url::{Host, Url};

use super::{Answer, Call, Config, Error, Tool, cut, shorten};
use crate::{
    graph::{Effect, HttpTool as Definition},
    model::ToolSpec,
    telemetry::{Gate, Limited, Pass},
};
use address::{NoPublicAddress, PublicOnly, is_public};
use hosts::Permission;
use reply::{Body, Redaction};
use request::{Filled, RequestTemplate};

/// Characters of a failed answer's body that the model sees; the reason stands in the first lines.
const MAX_ERROR_BODY_CHARS: usize = 2_000;

/// Characters of a transport error's text.
const MAX_CAUSE_CHARS: usize = 300;

/// How long an idle connection is kept; models call in bursts.
const POOL_IDLE: Duration = Duration::from_secs(60);

/// Longest wait for a connection. Without one, a host that is not there would look like a request whose outcome is
/// unknown.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Header that lets a server tell a repeated request from a new one.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Every mistake in an http tool's definition, as sentences; empty when there is none.
pub fn check_http(definition: &Definition) -> Vec<String> {
    RequestTemplate::compile(definition).err().unwrap_or_default()
}

/// The client and the limits that all http tools share.
#[derive(Debug)]
pub(super) struct HttpRequester {
    client: Client,
    config: Config,
    redaction: Redaction,
    calls: Gate,
}

impl HttpRequester {
    pub(super) fn new(config: Config) -> Result<Self, Error> {
        let mut builder = Client::builder()
            .user_agent(concat!("agent-executor/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .referer(false)
            .pool_idle_timeout(POOL_IDLE)
            .connect_timeout(CONNECT_LIMIT)
            // A proxy would look the name up itself, past the check of its address.
            .no_proxy();
        if !config.allow_private {
            builder = builder.dns_resolver(Arc::new(PublicOnly));
        }
        let client = builder.build().map_err(|error| Error::Client(error.into()))?;
        let redaction = Redaction::of(config.secrets.values());
        let calls = Gate::new(Limited::ToolCalls, config.max_concurrent);
        Ok(Self { client, config, redaction, calls })
    }

    /// Whether the operator lets this request go to its host with its secrets.
    fn check(&self, request: &RequestTemplate) -> Result<(), Error> {
        let host = || request.origin.host_str().unwrap_or_default().to_owned();
        let permission = self.config.allowed_hosts.permission(&request.origin);
        if permission == Permission::Refused {
            return Err(Error::HostNotAllowed { host: host() });
        }
        // The client asks its resolver about names only; a host written as an address is checked here.
        if !self.config.allow_private && !host_may_be_public(&request.origin) {
            return Err(Error::PrivateAddress { host: host() });
        }
        for name in request.secrets() {
            if !self.config.secrets.contains_key(name) {
                return Err(Error::Secret(format!("the secret '{name}' is not among HTTP_TOOL_SECRETS")));
            }
            if permission != Permission::Named {
                return Err(Error::Secret(format!(
                    "secrets are only sent to hosts that HTTP_TOOL_ALLOWED_HOSTS names; '*' alone does not send \
                     them to '{}'",
                    host()
                )));
            }
        }
        Ok(())
    }

    fn timeout(&self, request: &RequestTemplate) -> Duration {
        request.timeout.unwrap_or(Duration::MAX).min(self.config.max_timeout)
    }

    fn response_limit(&self, request: &RequestTemplate) -> u64 {
        request.max_response_bytes.unwrap_or(u64::MAX).min(self.config.max_response_bytes)
    }
}

fn host_may_be_public(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => is_public(ip.into()),
        Some(Host::Ipv6(ip)) => is_public(ip.into()),
        Some(Host::Domain(_)) => true,
        None => false,
    }
}

/// A tool that answers with what a server says.
pub(super) struct HttpTool {
    spec: ToolSpec,
    effect: Effect,
    request: RequestTemplate,
    requester: Arc<HttpRequester>,
}

impl fmt::Debug for HttpTool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpTool").field("name", &self.spec.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl Tool for HttpTool {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    fn effect(&self) -> Effect {
        self.effect
    }

    async fn turn(&self) -> Option<Pass> {
        // Waiting is no part of the request, but of the time of the job.
        Some(self.requester.calls.enter().await)
    }

    async fn call(&self, call: Call<'_>) -> Answer {
        let answer = self.answer(&call).await.unwrap_or_else(Answer::from);
        tracing::debug!(tool = &*self.spec.name, status = answer.status.as_str(), "http tool answered");
        // Error texts can quote what was sent; nothing leaves without this.
        Answer { content: cut(self.requester.redaction.apply(answer.content)), ..answer }
    }
}

impl HttpTool {
    /// Parses a definition; fails with every mistake in it.
    pub(super) fn compile(
        spec: ToolSpec,
        effect: Effect,
        definition: &Definition,
        requester: Arc<HttpRequester>,
    ) -> Result<Self, Vec<String>> {
        Ok(Self { spec, effect, request: RequestTemplate::compile(definition)?, requester })
    }

    async fn answer(&self, call: &Call<'_>) -> Result<Answer, Error> {
        self.requester.check(&self.request)?;
        let filled = self.request.fill(call.args, |name| self.requester.config.secrets.get(name))?;
        let timeout = self.requester.timeout(&self.request);
        let failed = |error| self.failure(error, timeout);
        let response = self.send(filled, call.idempotency_key, timeout).await.map_err(failed)?;
        let status = response.status();
        if status.is_redirection() {
            return Err(Error::Failed(format!("the server answered {status}{}", redirection(&response))));
        }
        let body =
            reply::read(response, self.requester.response_limit(&self.request)).await.map_err(failed)?;
        let text = self.describe(body);
        if status.is_success() {
            let text = if text.is_empty() { format!("{status}, without content") } else { text };
            return Ok(Answer::success(text));
        }
        let text = format!("the server answered {status}\n{}", shorten(text, MAX_ERROR_BODY_CHARS));
        // A gateway that got no answer knows as little as we do.
        let is_lost = matches!(status, StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT);
        Err(if is_lost { Error::Lost(text) } else { Error::Failed(text) })
    }

    async fn send(&self, filled: Filled, key: &str, timeout: Duration) -> Result<Response, reqwest::Error> {
        let Filled { url, headers, body } = filled;
        let method = self.request.method.clone();
        let repeatable =
            (method == Method::GET || method == Method::HEAD) && self.effect != Effect::Irreversible;
        let keyed = repeatable || headers.contains_key(IDEMPOTENCY_KEY);
        let mut request = self.requester.client.request(method, url).headers(headers).timeout(timeout);
        if !keyed {
            request = request.header(IDEMPOTENCY_KEY, key);
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        request.send().await
    }

    /// The body as the model reads it, without secrets.
    fn describe(&self, body: Body) -> String {
        let redaction = &self.requester.redaction;
        match body {
            Body::Text { text, complete: true } => redaction.apply(text),
            Body::Text { text, complete: false } => {
                let limit = self.requester.response_limit(&self.request);
                // First within the answer's own limit, so that this note is not cut off.
                let text = cut(redaction.apply_to_cut(text));
                format!("{text}\n[cut: the response is larger than {limit} bytes]")
            }
            Body::Binary { kind, bytes: Some(bytes) } => format!("[binary response: {kind}, {bytes} bytes]"),
            Body::Binary { kind, bytes: None } => format!("[binary response: {kind}, size unknown]"),
        }
    }

    fn failure(&self, error: reqwest::Error, timeout: Duration) -> Error {
        let host = self.request.origin.host_str().unwrap_or_default();
        if error.is_timeout() && !error.is_connect() {
            return Error::Timeout(timeout);
        }
        // The address stays out of the text: its query is made of arguments.
        let error = error.without_url();
        let chain = || std::iter::successors(Some::<&dyn StdError>(&error), |error| (*error).source());
        if chain().any(|cause| cause.is::<NoPublicAddress>()) {
            return Error::PrivateAddress { host: host.to_owned() };
        }
        let root = shorten(chain().last().map(ToString::to_string).unwrap_or_default(), MAX_CAUSE_CHARS);
        if error.is_connect() {
            return Error::Failed(format!("could not connect to '{host}': {root}"));
        }
        let text = format!("the exchange broke off with '{host}': {root}");
        if error.is_builder() { Error::Failed(text) } else { Error::Lost(text) }
    }
}

fn redirection(response: &Response) -> String {
    let target = response.headers().get(LOCATION).and_then(|target| target.to_str().ok());
    let target = target.map(|target| format!(" to '{}'", shorten(target.to_owned(), MAX_CAUSE_CHARS)));
    format!(", a redirection{}; redirections are not followed", target.unwrap_or_default())
}

#[cfg(test)]
mod tests;

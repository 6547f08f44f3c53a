//! Tools that are HTTP requests: to where a definition says, with pages and tokens, or to a provider of searches.
//!
//! **Invariant:** a request goes to the host its definition names, when the operator allows that host, and to no
//! private address unless the operator allows those.
//! **Invariant:** no answer carries a secret; arguments and answers are not logged.

mod address;
mod body;
mod exchange;
mod hosts;
mod pages;
mod reply;
mod request;
mod search;
mod token;

pub use hosts::AllowedHosts;
pub(super) use reply::Redaction;
pub(super) use request::RequestTemplate;
pub use search::{SearchConfig, WEB_SEARCH};
pub(super) use search::{SearchTwin, Searcher, WebSearch};

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use indexmap::IndexMap;
use reqwest::{Client, ClientBuilder, header::HeaderMap, redirect};
use tokio::time::Instant;
use url::{Host, Url};

use super::{Answer, Call, Config, Error, Tool, cut};
use crate::{
    graph::{Effect, HttpTool as Definition},
    model::ToolSpec,
    secrets::{Asker, Secret},
    telemetry::{Gate, Limited, Pass, scrub::Values},
    value::Map,
};
use address::{PublicOnly, is_public};
use exchange::Exchange;
use hosts::Permission;
use pages::Pages;
use token::Tokens;

/// How long an idle connection is kept; models call in bursts.
const POOL_IDLE: Duration = Duration::from_secs(60);

/// Longest wait for a connection. Without one, a host that is not there would look like a request whose outcome is
/// unknown.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Who servers see.
const USER_AGENT: &str = concat!("agent-executor/", env!("CARGO_PKG_VERSION"));

/// Every mistake in an http tool's definition, as sentences; empty when there is none.
pub fn check_http(definition: &Definition) -> Vec<String> {
    RequestTemplate::compile(definition).err().unwrap_or_default()
}

/// A client for servers that tools reach, still without its rules for names.
pub(super) fn client() -> ClientBuilder {
    Client::builder()
        .user_agent(USER_AGENT)
        .redirect(redirect::Policy::none())
        .referer(false)
        .pool_idle_timeout(POOL_IDLE)
        .connect_timeout(CONNECT_LIMIT)
}

/// A way that is open.
pub(super) struct Admitted {
    /// Reaches it.
    pub(super) client: Client,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// The secrets in the headers, none of which may come back.
    pub(super) sent: Option<Arc<Values>>,
}

/// The client and the limits that all http tools share.
#[derive(Debug)]
pub(super) struct HttpRequester {
    client: Client,
    config: Config,
    calls: Gate,
    tokens: Tokens,
}

impl HttpRequester {
    pub(super) fn new(config: Config) -> Result<Self, Error> {
        // A proxy would look the name up itself, past the check of its address.
        let mut builder = client().no_proxy();
        if !config.allow_private {
            builder = builder.dns_resolver(Arc::new(PublicOnly));
        }
        let client = builder.build().map_err(|error| Error::Client(error.into()))?;
        let calls = Gate::new(Limited::ToolCalls, config.max_concurrent);
        Ok(Self { client, config, calls, tokens: Tokens::new() })
    }

    /// The places of calls outside, which all tools share.
    pub(super) fn calls(&self) -> Gate {
        self.calls.clone()
    }

    /// Where something other than a tool's own request goes, when the operator allows it.
    pub(super) async fn admit(&self, request: &RequestTemplate, asker: &Asker) -> Result<Admitted, Error> {
        let secrets = self.secrets(request, asker).await?;
        let filled = request.fill(&Map::new(), |name| secrets.get(name).map(Secret::expose))?;
        let sent = Values::of(secrets.values().map(Secret::expose)).map(Arc::new);
        let (client, url, headers) = (self.client.clone(), filled.url, filled.headers);
        Ok(Admitted { client, url, headers, sent })
    }

    /// Most time of one call.
    pub(super) fn max_timeout(&self) -> Duration {
        self.config.max_timeout
    }

    /// What the operator says of the host of `url`, unless it must not be reached.
    fn check_host(&self, url: &Url) -> Result<Permission, Error> {
        let host = || url.host_str().unwrap_or_default().to_owned();
        let permission = self.config.allowed_hosts.permission(url);
        if permission == Permission::Refused {
            return Err(Error::HostNotAllowed { host: host() });
        }
        // The client asks its resolver about names only; a host written as an address is checked here.
        if !self.config.allow_private && !host_may_be_public(url) {
            return Err(Error::PrivateAddress { host: host() });
        }
        Ok(permission)
    }

    /// The secret called `name`, when it may be sent to the host of `url`.
    async fn secret(&self, (name, url): (&str, &Url), asker: &Asker) -> Result<Secret, Error> {
        if self.check_host(url)? != Permission::Named {
            let host = url.host_str().unwrap_or_default();
            return Err(Error::Secret(format!(
                "secrets are only sent to hosts that HTTP_TOOL_ALLOWED_HOSTS names; '*' alone does not send \
                 them to '{host}'"
            )));
        }
        Ok(self.config.secrets.resolve_for_header(asker, name).await?)
    }

    /// The secrets that the request and its login name, by name.
    async fn secrets(
        &self,
        request: &RequestTemplate,
        asker: &Asker,
    ) -> Result<IndexMap<String, Secret>, Error> {
        self.check_host(&request.origin)?;
        let mut secrets = IndexMap::new();
        for name in request.secrets() {
            secrets.insert(name.to_owned(), self.secret((name, &request.origin), asker).await?);
        }
        // It is sent elsewhere, and must not come back either.
        if let Some(login) = &request.login {
            let secret = self.secret((&login.secret, &login.token_url), asker).await?;
            secrets.insert(login.secret.clone(), secret);
        }
        Ok(secrets)
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
    /// In whose name it asks for secrets.
    asker: Asker,
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
        let secrets = match self.requester.secrets(&self.request, &self.asker).await {
            Ok(secrets) => secrets,
            Err(error) => return error.into(),
        };
        let redaction = Redaction::of(secrets.values());
        let answer = self.answer(&call, (&secrets, &redaction)).await.unwrap_or_else(Answer::from);
        tracing::debug!(tool = &*self.spec.name, status = answer.status.as_str(), "http tool answered");
        // Error texts can quote what was sent; nothing leaves without this.
        Answer { content: cut(redaction.apply(answer.content)), ..answer }
    }
}

impl HttpTool {
    /// Parses a definition; fails with every mistake in it.
    pub(super) fn compile(
        spec: ToolSpec,
        effect: Effect,
        definition: &Definition,
        (requester, asker): (Arc<HttpRequester>, Asker),
    ) -> Result<Self, Vec<String>> {
        Ok(Self { spec, effect, request: RequestTemplate::compile(definition)?, requester, asker })
    }

    async fn answer(
        &self,
        call: &Call<'_>,
        (secrets, redaction): (&IndexMap<String, Secret>, &Redaction),
    ) -> Result<Answer, Error> {
        let filled = self.request.fill(call.args, |name| secrets.get(name).map(Secret::expose))?;
        let timeout = self.requester.timeout(&self.request);
        let exchange = Exchange {
            tool: self,
            key: call.idempotency_key,
            redaction,
            timeout,
            deadline: Instant::now() + timeout,
        };
        let text = match &self.request.paging {
            None => {
                let answered = exchange.send(filled, self.requester.response_limit(&self.request)).await?;
                let (status, text) = (answered.status, answered.text());
                if text.is_empty() { format!("{status}, without content") } else { text }
            }
            Some(paging) => exchange.pages(filled, Pages::new(paging)).await?,
        };
        Ok(Answer::success(text))
    }
}

#[cfg(test)]
pub(super) mod tests;

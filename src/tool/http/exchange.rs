//! One call of an HTTP tool: its request, or those of all pages, with a token where it takes one.
//!
//! **Invariant:** what is left of time and bytes goes down from request to request, never up.

use std::{error::Error as StdError, sync::Arc, time::Duration};

use reqwest::{
    Method, RequestBuilder, Response, StatusCode,
    header::{AUTHORIZATION, HeaderMap, LOCATION},
};
use tokio::time::{Instant, timeout_at};

use super::{
    HttpTool,
    address::NoPublicAddress,
    pages::{Page, Pages},
    reply::{self, Body, Redaction},
    request::Filled,
    token::{Given, Login, Token},
};
use crate::{
    graph::Effect,
    tool::{Error, cut, shorten},
};

/// Characters of a failed answer's body that the model sees; the reason stands in the first lines.
pub(super) const MAX_ERROR_BODY_CHARS: usize = 2_000;

/// Characters of a transport error's text.
const MAX_CAUSE_CHARS: usize = 300;

/// Header that lets a server tell a repeated request from a new one.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// One call: its requests share a key, a time and what may be read.
pub(super) struct Exchange<'a> {
    pub(super) tool: &'a HttpTool,
    pub(super) key: &'a str,
    /// Of the secrets that its headers carry.
    pub(super) redaction: &'a Redaction,
    pub(super) timeout: Duration,
    pub(super) deadline: Instant,
}

/// An answer, without secrets.
pub(super) struct Answered {
    pub(super) status: StatusCode,
    headers: HeaderMap,
    body: Body,
    limit: u64,
}

impl Answered {
    /// The body as the model reads it.
    pub(super) fn text(self) -> String {
        let limit = self.limit;
        match self.body {
            Body::Text { text, complete: true } => text,
            // First within the answer's own limit, so that this note is not cut off.
            Body::Text { text, complete: false } => {
                format!("{}\n[cut: the response is larger than {limit} bytes]", cut(text))
            }
            Body::Binary { kind, bytes: Some(bytes) } => format!("[binary response: {kind}, {bytes} bytes]"),
            Body::Binary { kind, bytes: None } => format!("[binary response: {kind}, size unknown]"),
        }
    }
}

impl Exchange<'_> {
    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Reads page after page; all of them together have the limit of one answer.
    pub(super) async fn pages(&self, mut filled: Filled, mut pages: Pages<'_>) -> Result<String, Error> {
        let limit = self.tool.requester.response_limit(&self.tool.request);
        loop {
            let room = limit.saturating_sub(pages.bytes());
            let Answered { headers, body, .. } = self.send(filled.clone(), room).await?;
            let (text, complete) = match body {
                Body::Text { text, complete } => (text, complete),
                Body::Binary { kind, .. } => {
                    return Err(Error::Failed(format!("a page is no text but {kind}")));
                }
            };
            let page = Page { url: &filled.url, headers: &headers, text, complete };
            let Some(next) = pages.take(page, limit)? else { break };
            filled.url = next;
        }
        let (text, note) = pages.told();
        // First within the answer's own limit, so that the note is not cut off.
        Ok(match note {
            None => text,
            Some(note) => format!("{}\n{note}", cut(text)),
        })
    }

    /// Sends a request, with a token if it needs one; a server that takes a kept one no more gets a new one.
    pub(super) async fn send(&self, filled: Filled, limit: u64) -> Result<Answered, Error> {
        let Some(login) = &self.tool.request.login else {
            return Ok(self.send_once(filled, limit, None).await?);
        };
        let given = self.token(login, None).await?;
        let spoilt = match self.send_once(filled.clone(), limit, Some(&given.token)).await {
            Err(Refused::Unauthorized(_)) if !given.is_new => given.token,
            answered => return Ok(answered?),
        };
        let given = self.token(login, Some(&spoilt)).await?;
        Ok(self.send_once(filled, limit, Some(&given.token)).await?)
    }

    async fn token(&self, login: &Login, spoilt: Option<&Arc<Token>>) -> Result<Given, Error> {
        let HttpTool { requester, asker, .. } = self.tool;
        let asked = requester.tokens.get((requester, asker), (login, spoilt), self.left());
        // Others may ask for the same token, one after the other.
        let given = timeout_at(self.deadline, asked).await;
        given.unwrap_or_else(|_| Err(Error::Authorization("the server did not answer in time".into())))
    }

    async fn send_once(
        &self,
        filled: Filled,
        limit: u64,
        token: Option<&Arc<Token>>,
    ) -> Result<Answered, Refused> {
        let host = self.tool.request.origin.host_str().unwrap_or_default();
        let failed = |error| broken_off(error, host, self.timeout);
        let response = self.request(filled, token)?.send().await.map_err(failed)?;
        let (status, headers) = (response.status(), response.headers().clone());
        if status.is_redirection() {
            let text = format!("the server answered {status}{}", redirection(&response));
            let text = token.map_or_else(|| text.clone(), |token| token.redaction.apply(text.clone()));
            return Err(Error::Failed(text).into());
        }
        let body = self.without_secrets(reply::read(response, limit).await.map_err(failed)?, token);
        let answered = Answered { status, headers, body, limit };
        if status.is_success() {
            return Ok(answered);
        }
        let body = shorten(answered.text(), MAX_ERROR_BODY_CHARS);
        let text = format!("the server answered {status}\n{body}");
        // A gateway that got no answer knows as little as we do.
        let is_lost = matches!(status, StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT);
        Err(match status {
            StatusCode::UNAUTHORIZED => Refused::Unauthorized(Error::Failed(text)),
            _ if is_lost => Error::Lost(text).into(),
            _ => Error::Failed(text).into(),
        })
    }

    fn request(&self, filled: Filled, token: Option<&Arc<Token>>) -> Result<RequestBuilder, Error> {
        let Filled { url, headers, body } = filled;
        let HttpTool { request: template, effect, requester, .. } = self.tool;
        let method = template.method.clone();
        let repeatable = (method == Method::GET || method == Method::HEAD) && *effect != Effect::Irreversible;
        let keyed = repeatable || headers.contains_key(IDEMPOTENCY_KEY);
        let mut request = requester.client.request(method, url).headers(headers).timeout(self.left());
        if !keyed {
            request = request.header(IDEMPOTENCY_KEY, self.key);
        }
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, token.header()?);
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        Ok(request)
    }

    fn without_secrets(&self, body: Body, token: Option<&Arc<Token>>) -> Body {
        let apply = |redaction: &Redaction, text: String, complete: bool| match complete {
            true => redaction.apply(text),
            false => redaction.apply_to_cut(text),
        };
        match body {
            Body::Text { text, complete } => {
                let text = apply(self.redaction, text, complete);
                let text = match token {
                    Some(token) => apply(&token.redaction, text, complete),
                    None => text,
                };
                Body::Text { text, complete }
            }
            Body::Binary { .. } => body,
        }
    }
}

/// Why a request came to no good answer.
enum Refused {
    /// The server did not take who asks.
    Unauthorized(Error),
    Other(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unauthorized(error) | Refused::Other(error) => error,
        }
    }
}

/// What a broken exchange with `host` comes to.
pub(super) fn broken_off(error: reqwest::Error, host: &str, timeout: Duration) -> Error {
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
        return Error::NotSent(format!("could not connect to '{host}': {root}"));
    }
    let text = format!("the exchange broke off with '{host}': {root}");
    if error.is_builder() { Error::NotSent(text) } else { Error::Lost(text) }
}

fn redirection(response: &Response) -> String {
    let target = response.headers().get(LOCATION).and_then(|target| target.to_str().ok());
    let target = target.map(|target| format!(" to '{}'", shorten(target.to_owned(), MAX_CAUSE_CHARS)));
    format!(", a redirection{}; redirections are not followed", target.unwrap_or_default())
}

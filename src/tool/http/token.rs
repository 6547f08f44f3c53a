//! Tokens of OAuth 2.0 client credentials: asked for when they are needed, kept until they expire.
//!
//! **Invariant:** a client's secret goes only to a host that the operator has named, and no token into an answer.
//! **Invariant:** a kept token is given only to those who may have the secret it was got with.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use moka::sync::Cache;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value as Json;
use tokio::sync::Mutex;
use url::{
    Url,
    form_urlencoded::{Serializer, byte_serialize},
};

use super::{
    HttpRequester,
    exchange::broken_off,
    reply::{self, Body, Redaction},
};
use crate::{
    graph::{Authorization, AuthorizationKind, ClientAuth, HeaderValue as Written, SECRET},
    secrets::{self, Asker, Secret},
    telemetry::scrub::Scrubber,
    tool::{Error, shorten},
};

/// Clients whose tokens are kept; the one that was used longest ago makes room.
const MAX_KEPT: u64 = 1_000;

/// Life of a token whose server does not say.
const DEFAULT_LIFE: Duration = Duration::from_secs(300);

/// Longest life that is believed.
const MAX_LIFE: Duration = Duration::from_secs(24 * 3600);

/// How long before its end a token is not used any more: clocks differ, and requests take time.
const MARGIN: Duration = Duration::from_secs(30);

/// Most bytes read of an answer with a token; tokens have some thousand.
const MAX_ANSWER_BYTES: u64 = 64 * 1024;

/// Characters of what a server says that gives no token.
const MAX_REASON_CHARS: usize = 500;

/// A client of a server of tokens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Login {
    pub(super) token_url: Url,
    client_id: String,
    /// The name of its secret.
    pub(super) secret: String,
    scope: Option<String>,
    audience: Option<String>,
    in_body: bool,
}

impl Login {
    /// Parses what a definition says.
    pub(super) fn compile(definition: &Authorization) -> Result<Self, String> {
        let Authorization { kind, token_url, client_id, client_secret, scope, audience, client_auth } =
            definition;
        match kind {
            AuthorizationKind::ClientCredentials => {}
        }
        let token_url =
            Url::parse(token_url).map_err(|why| format!("auth: token_url is no valid address: {why}"))?;
        let is_plain = token_url.username().is_empty() && token_url.password().is_none();
        if !matches!(token_url.scheme(), "http" | "https") || !is_plain || token_url.host().is_none() {
            return Err("auth: token_url must start with http:// or https:// and carry no user".into());
        }
        let secret = match client_secret {
            Written::Secret(named) if secrets::is_name(&named.secret) => named.secret.clone(),
            Written::Secret(_) => return Err("auth: client_secret names no secret".into()),
            Written::Template(text) => {
                let found = SECRET.captures(text.trim());
                let whole = found.filter(|found| found[0].len() == text.trim().len());
                let whole =
                    whole.ok_or("auth: client_secret must be {\"secret\": NAME} or {{ secrets.NAME }}")?;
                whole[1].to_owned()
            }
        };
        Ok(Self {
            token_url,
            client_id: client_id.clone(),
            secret,
            scope: scope.clone(),
            audience: audience.clone(),
            in_body: *client_auth == Some(ClientAuth::Body),
        })
    }

    /// The request for a token, and the header of a client that logs in by one.
    fn request(&self, secret: &Secret) -> (String, Option<SecretString>) {
        let secret = secret.expose();
        let mut form = Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        for (name, value) in [("scope", &self.scope), ("audience", &self.audience)] {
            if let Some(value) = value {
                form.append_pair(name, value);
            }
        }
        if self.in_body {
            form.append_pair("client_id", &self.client_id).append_pair("client_secret", secret);
            return (form.finish(), None);
        }
        let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
        let pair = format!("{}:{}", encoded(&self.client_id), encoded(secret));
        (form.finish(), Some(format!("Basic {}", BASE64_STANDARD.encode(pair)).into()))
    }
}

/// A token that can be used.
#[derive(Debug)]
pub(super) struct Token {
    text: Secret,
    expires: Instant,
    /// Keeps it out of answers.
    pub(super) redaction: Redaction,
}

impl Token {
    /// The header it is sent in.
    pub(super) fn header(&self) -> Result<HeaderValue, Error> {
        let header = HeaderValue::from_str(&format!("Bearer {}", self.text.expose()));
        let mut header =
            header.map_err(|_| Error::Authorization("the token cannot stand in a header".into()))?;
        header.set_sensitive(true);
        Ok(header)
    }
}

/// A token, and whether somebody asked for it just now.
pub(super) struct Given {
    pub(super) token: Arc<Token>,
    pub(super) is_new: bool,
}

/// The place of one client's token; who asks for one holds it, and the others wait.
type Slot = Arc<Mutex<Option<Arc<Token>>>>;

/// The tokens of this process.
#[derive(Debug)]
pub(super) struct Tokens {
    slots: Cache<Login, Slot>,
}

impl Tokens {
    pub(super) fn new() -> Self {
        Self { slots: Cache::new(MAX_KEPT) }
    }

    /// The token of `login`; `spoilt` is one that a server did not take.
    pub(super) async fn get(
        &self,
        (requester, asker): (&HttpRequester, &Asker),
        (login, spoilt): (&Login, Option<&Arc<Token>>),
        timeout: Duration,
    ) -> Result<Given, Error> {
        let secret = requester.secret((&login.secret, &login.token_url), asker).await?;
        let slot = self.slots.get_with_by_ref(login, Slot::default);
        let mut kept = slot.lock().await;
        let is_good = |token: &&Arc<Token>| {
            token.expires > Instant::now() && spoilt.is_none_or(|spoilt| !Arc::ptr_eq(spoilt, token))
        };
        if let Some(token) = kept.as_ref().filter(is_good) {
            return Ok(Given { token: token.clone(), is_new: false });
        }
        *kept = None;
        let token = Arc::new(ask(requester, (login, &secret), timeout).await?);
        *kept = Some(token.clone());
        Ok(Given { token, is_new: true })
    }
}

/// What a server of tokens answers.
#[derive(Deserialize)]
struct Answered {
    access_token: String,
    #[serde(default)]
    token_type: Option<String>,
    #[serde(default)]
    expires_in: Option<f64>,
}

async fn ask(
    requester: &HttpRequester,
    (login, secret): (&Login, &Secret),
    timeout: Duration,
) -> Result<Token, Error> {
    let (form, header) = login.request(secret);
    let mut request = requester
        .client
        .post(login.token_url.clone())
        .timeout(timeout)
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header(ACCEPT, "application/json")
        .body(form);
    if let Some(header) = header {
        let mut header = HeaderValue::from_str(header.expose_secret()).expect("base64 is plain");
        header.set_sensitive(true);
        request = request.header(AUTHORIZATION, header);
    }
    let asked = Instant::now();
    let host = login.token_url.host_str().unwrap_or_default();
    let failed = |error| Error::Authorization(broken_off(error, host, timeout).to_string());
    let response = request.send().await.map_err(failed)?;
    let status = response.status();
    let body = reply::read(response, MAX_ANSWER_BYTES).await.map_err(failed)?;
    let text = match body {
        Body::Text { text, complete: true } => text,
        Body::Text { complete: false, .. } | Body::Binary { .. } => String::new(),
    };
    if !status.is_success() {
        return Err(Error::Authorization(format!("the server answered {status}{}", reason(&text))));
    }
    // The error of the parser would quote what it found.
    let answered: Answered = serde_json::from_str(&text)
        .map_err(|_| Error::Authorization("the answer of the server holds no token".into()))?;
    if answered.token_type.is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
        return Err(Error::Authorization("the token is no bearer token".into()));
    }
    let life = answered.expires_in.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let life = life.unwrap_or(DEFAULT_LIFE).min(MAX_LIFE);
    Scrubber::process().learn(&answered.access_token);
    let text = Secret::from(SecretString::from(answered.access_token));
    let redaction = Redaction::of(std::iter::once(&text));
    Ok(Token { text, expires: asked + life - MARGIN.min(life / 2), redaction })
}

/// What a server says that gives no token: `error` and `error_description` (RFC 6749, 5.2).
fn reason(text: &str) -> String {
    let json: Json = serde_json::from_str(text).unwrap_or_default();
    let part = |name: &str| json.get(name).and_then(Json::as_str).filter(|text| !text.is_empty());
    let said: Vec<&str> = [part("error"), part("error_description")].into_iter().flatten().collect();
    match said.as_slice() {
        [] => String::new(),
        said => format!(": {}", shorten(said.join(": "), MAX_REASON_CHARS)),
    }
}

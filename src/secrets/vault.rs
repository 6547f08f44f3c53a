//! Vault's KV v2 engine: `NAME` is the field `value` of the document `NAME`, `NAME.FIELD` another of its fields.
//!
//! **Invariant:** a token is renewed or replaced before its lease ends, by whoever asks first after two thirds of it.
//! **Invariant:** one at a time logs in or renews, and whoever needs a token meanwhile has what comes of it.
//! **Invariant:** no error carries a token or what a server answered.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use moka::sync::Cache;
use reqwest::{Client, Method, RequestBuilder, StatusCode, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Map as JsonMap, Value as Json, json};
use tokio::{sync::Mutex as Turn, time::Instant};
use url::Url;

use super::{MAX_VALUE_BYTES, Source, Trouble, given::read_file};
use crate::telemetry::scrub::Scrubber;

/// Longest wait for one answer: whoever waits holds up a tool call.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Longest wait for a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// Largest answer: a document of a few values of full size.
const MAX_ANSWER_BYTES: usize = 8 * MAX_VALUE_BYTES;

/// Documents kept.
const MOST_KEPT: u64 = 1_000;

/// The field of a name without a dot.
const FIELD: &str = "value";

/// Parts of a lease after which it is renewed, of [`LEASE_PARTS`].
const RENEW_AFTER: u32 = 2;
const LEASE_PARTS: u32 = 3;

/// How old a token is before a refusal is taken for its end. What a policy leaves out is refused to a new one as well, and
/// each login leaves a token that Vault keeps for its whole lease.
const YOUNG: Duration = Duration::from_mins(1);

/// How to reach Vault.
#[derive(Clone, Debug)]
pub struct Config {
    /// `VAULT_ADDR`.
    pub address: Url,
    /// `VAULT_NAMESPACE`, of Vault Enterprise.
    pub namespace: Option<String>,
    /// `VAULT_KV_MOUNT`: where the engine is mounted.
    pub mount: String,
    /// `VAULT_KV_PATH`: what stands before every name; empty for none.
    pub path: String,
    /// How to log in.
    pub login: Login,
    /// `SECRETS_CACHE_SECONDS`: how long a document is kept.
    pub keep: Duration,
}

/// How to log in.
#[derive(Clone, Debug)]
pub enum Login {
    /// `VAULT_TOKEN`: somebody else renews it.
    Token(SecretString),
    /// As the service account of the pod.
    Kubernetes {
        /// `VAULT_AUTH_MOUNT`: where the method is mounted.
        mount: String,
        /// `VAULT_AUTH_ROLE`.
        role: String,
        /// `VAULT_JWT_FILE`: the token of the service account, which Kubernetes replaces.
        jwt: PathBuf,
    },
}

/// Why Vault gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
enum VaultError {
    #[error("the client of Vault could not be made")]
    Client,
    #[error("Vault cannot be reached: {0}")]
    Unreachable(&'static str),
    #[error("Vault answered {0} to {1}")]
    Status(StatusCode, &'static str),
    #[error("Vault's answer to {0} cannot be read")]
    Unreadable(&'static str),
    #[error("the token of the service account cannot be read")]
    Jwt,
}

/// A token with the time it is good for.
#[derive(Clone)]
struct Token {
    text: SecretString,
    renewable: bool,
    /// When it was given.
    since: Instant,
    /// When it is to be renewed and when it ends; none for one without an end.
    times: Option<(Instant, Instant)>,
}

impl Token {
    fn is_good(&self) -> bool {
        self.times.is_none_or(|(_, ends)| Instant::now() < ends)
    }

    fn is_due(&self) -> bool {
        self.times.is_some_and(|(renew_at, _)| Instant::now() >= renew_at)
    }

    fn is(&self, other: &Self) -> bool {
        self.text.expose_secret() == other.text.expose_secret()
    }
}

/// What has come of logins.
#[derive(Default)]
struct Known {
    token: Option<Token>,
    /// When the newest login that failed came to its end, and why it failed.
    failed: Option<(Instant, VaultError)>,
}

/// `auth` of an answer to a login or a renewal.
#[derive(Deserialize)]
struct Auth {
    client_token: String,
    #[serde(default)]
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
}

type Document = Arc<JsonMap<String, Json>>;

/// Vault, and what it has said.
pub(super) struct Vault {
    config: Config,
    client: OnceLock<Client>,
    known: Mutex<Known>,
    /// Whoever logs in or renews holds it.
    turn: Turn<()>,
    documents: Cache<String, Document>,
}

#[async_trait]
impl Source for Vault {
    async fn read(&self, name: &str) -> Result<Option<SecretString>, Trouble> {
        let (document, field) = name.split_once('.').unwrap_or((name, FIELD));
        let Some(fields) = self.document(document).await? else { return Ok(None) };
        let text = match fields.get(field) {
            None | Some(Json::Null) => return Ok(None),
            Some(Json::String(text)) => text.clone(),
            Some(other @ (Json::Bool(_) | Json::Number(_) | Json::Array(_) | Json::Object(_))) => {
                other.to_string()
            }
        };
        if text.len() > MAX_VALUE_BYTES {
            return Err(format!("it is larger than {MAX_VALUE_BYTES} bytes").into());
        }
        Ok(Some(text.into()))
    }
}

impl Vault {
    pub(super) fn new(config: Config) -> Self {
        let documents = Cache::builder().max_capacity(MOST_KEPT).time_to_live(config.keep).build();
        Self { config, client: OnceLock::new(), known: Mutex::default(), turn: Turn::default(), documents }
    }

    /// The fields of a document; `None` when there is none, or it was deleted.
    async fn document(&self, name: &str) -> Result<Option<Document>, VaultError> {
        if let Some(kept) = self.documents.get(name) {
            return Ok(Some(kept));
        }
        let token = self.token().await?;
        let mut answer = self.fetch(name, &token).await;
        let is_refused = matches!(answer, Err(VaultError::Status(StatusCode::FORBIDDEN, _)));
        if is_refused && self.can_log_in() && token.since.elapsed() >= YOUNG {
            // Somebody may have revoked the token; a new one shows whether that was meant.
            let token = self.another(Some(&token)).await?;
            answer = self.fetch(name, &token).await;
        }
        let Some(fields) = answer? else { return Ok(None) };
        let fields = Arc::new(fields);
        self.documents.insert(name.to_owned(), fields.clone());
        Ok(Some(fields))
    }

    async fn fetch(&self, name: &str, token: &Token) -> Result<Option<JsonMap<String, Json>>, VaultError> {
        const WHAT: &str = "the question for a secret";
        let Config { mount, path, .. } = &self.config;
        let request = self.request(Method::GET, &[mount, "data", path, name])?;
        let answer = self.send(request.header("X-Vault-Token", token.text.expose_secret()), WHAT).await;
        let answer = match answer {
            Err(VaultError::Status(StatusCode::NOT_FOUND, _)) => return Ok(None),
            answer => answer?,
        };
        let fields = answer.pointer("/data/data").ok_or(VaultError::Unreadable(WHAT))?;
        // Null when the newest version was deleted.
        if fields.is_null() {
            return Ok(None);
        }
        fields.as_object().cloned().map(Some).ok_or(VaultError::Unreadable(WHAT))
    }

    /// A token that is good for a while.
    async fn token(&self) -> Result<Token, VaultError> {
        if let Login::Token(text) = &self.config.login {
            return Ok(Token { text: text.clone(), renewable: false, since: Instant::now(), times: None });
        }
        let kept = self.known().token.clone().filter(Token::is_good);
        match kept {
            None => self.another(None).await,
            Some(token) if !token.is_due() => Ok(token),
            Some(token) => match self.turn.try_lock() {
                Ok(_turn) => self.renew(token).await,
                // Somebody does, and it is still good.
                Err(_) => Ok(token),
            },
        }
    }

    /// A good token, and not `spoilt`: of one login for all who ask until it has ended, a failure too.
    async fn another(&self, spoilt: Option<&Token>) -> Result<Token, VaultError> {
        let asked = Instant::now();
        let _turn = self.turn.lock().await;
        {
            let known = self.known();
            let is_other = |token: &&Token| token.is_good() && !spoilt.is_some_and(|spoilt| token.is(spoilt));
            if let Some(token) = known.token.as_ref().filter(is_other) {
                return Ok(token.clone());
            }
            if let Some((_, error)) = known.failed.as_ref().filter(|(ended, _)| *ended >= asked) {
                return Err(error.clone());
            }
        }
        let token = self.log_in().await;
        self.known().failed = token.as_ref().err().map(|error| (Instant::now(), error.clone()));
        token
    }

    async fn renew(&self, token: Token) -> Result<Token, VaultError> {
        if token.renewable {
            let request = self.request(Method::POST, &["auth/token/renew-self"])?;
            let request = request.header("X-Vault-Token", token.text.expose_secret()).json(&json!({}));
            let answer = self.send(request, "the renewal of the token").await;
            match answer.and_then(|answer| self.keep(answer, token.since)) {
                Ok(token) => return Ok(token),
                Err(error) => tracing::warn!(%error, "the token of Vault was not renewed, logging in again"),
            }
        }
        match self.log_in().await {
            Ok(token) => Ok(token),
            Err(error) => {
                // It is still good; whoever asks next tries again.
                tracing::warn!(%error, "no new token of Vault");
                Ok(token)
            }
        }
    }

    async fn log_in(&self) -> Result<Token, VaultError> {
        let Login::Kubernetes { mount, role, jwt } = &self.config.login else { return Err(VaultError::Jwt) };
        let jwt = read_file(jwt.clone()).await.ok().flatten().ok_or(VaultError::Jwt)?;
        Scrubber::process().learn_newest("the service account's token", jwt.expose_secret());
        let request = self.request(Method::POST, &["auth", mount, "login"])?;
        let body = json!({ "role": role, "jwt": jwt.expose_secret().trim() });
        self.keep(self.send(request.json(&body), "the login").await?, Instant::now())
    }

    /// Reads and keeps the token of an answer, which Vault has given `since` then.
    fn keep(&self, mut answer: Json, since: Instant) -> Result<Token, VaultError> {
        let auth: Auth =
            serde_json::from_value(answer["auth"].take()).map_err(|_| VaultError::Unreadable("the login"))?;
        Scrubber::process().learn_newest("Vault's token", &auth.client_token);
        let lease = Duration::from_secs(auth.lease_duration);
        let times = (!lease.is_zero()).then(|| {
            let now = Instant::now();
            (now + lease * RENEW_AFTER / LEASE_PARTS, now + lease)
        });
        let token = Token { text: auth.client_token.into(), renewable: auth.renewable, since, times };
        self.known().token = Some(token.clone());
        Ok(token)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn can_log_in(&self) -> bool {
        matches!(self.config.login, Login::Kubernetes { .. })
    }

    fn request(&self, method: Method, parts: &[&str]) -> Result<RequestBuilder, VaultError> {
        let mut url = self.config.address.clone();
        {
            let mut path = url.path_segments_mut().map_err(|()| VaultError::Client)?;
            let parts = parts.iter().flat_map(|part| part.split('/')).filter(|part| !part.is_empty());
            path.pop_if_empty().push("v1").extend(parts);
        }
        let request = self.client()?.request(method, url).header("X-Vault-Request", "true");
        Ok(match &self.config.namespace {
            Some(namespace) => request.header("X-Vault-Namespace", namespace),
            None => request,
        })
    }

    fn client(&self) -> Result<&Client, VaultError> {
        if self.client.get().is_none() {
            let client = Client::builder()
                .redirect(redirect::Policy::none())
                .connect_timeout(CONNECT_LIMIT)
                .timeout(ANSWER_LIMIT)
                .build()
                .map_err(|_| VaultError::Client)?;
            // Another question may have made one meanwhile; either serves.
            let _ = self.client.set(client);
        }
        self.client.get().ok_or(VaultError::Client)
    }

    /// The answer as JSON.
    async fn send(&self, request: RequestBuilder, what: &'static str) -> Result<Json, VaultError> {
        let failed = |error: reqwest::Error| {
            VaultError::Unreachable(match () {
                () if error.is_timeout() => "it did not answer in time",
                () if error.is_connect() => "no connection",
                () => "the exchange broke off",
            })
        };
        let mut response = request.send().await.map_err(failed)?;
        if !response.status().is_success() {
            return Err(VaultError::Status(response.status(), what));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_ANSWER_BYTES {
                return Err(VaultError::Unreadable(what));
            }
        }
        serde_json::from_slice(&bytes).map_err(|_| VaultError::Unreadable(what))
    }
}

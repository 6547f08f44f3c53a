//! A server in the shape of Vault: the Kubernetes login, renewal of tokens and the KV v2 engine, with what it was asked.
#![allow(dead_code, reason = "every user of this shared file needs a different part of it")]

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, response::IntoResponse, response::Response};
use serde_json::{Value, json};

use crate::doors::{Served, serve};

/// What its tokens begin with.
pub(crate) const TOKEN_PREFIX: &str = "hvs.pl4nt-token-";

/// A running server; it ends when it is dropped.
pub(crate) struct Vault {
    pub(crate) served: Served,
    shared: Arc<Mutex<Inside>>,
}

/// What the server has and knows.
#[derive(Default)]
pub(crate) struct Inside {
    /// Documents by their paths: `mount/path`.
    pub(crate) documents: HashMap<String, Value>,
    /// The tokens of service accounts that may log in, with their roles.
    pub(crate) accounts: HashSet<(String, String)>,
    /// Tokens that are good.
    pub(crate) tokens: HashSet<String>,
    /// Seconds that tokens are said to be good for.
    pub(crate) lease_seconds: u64,
    /// Paths that no policy speaks of.
    pub(crate) forbidden: HashSet<String>,
    /// Whether it answers no question.
    pub(crate) sealed: bool,
    /// Logins that were asked for, and those that were not refused.
    pub(crate) asked: u64,
    pub(crate) logins: u64,
    pub(crate) renewals: u64,
    pub(crate) reads: u64,
}

type Shared = State<Arc<Mutex<Inside>>>;

impl Vault {
    /// A server without documents and accounts.
    pub(crate) async fn start() -> Result<Self> {
        let shared = Arc::new(Mutex::new(Inside { lease_seconds: 3_600, ..Inside::default() }));
        let router = Router::new()
            .route("/v1/auth/{mount}/login", post(log_in))
            .route("/v1/auth/token/renew-self", post(renew))
            .route("/v1/{mount}/data/{*path}", get(read))
            .with_state(shared.clone());
        Ok(Self { served: serve(router).await?, shared })
    }

    /// What it has and knows, to be looked at and changed.
    pub(crate) fn inside(&self) -> MutexGuard<'_, Inside> {
        lock(&self.shared)
    }

    /// Stores a document under `mount/path`.
    pub(crate) fn put(&self, path: &str, fields: Value) {
        self.inside().documents.insert(path.to_owned(), fields);
    }

    /// Lets whoever has the token of this service account log in to the role.
    pub(crate) fn allow(&self, role: &str, jwt: &str) {
        self.inside().accounts.insert((role.to_owned(), jwt.to_owned()));
    }
}

fn lock(shared: &Mutex<Inside>) -> MutexGuard<'_, Inside> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(status: StatusCode) -> Response {
    (status, Json(json!({ "errors": ["permission denied for hvs.pl4nt-token-1"] }))).into_response()
}

fn auth(token: &str, inside: &Inside) -> Response {
    let lease = inside.lease_seconds;
    let auth =
        json!({ "client_token": token, "lease_duration": lease, "renewable": true, "policies": ["x"] });
    Json(json!({ "auth": auth })).into_response()
}

fn token_of(headers: &HeaderMap, inside: &Inside) -> Option<String> {
    let token = headers.get("x-vault-token")?.to_str().ok()?;
    inside.tokens.contains(token).then(|| token.to_owned())
}

async fn log_in(State(shared): Shared, Path(mount): Path<String>, Json(body): Json<Value>) -> Response {
    let mut inside = lock(&shared);
    let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
    inside.asked += 1;
    let is_known = mount == "kubernetes" && inside.accounts.contains(&(text("role"), text("jwt")));
    if inside.sealed || !is_known {
        return refused(if inside.sealed { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::FORBIDDEN });
    }
    inside.logins += 1;
    let token = format!("{TOKEN_PREFIX}{}", inside.logins);
    inside.tokens.insert(token.clone());
    auth(&token, &inside)
}

async fn renew(State(shared): Shared, headers: HeaderMap) -> Response {
    let mut inside = lock(&shared);
    match token_of(&headers, &inside) {
        None => refused(StatusCode::FORBIDDEN),
        Some(token) => {
            inside.renewals += 1;
            auth(&token, &inside)
        }
    }
}

async fn read(
    State(shared): Shared,
    Path((mount, path)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let mut inside = lock(&shared);
    if inside.sealed {
        return refused(StatusCode::SERVICE_UNAVAILABLE);
    }
    let path = format!("{mount}/{path}");
    if token_of(&headers, &inside).is_none() || inside.forbidden.contains(&path) {
        return refused(StatusCode::FORBIDDEN);
    }
    inside.reads += 1;
    match inside.documents.get(&path) {
        None => (StatusCode::NOT_FOUND, Json(json!({ "errors": [] }))).into_response(),
        Some(fields) => {
            Json(json!({ "data": { "data": fields, "metadata": { "version": 1 } } })).into_response()
        }
    }
}

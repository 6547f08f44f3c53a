//! Tools of servers that speak the Model Context Protocol: programs of the operator, and servers over HTTP. Home of rmcp
//! and of sse_stream, whose types it speaks.
//!
//! **Invariant:** a program is started only by the operator's settings; a definition names it, and brings no command.
//! **Invariant:** whatever a server says is bounded, and is an answer, a list of tools or a word on progress; nothing
//! it asks of us is done.

mod answer;
mod config;
mod ear;
mod failure;
mod listing;
mod naming;
mod offer;
mod process;
mod server;
mod session;
mod wire;

pub use config::{McpConfig, McpLink, McpServer};
pub(super) use naming::Naming;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use indexmap::IndexMap;
use tokio_util::task::TaskTracker;

use super::{
    Error, SharedOffer,
    http::{HttpRequester, RequestTemplate, client},
};
use crate::{
    graph::{HeaderValue, HttpTool, McpName, ToolDefinition, ToolRuntime},
    secrets::Asker,
};
use offer::{McpOffer, Nowhere, Wanted};
use server::{Link, Server};

/// Address of a server that a definition brings along, and what else tells it apart: the headers as they are written
/// there, and in whose name their secrets are asked for.
type Address = (String, String);

/// All MCP servers of the process.
pub(super) struct Servers {
    named: IndexMap<String, Arc<Server>>,
    /// Those of definitions, for as long as a definition that is kept names them.
    addressed: Mutex<HashMap<Address, Weak<Server>>>,
    requester: Arc<HttpRequester>,
    tracker: TaskTracker,
    /// Most time that a session of a definition may take to begin.
    connect_timeout: Duration,
}

impl std::fmt::Debug for Servers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Servers").field("named", &self.named.keys()).finish_non_exhaustive()
    }
}

impl Servers {
    /// The operator's servers; none is reached or started yet.
    pub(super) fn new(config: &McpConfig, requester: &Arc<HttpRequester>) -> Result<Self, Error> {
        let tracker = TaskTracker::new();
        let client = client().build().map_err(|error| Error::Client(error.into()))?;
        let named = config.servers.iter().map(|(name, server)| {
            let link = Link::of(&server.link, &client);
            (name.clone(), Arc::new(Server::named(name, (server, link), config.connect_timeout, &tracker)))
        });
        Ok(Self {
            named: named.collect(),
            addressed: Mutex::default(),
            requester: requester.clone(),
            tracker,
            connect_timeout: config.connect_timeout,
        })
    }

    /// The tools that `name` means, as `definition` says or in the operator's words.
    pub(super) fn offer(
        &self,
        (name, definition): (&str, Option<&ToolDefinition>),
        asker: &Asker,
    ) -> Option<SharedOffer> {
        let (wanted, server) = match definition {
            Some(definition) => (Wanted::defined(definition)?, self.of_runtime(definition.mcp()?, asker)),
            None => {
                let name = McpName::parse(name)?;
                (Wanted::named(&name), self.named(name.server))
            }
        };
        Some(match server {
            Ok(server) => Arc::new(McpOffer::new(server, wanted)),
            Err(nowhere) => Arc::new(nowhere),
        })
    }

    fn of_runtime(&self, runtime: &ToolRuntime, asker: &Asker) -> Result<Arc<Server>, Nowhere> {
        match (&runtime.server, &runtime.url) {
            (Some(name), _) => self.named(name),
            (None, Some(url)) => self.at((url, &runtime.headers), asker).map_err(Nowhere::Definition),
            (None, None) => Err(Nowhere::Definition(vec!["it names no server".into()])),
        }
    }

    fn named(&self, name: &str) -> Result<Arc<Server>, Nowhere> {
        if let Some(server) = self.named.get(name) {
            return Ok(server.clone());
        }
        let known = self.named.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let known = if known.is_empty() { "none" } else { &known };
        Err(Nowhere::Server(format!("there is no MCP server '{name}'; MCP_SERVERS names {known}")))
    }

    /// The server at `url`. Definitions of one name that write the same of it share its sessions.
    fn at(
        &self,
        (url, headers): (&str, &IndexMap<String, HeaderValue>),
        asker: &Asker,
    ) -> Result<Arc<Server>, Vec<String>> {
        let request = RequestTemplate::compile(&request_to(url, headers))?;
        let address: Address = (url.to_owned(), format!("{headers:?} {asker:?}"));
        let mut addressed = self.addressed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = addressed.get(&address).and_then(Weak::upgrade) {
            return Ok(server);
        }
        addressed.retain(|_, server| server.strong_count() > 0);
        let (requester, asker) = (self.requester.clone(), asker.clone());
        let link = Link::Defined { request: Box::new(request), requester, asker };
        let server = Server::addressed(link, &self.requester, self.connect_timeout, &self.tracker);
        let server = Arc::new(server);
        addressed.insert(address, Arc::downgrade(&server));
        Ok(server)
    }

    /// Whether the operator has configured any server; who has not cannot say which names are wrong.
    pub(super) fn has_any(&self) -> bool {
        !self.named.is_empty()
    }

    /// Ends all sessions and the operator's programs.
    pub(super) async fn close(&self) {
        let addressed: Vec<_> = {
            let addressed = self.addressed.lock().unwrap_or_else(PoisonError::into_inner);
            addressed.values().filter_map(Weak::upgrade).collect()
        };
        let all = self.named.values().chain(&addressed);
        futures::future::join_all(all.map(|server| server.close())).await;
        self.tracker.close();
        // What is left are words to servers that have been told to go; nobody needs them.
        let _ = tokio::time::timeout(process::END_LIMIT, self.tracker.wait()).await;
    }
}

/// The request whose rules an address in a definition follows.
fn request_to(url: &str, headers: &IndexMap<String, HeaderValue>) -> HttpTool {
    HttpTool {
        method: Some("POST".into()),
        url: url.to_owned(),
        headers: headers.clone(),
        body: None,
        timeout_seconds: None,
        max_response_bytes: None,
        pagination: None,
        auth: None,
    }
}

/// Every mistake in what a definition says of a server at an address, as sentences.
pub(super) fn check(runtime: &ToolRuntime) -> Vec<String> {
    let Some(url) = &runtime.url else { return Vec::new() };
    let mut mistakes = RequestTemplate::compile(&request_to(url, &runtime.headers)).err().unwrap_or_default();
    for name in runtime.headers.keys().filter(|name| session::is_reserved(name)) {
        mistakes.push(format!("the header '{name}' is set by the protocol and cannot be defined"));
    }
    mistakes
}

#[cfg(test)]
mod tests;

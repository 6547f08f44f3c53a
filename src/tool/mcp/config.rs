//! The operator's word on MCP servers.

use std::time::Duration;

use indexmap::IndexMap;
use reqwest::header::{HeaderName, HeaderValue};
use secrecy::SecretString;
use url::Url;

use super::session::is_reserved;
use crate::graph::Effect;

/// MCP servers that definitions may name.
#[derive(Clone, Debug)]
pub struct McpConfig {
    /// `MCP_SERVERS`: each by its name.
    pub servers: IndexMap<String, McpServer>,
    /// `MCP_CONNECT_TIMEOUT_SECONDS`: most time until a server, started if need be, has listed its tools.
    pub connect_timeout: Duration,
}

impl Default for McpConfig {
    fn default() -> Self {
        Self { servers: IndexMap::new(), connect_timeout: Duration::from_secs(30) }
    }
}

/// One server.
#[derive(Clone, Debug)]
pub struct McpServer {
    /// How it is reached.
    pub link: McpLink,
    /// Calls at the same time; others wait.
    pub max_concurrent: usize,
    /// Most time of one call.
    pub timeout: Duration,
    /// What a repeated call of its tools would do; `None` leaves it to the server's own hints.
    pub effect: Option<Effect>,
    /// Its tools that may be used, by the server's names; empty is all.
    pub tools: Vec<String>,
}

impl McpServer {
    /// A server with the limits it has unless the operator says otherwise.
    pub fn new(link: McpLink) -> Self {
        Self { link, max_concurrent: 16, timeout: Duration::from_secs(60), effect: None, tools: Vec::new() }
    }
}

/// How a server is reached.
#[derive(Clone, Debug)]
pub enum McpLink {
    /// A program that speaks over its standard input and output.
    Process {
        /// The program, a name or a path.
        command: String,
        /// Its arguments.
        arguments: Vec<String>,
        /// Its whole environment.
        environment: IndexMap<String, SecretString>,
    },
    /// A server that speaks streamable HTTP.
    Http {
        /// Its address.
        url: Url,
        /// Headers of every request.
        headers: IndexMap<String, SecretString>,
    },
}

impl McpLink {
    /// Why a server cannot be sent this header with every request; the value is not repeated.
    pub fn check_header(name: &str, value: &str) -> Option<String> {
        if HeaderName::from_bytes(name.as_bytes()).is_err() {
            return Some(format!("has {name:?}, which is no name of a header"));
        }
        if is_reserved(name) {
            return Some(format!("has {name:?}, which the protocol sets"));
        }
        HeaderValue::from_str(value).err().map(|_| format!("has a value of {name:?} that no header can have"))
    }
}

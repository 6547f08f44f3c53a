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

/// The password of an address, as it is written and as it is meant.
fn passwords_in(value: &str) -> Vec<String> {
    let Ok(url) = Url::parse(value) else { return Vec::new() };
    let Some(written) = url.password() else { return Vec::new() };
    // The rules of forms, but before the `@` these two stand for themselves.
    let form = written.replace('+', "%2B").replace('&', "%26").replace('=', "%3D");
    let meant = url::form_urlencoded::parse(form.as_bytes()).map(|(name, _)| name.into_owned());
    std::iter::once(written.to_owned()).chain(meant).collect()
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

/// How the last word in the name of a variable or a header ends when its value is a secret. A name too many is harm
/// too: its value is taken out of the texts of all jobs.
const SECRET_ENDS: [&str; 11] = [
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "TOKEN",
    "SECRET",
    "APIKEY",
    "CREDENTIAL",
    "CREDENTIALS",
    "COOKIE",
    "AUTHORIZATION",
    "DSN",
];
/// The same, when the last word is no more than this.
const SECRET_WORDS: [&str; 9] = ["KEY", "KEYS", "TOKENS", "SECRETS", "PASS", "PAT", "CRED", "CREDS", "AUTH"];

impl McpLink {
    /// The secrets among variables or headers: values whose names say so, the last word of those, which stands behind the
    /// word for the kind of secret, and the passwords in addresses.
    pub fn secrets_among<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<String> {
        let of_pair = |(name, value): (&str, &str)| {
            let named = names_a_secret(name).then(|| [value, value.rsplit(' ').next().unwrap_or(value)]);
            let named = named.into_iter().flatten().map(str::to_owned);
            named.chain(passwords_in(value)).collect::<Vec<_>>()
        };
        pairs.flat_map(of_pair).collect()
    }

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

fn names_a_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let mut words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let Some(last) = words.next_back() else { return false };
    // `PWD` alone is the folder a program stands in.
    let is_password = last == "PWD" && words.next().is_some();
    is_password || SECRET_WORDS.contains(&last) || SECRET_ENDS.iter().any(|end| last.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_which_values_are_secrets_and_addresses_have_passwords() {
        let found = |name: &str, value: &str| McpLink::secrets_among([(name, value)].into_iter());
        for name in [
            "TOKEN",
            "DB_DSN",
            "AWS_SECRET_ACCESS_KEY",
            "GITHUB_PAT_TOKEN",
            "PGPASSWORD",
            "MYSQL_PWD",
            "Cookie",
            "X-Api-Key",
            "GOOGLE_CREDENTIALS",
        ] {
            assert_eq!(found(name, "hunter2"), ["hunter2", "hunter2"], "{name}");
        }
        assert_eq!(found("Authorization", "Bearer hunter2"), ["Bearer hunter2", "hunter2"]);
        assert_eq!(found("DATABASE_URI", "postgres://u:hunter%262@h/db"), ["hunter%262", "hunter&2"]);
        for name in ["GIT_AUTHOR_EMAIL", "KEYCLOAK_URL", "SSH_AUTH_SOCK", "TOKENIZER_PATH", "COMPASS_HOST"] {
            assert_eq!(found(name, "/some/where"), [""; 0], "{name}");
        }
        for (name, value) in
            [("PWD", "/data"), ("HOME", "/root"), ("X-Team", "data"), ("SITE", "https://u@a.org/")]
        {
            assert_eq!(found(name, value), [""; 0], "{name}");
        }
    }
}

//! The MCP servers that `MCP_SERVERS` names.

use std::collections::BTreeSet;

use indexmap::IndexMap;
use secrecy::SecretString;
use serde_json::Value as Json;

use super::{Problem, families::variable, resolve::Settings, settings::Members, value::pair};
use crate::{
    graph::{Effect, McpName},
    tool::{McpConfig, McpLink, McpServer},
};

/// The list that the families belong to.
const LIST: &str = "MCP_SERVERS";
/// What a repeated call would do, by the word for it.
const EFFECTS: [(&str, Effect); 4] = [
    ("pure", Effect::Pure),
    ("read", Effect::Read),
    ("idempotent", Effect::Idempotent),
    ("irreversible", Effect::Irreversible),
];

/// All of them. What is wrong with one is added to `problems`.
pub(super) fn servers(settings: &Settings, problems: &mut Vec<Problem>) -> McpConfig {
    let (mut servers, mut met) = (IndexMap::new(), BTreeSet::new());
    for name in settings.list(LIST) {
        if !McpName::is_server(&name) {
            let message =
                format!("has {name:?}, which is no name: letters and digits, with single - and _ between");
            problems.push(Problem::new(LIST, message));
        } else if !met.insert(variable(LIST, "_URL", &name)) {
            problems.push(Problem::new(
                LIST,
                format!("has two names that are one in variables, {name:?} and another"),
            ));
        } else if let Some(server) = (Reader { settings, of: settings.of(LIST, &name), problems }).server() {
            servers.insert(name, server);
        }
    }
    McpConfig { servers, connect_timeout: settings.span("MCP_CONNECT_TIMEOUT_SECONDS") }
}

struct Reader<'a> {
    settings: &'a Settings,
    of: Members<'a>,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn wrong(&mut self, suffix: &str, message: impl Into<String>) {
        self.problems.push(Problem::new(&self.of.variable(suffix), message));
    }

    fn server(&mut self) -> Option<McpServer> {
        let link = match (self.of.text("_COMMAND"), self.of.text("_URL")) {
            (Some(command), None) => self.process(command)?,
            (None, Some(_)) => self.address()?,
            (Some(_), Some(_)) => {
                self.wrong("_COMMAND", "is set together with the address of the server; set one of them");
                return None;
            }
            (None, None) => {
                self.wrong(
                    "_COMMAND",
                    format!("is not set, nor is the server's address, but {LIST} names it"),
                );
                return None;
            }
        };
        let mut server = McpServer::new(link);
        let number = self.of.count("_MAX_CONCURRENCY").and_then(|number| usize::try_from(number).ok());
        server.max_concurrent = number.unwrap_or(server.max_concurrent);
        server.timeout = self.of.span("_TIMEOUT_SECONDS").unwrap_or(server.timeout);
        server.effect = self.of.choice("_EFFECT", &EFFECTS);
        server.tools = self.of.list("_TOOLS");
        Some(server)
    }

    fn process(&mut self, command: String) -> Option<McpLink> {
        if self.of.text("_HEADERS").is_some() {
            self.wrong("_HEADERS", "goes with an address, and this server is a program");
        }
        let arguments = match self.of.text("_ARGS") {
            Some(text) => arguments(&text).or_else(|| {
                self.wrong("_ARGS", "must be words with spaces between them, or a JSON list of texts");
                None
            })?,
            None => Vec::new(),
        };
        let mut environment = self.settings.basics.clone();
        environment.extend(self.pairs("_ENV")?);
        let secret = |(name, value): (String, String)| (name, SecretString::from(value));
        Some(McpLink::Process {
            command,
            arguments,
            environment: environment.into_iter().map(secret).collect(),
        })
    }

    fn address(&mut self) -> Option<McpLink> {
        for suffix in ["_ARGS", "_ENV"] {
            if self.of.text(suffix).is_some() {
                self.wrong(suffix, "goes with a program, and this server has an address");
            }
        }
        let url = self.of.address("_URL")?;
        let mut headers = IndexMap::new();
        for (name, value) in self.pairs("_HEADERS")? {
            if let Some(message) = McpLink::check_header(&name, &value) {
                self.wrong("_HEADERS", message);
                continue;
            }
            headers.insert(name, value.into());
        }
        Some(McpLink::Http { url, headers })
    }

    /// `name=value,…`, or a JSON object of texts; `None` when it is neither.
    fn pairs(&mut self, suffix: &str) -> Option<Vec<(String, String)>> {
        let Some(text) = self.of.text(suffix) else { return Some(Vec::new()) };
        let read = pairs(text.trim());
        if read.is_none() {
            self.wrong(
                suffix,
                "must be name=value pairs with commas between them, or a JSON object of texts",
            );
        }
        read
    }
}

fn arguments(text: &str) -> Option<Vec<String>> {
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text).ok();
    }
    Some(text.split_whitespace().map(str::to_owned).collect())
}

/// The secret values among the pairs of an environment, or of headers.
pub(super) fn secrets(text: &str) -> Vec<String> {
    let all = pairs(text.trim()).unwrap_or_default();
    McpLink::secrets_among(all.iter().map(|(name, value)| (name.as_str(), value.as_str())))
}

fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    if text.starts_with('{') {
        let Ok(Json::Object(map)) = serde_json::from_str(text) else { return None };
        return map.into_iter().map(|(name, value)| Some((name, value.as_str()?.to_owned()))).collect();
    }
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use expect_test::expect;
    use secrecy::ExposeSecret;

    use super::*;
    use crate::config::{Config, Sources};

    fn environment(pairs: &[(&str, &str)]) -> Sources {
        let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Sources { environment: pairs.collect::<HashMap<_, _>>(), ..Sources::default() }
    }

    #[test]
    fn mcp_servers_are_programs_or_addresses() {
        let mut sources = environment(&[
            ("MCP_SERVERS", "files, my-docs"),
            ("MCP_SERVER_FILES_COMMAND", "node"),
            ("MCP_SERVER_FILES_ARGS", r#"["/opt/my files.js", "/data"]"#),
            ("MCP_SERVER_FILES_ENV", "TOKEN=hunter2,A=b=c"),
            ("MCP_SERVER_FILES_EFFECT", "Idempotent"),
            ("MCP_SERVER_FILES_MAX_CONCURRENCY", "3"),
            ("MCP_SERVER_FILES_TIMEOUT_SECONDS", "1.5"),
            ("MCP_SERVER_FILES_TOOLS", "read, list"),
            ("MCP_SERVER_MY_DOCS_URL", "https://docs.example.com/mcp"),
            ("MCP_SERVER_MY_DOCS_HEADERS", r#"{"authorization": "Bearer a,b"}"#),
        ]);
        sources.environment.insert("PATH".into(), "/usr/bin".into());
        sources.environment.insert("OPENAI_API_KEY".into(), "sk-1".into());
        let config = Config::load(&sources).expect("the settings are good");
        let servers = &config.tools.mcp.servers;
        let (files, docs) = (&servers["files"], &servers["my-docs"]);
        let McpLink::Process { command, arguments, environment } = &files.link else { panic!("a program") };
        assert_eq!(
            (command.as_str(), arguments.as_slice()),
            ("node", &["/opt/my files.js".into(), "/data".into()][..])
        );
        let pairs: Vec<_> =
            environment.iter().map(|(name, value)| format!("{name}={}", value.expose_secret())).collect();
        assert_eq!(pairs, ["PATH=/usr/bin", "TOKEN=hunter2", "A=b=c"], "nothing of ours goes along");
        assert_eq!((files.effect, files.max_concurrent), (Some(Effect::Idempotent), 3));
        assert_eq!((files.timeout.as_millis(), files.tools.len()), (1_500, 2));
        let McpLink::Http { url, headers } = &docs.link else { panic!("an address") };
        assert_eq!(url.as_str(), "https://docs.example.com/mcp");
        assert_eq!(headers["authorization"].expose_secret(), "Bearer a,b");
        assert!(!config.rendered().contains("hunter2") && !config.rendered().contains("Bearer a"));
    }

    #[test]
    fn what_is_wrong_with_an_mcp_server_is_said() {
        let text = Config::load(&environment(&[
            ("MCP_SERVERS", "a,b,c,d,e-f,e_f,g__h"),
            ("MCP_SERVER_A_COMMAND", "x"),
            ("MCP_SERVER_A_URL", "http://x"),
            ("MCP_SERVER_C_COMMAND", "x"),
            ("MCP_SERVER_C_ARGS", "[1]"),
            ("MCP_SERVER_D_URL", "http://x"),
            ("MCP_SERVER_D_ENV", "A=b"),
            ("MCP_SERVER_D_HEADERS", "Accept=x,y"),
            ("MCP_SERVER_E_F_URL", "http://x"),
            ("MCP_SERVER_E_F_HEADERS", "accept=x"),
        ]));
        let text = text.expect_err("the settings are bad").to_string();
        expect![[r#"
            8 settings cannot be used
              MCP_SERVER_A_COMMAND is set together with the address of the server; set one of them
              MCP_SERVER_B_COMMAND is not set, nor is the server's address, but MCP_SERVERS names it
              MCP_SERVER_C_ARGS must be words with spaces between them, or a JSON list of texts
              MCP_SERVER_D_ENV goes with a program, and this server has an address
              MCP_SERVER_D_HEADERS must be name=value pairs with commas between them, or a JSON object of texts
              MCP_SERVER_E_F_HEADERS has "accept", which the protocol sets
              MCP_SERVERS has two names that are one in variables, "e_f" and another
              MCP_SERVERS has "g__h", which is no name: letters and digits, with single - and _ between"#]]
        .assert_eq(&text);
    }
}

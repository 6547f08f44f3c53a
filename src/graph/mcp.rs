//! How definitions name the tools of MCP servers, and what is wrong with a definition of such a tool.

use super::definition::{RuntimeKind, ToolDefinition, ToolRuntime};

/// What the name of a tool of an operator's server begins with.
const SCHEME: &str = "mcp:";

/// Longest name of a server; with it in front, most names of tools still fit the 64 characters that models take.
const MAX_SERVER_CHARS: usize = 32;

/// Longest name of a server's tool, as the protocol recommends.
const MAX_TOOL_CHARS: usize = 128;

/// Tools of one of the operator's servers as agents name them: `mcp:server` is all of them, `mcp:server/tool` one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct McpName<'a> {
    /// The server.
    pub server: &'a str,
    /// The tool, as the server calls it; `None` is all.
    pub tool: Option<&'a str>,
}

impl<'a> McpName<'a> {
    /// Reads a name; `None` when it is none of an MCP server.
    pub fn parse(name: &'a str) -> Option<Self> {
        let rest = name.strip_prefix(SCHEME)?;
        let (server, tool) = match rest.split_once('/') {
            Some((server, tool)) => (server, Some(tool)),
            None => (rest, None),
        };
        let is_tool = tool.is_none_or(|tool| (1..=MAX_TOOL_CHARS).contains(&tool.chars().count()));
        (Self::is_server(server) && is_tool).then_some(Self { server, tool })
    }

    /// Whether a server may be called so: letters and digits, with single `-` and `_` between them. A prefix of such a
    /// name and `__` is the prefix of no other.
    pub fn is_server(name: &str) -> bool {
        let is_word = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric());
        name.len() <= MAX_SERVER_CHARS && name.split(['-', '_']).all(is_word)
    }

    /// Whether this names `other`, or all tools of its server.
    pub(super) fn covers(&self, other: &McpName<'_>) -> bool {
        self.server == other.server && (self.tool.is_none() || self.tool == other.tool)
    }
}

impl ToolDefinition {
    /// What it says of an MCP server, if it is a tool of one.
    pub fn mcp(&self) -> Option<&ToolRuntime> {
        self.runtime.as_ref().filter(|runtime| runtime.kind == RuntimeKind::Mcp)
    }

    /// Whether it stands for several tools of an MCP server.
    pub fn is_set(&self) -> bool {
        self.mcp().is_some_and(|runtime| runtime.tool.is_none())
    }
}

/// What is wrong with the runtime of `definition`, each with the pointer of its place within the runtime.
pub(super) fn mistakes(definition: &ToolDefinition, runtime: &ToolRuntime) -> Vec<(&'static str, String)> {
    let of_script = [
        ("/script", !runtime.script.is_empty()),
        ("/language", runtime.language.is_some()),
        ("/dependencies", !runtime.dependencies.is_empty()),
    ];
    let of_mcp = [
        ("/server", runtime.server.is_some()),
        ("/url", runtime.url.is_some()),
        ("/headers", !runtime.headers.is_empty()),
        ("/tool", runtime.tool.is_some()),
        ("/tools", !runtime.tools.is_empty()),
    ];
    let foreign = |fields: &[(&'static str, bool)], of: &str| {
        let given = fields.iter().filter(|(_, is_given)| *is_given);
        given.map(|(place, _)| (*place, format!("is a field of a {of}"))).collect::<Vec<_>>()
    };
    match runtime.kind {
        RuntimeKind::Script => {
            let mut wrong = foreign(&of_mcp, "runtime of the type `mcp`");
            if runtime.script.is_empty() {
                wrong.push(("", "needs the field `script`, its source text".to_owned()));
            }
            wrong
        }
        RuntimeKind::Mcp => {
            let mut wrong = foreign(&of_script, "script; this runtime is of the type `mcp`");
            wrong.extend(mistakes_of_mcp(definition, runtime));
            wrong
        }
    }
}

fn mistakes_of_mcp(definition: &ToolDefinition, runtime: &ToolRuntime) -> Vec<(&'static str, String)> {
    let mut wrong = Vec::new();
    match (&runtime.server, &runtime.url) {
        (Some(_), Some(_)) => wrong.push(("", "has `server` or `url`, not both".to_owned())),
        (None, None) => {
            wrong.push(("", "needs `server`, the name of one of the operator's, or `url`".to_owned()));
        }
        (Some(server), None) if !McpName::is_server(server) => {
            wrong.push(("/server", format!("`{server}` cannot be the name of a server")));
        }
        (Some(_), None) if !runtime.headers.is_empty() => {
            wrong.push((
                "/headers",
                "only go with `url`; the operator sets those of a named server".to_owned(),
            ));
        }
        (Some(_), None) | (None, Some(_)) => {}
    }
    if runtime.tool.is_some() && !runtime.tools.is_empty() {
        wrong.push(("/tools", "only go without `tool`".to_owned()));
    }
    let named = runtime.tool.iter().chain(&runtime.tools);
    if named.into_iter().any(|name| !(1..=MAX_TOOL_CHARS).contains(&name.chars().count())) {
        wrong.push(("", format!("the name of a tool has 1 to {MAX_TOOL_CHARS} characters")));
    }
    if definition.is_set() && !McpName::is_server(&definition.name) {
        let message = format!(
            "without `tool` the definition's name is the prefix of the tools' names: at most {MAX_SERVER_CHARS} \
             letters and digits, with single - and _ between them"
        );
        wrong.push(("", message));
    }
    if definition.is_set() && definition.parameters.is_some() {
        wrong.push(("", "without `tool` it is the server that says the `parameters`".to_owned()));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::{Value as Json, json};

    use super::*;

    #[test]
    fn names_are_those_of_a_server_or_of_one_of_its_tools() {
        let parse = McpName::parse;
        assert_eq!(parse("mcp:files"), Some(McpName { server: "files", tool: None }));
        let one = McpName { server: "my-files_2", tool: Some("read/text.v2") };
        assert_eq!(parse("mcp:my-files_2/read/text.v2"), Some(one));
        for none in ["files", "mcp:", "mcp:a/", "mcp:a__b", "mcp:_a", "mcp:a b", "mcp:a.b/c", "MCP:a"] {
            assert_eq!(parse(none), None, "{none}");
        }
        let long = format!("mcp:{}", "a".repeat(MAX_SERVER_CHARS + 1));
        assert_eq!(parse(&long), None);
        let name = |name| parse(name).expect("a name");
        assert!(name("mcp:a").covers(&name("mcp:a/x")) && name("mcp:a/x").covers(&name("mcp:a/x")));
        assert!(!name("mcp:a/x").covers(&name("mcp:a")) && !name("mcp:a").covers(&name("mcp:b/x")));
    }

    #[test]
    fn a_runtime_has_the_fields_of_its_type_only() {
        let said = |name: &str, runtime: Json| {
            let definition = json!({"name": name, "runtime": runtime});
            let definition: ToolDefinition = serde_json::from_value(definition).expect("a definition");
            let runtime = definition.runtime.as_ref().expect("it has one");
            let said = mistakes(&definition, runtime);
            said.into_iter().map(|(place, message)| format!("{place} {message}\n")).collect::<String>()
        };
        assert_eq!(said("t", json!({"script": "x"})), "");
        assert_eq!(said("t", json!({"type": "mcp", "server": "a", "tool": "x y"})), "");
        assert_eq!(said("t", json!({"type": "mcp", "url": "https://a.org/", "headers": {"x": "y"}})), "");
        expect![[r#"
            /server is a field of a runtime of the type `mcp`
            /tools is a field of a runtime of the type `mcp`
            /script is a field of a script; this runtime is of the type `mcp`
             needs `server`, the name of one of the operator's, or `url`
             has `server` or `url`, not both
            /headers only go with `url`; the operator sets those of a named server
            /tools only go without `tool`
            /server `a__b` cannot be the name of a server
             without `tool` the definition's name is the prefix of the tools' names: at most 32 letters and digits, with single - and _ between them
        "#]]
        .assert_eq(&[
            said("t", json!({"script": "x", "server": "a", "tools": ["x"]})),
            said("t", json!({"type": "mcp", "script": "x"})),
            said("t", json!({"type": "mcp", "server": "a", "url": "https://a.org/"})),
            said("t", json!({"type": "mcp", "server": "a", "headers": {"x": "y"}, "tool": "b", "tools": ["c"]})),
            said("a__b", json!({"type": "mcp", "server": "a__b"})),
        ].concat());
    }
}

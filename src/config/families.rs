//! The settings of which there is one for each name in a list, beside the table of all others.

use super::{
    table::{HTTP, LIMIT, WAIT},
    value::Kind,
};

/// Settings of which there is one per name in a list.
#[derive(Debug)]
pub(super) struct Family {
    /// The setting that lists the names.
    pub(super) list: &'static str,
    /// What stands before the name, in upper case.
    pub(super) prefix: &'static str,
    /// What stands behind it.
    pub(super) suffix: &'static str,
    /// What a value may be.
    pub(super) kind: Kind,
    /// What it is for, in one line.
    pub(super) doc: &'static str,
    /// Whether its value is masked, and `…_FILE` may name a file that holds it.
    pub(super) secret: bool,
    /// Whether a listed name must have it.
    pub(super) required: bool,
}

impl Family {
    /// The variable for `name`.
    pub(super) fn variable(&self, name: &str) -> String {
        let name = name.to_ascii_uppercase().replace(['-', '.'], "_");
        format!("{}{name}{}", self.prefix, self.suffix)
    }

    const fn secret(self) -> Self {
        Self { secret: true, ..self }
    }

    const fn required(self) -> Self {
        Self { required: true, ..self }
    }
}

/// One whose variables are the prefix and the name.
const fn member(list: &'static str, prefix: &'static str, kind: Kind, doc: &'static str) -> Family {
    Family { list, prefix, suffix: "", kind, doc, secret: false, required: false }
}

const fn of_provider(suffix: &'static str, kind: Kind, doc: &'static str) -> Family {
    Family { suffix, ..member("MODEL_PROVIDERS", "MODEL_PROVIDER_", kind, doc) }
}

const fn of_mcp_server(suffix: &'static str, kind: Kind, doc: &'static str) -> Family {
    Family { suffix, ..member("MCP_SERVERS", "MCP_SERVER_", kind, doc) }
}

/// Every family of settings.
pub(super) static FAMILIES: &[Family] = &[
    of_provider(
        "_BASE_URL",
        HTTP,
        "Address of that provider, without `/chat/completions`, `/responses` or `/v1/messages`",
    )
    .required(),
    of_provider("_API_KEY", Kind::Text, "Key for that provider; none sends no authorization").secret(),
    of_provider(
        "_API",
        Kind::Word(&["chat_completions", "responses", "anthropic"]),
        "What that provider speaks; `chat_completions` unless given",
    ),
    of_provider(
        "_AUTH",
        Kind::Word(&["bearer", "api-key", "x-api-key"]),
        "Header of its key: `Authorization: Bearer …`, `api-key` or `x-api-key`; as its dialect has it unless given",
    ),
    of_provider(
        "_QUERY",
        Kind::List,
        "Added to the address of every request: `name=value,…`, as Azure wants `api-version=…`",
    ),
    of_provider(
        "_QUIRKS",
        Kind::List,
        "How it differs: `max_completion_tokens`, `no_stream_options`, `no_response_format`, `strict_tools`",
    ),
    of_provider(
        "_RPM",
        LIMIT,
        "Calls of that provider in a minute, by all processes together; no limit unless given",
    ),
    of_provider("_TPM", LIMIT, "Tokens of that provider in a minute, the same way"),
    of_provider("_MAX_CONCURRENT", LIMIT, "Calls of that provider at once, the same way"),
    of_mcp_server(
        "_COMMAND",
        Kind::Text,
        "Program that is that server; it speaks over its standard input and output",
    ),
    of_mcp_server(
        "_ARGS",
        Kind::Text,
        "Arguments of that program: words with spaces between them, or a JSON list",
    ),
    of_mcp_server(
        "_ENV",
        Kind::Text,
        "Its environment beside `PATH`, `HOME` and the like: `name=value,…`, or a JSON object",
    )
    .secret(),
    of_mcp_server("_URL", HTTP, "Address of that server, when it speaks streamable HTTP"),
    of_mcp_server(
        "_HEADERS",
        Kind::Text,
        "Headers of every request to that address: `name=value,…`, or a JSON object",
    )
    .secret(),
    of_mcp_server(
        "_MAX_CONCURRENCY",
        Kind::Count(1, 10_000),
        "Calls of its tools at once in one process, 16 unless given; others wait",
    ),
    of_mcp_server("_TIMEOUT_SECONDS", WAIT, "Most time for one call of its tools, 60 unless given"),
    of_mcp_server(
        "_EFFECT",
        Kind::Word(&["pure", "read", "idempotent", "irreversible"]),
        "What a repeated call of its tools would do; the server's own hints count unless given",
    ),
    of_mcp_server("_TOOLS", Kind::List, "Its tools that agents may use; all unless given"),
    member(
        "HTTP_TOOL_SECRETS",
        "HTTP_TOOL_SECRET_",
        Kind::Text,
        "Value of that secret, for headers of HTTP tools",
    )
    .secret()
    .required(),
    member(
        "SECRETS_NAMED",
        "SECRET_",
        Kind::Text,
        "Value of that secret, for definitions that `SECRETS_ALLOWED` names",
    )
    .secret()
    .required(),
];

/// The variable of a family for one name.
pub(super) fn variable(list: &str, suffix: &str, name: &str) -> String {
    let family = FAMILIES.iter().find(|family| family.list == list && family.suffix == suffix);
    family.expect("only families of the list are asked for").variable(name)
}

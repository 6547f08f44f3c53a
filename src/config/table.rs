//! The table of all settings: the one list that parsing, `config` and the README are made from.

use super::value::Kind;

/// A setting.
#[derive(Debug)]
pub(super) struct Setting {
    /// Its name in the environment; in a file the same in lower case.
    pub(super) name: &'static str,
    /// Other spellings; the name wins over them.
    pub(super) aliases: &'static [&'static str],
    /// What it may be.
    pub(super) kind: Kind,
    /// Its value when nobody sets it.
    pub(super) default: Option<&'static str>,
    /// What it is for, in one line.
    pub(super) doc: &'static str,
    /// Whether its value is masked, and `<name>_FILE` may name a file that holds it.
    pub(super) secret: bool,
}

impl Setting {
    /// All names it goes by.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.name).chain(self.aliases.iter().copied())
    }

    const fn aka(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }

    const fn secret(self) -> Self {
        Self { secret: true, ..self }
    }
}

const fn setting(name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Setting {
    Setting { name, aliases: &[], kind, default: Some(default), doc, secret: false }
}

const fn optional(name: &'static str, kind: Kind, doc: &'static str) -> Setting {
    Setting { name, aliases: &[], kind, default: None, doc, secret: false }
}

pub(super) const HTTP: Kind = Kind::Address(&["http", "https"]);
const NATS: Kind = Kind::Addresses(&["nats", "tls"]);
const POSTGRES: Kind = Kind::Address(&["postgres", "postgresql"]);
const REDIS: Kind = Kind::Address(&["redis", "rediss"]);
const PORT: Kind = Kind::Count(1, 65_535);
/// From a moment to a day: longer waits are mistakes in the unit.
pub(super) const WAIT: Kind = Kind::Seconds(0.1, 86_400.0);
/// Up to 64 MiB; what has to fit into memory a hundred times over must not be larger.
const BYTES: Kind = Kind::Count(1, 64 << 20);
/// Any number that is still a number of things in one process.
const NUMBER: Kind = Kind::Count(1, 1_000_000);
/// Of calls or tokens; 0 for none. The largest providers allow hundreds of millions of tokens in a minute.
pub(super) const LIMIT: Kind = Kind::Count(0, 10_000_000_000);
/// Up to ten years.
const DAYS: Kind = Kind::Count(0, 3_650);

/// Every setting, in the order people meet them.
pub(super) static TABLE: &[Setting] = &[
    // Queue
    setting("NATS_URL", NATS, "nats://localhost:4222", "Addresses of the NATS servers, commas between")
        .secret(),
    optional("NATS_CREDS_FILE", Kind::Path, "Credentials file for NATS"),
    setting("NATS_EXECUTION_STREAM", Kind::Name, "AGENT_EXECUTION", "Stream of execution requests"),
    setting(
        "NATS_EXECUTION_SUBJECTS",
        Kind::Text,
        "agent.execute.>",
        "Subjects of that stream when it is created",
    ),
    setting(
        "NATS_SUBMIT_SUBJECT",
        Kind::Text,
        "agent.execute.request",
        "Subject of requests from `POST /` and `submit`",
    ),
    setting("NATS_CONSUMER", Kind::Name, "agent-executor-workers", "Durable pull consumer of that stream"),
    setting("NATS_RESULTS_STREAM", Kind::Name, "AGENT_RESULTS", "Stream of results"),
    setting("NATS_DLQ_STREAM", Kind::Name, "AGENT_DLQ", "Stream of dead letters"),
    setting(
        "NATS_ADVISORIES_STREAM",
        Kind::Name,
        "AGENT_ADVISORIES",
        "Stream of what NATS says about messages it gave up",
    ),
    setting("NATS_PROVISION", Kind::Flag, "true", "Create missing streams and the consumer at start"),
    setting("NATS_STREAM_REPLICAS", Kind::Count(1, 5), "1", "Copies of each message in created streams"),
    setting(
        "NATS_ACK_WAIT_SECONDS",
        Kind::Seconds(3.0, 3_600.0),
        "30",
        "Silence after which NATS delivers a message again",
    ),
    setting("CLOUDEVENT_TYPE_PREFIX", Kind::Text, "dev.my-platform", "Start of every CloudEvent type"),
    optional("K_SINK", HTTP, "Address results are also posted to").secret(),
    optional(
        "PUBLIC_URL",
        HTTP,
        "Address of this service for readers of large results, base of `dataref`; else the pod's name",
    ),
    // Store
    optional("DATABASE_URL", POSTGRES, "Address of the Postgres database; wins over the POSTGRES_ parts")
        .secret(),
    setting("POSTGRES_HOST", Kind::Text, "localhost", "Host of Postgres").aka(&["PG_HOST"]),
    setting("POSTGRES_PORT", PORT, "5432", "Port of Postgres").aka(&["PG_PORT"]),
    setting("POSTGRES_USER", Kind::Text, "postgres", "User of Postgres").aka(&["PG_USER"]),
    optional("POSTGRES_PASSWORD", Kind::Text, "Password of that user").aka(&["PG_PASSWORD"]).secret(),
    setting("POSTGRES_DB", Kind::Text, "postgres", "Database").aka(&["PG_DATABASE", "PG_DB"]),
    optional(
        "POSTGRES_SCHEMA",
        Kind::Name,
        "Schema of all tables; none means the user's own, usually `public`",
    )
    .aka(&["PG_SCHEMA"]),
    setting(
        "POSTGRES_MAX_CONNECTIONS",
        Kind::Count(1, 1_000),
        "10",
        "Connections for everything but commits",
    ),
    setting("POSTGRES_COMMIT_CONNECTIONS", Kind::Count(1, 64), "2", "Connections for commits"),
    setting("POSTGRES_STATEMENT_TIMEOUT_SECONDS", WAIT, "15", "Time for one statement"),
    setting(
        "POSTGRES_PREPARED",
        Kind::Flag,
        "true",
        "Keep statements prepared; `false` behind a transaction pooler",
    ),
    setting("MAX_CRASHES", Kind::Count(1, 100), "5", "Owners a job may take down before it is given up"),
    setting(
        "LEASE_SECONDS",
        Kind::Seconds(1.0, 3_600.0),
        "5",
        "Silence of an owner after which its threads may be taken over",
    ),
    // Stream
    optional("DRAGONFLY_URL", REDIS, "Address of the Redis-protocol server; wins over the parts")
        .aka(&["REDIS_URL"])
        .secret(),
    setting("DRAGONFLY_HOST", Kind::Text, "localhost", "Host of that server").aka(&["REDIS_HOST"]),
    setting("DRAGONFLY_PORT", PORT, "6379", "Port of that server").aka(&["REDIS_PORT"]),
    optional("DRAGONFLY_PASSWORD", Kind::Text, "Password of that server").aka(&["REDIS_PASSWORD"]).secret(),
    setting("STREAM_MAXLEN", NUMBER, "10000", "Events kept per thread, about"),
    setting(
        "STREAM_TTL_SECONDS",
        Kind::Seconds(1.0, 31_536_000.0),
        "3600",
        "Life of a stream after its last event",
    ),
    setting("STREAM_CUMULATIVE_TEXT", Kind::Flag, "true", "Send the text so far with each piece"),
    setting(
        "STREAM_WINDOW_MS",
        Kind::Millis(0, 10_000),
        "40",
        "Least time between two pieces of one message",
    ),
    // Models
    optional("OPENAI_API_KEY", Kind::Text, "Key for OpenAI").secret(),
    setting("OPENAI_BASE_URL", HTTP, "https://api.openai.com/v1", "Address of OpenAI or a compatible server"),
    optional("ANTHROPIC_API_KEY", Kind::Text, "Key for Anthropic").secret(),
    setting(
        "ANTHROPIC_BASE_URL",
        HTTP,
        "https://api.anthropic.com",
        "Address of Anthropic or a compatible server",
    ),
    setting(
        "OPENAI_RPM",
        LIMIT,
        "0",
        "Calls of OpenAI in a minute, by all processes together; 0 for no limit",
    ),
    setting("OPENAI_TPM", LIMIT, "0", "Tokens of OpenAI in a minute, the same way"),
    setting("OPENAI_MAX_CONCURRENT", LIMIT, "0", "Calls of OpenAI at once, the same way"),
    setting(
        "ANTHROPIC_RPM",
        LIMIT,
        "0",
        "Calls of Anthropic in a minute, by all processes together; 0 for no limit",
    ),
    setting("ANTHROPIC_TPM", LIMIT, "0", "Tokens of Anthropic in a minute, the same way"),
    setting("ANTHROPIC_MAX_CONCURRENT", LIMIT, "0", "Calls of Anthropic at once, the same way"),
    setting("MODEL_PROVIDERS", Kind::List, "", "Further providers, by name; see the families below"),
    setting("MODEL_ALLOWED_HOSTS", Kind::List, "", "Hosts a definition may name as `base_url`"),
    optional("SCRIPTED_MODELS_DIR", Kind::Path, "Folder with the replies of scripted models"),
    setting("MODEL_CONNECT_TIMEOUT_SECONDS", WAIT, "5", "Time to connect to a model's server"),
    setting("MODEL_FIRST_BYTE_TIMEOUT_SECONDS", WAIT, "60", "Time from then to the first piece of an answer"),
    setting("MODEL_IDLE_TIMEOUT_SECONDS", WAIT, "30", "Time from one piece of an answer to the next"),
    setting("MODEL_CALL_TIMEOUT_SECONDS", WAIT, "600", "Time for a whole answer"),
    setting("MODEL_MAX_CONCURRENT", NUMBER, "512", "Model calls at once in one process; others wait"),
    setting(
        "MODEL_LIMIT_PARTS",
        NUMBER,
        "1",
        "Processes that limits of providers are divided among until the Redis-protocol server says how many there are",
    ),
    optional(
        "MODEL_PRICES_FILE",
        Kind::Path,
        "Prices of models, TOML; its entries come before the shipped ones",
    ),
    setting("MODEL_CACHE", Kind::Flag, "true", "Keep answers of models whose definition says `cache`"),
    setting("MODEL_CACHE_NAMESPACE", Kind::Name, "default", "Whose answers are kept together"),
    setting("MODEL_CACHE_MAX_BYTES", BYTES, "262144", "Largest kept answer, compressed"),
    setting(
        "MODEL_CACHE_MAX_TTL_SECONDS",
        Kind::Seconds(1.0, 31_536_000.0),
        "86400",
        "Longest time an answer is kept, whatever a definition says",
    ),
    setting(
        "MODEL_BREAKER_FAILURES",
        Kind::Count(0, 1_000_000),
        "10",
        "Failures of a provider within 30 s, half of its calls or more, after which it is not asked; 0 for never",
    ),
    setting("MODEL_BREAKER_SECONDS", WAIT, "30", "Time until one call finds out whether it answers again"),
    // Tools
    setting("HTTP_TOOL_ALLOWED_HOSTS", Kind::List, "", "Hosts HTTP tools may call; `*` for all"),
    setting("HTTP_TOOL_ALLOW_PRIVATE", Kind::Flag, "false", "Let HTTP tools call private addresses"),
    setting("HTTP_TOOL_TIMEOUT_SECONDS", WAIT, "60", "Most time for one request of an HTTP tool"),
    setting("HTTP_TOOL_MAX_RESPONSE_BYTES", BYTES, "1048576", "Most bytes read of an answer to an HTTP tool"),
    setting("HTTP_TOOL_SECRETS", Kind::List, "", "Names of secrets for HTTP tools; see the families below"),
    // Secrets of definitions
    setting("SECRETS_NAMED", Kind::List, "", "Names of secrets for definitions; see the families below"),
    optional("SECRETS_DIR", Kind::Path, "Folder with a file per secret, as Kubernetes mounts one"),
    setting(
        "SECRETS_ALLOWED",
        Kind::List,
        "",
        "Which definitions may name which secret: `DEFINITION=SECRET`, `stored:DEFINITION=SECRET+SECRET`; `*` in both",
    ),
    setting(
        "SECRETS_CACHE_SECONDS",
        Kind::Seconds(0.0, 86_400.0),
        "60",
        "How long what Vault has said is kept",
    ),
    optional("VAULT_ADDR", HTTP, "Address of Vault, for secrets of its KV v2 engine"),
    optional("VAULT_NAMESPACE", Kind::Text, "Namespace of Vault Enterprise"),
    setting("VAULT_KV_MOUNT", Kind::Text, "secret", "Where that engine is mounted"),
    optional("VAULT_KV_PATH", Kind::Text, "What stands before every name in it"),
    optional("VAULT_AUTH_ROLE", Kind::Text, "Role to log in to Vault with, as the pod's service account"),
    setting("VAULT_AUTH_MOUNT", Kind::Text, "kubernetes", "Where the Kubernetes auth method is mounted"),
    setting(
        "VAULT_JWT_FILE",
        Kind::Path,
        "/var/run/secrets/kubernetes.io/serviceaccount/token",
        "Token of the service account",
    ),
    optional("VAULT_TOKEN", Kind::Text, "Token of Vault instead, which somebody else renews").secret(),
    setting(
        "NATS_TOOL_SUBJECTS",
        Kind::List,
        "",
        "Subjects that NATS tools may be, such as `tools.>`; never the executor's own",
    ),
    setting("NATS_TOOL_TIMEOUT_SECONDS", WAIT, "60", "Most time for an answer to a NATS tool"),
    setting(
        "WEB_SEARCH_URL",
        HTTP,
        "https://api.tavily.com/search",
        "Where the built-in `web_search` posts its searches, as to Tavily",
    ),
    optional("WEB_SEARCH_API_KEY", Kind::Text, "Key for that provider; none switches `web_search` off")
        .secret(),
    setting("WEB_SEARCH_TIMEOUT_SECONDS", WAIT, "30", "Most time for one search"),
    setting(
        "TOOL_MAX_CONCURRENT",
        NUMBER,
        "256",
        "Requests of HTTP and NATS tools and of web search at once in one process; others wait",
    ),
    setting(
        "PYTHON_TOOLS",
        Kind::Word(&["enabled", "disabled"]),
        "disabled",
        "Whether tools written in Python are run, in sandboxed processes",
    ),
    setting("PYTHON_TOOLS_INTERPRETER", Kind::Text, "python3", "Python that runs them, 3.10 or newer"),
    setting(
        "JAVASCRIPT_TOOLS",
        Kind::Word(&["enabled", "disabled"]),
        "enabled",
        "Whether tools written in JavaScript are run, in sandboxed processes",
    ),
    setting(
        "SCRIPT_TOOL_SANDBOX",
        Kind::Word(&["strict", "limits"]),
        "strict",
        "What scripts are kept in: namespaces and limits, or `limits` only where the pod is a sandbox itself",
    ),
    setting("SCRIPT_TOOL_NETWORK", Kind::Flag, "false", "Let Python scripts reach the network"),
    setting("SCRIPT_TOOL_TIMEOUT_SECONDS", WAIT, "30", "Most time for one call of a script"),
    setting(
        "SCRIPT_TOOL_MEMORY_BYTES",
        // Python itself takes 30 MiB of addresses, with LangChain 200.
        Kind::Count(64 << 20, 64 << 30),
        "536870912",
        "Memory of one process of a script",
    ),
    setting("SCRIPT_TOOL_MAX_PROCESSES", Kind::Count(1, 10_000), "16", "Processes and threads of one call"),
    setting("SCRIPT_TOOL_MAX_OUTPUT_BYTES", BYTES, "1048576", "Largest answer of a script"),
    setting("SCRIPT_TOOL_MAX_CONCURRENT", NUMBER, "8", "Scripts at once in one process; others wait"),
    setting(
        "SCRIPT_TOOL_FIRST_USER",
        Kind::Count(1_000, 2_000_000_000),
        "64100",
        "First of the user ids that scripts run under when this process is root's",
    ),
    setting(
        "MCP_SERVERS",
        Kind::List,
        "",
        "Names of MCP servers whose tools agents may use; see the families below",
    ),
    setting(
        "MCP_CONNECT_TIMEOUT_SECONDS",
        WAIT,
        "30",
        "Time until an MCP server, started if need be, has listed its tools",
    ),
    // Worker
    setting("MAX_CONCURRENT_JOBS", Kind::Count(1, 5_000), "100", "Jobs at once in one process"),
    setting(
        "MAX_BYTES_IN_FLIGHT",
        Kind::Count(1, 64 << 30),
        "268435456",
        "Bytes of messages held at once in one process; beyond it no more are taken",
    ),
    setting(
        "MAX_STATE_BYTES",
        Kind::Count(1, 512 << 20),
        "33554432",
        "Most that a superstep may change of the state",
    ),
    setting("JOB_TIMEOUT_SECONDS", WAIT, "1800", "Time for a job that asks for no other"),
    setting(
        "SHUTDOWN_GRACE_SECONDS",
        Kind::Seconds(0.0, 3_600.0),
        "25",
        "Time for running jobs after SIGTERM",
    ),
    setting(
        "RETENTION_JOBS_DAYS",
        DAYS,
        "7",
        "Days a job is remembered after its end, with its result; 0 for ever, else at least 7",
    ),
    setting("RETENTION_DEAD_LETTERS_DAYS", DAYS, "30", "Days a dead letter is kept in Postgres; 0 for ever"),
    setting(
        "RETENTION_THREADS_DAYS",
        DAYS,
        "0",
        "Days without a new checkpoint after which a thread is thinned out or removed; 0 for never",
    ),
    setting(
        "RETENTION_THREADS",
        Kind::Word(&["latest", "delete"]),
        "latest",
        "What is left of such a thread: its newest checkpoint, or nothing (`delete`)",
    ),
    setting(
        "RETENTION_THREADS_WAITING",
        Kind::Flag,
        "false",
        "Whether that goes also for threads that wait for somebody",
    ),
    setting("POD_NAME", Kind::Text, "agent-executor", "Name of this process in logs and leases")
        .aka(&["HOSTNAME"]),
    // Definitions
    setting("MAX_DEFINITION_BYTES", BYTES, "1048576", "Largest agent definition"),
    setting("MAX_DEFINITION_NODES", NUMBER, "200", "Most nodes of a definition"),
    setting("MAX_DEFINITION_EDGES", NUMBER, "1000", "Most edges of a definition"),
    setting("MAX_DEFINITION_DEPTH", Kind::Count(1, 128), "32", "Deepest nesting of a definition"),
    setting(
        "MAX_MAP_ITEMS",
        Kind::Count(1, 10_000),
        "1000",
        "Most items of one `map`; a definition may lower it",
    ),
    // HTTP
    setting("PORT", Kind::Count(0, 65_535), "8080", "Port of probes, metrics and intake; 0 takes a free one"),
    setting("LISTEN_ADDRESS", Kind::Text, "0.0.0.0", "IP address to listen on"),
    setting("MAX_REQUEST_BYTES", BYTES, "1572864", "Largest request; NATS takes 1 MiB unless told otherwise"),
    // Reports
    setting("LOG_LEVEL", Kind::Level, "info", "Least level of log lines, or directives by module"),
    setting("LOG_FORMAT", Kind::Word(&["json", "text"]), "json", "How log lines look"),
    optional(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        HTTP,
        "Address of the collector of traces; none switches them off",
    ),
    optional("OTEL_EXPORTER_OTLP_HEADERS", Kind::List, "Headers for the collector: `name=value,…`").secret(),
    setting("OTEL_SERVICE_NAME", Kind::Text, "agent-executor", "Name of this service in traces"),
];

/// The setting that goes by `name`.
pub(super) fn find(name: &str) -> Option<&'static Setting> {
    TABLE.iter().find(|setting| setting.names().any(|known| known == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_a_value_of_its_kind_and_every_name_is_given_once() {
        let mut names: Vec<&str> = TABLE.iter().flat_map(Setting::names).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count, "a name is given twice");
        for setting in TABLE {
            if let Some(text) = setting.default {
                assert!(setting.kind.parse(text).is_ok(), "{} = {text}", setting.name);
            }
            assert!(!setting.doc.is_empty() && !setting.doc.contains('|'), "{}", setting.name);
        }
    }
}

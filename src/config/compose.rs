//! From resolved settings to each module's own `Config`, with the relations between them checked.

mod secret;

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use secrecy::SecretString;
use url::Url;

use super::{
    Config, Problem, known, mcp, providers, render,
    resolve::{Settings, Source},
    table,
    value::Value,
};
use crate::{
    graph, http, job, model,
    queue::nats,
    secrets::Secrets,
    store::{self, postgres},
    stream,
    stream::dragonfly,
    telemetry, tool, worker,
};

/// Times that fit into a term: two may be lost before it ends.
const PER_TERM: u32 = 3;

impl Settings {
    fn value(&self, name: &str) -> Option<&Value> {
        let effective = self.all.iter().find(|effective| effective.setting.name == name);
        effective.expect("compose asks only for names of the table").value.as_ref()
    }

    fn source(&self, name: &str) -> &Source {
        let effective = self.all.iter().find(|effective| effective.setting.name == name);
        &effective.expect("compose asks only for names of the table").source
    }

    fn optional_text(&self, name: &str) -> Option<String> {
        let Value::Text(text) = self.value(name)? else { unreachable!("{name} is not declared as text") };
        Some(text.clone())
    }

    fn text(&self, name: &str) -> String {
        self.optional_text(name).expect("the table gives a default")
    }

    fn secret(&self, name: &str) -> Option<SecretString> {
        self.optional_text(name).map(SecretString::from)
    }

    fn flag(&self, name: &str) -> bool {
        let Some(Value::Flag(flag)) = self.value(name) else {
            unreachable!("{name} is no flag with a default")
        };
        *flag
    }

    fn count(&self, name: &str) -> u64 {
        let Some(Value::Count(count)) = self.value(name) else {
            unreachable!("{name} is no count with a default")
        };
        *count
    }

    /// Days; 0 is for ever.
    fn days(&self, name: &str) -> Option<Duration> {
        let days = u32::try_from(self.count(name)).expect("the table's limits fit");
        (days > 0).then_some(worker::DAY * days)
    }

    fn size(&self, name: &str) -> usize {
        usize::try_from(self.count(name)).expect("the table's limits fit")
    }

    fn port(&self, name: &str) -> u16 {
        u16::try_from(self.count(name)).expect("the table's limits fit")
    }

    pub(super) fn span(&self, name: &str) -> Duration {
        let Some(Value::Span(span)) = self.value(name) else {
            unreachable!("{name} is no time with a default")
        };
        *span
    }

    pub(super) fn list(&self, name: &str) -> Vec<String> {
        match self.value(name) {
            Some(Value::List(items)) => items.clone(),
            None => Vec::new(),
            Some(_) => unreachable!("{name} is not declared as a list"),
        }
    }

    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        let Value::Path(path) = self.value(name)? else { unreachable!("{name} is not declared as a path") };
        Some(path.clone())
    }

    fn address(&self, name: &str) -> Option<Url> {
        let Value::Address(url) = self.value(name)? else { unreachable!("{name} is no address") };
        Some(url.clone())
    }

    pub(super) fn member(&self, variable: &str) -> Option<String> {
        self.members.get(variable)?.text.clone()
    }
}

/// Everything from everything, or all that is wrong: `problems` so far, and what does not fit together.
pub(super) fn compose(settings: &Settings, mut problems: Vec<Problem>) -> Result<Config, Vec<Problem>> {
    let dragonfly = dragonfly(settings, &mut problems);
    let http = http(settings, &mut problems);
    let config = Config {
        telemetry: telemetry(settings, &mut problems),
        http,
        worker: worker(settings),
        nats: nats(settings),
        job: job(settings),
        postgres: postgres(settings),
        dragonfly,
        tokens: tokens(settings),
        models: models(settings, &mut problems),
        tools: tools(settings, &mut problems),
        secrets: secret::compose(settings, &mut problems),
        known_secrets: known::secrets(settings),
        limits: limits(settings),
        public_url: settings.address("PUBLIC_URL"),
        quiet: *settings.source("LOG_LEVEL") == Source::Default,
        rendered: render::effective(settings),
        suspects: settings.suspects.clone(),
        state_folder: settings.state_folder.clone(),
    };
    relations(&config, &mut problems);
    if problems.is_empty() { Ok(config) } else { Err(problems) }
}

fn telemetry(settings: &Settings, problems: &mut Vec<Problem>) -> telemetry::Config {
    let headers = otlp_headers(settings, problems);
    let otlp = settings.address("OTEL_EXPORTER_OTLP_ENDPOINT").map(|endpoint| telemetry::OtlpConfig {
        endpoint: endpoint.into(),
        service_name: settings.text("OTEL_SERVICE_NAME"),
        headers,
    });
    let log_format = match settings.text("LOG_FORMAT").as_str() {
        "text" => telemetry::LogFormat::Text,
        _ => telemetry::LogFormat::Json,
    };
    telemetry::Config {
        log_level: settings.text("LOG_LEVEL"),
        log_format,
        log_target: telemetry::LogTarget::Stdout,
        otlp,
    }
}

fn otlp_headers(settings: &Settings, problems: &mut Vec<Problem>) -> HashMap<String, String> {
    let pairs = settings.list("OTEL_EXPORTER_OTLP_HEADERS");
    let read = |pair: &String| {
        let (name, value) = pair.split_once('=')?;
        let (name, value) = (name.trim(), value.trim());
        (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    };
    let headers: Option<HashMap<_, _>> = pairs.iter().map(read).collect();
    headers.unwrap_or_else(|| {
        problems.push(Problem::new("OTEL_EXPORTER_OTLP_HEADERS", "must be name=value pairs, commas between"));
        HashMap::new()
    })
}

fn http(settings: &Settings, problems: &mut Vec<Problem>) -> http::Config {
    let address = settings.text("LISTEN_ADDRESS").parse().unwrap_or_else(|_| {
        problems.push(Problem::new("LISTEN_ADDRESS", "must be an IP address such as 0.0.0.0 or ::"));
        IpAddr::from([0, 0, 0, 0])
    });
    http::Config { address, port: settings.port("PORT"), max_body_bytes: settings.size("MAX_REQUEST_BYTES") }
}

fn worker(settings: &Settings) -> worker::Config {
    let most = worker::Config::default();
    worker::Config {
        max_concurrent_jobs: settings.size("MAX_CONCURRENT_JOBS"),
        max_bytes_in_flight: settings.size("MAX_BYTES_IN_FLIGHT"),
        job_timeout: settings.span("JOB_TIMEOUT_SECONDS"),
        shutdown_grace: settings.span("SHUTDOWN_GRACE_SECONDS"),
        progress_every: settings.span("NATS_ACK_WAIT_SECONDS") / PER_TERM,
        renew_every: most.renew_every.min(settings.span("LEASE_SECONDS") / PER_TERM),
        reconcile_every: most.reconcile_every,
        // The broker has had its time to deliver a message again.
        lingering: most.lingering.max(settings.span("NATS_ACK_WAIT_SECONDS") * PER_TERM),
        k_sink: settings.address("K_SINK"),
        retention: store::Retention {
            jobs: settings.days("RETENTION_JOBS_DAYS"),
            dead_letters: settings.days("RETENTION_DEAD_LETTERS_DAYS"),
        },
        threads: worker::ThreadRetention {
            after: settings.days("RETENTION_THREADS_DAYS"),
            leave: match settings.text("RETENTION_THREADS").as_str() {
                "delete" => store::Leave::Nothing,
                _ => store::Leave::Latest,
            },
            waiting: settings.flag("RETENTION_THREADS_WAITING"),
        },
        pod: settings.text("POD_NAME"),
    }
}

fn nats(settings: &Settings) -> nats::Config {
    let provision =
        if settings.flag("NATS_PROVISION") { nats::Provision::Create } else { nats::Provision::Expect };
    nats::Config {
        urls: settings.list("NATS_URL"),
        creds_file: settings.path("NATS_CREDS_FILE"),
        name: settings.text("POD_NAME"),
        execution_stream: settings.text("NATS_EXECUTION_STREAM"),
        execution_subjects: settings.text("NATS_EXECUTION_SUBJECTS"),
        submit_subject: settings.text("NATS_SUBMIT_SUBJECT"),
        consumer: settings.text("NATS_CONSUMER"),
        results_stream: settings.text("NATS_RESULTS_STREAM"),
        dlq_stream: settings.text("NATS_DLQ_STREAM"),
        advisories_stream: settings.text("NATS_ADVISORIES_STREAM"),
        provision,
        replicas: settings.size("NATS_STREAM_REPLICAS"),
        ack_wait: settings.span("NATS_ACK_WAIT_SECONDS"),
        needs: nats::Needs {
            ack_wait: settings.span("LEASE_SECONDS"),
            ack_pending: settings.size("MAX_CONCURRENT_JOBS") + worker::MAX_PARKED,
        },
    }
}

fn job(settings: &Settings) -> job::Config {
    job::Config {
        type_prefix: settings.text("CLOUDEVENT_TYPE_PREFIX").trim_end_matches('.').to_owned(),
        max_request_bytes: settings.size("MAX_REQUEST_BYTES"),
    }
}

fn postgres(settings: &Settings) -> postgres::Config {
    let statements = if settings.flag("POSTGRES_PREPARED") {
        postgres::Statements::Prepared
    } else {
        postgres::Statements::Unnamed
    };
    postgres::Config {
        url: settings.address("DATABASE_URL").map(|url| String::from(url).into()),
        host: settings.text("POSTGRES_HOST"),
        port: settings.port("POSTGRES_PORT"),
        user: settings.text("POSTGRES_USER"),
        password: settings.secret("POSTGRES_PASSWORD"),
        database: settings.text("POSTGRES_DB"),
        schema: settings.optional_text("POSTGRES_SCHEMA"),
        max_connections: u32::try_from(settings.count("POSTGRES_MAX_CONNECTIONS")).expect("at most 1,000"),
        commit_connections: settings.size("POSTGRES_COMMIT_CONNECTIONS"),
        lease: settings.span("LEASE_SECONDS"),
        max_state_bytes: settings.size("MAX_STATE_BYTES"),
        max_crashes: i32::try_from(settings.count("MAX_CRASHES")).expect("at most 100"),
        statement_timeout: settings.span("POSTGRES_STATEMENT_TIMEOUT_SECONDS"),
        statements,
        ..postgres::Config::default()
    }
}

fn dragonfly(settings: &Settings, problems: &mut Vec<Problem>) -> dragonfly::Config {
    let url = match settings.address("DRAGONFLY_URL") {
        Some(url) => SecretString::from(String::from(url)),
        None => {
            let password = settings.secret("DRAGONFLY_PASSWORD");
            let host = settings.text("DRAGONFLY_HOST");
            dragonfly::Config::url_from_parts(&host, settings.port("DRAGONFLY_PORT"), password.as_ref())
                .unwrap_or_else(|error| {
                    problems.push(Problem::new("DRAGONFLY_HOST", format!("is no host: {error}")));
                    SecretString::from("redis://localhost:6379")
                })
        }
    };
    let config = dragonfly::Config {
        max_len: settings.count("STREAM_MAXLEN"),
        ttl: settings.span("STREAM_TTL_SECONDS"),
        ..dragonfly::Config::new(url)
    };
    if let Err(error) = config.check() {
        problems.push(Problem::new("DRAGONFLY_URL", format!("cannot be used: {error}")));
    }
    config
}

fn tokens(settings: &Settings) -> stream::TokenConfig {
    stream::TokenConfig {
        cumulative_text: settings.flag("STREAM_CUMULATIVE_TEXT"),
        window: settings.span("STREAM_WINDOW_MS"),
        ..stream::TokenConfig::default()
    }
}

fn models(settings: &Settings, problems: &mut Vec<Problem>) -> model::Config {
    let address =
        |name: &str| settings.address(name).map(|url| url.as_str().trim_end_matches('/').to_owned());
    let mut openai = model::Provider::openai(settings.secret("OPENAI_API_KEY"), address("OPENAI_BASE_URL"));
    let mut config = model::Config {
        allowed_hosts: settings.list("MODEL_ALLOWED_HOSTS"),
        scripted_dir: settings.path("SCRIPTED_MODELS_DIR"),
        timeouts: model::Timeouts {
            connect: settings.span("MODEL_CONNECT_TIMEOUT_SECONDS"),
            first_byte: settings.span("MODEL_FIRST_BYTE_TIMEOUT_SECONDS"),
            idle: settings.span("MODEL_IDLE_TIMEOUT_SECONDS"),
            call: settings.span("MODEL_CALL_TIMEOUT_SECONDS"),
        },
        max_concurrent: settings.size("MODEL_MAX_CONCURRENT"),
        prices: Arc::new(providers::prices(settings, problems)),
        cache: model::CacheConfig {
            enabled: settings.flag("MODEL_CACHE"),
            namespace: settings.text("MODEL_CACHE_NAMESPACE"),
            max_bytes: settings.size("MODEL_CACHE_MAX_BYTES"),
            max_ttl: settings.span("MODEL_CACHE_MAX_TTL_SECONDS"),
        },
        breaker: model::breaker::Config {
            failures: u32::try_from(settings.count("MODEL_BREAKER_FAILURES")).expect("at most 1,000,000"),
            open: settings.span("MODEL_BREAKER_SECONDS"),
        },
        ..model::Config::default()
    };
    let limits = |provider: &str| {
        providers::limits(|suffix| Some(settings.count(&format!("{provider}{suffix}")).to_string()))
    };
    openai.limits = limits("OPENAI");
    let mut anthropic =
        model::Provider::anthropic(settings.secret("ANTHROPIC_API_KEY"), address("ANTHROPIC_BASE_URL"));
    anthropic.limits = limits("ANTHROPIC");
    config.providers.insert("openai".to_owned(), openai);
    config.providers.insert("anthropic".to_owned(), anthropic);
    for name in settings.list("MODEL_PROVIDERS") {
        // Resolve has refused a provider without an address.
        if let Some(provider) = providers::provider(settings, &name, problems) {
            config.providers.insert(name, provider);
        }
    }
    config
}

fn tools(settings: &Settings, problems: &mut Vec<Problem>) -> tool::Config {
    let hosts = settings.list("HTTP_TOOL_ALLOWED_HOSTS").join(",");
    let allowed_hosts = tool::AllowedHosts::parse(&hosts).unwrap_or_else(|error| {
        problems.push(Problem::new("HTTP_TOOL_ALLOWED_HOSTS", format!("cannot be used: {error}")));
        tool::AllowedHosts::default()
    });
    tool::Config {
        allowed_hosts,
        allow_private: settings.flag("HTTP_TOOL_ALLOW_PRIVATE"),
        // Whoever composes the process has them.
        secrets: Secrets::default(),
        max_timeout: settings.span("HTTP_TOOL_TIMEOUT_SECONDS"),
        max_response_bytes: settings.count("HTTP_TOOL_MAX_RESPONSE_BYTES"),
        max_concurrent: settings.size("TOOL_MAX_CONCURRENT"),
        scripts: scripts(settings),
        mcp: mcp::servers(settings, problems),
        nats: nats_tools(settings, problems),
        search: tool::SearchConfig {
            url: settings.address("WEB_SEARCH_URL").expect("the table gives a default"),
            key: settings.secret("WEB_SEARCH_API_KEY"),
            timeout: settings.span("WEB_SEARCH_TIMEOUT_SECONDS"),
        },
    }
}

fn nats_tools(settings: &Settings, problems: &mut Vec<Problem>) -> tool::nats::NatsConfig {
    let (allowed, own) = (settings.list("NATS_TOOL_SUBJECTS"), nats(settings).own_subjects());
    let subjects = tool::AllowedSubjects::new(allowed, own).unwrap_or_else(|error| {
        problems.push(Problem::new("NATS_TOOL_SUBJECTS", format!("cannot be used: {error}")));
        tool::AllowedSubjects::default()
    });
    tool::nats::NatsConfig { subjects, timeout: settings.span("NATS_TOOL_TIMEOUT_SECONDS") }
}

fn scripts(settings: &Settings) -> tool::ScriptConfig {
    let sandbox = match settings.text("SCRIPT_TOOL_SANDBOX").as_str() {
        "limits" => tool::Sandboxing::Limits,
        _ => tool::Sandboxing::Strict,
    };
    tool::ScriptConfig {
        python: settings.text("PYTHON_TOOLS") == "enabled",
        interpreter: settings.text("PYTHON_TOOLS_INTERPRETER"),
        javascript: settings.text("JAVASCRIPT_TOOLS") == "enabled",
        sandbox,
        network: settings.flag("SCRIPT_TOOL_NETWORK"),
        timeout: settings.span("SCRIPT_TOOL_TIMEOUT_SECONDS"),
        memory_bytes: settings.count("SCRIPT_TOOL_MEMORY_BYTES"),
        processes: settings.count("SCRIPT_TOOL_MAX_PROCESSES"),
        max_output_bytes: settings.count("SCRIPT_TOOL_MAX_OUTPUT_BYTES"),
        max_concurrent: settings.size("SCRIPT_TOOL_MAX_CONCURRENT"),
        first_user: u32::try_from(settings.count("SCRIPT_TOOL_FIRST_USER")).expect("at most 2,000,000,000"),
        program: None,
    }
}

fn limits(settings: &Settings) -> graph::Limits {
    graph::Limits {
        max_bytes: settings.size("MAX_DEFINITION_BYTES"),
        max_nodes: settings.size("MAX_DEFINITION_NODES"),
        max_edges: settings.size("MAX_DEFINITION_EDGES"),
        max_depth: settings.size("MAX_DEFINITION_DEPTH"),
        max_map_items: settings.size("MAX_MAP_ITEMS"),
    }
}

/// The variable of a family for one name.
pub(super) fn variable(list: &str, suffix: &str, name: &str) -> String {
    let mut families = table::FAMILIES.iter();
    let family = families.find(|family| family.list == list && family.suffix == suffix);
    family.expect("compose asks only for families of the table").variable(name)
}

/// What a request may be must have its place in the bounds around it.
fn sizes(config: &Config, refuse: &mut impl FnMut(bool, &[&str], String)) {
    let request = config.job.max_request_bytes;
    refuse(
        config.worker.max_bytes_in_flight < request,
        &["MAX_BYTES_IN_FLIGHT", "MAX_REQUEST_BYTES"],
        format!("must not be less than MAX_REQUEST_BYTES, {request}: one request would use it up"),
    );
    refuse(
        config.postgres.max_state_bytes < request,
        &["MAX_STATE_BYTES", "MAX_REQUEST_BYTES"],
        format!(
            "must not be less than MAX_REQUEST_BYTES, {request}: the input of a job is part of its state"
        ),
    );
}

/// Settings that make sense alone but not together.
fn relations(config: &Config, problems: &mut Vec<Problem>) {
    // A setting that cannot be read stands at its default, which says nothing about the others.
    let unread: BTreeSet<String> = problems.iter().map(|problem| problem.name.clone()).collect();
    let mut refuse = |wrong: bool, names: &[&str], message: String| {
        if wrong && !names.iter().any(|name| unread.contains(*name)) {
            problems.push(Problem::new(names[0], message));
        }
    };
    let (worker, ack_wait) = (&config.worker, config.nats.ack_wait);
    refuse(
        worker.progress_every * PER_TERM > ack_wait,
        &["NATS_ACK_WAIT_SECONDS"],
        format!("must be three times the time between signs of life, {:?}", worker.progress_every),
    );
    let lease = config.postgres.lease;
    refuse(
        worker.renew_every * PER_TERM > lease,
        &["LEASE_SECONDS"],
        format!("must be three times the time between renewals, {:?}", worker.renew_every),
    );
    refuse(
        lease > ack_wait,
        &["LEASE_SECONDS", "NATS_ACK_WAIT_SECONDS"],
        format!(
            "must not be more than NATS_ACK_WAIT_SECONDS, {ack_wait:?}: a redelivery would find a dead owner"
        ),
    );
    refuse(
        worker.retention.jobs.is_some_and(|kept| kept < nats::RESULTS_MAX_AGE),
        &["RETENTION_JOBS_DAYS"],
        "must be 0 or at least 7: results stay in their stream that long, and large ones refer to the job's row"
            .to_owned(),
    );
    let timeouts = config.models.timeouts;
    refuse(
        timeouts.call < timeouts.first_byte || timeouts.call < timeouts.idle,
        &["MODEL_CALL_TIMEOUT_SECONDS", "MODEL_FIRST_BYTE_TIMEOUT_SECONDS", "MODEL_IDLE_TIMEOUT_SECONDS"],
        "must not be less than the time to the first piece or between two".to_owned(),
    );
    refuse(
        config.limits.max_bytes > config.job.max_request_bytes,
        &["MAX_DEFINITION_BYTES", "MAX_REQUEST_BYTES"],
        "must not be more than MAX_REQUEST_BYTES: a definition comes inside a request".to_owned(),
    );
    sizes(config, &mut refuse);
    for problem in config.nats.problems() {
        refuse(true, &["NATS settings:"], problem);
    }
}

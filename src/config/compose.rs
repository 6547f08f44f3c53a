//! From resolved settings to each module's own `Config`.

mod secret;

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use secrecy::SecretString;

use super::{
    Config, Problem, known, mcp, providers, relations, render,
    resolve::{Settings, Source},
    value::pair,
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
pub(super) const PER_TERM: u32 = 3;

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
    relations::check(&config, &mut problems);
    if problems.is_empty() { Ok(config) } else { Err(problems) }
}

fn telemetry(settings: &Settings, problems: &mut Vec<Problem>) -> telemetry::Config {
    let headers = otlp_headers(settings, problems);
    let otlp = settings.address("OTEL_EXPORTER_OTLP_ENDPOINT").map(|endpoint| telemetry::OtlpConfig {
        endpoint: endpoint.into(),
        service_name: settings.text("OTEL_SERVICE_NAME"),
        headers,
    });
    let formats = [("json", telemetry::LogFormat::Json), ("text", telemetry::LogFormat::Text)];
    telemetry::Config {
        log_level: settings.text("LOG_LEVEL"),
        log_format: settings.choice("LOG_FORMAT", &formats),
        log_target: telemetry::LogTarget::Stdout,
        otlp,
    }
}

fn otlp_headers(settings: &Settings, problems: &mut Vec<Problem>) -> HashMap<String, String> {
    let pairs = settings.list("OTEL_EXPORTER_OTLP_HEADERS");
    let headers: Option<HashMap<_, _>> = pairs.iter().map(|text| pair(text)).collect();
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
    let leave = [("latest", store::Leave::Latest), ("delete", store::Leave::Nothing)];
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
            leave: settings.choice("RETENTION_THREADS", &leave),
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
        limit_parts: u32::try_from(settings.count("MODEL_LIMIT_PARTS")).expect("at most 1,000,000"),
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
    let limits =
        |provider: &str| providers::limits(|suffix| Some(settings.count(&format!("{provider}{suffix}"))));
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
    let sandboxes = [("strict", tool::Sandboxing::Strict), ("limits", tool::Sandboxing::Limits)];
    let is_enabled = |name: &str| settings.choice(name, &[("enabled", true), ("disabled", false)]);
    tool::ScriptConfig {
        python: is_enabled("PYTHON_TOOLS"),
        interpreter: settings.text("PYTHON_TOOLS_INTERPRETER"),
        javascript: is_enabled("JAVASCRIPT_TOOLS"),
        sandbox: settings.choice("SCRIPT_TOOL_SANDBOX", &sandboxes),
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

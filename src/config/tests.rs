//! The settings from outside: what wins over what, what is refused, what is shown.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use expect_test::expect;
use secrecy::ExposeSecret;

use super::{
    Config, Sources,
    families::FAMILIES,
    markdown,
    table::{Setting, TABLE},
    value::Kind,
};
use crate::{
    graph::ModelApi,
    model::{self, Auth, Dialect, Quirk},
    queue::nats,
    store::postgres,
    stream,
    telemetry::scrub,
    worker,
};

fn environment(pairs: &[(&str, &str)]) -> Sources {
    let environment: HashMap<_, _> =
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Sources { environment, ..Sources::default() }
}

fn load(pairs: &[(&str, &str)]) -> Config {
    Config::load(&environment(pairs)).expect("the settings are good")
}

fn refused(sources: &Sources) -> String {
    Config::load(sources).expect_err("the settings are bad").to_string()
}

fn file(folder: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, text).expect("the folder is ours");
    path
}

/// The line of `config` for one setting, with the folder cut out.
fn shown(config: &Config, name: &str) -> String {
    let start = [format!("{name}="), format!("#{name}=")];
    let line = config.rendered().lines().find(|line| start.iter().any(|start| line.starts_with(start)));
    line.expect("every setting is shown").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn without_any_setting_the_defaults_of_the_modules_hold() {
    let config = load(&[]);
    assert_eq!(config.nats, nats::Config::default());
    assert_eq!(config.job, crate::job::Config::default());
    assert_eq!(config.models.timeouts, model::Timeouts::default());
    assert_eq!(format!("{:?}", config.postgres), format!("{:?}", postgres::Config::default()));
    assert_eq!(format!("{:?}", config.tokens), format!("{:?}", stream::TokenConfig::default()));
    assert_eq!(format!("{:?}", config.tools), format!("{:?}", crate::tool::Config::default()));
    assert_eq!(format!("{:?}", config.limits), format!("{:?}", crate::graph::Limits::default()));
    assert_eq!(format!("{:?}", config.worker), format!("{:?}", worker::Config::default()));
    assert_eq!(config.dragonfly.url.expose_secret(), "redis://localhost:6379");
    assert_eq!(config.terminal_telemetry().log_level, "warn");
}

/// A value that `setting` takes, alone and together with all the others.
fn sample(setting: &Setting) -> String {
    match (setting.name, setting.kind, setting.default) {
        ("OTEL_EXPORTER_OTLP_HEADERS", ..) => "authorization=Bearer hunter2,x-team=a=b".to_owned(),
        ("MODEL_PROVIDERS", ..) => "acme".to_owned(),
        ("MCP_SERVERS", ..) => "files".to_owned(),
        ("HTTP_TOOL_SECRETS" | "SECRETS_NAMED", ..) => "crm".to_owned(),
        ("MODEL_PRICES_FILE", ..) => concat!(env!("CARGO_MANIFEST_DIR"), "/src/model/prices.toml").to_owned(),
        ("SECRETS_ALLOWED", ..) => "billing-*=crm+stripe, stored:*=ops".to_owned(),
        (_, _, Some(default)) if !default.is_empty() => default.to_owned(),
        (_, Kind::Address(schemes), _) => format!("{}://host:1234", schemes[0]),
        (_, Kind::List, _) => "a.example.com, b.example.com".to_owned(),
        (_, Kind::Path, _) => "/some/path".to_owned(),
        (_, Kind::Text | Kind::Name, _) => "some-text".to_owned(),
        (name, kind, _) => panic!("{name}: a sample of {kind:?} is missing"),
    }
}

#[test]
fn every_setting_is_read_as_the_kind_it_is_declared_as() {
    let families = [
        ("MODEL_PROVIDER_ACME_BASE_URL", "https://acme.example.com"),
        ("MODEL_PROVIDER_ACME_API_KEY", "hunter2"),
        ("MODEL_PROVIDER_ACME_API", "responses"),
        ("MODEL_PROVIDER_ACME_AUTH", "bearer"),
        ("MODEL_PROVIDER_ACME_QUERY", "a=b"),
        ("MODEL_PROVIDER_ACME_QUIRKS", "strict_tools"),
        ("MODEL_PROVIDER_ACME_RPM", "60"),
        ("MODEL_PROVIDER_ACME_TPM", "0"),
        ("MODEL_PROVIDER_ACME_MAX_CONCURRENT", "5"),
        ("HTTP_TOOL_SECRET_CRM", "hunter2"),
        ("SECRET_CRM", "hunter2"),
        ("VAULT_AUTH_ROLE", "executor"),
        ("MCP_SERVER_FILES_COMMAND", "mcp-files"),
        ("MCP_SERVER_FILES_ENV", "TOKEN=hunter2"),
    ];
    let mut all = environment(&families);
    for setting in TABLE {
        for name in setting.names() {
            let mut alone = environment(&families);
            alone.environment.insert(name.to_owned(), sample(setting));
            let config = Config::load(&alone).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(!shown(&config, setting.name).starts_with('#'), "{name} was not read");
        }
        all.environment.insert(setting.name.to_owned(), sample(setting));
    }
    let config = Config::load(&all).expect("the samples go together");
    // A server has a program or an address, and its limits have defaults of their own.
    let unset = config.rendered().lines().filter(|line| line.contains("# not set"));
    assert!(unset.into_iter().all(|line| line.starts_with("#MCP_SERVER_FILES_")), "{}", config.rendered());
    assert!(!config.rendered().contains("hunter2"), "{}", config.rendered());
    assert_eq!(
        shown(&config, "MODEL_PROVIDER_ACME_API_KEY"),
        "MODEL_PROVIDER_ACME_API_KEY=*** # environment"
    );
    let otlp = config.telemetry.otlp.expect("it is set");
    assert_eq!(otlp.headers["authorization"], "Bearer hunter2");
    assert_eq!(otlp.headers["x-team"], "a=b");
    let limits = config.models.providers["acme"].limits;
    assert_eq!(
        (limits.requests_per_minute, limits.tokens_per_minute, limits.concurrent),
        (Some(60), None, Some(5)),
        "0 is no limit"
    );
}

#[test]
fn every_word_of_every_setting_is_understood() {
    let words = |kind: Kind| if let Kind::Word(words) = kind { words } else { &[] };
    for setting in TABLE {
        for word in words(setting.kind) {
            let config = load(&[(setting.name, word)]);
            assert_eq!(shown(&config, setting.name), format!("{}={word} # environment", setting.name));
        }
    }
    for family in FAMILIES {
        for word in words(family.kind) {
            let variable = family.variable("acme");
            let config = load(&[
                ("MODEL_PROVIDERS", "acme"),
                ("MODEL_PROVIDER_ACME_BASE_URL", "https://acme.example.com"),
                ("MCP_SERVERS", "acme"),
                ("MCP_SERVER_ACME_COMMAND", "mcp-acme"),
                (&variable, word),
            ]);
            assert_eq!(shown(&config, &variable), format!("{variable}={word} # environment"));
        }
    }
}

#[test]
fn a_table_of_prices_is_read_at_the_start_or_stops_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let with = |text: &str| {
        let path = file(&folder, "prices.toml", text).display().to_string();
        Config::load(&environment(&[("MODEL_PRICES_FILE", &path)]))
    };
    let row = "[[price]]\nprovider = \"azure\"\nmodels = [\"*\"]\ninput = 1\n";
    let config = with(&format!("{row}output = 2\n")).expect("valid");
    assert!(config.models.prices.of("azure", "anything").is_some());
    let error = with(row).expect_err("incomplete").to_string();
    assert!(error.contains("MODEL_PRICES_FILE cannot be used: ") && error.contains("`output`"), "{error}");
}

#[test]
fn flags_win_over_the_environment_over_the_file_over_defaults() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = file(
        &folder,
        "settings.toml",
        "port = 1\nlog_level = \"debug\"\nmax_concurrent_jobs = 7\n[nats]\nurl = [\"nats://a:1\", \"b:2\"]\n",
    );
    let mut sources = environment(&[
        ("PORT", "2"),
        ("MAX_CONCURRENT_JOBS", "8"),
        ("AGENT_EXECUTOR_CONFIG", &path.display().to_string()),
    ]);
    sources.flags.push(("PORT".into(), "3".into()));
    let config = Config::load(&sources).expect("the settings are good");
    assert_eq!(config.http.port, 3);
    assert_eq!(config.worker.max_concurrent_jobs, 8);
    assert_eq!(config.telemetry.log_level, "debug");
    assert_eq!(config.nats.urls, ["nats://a:1", "nats://b:2"]);
    assert_eq!(shown(&config, "PORT"), "PORT=3 # flag");
    assert_eq!(shown(&config, "MAX_CONCURRENT_JOBS"), "MAX_CONCURRENT_JOBS=8 # environment");
    assert_eq!(shown(&config, "LOG_LEVEL"), format!("LOG_LEVEL=debug # {}", path.display()));
    assert_eq!(shown(&config, "LOG_FORMAT"), "LOG_FORMAT=json # default");
    assert_eq!(shown(&config, "K_SINK"), "#K_SINK= # not set");
}

#[test]
fn everything_wrong_is_named_at_once_and_no_secret_is_shown() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = file(
        &folder,
        "settings.toml",
        "max_concurent_jobs = 7\nwhen = 2026-01-01\n[log]\nformat = \"xml\"\n",
    );
    let sources = Sources {
        file: Some(path),
        ..environment(&[
            ("PORT", "80800"),
            ("NATS_PROVISION", "perhaps"),
            ("DATABASE_URL", "mysql://user:hunter2@host/db"),
            ("OPENAI_API_KEY", "sk-hunter2"),
            ("OPENAI_API_KEY_FILE", "/run/key"),
            ("HTTP_TOOL_SECRETS", "crm"),
            ("MODEL_PROVIDERS", "local"),
            ("MODEL_PROVIDER_LOCAL_BASE_URL", "hunter2"),
        ])
    };
    let text = refused(&sources);
    assert!(!text.contains("hunter2"), "{text}");
    expect![[r#"
        9 settings cannot be used
          WHEN must be a text, a number, true, false or a list of texts
          NATS_PROVISION must be true or false, not "perhaps"
          DATABASE_URL must be an address that starts with postgres:// or postgresql://
          OPENAI_API_KEY is set together with OPENAI_API_KEY_FILE; set one of them
          PORT must be a whole number from 0 to 65535, not "80800"
          LOG_FORMAT must be one of json, text, not "xml"
          MODEL_PROVIDER_LOCAL_BASE_URL must be an address that starts with http:// or https://
          HTTP_TOOL_SECRET_CRM is not set, but HTTP_TOOL_SECRETS asks for it
          MAX_CONCURENT_JOBS is not a setting; did you mean MAX_CONCURRENT_JOBS?"#]]
    .assert_eq(&text);
}

#[test]
fn rules_and_vault_are_checked_at_the_start() {
    let text = refused(&environment(&[("SECRETS_ALLOWED", "billing"), ("VAULT_ADDR", "https://vault:8200")]));
    expect![[r#"
        2 settings cannot be used
          SECRETS_ALLOWED cannot be used: "billing" is no rule; write DEFINITION=SECRET, or stored:DEFINITION=SECRET+SECRET
          VAULT_AUTH_ROLE is not set, nor is VAULT_TOKEN, but VAULT_ADDR asks for one of them"#]]
    .assert_eq(&text);
    assert!(load(&[("VAULT_ADDR", "https://vault:8200")]).secrets.vault.is_none());
}

#[test]
fn every_secret_of_the_settings_is_known_to_the_scrubber() {
    let folder = tempfile::tempdir().expect("a folder");
    let creds = file(&folder, "user.creds", "-----BEGIN X-----\nSUAIBDPBAUTWCWBKIO6XHQNINK\n");
    let config = load(&[
        ("OPENAI_API_KEY", "sk-Plant3d-key"),
        ("DATABASE_URL", "postgres://u:Plant3d%2Fdb@h/db"),
        ("NATS_URL", "nats://Plant3d-nats@h:4222"),
        ("NATS_CREDS_FILE", &creds.display().to_string()),
        ("REDIS_PASSWORD", "short"),
        ("K_SINK", "http://h/x?key=Plant3d-sink"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer Plant3d-otlp,x-team=a"),
        ("SOMEBODYS_API_KEY", "Plant3d-beside"),
        ("MCP_SERVERS", "files,docs"),
        ("MCP_SERVER_FILES_COMMAND", "x"),
        (
            "MCP_SERVER_FILES_ENV",
            "AWS_SECRET_ACCESS_KEY=Plant3d-aws,DB_DSN=Plant3d-dsn,DB=postgres://u:Plant3d-uri@h/d",
        ),
        ("MCP_SERVER_DOCS_URL", "https://docs.example.com/mcp"),
        (
            "MCP_SERVER_DOCS_HEADERS",
            r#"{"cookie": "Plant3d-cookie", "authorization": "Bearer Plant3d-docs"}"#,
        ),
        ("WEB_SEARCH_API_KEY", "Plant3d-search"),
        ("VAULT_TOKEN", "Plant3d-vault"),
        ("SECRETS_NAMED", "CRM"),
        ("SECRET_CRM", "Plant3d-crm"),
        ("HTTP_TOOL_SECRETS", "SHOP"),
        ("HTTP_TOOL_SECRET_SHOP", "Plant3d-shop"),
    ]);
    let scrubber = scrub::Scrubber::default();
    config.teach(&scrubber);
    for secret in [
        "sk-Plant3d-key",
        "Plant3d%2Fdb",
        "Plant3d/db",
        "Plant3d-nats",
        "SUAIBDPBAUTWCWBKIO6XHQNINK",
        "Plant3d-sink",
        "Plant3d-otlp",
        "Plant3d-beside",
        "Plant3d-aws",
        "Plant3d-dsn",
        "Plant3d-uri",
        "Plant3d-cookie",
        "Plant3d-docs",
        "Plant3d-search",
        "Plant3d-vault",
        "Plant3d-crm",
        "Plant3d-shop",
    ] {
        assert_eq!(scrubber.text(secret), scrub::REDACTED, "{secret}");
    }
    assert_eq!(Vec::from_iter(config.unrecognisable()), ["DRAGONFLY_PASSWORD", "OTEL_EXPORTER_OTLP_HEADERS"]);
}

#[test]
fn a_file_that_is_not_toml_is_named_with_its_line_and_without_its_text() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = file(&folder, "settings.toml", "port = 1\nopenai_api_key = hunter2\n");
    let text = refused(&Sources { file: Some(path), ..Sources::default() });
    assert!(text.contains("is not TOML, line 2: "), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    let text = refused(&Sources { file: Some("/no/such/file".into()), ..Sources::default() });
    assert!(text.contains("/no/such/file cannot be read: "), "{text}");
}

#[test]
fn secrets_come_from_files_and_are_masked() {
    let folder = tempfile::tempdir().expect("a folder");
    let key = file(&folder, "key", "sk-hunter2\n").display().to_string();
    let config = load(&[
        ("OPENAI_API_KEY_FILE", &key),
        ("DATABASE_URL", "postgres://u:hunter2@h/db"),
        ("NATS_URL", "nats://u:hunter2@h:4222"),
        ("REDIS_PASSWORD", "hunter2"),
        ("HTTP_TOOL_SECRETS", "crm-key"),
        ("HTTP_TOOL_SECRET_CRM_KEY_FILE", &key),
    ]);
    let openai = &config.models.providers["openai"].key;
    assert_eq!(openai.as_ref().expect("it is set").expose_secret(), "sk-hunter2");
    assert!(
        matches!(&config.secrets.given["crm-key"], crate::secrets::Given::File(path) if path.display().to_string() == key)
    );
    assert_eq!(config.dragonfly.url.expose_secret(), "redis://:hunter2@localhost:6379");
    assert!(!config.rendered().contains("hunter2"), "{}", config.rendered());
    assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
    assert_eq!(shown(&config, "OPENAI_API_KEY"), "OPENAI_API_KEY=*** # environment, OPENAI_API_KEY_FILE");
    assert_eq!(shown(&config, "DATABASE_URL"), "DATABASE_URL=postgres://u:***@h/db # environment");
    assert_eq!(shown(&config, "HTTP_TOOL_SECRET_CRM_KEY"), {
        "HTTP_TOOL_SECRET_CRM_KEY=*** # environment, HTTP_TOOL_SECRET_CRM_KEY_FILE"
    });
}

#[test]
fn what_kubernetes_sets_for_services_and_what_is_empty_counts_as_not_set() {
    let config = load(&[("POSTGRES_PORT", "tcp://10.0.0.7:5432"), ("PG_HOST", "db"), ("LOG_LEVEL", " ")]);
    assert_eq!(config.postgres.port, 5432);
    assert_eq!(config.postgres.host, "db");
    assert_eq!(config.telemetry.log_level, "info");
}

#[test]
fn slips_in_the_environment_stop_the_start_and_what_looks_like_a_setting_is_pointed_out() {
    let text = refused(&environment(&[
        ("NATS_ULR", "nats://h:4222"),
        ("STREAM_MAXLENN", "5"),
        ("MODEL_PROVIDERS", "acme"),
        ("MODEL_PROVIDER_ACME_BASE_URL", "https://acme.example.com"),
        ("MODEL_PROVIDER_ACME_API_KYE", "hunter2"),
        ("REDIS_URI", ""),
    ]));
    expect![[r#"
        3 settings cannot be used
          MODEL_PROVIDER_ACME_API_KYE is not a setting; did you mean MODEL_PROVIDER_ACME_API_KEY?
          NATS_ULR is not a setting; did you mean NATS_URL?
          STREAM_MAXLENN is not a setting; did you mean STREAM_MAXLEN?"#]]
    .assert_eq(&text);
    let config = load(&[("STREAM_MAX_LENGTH", "3"), ("NATS_PORT_4222_TCP", "x"), ("HOME", "/root")]);
    let names: Vec<&str> = config.suspects().iter().map(|suspect| suspect.name.as_str()).collect();
    assert_eq!(names, ["STREAM_MAX_LENGTH"]);
}

#[test]
fn what_cannot_be_read_does_not_hide_what_does_not_fit_together() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = "no_such_thing = 1\nlisten_address = \"localhost\"\nlease_seconds = 60\nmax_definition_bytes = 2000000\n";
    let path = file(&folder, "settings.toml", text);
    let sources = Sources { file: Some(path), ..environment(&[("NATS_ACK_WAIT_SECONDS", "soon")]) };
    expect![[r#"
        4 settings cannot be used
          NATS_ACK_WAIT_SECONDS must be seconds from 3 to 3600, not "soon"
          NO_SUCH_THING is not a setting
          LISTEN_ADDRESS must be an IP address such as 0.0.0.0 or ::
          MAX_DEFINITION_BYTES must not be more than MAX_REQUEST_BYTES: a definition comes inside a request"#]]
    .assert_eq(&refused(&sources));
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let text = refused(&environment(&[
        ("LEASE_SECONDS", "60"),
        ("RETENTION_JOBS_DAYS", "3"),
        ("MODEL_CALL_TIMEOUT_SECONDS", "10"),
        ("MAX_DEFINITION_BYTES", "2000000"),
        ("NATS_SUBMIT_SUBJECT", "elsewhere"),
        ("LISTEN_ADDRESS", "localhost"),
        ("HTTP_TOOL_ALLOWED_HOSTS", "a b c/d"),
    ]));
    expect![[r#"
        7 settings cannot be used
          LISTEN_ADDRESS must be an IP address such as 0.0.0.0 or ::
          HTTP_TOOL_ALLOWED_HOSTS cannot be used: 'c/d' is no host; write api.example.com, *.example.com or *
          LEASE_SECONDS must not be more than NATS_ACK_WAIT_SECONDS, 30s: a redelivery would find a dead owner
          RETENTION_JOBS_DAYS must be 0 or at least 7: results stay in their stream that long, and large ones refer to the job's row
          MODEL_CALL_TIMEOUT_SECONDS must not be less than the time to the first piece or between two
          MAX_DEFINITION_BYTES must not be more than MAX_REQUEST_BYTES: a definition comes inside a request
          NATS settings: requests are published on "elsewhere", which is not among "agent.execute.>""#]]
    .assert_eq(&text);
}

#[test]
fn bounds_must_have_room_for_what_they_bound() {
    let text = refused(&environment(&[
        ("MAX_REQUEST_BYTES", "50000000"),
        ("MAX_BYTES_IN_FLIGHT", "1000000"),
        ("MAX_STATE_BYTES", "2000000"),
    ]));
    expect![[r#"
        2 settings cannot be used
          MAX_BYTES_IN_FLIGHT must not be less than MAX_REQUEST_BYTES, 50000000: one request would use it up
          MAX_STATE_BYTES must not be less than MAX_REQUEST_BYTES, 50000000: the input of a job is part of its state"#]]
    .assert_eq(&text);
}

#[test]
fn what_the_consumer_must_allow_follows_from_lease_and_slots() {
    let needs = load(&[("LEASE_SECONDS", "7"), ("MAX_CONCURRENT_JOBS", "1000")]).nats.needs;
    assert_eq!((needs.ack_wait, needs.ack_pending), (Duration::from_secs(7), 1256));
}

#[test]
fn terms_are_divided_so_that_two_signs_of_life_may_be_lost() {
    let config = load(&[("LEASE_SECONDS", "3"), ("NATS_ACK_WAIT_SECONDS", "12")]);
    assert_eq!(config.worker.renew_every, Duration::from_secs(1));
    assert_eq!(config.worker.progress_every, Duration::from_secs(4));
}

#[test]
fn the_table_names_every_setting_with_its_other_spellings() {
    let table = markdown();
    assert!(table.contains("| `POSTGRES_HOST`, `PG_HOST` | `localhost` | Host of Postgres |"), "{table}");
    assert!(table.contains("| `OPENAI_API_KEY`, `OPENAI_API_KEY_FILE` |  | Key for OpenAI |"), "{table}");
    assert!(table.contains("| `HTTP_TOOL_SECRET_<NAME>`, `HTTP_TOOL_SECRET_<NAME>_FILE` | |"), "{table}");
}

#[test]
fn state_is_kept_below_the_home_unless_its_owner_says_where() {
    let folder = |pairs: &[(&str, &str)]| load(pairs).state_folder.map(|path| path.display().to_string());
    let home = ("HOME", "/home/ann");
    assert_eq!(folder(&[home]).as_deref(), Some("/home/ann/.local/state/agent-executor"));
    assert_eq!(folder(&[home, ("XDG_STATE_HOME", "/s")]).as_deref(), Some("/s/agent-executor"));
    assert_eq!(folder(&[home, ("XDG_STATE_HOME", "s")]), folder(&[home]), "a relative path is no path");
    assert_eq!(folder(&[]), None);
}

#[test]
fn a_named_provider_is_what_its_settings_say() {
    let config = load(&[
        ("MODEL_PROVIDERS", "azure,gate,plain"),
        ("MODEL_PROVIDER_AZURE_BASE_URL", "https://a.example.com/openai/deployments/gpt"),
        ("MODEL_PROVIDER_AZURE_AUTH", "api-key"),
        ("MODEL_PROVIDER_AZURE_API", "responses"),
        ("MODEL_PROVIDER_AZURE_QUERY", "api-version=2024-10-21, x=1"),
        ("MODEL_PROVIDER_AZURE_QUIRKS", "max_completion_tokens,no_stream_options"),
        ("MODEL_PROVIDER_GATE_BASE_URL", "https://gate.example.com"),
        ("MODEL_PROVIDER_GATE_API", " Anthropic"),
        ("MODEL_PROVIDER_PLAIN_BASE_URL", "http://vllm:8000/v1"),
    ]);
    let providers = &config.models.providers;
    assert_eq!(providers.keys().collect::<Vec<_>>(), ["anthropic", "azure", "gate", "openai", "plain"]);
    let what = |name: &str| (providers[name].dialect, providers[name].auth);
    assert_eq!(what("azure"), (Dialect::OpenAi(ModelApi::Responses), Auth::ApiKey));
    assert_eq!(what("gate"), (Dialect::Anthropic, Auth::XApiKey));
    assert_eq!(what("plain"), (Dialect::OpenAi(ModelApi::ChatCompletions), Auth::Bearer));
    let azure = &providers["azure"];
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(azure.query, [pair("api-version", "2024-10-21"), pair("x", "1")]);
    assert_eq!(azure.quirks, [Quirk::MaxCompletionTokens, Quirk::NoStreamOptions].into());
    assert_eq!(azure.key_variable, "MODEL_PROVIDER_AZURE_API_KEY");
    assert!(providers["plain"].quirks.is_empty() && providers["plain"].query.is_empty());
}

#[test]
fn what_is_wrong_with_a_named_provider_is_said() {
    let text = refused(&environment(&[
        ("MODEL_PROVIDERS", "x"),
        ("MODEL_PROVIDER_X_BASE_URL", "http://x"),
        ("MODEL_PROVIDER_X_API", "grpc"),
        ("MODEL_PROVIDER_X_QUERY", "version"),
        ("MODEL_PROVIDER_X_QUIRKS", "odd"),
    ]));
    expect![[r#"
        3 settings cannot be used
          MODEL_PROVIDER_X_API must be one of chat_completions, responses, anthropic
          MODEL_PROVIDER_X_QUERY must be name=value,…, and "version" is not
          MODEL_PROVIDER_X_QUIRKS has no "odd"; there are max_completion_tokens, no_stream_options, no_response_format, strict_tools"#]].assert_eq(&text);
}

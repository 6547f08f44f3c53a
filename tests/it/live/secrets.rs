//! Secrets planted wherever there is a place for one, and every output of the program searched for them.

mod outside;

use std::{fs, io::Read as _};

use agent_executor::encoding::hex;
use anyhow::{Context, Result, ensure};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use flate2::bufread::DeflateDecoder;
use futures::StreamExt as _;
use serde_json::{Value as Json, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::task::TaskTracker;

use super::world::{WITHIN, World, of_type, request};
use crate::{executor::Executor, servers, vault::Vault};
use outside::Outside;

/// What every planted value has in it, and nothing else.
const MARK: &str = "pl4nt";

const DATABASE: &str = "pl4nt-db-Kx92";
const BROKER: &str = "pl4nt-nats-Qq71";
const STREAM: &str = "pl4nt-redis-Zt33";
const MODEL_KEY: &str = "sk-pl4nt-model-88";
const COLLECTOR: &str = "pl4nt-otlp-5511";
const SINK: &str = "pl4nt-sink-3370";
const BESIDE: &str = "pl4nt-beside-6006";
const IN_ENVIRONMENT: &str = "pl4nt-env-7732";
const IN_FILE: &str = "pl4nt-file-6619";
const IN_FOLDER: &str = "pl4nt-dir-4482";
const IN_VAULT: &str = "pl4nt-vault-9953";
const JWT: &str = "pl4nt-jwt-2204";
/// In the environment of a program that is an MCP server, under a name whose last word is harmless.
const IN_PROGRAM: &str = "pl4nt-mcp-env-1187";
/// In a header of an MCP server at an address.
const IN_HEADER: &str = "pl4nt-mcp-header-4106";
const IN_SEARCH: &str = "pl4nt-search-9120";
/// The secret of a client of a server of tokens, and the token it gets.
const CLIENT: &str = "pl4nt-client-6653";
const ISSUED: &str = "pl4nt-issued-token-7781";

/// Nobody knows these; only the names beside them tell.
const NAMED_IN_ARGUMENTS: &str = "0nly-by-name-1";
const NAMED_IN_ERROR: &str = "0nly-by-name-2";
const NAMED_IN_HEADER: &str = "0nly-by-name-3";

/// An MCP server that shows its environment.
const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/mcp/server.py");

/// What the program wrote, by where.
type Outputs = Vec<(String, Vec<u8>)>;

/// A user of the stream server with a password of its own.
async fn stream_user(world: &World) -> Result<String> {
    let mut server = tokio::net::TcpStream::connect(("127.0.0.1", world.redis.port())).await?;
    server.write_all(format!("ACL SETUSER planted on >{STREAM} ~* &* +@all\r\n").as_bytes()).await?;
    let mut answer = [0; 3];
    server.read_exact(&mut answer).await?;
    ensure!(&answer == b"+OK", "the stream server takes no users");
    Ok(world.redis.url().replace("redis://", &format!("redis://planted:{STREAM}@")))
}

/// Every place for a secret that settings have.
async fn settings(world: &World, outside: &Outside, vault: &Vault) -> Result<Vec<(&'static str, String)>> {
    let folder = servers::scratch("secrets")?;
    let mounted = folder.join("mounted");
    fs::create_dir(&mounted)?;
    fs::write(mounted.join("dir-key"), format!("{IN_FOLDER}\n"))?;
    for (name, value) in [("file-key", IN_FILE), ("jwt", JWT)] {
        fs::write(folder.join(name), value)?;
    }
    vault.allow("executor", JWT);
    vault.put("secret/vault-key", json!({ "value": IN_VAULT }));
    let path = |name: &str| folder.join(name).display().to_string();
    Ok(vec![
        ("DATABASE_URL", world.database_url.replace("postgres@", &format!("postgres:{DATABASE}@"))),
        ("NATS_URL", world.nats.url().replace("nats://", &format!("nats://planted:{BROKER}@"))),
        ("DRAGONFLY_URL", stream_user(world).await?),
        ("MODEL_PROVIDERS", "acme".to_owned()),
        ("MODEL_PROVIDER_ACME_BASE_URL", format!("{}/v1", outside.served.url)),
        ("MODEL_PROVIDER_ACME_API_KEY", MODEL_KEY.to_owned()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", outside.served.url.clone()),
        ("OTEL_EXPORTER_OTLP_HEADERS", format!("authorization=Bearer {COLLECTOR}")),
        ("K_SINK", format!("{}/sink?key={SINK}", outside.served.url)),
        ("SOMEBODYS_PASSWORD", BESIDE.to_owned()),
        ("SECRETS_NAMED", "ENV_KEY,FILE_KEY".to_owned()),
        ("SECRET_ENV_KEY", IN_ENVIRONMENT.to_owned()),
        ("SECRET_FILE_KEY_FILE", path("file-key")),
        ("SECRETS_DIR", path("mounted")),
        ("SECRETS_ALLOWED", "planted=ENV_KEY+FILE_KEY, plant*=dir-*+vault-*".to_owned()),
        ("VAULT_ADDR", vault.served.url.clone()),
        ("VAULT_AUTH_ROLE", "executor".to_owned()),
        ("VAULT_JWT_FILE", path("jwt")),
        ("HTTP_TOOL_SECRETS", "CLIENT_KEY".to_owned()),
        ("HTTP_TOOL_SECRET_CLIENT_KEY", CLIENT.to_owned()),
        ("WEB_SEARCH_URL", format!("{}/search", outside.served.url)),
        ("WEB_SEARCH_API_KEY", IN_SEARCH.to_owned()),
        ("NATS_TOOL_SUBJECTS", "tools.>".to_owned()),
        ("MCP_SERVERS", "program,outside".to_owned()),
        ("MCP_SERVER_PROGRAM_COMMAND", "python3".to_owned()),
        ("MCP_SERVER_PROGRAM_ARGS", json!(["-B", PROGRAM]).to_string()),
        ("MCP_SERVER_PROGRAM_ENV", format!("AWS_SECRET_ACCESS_KEY={IN_PROGRAM}")),
        ("MCP_SERVER_OUTSIDE_URL", format!("{}/mcp", outside.served.url)),
        ("MCP_SERVER_OUTSIDE_HEADERS", format!("cookie={IN_HEADER}")),
        ("HTTP_TOOL_ALLOWED_HOSTS", "127.0.0.1".to_owned()),
        ("HTTP_TOOL_ALLOW_PRIVATE", "true".to_owned()),
        ("LOG_LEVEL", "debug".to_owned()),
    ])
}

/// An agent that sends every secret to somebody who sends back whatever comes, and keeps the answers of its model.
fn definition(outside: &Outside, name: &str, model: &str) -> Json {
    let http = json!({
        "method": "POST",
        "url": format!("{}/echo/{{{{ note }}}}", outside.served.url),
        "headers": {
            "Authorization": "Bearer {{ secrets.ENV_KEY }}",
            "X-File": { "secret": "FILE_KEY" },
            "X-Dir": { "secret": "dir-key" },
            "X-Vault": { "secret": "vault-key" }
        },
        "body": { "note": "{{ note }}" }
    });
    let auth = json!({ "type": "oauth2_client_credentials", "token_url": format!("{}/token", outside.served.url),
        "client_id": "planted", "client_secret": "{{ secrets.CLIENT_KEY }}" });
    let with_token =
        json!({ "method": "POST", "url": format!("{}/echo/token", outside.served.url), "auth": auth });
    let model = json!({ "provider": "acme", "model": model, "cache": { "ttl_seconds": 600 } });
    json!({
        "name": name,
        "tool_definitions": [
            { "name": "echo", "description": "Says it again.", "http": http },
            { "name": "with_token", "effect": "read", "http": with_token },
            { "name": "worker", "effect": "read", "nats": { "subject": "tools.echo" } },
            { "name": "environment", "runtime": { "type": "mcp", "server": "program", "tool": "environment" } },
        ],
        "nodes": [{ "id": "main", "type": "agent", "model": model, "system_prompt": "Echo.",
            "tools": ["echo", "with_token", "worker", "environment", "mcp:outside", "web_search"] }],
        "edges": []
    })
}

/// What the program says to people who ask over HTTP and on the command line.
async fn ask(world: &World, executor: &Executor, settings: &[(&str, String)]) -> Result<Outputs> {
    let mut outputs = Outputs::new();
    for path in ["/metrics", "/health", "/ready", &format!("/{IN_ENVIRONMENT}"), "/jobs/planted/result"] {
        outputs.push((format!("GET {path}"), executor.get(path).await?.1.into_bytes()));
    }
    let wrong = json!({ "job_id": "wrong", "agent_definition": { "nodes": [{ "id": IN_VAULT, "type": MODEL_KEY }] } });
    let (status, told) = executor.post("/", "application/json", &wrong.to_string()).await?;
    ensure!(status == 400, "{status} {told}");
    outputs.push(("POST /".to_owned(), told.into_bytes()));
    let set: Vec<String> =
        settings.iter().flat_map(|(name, value)| ["--set".into(), format!("{name}={value}")]).collect();
    let nowhere = format!("DATABASE_URL=postgres://u:{DATABASE}@127.0.0.1:1/x?application_name={DATABASE}");
    for command in [
        &["config"][..],
        &["doctor"],
        &["dlq", "list", "--json"],
        &["dlq", "show", "1"],
        &["tail", "planted", "--until-end", "--json"],
        &["threads", "history", "planted"],
        &["threads", "show", IN_FILE],
        &["--log-level", "debug", "--set", &nowhere, "migrate"],
    ] {
        // The environment beside our settings is not for flags; those that come later win.
        let ours = set.chunks(2).filter(|pair| {
            let name = pair[1].split('=').next().unwrap_or_default();
            name != "SOMEBODYS_PASSWORD" && !command.iter().any(|word| word.starts_with(&format!("{name}=")))
        });
        let arguments: Vec<&str> =
            ours.flatten().map(String::as_str).chain(command.iter().copied()).collect();
        let (_, printed, errors) = world.run_command(&arguments).await?;
        outputs.push((format!("{command:?}"), format!("{printed}\n{errors}").into_bytes()));
    }
    Ok(outputs)
}

/// Everything that is stored: rows, results, dead letters, events.
async fn stored(world: &World) -> Result<Outputs> {
    let mut outputs = Outputs::new();
    let tables = world.sql("select tablename from pg_tables where schemaname = 'public'").await?;
    for table in tables.lines().map(str::trim).filter(|table| !table.is_empty()) {
        let rows = world.sql(&format!("select t::text from {table} t")).await?;
        outputs.push((format!("table {table}"), rows.into_bytes()));
    }
    for stream in ["AGENT_RESULTS", "AGENT_DLQ"] {
        for stored in world.stream(stream).await? {
            let text = format!("{} {:?} {}", stored.subject, stored.headers, stored.json);
            outputs.push((stream.to_owned(), text.into_bytes()));
        }
    }
    for (key, value) in world.kept_answers().await? {
        let mut plain = Vec::new();
        DeflateDecoder::new(value.as_slice()).read_to_end(&mut plain)?;
        outputs.push(("kept answer".to_owned(), [key.as_bytes(), &plain].concat()));
    }
    for thread in ["planted", "failing", "other"] {
        for (id, event) in world.events(thread).await? {
            outputs.push((format!("event {thread} {id}"), event.to_string().into_bytes()));
        }
    }
    Ok(outputs)
}

/// How a planted value may look: as it is, as Postgres shows bytes, and in base64 wherever it stands in it.
fn needles() -> Vec<String> {
    let base64 = (0..3).map(|before| {
        let text = STANDARD_NO_PAD.encode([&vec![0; before], MARK.as_bytes()].concat());
        let last = (before + MARK.len()) * 8 / 6;
        text[(before * 8_usize).div_ceil(6)..last].to_owned()
    });
    [MARK.to_owned(), hex(MARK)].into_iter().chain(base64).collect()
}

fn has(text: &[u8], needle: &str) -> bool {
    text.windows(needle.len()).any(|window| window == needle.as_bytes())
}

#[test]
fn the_search_finds_a_value_as_it_is_in_hex_and_in_base64() {
    let found = |text: &str| needles().iter().any(|needle| has(text.as_bytes(), needle));
    assert!(found(IN_VAULT) && found("\\x2200706c346e742d"));
    for before in ["", "x", "xy", "user:"] {
        assert!(found(&STANDARD_NO_PAD.encode(format!("{before}{IN_FILE}"))), "{before}");
    }
    assert!(!found("***REDACTED***") && !found("plant"));
}

#[tokio::test]
async fn no_planted_secret_is_found_in_any_output() -> Result<()> {
    let (world, outside, vault) = (World::start().await?, Outside::start().await?, Vault::start().await?);
    let settings = settings(&world, &outside, &vault).await?;
    let given: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    worker(&world).await?;
    let executor = world.executor_with(&given).await?;
    let mut live = world.listen("planted").await?;

    let done = world.run(&request("planted", &definition(&outside, "planted", "good"), "go")).await?;
    assert_eq!(done["data"]["result"]["status"], "completed", "{done}");
    let output = done["data"]["result"]["output"].as_str().context("a text")?;
    let nothing = ["***REDACTED*** false"; 9].join(", ");
    assert_eq!(output, format!("A token is of no interest: {nothing}"), "the model has read a secret");
    let failed = world.run(&request("failing", &definition(&outside, "planted", "bad"), "go")).await?;
    assert_eq!(failed["data"]["error"]["type"], "MODEL_REJECTED", "{failed}");
    let other = world.run(&request("other", &definition(&outside, "other", "good"), "go")).await?;
    assert_eq!(other["data"]["result"]["status"], "completed", "{other}");
    let letter = [("Authorization", NAMED_IN_HEADER), ("X-Note", IN_ENVIRONMENT)];
    world.publish_raw(&letter, b"no JSON".to_vec()).await?;
    let buried = || async { world.stream("AGENT_DLQ").await.is_ok_and(|letters| !letters.is_empty()) };
    servers::until("the message is a dead letter", WITHIN, buried).await?;

    // The secrets were there: whoever they are for has got them.
    let basic = STANDARD.encode(format!("planted:{CLIENT}"));
    for secret in [
        IN_ENVIRONMENT,
        IN_FILE,
        IN_FOLDER,
        IN_VAULT,
        MODEL_KEY,
        COLLECTOR,
        IN_HEADER,
        IN_SEARCH,
        ISSUED,
        &basic,
    ] {
        let arrived = || async { outside.heard(secret) };
        servers::until(&format!("{secret} has arrived"), WITHIN, arrived).await?;
    }
    let events = world.events_to_the_end("planted").await?;
    check_events(&events);
    let refusal = answer(&world.events_to_the_end("other").await?, "echo");
    assert!(refusal.starts_with("SECRET_NOT_ALLOWED: "), "{refusal}");
    keep_an_answer(&world, &outside).await?;

    let mut outputs = ask(&world, &executor, &settings).await?;
    let published = live.until(|event| event["event_type"] == "end").await?;
    outputs.extend(published.iter().map(|event| ("channel".to_owned(), event.to_string().into_bytes())));
    outputs.extend(stored(&world).await?);
    assert!(executor.terminate().await?.success());
    outputs.push(("log".to_owned(), executor.log().into_bytes()));
    outputs.extend(outside.received());
    check(&outputs);
    Ok(())
}

/// What a tool has answered.
fn answer(events: &[Json], tool: &str) -> String {
    let ends = of_type(events, "on_tool_end");
    let end = ends.iter().find(|event| event["data"]["tool_name"] == tool);
    end.and_then(|end| end["data"]["tool_output"].as_str()).unwrap_or_default().to_owned()
}

/// Answers what it is asked with the same; it ends with its broker.
async fn worker(world: &World) -> Result<()> {
    let client = async_nats::connect(world.nats.url()).await?;
    let mut calls = client.subscribe("tools.echo").await?;
    client.flush().await?;
    TaskTracker::new().spawn(async move {
        while let Some(call) = calls.next().await {
            if let Some(reply) = call.reply {
                // Whoever asked may have gone.
                let _ = client.publish(reply, call.payload).await;
            }
        }
    });
    Ok(())
}

/// Asks until an answer is kept: the connection for that comes up by itself.
async fn keep_an_answer(world: &World, outside: &Outside) -> Result<()> {
    let mut asked = 0;
    while world.kept_answers().await?.len() < 2 {
        asked += 1;
        ensure!(asked < 50, "no answer was ever kept");
        world.run(&request(&format!("keep-{asked}"), &definition(outside, "planted", "good"), "go")).await?;
    }
    Ok(())
}

/// What people own stays: only known values are gone from the state, and what is called so in arguments from events.
fn check_events(events: &[Json]) {
    let starts = of_type(events, "on_tool_start");
    let start = starts.iter().find(|event| event["data"]["tool_name"] == "echo").expect("it is called");
    let start = &start["data"]["tool_input"];
    assert_eq!(start["password"], "***REDACTED***", "{start}");
    assert_eq!(start["max_tokens"], 7, "{start}");
    let end = answer(events, "echo");
    assert!(end.matches("***REDACTED***").count() >= 8, "headers come back in three spellings: {end}");
    for (tool, says) in [
        ("with_token", "authorization: Bearer ***REDACTED***"),
        ("worker", "{\"query\":\"***REDACTED***\"}"),
        ("environment", "\"AWS_SECRET_ACCESS_KEY\": \"***REDACTED***\""),
        ("outside__back", "\"cookie\": \"***REDACTED***\""),
        ("web_search", "\"authorization\": \"Bearer ***REDACTED***\""),
    ] {
        let said = answer(events, tool);
        assert!(said.contains(says), "{tool}: {said}");
    }
    let text: String =
        of_type(events, "on_llm_stream").iter().filter_map(|event| event["data"]["token"].as_str()).collect();
    assert!(text.contains("I use ***REDACTED*** now."), "{text}");
    let state = of_type(events, "on_state_update").last().expect("there is one")["data"].to_string();
    assert!(state.contains(NAMED_IN_ARGUMENTS), "a person's own password is part of the state: {state}");
}

fn check(outputs: &Outputs) {
    let kinds = [
        "table executor_job",
        "table checkpoint_blobs",
        "AGENT_DLQ",
        "AGENT_RESULTS",
        "kept answer",
        "channel",
        "log",
        "traces",
        "sink",
    ];
    for kind in kinds {
        assert!(
            outputs.iter().any(|(name, text)| name == kind && !text.is_empty()),
            "{kind} was not searched"
        );
    }
    let mut found = Vec::new();
    for (name, text) in outputs {
        for needle in needles() {
            if has(text, &needle) {
                found.push(format!("{needle} in {name}: {}", String::from_utf8_lossy(text)));
            }
        }
        let own = name.starts_with("table ") || name.contains("on_state_update") || name.contains("threads");
        for needle in [NAMED_IN_ERROR, NAMED_IN_HEADER] {
            if has(text, needle) {
                found.push(format!("{needle} in {name}"));
            }
        }
        if !own
            && ["log", "traces", "AGENT_RESULTS", "sink"].contains(&name.as_str())
            && has(text, NAMED_IN_ARGUMENTS)
        {
            found.push(format!("{NAMED_IN_ARGUMENTS} in {name}"));
        }
    }
    assert!(
        found.is_empty(),
        "{}",
        found.iter().map(|text| text.chars().take(600).collect::<String>()).collect::<Vec<_>>().join("\n\n")
    );
}

//! One deep-agent job from end to end on real servers that exist only for this: `make demo`.
//!
//! Starts PostgreSQL, NATS and Redis on free ports in a throw-away folder and the executor beside them, publishes
//! `graph-definitions/deep-agent.json` as a job, shows its events as they arrive and its result, then the thread's
//! checkpoints, and cleans up. `MODEL=provider:model` puts a real model in the place of the scripted one.

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use executor::Executor;
use serde_json::{Value as Json, json};
use servers::{Nats, Postgres, Redis};

#[path = "../dev/executor.rs"]
mod executor;
#[path = "../dev/servers.rs"]
mod servers;

const DEFINITION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/graph-definitions/deep-agent.json");
const THREAD: &str = "demo";
const QUESTION: &str = "Write a short text about tides for children of eight.";
/// Longer than any real model needs for the two specialists, shorter than anybody's patience.
const JOB_WITHIN: Duration = Duration::from_secs(300);

/// What the table at the end shows. Namespaces and ids are long; their beginnings tell them apart.
const CHECKPOINTS: &str = "select metadata->>'step' as step, metadata->>'source' as source, \
     case when checkpoint_ns = '' then '(root)' \
          else regexp_replace(checkpoint_ns, '(:[0-9a-f]{8})[0-9a-f-]*', '\\1', 'g') end as graph, \
     left(checkpoint_id, 23) as checkpoint, \
     array_to_string(array(select jsonb_array_elements_text( \
         case when jsonb_typeof(checkpoint->'updated_channels') = 'array' \
              then checkpoint->'updated_channels' else '[]'::jsonb end)), ', ') as \"updated channels\" \
     from checkpoints order by checkpoint_id";

#[tokio::main]
async fn main() -> ExitCode {
    match demo().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn demo() -> Result<()> {
    let began = Instant::now();
    let request = request(variable("MODEL").as_deref())?;
    heading("PostgreSQL, NATS and Redis start, on free ports and in a folder that goes away");
    let (postgres, nats, redis) = tokio::try_join!(Postgres::start(), Nats::start(), Redis::start())?;
    println!("{}\n{}\n{}", postgres.url(), nats.url(), redis.url());

    let program = program()?;
    let settings = settings(&postgres, &nats, &redis);
    let settings: Vec<(&str, &str)> =
        settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    heading("The executor starts, and makes its tables, streams and consumer");
    let executor = Executor::start(&program, &settings).await?;
    println!("http://127.0.0.1:{}/ready answers 200", executor.port());

    heading("A job is published to NATS; its events come from the Redis channel, its result from NATS");
    let followed = follow(&program, &settings, &request).await;
    followed.with_context(|| format!("the executor's last words:\n{}", executor.log_tail()))?;

    heading("Checkpoints of the thread, in LangGraph's own tables");
    println!("{}", postgres.table("postgres", CHECKPOINTS).await?);

    let status = executor.terminate().await?;
    ensure!(status.success(), "the executor ended with {status}; its last words:\n{}", executor.log_tail());
    heading(&format!("Done in {:.1} s; everything is stopped and removed", began.elapsed().as_secs_f32()));
    Ok(())
}

/// The job: the shipped definition with a question.
fn request(model: Option<&str>) -> Result<Json> {
    let text = fs::read_to_string(DEFINITION).with_context(|| format!("cannot read {DEFINITION}"))?;
    let mut definition: Json =
        serde_json::from_str(&text).with_context(|| format!("{DEFINITION} is no JSON"))?;
    if let Some(model) = model {
        let (provider, name) =
            model.split_once(':').context("MODEL is provider:model, e.g. openai:gpt-4o-mini")?;
        replace_models(&mut definition, &json!({ "provider": provider, "model": name }));
    }
    Ok(json!({
        "job_id": "demo-job",
        "thread_id": THREAD,
        "agent_definition": definition,
        "input": { "messages": [{ "role": "user", "content": QUESTION }] },
    }))
}

/// Puts `model` in the place of every model, written as an object or as a text; the scripts of scripted ones go with
/// them.
fn replace_models(place: &mut Json, model: &Json) {
    match place {
        Json::Object(fields) => {
            for (name, value) in fields {
                if name == "model" && (value.is_string() || value.is_object()) {
                    *value = model.clone();
                } else {
                    replace_models(value, model);
                }
            }
        }
        Json::Array(items) => items.iter_mut().for_each(|item| replace_models(item, model)),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}

fn settings(postgres: &Postgres, nats: &Nats, redis: &Redis) -> Vec<(String, String)> {
    let mut settings = vec![
        ("DATABASE_URL".to_owned(), postgres.url()),
        ("NATS_URL".to_owned(), nats.url()),
        ("DRAGONFLY_URL".to_owned(), redis.url()),
        ("LOG_FORMAT".to_owned(), "text".to_owned()),
    ];
    // What a real model needs.
    for name in
        ["OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "HTTPS_PROXY"]
    {
        settings.extend(variable(name).map(|value| (name.to_owned(), value)));
    }
    settings
}

/// `agent-executor submit - --follow` with the request on its stdin; what it prints is ours.
async fn follow(program: &Path, settings: &[(&str, &str)], request: &Json) -> Result<()> {
    let mut command = tokio::process::Command::from(executor::command(program, settings));
    command.args(["submit", "-", "--follow"]).stdin(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().context("cannot start agent-executor submit")?;
    let mut stdin = child.stdin.take().context("stdin was asked for")?;
    tokio::io::AsyncWriteExt::write_all(&mut stdin, request.to_string().as_bytes()).await?;
    drop(stdin);
    let ended = tokio::time::timeout(JOB_WITHIN, child.wait()).await;
    let status = ended.with_context(|| format!("no result within {JOB_WITHIN:?}"))??;
    ensure!(status.success(), "agent-executor submit ended with {status}");
    Ok(())
}

/// The binary that was built beside this example.
fn program() -> Result<PathBuf> {
    let example = std::env::current_exe()?;
    let program = example.ancestors().nth(2).context("examples have a folder")?.join("agent-executor");
    ensure!(program.is_file(), "{} is not built; run `make demo`", program.display());
    Ok(program)
}

fn variable(name: &str) -> Option<String> {
    std::env::var_os(name)?.into_string().ok().filter(|value| !value.is_empty())
}

fn heading(text: &str) {
    let (bold, plain) = if std::io::stdout().is_terminal() { ("\x1b[1;36m", "\x1b[0m") } else { ("", "") };
    println!("\n{bold}== {text}{plain}");
    let _ = std::io::stdout().flush();
}

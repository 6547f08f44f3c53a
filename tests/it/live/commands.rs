//! The commands as scripts use them: what they print, and the exit codes they end with.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value as Json, json};

use super::world::{World, orchestrator, request};
use crate::servers;

/// A request in a file.
fn file(name: &str, json: &Json) -> Result<String> {
    let path = servers::scratch("command")?.join(name);
    fs::write(&path, json.to_string())?;
    path.to_str().map(str::to_owned).context("paths are UTF-8")
}

fn lines(printed: &str) -> Vec<Json> {
    printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[tokio::test]
async fn submit_follows_a_job_and_its_exit_code_tells_how_it_ended() -> Result<()> {
    let world = World::start().await?;
    let _executor = world.executor().await?;
    let good = file(
        "good.json",
        &request("followed", &orchestrator(json!([{ "text": "some words to read" }])), "hi"),
    )?;

    let (code, printed, errors) = world.run_command(&["submit", &good, "--follow"]).await?;
    assert_eq!(code, Some(0), "{errors}");
    for part in ["some words to read", "followed", "\"status\""] {
        assert!(printed.contains(part), "{part:?} is not printed:\n{printed}");
    }

    let mut bad = request(
        "refused",
        &orchestrator(json!([{ "text": "x", "fail": { "times": 99, "status": 400, "message": "no" } }])),
        "hi",
    );
    bad["thread_id"] = json!("a-thread");
    let bad = file("bad.json", &bad)?;
    let (code, printed, _) = world.run_command(&["submit", &bad, "--follow", "--json"]).await?;
    assert_eq!(code, Some(3), "{printed}");
    let types: Vec<_> = lines(&printed)
        .into_iter()
        .filter_map(|line| line["event_type"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(types, ["on_attempt_start", "on_state_update", "error", "end"]);

    let (code, printed, _) = world.run_command(&["tail", "a-thread", "--until-end", "--json"]).await?;
    assert_eq!(code, Some(0));
    assert_eq!(lines(&printed).len(), 4, "a late reader gets all of it:\n{printed}");

    let (code, _, errors) = world.run_command(&["submit", "/no/such/file.json"]).await?;
    assert!(code == Some(1) && errors.contains("/no/such/file.json"), "{code:?} {errors}");
    let (code, ..) = world.run_command(&["submit"]).await?;
    assert_eq!(code, Some(2), "wrong usage");
    Ok(())
}

#[tokio::test]
async fn validate_names_every_mistake_by_pointer() -> Result<()> {
    let world = World::start().await?;
    let good = file("good.json", &orchestrator(json!([{ "text": "x" }])))?;
    let (code, printed, errors) = world.run_command(&["validate", &good]).await?;
    assert_eq!(code, Some(0), "{errors}");
    assert!(printed.contains("main"), "{printed}");

    let broken = json!({ "nodes": [
        { "id": "a", "type": "model", "prompt": "{{ x", "model": { "provider": "scripted", "model": "m", "temperature": "hot" } },
        { "id": "a", "type": "transform", "writes": { "nowhere": "1" } },
        { "id": "lost", "type": "transform", "writes": {} }
    ], "edges": [{ "source": "START", "target": "a" }, { "source": "a", "target": "ghost" }, { "source": "a", "target": "END" }] });
    let broken = file("broken.json", &broken)?;
    let (code, printed, errors) = world.run_command(&["validate", &good, &broken]).await?;
    assert_eq!(code, Some(1));
    let all = format!("{printed}{errors}");
    for part in ["/nodes/0/prompt", "/nodes/0/model/temperature", "/nodes/1", "/edges/1", "ghost", "lost"] {
        assert!(all.contains(part), "{part} is not named:\n{all}");
    }
    Ok(())
}

#[tokio::test]
async fn migrate_makes_the_tables_and_config_hides_secrets() -> Result<()> {
    let world = World::start().await?;
    for _ in 0..2 {
        let (code, _, errors) = world.run_command(&["migrate"]).await?;
        assert_eq!(code, Some(0), "{errors}");
    }
    let tables = world.sql("select count(*) from pg_tables where tablename in ('checkpoints', 'checkpoint_blobs', \
        'checkpoint_writes', 'checkpoint_migrations', 'executor_job', 'executor_thread', 'executor_dead_letter')");
    assert_eq!(tables.await?.trim(), "7");

    let (code, printed, _) = world.run_command(&["config", "--set", "OPENAI_API_KEY=sk-very-secret"]).await?;
    assert_eq!(code, Some(0));
    assert!(printed.contains("OPENAI_API_KEY") && !printed.contains("very-secret"), "{printed}");
    let (code, _, errors) =
        world.run_command(&["config", "--set", "PORT=x", "--set", "LEASE_SECONDS=y"]).await?;
    assert!(
        code == Some(1) && errors.contains("PORT") && errors.contains("LEASE_SECONDS"),
        "{code:?} {errors}"
    );
    Ok(())
}

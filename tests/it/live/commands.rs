//! The commands as scripts use them: what they print, and the exit codes they end with.

use std::fs;

use anyhow::{Context, Result};
use futures::StreamExt;
use serde_json::{Value as Json, json};

use super::world::{WITHIN, World, orchestrator, request};
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
async fn tail_goes_on_over_a_restart_of_the_server_and_says_what_is_gone() -> Result<()> {
    let world = World::start().await?;
    let _executor = world.executor().await?;
    let slow = orchestrator(json!([{ "text": "one two three", "delay_ms": 6000 }]));
    world.publish(&request("tailed", &slow, "hi")).await?;
    let begun = || async { world.events("tailed").await.is_ok_and(|events| events.len() == 2) };
    servers::until("the job has begun", WITHIN, begun).await?;
    let looked_before = world.looks_into_streams().await?;
    let restart = async {
        let (_, printed, _) =
            world.run_command(&["tail", "tailed", "--from", "1-1", "--json", "--until-end"]).await?;
        anyhow::Ok(printed)
    };
    let lose = async {
        let has_read = || async { world.looks_into_streams().await.is_ok_and(|looks| looks > looked_before) };
        servers::until("tail has read what is there", WITHIN, has_read).await?;
        world.redis.kill()?;
        world.redis.start_again().await
    };
    let (printed, lost) = tokio::join!(restart, lose);
    lost?;
    let lines = lines(&printed?);
    let types: Vec<_> = lines.iter().filter_map(|line| line["event_type"].as_str()).collect();
    assert_eq!((types.first(), types.last()), (Some(&"on_state_update"), Some(&"end")), "{lines:?}");
    let ids: Vec<_> = lines.iter().map(|line| line["id"].to_string()).collect();
    assert!(
        !ids.is_empty() && lines.iter().all(|line| line.get("notice").is_none()),
        "nothing was lost: {lines:?}"
    );

    // A reader who comes back after the stream has gone is told so, also in words.
    let (_, printed, _) =
        world.run_command(&["tail", "tailed", "--from", "0-7", "--json", "--until-end"]).await?;
    let first = self::lines(&printed).into_iter().next().context("a line")?;
    assert_eq!((&first["notice"], &first["after"]), (&json!("gone"), &json!("0-7")));
    let (_, printed, _) = world.run_command(&["tail", "tailed", "--from", "0-7", "--until-end"]).await?;
    assert!(printed.starts_with("⚠ the stream begins with "), "{printed}");
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

#[tokio::test]
async fn migrate_makes_what_the_broker_needs_when_it_is_asked_to() -> Result<()> {
    let world = World::start().await?;
    let (code, _, errors) =
        world.run_command(&["migrate", "--queue", "--set", "NATS_PROVISION=false"]).await?;
    assert!(code == Some(1) && errors.contains("[QUEUE_UNUSABLE]"), "{code:?} {errors}");
    for _ in 0..2 {
        let (code, printed, errors) = world.run_command(&["migrate", "--queue"]).await?;
        assert_eq!(code, Some(0), "{errors}");
        assert!(printed.contains("the streams and the consumer are there"), "{printed}");
    }
    let (code, _, errors) =
        world.run_command(&["migrate", "--queue", "--set", "NATS_PROVISION=false"]).await?;
    assert_eq!(code, Some(0), "they are there: {errors}");
    Ok(())
}

#[tokio::test]
async fn cancel_asks_the_executors_and_says_what_they_answer() -> Result<()> {
    let world = World::start().await?;
    let (code, printed, errors) = world.run_command(&["cancel", "j"]).await?;
    assert!(code == Some(1) && errors.contains("[NO_EXECUTOR]"), "{code:?} {printed} {errors}");

    // In the place of an executor: it tells what it was asked.
    let client = async_nats::connect(world.nats.url()).await?;
    let mut asked = client.subscribe("agent.control.>").await?;
    client.flush().await?;
    let echo = async {
        while let Some(message) = asked.next().await {
            let body: Json = serde_json::from_slice(&message.payload).unwrap_or_default();
            let answer = match message.subject.as_str() {
                "agent.control.refused" => {
                    json!({ "error": { "code": "NOT_FOUND", "message": "no such job" } })
                }
                subject => json!({ "subject": subject, "body": body }),
            };
            if let Some(reply) = message.reply {
                client.publish(reply, answer.to_string().into()).await?;
            }
        }
        anyhow::bail!("the subscription ended")
    };
    tokio::select! {
        ended = echo => ended,
        answered = ask_for_cancels(&world) => answered,
    }
}

async fn ask_for_cancels(world: &World) -> Result<()> {
    let arguments = ["cancel", "a.b c", "--thread", "--reason", "no need", "--by", "ann"];
    let (code, printed, errors) = world.run_command(&arguments).await?;
    assert_eq!(code, Some(0), "{errors}");
    let expected = json!({ "action": "cancel", "reason": "no need", "by": "ann", "kind": "thread" });
    let answer: Json = serde_json::from_str(&printed)?;
    assert_eq!(answer, json!({ "subject": "agent.control.a%2Eb%20c", "body": expected }));
    let (code, printed, errors) = world.run_command(&["cancel", "refused"]).await?;
    assert!(code == Some(1) && printed.is_empty(), "{code:?} {printed}");
    assert!(errors.contains("error: [NOT_FOUND] no such job"), "{errors}");
    let (code, ..) = world.run_command(&["cancel", "j", "--reason", &"x".repeat(1001)]).await?;
    assert_eq!(code, Some(2));
    Ok(())
}

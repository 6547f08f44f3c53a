//! What could not be run, through the hands of an operator: listed, shown, sent again, discarded.

use anyhow::{Context, Result};
use serde_json::{Value as Json, json};

use super::world::{WITHIN, World, of_type, orchestrator, request};
use crate::servers;

/// What `dlq list` prints.
async fn letters(world: &World, more: &[&str]) -> Result<Vec<Json>> {
    let arguments = [&["dlq", "list", "--json"], more].concat();
    let (code, printed, errors) = world.run_command(&arguments).await?;
    assert_eq!(code, Some(0), "{errors}");
    printed.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Lets executors die with the job until it is given up, the last time with its message gone.
async fn poison(world: &World, job_id: &str, prompt: &str) -> Result<()> {
    let settings = [("LEASE_SECONDS", "2"), ("MAX_CRASHES", "1")];
    let slow = orchestrator(json!([{ "text": "made it", "delay_ms": 4000 }]));
    for attempt in ["1", "2"] {
        let executor = world.executor_with(&settings).await?;
        if attempt == "1" {
            world.publish(&request(job_id, &slow, prompt)).await?;
        }
        let runs = || async {
            let attempt_of = "select attempt from executor_job where state = 'running'";
            let stored = world.sql("select count(*) > 0 from checkpoints").await;
            world.sql(attempt_of).await.is_ok_and(|found| found.trim() == attempt)
                && stored.is_ok_and(|stored| stored.trim() == "t")
        };
        servers::until(&format!("attempt {attempt}"), WITHIN, runs).await?;
        executor.kill()?;
    }
    world.lose_requests().await?;
    let executor = world.executor_with(&settings).await?;
    let result = world.result_of(job_id).await?;
    assert_eq!(result["data"]["error"]["type"], "POISON", "{result}");
    assert!(executor.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn a_job_that_was_given_up_is_shown_and_runs_again_from_its_last_checkpoint() -> Result<()> {
    let world = World::start().await?;
    poison(&world, "killer", "a prompt that is nobody's business").await?;

    let found = letters(&world, &[]).await?;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((&found[0]["reason"], &found[0]["job_id"]), (&json!("poison"), &json!("killer")));
    assert_eq!(world.stream("AGENT_DLQ").await?.len(), 1);
    let id = found[0]["id"].to_string();
    let last = world.sql("select max(checkpoint_id) from checkpoints where thread_id = 'killer'").await?;
    let (_, printed, _) = world.run_command(&["dlq", "list", "--reason", "poison"]).await?;
    assert!(printed.starts_with("ID") && printed.contains("killer"), "{printed}");
    let (code, printed, _) = world.run_command(&["dlq", "show", &id]).await?;
    assert_eq!(code, Some(0));
    for part in ["poison", "state: dead", last.trim(), "given up", "payload_bytes"] {
        assert!(printed.contains(part), "{part:?} is not shown:\n{printed}");
    }
    assert!(!printed.contains("nobody's business"), "{printed}");
    let (_, payload, _) = world.run_command(&["dlq", "show", &id, "--payload"]).await?;
    assert!(payload.contains("nobody's business"), "{payload}");
    let (code, _, errors) = world.run_command(&["dlq", "show", "4711"]).await?;
    assert!(code == Some(1) && errors.contains("no dead letter 4711"), "{errors}");

    let (code, printed, _) = world.run_command(&["dlq", "replay", &id, "--dry-run"]).await?;
    assert!(code == Some(0) && printed.contains("from its last checkpoint"), "{printed}");
    assert_eq!(letters(&world, &[]).await?.len(), 1, "a dry run changes nothing");
    let executor = world.executor().await?;
    let (code, printed, errors) = world.run_command(&["dlq", "replay", &id, "--json"]).await?;
    assert_eq!(code, Some(0), "{errors}");
    let replayed: Json = serde_json::from_str(&printed)?;
    let job_id = replayed["job_id"].as_str().context("a job id")?;
    assert_eq!(job_id, format!("killer~replay{id}-1"));
    let result = world.result_of(job_id).await?;
    assert_eq!(result["data"]["result"]["output"], "made it", "{result}");
    assert_eq!(world.results_of("killer").await?.len(), 1, "one job, one terminal result");

    let events = world.events_to_the_end("killer").await?;
    let states = of_type(&events, "on_state_update");
    let messages = states.last().and_then(|state| state["data"]["messages"].as_array());
    assert_eq!(messages.map(Vec::len), Some(2), "the question stands there once: {states:?}");
    assert_eq!(letters(&world, &[]).await?.len(), 0);
    assert_eq!(letters(&world, &["--all"]).await?[0]["replay_job_id"], job_id);
    world.all_settled().await?;
    assert!(executor.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn what_cannot_end_differently_is_not_sent_again_and_the_rest_is() -> Result<()> {
    let world = World::start().await?;
    let executor = world.executor().await?;
    world.publish_raw(&[], b"not json".to_vec()).await?;
    world.publish_raw(&[], b"[]".to_vec()).await?;
    let good = orchestrator(json!([{ "text": "understood" }]));
    let foreign = json!({ "specversion": "1.0", "id": "e", "source": "/t", "type": "com.example.agent.execute",
        "data": request("foreign", &good, "hi") });
    world.publish(&foreign).await?;
    let kept = || async { letters(&world, &[]).await.is_ok_and(|found| found.len() == 3) };
    servers::until("three dead letters", WITHIN, kept).await?;

    let (code, printed, _) = world.run_command(&["dlq", "replay", "--all", "--reason", "not_json"]).await?;
    assert!(code == Some(1) && printed.contains("still cannot be read"), "{code:?} {printed}");
    let again = ["dlq", "replay", "--all", "--reason", "bad_request"];
    let (code, printed, _) = world.run_command(&again).await?;
    assert!(code == Some(1) && printed.contains("still is no valid request"), "{code:?} {printed}");
    // Once the prefix is the right one, the same letter can be understood.
    let prefix = [&again[..], &["--set", "CLOUDEVENT_TYPE_PREFIX=com.example"]].concat();
    let (code, printed, errors) = world.run_command(&prefix).await?;
    assert!(code == Some(0) && printed.contains("with its input"), "{code:?} {printed} {errors}");
    let job_id = printed.split_whitespace().find(|word| word.starts_with("foreign~replay"));
    let job_id = job_id.context("the new job")?.trim_end_matches(',').to_owned();
    assert_eq!(world.result_of(&job_id).await?["data"]["result"]["output"], "understood");
    assert_eq!(world.results_of("foreign").await?.len(), 1);

    // The two were read side by side.
    let mut left = letters(&world, &[]).await?;
    left.sort_by_key(|letter| letter["reason"].to_string());
    let reasons: Vec<_> = left.iter().map(|letter| letter["reason"].as_str().unwrap_or_default()).collect();
    assert_eq!(reasons, ["not_an_object", "not_json"]);
    let (code, _, errors) = world.run_command(&["dlq", "discard", "--reason", "not_json"]).await?;
    assert!(code == Some(1) && errors.contains("--yes"), "{code:?} {errors}");
    let yes = ["dlq", "discard", "--reason", "not_json", "--yes"];
    let (code, printed, _) = world.run_command(&yes).await?;
    assert_eq!((code, printed.trim()), (Some(0), "discarded 1"));
    let id = left[0]["id"].to_string();
    let (_, printed, _) = world.run_command(&["dlq", "discard", &id, "--yes"]).await?;
    assert_eq!(printed.trim(), "discarded 1");
    assert_eq!(letters(&world, &[]).await?.len(), 0);
    assert_eq!(letters(&world, &["--all"]).await?.len(), 3, "nothing is forgotten");
    for wrong in [&["dlq", "discard", "--yes"][..], &["dlq", "replay"], &["dlq", "list", "--since", "7"]] {
        assert_eq!(world.run_command(wrong).await?.0, Some(2), "{wrong:?}");
    }
    world.all_settled().await?;
    assert!(executor.terminate().await?.success());
    Ok(())
}

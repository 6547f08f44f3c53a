//! Requests to cancel from outside, to whichever executor has the job, and without any.

use anyhow::Result;
use serde_json::{Value as Json, json};

use super::world::{WITHIN, World, of_type, orchestrator, request};
use crate::servers;

fn slow(job_id: &str) -> Json {
    request(job_id, &orchestrator(json!([{ "text": "late", "delay_ms": 600_000 }])), "hi")
}

async fn has_state(world: &World, job_id: &str, state: &str) -> Result<()> {
    let there = || async {
        let found = world.sql(&format!("select state from executor_job where job_id = '{job_id}'")).await;
        found.is_ok_and(|found| found.trim() == state)
    };
    servers::until(&format!("{job_id} is {state}"), WITHIN, there).await
}

async fn cancel(world: &World, arguments: &[&str]) -> Result<(Json, String)> {
    let all: Vec<_> = ["cancel"].iter().chain(arguments).copied().collect();
    let (code, printed, errors) = world.run_command(&all).await?;
    assert_eq!(code, Some(0), "{errors}");
    Ok((serde_json::from_str(&printed)?, errors))
}

async fn assert_cancelled(world: &World, job_id: &str, message: &str) -> Result<()> {
    let result = world.result_of(job_id).await?;
    assert_eq!(result["type"], "dev.my-platform.agent.cancelled", "{result}");
    assert_eq!(
        (&result["data"]["error"]["type"], &result["data"]["error"]["message"]),
        (&json!("JOB_CANCELLED"), &json!(message))
    );
    assert_eq!(world.results_of(job_id).await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn whoever_is_asked_the_owner_stops_and_the_thread_goes_on() -> Result<()> {
    let world = World::start().await?;
    // Either of them is asked, and either of them has the jobs.
    let (one, other) = (world.executor().await?, world.executor().await?);
    for number in 0..4 {
        let job_id = format!("running-{number}");
        world.publish(&slow(&job_id)).await?;
        has_state(&world, &job_id, "running").await?;
        let (answer, _) = cancel(&world, &[&job_id, "--by", "ann", "--reason", "no need"]).await?;
        assert_eq!(answer["jobs"][0]["state"], "cancelling", "{answer}");
        assert_cancelled(&world, &job_id, "cancelled by ann: no need").await?;
        let events = world.events_to_the_end(&job_id).await?;
        assert_eq!(of_type(&events, "end").len(), 1);
        assert_eq!(events.last().map(|end| &end["data"]["status"]), Some(&json!("cancelled")));
        assert_eq!(of_type(&events, "error")[0]["data"]["error"]["type"], "JOB_CANCELLED");
    }

    let mut first = slow("first");
    first["thread_id"] = "shared".into();
    world.publish(&first).await?;
    has_state(&world, "first", "running").await?;
    let mut second = first.clone();
    second["job_id"] = "second".into();
    world.publish(&second).await?;
    has_state(&world, "second", "queued").await?;
    let (answer, _) = cancel(&world, &["second"]).await?;
    assert_eq!(answer["jobs"], json!([{ "job_id": "second", "thread_id": "shared", "state": "cancelled" }]));
    assert_cancelled(&world, "second", "cancelled").await?;
    let (answer, _) = cancel(&world, &["shared", "--thread"]).await?;
    assert_eq!(answer["jobs"][0]["state"], "cancelling", "{answer}");
    assert_cancelled(&world, "first", "cancelled").await?;
    let (answer, _) = cancel(&world, &["first"]).await?;
    assert_eq!(answer["jobs"][0]["state"], "cancelled", "it has ended");

    world.all_settled().await?;
    assert!(one.terminate().await?.success() && other.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn without_an_executor_the_wish_waits_in_the_database() -> Result<()> {
    let world = World::start().await?;
    let first = world.executor().await?;
    assert!(first.terminate().await?.success());
    world.publish(&slow("waits")).await?;
    let (answer, errors) = cancel(&world, &["waits", "--job", "--by", "ann"]).await?;
    assert!(answer["message"].as_str().is_some_and(|said| said.contains("no such job is known")), "{answer}");
    assert!(errors.contains("no executor is connected") && errors.contains("in the database"), "{errors}");
    let executor = world.executor().await?;
    assert_cancelled(&world, "waits", "cancelled by ann").await?;
    world.all_settled().await?;
    assert!(executor.terminate().await?.success());
    Ok(())
}

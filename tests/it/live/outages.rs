//! Servers that go away and come back in the middle of a run: the job completes, once.

use anyhow::Result;
use serde_json::{Value as Json, json};

use super::{
    main_job::deep_agent,
    world::{WITHIN, World, of_type, orchestrator, request},
};
use crate::{executor::Executor, servers};

/// Starts a run of several supersteps and waits until it is in its middle.
async fn in_the_middle(world: &World, job_id: &str) -> Result<()> {
    world.publish(&request(job_id, &deep_agent(400), "hi")).await?;
    let started = || async {
        let steps = world.sql("select count(*) from checkpoints where checkpoint_ns = ''").await;
        steps.is_ok_and(|steps| steps.trim().parse::<u32>().is_ok_and(|steps| steps >= 3))
    };
    servers::until("a run is in its middle", WITHIN, started).await
}

async fn completed_once(world: &World, job_id: &str) -> Result<Json> {
    let result = world.result_of(job_id).await?;
    assert_eq!(result["data"]["result"]["output"], "both are done", "{result}");
    world.all_settled().await?;
    assert_eq!(world.results_of(job_id).await?.len(), 1);
    Ok(result)
}

pub(super) async fn metric(executor: &Executor, name: &str) -> Result<f64> {
    let (_, text) = executor.get("/metrics").await?;
    let values =
        text.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit(' ').next());
    Ok(values.filter_map(|value| value.parse::<f64>().ok()).sum())
}

#[tokio::test]
async fn redis_stopped_during_a_run_costs_events_and_nothing_else() -> Result<()> {
    let world = World::start().await?;
    let executor = world.executor().await?;
    in_the_middle(&world, "no-redis").await?;
    world.redis.kill()?;
    let result = completed_once(&world, "no-redis").await?;
    assert_eq!(result["data"]["attempts"], 1);
    let counted = || async {
        metric(&executor, "agent_executor_redis_publish_errors_total").await.is_ok_and(|n| n > 0.0)
    };
    servers::until("failed sends are counted", WITHIN, counted).await?;
    let (status, ready) = executor.get("/ready").await?;
    assert_eq!(
        (status, &serde_json::from_str::<Json>(&ready)?["services"]["dragonfly"]),
        (200, &json!(false))
    );

    // The end is still told when the server comes back.
    world.redis.start_again().await?;
    let events = world.events_to_the_end("no-redis").await?;
    assert_eq!(of_type(&events, "end").len(), 1);
    let next = world.run(&request("after-redis", &orchestrator(json!([{ "text": "again" }])), "hi")).await?;
    assert_eq!(next["data"]["result"]["output"], "again");
    assert_eq!(of_type(&world.events_to_the_end("after-redis").await?, "end").len(), 1);
    Ok(())
}

#[tokio::test]
async fn postgres_stopped_and_started_during_a_run_loses_nothing() -> Result<()> {
    let world = World::start_with_own_postgres().await?;
    let executor = world.executor().await?;
    in_the_middle(&world, "no-postgres").await?;
    world.postgres().stop_immediate().await?;
    let unready = || async { executor.get("/ready").await.is_ok_and(|(status, _)| status == 503) };
    servers::until("/ready says 503", WITHIN, unready).await?;
    // Accepted by NATS while Postgres is away.
    world.publish(&request("meanwhile", &orchestrator(json!([{ "text": "kept" }])), "hi")).await?;
    world.postgres().start_again().await?;
    completed_once(&world, "no-postgres").await?;
    assert_eq!(world.result_of("meanwhile").await?["data"]["result"]["output"], "kept");
    assert!(executor.is_running(), "no restart is needed");
    assert!(metric(&executor, "agent_executor_db_connection_errors_total").await? > 0.0);
    assert!(executor.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn nats_stopped_and_started_during_a_run_loses_nothing() -> Result<()> {
    let world = World::start().await?;
    let executor = world.executor().await?;
    in_the_middle(&world, "no-nats").await?;
    world.nats.kill()?;
    let finished = || async {
        world
            .sql("select state from executor_job where job_id = 'no-nats'")
            .await
            .is_ok_and(|state| state.trim() == "succeeded")
    };
    servers::until("the job ends without its broker", WITHIN, finished).await?;
    world.nats.start_again().await?;
    let result = completed_once(&world, "no-nats").await?;
    assert_eq!(result["data"]["attempts"], 1, "the run itself was not disturbed");
    let next = world.run(&request("after-nats", &orchestrator(json!([{ "text": "again" }])), "hi")).await?;
    assert_eq!(next["data"]["result"]["output"], "again");
    assert!(executor.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn a_drain_hands_running_jobs_to_another_process() -> Result<()> {
    let world = World::start().await?;
    let first = world.executor_with(&[("SHUTDOWN_GRACE_SECONDS", "1")]).await?;
    let slow = orchestrator(json!([{ "text": "slow", "delay_ms": 4000 }]));
    world.publish(&request("handed-over", &slow, "hi")).await?;
    let running = || async {
        world.sql("select state from executor_job").await.is_ok_and(|state| state.trim() == "running")
    };
    servers::until("the job runs", WITHIN, running).await?;
    assert!(first.terminate().await?.success());
    let owner = world.sql("select coalesce(owner, 'nobody') from executor_thread").await?;
    assert_eq!(owner.trim(), "nobody", "the thread is free");
    let second = world.executor().await?;
    let result = world.result_of("handed-over").await?;
    assert_eq!(result["data"]["result"]["output"], "slow");
    assert_eq!(
        world.sql("select cardinality(charged) from executor_job").await?.trim(),
        "0",
        "a drain charges nothing"
    );
    world.all_settled().await?;
    assert!(second.terminate().await?.success());
    Ok(())
}

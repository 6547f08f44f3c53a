//! The end of a process as a platform brings it about: `drain`, what `/ready` says meanwhile, who has the jobs after.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value as Json, json};

use super::world::{WITHIN, World, orchestrator, request};
use crate::{executor::Executor, servers};

/// A job whose one model call takes so long, once it runs.
async fn running(world: &World, job_id: &str, delay_ms: u64) -> Result<()> {
    let slow = orchestrator(json!([{ "text": "slow", "delay_ms": delay_ms }]));
    world.publish(&request(job_id, &slow, "hi")).await?;
    let runs = || async {
        let state = world.sql(&format!("select state from executor_job where job_id = '{job_id}'")).await;
        state.is_ok_and(|state| state.trim() == "running")
    };
    servers::until("the job runs", WITHIN, runs).await
}

async fn drain(world: &World, executor: &Executor, timeout: &str) -> Result<(Option<i32>, String)> {
    let pid = executor.pid()?.to_string();
    let (code, printed, errors) = world.run_command(&["drain", "--pid", &pid, "--timeout", timeout]).await?;
    assert!(printed.is_empty(), "{printed}");
    Ok((code, errors))
}

async fn ready(executor: &Executor) -> Option<(u16, Json)> {
    let (status, body) = executor.get("/ready").await.ok()?;
    Some((status, serde_json::from_str(&body).ok()?))
}

#[tokio::test]
async fn drain_waits_for_short_work_while_ready_says_no() -> Result<()> {
    let world = World::start().await?;
    let executor = world.executor().await?;
    running(&world, "short", 3000).await?;
    let turned_away = async {
        let refused = || async {
            ready(&executor).await.is_some_and(|(status, body)| status == 503 && body["status"] == "draining")
        };
        servers::until("/ready says that it drains", WITHIN, refused).await?;
        assert!(world.results_of("short").await?.is_empty(), "it says so while the job still runs");
        anyhow::Ok(())
    };
    let (drained, turned_away) = tokio::join!(drain(&world, &executor, "30"), turned_away);
    turned_away?;
    let (code, errors) = drained?;
    assert_eq!(code, Some(0), "{errors}");
    assert!(executor.ended(Duration::from_secs(1)).await?.success(), "it has ended when the command returns");
    let results = world.results_of("short").await?;
    assert_eq!(results.len(), 1, "the job was finished");
    assert_eq!(results[0].json["data"]["attempts"], 1);
    assert_eq!(world.unsettled().await?, (0, 0));
    Ok(())
}

#[tokio::test]
async fn drain_reports_what_outlasts_it_and_a_second_one_hurries() -> Result<()> {
    let world = World::start().await?;
    let executor = world.executor_with(&[("SHUTDOWN_GRACE_SECONDS", "50")]).await?;
    running(&world, "long", 45_000).await?;
    let (code, errors) = drain(&world, &executor, "1").await?;
    assert!(code == Some(1) && errors.contains("has not ended within 1 s"), "{code:?} {errors}");
    assert!(executor.is_running());
    let (code, errors) = drain(&world, &executor, "30").await?;
    assert_eq!(code, Some(0), "{errors}");
    assert!(executor.ended(Duration::from_secs(1)).await?.success());
    let owner = world.sql("select coalesce(owner, 'nobody') from executor_thread").await?;
    assert_eq!(owner.trim(), "nobody", "the thread was handed back");
    let (held, waiting) = world.unsettled().await?;
    assert_eq!(held as u64 + waiting, 1, "its message is still there");
    Ok(())
}

#[tokio::test]
async fn drain_leaves_other_programs_alone() -> Result<()> {
    let world = World::start().await?;
    let test = std::process::id().to_string();
    for (pid, part) in [(test.as_str(), "not agent-executor"), ("1", "not agent-executor")] {
        let (code, _, errors) = world.run_command(&["drain", "--pid", pid]).await?;
        assert!(code == Some(1) && errors.contains(part), "{code:?} {errors}");
    }
    let (code, _, errors) = world.run_command(&["drain", "--pid", "2147483647"]).await?;
    assert!(code == Some(1) && errors.contains("there is no process 2147483647"), "{code:?} {errors}");
    let (code, ..) = world.run_command(&["drain", "--pid", "0"]).await?;
    assert_eq!(code, Some(2));
    Ok(())
}

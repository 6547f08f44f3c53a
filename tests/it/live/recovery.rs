//! Processes that die or are told to go, and what becomes of their jobs, long before the broker would deliver again.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value as Json, json};

use super::world::{WITHIN, World, of_type, orchestrator, request};
use crate::{executor::Executor, servers};

/// Redelivery would come after the longest wait of any test.
const NO_REDELIVERY: (&str, &str) = ("NATS_ACK_WAIT_SECONDS", "300");

/// One agent that calls a tool again and again, with a pause before each call.
fn steps(job_id: &str, count: usize, pause_ms: u64) -> Json {
    let call = json!([{ "name": "write_todos", "args": { "todos": [] } }]);
    let step = json!({ "text": "step", "tool_calls": call, "delay_ms": pause_ms });
    let mut replies = vec![step; count];
    replies.push(json!({ "text": "all done" }));
    let mut request = request(job_id, &orchestrator(replies.into()), "go");
    request["agent_definition"]["nodes"][0]["tools"] = json!(["write_todos"]);
    request
}

async fn number(world: &World, query: &str) -> Result<i64> {
    Ok(world.sql(query).await?.trim().parse()?)
}

async fn has_checkpoints(world: &World, least: i64) -> Result<()> {
    let there =
        || async { number(world, "select count(*) from checkpoints").await.is_ok_and(|n| n >= least) };
    servers::until(&format!("{least} checkpoints"), WITHIN, there).await
}

/// The process that owns a thread.
async fn owner_of<'a>(world: &World, pods: &[(&str, &'a Executor)]) -> Result<&'a Executor> {
    let owner = world.sql("select owner from executor_thread where owner is not null").await?;
    let pod = pods.iter().find(|(name, _)| owner.trim().starts_with(&format!("{name}/")));
    Ok(pod.with_context(|| format!("{owner} is none of the pods"))?.1)
}

async fn two_pods(world: &World, more: &[(&str, &str)]) -> Result<(Executor, Executor)> {
    let with = |name| [&[NO_REDELIVERY, ("POD_NAME", name)], more].concat();
    Ok((world.executor_with(&with("one")).await?, world.executor_with(&with("two")).await?))
}

#[tokio::test]
async fn another_pod_goes_on_after_kill_9_without_waiting_for_the_broker() -> Result<()> {
    let world = World::start().await?;
    let (one, two) = two_pods(&world, &[]).await?;
    world.publish(&steps("killed", 6, 700)).await?;
    has_checkpoints(&world, 5).await?;
    owner_of(&world, &[("one", &one), ("two", &two)]).await?.kill()?;
    let result = world.result_of("killed").await?;
    assert_eq!(
        (&result["data"]["result"]["output"], &result["data"]["attempts"]),
        (&json!("all done"), &json!(2))
    );
    let events = world.events_to_the_end("killed").await?;
    let starts = of_type(&events, "on_attempt_start");
    assert!(starts.len() == 2 && starts[1]["data"]["resumed_from"].is_string(), "{starts:?}");
    assert_eq!(of_type(&events, "end").len(), 1);
    assert_eq!(world.results_of("killed").await?.len(), 1);
    // Seven calls of the model, six of the tool: what had been done was not done again.
    assert_eq!(result["data"]["steps"], 13);
    Ok(())
}

#[tokio::test]
async fn a_pod_that_is_told_to_go_hands_a_long_job_on_at_its_next_superstep_and_ends_a_short_one()
-> Result<()> {
    let world = World::start().await?;
    let (one, two) = two_pods(&world, &[("SHUTDOWN_GRACE_SECONDS", "6")]).await?;
    world.publish(&steps("long", 14, 500)).await?;
    has_checkpoints(&world, 4).await?;
    let pods = [("one", &one), ("two", &two)];
    assert!(owner_of(&world, &pods).await?.terminate().await?.success());
    let result = world.result_of("long").await?;
    assert_eq!(
        (&result["data"]["result"]["output"], &result["data"]["attempts"]),
        (&json!("all done"), &json!(2))
    );
    assert_eq!(number(&world, "select cardinality(charged) from executor_job").await?, 0, "it was no crash");
    let events = world.events_to_the_end("long").await?;
    let at = events.iter().rposition(|event| event["event_type"] == "on_attempt_start").context("a start")?;
    assert!(events[at]["data"]["resumed_from"].is_string());
    let time = |event: &Json| -> Result<time::OffsetDateTime> {
        let text = event["ts"].as_str().context("a time")?;
        Ok(time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339)?)
    };
    let between = time(&events[at])? - time(&events[at - 1])?;
    // The lease of five seconds was not waited for.
    assert!(between < Duration::from_secs(4), "{between}");
    assert_eq!(result["data"]["steps"], 29);
    world.all_settled().await?;

    let left = if one.is_running() { &one } else { &two };
    world.publish(&steps("short", 1, 500)).await?;
    has_checkpoints(&world, number(&world, "select count(*) from checkpoints").await? + 1).await?;
    assert!(left.terminate().await?.success());
    let result = world.result_of("short").await?;
    assert_eq!(
        (&result["data"]["result"]["output"], &result["data"]["attempts"]),
        (&json!("all done"), &json!(1))
    );
    Ok(())
}

#[tokio::test]
async fn a_request_over_http_runs_although_the_broker_loses_its_message() -> Result<()> {
    let world = World::start().await?;
    let executor = world.executor_with(&[("MAX_CONCURRENT_JOBS", "1")]).await?;
    world.publish(&steps("busy", 1, 3000)).await?;
    has_checkpoints(&world, 2).await?;
    let lost = request("lost", &orchestrator(json!([{ "text": "kept" }])), "hi").to_string();
    let (status, body) = executor.post("/", "application/json", &lost).await?;
    assert_eq!(status, 202, "{body}");
    world.delete_message(2).await?;
    assert_eq!(world.result_of("lost").await?["data"]["result"]["output"], "kept");
    world.all_settled().await?;
    assert!(executor.terminate().await?.success());
    Ok(())
}

/// Three that count, one before the first checkpoint (which clears the suspicion), and two in the middle of giving up.
const MOST_DEATHS: u32 = 6;

#[tokio::test]
async fn a_job_that_kills_its_processes_is_given_up_alone() -> Result<()> {
    let world = World::start().await?;
    let settings = [("MAX_CRASHES", "3"), ("LEASE_SECONDS", "2"), NO_REDELIVERY];
    let killer = request("killer", &orchestrator(json!([{ "text": "never", "delay_ms": 600_000 }])), "hi");
    let innocents: Vec<_> = (0..3).map(|number| format!("innocent-{number}")).collect();
    let mut pod = world.executor_with(&settings).await?;
    world.publish(&killer).await?;
    for job_id in &innocents {
        let waits = orchestrator(json!([{ "text": "alive", "delay_ms": 1500 }]));
        world.publish(&request(job_id, &waits, "hi")).await?;
    }
    // A started attempt, or the end.
    let newest =
        "select max(attempt) from executor_job where job_id = 'killer' and state in ('running', 'dead')";
    let dead = "select count(*) from executor_job where job_id = 'killer' and state = 'dead'";
    // Whoever is killed before it has stored its input has made no progress, whatever it would have done.
    let idle = "select count(*) from executor_job j where state = 'running' \
        and not exists (select from checkpoints c where c.thread_id = j.thread_id)";
    let (mut before, mut deaths) = (0, 0);
    loop {
        let again = || async { number(&world, newest).await.is_ok_and(|attempt| attempt > before) };
        servers::until("the killer runs again", WITHIN, again).await?;
        let stored = || async { number(&world, idle).await.is_ok_and(|idle| idle == 0) };
        servers::until("every job that runs has stored its input", WITHIN, stored).await?;
        before = number(&world, newest).await?;
        if number(&world, dead).await? == 1 {
            break;
        }
        pod.kill()?;
        pod = world.executor_with(&settings).await?;
        deaths += 1;
        assert!(deaths <= MOST_DEATHS, "it is never given up");
    }
    let result = world.result_of("killer").await?;
    assert_eq!(result["data"]["error"]["type"], "POISON", "{result}");
    for job_id in &innocents {
        let result = world.result_of(job_id).await?;
        assert_eq!(result["data"]["result"]["output"], "alive", "{result}");
    }
    let all_dead = world.sql("select string_agg(job_id, ',') from executor_job where state = 'dead'").await?;
    assert_eq!(all_dead.trim(), "killer");
    let events = world.events_to_the_end("killer").await?;
    assert_eq!(of_type(&events, "end").len(), 1);
    assert!(pod.terminate().await?.success());
    Ok(())
}

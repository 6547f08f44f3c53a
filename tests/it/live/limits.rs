//! Bounds: what is too large, too much or too slow costs itself only, and memory stays within its limits.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value as Json, json};

use super::{
    outages::metric,
    world::{WITHIN, World, of_type, orchestrator, request, scripted},
};
use crate::{executor::Executor, servers};

const MIB: f64 = 1024.0 * 1024.0;

fn quick() -> Json {
    orchestrator(json!([{ "text": "fine" }]))
}

/// A job on `thread` whose model takes `delay_ms`.
fn on_thread(job_id: &str, thread: &str, delay_ms: u64) -> Json {
    let definition = orchestrator(json!([{ "text": "fine", "delay_ms": delay_ms }]));
    let mut job = request(job_id, &definition, "hi");
    job["thread_id"] = json!(thread);
    // Each job of the thread begins with a conversation of many replies; the script goes by the user's words.
    job["agent_definition"]["nodes"][0]["model"]["script"] =
        json!({ "by_user_text": { "hi": [{ "text": "fine", "delay_ms": delay_ms }] } });
    job
}

/// A job that adds nothing to the state of its thread.
fn cheap_on_thread(job_id: &str, thread: &str) -> Json {
    let definition = json!({ "channels": { "note": {} }, "edges": [],
        "nodes": [{ "id": "note", "type": "transform", "writes": { "note": "'done'" } }] });
    json!({ "job_id": job_id, "thread_id": thread, "agent_definition": definition, "input": { "note": "new" } })
}

async fn in_use(executor: &Executor, kind: &str) -> Result<f64> {
    metric(executor, &format!("agent_executor_in_use{{kind=\"{kind}\"}}")).await
}

async fn limit(executor: &Executor, kind: &str) -> Result<f64> {
    metric(executor, &format!("agent_executor_limit{{kind=\"{kind}\"}}")).await
}

async fn turned_away(executor: &Executor, kind: &str) -> Result<f64> {
    metric(executor, &format!("agent_executor_turned_away_total{{kind=\"{kind}\"}}")).await
}

async fn reaches(executor: &Executor, kind: &str, amount: f64) -> Result<()> {
    let reached = || async { in_use(executor, kind).await.is_ok_and(|in_use| (in_use - amount).abs() < 0.5) };
    servers::until(&format!("{amount} of {kind} are in use"), WITHIN, reached).await
}

/// Waits for the results of `count` jobs.
async fn results(world: &World, count: usize) -> Result<()> {
    let ended = || async {
        let ended = world.sql("select count(*) from executor_job where published_at is not null").await;
        ended.is_ok_and(|ended| ended.trim() == count.to_string())
    };
    servers::until(&format!("{count} results"), WITHIN, ended).await
}

/// Name and value.
type Header = (&'static str, &'static str);

/// Twenty megabytes in every form a message may have.
fn oversized() -> Vec<(Vec<Header>, Json)> {
    let filler = "x".repeat(20_000_000);
    let event = |data: Json| json!({ "specversion": "1.0", "id": "e", "source": "/t", "type": "dev.my-platform.agent.execute", "data": data });
    let data = |job_id: &str| request(job_id, &quick(), &filler);
    let attributes = vec![
        ("ce-specversion", "1.0"),
        ("ce-id", "e"),
        ("ce-source", "/t"),
        ("ce-type", "dev.my-platform.agent.execute"),
    ];
    vec![(Vec::new(), data("bare")), (Vec::new(), event(data("structured"))), (attributes, data("binary"))]
}

#[tokio::test]
async fn an_oversized_request_is_refused_wherever_it_stops_and_one_of_a_megabyte_runs() -> Result<()> {
    let world = World::start_with_nats("max_payload: 64MB").await?;
    let executor = world.executor().await?;
    world.run(&request("first", &quick(), "hi")).await?;
    let before = executor.resident_bytes()?;
    let mut sizes = Vec::new();
    // A file of JetStream keeps no 50 MB; the stream says so to the publisher and nothing is lost in it.
    let huge = request("huge", &quick(), &"x".repeat(50 << 20)).to_string();
    assert!(world.publish_raw(&[], huge.into_bytes()).await.is_err());
    for (headers, body) in oversized() {
        let body = body.to_string().into_bytes();
        sizes.push(body.len());
        world.publish_raw(&headers, body).await?;
    }
    for job_id in ["bare", "structured", "binary"] {
        let error = world.result_of(job_id).await?["data"]["error"].clone();
        assert_eq!((&error["type"], &error["retryable"]), (&json!("BAD_REQUEST"), &json!(false)));
        let message = error["message"].as_str().context("a message")?;
        assert!(message.starts_with("payload is 2000") && message.ends_with("limit 1572864"), "{message}");
    }
    world.all_settled().await?;
    check_oversized_letters(&world, &sizes).await?;

    // Three at once are 60 MB; nothing of them may stay, and nothing may have multiplied them.
    let grown = executor.resident_bytes()?.saturating_sub(before) as f64 / MIB;
    let peak = executor.peak_bytes()? as f64 / MIB;
    assert!(grown < 100.0 && peak < 300.0, "{grown} MiB more than before, {peak} MiB at most");
    assert!(in_use(&executor, "message_bytes").await? < 1.0, "nothing is held any more");

    let result = world.run(&request("one", &quick(), &"x".repeat(1 << 20))).await?;
    assert_eq!(result["data"]["result"]["output"], "fine");
    assert!(executor.terminate().await?.success());
    Ok(())
}

/// The stream has all of them, the database the first bytes and the size.
async fn check_oversized_letters(world: &World, sizes: &[usize]) -> Result<()> {
    let letters = world.stream("AGENT_DLQ").await?;
    assert_eq!(letters.len(), 3);
    let kept = world
        .sql("select octet_length(payload), headers->-1->>0, headers->-1->>1 from executor_dead_letter order by stream_seq")
        .await?;
    let expected: Vec<_> = sizes.iter().map(|size| format!("65536|Executor-Payload-Bytes|{size}")).collect();
    assert_eq!(kept.trim(), expected.join("\n"));
    for letter in letters {
        let is_whole = letter.json["data"]["job_id"].is_string() || letter.json["job_id"].is_string();
        assert!(is_whole && letter.headers.get("Executor-Payload-Bytes").is_none());
    }
    Ok(())
}

#[tokio::test]
async fn a_state_that_grows_too_large_ends_its_job_and_leaves_the_thread_usable() -> Result<()> {
    let world = World::start().await?;
    let executor = world.executor_with(&[("MAX_STATE_BYTES", "2000000")]).await?;
    let definition = json!({
        "channels": { "text": {} },
        "nodes": [{ "id": "grow", "type": "transform", "writes": { "text": "text ~ text" } }],
        "edges": [{ "source": "START", "target": "grow" },
            { "source": "grow", "target": "grow", "when": "text | length < 3000000" },
            { "source": "grow", "target": "END", "otherwise": true }],
    });
    for durability in ["sync", "async", "exit"] {
        let job_id = format!("grows-{durability}");
        let result = world
            .run(&json!({ "job_id": job_id, "thread_id": format!("t-{durability}"), "agent_definition": definition,
                "input": { "text": "x".repeat(1000) }, "config": { "durability": durability } }))
            .await?;
        let error = &result["data"]["error"];
        assert_eq!(
            (&error["type"], &error["retryable"]),
            (&json!("STATE_TOO_LARGE"), &json!(false)),
            "{result}"
        );
        let message = error["message"].as_str().context("a message")?;
        assert!(
            message.contains("limit 2000000 (MAX_STATE_BYTES); channel text is the largest"),
            "{message}"
        );
        let events = world.events_to_the_end(&format!("t-{durability}")).await?;
        assert_eq!(of_type(&events, "error").len(), 1);

        let mut next = request(&format!("next-{durability}"), &quick(), "hi");
        next["thread_id"] = json!(format!("t-{durability}"));
        // Its graph has no channel for the text that the thread holds.
        next["config"] = json!({ "allow_incompatible": true });
        assert_eq!(world.run(&next).await?["data"]["result"]["output"], "fine", "{durability}");
    }
    world.all_settled().await?;
    assert_eq!(executor.log().matches("panicked").count(), 0);
    assert!(executor.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn one_busy_thread_takes_no_more_than_its_share_and_loses_nothing() -> Result<()> {
    const WAITING: usize = 150;
    let world = World::start().await?;
    let executor = world.executor_with(&[("MAX_CONCURRENT_JOBS", "8")]).await?;
    world.publish(&on_thread("busy", "busy", 8_000)).await?;
    reaches(&executor, "slots", 1.0).await?;
    let before = executor.resident_bytes()?;
    for n in 0..WAITING {
        world.publish(&cheap_on_thread(&format!("waiting-{n}"), "busy")).await?;
    }
    // Those that find no place go back; their jobs are known.
    let away = || async {
        turned_away(&executor, "parked_messages_of_one_thread").await.is_ok_and(|count| count >= 80.0)
    };
    servers::until("most of them were handed back", WITHIN, away).await?;
    assert!((limit(&executor, "parked_messages_of_one_thread").await? - 64.0).abs() < 0.5);
    assert!(in_use(&executor, "parked_messages_of_one_thread").await? <= 64.0);
    assert!(in_use(&executor, "parked_messages").await? <= 64.0);
    let grown = executor.resident_bytes()?.saturating_sub(before) as f64 / MIB;
    assert!(grown < 64.0, "{grown} MiB for 150 small messages");

    let other = world.run(&request("other", &quick(), "hi")).await?;
    assert_eq!(other["data"]["result"]["output"], "fine");
    let state = world.sql("select state from executor_job where job_id = 'busy'").await?;
    assert_eq!(state.trim(), "running", "another thread's job did not wait for the busy one");

    results(&world, WAITING + 2).await?;
    world.all_settled().await?;
    assert_eq!(world.stream("AGENT_RESULTS").await?.len(), WAITING + 2, "each job has one result");
    for kind in ["slots", "parked_messages", "parked_messages_of_one_thread", "parked_bytes", "message_bytes"]
    {
        reaches(&executor, kind, 0.0).await?;
    }
    assert!(executor.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn thousands_of_waiting_jobs_stay_in_the_queue_of_a_busy_process() -> Result<()> {
    let world = World::start().await?;
    let executor = world.executor_with(&[("MAX_CONCURRENT_JOBS", "1")]).await?;
    let slow = orchestrator(json!([{ "text": "late", "delay_ms": 600_000 }]));
    world.publish(&request("slow", &slow, "hi")).await?;
    reaches(&executor, "slots", 1.0).await?;
    let before = executor.resident_bytes()?;
    let body = "x".repeat(4096);
    for n in 0..3000 {
        world.publish(&request(&format!("waiting-{n}"), &quick(), &body)).await?;
    }
    assert_eq!(world.unsettled().await?, (1, 3000), "only the running job's message was taken");
    let grown = executor.resident_bytes()?.saturating_sub(before) as f64 / MIB;
    assert!(grown < 10.0, "{grown} MiB although nothing was taken");
    Ok(())
}

#[tokio::test]
async fn messages_beyond_the_budget_of_bytes_wait_in_the_queue() -> Result<()> {
    const BUDGET: f64 = 2_000_000.0;
    let world = World::start().await?;
    let executor = world.executor_with(&[("MAX_BYTES_IN_FLIGHT", "2000000")]).await?;
    // 30 jobs of 300 KB on threads of their own; slots are there for all of them.
    for n in 0..30 {
        let mut job = on_thread(&format!("large-{n}"), &format!("t-{n}"), 300);
        job["input"]["note"] = json!("x".repeat(300_000));
        world.publish(&job).await?;
    }
    let (mut most, mut ended) = (0.0_f64, 0);
    while ended < 30 {
        most = most.max(in_use(&executor, "message_bytes").await?);
        let published = world.sql("select count(*) from executor_job where published_at is not null").await?;
        ended = published.trim().parse()?;
    }
    assert!(most > 300_000.0 && most < BUDGET + 400_000.0, "{most} bytes were held");
    assert!((limit(&executor, "message_bytes").await? - BUDGET).abs() < 0.5);

    // Held for a busy thread, large messages leave half of it to others.
    world.publish(&on_thread("busy", "busy", 6_000)).await?;
    reaches(&executor, "slots", 1.0).await?;
    for n in 0..10 {
        let mut job = on_thread(&format!("parked-{n}"), "busy", 0);
        job["input"]["note"] = json!("x".repeat(300_000));
        world.publish(&job).await?;
    }
    let away = || async { turned_away(&executor, "parked_bytes").await.is_ok_and(|count| count >= 7.0) };
    servers::until("most of them were handed back", WITHIN, away).await?;
    assert!(in_use(&executor, "parked_bytes").await? <= BUDGET / 2.0);
    world.run(&request("other", &quick(), &"x".repeat(900_000))).await?;
    assert_eq!(world.sql("select state from executor_job where job_id = 'busy'").await?.trim(), "running");
    results(&world, 42).await?;
    world.all_settled().await?;
    assert!(executor.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn model_calls_wait_for_their_turn_within_the_time_of_their_job() -> Result<()> {
    let world = World::start().await?;
    let executor = world.executor_with(&[("MODEL_MAX_CONCURRENT", "1")]).await?;
    let slow = orchestrator(json!([{ "text": "slow", "delay_ms": 5_000 }]));
    world.publish(&request("first", &slow, "hi")).await?;
    reaches(&executor, "model_calls", 1.0).await?;
    let mut hurried = request("hurried", &quick(), "hi");
    hurried["config"] = json!({ "timeout_seconds": 1 });
    let result = world.run(&hurried).await?;
    assert_eq!(result["data"]["error"]["type"], "JOB_TIMEOUT", "{result}");
    world.publish(&request("patient", &quick(), "hi")).await?;
    reaches(&executor, "slots", 2.0).await?;
    assert!(in_use(&executor, "model_calls").await? <= 1.0);
    assert!((limit(&executor, "model_calls").await? - 1.0).abs() < 0.5);
    for (job_id, output) in [("first", "slow"), ("patient", "fine")] {
        assert_eq!(world.result_of(job_id).await?["data"]["result"]["output"], output);
    }
    reaches(&executor, "model_calls", 0.0).await?;
    assert!(executor.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn a_stream_server_that_hangs_under_load_costs_text_and_no_job() -> Result<()> {
    const JOBS: usize = 30;
    const HANGING: Duration = Duration::from_secs(10);
    let world = World::start().await?;
    let each_piece = [("STREAM_WINDOW_MS", "0"), ("STREAM_CUMULATIVE_TEXT", "false")];
    let executor = world.executor_with(&each_piece).await?;
    world.run(&request("before", &quick(), "hi")).await?;
    let before = executor.resident_bytes()?;
    let text = "word ".repeat(500);
    let definition = json!({
        "nodes": [{ "type": "orchestrator", "name": "main", "tools": [], "model": scripted(json!([{ "text": text }])) }], "edges": []
    });
    world.redis.pause()?;
    let paused = std::time::Instant::now();
    for n in 0..JOBS {
        world.publish(&request(&format!("job-{n}"), &definition, "hi")).await?;
    }
    results(&world, JOBS + 1).await?;
    world.all_settled().await?;
    let waiting = in_use(&executor, "stream_events").await?;
    assert!(
        waiting > 0.0 && waiting <= limit(&executor, "stream_events").await? + 1000.0,
        "{waiting} events"
    );
    assert!(in_use(&executor, "stream_bytes").await? <= limit(&executor, "stream_bytes").await?);
    let grown = executor.resident_bytes()?.saturating_sub(before) as f64 / MIB;
    assert!(grown < 100.0, "{grown} MiB");
    servers::until("the server has hung for ten seconds", WITHIN, || async { paused.elapsed() > HANGING })
        .await?;
    world.redis.resume()?;

    for n in 0..JOBS {
        let events = world.events_to_the_end(&format!("job-{n}")).await?;
        let kinds = ["on_attempt_start", "on_state_update", "end"].map(|kind| of_type(&events, kind).len());
        assert_eq!(kinds, [1, 2, 1], "lifecycle events are not dropped");
    }
    let dropped =
        metric(&executor, "agent_executor_stream_dropped_total{event_type=\"on_llm_stream\"}").await?;
    assert!(dropped > 9_000.0, "15,000 pieces of text do not fit: {dropped}");
    reaches(&executor, "stream_events", 0.0).await?;
    assert!(executor.terminate().await?.success());
    Ok(())
}

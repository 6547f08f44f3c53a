//! Bad input of every kind: a precise failed result where a job id is known, a dead letter with a reason, and
//! the good jobs around it finish.

use anyhow::{Context, Result};
use serde_json::{Value as Json, json};

use super::world::{Stored, WITHIN, World, orchestrator, request};
use crate::servers;

fn good() -> Json {
    orchestrator(json!([{ "text": "fine" }]))
}

/// Messages without a job id that can be read.
async fn publish_unreadable(world: &World) -> Result<()> {
    world.publish_raw(&[], b"not json".to_vec()).await?;
    world.publish_raw(&[], b"[1, 2]".to_vec()).await?;
    world.publish(&json!({ "agent_definition": good(), "input": {} })).await?;
    let unknown = json!({ "specversion": "1.0", "id": "e", "source": "/t", "type": "com.example.other", "data": { "x": 1 } });
    world.publish(&unknown).await?;
    Ok(())
}

/// Messages whose jobs must fail, by job id.
fn failing() -> Vec<(&'static str, Json)> {
    let wrong_types = json!({ "job_id": "wrong-types", "agent_definition": good(), "input": "text",
        "config": { "recursion_limit": "many", "timeout_seconds": -1 } });
    let bad_definition = json!({
        "nodes": [{ "id": "a", "type": "model", "prompt": "{{", "writes": "nowhere" }, { "id": "a", "type": "wizard" }],
        "edges": [{ "source": "a", "target": "b" }] });
    let other_type = json!({ "specversion": "1.0", "id": "e", "source": "/t", "type": "com.example.other",
        "data": request("other-type", &good(), "hi") });
    vec![
        ("no-definition", json!({ "job_id": "no-definition", "input": {} })),
        ("no-input", json!({ "job_id": "no-input", "agent_definition": good() })),
        ("wrong-types", wrong_types),
        ("bad-definition", request("bad-definition", &bad_definition, "hi")),
        ("other-type", other_type),
        (
            "wrong-role",
            json!({ "job_id": "wrong-role", "agent_definition": good(), "input": { "messages": [{ "role": "wizard", "content": "x" }] } }),
        ),
        (
            "wrong-channel",
            json!({ "job_id": "wrong-channel", "agent_definition": good(), "input": { "mesages": [] } }),
        ),
        ("unknown-agent", json!({ "job_id": "unknown-agent", "agent": "nobody@1", "input": {} })),
    ]
}

#[tokio::test]
async fn bad_messages_end_as_dead_letters_and_good_jobs_go_on() -> Result<()> {
    let world = World::start().await?;
    let executor = world.executor().await?;
    world.publish(&request("good-before", &good(), "hi")).await?;
    publish_unreadable(&world).await?;
    for (_, message) in &failing() {
        world.publish(message).await?;
    }
    world.publish(&request("good-after", &good(), "hi")).await?;

    check_failures(&world).await?;
    for good in ["good-before", "good-after"] {
        assert_eq!(world.result_of(good).await?["data"]["result"]["output"], "fine");
    }
    world.all_settled().await?;
    check_letters(&world).await?;
    assert!(executor.terminate().await?.success());
    Ok(())
}

/// Each failed result names every mistake.
async fn check_failures(world: &World) -> Result<()> {
    for (job_id, _) in failing() {
        let result = world.result_of(job_id).await?;
        assert_eq!(result["type"], "dev.my-platform.agent.failed", "{result}");
        let error = &result["data"]["error"];
        assert!(
            error["type"].is_string() && error["message"].as_str().is_some_and(|m| m.len() > 20),
            "{error}"
        );
        assert_eq!(error["retryable"], false);
    }
    let wrong = world.result_of("wrong-types").await?["data"]["error"]["message"].to_string();
    for pointer in ["/input", "/config/recursion_limit", "/config/timeout_seconds"] {
        assert!(wrong.contains(pointer), "{pointer} is not named: {wrong}");
    }
    let definition = world.result_of("bad-definition").await?["data"]["error"].clone();
    assert_eq!(definition["type"], "DEFINITION_INVALID");
    for part in ["/nodes/0/prompt", "/nodes/1", "wizard"] {
        assert!(definition["message"].to_string().contains(part), "{part} is not named: {definition}");
    }
    Ok(())
}

/// Each bad message is kept in both places with its reason.
async fn check_letters(world: &World) -> Result<()> {
    let letters = world.stream("AGENT_DLQ").await?;
    let reason = |letter: &Stored| letter.headers.get("Executor-Reason").map(ToString::to_string);
    let mut reasons: Vec<_> = letters.iter().filter_map(reason).collect();
    reasons.sort();
    let expected = [
        "agent_not_found",
        "bad_request",
        "bad_request",
        "bad_request",
        "bad_request",
        "bad_request",
        "bad_request",
        "definition_invalid",
        "no_job_id",
        "not_an_object",
        "not_json",
        "unknown_type",
    ];
    assert_eq!(reasons, expected);
    for letter in &letters {
        assert_eq!(letter.subject, format!("agent.dlq.{}", reason(letter).context("a reason")?));
        assert!(letter.headers.get("Executor-Error").is_some());
        assert!(letter.headers.get("Executor-Stream-Seq").is_some());
    }
    assert_eq!(world.sql("select count(*) from executor_dead_letter").await?.trim(), "12");
    Ok(())
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_at_every_door() -> Result<()> {
    // NATS itself refuses more than its max_payload; with a larger one the executor's own limit holds.
    let world = World::start_with_nats("max_payload: 8MB").await?;
    let executor = world.executor().await?;
    let large = request("large", &good(), &"x".repeat(2 << 20));
    world.publish(&large).await?;
    let result = world.result_of("large").await?;
    assert_eq!(result["data"]["error"]["type"], "BAD_REQUEST");
    assert!(result["data"]["error"]["message"].to_string().contains("bytes"), "{result}");
    world.all_settled().await?;
    assert_eq!(world.stream("AGENT_DLQ").await?.len(), 1);

    let (status, body) = executor.post("/", "application/json", &large.to_string()).await?;
    assert_eq!(status, 413, "{body}");
    assert!(serde_json::from_str::<Json>(&body)?["error"]["code"].is_string());
    Ok(())
}

#[tokio::test]
async fn the_http_door_stores_good_requests_and_lists_what_is_wrong_with_others() -> Result<()> {
    let world = World::start().await?;
    let executor = world.executor().await?;
    let (status, body) =
        executor.post("/", "application/json", &request("http", &good(), "hi").to_string()).await?;
    assert_eq!(status, 202, "{body}");
    assert_eq!(
        serde_json::from_str::<Json>(&body)?,
        json!({ "job_id": "http", "thread_id": "http", "status": "queued" })
    );
    assert_eq!(world.result_of("http").await?["data"]["result"]["output"], "fine");

    let (status, body) = executor.post("/", "application/json", r#"{"input": {}}"#).await?;
    assert_eq!(status, 400, "{body}");
    assert!(
        serde_json::from_str::<Json>(&body)?["error"]["details"].as_array().is_some_and(|d| !d.is_empty())
    );

    let (status, health) = executor.get("/health").await?;
    assert_eq!((status, &serde_json::from_str::<Json>(&health)?["status"]), (200, &json!("healthy")));
    // On a busy machine a probe may give up on a service that is well.
    let all = json!({ "postgres": true, "dragonfly": true, "nats": true });
    let ready = || async {
        let answer = executor.get("/ready").await;
        answer.is_ok_and(|(status, body)| {
            let body: Json = serde_json::from_str(&body).unwrap_or_default();
            status == 200 && body["status"] == "ready" && body["services"] == all
        })
    };
    servers::until("/ready shows every service", WITHIN, ready).await?;
    let (status, result) = executor.get("/jobs/http/result").await?;
    assert_eq!((status, &serde_json::from_str::<Json>(&result)?["id"]), (200, &json!("http:result")));
    let shown = || async {
        executor
            .get("/metrics")
            .await
            .is_ok_and(|(_, text)| text.contains("agent_executor_jobs_total{status=\"completed\"} 1"))
    };
    servers::until("the job is counted", WITHIN, shown).await?;
    check_metrics(&executor.get("/metrics").await?.1);
    Ok(())
}

/// Every name of the contract shows once there was a run.
fn check_metrics(text: &str) {
    for name in [
        "agent_executor_jobs_total",
        "agent_executor_job_duration_seconds",
        "agent_executor_db_connection_errors_total",
        "agent_executor_redis_publish_errors_total",
        "agent_executor_redis_publish_total",
        "agent_executor_nats_messages_processed_total",
        "agent_executor_nats_messages_failed_total",
        "agent_executor_jobs_in_flight",
        "agent_executor_redeliveries_total",
        "agent_executor_supersteps_total",
        "agent_executor_checkpoint_commit_seconds",
        "agent_executor_checkpoint_batch_size",
        "agent_executor_llm_tokens_total",
        "agent_executor_llm_request_seconds",
        "agent_executor_llm_cost_usd_total",
        "agent_executor_time_to_first_token_seconds",
        "agent_executor_fenced_writes_total",
        "agent_executor_build_info",
    ] {
        assert!(text.contains(&format!("\n{name}")) || text.starts_with(name), "{name} is missing");
    }
}

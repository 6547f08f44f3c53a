//! Kept answers of models on a real server: found by other threads and processes, and missed without harm.

use std::{sync::Arc, time::Duration};

use agent_executor::stream::{
    Shelf,
    dragonfly::{Config, DragonflyShelf},
};
use anyhow::Result;
use serde_json::{Value as Json, json};

use super::{
    outages::metric,
    world::{WITHIN, World, of_type, orchestrator, request},
};
use crate::servers::{self, Redis};

/// A job on a thread of its own, whose model keeps its answers.
fn job(job_id: &str, question: &str) -> Json {
    let mut definition = orchestrator(json!([{ "text": "Nine in the evening." }]));
    definition["nodes"][0]["model"]["cache"] = json!({ "ttl_seconds": 600 });
    request(job_id, &definition, question)
}

#[tokio::test]
async fn a_question_that_was_asked_before_is_answered_without_its_model() -> Result<()> {
    let world = World::start().await?;
    let (first, second) = (world.executor().await?, world.executor().await?);
    // The connection comes up by itself, and until then nothing is kept: asked until an answer was.
    let mut asked = 0;
    let hit = loop {
        asked += 1;
        anyhow::ensure!(asked < 50, "no answer was ever kept");
        let job_id = format!("job-{asked}");
        let result = world.run(&job(&job_id, "When is high tide?")).await?;
        assert_eq!(result["data"]["result"]["output"], "Nine in the evening.", "{result}");
        let events = world.events_to_the_end(&job_id).await?;
        let ends = of_type(&events, "on_llm_end");
        assert_eq!(ends.len(), 1, "{events:?}");
        if ends[0]["data"]["cached"] == true {
            break (result, events);
        }
        assert_ne!(result["data"]["usage"]["total_tokens"], 0, "{result}");
    };
    let (result, events) = hit;
    assert_eq!(result["data"]["usage"]["total_tokens"], 0, "{result}");
    let pieces = of_type(&events, "on_llm_stream");
    let text: String = pieces.iter().filter_map(|piece| piece["data"]["token"].as_str()).collect();
    assert_eq!(text, "Nine in the evening.");
    let other = world.run(&job("other", "When is low tide?")).await?;
    assert_ne!(other["data"]["usage"]["total_tokens"], 0, "another question: {other}");
    let hits = "agent_executor_llm_cache_total{outcome=\"hit\"}";
    assert!(metric(&first, hits).await? + metric(&second, hits).await? >= 1.0);

    world.redis.stop().await?;
    let alone = world.run(&job("alone", "When is high tide?")).await?;
    assert_eq!(alone["data"]["result"]["output"], "Nine in the evening.");
    assert_ne!(alone["data"]["usage"]["total_tokens"], 0, "{alone}");
    Ok(())
}

#[tokio::test]
async fn the_operator_can_switch_it_off() -> Result<()> {
    let world = World::start().await?;
    let executor = world.executor_with(&[("MODEL_CACHE", "false")]).await?;
    for job_id in ["one", "two", "three"] {
        let result = world.run(&job(job_id, "When is high tide?")).await?;
        assert_ne!(result["data"]["usage"]["total_tokens"], 0, "{result}");
    }
    assert!(metric(&executor, "agent_executor_llm_cache_total").await? < 0.5);
    Ok(())
}

#[tokio::test]
async fn a_shelf_keeps_bytes_as_they_are_and_no_longer_than_asked() -> Result<()> {
    let redis = Redis::start().await?;
    let patient = Config { command_timeout: Duration::from_secs(10), ..Config::new(redis.url().into()) };
    let shelf = Arc::new(DragonflyShelf::open(patient)?);
    let every_byte: Vec<u8> = (0..=255).collect();
    let put = || async { shelf.put("k", every_byte.clone(), Duration::from_secs(3_600)).await.is_ok() };
    servers::until("the shelf is connected", WITHIN, put).await?;
    assert_eq!(shelf.get("k", 256).await?, Some(every_byte.clone()));
    assert_eq!(shelf.get("k", 255).await?, None, "it is larger than the reader allows");
    assert_eq!(shelf.get("other", 256).await?, None);
    shelf.put("k", vec![7], Duration::from_millis(1)).await?;
    let gone = || async { shelf.get("k", 256).await.is_ok_and(|value| value.is_none()) };
    servers::until("the value is gone", WITHIN, gone).await?;
    redis.stop().await?;
    assert!(shelf.get("k", 256).await.is_err(), "nobody answers");
    Ok(())
}

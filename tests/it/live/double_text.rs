//! Double texting as Python sees it afterwards.

use anyhow::{Context, Result};
use serde_json::{Value as Json, json};

use super::{
    interop::read_thread,
    world::{WITHIN, World, orchestrator, request},
};
use crate::servers;

fn on_thread(job_id: &str, replies: Json) -> Json {
    let mut request = request(job_id, &orchestrator(replies), job_id);
    request["thread_id"] = "t".into();
    request
}

async fn checkpoints(world: &World, job_id: &str) -> Result<usize> {
    let count = format!("select count(*) from checkpoints where metadata ->> 'job_id' = '{job_id}'");
    Ok(world.sql(&count).await?.trim().parse()?)
}

fn texts(thread: &Json) -> Result<Vec<String>> {
    let last = thread["graphs"][""].as_array().and_then(|graph| graph.last()).context("a checkpoint")?;
    let messages = last["messages"].as_array().context("messages")?.iter();
    Ok(messages.map(|message| message["content"].as_str().unwrap_or_default().to_owned()).collect())
}

/// Runs one job, stops a second one in its middle by a third one with this strategy; what Python reads then.
async fn after(strategy: &str) -> Result<(World, Json)> {
    let world = World::start().await?;
    let executor = world.executor().await?;
    world.run(&on_thread("before", json!([{ "text": "one" }]))).await?;
    let call = json!([{ "name": "write_todos", "args": { "todos": [] } }]);
    let late = json!([{}, { "text": "half", "tool_calls": call }, { "text": "late", "delay_ms": 600_000 }]);
    let mut running = on_thread("running", late);
    running["agent_definition"]["nodes"][0]["tools"] = json!(["write_todos"]);
    world.publish(&running).await?;
    let in_the_middle = || async { checkpoints(&world, "running").await.is_ok_and(|count| count >= 4) };
    servers::until("the job is in its middle", WITHIN, in_the_middle).await?;
    let mut newer = on_thread("newer", json!(vec![json!({ "text": "two" }); 4]));
    newer["multitask_strategy"] = strategy.into();
    let result = world.run(&newer).await?;
    assert_eq!(result["data"]["result"]["output"], "two", "{result}");
    world.all_settled().await?;
    assert!(executor.terminate().await?.success());
    let thread = read_thread(&world.database_url, "t").await?;
    Ok((world, thread))
}

#[tokio::test]
async fn a_rolled_back_job_leaves_nothing_that_python_could_find() -> Result<()> {
    let (world, thread) = after("rollback").await?;
    assert_eq!(texts(&thread)?, ["before", "one", "newer", "two"]);
    assert_eq!(checkpoints(&world, "running").await?, 0);
    let result = world.result_of("running").await?;
    assert_eq!(result["data"]["error"]["type"], "JOB_ROLLED_BACK");
    // Values and writes of the removed checkpoints are gone as well: every value left is one that Python can reach.
    let orphans = "select count(*) from checkpoint_writes w where not exists \
        (select 1 from checkpoints c where c.checkpoint_id = w.checkpoint_id)";
    assert_eq!(world.sql(orphans).await?.trim(), "0");
    Ok(())
}

#[tokio::test]
async fn an_interrupted_job_leaves_what_it_did() -> Result<()> {
    let (world, thread) = after("interrupt").await?;
    let texts = texts(&thread)?;
    assert_eq!(
        (texts.len(), &texts[3], texts.last().map(String::as_str)),
        (7, &"half".to_owned(), Some("two"))
    );
    assert_eq!(world.result_of("running").await?["data"]["error"]["type"], "JOB_INTERRUPTED");
    Ok(())
}

//! Calls of outside tools across the death of a process, on real servers.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result};
use axum::{
    Router,
    http::{HeaderMap, Method},
};
use serde_json::{Value as Json, json};

use super::{
    interop,
    world::{WITHIN, World, of_type, request, scripted},
};
use crate::{
    doors::{Served, serve},
    servers,
};

/// A bank that counts what it is asked for, and says nothing while it stalls.
pub(super) struct Bank {
    pub(super) served: Served,
    requests: Arc<Mutex<Vec<(String, String)>>>,
    pub(super) stalls: Arc<AtomicBool>,
}

impl Bank {
    pub(super) async fn start() -> Result<Self> {
        let requests: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
        let stalls = Arc::new(AtomicBool::new(true));
        let (kept, silent) = (requests.clone(), stalls.clone());
        let answer = move |method: Method, headers: HeaderMap| {
            let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok()).unwrap_or_default();
            kept.lock().expect("nobody panics with it").push((method.to_string(), key.to_owned()));
            let stalls = silent.load(Ordering::SeqCst);
            async move {
                if stalls {
                    std::future::pending::<()>().await;
                }
                "done"
            }
        };
        Ok(Self { served: serve(Router::new().fallback(answer)).await?, requests, stalls })
    }

    /// The idempotency keys of the requests with that method.
    pub(super) fn keys(&self, method: &str) -> Vec<String> {
        let requests = self.requests.lock().expect("nobody panics with it");
        requests.iter().filter(|(of, _)| of == method).map(|(_, key)| key.clone()).collect()
    }
}

/// An agent that pays and sets a limit in one turn.
fn definition(bank: &Bank) -> Json {
    let tool = |name: &str, method: &str| json!({ "name": name, "description": name, "http": { "method": method, "url": bank.served.url } });
    let call = |id: &str, name: &str| json!({ "id": id, "name": name, "args": {} });
    let replies = json!([
        { "text": "both", "tool_calls": [call("c1", "pay"), call("c2", "set")] }, { "text": "all is paid" }
    ]);
    json!({
        "tool_definitions": [tool("pay", "POST"), tool("set", "PUT")], "edges": [],
        "nodes": [{ "type": "orchestrator", "name": "main", "tools": ["pay", "set"], "model": scripted(replies) }]
    })
}

#[tokio::test]
async fn a_post_whose_process_is_killed_is_asked_about_and_not_repeated() -> Result<()> {
    let (world, bank) = (World::start().await?, Bank::start().await?);
    let settings = [("HTTP_TOOL_ALLOWED_HOSTS", "127.0.0.1"), ("HTTP_TOOL_ALLOW_PRIVATE", "true")];
    let first = world.executor_with(&settings).await?;
    let definition = definition(&bank);
    world.publish(&request("pays", &definition, "pay")).await?;
    let both = || async { bank.keys("POST").len() == 1 && bank.keys("PUT").len() == 1 };
    servers::until("both requests are on their way", WITHIN, both).await?;
    first.kill()?;
    bank.stalls.store(false, Ordering::SeqCst);

    let second = world.executor_with(&settings).await?;
    let asked = world.result_of("pays").await?;
    assert_eq!((&asked["id"], &asked["data"]["attempts"]), (&json!("pays:interrupted:1"), &json!(2)));
    let interrupt = &asked["data"]["interrupts"][0];
    assert_eq!(
        (&interrupt["value"]["kind"], &interrupt["value"]["tool"], &interrupt["value"]["idempotency_key"]),
        (&json!("unknown_effect"), &json!("pay"), &json!(bank.keys("POST")[0]))
    );
    let set = bank.keys("PUT");
    assert!(set.len() == 2 && set[0] == set[1] && !set[0].is_empty(), "the same key again: {set:?}");
    assert_eq!(ledger(&world).await?, ["pay irreversible unknown", "set idempotent done"]);
    let events = world.events_to_the_end("pays").await?;
    assert_eq!(of_type(&events, "on_interrupt")[0]["data"]["interrupts"], asked["data"]["interrupts"]);
    assert_eq!(events.last().context("events")?["data"]["status"], "interrupted");
    check_python(&world, interrupt).await?;

    let mut answer = json!({ "job_id": "answers", "thread_id": "pays", "agent_definition": definition });
    answer["command"] =
        json!({ "resume": { interrupt["id"].as_str().context("an id")?: { "result": "paid at noon" } } });
    assert_eq!(world.run(&answer).await?["data"]["result"]["output"], "all is paid");
    assert_eq!((bank.keys("POST").len(), bank.keys("PUT").len()), (1, 2));
    assert_eq!(ledger(&world).await?, ["pay irreversible done", "set idempotent done"]);
    let thread = interop::read_thread(&world.database_url, "pays").await?;
    assert_eq!(thread["encoded_otherwise"], json!([]), "Python would have written the same bytes");
    world.all_settled().await?;
    assert!(second.terminate().await?.success());
    Ok(())
}

async fn ledger(world: &World) -> Result<Vec<String>> {
    let rows =
        world.sql("select tool || ' ' || effect || ' ' || state from executor_effect order by tool").await?;
    Ok(rows.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect())
}

/// LangGraph finds the question where it would have put it.
async fn check_python(world: &World, interrupt: &Json) -> Result<()> {
    let thread = interop::read_thread(&world.database_url, "pays").await?;
    let newest = thread["graphs"][""].as_array().and_then(|all| all.last()).context("a checkpoint")?;
    let writes = newest["writes"].as_array().context("writes")?;
    let rows: Vec<_> = writes.iter().filter(|write| write["channel"] == "__interrupt__").collect();
    assert_eq!(rows.len(), 1, "{writes:?}");
    let expected = json!([{ "class": "Interrupt", "id": interrupt["id"], "value": interrupt["value"],
        "response_schema": interrupt["response_schema"] }]);
    assert_eq!(rows[0]["value"], expected);
    Ok(())
}

#[tokio::test]
async fn a_post_that_times_out_is_asked_about() -> Result<()> {
    let (world, bank) = (World::start().await?, Bank::start().await?);
    let settings = [("HTTP_TOOL_ALLOWED_HOSTS", "127.0.0.1"), ("HTTP_TOOL_ALLOW_PRIVATE", "true")];
    let _executor = world.executor_with(&settings).await?;
    let mut definition = definition(&bank);
    for tool in definition["tool_definitions"].as_array_mut().context("tools")? {
        tool["http"]["timeout_seconds"] = json!(2.0);
    }
    let asked = world.run(&request("pays", &definition, "pay")).await?;
    assert_eq!(asked["data"]["interrupts"].as_array().map(Vec::len), Some(1));
    assert_eq!(asked["data"]["interrupts"][0]["value"]["tool"], "pay");
    // The model reads that the idempotent call failed.
    assert_eq!(ledger(&world).await?, ["pay irreversible unknown", "set idempotent failed"]);

    bank.stalls.store(false, Ordering::SeqCst);
    let answer = json!({ "job_id": "answers", "thread_id": "pays", "agent_definition": definition,
        "command": { "resume": "did_not_happen" } });
    assert_eq!(world.run(&answer).await?["data"]["result"]["output"], "all is paid");
    let paid = bank.keys("POST");
    assert!(paid.len() == 2 && paid[0] == paid[1], "once more under the same key: {paid:?}");
    Ok(())
}

//! A question inside a sub-agent: asked by one side, answered on the other.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use serde_json::{Value as Json, json};

use super::{MODES, Mode, Ours, Python, go_on, user};
use crate::live::{
    effects::Bank,
    interop::read_thread,
    world::{World, scripted},
};

/// An orchestrator whose clerks make a payment each; a bank that says nothing leaves its outcome unknown.
fn definition(bank: &Bank, tasks: &[&str]) -> Json {
    let call = |id: &str, name: &str, args: Json| json!({ "id": id, "name": name, "args": args });
    let task = |id: &&str| call(id, "task", json!({ "description": "pay", "subagent_type": "clerk" }));
    let tasks: Vec<_> = tasks.iter().map(task).collect();
    let lead = json!([{ "text": "tasks by rust", "tool_calls": tasks }, { "text": "all is paid by rust" }]);
    let pay = [call("p", "pay", json!({}))];
    let pays = json!([{ "text": "paying by rust", "tool_calls": pay }, { "text": "clerk is done by rust" }]);
    let http = json!({ "method": "POST", "url": bank.served.url, "timeout_seconds": 2.0 });
    json!({
        "tool_definitions": [{ "name": "pay", "description": "pays", "http": http }],
        "nodes": [
            { "type": "orchestrator", "name": "main", "tools": [], "model": scripted(lead) },
            { "type": "specialist", "name": "clerk", "description": "pays", "tools": ["pay"], "model": scripted(pays) }
        ],
        "edges": [{ "source": "main", "target": "clerk" }]
    })
}

async fn start(bank: &Bank, tasks: &[&str]) -> Result<Ours> {
    let settings = [("HTTP_TOOL_ALLOWED_HOSTS", "127.0.0.1"), ("HTTP_TOOL_ALLOW_PRIVATE", "true")];
    Ours::start_with(World::start().await?, definition(bank, tasks), &settings).await
}

/// The only question that waits, as Python sees it: on the task of the root graph, and on the one that asked.
fn question(state: &Json) -> Result<&Json> {
    let task = &state["tasks"][0];
    let asked = task["interrupts"].as_array().context("interrupts")?;
    assert_eq!((&state["next"], asked.len()), (&json!(["main.tools"]), 1), "{state}");
    let inside = &task["inside"];
    assert_eq!(inside["next"], json!(["clerk.tools"]), "{state}");
    assert_eq!(inside["tasks"][0]["interrupts"], task["interrupts"]);
    Ok(&asked[0])
}

#[tokio::test]
async fn python_answers_a_question_that_we_asked_inside_a_sub_agent() -> Result<()> {
    let bank = Bank::start().await?;
    let mut ours = start(&bank, &["t"]).await?;
    for mode in MODES {
        let mut python = Python::start(&ours.world, "delegating", mode).await?;
        for (by_id, durability) in [(false, "sync"), (true, "exit")] {
            let thread = format!("ours-{mode:?}-{durability}");
            let mut request = user("pay");
            request["config"] = json!({ "durability": durability });
            let data = ours.job(&thread, request).await?;
            let state = python.state(&thread).await?;
            let asked = question(&state)?;
            assert_eq!(asked["id"], data["interrupts"][0]["id"]);
            assert_eq!(asked["value"]["tool"], "pay");
            let answer = match by_id {
                false => json!("happened"),
                true => json!({ asked["id"].as_str().context("an id")?: "happened" }),
            };
            let reply = python.run(&thread, json!({ "resume": answer })).await?;
            assert_eq!(reply["error"], Json::Null);
            // The clerk's first turn is ours and is not made again.
            assert_eq!(reply["ran"], json!(["clerk", "clerk.tools/p", "main", "main.tools/t"]));
            let expected = json!([
                "human: pay",
                "ai: tasks by rust",
                "tool: clerk is done by python",
                "ai: all is paid by python"
            ]);
            assert_eq!(reply["state"]["values"]["messages"], expected);
        }
    }
    assert_eq!(bank.keys("POST").len(), 4, "each payment was made once, by us");
    Ok(())
}

#[tokio::test]
async fn we_answer_a_question_that_python_asked_inside_a_sub_agent() -> Result<()> {
    let bank = Bank::start().await?;
    bank.stalls.store(false, Ordering::SeqCst);
    let mut ours = start(&bank, &["t"]).await?;
    for (mode, durability) in MODES.into_iter().zip(["async", "exit"]) {
        let mut python = Python::start(&ours.world, "delegating", mode).await?;
        let thread = format!("python-{mode:?}");
        let mut request = user("pay");
        request["durability"] = json!(durability);
        let reply = python.run(&thread, request).await?;
        let asked = question(&reply["state"])?;
        let stranger = json!({ "command": { "resume": { "00000000000000000000000000000000": 1 } } });
        let data = ours.job(&thread, stranger).await?;
        assert_eq!(data["error"]["type"], "RESUME_UNKNOWN");
        assert!(
            data["error"]["message"]
                .as_str()
                .is_some_and(|text| text.contains(asked["id"].as_str().unwrap_or("?")))
        );
        let data = ours.completed(&thread, json!({ "command": { "resume": "happened" } })).await?;
        assert_eq!(data["result"]["output"], "all is paid by rust");
        let state = python.state(&thread).await?;
        let expected = json!([
            "human: pay",
            "ai: tasks by python",
            "tool: clerk is done by rust",
            "ai: all is paid by rust"
        ]);
        assert_eq!((&state["next"], &state["values"]["messages"]), (&json!([]), &expected));
        let stored = read_thread(&ours.world.database_url, &thread).await?;
        assert_eq!(stored["encoded_otherwise"], json!([]), "Python would have written the same bytes");
    }
    Ok(())
}

#[tokio::test]
async fn a_question_that_python_repeats_after_a_wrong_answer_is_answered_by_us() -> Result<()> {
    let bank = Bank::start().await?;
    let mut ours = start(&bank, &["t"]).await?;
    let mut python = Python::start(&ours.world, "delegating", Mode::Strict).await?;
    ours.job("t", user("pay")).await?;
    let first = question(&python.state("t").await?)?.clone();
    let reply = python.run("t", json!({ "resume": "maybe" })).await?;
    let second = question(&reply["state"])?;
    assert_eq!(second["value"]["question"], "maybe?");
    assert_ne!(second["id"], first["id"]);
    bank.stalls.store(false, Ordering::SeqCst);
    let answer = json!({ second["id"].as_str().context("an id")?: "did_not_happen" });
    let data = ours.completed("t", json!({ "command": { "resume": answer } })).await?;
    assert_eq!(data["result"]["output"], "all is paid by rust");
    let paid = bank.keys("POST");
    assert!(paid.len() == 2 && paid[0] == paid[1], "once more under the same key: {paid:?}");
    Ok(())
}

/// The ids of the questions that wait, by the task they wait on.
fn waiting(state: &Json) -> Vec<Json> {
    let tasks = state["tasks"].as_array().into_iter().flatten();
    tasks.filter(|task| task["result"].is_null()).map(|task| task["interrupts"][0]["id"].clone()).collect()
}

fn answers(state: &Json) -> Vec<&str> {
    let messages = state["values"]["messages"].as_array().into_iter().flatten().filter_map(Json::as_str);
    messages.filter_map(|message| message.strip_prefix("tool: clerk is done by ")).collect()
}

#[tokio::test]
async fn of_two_questions_each_side_answers_one() -> Result<()> {
    let bank = Bank::start().await?;
    let mut ours = start(&bank, &["t1", "t2"]).await?;
    for mode in MODES {
        let mut python = Python::start(&ours.world, "two", mode).await?;
        let thread = format!("python-first-{mode:?}");
        let data = ours.job(&thread, user("pay")).await?;
        let asked = waiting(&python.state(&thread).await?);
        let ids = |data: &Json| -> Vec<Json> {
            data["interrupts"].as_array().into_iter().flatten().map(|asked| asked["id"].clone()).collect()
        };
        assert_eq!((ids(&data), asked.len()), (asked.clone(), 2));
        let first = json!({ asked[0].as_str().context("an id")?: "happened" });
        let reply = python.run(&thread, json!({ "resume": first })).await?;
        assert_eq!((&reply["error"], waiting(&reply["state"])), (&Json::Null, asked[1..].to_vec()));
        let data = ours.completed(&thread, json!({ "command": { "resume": "happened" } })).await?;
        assert_eq!(data["result"]["output"], "all is paid by rust");
        assert_eq!(answers(&python.state(&thread).await?), ["python", "rust"]);

        let thread = format!("rust-first-{mode:?}");
        ours.job(&thread, user("pay")).await?;
        let asked = waiting(&python.state(&thread).await?);
        let first = json!({ asked[0].as_str().context("an id")?: "happened" });
        let data = ours.job(&thread, json!({ "command": { "resume": first } })).await?;
        assert_eq!(ids(&data), asked[1..]);
        assert_eq!(waiting(&python.state(&thread).await?), asked[1..]);
        let reply = python.run(&thread, json!({ "resume": "happened" })).await?;
        assert_eq!(reply["ran"], json!(["clerk", "clerk.tools/p", "main", "main.tools/t2"]));
        assert_eq!(answers(&reply["state"]), ["rust", "python"]);
    }
    assert_eq!(bank.keys("POST").len(), 8, "each payment was made once, by us");
    Ok(())
}

#[tokio::test]
async fn a_change_that_python_makes_instead_of_an_answer_ends_the_question() -> Result<()> {
    let bank = Bank::start().await?;
    let mut ours = start(&bank, &["t"]).await?;
    let mut python = Python::start(&ours.world, "delegating", Mode::Strict).await?;
    ours.job("t", user("pay")).await?;
    let by_hand = json!([{ "role": "tool", "content": "paid by hand", "tool_call_id": "t" }]);
    let change = json!({ "values": { "messages": by_hand }, "as_node": "main.tools" });
    let reply = python.ask("update", "t", change).await?;
    assert_eq!(reply["state"]["next"], json!(["main"]));
    let data = ours.job("t", json!({ "command": { "resume": "happened" } })).await?;
    assert_eq!(data["error"]["type"], "NOTHING_TO_RESUME");
    let data = ours.completed("t", go_on()).await?;
    assert_eq!(data["result"]["output"], "all is paid by rust");
    assert_eq!(bank.keys("POST").len(), 1);
    Ok(())
}

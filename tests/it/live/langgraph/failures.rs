//! One of two parallel tasks has failed: the other side runs that one, and not the one that is done.

use anyhow::Result;
use serde_json::{Value as Json, json};

use super::{MODES, Mode, Ours, Python, go_on, with};

fn definition() -> Json {
    let node = |name: &str, log: &str| json!({ "id": name, "type": "transform", "writes": { "log": log } });
    let edge = |from: &str, to: &str| json!({ "from": from, "to": to });
    json!({
        "channels": { "log": { "reducer": "append", "default": [] }, "n": { "reducer": "last_value" } },
        "nodes": [
            node("fine", "['fine by rust']"),
            node("shaky", "['shaky by rust with ' ~ (n + 1)]"),
            node("after", "['after by rust']")
        ],
        "edges": [
            edge("START", "fine"), edge("START", "shaky"), { "sources": ["fine", "shaky"], "target": "after" },
            edge("after", "END")
        ],
        "output": ["log"]
    })
}

const DURABILITIES: [&str; 3] = ["sync", "async", "exit"];

#[tokio::test]
async fn a_task_that_failed_here_is_run_again_by_python_and_its_finished_sibling_is_not() -> Result<()> {
    let mut ours = Ours::start(definition()).await?;
    for mode in MODES {
        let mut python = Python::start(&ours.world, "failing", mode).await?;
        for durability in DURABILITIES {
            let thread = format!("{mode:?}-{durability}");
            let config = json!({ "durability": durability });
            let input = json!({ "input": { "n": "no number" }, "config": config });
            let data = ours.job(&thread, input).await?;
            assert_eq!(data["error"]["node"], "shaky", "{data}");
            let state = python.state(&thread).await?;
            let expected = (&json!(["shaky"]), &json!(["fine by rust"]));
            assert_eq!((&state["next"], &state["values"]["log"]), expected, "{thread}");
            let failed = state["tasks"].as_array().into_iter().flatten().find(|task| task["name"] == "shaky");
            let error = failed.and_then(|task| task["error"].as_str()).unwrap_or_default();
            assert!(error.contains("NODE_EXPRESSION"), "{state}");

            // A change that does not mend it is not lost, and not made twice.
            let change = json!({ "command": { "update": { "log": ["told"] } }, "config": config });
            let data = ours.job(&thread, change).await?;
            assert_eq!(data["error"]["node"], "shaky", "{data}");
            let reply = python.run(&thread, json!({ "durability": durability })).await?;
            assert_eq!(reply["ran"], json!(["after", "shaky"]), "{thread}");
            let log = json!(["told", "fine by rust", "shaky by python", "after by python"]);
            assert_eq!(reply["state"]["values"]["log"], log, "{thread}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_task_that_failed_in_python_is_run_again_by_us_and_its_finished_sibling_is_not() -> Result<()> {
    let mut ours = Ours::start(definition()).await?;
    for mode in MODES {
        let mut python = Python::start(&ours.world, "failing", mode).await?;
        for durability in DURABILITIES {
            let thread = format!("{mode:?}-{durability}");
            let broken = json!({ "broken": ["shaky"], "durability": durability });
            let failing = |more: Json| with(broken.clone(), &more);
            let reply =
                python.run(&thread, failing(json!({ "input": { "n": 1 }, "beside": "fine" }))).await?;
            let expected = (&json!("ValueError: boom"), &json!(["shaky"]));
            assert_eq!((&reply["error"], &reply["state"]["next"]), expected, "{thread}");
            let reply = python.run(&thread, failing(json!({ "change": { "log": ["told"] } }))).await?;
            assert_eq!((&reply["error"], &reply["ran"]), (&json!("ValueError: boom"), &json!(["shaky"])));
            let request = with(go_on(), &json!({ "config": { "durability": durability } }));
            let data = ours.completed(&thread, request).await?;
            let log = json!(["told", "fine by python", "shaky by rust with 2", "after by rust"]);
            assert_eq!(data["result"]["output"]["log"], log, "{thread}");
            assert_eq!(python.state(&thread).await?["values"]["log"], log);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_jump_beside_a_failed_task_is_not_made_twice() -> Result<()> {
    let mut ours = Ours::start(definition()).await?;
    let mut python = Python::start(&ours.world, "failing", Mode::Strict).await?;
    ours.job("ours", json!({ "input": { "n": "no number" } })).await?;
    let data = ours.job("ours", json!({ "command": { "goto": ["after"] } })).await?;
    assert_eq!(data["error"]["node"], "shaky", "{data}");
    assert_eq!(python.state("ours").await?["next"], json!(["shaky"]));
    let reply = python.run("ours", json!({})).await?;
    assert_eq!(reply["ran"], json!(["after", "shaky"]));
    let log = json!(["after by rust", "fine by rust", "shaky by python", "after by python"]);
    assert_eq!(reply["state"]["values"]["log"], log);

    let broken = json!(["shaky"]);
    python.run("python", json!({ "input": { "n": 1 }, "broken": broken, "beside": "fine" })).await?;
    let reply = python.run("python", json!({ "goto": "after", "broken": broken, "beside": "after" })).await?;
    assert_eq!((&reply["ran"], &reply["state"]["next"]), (&json!(["after", "shaky"]), &json!(["shaky"])));
    let data = ours.completed("python", go_on()).await?;
    let log = json!(["after by python", "fine by python", "shaky by rust with 2", "after by rust"]);
    assert_eq!(data["result"]["output"]["log"], log);
    Ok(())
}

#[tokio::test]
async fn a_finished_task_of_python_that_overwrote_a_channel_has_overwritten_it_here() -> Result<()> {
    let mut ours = Ours::start(definition()).await?;
    let mut python = Python::start(&ours.world, "failing", Mode::Strict).await?;
    let input = json!({ "n": "overwrite", "log": ["before"] });
    python.run("t", json!({ "input": input, "broken": ["shaky"], "beside": "fine" })).await?;
    let data = ours.completed("t", json!({ "command": { "update": { "n": 1 } } })).await?;
    let log = json!(["fine by python", "after by rust"]);
    assert_eq!(data["result"]["output"]["log"], log);
    // And as JSON, for those who have no such object.
    let change =
        json!({ "command": { "update": { "log": { "__overwrite__": ["new"] } }, "goto": ["after"] } });
    ours.completed("t", change).await?;
    assert_eq!(python.state("t").await?["values"]["log"], json!(["new", "after by rust"]));
    Ok(())
}

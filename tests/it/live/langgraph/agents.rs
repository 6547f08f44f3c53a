//! An agent's tool calls are sends: scheduled by one side, run by the other, or by both.

use anyhow::Result;
use serde_json::{Value as Json, json};

use super::{MODES, Mode, Ours, Python, go_on, user};
use crate::live::{interop::read_thread, world::scripted};

fn definition() -> Json {
    let call = |id: &str, path: &str| json!({ "id": id, "name": "write_file", "args": { "file_path": path, "content": id } });
    let replies = json!([
        { "text": "both by rust", "tool_calls": [call("c1", "/one.md"), call("c2", "/two.md")] },
        { "text": "done by rust" }
    ]);
    json!({
        "nodes": [{ "id": "main", "type": "agent", "tools": ["write_file"], "model": scripted(replies) }],
        "edges": [{ "from": "START", "to": "main" }, { "from": "main", "to": "END" }]
    })
}

fn messages(state: &Json) -> Vec<String> {
    let messages = state["values"]["messages"].as_array().into_iter().flatten();
    messages.map(|message| message.as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn tool_calls_that_one_side_schedules_are_made_by_the_other() -> Result<()> {
    let mut ours = Ours::start(definition()).await?;
    for mode in MODES {
        let mut python = Python::start(&ours.world, "agent", mode).await?;
        let thread = format!("python-{mode:?}");
        let mut first = user("go");
        first["steps"] = json!(1);
        let reply = python.run(&thread, first).await?;
        assert_eq!(reply["state"]["next"], json!(["main.tools", "main.tools"]));
        let data = ours.completed(&thread, go_on()).await?;
        assert_eq!(data["result"]["output"], "done by rust");
        let state = python.state(&thread).await?;
        let expected = [
            "human: go",
            "ai: both by python",
            "tool: Wrote '/one.md'.",
            "tool: Wrote '/two.md'.",
            "ai: done by rust",
        ];
        assert_eq!(messages(&state), expected);
        assert_eq!(state["values"]["files"].as_object().map(|files| files.len()), Some(2));

        let thread = format!("ours-{mode:?}");
        ours.step(&thread, user("go")).await?;
        assert_eq!(python.state(&thread).await?["next"], json!(["main.tools", "main.tools"]));
        let reply = python.run(&thread, json!({})).await?;
        assert_eq!(reply["ran"], json!(["main", "main.tools/c1", "main.tools/c2"]));
        let written = |path: &str| format!("tool: {path} written by python");
        let expected = [
            "human: go".into(),
            "ai: both by rust".into(),
            written("/one.md"),
            written("/two.md"),
            "ai: done by python".into(),
        ];
        assert_eq!(messages(&reply["state"]), expected);
    }
    Ok(())
}

#[tokio::test]
async fn a_tool_call_that_failed_in_python_is_made_by_us_and_its_finished_sibling_is_not() -> Result<()> {
    let mut ours = Ours::start(definition()).await?;
    for mode in MODES {
        let mut python = Python::start(&ours.world, "agent", mode).await?;
        let thread = format!("half-{mode:?}");
        let mut broken = user("go");
        broken["broken"] = json!(["c2"]);
        broken["beside"] = json!("main.tools");
        let reply = python.run(&thread, broken).await?;
        assert_eq!(reply["error"], "ValueError: the disk is full");
        ours.completed(&thread, go_on()).await?;
        let state = python.state(&thread).await?;
        let expected = [
            "human: go",
            "ai: both by python",
            "tool: /one.md written by python",
            "tool: Wrote '/two.md'.",
            "ai: done by rust",
        ];
        assert_eq!(messages(&state), expected);
        let stored = read_thread(&ours.world.database_url, &thread).await?;
        assert_eq!(stored["encoded_otherwise"], json!([]), "Python would have written the same bytes");
        // A turn of Python's on top of it, and one of ours on top of that.
        let reply = python
            .ask("update", &thread, json!({ "values": user("and?")["input"], "as_node": "__start__" }))
            .await?;
        assert_eq!(reply["state"]["next"], json!(["main"]));
        let data = ours.completed(&thread, go_on()).await?;
        assert_eq!(data["result"]["output"], "(script ended)");
    }
    Ok(())
}

#[tokio::test]
async fn what_our_definition_does_not_know_of_a_python_thread_stays_on_it() -> Result<()> {
    let mut ours = Ours::start(definition()).await?;
    let mut python = Python::start(&ours.world, "flow", Mode::Strict).await?;
    let before = python.run("t", json!({ "input": { "n": 1 } })).await?;
    let data = ours.completed("t", user("go")).await?;
    assert_eq!(data["result"]["output"], "(script ended)", "two answers were there already");
    let state = python.state("t").await?;
    for channel in ["log", "facts", "total", "things", "n"] {
        assert_eq!(state["values"][channel], before["state"]["values"][channel], "{channel}");
    }
    let said = ["ai: split by python", "chat: hm", "ai: join by python", "human: go", "ai: (script ended)"];
    assert_eq!(messages(&state), said);
    let after = python.run("t", json!({ "input": { "n": 2 } })).await?;
    assert_eq!(after["state"]["values"]["total"], 222);
    Ok(())
}

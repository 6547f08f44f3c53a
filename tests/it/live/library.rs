//! Stored definitions and threads through the hands of an operator.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value as Json, json};

use super::{interop, world::World};
use crate::servers;

/// A text in a file.
fn file(name: &str, text: &str) -> Result<String> {
    let path = servers::scratch("library")?.join(name);
    fs::write(&path, text)?;
    path.to_str().map(str::to_owned).context("paths are UTF-8")
}

/// What a command prints that must succeed.
async fn printed(world: &World, arguments: &[&str]) -> Result<String> {
    let (code, printed, errors) = world.run_command(arguments).await?;
    assert_eq!(code, Some(0), "{arguments:?}: {errors}");
    Ok(printed)
}

/// What a command says that must fail.
async fn refused(world: &World, arguments: &[&str]) -> Result<String> {
    let (code, printed, errors) = world.run_command(arguments).await?;
    assert_eq!(code, Some(1), "{arguments:?}: {printed}");
    Ok(errors)
}

fn lines(printed: &str) -> Vec<Json> {
    printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// A graph that notes a topic and says `text`.
fn noting(text: &str) -> Json {
    json!({
        "name": "noter", "version": "1", "channels": { "topic": {}, "log": { "reducer": "append" } }, "output": ["log"],
        "nodes": [
            { "id": "note", "type": "transform", "writes": { "log": "'noted ' ~ topic" } },
            { "id": "say", "type": "transform", "writes": { "log": format!("'{text}'") } }
        ],
        "edges": [{ "from": "START", "to": "note" }, { "from": "note", "to": "say" }, { "from": "say", "to": "END" }]
    })
}

#[tokio::test]
async fn definitions_are_stored_stamped_and_run_by_name() -> Result<()> {
    let world = World::start().await?;
    let _executor = world.executor().await?;
    let (first, second) = (noting("hello").to_string(), noting("good day").to_string());
    let (first, second) = (file("first.json", &first)?, file("second.json", &second)?);
    assert!(printed(&world, &["agents", "put", &first]).await?.starts_with("stored  noter@1  sha256:"));
    assert!(printed(&world, &["agents", "put", &first]).await?.starts_with("known "));
    let errors = refused(&world, &["agents", "put", &second]).await?;
    assert!(errors.contains("[AGENT_VERSION_TAKEN] noter@1"), "{errors}");
    printed(&world, &["agents", "put", &second, "--version", "2"]).await?;
    let errors = refused(&world, &["agents", "put", &second, "--name", "no good"]).await?;
    assert!(errors.contains("[DEFINITION_INVALID]") && errors.contains("white space"), "{errors}");

    let got = printed(&world, &["agents", "get", "noter@1"]).await?;
    assert_eq!(got, noting("hello").to_string(), "byte by byte");
    assert!(refused(&world, &["agents", "get", "noter@3"]).await?.contains("[AGENT_NOT_FOUND]"));
    let versions = lines(&printed(&world, &["agents", "versions", "noter", "--json"]).await?);
    let of = |view: &Json| view["version"].as_str().map(str::to_owned);
    assert_eq!(versions.iter().filter_map(of).collect::<Vec<_>>(), ["2", "1"]);

    let template = format!("{}/graph-definitions/task-agent.json", env!("CARGO_MANIFEST_DIR"));
    let catalogue =
        "name,task_description,context\nrefunds,\"Answer {{ questions }}\",be kind\nbills,Write bills,\n";
    let catalogue = file("agents.csv", catalogue)?;
    let stamp = ["agents", "stamp", &template, "--catalogue", &catalogue];
    let tried = printed(&world, &[&stamp[..], &["--dry-run"]].concat()).await?;
    assert_eq!(tried.lines().count(), 2, "{tried}");
    assert_eq!(
        lines(&printed(&world, &["agents", "list", "--json"]).await?).len(),
        1,
        "a dry run stores nothing"
    );
    printed(&world, &stamp).await?;
    let listed = printed(&world, &["agents", "list"]).await?;
    assert!(listed.contains("bills") && listed.contains("refunds") && listed.contains("noter"), "{listed}");
    let wrong = file("wrong.csv", "name,task\nx,y\n")?;
    let errors = refused(&world, &["agents", "stamp", &template, "--catalogue", &wrong]).await?;
    assert!(
        errors.contains("[CATALOGUE_INVALID]") && errors.contains("entry 1: the template has no variable"),
        "{errors}"
    );
    assert!(
        refused(&world, &["agents", "put", &template])
            .await?
            .contains("/variables/task_description: has no value")
    );

    for (job_id, agent, said) in [("a", "noter", "good day"), ("b", "noter@1", "hello")] {
        let result =
            world.run(&json!({ "job_id": job_id, "agent": agent, "input": { "topic": "tea" } })).await?;
        assert_eq!(result["data"]["result"]["output"]["log"], json!(["noted tea", said]), "{result}");
    }
    let input = json!({ "messages": [{ "role": "user", "content": "go" }] });
    let result = world.run(&json!({ "job_id": "c", "agent": "refunds@1.0.0", "input": input })).await?;
    assert_eq!(result["data"]["result"]["output"], "Done as described.", "{result}");
    Ok(())
}

#[tokio::test]
async fn a_thread_is_listed_shown_forked_changed_exported_measured_and_removed() -> Result<()> {
    let world = World::start().await?;
    let _executor = world.executor().await?;
    let definition = file("noter.json", &noting("hello").to_string())?;
    printed(&world, &["agents", "put", &definition]).await?;
    let job = |job_id: &str, thread: &str| json!({ "job_id": job_id, "thread_id": thread, "agent": "noter" });
    let mut first = job("first", "t");
    first["input"] = json!({ "topic": "tea" });
    world.run(&first).await?;

    let listed = printed(&world, &["threads", "list"]).await?;
    assert!(listed.starts_with("THREAD") && listed.contains("idle") && listed.contains("first"), "{listed}");
    let shown: Json = serde_json::from_str(&printed(&world, &["threads", "show", "t", "--json"]).await?)?;
    assert_eq!(
        (&shown["checkpoints"], &shown["state"], &shown["step"]),
        (&json!(4), &json!("idle"), &json!(2))
    );
    let history = lines(&printed(&world, &["threads", "history", "t", "--json"]).await?);
    let nexts: Vec<_> = history.iter().map(|line| line["next"].clone()).collect();
    assert_eq!(nexts, [json!([]), json!(["say"]), json!(["note"]), json!(["__start__"])]);
    let before_say = history[1]["checkpoint_id"].as_str().context("an id")?;
    let state = printed(&world, &["threads", "state", "t", "--checkpoint", before_say]).await?;
    assert!(state.contains("next: say") && state.contains("log: [\"noted tea\"]"), "{state}");

    // A copy, and a fork in place that the next job goes on from.
    let copied =
        printed(&world, &["threads", "fork", "t", "--checkpoint", before_say, "--to", "copy"]).await?;
    assert!(copied.starts_with("copied 3 checkpoints to copy"), "{copied}");
    assert!(refused(&world, &["threads", "fork", "t", "--to", "copy"]).await?.contains("[THREAD_EXISTS]"));
    let mut goes_on = job("goes-on", "copy");
    goes_on["command"] = json!({ "update": {} });
    let result = world.run(&goes_on).await?;
    assert_eq!(result["data"]["result"]["output"]["log"], json!(["noted tea", "hello"]), "{result}");
    let forked = printed(&world, &["threads", "fork", "t", "--checkpoint", before_say, "--json"]).await?;
    let forked: Json = serde_json::from_str(&forked)?;
    assert!(
        forked["checkpoint_id"].as_str() > history[0]["checkpoint_id"].as_str(),
        "it is the newest: {forked}"
    );
    let update = ["threads", "update", "t", "--values", r#"{"topic": "rum"}"#, "--as-node"];
    assert!(refused(&world, &[&update[..], &["nobody"]].concat()).await?.contains("[BAD_REQUEST]"));
    printed(&world, &[&update[..], &["note"]].concat()).await?;
    goes_on["job_id"] = json!("goes-on-2");
    goes_on["thread_id"] = json!("t");
    let result = world.run(&goes_on).await?;
    assert_eq!(result["data"]["result"]["output"]["log"], json!(["noted tea", "hello"]), "{result}");
    let history = lines(&printed(&world, &["threads", "history", "t", "--json"]).await?);
    let sources: Vec<_> = history.iter().filter_map(|line| line["metadata"]["source"].as_str()).collect();
    assert_eq!(sources[..3], ["loop", "update", "fork"]);
    assert_eq!(history[0]["values"]["topic"], "rum");

    let exported = lines(&printed(&world, &["threads", "export", "t"]).await?);
    assert_eq!(exported.len(), 1 + history.len());
    assert_eq!(
        (&exported[0]["thread"]["thread_id"], &exported[1]["metadata"]["step"]),
        (&json!("t"), &json!(-1))
    );
    let sizes = lines(&printed(&world, &["threads", "report", "--json"]).await?);
    assert!(sizes[0]["bytes"].as_u64() >= sizes[1]["bytes"].as_u64(), "{sizes:?}");
    assert!(refused(&world, &["threads", "delete", "t"]).await?.contains("--yes"));
    printed(&world, &["threads", "delete", "t", "--yes"]).await?;
    assert!(refused(&world, &["threads", "state", "t"]).await?.contains("[THREAD_NOT_FOUND]"));
    assert_eq!(world.sql("select count(*) from checkpoints where thread_id = 't'").await?.trim(), "0");
    Ok(())
}

#[tokio::test]
async fn a_thread_that_python_wrote_is_read_copied_and_changed_and_python_reads_the_outcome() -> Result<()> {
    let world = World::start().await?;
    printed(&world, &["migrate"]).await?;
    world.sql(include_str!("interop_thread.sql")).await?;
    let shown: Json =
        serde_json::from_str(&printed(&world, &["threads", "show", "t-basic", "--json"]).await?)?;
    assert_eq!(
        (&shown["state"], &shown["step"], &shown["definition"]),
        (&json!("idle"), &json!(2), &Json::Null)
    );
    let state: Json =
        serde_json::from_str(&printed(&world, &["threads", "state", "t-basic", "--json"]).await?)?;
    assert_eq!((&state["values"]["total"], &state["metadata"]["user_tier"]), (&json!(7), &json!("gold")));
    assert_eq!(state["values"]["messages"].as_array().map(Vec::len), Some(3));

    let copied = printed(&world, &["threads", "fork", "t-basic", "--to", "copy"]).await?;
    assert!(copied.starts_with("copied 4 checkpoints"), "{copied}");
    let definition = json!({
        "channels": { "total": { "reducer": "add" }, "topic": {}, "items": { "reducer": "append" }, "note": {} },
        "nodes": [
            { "id": "agent", "type": "transform", "writes": { "items": "'agent'" } },
            { "id": "tool", "type": "transform", "writes": { "items": "'tool'" } }
        ],
        "edges": [{ "from": "START", "to": "agent" }, { "from": "agent", "to": "tool" }, { "from": "tool", "to": "END" }]
    });
    let update = ["threads", "update", "copy", "--values", r#"{"total": 5}"#, "--as-node", "agent"];
    let errors = refused(&world, &update).await?;
    assert!(errors.contains("--definition"), "nobody knows Python's definition: {errors}");
    let file = file("python.json", &definition.to_string())?;
    printed(&world, &[&update[..], &["--definition", &file]].concat()).await?;
    let read = interop::read_thread(&world.database_url, "copy").await?;
    let history = read["graphs"][""].as_array().context("a list")?;
    let steps: Vec<_> = history.iter().map(|checkpoint| checkpoint["step"].clone()).collect();
    assert_eq!(steps, [-1, 0, 1, 2, 3]);
    assert_eq!(history[4]["channels"]["total"], 12);
    let (_, listed, _) = world.run_command(&["threads", "history", "copy", "--limit", "1"]).await?;
    assert!(listed.contains("update") && listed.contains("tool"), "{listed}");
    Ok(())
}

//! LangGraph's own tests of checkpointers, on our tables through `agent-executor store-stdio`.

use std::process::Stdio;

use anyhow::{Context, Result};
use serde_json::{Value as Json, json};
use tokio::io::AsyncWriteExt;

use crate::{
    executor::command,
    live::{
        interop,
        world::{WITHIN, program},
    },
    servers::Postgres,
};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/langgraph/conformance.py");

/// What every checkpointer must be able to do, and how many tests the pinned version has of each.
const BASE: [(&str, u32); 5] =
    [("put", 17), ("put_writes", 10), ("get_tuple", 10), ("list", 16), ("delete_thread", 5)];

#[tokio::test]
async fn our_tables_pass_langgraphs_tests_of_checkpointers() -> Result<()> {
    let database_url = Postgres::shared().await?.fresh_database().await?;
    let program = program().to_str().context("a path in UTF-8")?.to_owned();
    let printed = interop::run(SCRIPT, vec![program, database_url]).await?;
    let report: Json = serde_json::from_str(&printed).with_context(|| printed.clone())?;
    for (capability, tests) in BASE {
        let found = &report["results"][capability];
        assert_eq!(found["failures"], json!([]), "{capability}");
        assert_eq!((&found["passed"], &found["tests_passed"]), (&json!(true), &json!(tests)), "{capability}");
    }
    assert_eq!((&report["passed_all_base"], &report["same_checkpoints"]), (&json!(true), &json!(6)));
    Ok(())
}

/// The replies to these requests, each a line.
async fn talk(requests: &[Json]) -> Result<Vec<Json>> {
    let mut child = tokio::process::Command::from(command(program(), &[]))
        .arg("store-stdio")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let lines: String = requests.iter().map(|request| format!("{request}\n")).collect();
    child.stdin.take().context("a pipe")?.write_all(lines.as_bytes()).await?;
    let done = tokio::time::timeout(WITHIN, child.wait_with_output()).await??;
    assert!(done.status.success(), "the program ends with its input");
    String::from_utf8(done.stdout)?.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

#[tokio::test]
async fn every_type_and_byte_comes_back_from_our_tables() -> Result<()> {
    let dsn = Postgres::shared().await?.fresh_database().await?;
    let values = json!({
        "nothing": { "type": "null", "b64": "" }, "text": { "type": "msgpack", "b64": "omhp" },
        "long one": { "type": "msgpack", "b64": "zQAB" }, "negative zero": { "type": "msgpack", "b64": "y4AAAAAAAAAA" },
        "float": { "type": "msgpack", "b64": "yz+5mZmZmZma" }, "nul": { "type": "msgpack", "b64": "oQA=" },
        "unknown object": { "type": "msgpack", "b64": "1GMB" }, "bytes": { "type": "bytearray", "b64": "AP8=" },
        "secret": { "type": "msgpack+aes", "b64": "wQ==" }
    });
    let versions: serde_json::Map<_, _> = values
        .as_object()
        .context("an object")?
        .keys()
        .map(|channel| (channel.clone(), json!("1.5")))
        .collect();
    let checkpoint = json!({ "v": 4, "id": "c1", "ts": "now", "channel_versions": versions, "versions_seen": {}, "x": [1.0] });
    let writes = json!([["b", values["secret"]], ["__error__", values["text"]], ["a", values["bytes"]]]);
    let replies = talk(&[
        json!({ "op": "list" }),
        json!({ "op": "connect", "dsn": dsn }),
        json!({ "op": "setup" }),
        json!({ "op": "put", "thread_id": "t", "checkpoint_ns": "", "parent_checkpoint_id": null, "checkpoint": checkpoint,
            "channel_values": values, "new_versions": versions, "metadata": { "step": 1, "odd": { "b": 1, "a": null } } }),
        json!({ "op": "put_writes", "thread_id": "t", "checkpoint_ns": "", "checkpoint_id": "c1", "task_id": "k",
            "task_path": "p", "writes": writes }),
        json!({ "op": "put", "thread_id": "t", "checkpoint": { "id": "c2" }, "metadata": {},
            "channel_values": { "half": { "type": "msgpack", "b64": "kgE=" } } }),
        json!({ "op": "list", "thread_id": "t", "filter": { "odd": { "b": 1 } }, "limit": 5 }),
        json!({ "op": "delete_thread", "thread_id": "t" }),
        json!({ "op": "get_tuple", "thread_id": "t" }),
        json!({ "op": "drop" }),
    ])
    .await?;
    let done: Vec<_> = replies.iter().map(|reply| reply["ok"] == true).collect();
    assert_eq!(done, [false, true, true, true, true, false, true, true, true, false], "{replies:?}");
    assert!(
        replies[5]["error"].as_str().is_some_and(|error| error.contains("channel half: ")),
        "{}",
        replies[5]
    );
    let found = &replies[6]["tuples"][0];
    assert_eq!(found["blobs"], values);
    let order = json!([
        ["k", "__error__", values["text"]],
        ["k", "b", values["secret"]],
        ["k", "a", values["bytes"]]
    ]);
    assert_eq!(found["pending_writes"], order);
    let mut stored = found["checkpoint"].clone();
    let inline = stored.as_object_mut().and_then(|fields| fields.remove("channel_values"));
    assert_eq!((stored, inline), (checkpoint, Some(json!({ "nothing": null, "text": "hi", "float": 0.1 }))));
    assert_eq!(found["metadata"], json!({ "step": 1, "odd": { "b": 1, "a": null } }));
    assert_eq!(replies[8], json!({ "ok": true, "tuples": [] }));
    Ok(())
}

//! Threads across jobs and definitions: forks from older checkpoints, changes by hand, changed definitions.

use agent_executor::{
    graph::{Limits, compile},
    ids::{Namespace, ThreadId, UnixNanos},
    pregel::Source,
    run::{self, Occasion},
    store::{Advance, Checkpoints, Commit, Leave, Saved, Threads},
    worker::{DAY, ThreadRetention},
};
use serde_json::{Value as Json, json};

use crate::stage::Stage;

/// Asks about a number, then says whether it is large.
fn definition() -> Json {
    json!({
        "channels": { "number": {}, "log": { "reducer": "append" }, "size": {} }, "output": ["log", "size"],
        "nodes": [
            { "id": "read", "type": "transform", "writes": { "log": "'read ' ~ number" } },
            { "id": "large", "type": "transform", "writes": { "size": "'large'", "log": "'is large'" } },
            { "id": "small", "type": "transform", "writes": { "size": "'small'", "log": "'is small'" } }
        ],
        "edges": [
            { "from": "START", "to": "read" }, { "from": "read", "to": "large", "when": "number > 9" },
            { "from": "read", "to": "small", "otherwise": true },
            { "from": "large", "to": "END" }, { "from": "small", "to": "END" }
        ]
    })
}

async fn run_job(stage: &Stage, job_id: &str, more: &Json) -> Json {
    let mut job = json!({ "job_id": job_id, "thread_id": "t", "agent_definition": definition() });
    for (name, value) in more.as_object().expect("an object") {
        job[name] = value.clone();
    }
    stage.push(&job);
    stage.settle_all().await;
    let ended = stage.last_result();
    assert_eq!(ended.job_id, job_id);
    ended.data
}

fn thread() -> ThreadId {
    ThreadId::parse("t").expect("valid")
}

/// The checkpoints of the thread, oldest first.
async fn history(stage: &Stage) -> Vec<Saved> {
    let mut saved = stage.store.history(&thread(), &Namespace::root(), 100).await.expect("the twin answers");
    saved.reverse();
    saved
}

fn log(data: &Json) -> &Json {
    &data["result"]["output"]["log"]
}

#[tokio::test(start_paused = true)]
async fn a_job_goes_on_from_an_older_checkpoint_and_the_thread_has_both_branches() {
    let stage = Stage::new();
    let data = run_job(&stage, "first", &json!({ "input": { "number": 3 } })).await;
    assert_eq!(log(&data), &json!(["read 3", "is small"]));
    let before = history(&stage).await;
    let after_read = before.iter().find(|saved| saved.metadata.step == 1).expect("after `read`").clone();

    // Input on an older checkpoint is a new turn from there.
    let from = after_read.checkpoint.id.to_string();
    let data = run_job(&stage, "turn", &json!({ "input": { "number": 30 }, "checkpoint_id": from })).await;
    assert_eq!(log(&data), &json!(["read 3", "read 30", "is large"]));
    // An empty command goes on with what was about to run there.
    let data = run_job(&stage, "again", &json!({ "command": { "update": {} }, "checkpoint_id": from })).await;
    assert_eq!(log(&data), &json!(["read 3", "is small"]));
    // An update changes the state first, and a jump runs a node beside what was about to run.
    let update = json!({ "update": { "log": "by hand" }, "goto": ["read"] });
    let data = run_job(&stage, "jumps", &json!({ "command": update, "checkpoint_id": from })).await;
    assert_eq!(log(&data), &json!(["read 3", "by hand", "read 3", "is small", "is small"]));

    let after = history(&stage).await;
    assert_eq!(after[..before.len()], before[..], "what was there stays as it was");
    let children: Vec<_> =
        after.iter().filter(|saved| saved.parent.as_ref() == Some(&after_read.checkpoint.id)).collect();
    assert_eq!(children.len(), 4, "the first run, and three forks");
    let unknown = json!({ "input": {}, "checkpoint_id": "1f1e533b-1e75-67ed-bfff-4b5d0ac8932d" });
    let data = run_job(&stage, "nowhere", &unknown).await;
    assert_eq!(data["error"]["type"], "CHECKPOINT_NOT_FOUND");
}

#[tokio::test(start_paused = true)]
async fn a_change_by_hand_is_what_the_next_job_goes_on_from() {
    let stage = Stage::new();
    run_job(&stage, "first", &json!({ "input": { "number": 3 } })).await;
    let graph = compile(definition().to_string().as_bytes(), &Limits::default()).expect("no mistakes");
    let saved = history(&stage).await.pop().expect("it has some");
    let held = stage.store.seize(&thread()).await.expect("the twin answers").expect("free");
    let occasion = Occasion { newest: held.head.clone(), now: UnixNanos(1), epoch: held.epoch };
    let values = json!({ "number": 70 }).as_object().expect("an object").clone();
    let put = run::update(&graph, &saved, (values, Some("read")), &occasion).expect("it fits");
    assert_eq!((put.metadata.source, put.parent.clone()), (Source::Update, held.head.clone()));
    let advance = Some(Advance { from: held.head.clone(), to: put.checkpoint.id.clone() });
    let empty = Commit::empty(held.thread_id.clone(), held.epoch);
    stage.store.commit(Commit { advance, puts: vec![put], ..empty }).await.expect("committed");
    stage.store.let_go(&held).await.expect("freed");

    let data = run_job(&stage, "second", &json!({ "command": { "update": {} } })).await;
    assert_eq!(log(&data), &json!(["read 3", "is small", "is large"]), "as if `read` had just run");
}

#[tokio::test(start_paused = true)]
async fn a_definition_that_lacks_a_node_the_thread_is_about_to_run_is_refused_by_name() {
    let stage = Stage::new();
    run_job(&stage, "first", &json!({ "input": { "number": 3 } })).await;
    let older =
        history(&stage).await.into_iter().find(|saved| saved.metadata.step == 1).expect("after `read`");
    let mut changed = definition();
    changed["nodes"][2]["id"] = "tiny".into();
    changed["edges"][2]["to"] = "tiny".into();
    changed["edges"][4]["from"] = "tiny".into();
    let job = json!({ "agent_definition": changed, "command": { "update": {} },
        "checkpoint_id": older.checkpoint.id.as_str() });
    let data = run_job(&stage, "changed", &job).await;
    assert_eq!(data["error"]["type"], "DEFINITION_INCOMPATIBLE");
    let message = data["error"]["message"].as_str().expect("a text");
    assert!(message.contains("node small") && message.contains("allow_incompatible"), "{message}");
    // At the end of the run nothing waits, so the same definition fits.
    let data =
        run_job(&stage, "fits", &json!({ "agent_definition": changed, "input": { "number": 4 } })).await;
    assert_eq!(data["result"]["output"]["size"], "small", "{data}");
}

#[tokio::test(start_paused = true)]
async fn a_worker_thins_out_threads_that_have_been_silent_for_long() {
    let mut stage = Stage::new();
    stage.config.threads = ThreadRetention { after: Some(DAY), leave: Leave::Latest, waiting: false };
    run_job(&stage, "first", &json!({ "input": { "number": 3 } })).await;
    let whole = history(&stage).await;
    assert!(whole.len() > 1);
    tokio::time::advance(2 * DAY).await;
    stage.run_until(async || history(&stage).await.len() == 1).await;
    assert_eq!(history(&stage).await[..], whole[whole.len() - 1..], "the newest is left as it was");
    let data = run_job(&stage, "second", &json!({ "input": { "number": 12 } })).await;
    assert_eq!(log(&data), &json!(["read 3", "is small", "read 12", "is large"]));
}

//! Several questions at once, in sub-agents, and what is stored of them.

use agent_executor::{
    ids::{Namespace, ThreadId},
    store::Checkpoints,
    value::Value,
};
use serde_json::{Value as Json, json};

use crate::stage::Stage;

/// Two sub-agents side by side that each make a call whose answer is lost.
fn definition() -> Json {
    let http = json!({ "method": "POST", "url": "https://post.example.com/lost" });
    let model =
        |replies: Json| json!({ "provider": "scripted", "model": "test", "script": { "replies": replies } });
    let clerk = |name: &str| {
        let call = json!([{ "id": "s", "name": "send", "args": {} }]);
        json!({ "type": "specialist", "name": name, "description": name, "tools": ["send"],
            "model": model(json!([{ "text": "sending", "tool_calls": call }, { "text": format!("{name} has sent") }])) })
    };
    let task = |id: &str, name: &str| json!({ "id": id, "name": "task", "args": { "description": "go", "subagent_type": name } });
    let replies = json!([
        { "text": "both", "tool_calls": [task("t1", "one"), task("t2", "two"), { "id": "t3", "name": "ls", "args": { "path": "/" } }] },
        { "text": "all is sent" }
    ]);
    json!({
        "tool_definitions": [{ "name": "send", "description": "sends", "http": http }],
        "nodes": [
            { "type": "orchestrator", "name": "main", "tools": [], "model": model(replies) }, clerk("one"), clerk("two")
        ],
        "edges": [{ "source": "main", "target": "one" }, { "source": "main", "target": "two" }]
    })
}

/// Runs a job of the thread to its end: the subject and the data of its result.
async fn run(stage: &Stage, job_id: &str, durability: &str, more: (&str, Json)) -> (String, Json) {
    let mut job = json!({ "job_id": job_id, "thread_id": "t", "agent_definition": definition(), "config": { "durability": durability } });
    job[more.0] = more.1;
    stage.push(&job);
    stage.settle_all().await;
    let ended = stage.last_result();
    assert_eq!(ended.job_id, job_id);
    (ended.subject, ended.data)
}

fn ids(data: &Json) -> Vec<String> {
    let interrupts = data["interrupts"].as_array().expect("a list");
    interrupts.iter().map(|interrupt| interrupt["id"].as_str().expect("an id").to_owned()).collect()
}

fn thread() -> ThreadId {
    ThreadId::parse("t").expect("valid")
}

/// The ids in the `__interrupt__` rows of the newest checkpoint of a graph.
async fn stored(stage: &Stage, ns: &Namespace) -> Vec<String> {
    let saved = stage.store.load(&thread(), ns, None).await.expect("the twin answers").expect("a checkpoint");
    let rows = saved.writes.iter().filter(|write| &*write.channel == "__interrupt__");
    let of_row = |value: &Value| -> Vec<String> {
        let questions = value.as_list().expect("a list, as LangGraph stores it").iter();
        let id = |question: &Value| {
            let Value::Interrupt(interrupt) = question else { return None };
            Some(interrupt.id.to_string())
        };
        questions.filter_map(id).collect()
    };
    rows.flat_map(|row| {
        assert_eq!(row.idx, -3);
        of_row(&row.value)
    })
    .collect()
}

#[tokio::test(start_paused = true)]
async fn several_questions_are_answered_one_by_one_and_finished_siblings_do_not_run_again() {
    for durability in ["sync", "async", "exit"] {
        let stage = Stage::new();
        let input = json!({ "messages": [{ "role": "user", "content": "go" }] });
        let (subject, data) = run(&stage, "asks", durability, ("input", input)).await;
        let asked = ids(&data);
        assert_eq!((&*subject, asked.len()), ("agent.status.interrupted", 2), "{durability}");

        // Python finds each question on the task of the root graph and on the task that asked.
        assert_eq!(stored(&stage, &Namespace::root()).await, asked);
        let nested = stage.store.namespaces(&thread()).into_iter().filter(|ns| !ns.is_root());
        let mut inside = Vec::new();
        for ns in nested {
            inside.extend(stored(&stage, &ns).await);
        }
        inside.sort();
        let mut sorted = asked.clone();
        sorted.sort();
        assert_eq!(inside, sorted);

        let (_, data) =
            run(&stage, "to-whom", durability, ("command", json!({ "resume": "happened" }))).await;
        assert_eq!(data["error"]["type"], "RESUME_AMBIGUOUS");
        let stranger = json!({ "resume": { "00000000000000000000000000000000": "happened" } });
        let (_, data) = run(&stage, "stranger", durability, ("command", stranger)).await;
        assert_eq!(data["error"]["type"], "RESUME_UNKNOWN");

        let first = json!({ "resume": { &asked[0]: "happened" } });
        let (subject, data) = run(&stage, "first", durability, ("command", first)).await;
        assert_eq!((&*subject, ids(&data)), ("agent.status.interrupted", vec![asked[1].clone()]));
        let (_, data) =
            run(&stage, "second", durability, ("command", json!({ "resume": { "result": 7 } }))).await;
        assert_eq!(data["result"]["output"], "all is sent", "{durability}");

        let events = stage.sink.events(&thread());
        let ended = |id: &str| {
            let is_end = |event: &&Json| {
                event["event_type"] == "on_tool_end"
                    && event["data"]["tool_call_id"] == id
                    && event["ns"] == ""
            };
            events.iter().filter(is_end).count()
        };
        assert_eq!((ended("t1"), ended("t2"), ended("t3")), (1, 1, 1));
        assert_eq!(stage.outside.requests().len(), 2, "{durability}");
    }
}

#[tokio::test(start_paused = true)]
async fn new_input_leaves_a_question_behind() {
    let stage = Stage::new();
    let input = |text: &str| json!({ "messages": [{ "role": "user", "content": text }] });
    let (subject, _) = run(&stage, "asks", "sync", ("input", input("go"))).await;
    assert_eq!(subject, "agent.status.interrupted");
    let (subject, data) = run(&stage, "goes-on", "sync", ("input", input("never mind"))).await;
    assert_eq!((&*subject, &data["result"]["output"]), ("agent.status.completed", &json!("all is sent")));
    let (_, data) = run(&stage, "too-late", "sync", ("command", json!({ "resume": "happened" }))).await;
    assert_eq!(data["error"]["type"], "NOTHING_TO_RESUME");
}

#[tokio::test(start_paused = true)]
async fn going_on_from_one_nested_pause_leaves_the_other_one_where_it_is() {
    let inner = json!({ "channels": { "x": {} }, "nodes": [
        { "id": "step", "type": "transform", "interrupt_before": true, "writes": { "x": "1" } }
    ] });
    let node = |id: &str| json!({ "id": id, "type": "subgraph", "definition": inner });
    let definition = json!({
        "channels": { "go": {} },
        "nodes": [node("left"), node("right")],
        "edges": [{ "from": "START", "to": "left" }, { "from": "START", "to": "right" },
            { "from": "left", "to": "END" }, { "from": "right", "to": "END" }]
    });
    for durability in ["sync", "exit"] {
        let stage = Stage::new();
        let run = async |job_id: &str, more: (&str, Json)| {
            let mut job = json!({ "job_id": job_id, "thread_id": "t", "agent_definition": definition,
                "config": { "durability": durability } });
            job[more.0] = more.1;
            stage.push(&job);
            stage.settle_all().await;
            let ended = stage.last_result();
            (ended.subject, ended.data)
        };
        let (_, data) = run("starts", ("input", json!({ "go": 1 }))).await;
        let paused = ids(&data);
        assert_eq!(paused.len(), 2, "{durability}: {data}");
        let (subject, data) = run("one", ("command", json!({ "resume": { &paused[0]: "go" } }))).await;
        assert_eq!(
            (&*subject, ids(&data)),
            ("agent.status.interrupted", vec![paused[1].clone()]),
            "{durability}"
        );
        let (subject, _) = run("other", ("command", json!({ "resume": { &paused[1]: "go" } }))).await;
        assert_eq!(subject, "agent.status.completed", "{durability}");
    }
}

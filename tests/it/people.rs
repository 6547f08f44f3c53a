//! What people decide: tool calls that wait for a word, several at once and under crashes; questions that nobody
//! answers in time.

use agent_executor::{
    graph::{Limits, compile},
    job::Durability,
    store::{Agents, Deadlines, NewAgent, PutAgent},
};
use serde_json::{Map as JsonMap, Value as Json, json};

use crate::stage::{DURABILITIES, Ended, Stage, deaths};

fn scripted(replies: &Json) -> Json {
    json!({ "provider": "scripted", "model": "test", "script": { "replies": replies } })
}

/// Three payments in one turn, of which each needs a person's word.
fn payments() -> Json {
    let call = |id: &str, amount: u32| json!({ "id": id, "name": "pay", "args": { "amount": amount } });
    let replies = json!([
        { "text": "three", "tool_calls": [call("c1", 1), call("c2", 2), call("c3", 3)] },
        { "text": "two are paid" }
    ]);
    let parameters = json!({ "type": "object", "properties": { "amount": { "type": "number" } } });
    json!({
        "tool_definitions": [{ "name": "pay", "description": "pays", "parameters": parameters,
            "requires_approval": true, "http": { "method": "POST", "url": "https://bank.example.com/ok" } }],
        "nodes": [{ "id": "clerk", "type": "agent", "tools": ["pay"], "model": scripted(&replies) }],
        "edges": []
    })
}

/// A question with a deadline.
fn approval() -> Json {
    json!({
        "channels": { "log": { "reducer": "append" } },
        "nodes": [
            { "id": "ask", "type": "approval", "question": "Go?", "deadline_seconds": 30, "default": "stop",
                "response_schema": { "enum": ["go", "stop"] } },
            { "id": "note", "type": "transform", "writes": { "log": "approval" } },
        ],
        "edges": [
            { "from": "START", "to": "ask" }, { "from": "ask", "to": "note" },
            { "from": "note", "to": "ask", "when": "log|length < 2" }, { "from": "note", "to": "END", "otherwise": true },
        ],
        "output": ["log"]
    })
}

fn job(job_id: &str, definition: &Json, more: (&str, Json), durability: Durability) -> Json {
    let mut job = json!({ "job_id": job_id, "thread_id": "t", "agent_definition": definition,
        "config": { "durability": serde_json::to_value(durability).expect("a word") } });
    job[more.0] = more.1;
    job
}

fn pay(job_id: &str, durability: Durability) -> Json {
    let input = json!({ "messages": [{ "role": "user", "content": "pay" }] });
    job(job_id, &payments(), ("input", input), durability)
}

/// A person's word on each call that the last result asks about.
fn words(stage: &Stage, durability: Durability) -> Json {
    let Ended { subject, data, .. } = stage.last_result();
    assert_eq!(subject, "agent.status.interrupted", "{data}");
    let word = |interrupt: &Json| {
        let word = match interrupt["value"]["tool_call_id"].as_str() {
            Some("c1") => json!("approve"),
            Some("c2") => json!({ "decision": "edit", "args": { "amount": 20 } }),
            _ => json!({ "decision": "reject", "message": "too dear" }),
        };
        (interrupt["id"].as_str().expect("an id").to_owned(), word)
    };
    let words: JsonMap<String, Json> =
        data["interrupts"].as_array().expect("a list").iter().map(word).collect();
    job("words", &payments(), ("command", json!({ "resume": words })), durability)
}

fn paid(stage: &Stage) -> usize {
    stage.outside.requests().len()
}

#[tokio::test(start_paused = true)]
async fn calls_of_one_turn_are_asked_about_at_once_and_each_gets_its_own_word() {
    for durability in DURABILITIES {
        let stage = Stage::new();
        stage.push(&pay("asks", durability));
        stage.settle_all().await;
        let data = stage.last_result().data;
        let asked: Vec<_> = data["interrupts"].as_array().expect("a list").iter().collect();
        assert_eq!((asked.len(), paid(&stage)), (3, 0), "{durability:?}: {data}");
        assert_eq!(asked[1]["value"]["args"], json!({ "amount": 2 }));

        stage.push(&words(&stage, durability));
        stage.settle_all().await;
        let data = stage.last_result().data;
        assert_eq!((&data["result"]["output"], paid(&stage)), (&json!("two are paid"), 2), "{durability:?}");
        let events = stage.sink.events(&agent_executor::ids::ThreadId::parse("t").expect("valid"));
        let ends: Vec<_> = events.iter().filter(|event| event["event_type"] == "on_tool_end").collect();
        let said = |id: &str| {
            let of_call = ends.iter().filter(|event| event["data"]["tool_call_id"] == id);
            let said: Vec<_> = of_call.map(|event| event["data"]["tool_output"].as_str()).collect();
            assert_eq!(said.len(), 1, "{id}");
            said[0].expect("a text").to_owned()
        };
        assert_eq!(said("c1"), "pay took effect");
        assert_eq!(said("c2"), "A person has changed the arguments to {\"amount\":20}.\npay took effect");
        assert_eq!(said("c3"), "TOOL_REJECTED: a person has rejected this call: too dear");
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_write_makes_no_approved_call_twice_and_no_other_at_all() {
    for durability in DURABILITIES {
        let asked = || async {
            let stage = Stage::new();
            stage.push(&pay("asks", durability));
            stage.settle_all().await;
            stage.push(&words(&stage, durability));
            stage
        };
        let calm = asked().await;
        let before = calm.store.writes();
        calm.settle_all().await;
        for (n, point) in deaths(calm.store.writes() - before) {
            let what = format!("{durability:?}: crash {point:?} write {n}");
            let stage = asked().await;
            stage.die_at_write(n, point).await;
            stage.settle_all().await;
            // A call whose process died may have been made: a person looks, and says what is so.
            for look in 0..4 {
                let Ended { subject, data, .. } = stage.last_result();
                if subject == "agent.status.completed" {
                    break;
                }
                let command = ("command", json!({ "resume": stage.what_happened(&data) }));
                stage.push(&job(&format!("look-{look}"), &payments(), command, durability));
                stage.settle_all().await;
            }
            let Ended { subject, data, .. } = stage.last_result();
            assert_eq!(subject, "agent.status.completed", "{what}: {data}");
            assert_eq!(paid(&stage), 2, "{what}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_question_is_answered_by_itself_when_its_deadline_has_passed() {
    let stage = Stage::new();
    let started = tokio::time::Instant::now();
    stage.push(&job("asks", &approval(), ("input", json!({})), Durability::Sync));
    stage.settle_all().await;
    stage.run_until(async || stage.queue.results().len() >= 2).await;
    assert!(started.elapsed().as_secs() >= 30, "nobody answers before the time is over");
    let Ended { job_id: first, subject, .. } = stage.last_result();
    assert!(first.starts_with("asks~deadline-"), "{first}");
    assert_eq!(subject, "agent.status.interrupted", "the loop asks once more");

    // What a person answers is not answered again.
    stage.push(&job("answers", &approval(), ("command", json!({ "resume": "go" })), Durability::Sync));
    stage.settle_all().await;
    let data = stage.last_result().data;
    assert_eq!(data["result"]["output"], json!({ "log": ["stop", "go"] }));
    let store = stage.store.clone();
    let forgotten = async || {
        let is_over = started.elapsed().as_secs() > 120;
        is_over && store.passed(10).await.expect("the twin answers").is_empty()
    };
    stage.run_until(forgotten).await;
    assert_eq!(stage.queue.results().len(), 3, "no further job was made");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_is_answered_with_the_definition_that_asked() {
    let stage = Stage::new();
    let put = async |version: &str, says: &str| {
        let mut definition = approval();
        definition["nodes"][1]["writes"]["log"] = json!(format!("'{says} ' ~ approval"));
        let bytes = definition.to_string();
        let graph = compile(bytes.as_bytes(), &Limits::default()).expect("no mistakes");
        let agent = NewAgent {
            name: "asker".to_owned(),
            version: version.to_owned(),
            hash: graph.hash.to_string(),
            definition: bytes.into(),
        };
        assert_eq!(stage.store.put_agent(&agent).await.expect("the twin answers"), PutAgent::New);
    };
    put("1", "old").await;
    stage.push(&json!({ "job_id": "asks", "thread_id": "t", "agent": "asker", "input": {} }));
    stage.settle_all().await;
    put("2", "new").await;
    stage.run_until(async || stage.queue.results().len() >= 3).await;
    let Ended { subject, data, .. } = stage.last_result();
    assert_eq!(subject, "agent.status.completed", "{data}");
    assert_eq!(data["result"]["output"], json!({ "log": ["old stop", "old stop"] }));
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_write_neither_loses_a_deadline_nor_moves_it() {
    let calm = Stage::new();
    calm.push(&job("asks", &approval(), ("input", json!({})), Durability::Sync));
    calm.settle_all().await;
    for (n, point) in deaths(calm.store.writes()) {
        let stage = Stage::new();
        stage.push(&job("asks", &approval(), ("input", json!({})), Durability::Sync));
        stage.die_at_write(n, point).await;
        stage.settle_all().await;
        stage.run_until(async || stage.queue.results().len() >= 2).await;
        let answered = stage.last_result().job_id;
        assert!(answered.starts_with("asks~deadline-"), "crash {point:?} write {n}: {answered}");
    }
}

//! Calls of outside tools under crashes: what is done is not done again, and what may have happened is asked about.
//! The world in memory counts the requests and answers the questions as a person who looks there would.

use agent_executor::{job::Durability, store::memory::CrashPoint};
use serde_json::{Value as Json, json};

use crate::stage::{DURABILITIES, Ended, Stage, deaths};

/// Most questions a run may come to; each is about a call whose process died, or whose answer was lost.
const MAX_QUESTIONS: usize = 4;

fn word(durability: Durability) -> Json {
    serde_json::to_value(durability).expect("a word")
}

/// Two calls side by side, then one more. `end` of the address decides what the world does.
fn request(job_id: &str, durability: Durability, end: &str) -> Json {
    let tool = |name: &str, method: &str| {
        let http = json!({ "method": method, "url": format!("https://bank.example.com/{end}") });
        json!({ "name": name, "description": name, "http": http })
    };
    let call = |id: &str, name: &str| json!({ "id": id, "name": name, "args": {} });
    let replies = json!([
        { "text": "both", "tool_calls": [call("c1", "pay"), call("c2", "set")] },
        { "text": "once more", "tool_calls": [call("c3", "pay")] },
        { "text": "paid twice" }
    ]);
    json!({
        "job_id": job_id, "thread_id": "t", "config": { "durability": word(durability) },
        "input": { "messages": [{ "role": "user", "content": "pay" }] },
        "agent_definition": {
            "tool_definitions": [tool("pay", "POST"), tool("set", "PUT")], "edges": [],
            "nodes": [{ "type": "orchestrator", "name": "main", "tools": ["pay", "set"],
                "model": { "provider": "scripted", "model": "test", "script": { "replies": replies } } }]
        }
    })
}

/// A job that gives the thread's last result its answers, each after a look at what happened.
fn answers(stage: &Stage, asked: &Json, job_id: &str, durability: Durability, end: &str) -> Json {
    let mut job = request(job_id, durability, end);
    job["command"] = json!({ "resume": stage.what_happened(asked) });
    job.as_object_mut().expect("a request").remove("input");
    job
}

/// Lets the thread come to its end, answering its questions.
async fn to_the_end(stage: &Stage, durability: Durability, end: &str, what: &str) {
    stage.settle_all().await;
    for question in 0..=MAX_QUESTIONS {
        let Ended { subject, data, .. } = stage.last_result();
        if subject == "agent.status.completed" {
            assert_eq!(data["result"]["output"], "paid twice", "{what}");
            return;
        }
        assert_eq!(subject, "agent.status.interrupted", "{what}: {data}");
        stage.push(&answers(stage, &data, &format!("answer-{question}"), durability, end));
        stage.settle_all().await;
    }
    panic!("{what}: it asks and asks");
}

/// How often each tool's requests took effect, and under how many keys.
fn effects(stage: &Stage, tool: &str) -> (usize, usize) {
    let requests = stage.outside.requests();
    let of_tool: Vec<_> = requests.iter().filter(|request| request.tool == tool).collect();
    let keys: std::collections::HashSet<_> = of_tool.iter().map(|request| &request.key).collect();
    (of_tool.len(), keys.len())
}

fn check(stage: &Stage, what: &str) {
    assert_eq!(effects(stage, "pay"), (2, 2), "{what}: each payment is made once");
    let (times, keys) = effects(stage, "set");
    assert!(keys <= 1 && times <= 2, "{what}: set {times} times under {keys} keys");
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_write_makes_no_irreversible_call_twice() {
    for durability in DURABILITIES {
        let calm = Stage::new();
        calm.push(&request("pays", durability, "ok"));
        to_the_end(&calm, durability, "ok", "calm").await;
        assert_eq!((effects(&calm, "pay"), effects(&calm, "set")), ((2, 2), (1, 1)));
        for (n, point) in deaths(calm.store.writes()) {
            let what = format!("{durability:?}: crash {point:?} write {n}");
            let stage = Stage::new();
            stage.push(&request("pays", durability, "ok"));
            stage.die_at_write(n, point).await;
            to_the_end(&stage, durability, "ok", &what).await;
            check(&stage, &what);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_while_answers_are_taken_makes_no_irreversible_call_twice() {
    for (durability, end) in
        [(Durability::Sync, "lost"), (Durability::Exit, "lost-first"), (Durability::Async, "lost-first")]
    {
        let asked = || async {
            let stage = Stage::new();
            stage.push(&request("pays", durability, end));
            stage.settle_all().await;
            let Ended { subject, data, .. } = stage.last_result();
            assert_eq!(
                (&*subject, data["interrupts"][0]["value"]["tool"].as_str()),
                ("agent.status.interrupted", Some("pay"))
            );
            let job = answers(&stage, &data, "answers", durability, end);
            stage.push(&job);
            stage
        };
        let calm = asked().await;
        let before = calm.store.writes();
        calm.settle_all().await;
        for (n, point) in deaths(calm.store.writes() - before) {
            let what = format!("{durability:?} {end}: crash {point:?} write {n} of the answer");
            let stage = asked().await;
            stage.die_at_write(n, point).await;
            to_the_end(&stage, durability, end, &what).await;
            check(&stage, &what);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_done_call_is_answered_from_the_ledger() {
    // Accept, start, model; then for each call its intent, its answer, and the writes of its task.
    for (write, tool) in [(6, "pay"), (9, "set")] {
        let stage = Stage::new();
        stage.push(&request("pays", Durability::Sync, "ok"));
        stage.die_at_write(write, CrashPoint::Before).await;
        to_the_end(&stage, Durability::Sync, "ok", "replayed").await;
        assert_eq!((effects(&stage, "pay"), effects(&stage, "set")), ((2, 2), (1, 1)));
        let thread = agent_executor::ids::ThreadId::parse("t").expect("valid");
        let events = stage.sink.events(&thread);
        let replayed: Vec<_> = events.iter().filter(|event| event["data"]["replayed"] == true).collect();
        let told = |event: &Json| (event["data"]["tool_name"].clone(), event["data"]["tool_output"].clone());
        assert_eq!(replayed.len(), 1, "{tool}");
        assert_eq!(told(replayed[0]), (json!(tool), json!(format!("{tool} took effect"))));
    }
}

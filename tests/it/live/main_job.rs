//! The main job from outside: a message in, checkpoints, events and one result out.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Context, Result};
use serde_json::{Value as Json, json};

use super::{
    interop,
    world::{WITHIN, World, of_type, orchestrator, request, scripted},
};
use crate::servers;

/// Two specialists that each write a file in several turns, asked for side by side: ten supersteps and more.
pub(super) fn deep_agent(delay_ms: u64) -> Json {
    let call = |id: &str, name: &str, args: Json| json!({ "id": id, "name": name, "args": args });
    let specialist = |name: &str| {
        let path = format!("/{name}.md");
        json!({
            "id": name, "type": "Specialist",
            "config": { "name": name, "description": format!("does {name}"), "system_prompt": "Work.", "tools": [],
                "model": scripted(json!([
                    { "text": format!("{name} writes"), "delay_ms": delay_ms, "tool_calls": [call("w1", "write_file", json!({ "file_path": path, "content": "one\ntwo" }))] },
                    { "text": format!("{name} reads"), "delay_ms": delay_ms, "tool_calls": [call("r1", "read_file", json!({ "file_path": path }))] },
                    { "text": format!("{name} is done"), "delay_ms": delay_ms }
                ])) }
        })
    };
    let task = |id: &str, kind: &str| {
        call(id, "task", json!({ "description": format!("do {kind}"), "subagent_type": kind }))
    };
    json!({
        "nodes": [
            { "id": "main", "type": "Orchestrator", "config": { "name": "main", "system_prompt": "Lead.", "tools": [],
                "model": scripted(json!([
                    { "text": "a plan", "delay_ms": delay_ms, "tool_calls": [call("t0", "write_todos", json!({ "todos": [{ "content": "both", "status": "in_progress" }] }))] },
                    { "text": "two tasks", "delay_ms": delay_ms, "tool_calls": [task("t1", "research"), task("t2", "writing")] },
                    { "text": "a look", "delay_ms": delay_ms, "tool_calls": [call("t3", "ls", json!({ "path": "/" }))] },
                    { "text": "both are done", "delay_ms": delay_ms }
                ])) } },
            specialist("research"),
            specialist("writing")
        ],
        "edges": [
            { "source": "main", "target": "research", "type": "orchestrator" },
            { "source": "main", "target": "writing", "type": "specialists" }
        ]
    })
}

#[tokio::test]
async fn todays_publishers_are_understood_in_every_form() -> Result<()> {
    let world = World::start().await?;
    let executor = world.executor().await?;
    let flat = orchestrator(json!([{ "text": "hello" }]));

    let bare = world.run(&request("bare", &flat, "hi")).await?;
    assert_eq!(bare["data"]["result"], json!({ "output": "hello", "status": "completed" }));
    assert_eq!((&bare["specversion"], &bare["id"]), (&json!("1.0"), &json!("bare:result")));
    assert_eq!(bare["type"], "dev.my-platform.agent.completed");

    let nested = world.run(&request("nested", &deep_agent(0), "hi")).await?;
    assert_eq!(nested["data"]["result"]["output"], "both are done");
    let files: Vec<_> = nested["data"]["result"]["files"].as_object().context("files")?.keys().collect();
    assert_eq!(files, ["/research.md", "/writing.md"]);

    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let structured = json!({ "specversion": "1.0", "id": "e1", "source": "/test", "type": "dev.my-platform.agent.execute",
        "traceparent": traceparent, "data": request("structured", &flat, "hi") });
    let headers = [("Content-Type", "application/cloudevents+json; charset=utf-8")];
    world.publish_raw(&headers, structured.to_string().into_bytes()).await?;
    let structured = world.result_of("structured").await?;
    assert_eq!(structured["data"]["result"]["status"], "completed");
    assert_eq!(structured["traceparent"], traceparent);

    let mut payload = request("binary", &flat, "hi");
    payload["input_payload"] = payload["input"].take();
    payload.as_object_mut().context("an object")?.remove("input");
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-id", "e2"),
        ("ce-source", "/test"),
        ("ce-type", "dev.my-platform.agent.execute"),
    ];
    world.publish_raw(&headers, payload.to_string().into_bytes()).await?;
    assert_eq!(world.result_of("binary").await?["data"]["result"]["output"], "hello");

    for stored in world.stream("AGENT_RESULTS").await? {
        assert_eq!(stored.subject, "agent.status.completed");
        let header = |name: &str| stored.headers.get(name).map(ToString::to_string);
        assert_eq!(header("Nats-Msg-Id").as_deref(), stored.json["id"].as_str());
        assert_eq!(header("Content-Type").as_deref(), Some("application/cloudevents+json"));
    }
    world.all_settled().await?;
    assert!(executor.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn events_arrive_on_the_channel_and_stay_for_late_readers() -> Result<()> {
    let world = World::start().await?;
    let _executor = world.executor().await?;
    let mut listener = world.listen("talk").await?;
    let mut job = request("events", &deep_agent(30), "hi");
    job["thread_id"] = json!("talk");
    world.publish(&job).await?;
    let live = listener.until(|event| event["event_type"] == "end").await?;
    let late = world.events("talk").await?;

    assert_eq!(live.len(), late.len(), "a late reader finds every event");
    for (live, (entry_id, late)) in live.iter().zip(&late) {
        assert_eq!((&live["id"], &json!(entry_id)), (&late["id"], &late["id"]));
        let mut live = live.clone();
        if late["data"].get("cumulative_text").is_none() {
            live["data"].as_object_mut().context("data")?.remove("cumulative_text");
        }
        assert_eq!(&live, late);
    }
    let seqs: Vec<_> = live.iter().filter_map(|event| event["seq"].as_u64()).collect();
    assert_eq!(seqs, (1..=live.len() as u64).collect::<Vec<_>>(), "seq has no holes");
    check_envelope(&live);
    check_order(&live)?;
    check_tokens(&live)?;
    check_states(&live)
}

fn check_envelope(events: &[Json]) {
    for event in events {
        assert_eq!(
            (&event["thread_id"], &event["job_id"], &event["attempt"]),
            (&json!("talk"), &json!("events"), &json!(1))
        );
        assert!(event["ts"].as_str().is_some_and(|ts| ts.len() == 24 && ts.ends_with('Z')), "{event}");
    }
}

fn check_order(events: &[Json]) -> Result<()> {
    let types: Vec<_> = events.iter().map(|event| event["event_type"].as_str().unwrap_or_default()).collect();
    assert_eq!(&types[..2], ["on_attempt_start", "on_state_update"]);
    assert_eq!(types.iter().filter(|kind| **kind == "end").count(), 1);
    assert_eq!(types.last(), Some(&"end"));
    let end = &events.last().context("events")?["data"];
    assert_eq!(
        (&end["status"], &end["final_result"]["output"]),
        (&json!("completed"), &json!("both are done"))
    );
    assert_eq!(events[0]["data"], json!({ "attempt": 1, "resumed_from": null }));

    let starts = of_type(events, "on_tool_start");
    let ends = of_type(events, "on_tool_end");
    assert_eq!((starts.len(), ends.len()), (8, 8));
    let todo = &starts[0]["data"];
    assert_eq!((&todo["tool_name"], &todo["tool_call_id"]), (&json!("write_todos"), &json!("t0")));
    assert_eq!(todo["tool_input"]["todos"][0]["content"], "both");
    for end in &ends {
        assert_eq!(end["data"]["status"], "success", "{end}");
        assert!(end["data"]["duration_ms"].is_u64() && end["data"]["tool_output"].is_string(), "{end}");
    }
    // The two tasks run side by side: both start before either ends.
    let place = |kind: &str, id: &str| {
        let found = events.iter().position(|e| e["event_type"] == kind && e["data"]["tool_call_id"] == id);
        found.with_context(|| format!("{kind} of {id}"))
    };
    assert!(place("on_tool_start", "t2")? < place("on_tool_end", "t1")?);
    assert!(place("on_tool_start", "t1")? < place("on_tool_end", "t2")?);
    Ok(())
}

fn check_tokens(events: &[Json]) -> Result<()> {
    let mut texts: BTreeMap<String, String> = BTreeMap::new();
    for event in of_type(events, "on_llm_stream") {
        let data = &event["data"];
        let text = texts.entry(data["message_id"].as_str().context("message_id")?.to_owned()).or_default();
        assert_eq!(data["offset"].as_u64(), Some(text.chars().count() as u64));
        text.push_str(data["token"].as_str().context("token")?);
        assert_eq!(data["cumulative_text"], json!(text), "the channel carries the text so far");
    }
    let texts: HashSet<_> = texts.into_values().collect();
    for said in ["a plan", "two tasks", "research writes", "writing is done", "both are done"] {
        assert!(texts.contains(said), "{said:?} is not in {texts:?}");
    }
    let inner = of_type(events, "on_llm_stream").into_iter().find(|event| event["node"] == "research");
    let ns = inner.context("a specialist streams")?["ns"].as_str().context("ns")?.to_owned();
    assert!(ns.starts_with("main.tools:"), "{ns}");
    Ok(())
}

fn check_states(events: &[Json]) -> Result<()> {
    let states = of_type(events, "on_state_update");
    // Input, then 4 model calls and 3 rounds of tools.
    assert_eq!(states.len(), 8);
    let first = &states[0]["data"];
    assert_eq!(
        (&first["messages"][0]["type"], &first["messages"][0]["content"]),
        (&json!("human"), &json!("hi"))
    );
    let last = &states.last().context("states")?["data"];
    assert_eq!(last["files"]["/research.md"]["content"], json!(["one", "two"]));
    assert_eq!(last["todos"][0]["status"], "in_progress");
    let types: Vec<_> =
        last["messages"].as_array().context("messages")?.iter().map(|m| m["type"].clone()).collect();
    assert_eq!(types, ["human", "ai", "tool", "ai", "tool", "tool", "ai", "tool", "ai"]);
    assert!(
        states
            .iter()
            .all(|state| state["data"]["checkpoint_id"].is_string() && state["data"]["step"].is_i64())
    );
    Ok(())
}

#[tokio::test]
async fn fifty_jobs_run_at_once_and_a_slow_one_delays_no_other() -> Result<()> {
    let world = World::start().await?;
    let executor = world.executor().await?;
    let slow = orchestrator(json!([{ "text": "slow", "delay_ms": 8000 }]));
    world.publish(&request("slow", &slow, "hi")).await?;
    // All 50 must be in flight at the same time to get past the barrier of their common delay in time.
    let quick = orchestrator(json!([{ "text": "quick", "delay_ms": 500 }]));
    for n in 0..50 {
        world.publish(&request(&format!("quick-{n}"), &quick, "hi")).await?;
    }
    world.result_of("slow").await?;
    let order: Vec<_> = world
        .stream("AGENT_RESULTS")
        .await?
        .into_iter()
        .map(|stored| stored.json["subject"].clone())
        .collect();
    assert_eq!(order.len(), 51);
    assert_eq!(order.last(), Some(&json!("slow")), "the slow job ends last");

    assert!(executor.terminate().await?.success(), "SIGTERM ends with exit code 0");
    assert_eq!(world.unsettled().await?, (0, 0), "nothing is left unsettled");
    Ok(())
}

#[tokio::test]
async fn the_same_job_published_three_times_runs_once() -> Result<()> {
    let world = World::start().await?;
    let _executor = world.executor().await?;
    let job = request("once", &orchestrator(json!([{ "text": "once", "delay_ms": 200 }])), "hi");
    for _ in 0..3 {
        world.publish(&job).await?;
    }
    world.result_of("once").await?;
    world.all_settled().await?;
    world.publish(&job).await?;
    world.all_settled().await?;
    let ids: HashSet<_> =
        world.results_of("once").await?.into_iter().map(|result| result.json["id"].to_string()).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(of_type(&world.events_to_the_end("once").await?, "on_attempt_start").len(), 1);
    assert_eq!(world.sql("select attempt from executor_job").await?.trim(), "1");
    Ok(())
}

#[tokio::test]
async fn jobs_of_one_thread_run_one_after_the_other_in_stream_order() -> Result<()> {
    let world = World::start().await?;
    let _executor = world.executor().await?;
    let definition = orchestrator(json!([
        { "text": "first answer", "delay_ms": 300 }, { "text": "second answer" }, { "text": "third answer" }
    ]));
    for n in 1..=3 {
        let mut job = request(&format!("turn-{n}"), &definition, &format!("question {n}"));
        job["thread_id"] = json!("conversation");
        world.publish(&job).await?;
    }
    world.result_of("turn-3").await?;
    let order: Vec<_> = world
        .stream("AGENT_RESULTS")
        .await?
        .into_iter()
        .map(|stored| stored.json["subject"].clone())
        .collect();
    assert_eq!(order, ["turn-1", "turn-2", "turn-3"]);
    let events = world.events_to_the_end("conversation").await?;
    let last = of_type(&events, "on_state_update").pop().context("a state")?["data"]["messages"].clone();
    let said: Vec<_> = last.as_array().context("messages")?.iter().map(|m| m["content"].clone()).collect();
    assert_eq!(
        said,
        ["question 1", "first answer", "question 2", "second answer", "question 3", "third answer"]
    );
    world.all_settled().await
}

#[tokio::test]
async fn jobs_published_in_one_burst_keep_their_order_on_every_thread() -> Result<()> {
    const THREADS: usize = 20;
    const TURNS: usize = 4;
    let world = World::start().await?;
    let _executor = world.executor().await?;
    let replies: Vec<_> = (0..TURNS).map(|n| json!({ "text": format!("answer {n}") })).collect();
    let definition = orchestrator(json!(replies));
    for turn in 0..TURNS {
        for thread in 0..THREADS {
            let mut job = request(&format!("{thread}-{turn}"), &definition, &format!("question {turn}"));
            job["thread_id"] = json!(format!("burst-{thread}"));
            world.publish(&job).await?;
        }
    }
    let expected: Vec<_> =
        (0..TURNS).flat_map(|n| [format!("question {n}"), format!("answer {n}")]).collect();
    for thread in 0..THREADS {
        for turn in 0..TURNS {
            world.result_of(&format!("{thread}-{turn}")).await?;
        }
        let events = world.events_to_the_end(&format!("burst-{thread}")).await?;
        let states = of_type(&events, "on_state_update");
        let messages = &states.last().context("a state")?["data"]["messages"];
        let said: Vec<_> =
            messages.as_array().context("messages")?.iter().map(|m| m["content"].clone()).collect();
        assert_eq!(said, expected, "thread {thread}");
    }
    world.all_settled().await
}

#[tokio::test]
async fn a_killed_executor_is_continued_by_another_from_where_it_was() -> Result<()> {
    let world = World::start().await?;
    let first = world.executor().await?;
    let mut listener = world.listen("killed").await?;
    world.publish(&request("killed", &deep_agent(250), "hi")).await?;
    // Both specialists have made their first model call and their file; their second call is on its way.
    let mut written = 0;
    while written < 2 {
        listener
            .until(|event| event["event_type"] == "on_tool_end" && event["data"]["tool_name"] == "write_file")
            .await?;
        written += 1;
    }
    let stored = || async {
        let count = world
            .sql("select count(*) from checkpoint_writes where channel = 'files' and task_path like '~__pregel_push%'")
            .await;
        count.is_ok_and(|count| count.trim() == "2")
    };
    servers::until("both files are in checkpoint writes", WITHIN, stored).await?;
    first.kill()?;

    let second = world.executor().await?;
    let result = world.result_of("killed").await?;
    assert_eq!(result["data"]["result"]["output"], "both are done");
    assert_eq!(result["data"]["attempts"], 2);
    world.all_settled().await?;
    assert_eq!(world.results_of("killed").await?.len(), 1);

    let events = world.events_to_the_end("killed").await?;
    let starts = of_type(&events, "on_attempt_start");
    assert_eq!(starts.len(), 2);
    let resumed_from = &starts[1]["data"]["resumed_from"];
    assert!(resumed_from.is_string(), "{}", starts[1]);
    assert!(starts[0]["data"].get("supersedes").is_none(), "there was nothing before the first");
    let (epoch, _) = parse_id(&starts[1]["id"])?;
    let superseded = json!({ "epochs_below": epoch, "after": resumed_from });
    assert_eq!(starts[1]["data"]["supersedes"], superseded);
    let told = of_type(&events, "on_state_update");
    assert!(
        told.iter().any(|event| event["data"]["checkpoint_id"] == *resumed_from && event["attempt"] == 1)
    );
    let again: Vec<_> = events.iter().filter(|event| event["attempt"] == 2).cloned().collect();
    let said: String =
        of_type(&again, "on_llm_stream").iter().filter_map(|event| event["data"]["token"].as_str()).collect();
    for finished in ["a plan", "two tasks", "research writes", "writing writes"] {
        assert!(!said.contains(finished), "{finished:?} was said again: {said}");
    }
    for rest in ["research is done", "writing is done", "both are done"] {
        assert!(said.contains(rest), "{rest:?} is missing: {said}");
    }
    let ids: Vec<(u64, u64)> = events.iter().map(|event| parse_id(&event["id"])).collect::<Result<_>>()?;
    assert!(ids.is_sorted_by(|a, b| a < b), "ids only grow: {ids:?}");
    assert_linear(&world).await?;
    let thread = interop::read_thread(&world.database_url, "killed").await?;
    assert!(thread["graphs"].as_object().context("graphs")?.len() == 3, "the root and two specialists");
    assert!(second.terminate().await?.success());
    Ok(())
}

fn parse_id(id: &Json) -> Result<(u64, u64)> {
    let (epoch, seq) = id.as_str().and_then(|id| id.split_once('-')).context("an entry id")?;
    Ok((epoch.parse()?, seq.parse()?))
}

/// Every checkpoint of every graph has the one before it as its parent.
async fn assert_linear(world: &World) -> Result<()> {
    let broken = "select count(*) from (select parent_checkpoint_id p, lag(checkpoint_id) over \
        (partition by thread_id, checkpoint_ns order by checkpoint_id) b from checkpoints) x where p is distinct from b";
    assert_eq!(world.sql(broken).await?.trim(), "0");
    Ok(())
}

#[tokio::test]
async fn python_reads_the_threads_we_write() -> Result<()> {
    let world = World::start().await?;
    let _executor = world.executor().await?;
    let mut job = request("python", &deep_agent(0), "hi");
    job["config"] = json!({ "metadata": { "tenant": "blue" } });
    world.run(&job).await?;
    let thread = interop::read_thread(&world.database_url, "python").await?;
    assert_eq!(thread["encoded_otherwise"], json!([]), "Python would have written the same bytes");
    let history = thread["graphs"][""].as_array().context("the root graph")?;
    let steps: Vec<_> = history.iter().filter_map(|checkpoint| checkpoint["step"].as_i64()).collect();
    assert_eq!(steps, (-1..=7).collect::<Vec<_>>());
    let last = history.last().context("checkpoints")?["messages"].as_array().context("messages")?.clone();
    let classes: Vec<_> = last.iter().map(|message| message["class"].as_str().unwrap_or_default()).collect();
    let expected = [
        "HumanMessage",
        "AIMessage",
        "ToolMessage",
        "AIMessage",
        "ToolMessage",
        "ToolMessage",
        "AIMessage",
        "ToolMessage",
        "AIMessage",
    ];
    assert_eq!(classes, expected);
    assert_eq!(last[1]["tool_calls"][0]["name"], "write_todos");
    assert_eq!(last[3]["tool_calls"].as_array().map(Vec::len), Some(2));
    assert_eq!(last[2]["tool_call_id"], "t0");
    assert_eq!(world.sql("select distinct metadata->>'tenant' from checkpoints").await?.trim(), "blue");
    assert_linear(&world).await
}

//! Whole graphs as folders: a definition with scripted models and jobs in, a transcript of events, checkpoints and
//! results out. `UPDATE_EXPECT=1` rewrites the transcripts; adding a test is adding a folder.

use std::{collections::HashMap, fmt::Write};

use agent_executor::{
    ids::{Namespace, ThreadId},
    store::{Checkpoints, Saved, StoredResult},
};
use expect_test::expect_file;
use serde_json::Value as Json;

use crate::stage::{Case, Stage, cases, without_ids};

/// More checkpoints than any case makes.
const ALL: u32 = 1_000;

#[tokio::test(start_paused = true)]
async fn every_case_plays_as_written() {
    for case in cases() {
        let stage = Stage::new();
        case.publish(&stage);
        stage.settle_all().await;
        let transcript = transcript(&case, &stage).await;
        expect_file![case.folder.join("transcript.txt")].assert_eq(&transcript);
    }
}

async fn transcript(case: &Case, stage: &Stage) -> String {
    let mut text = String::new();
    for thread in case.threads() {
        let _ = writeln!(text, "# thread {thread}\n## events");
        for line in events(&stage.sink.events(&thread)) {
            let _ = writeln!(text, "{line}");
        }
        let mut graphs = Vec::new();
        for ns in stage.store.namespaces(&thread) {
            let title = if ns.is_root() { "root".into() } else { short(ns.as_str()) };
            graphs.push((
                !ns.is_root(),
                format!("## checkpoints of {title}\n{}", checkpoints(stage, &thread, &ns).await),
            ));
        }
        // Task ids differ from run to run, and with them the order of namespaces.
        graphs.sort();
        text.extend(graphs.into_iter().map(|(_, graph)| graph));
    }
    let _ = writeln!(text, "# results");
    // Jobs of different threads end in any order.
    let mut results: Vec<_> = stage.queue.results().iter().map(line).collect();
    results.sort();
    text.extend(results);
    masked(&text)
}

/// Without ids that follow from the time: of messages, of tasks and of what is called after them.
fn masked(text: &str) -> String {
    let is_id = |candidate: &str| {
        let dashes = candidate.match_indices('-').map(|(at, _)| at).collect::<Vec<_>>();
        let hex = candidate.bytes().filter(u8::is_ascii_hexdigit).count();
        hex == 32 && (candidate.len() == 32 || dashes == [8, 13, 18, 23])
    };
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        // With dashes, or without.
        let id = [36, 32].into_iter().find(|length| rest.get(..*length).is_some_and(is_id));
        masked.push_str(if id.is_some() { "…" } else { &rest[..first.len_utf8()] });
        rest = &rest[id.unwrap_or(first.len_utf8())..];
    }
    masked
}

fn line(result: &StoredResult) -> String {
    let event: Json = serde_json::from_slice(&result.event).expect("results are JSON");
    let mut data = event["data"].clone();
    for volatile in ["last_event_id", "duration_ms", "checkpoint_id"] {
        data.as_object_mut().expect("data is an object").remove(volatile);
    }
    without_ids(&mut data["interrupts"]);
    if data["interrupts"].is_null() {
        data.as_object_mut().expect("data is an object").remove("interrupts");
    }
    if let Some(files) = data.pointer_mut("/result/files") {
        *files = files_of(files);
    }
    format!("{} {data}\n", result.subject)
}

/// One line per event; the pieces of a message are joined, since their number depends on the machine's pace.
fn events(events: &[Json]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut texts: HashMap<String, usize> = HashMap::new();
    for event in events {
        let (kind, node, data) =
            (event["event_type"].as_str().unwrap_or("?"), text(&event["node"]), &event["data"]);
        let place = if text(&event["ns"]).is_empty() {
            node
        } else {
            format!("{}/{node}", short(&text(&event["ns"])))
        };
        let line = match kind {
            "on_llm_stream" => {
                let id = text(&data["message_id"]);
                if let Some(line) = texts.get(&id) {
                    lines[*line].push_str(&text(&data["token"]));
                    continue;
                }
                texts.insert(id, lines.len());
                format!("{kind} {place}: {}", text(&data["token"]))
            }
            "on_llm_retry" => {
                format!("{kind} {place}: attempt {} after {}", data["attempt"], text(&data["reason"]))
            }
            // What is free is not worth a line in every transcript.
            "on_llm_end" if data["cost_usd"] == 0.0 && data["cached"] == false => continue,
            "on_llm_end" => {
                let model = format!("{}:{}", text(&data["provider"]), text(&data["model"]));
                let (read, written) = (&data["usage"]["input_tokens"], &data["usage"]["output_tokens"]);
                let (cost, cached) = (&data["cost_usd"], &data["cached"]);
                format!("{kind} {place}: {model} {read} + {written} tokens, {cost} dollars, cached: {cached}")
            }
            "on_tool_start" => format!(
                "{kind} {place}: {} {} {}",
                text(&data["tool_call_id"]),
                text(&data["tool_name"]),
                data["tool_input"]
            ),
            "on_tool_end" => format!(
                "{kind} {place}: {} {} {}",
                text(&data["tool_call_id"]),
                text(&data["status"]),
                data["tool_output"]
            ),
            "on_interrupt" => {
                let mut interrupts = data["interrupts"].clone();
                without_ids(&mut interrupts);
                format!("{kind}: {interrupts}")
            }
            "on_state_update" => format!("{kind} step {}: {}", data["step"], state(data)),
            "on_attempt_start" => {
                format!("{kind} {} resumed: {}", data["attempt"], data["resumed_from"].is_string())
            }
            "on_custom" => {
                let mut data = data.clone();
                // Ids of messages differ from run to run.
                if let Some(superseded) = data["superseded"].as_array().map(Vec::len) {
                    data["superseded"] = superseded.into();
                }
                format!("{kind} {place}: {data}")
            }
            "end" => format!("{kind} {} {}", text(&data["status"]), data["final_result"]["output"]),
            _ => format!("{kind} {place}: {data}"),
        };
        lines.push(line);
    }
    lines
}

fn text(json: &Json) -> String {
    json.as_str().unwrap_or_default().to_owned()
}

/// `node:task-id|node:task-id` without the ids.
fn short(ns: &str) -> String {
    ns.split('|').map(|part| part.split(':').next().unwrap_or_default()).collect::<Vec<_>>().join("|")
}

fn state(data: &Json) -> String {
    let channels = data
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, _)| !matches!(name.as_str(), "step" | "checkpoint_id"));
    channels.map(|(name, value)| channel(name, value)).collect::<Vec<_>>().join(" ")
}

fn channel(name: &str, value: &Json) -> String {
    match name {
        "messages" => {
            let messages = value.as_array().into_iter().flatten();
            let said =
                messages.map(|m| format!("{}: {}", text(&m["type"]), text(&m["content"]).replace('\n', "⏎")));
            format!("messages[{}]", said.collect::<Vec<_>>().join(" | "))
        }
        "files" => format!("files{}", files_of(value)),
        _ => format!("{name}={value}"),
    }
}

/// Files without their times.
fn files_of(files: &Json) -> Json {
    let files = files.as_object().into_iter().flatten();
    Json::Object(files.map(|(path, file)| (path.clone(), file["content"].clone())).collect())
}

async fn checkpoints(stage: &Stage, thread: &ThreadId, ns: &Namespace) -> String {
    let mut text = String::new();
    let mut history = stage.store.history(thread, ns, ALL).await.expect("the twin answers");
    history.reverse();
    let mut parent = None;
    for Saved { checkpoint, metadata, parent: stored_parent, .. } in history {
        let follows = if stored_parent == parent { "" } else { " (fork)" };
        let _ = write!(text, "{} {}{follows}:", metadata.step, metadata.source.as_str());
        for (name, value) in &checkpoint.values {
            let _ = match &**name {
                "messages" => write!(text, " messages[{}]", value.messages().count()),
                "__start__" | "files" => write!(text, " {name}"),
                _ => write!(text, " {name}={}", serde_json::to_string(value).expect("values are JSON")),
            };
        }
        let updated = checkpoint.updated.unwrap_or_default();
        let _ = writeln!(text, " updated[{}]", updated.join(" "));
        parent = Some(checkpoint.id);
    }
    text
}

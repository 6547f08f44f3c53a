//! Answers recorded from real and mock servers, served again and read.

use expect_test::expect_file;
use serde_json::Value as Json;

use super::{call, request};
use crate::model::tests::{
    recordings::{
        EVENTS, JSON, Recording, captures, check_readings, files, from_lines, name, recorded, transcripts,
        whole_answers,
    },
    server::Server,
};

fn recordings() -> Vec<Recording> {
    let mut all = Vec::new();
    for folder in ["recorded/anthropic-messages", "recorded/anthropic-sdk-fixtures"] {
        all.extend(files(folder, ".sse").iter().map(|path| recorded(path, 200, EVENTS)));
    }
    all.extend(whole_answers("recorded/anthropic-messages"));
    let vercel = files("recorded/vercel-ai-fixtures", ".chunks.txt").into_iter().filter(|path| {
        let name = name(path);
        name.contains("/anthropic") || name.contains("message-start")
    });
    all.extend(vercel.map(|path| from_lines(&path)));
    let refusal = transcripts().join("recorded/vercel-ai-fixtures/anthropic-refusal.json");
    all.push(recorded(&refusal, 200, JSON));
    let midstream =
        files("errors", ".sse").into_iter().filter(|path| name(path).contains("/anthropic-midstream"));
    all.extend(midstream.map(|path| recorded(&path, 200, EVENTS)));
    all.extend(captures("/anthropic_"));
    all
}

#[tokio::test]
async fn recorded_answers_are_read_whatever_the_chunks() {
    let expected = expect_file!["../../../../tests/fixtures/model/anthropic-replies.txt"];
    check_readings(&recordings(), expected, async |server| call(server, request()).await).await;
}

/// The texts, the thoughts and the arguments of our tools in a recorded stream, read the plain way.
fn read_plainly(body: &[u8]) -> (String, String, Vec<String>) {
    let (mut text, mut thoughts, mut arguments) =
        (String::new(), String::new(), Vec::<(Json, String)>::new());
    let body = String::from_utf8(body.to_vec()).expect("UTF-8");
    for data in body.lines().filter_map(|line| line.strip_prefix("data: ")) {
        let event: Json = serde_json::from_str(data.trim()).expect("JSON");
        if event["content_block"]["type"] == "tool_use" {
            arguments.push((event["index"].clone(), String::new()));
        }
        let delta = &event["delta"];
        text.push_str(delta["text"].as_str().unwrap_or_default());
        thoughts.push_str(delta["thinking"].as_str().unwrap_or_default());
        if let Some((_, call)) = arguments.iter_mut().find(|(index, _)| *index == event["index"]) {
            call.push_str(delta["partial_json"].as_str().unwrap_or_default());
        }
    }
    (text, thoughts, arguments.into_iter().map(|(_, text)| text).collect())
}

#[tokio::test]
async fn nothing_of_a_recorded_stream_is_lost() {
    let recordings: Vec<_> =
        files("recorded/anthropic-messages", ".sse").iter().map(|path| recorded(path, 200, EVENTS)).collect();
    assert!(recordings.len() > 20, "only {} streams", recordings.len());
    let server = Server::start(recordings.iter().map(|recording| recording.steps(1000)).collect());
    for recording in &recordings {
        let name = &recording.name;
        let reply = call(&server, request()).await.1.unwrap_or_else(|error| panic!("{name}: {error}"));
        let (text, thoughts, arguments) = read_plainly(&recording.body);
        assert_eq!(reply.text, text, "{name}");
        assert_eq!(reply.invalid_tool_calls, [], "{name}");
        let thought =
            |block: &crate::value::Value| Some(block.as_map()?.get("thinking")?.as_str()?.to_owned());
        assert_eq!(reply.blocks.iter().filter_map(thought).collect::<String>(), thoughts, "{name}");
        let args = |call: &crate::value::ToolCall| serde_json::to_value(&call.args).expect("JSON");
        let expected: Vec<Json> = arguments
            .iter()
            .map(|text| serde_json::from_str(if text.is_empty() { "{}" } else { text }).expect("JSON"))
            .collect();
        assert_eq!(reply.tool_calls.iter().map(args).collect::<Vec<_>>(), expected, "{name}");
    }
}

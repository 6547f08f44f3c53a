//! Answers recorded from real and mock servers, served again and read.

use expect_test::expect_file;
use serde_json::Value as Json;

use super::{ask, ask_in_pieces};
use crate::model::tests::{
    recordings::{
        EVENTS, Recording, captures, check_readings, files, from_lines, name, recorded, transcripts,
        whole_answers,
    },
    server::Server,
};

fn recordings() -> Vec<Recording> {
    let mut all = Vec::new();
    for folder in ["recorded/openai-chat-completions", "recorded/openai-sdk-fixtures"] {
        all.extend(files(folder, ".sse").iter().map(|path| recorded(path, 200, EVENTS)));
    }
    all.extend(whole_answers("recorded/openai-chat-completions"));
    for file in ["azure-model-router.1", "openai-text", "xai-text", "xai-tool-call"] {
        let path = format!("recorded/vercel-ai-fixtures/{file}.chunks.txt");
        all.push(from_lines(&transcripts().join(path)));
    }
    let midstream =
        files("errors", ".sse").into_iter().filter(|path| name(path).contains("/openai-midstream"));
    all.extend(midstream.map(|path| recorded(&path, 200, EVENTS)));
    all.extend(captures("/openai_chat_"));
    all
}

#[tokio::test]
async fn recorded_answers_are_read_whatever_the_chunks() {
    let expected = expect_file!["../../../../tests/fixtures/model/openai-replies.txt"];
    check_readings(&recordings(), expected, ask_in_pieces).await;
}

/// The text and the arguments in a recorded stream, read the plain way.
fn read_plainly(body: &[u8]) -> (String, Vec<String>) {
    let (mut text, mut arguments) = (String::new(), Vec::<String>::new());
    let body = String::from_utf8(body.to_vec()).expect("UTF-8");
    let data = body.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    for data in data {
        let chunk: Json = serde_json::from_str(data).expect("JSON");
        let choices = chunk["choices"].as_array().into_iter().flatten();
        for choice in choices.filter(|choice| choice["index"] == 0) {
            text.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
            for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
                let at = call["index"].as_u64().expect("an index") as usize;
                arguments.resize(arguments.len().max(at + 1), String::new());
                arguments[at].push_str(call["function"]["arguments"].as_str().unwrap_or_default());
            }
        }
    }
    (text, arguments)
}

#[tokio::test]
async fn nothing_of_a_recorded_stream_is_lost() {
    let recordings: Vec<_> =
        recordings().into_iter().filter(|it| it.headers[..] == [EVENTS] && it.status == 200).collect();
    let recordings: Vec<_> = recordings.into_iter().filter(|it| !it.name.starts_with("errors/")).collect();
    assert!(recordings.len() > 40, "only {} streams", recordings.len());
    let server = Server::start(recordings.iter().map(|recording| recording.steps(1000)).collect());
    for recording in &recordings {
        let reply = ask(&server).await.unwrap_or_else(|error| panic!("{}: {error}", recording.name));
        let (text, arguments) = read_plainly(&recording.body);
        assert_eq!(reply.text, text, "{}", recording.name);
        assert_eq!(reply.invalid_tool_calls, [], "{}", recording.name);
        let args = |call: &crate::value::ToolCall| serde_json::to_value(&call.args).expect("JSON");
        let expected: Vec<Json> =
            arguments.iter().map(|text| serde_json::from_str(text).expect("JSON")).collect();
        assert_eq!(reply.tool_calls.iter().map(args).collect::<Vec<_>>(), expected, "{}", recording.name);
    }
}

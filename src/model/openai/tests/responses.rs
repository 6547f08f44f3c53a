//! Responses: what is sent, and recorded answers served again and read.

use std::{collections::BTreeSet, sync::Arc};

use expect_test::expect_file;
use serde_json::{Value as Json, json};

use super::{super::responses::body, call, config, request, settings};
use crate::{
    graph::ModelApi,
    model::{
        Error, Quirk, Reply, Request, ToolSpec,
        tests::{
            recordings::{
                EVENTS, Recording, captures, check_readings, files, from_lines, name, recorded, transcripts,
                whole_answers,
            },
            server::{Server, answer},
        },
    },
    value::{Content, InvalidToolCall, Map, Message, Role, ToolCall, ToolStatus, Value},
};

fn asked() -> Request {
    let mut settings = settings();
    settings.api = Some(ModelApi::Responses);
    request(settings)
}

async fn ask(server: &Server) -> (Vec<String>, Result<Reply, Error>) {
    call(config(&server.url), asked()).await
}

fn recordings() -> Vec<Recording> {
    let streams = files("recorded/openai-responses", ".sse");
    let mut all: Vec<_> = streams.iter().map(|path| recorded(path, 200, EVENTS)).collect();
    all.extend(whole_answers("recorded/openai-responses"));
    let vercel = files("recorded/vercel-ai-fixtures", ".chunks.txt");
    all.extend(vercel.iter().filter(|path| name(path).contains("/responses")).map(|path| from_lines(path)));
    let error = transcripts().join("errors/openai-responses-error-event.sse");
    all.push(recorded(&error, 200, EVENTS));
    all.extend(captures("/openai_responses_"));
    all
}

#[tokio::test]
async fn recorded_answers_are_read_whatever_the_chunks() {
    let expected = expect_file!["../../../../tests/fixtures/model/responses-replies.txt"];
    check_readings(&recordings(), expected, ask).await;
}

/// The text and the calls that the end of a recorded stream lists.
fn read_plainly(body: &[u8]) -> (String, Vec<(String, Json)>) {
    let (mut text, mut calls) = (String::new(), Vec::new());
    let body = String::from_utf8(body.to_vec()).expect("UTF-8");
    let data = body.lines().filter_map(|line| line.strip_prefix("data: "));
    let events: Vec<Json> = data.map(|data| serde_json::from_str(data).expect("JSON")).collect();
    let end = events.iter().find(|event| event["type"] == "response.completed").expect("an end");
    for item in end["response"]["output"].as_array().expect("a list") {
        if item["type"] == "function_call" {
            let args = item["arguments"].as_str().expect("a text");
            let id = item["call_id"].as_str().expect("a text").to_owned();
            calls.push((id, serde_json::from_str(args).expect("JSON")));
        }
        let parts = item["content"].as_array().into_iter().flatten();
        parts.for_each(|part| text.push_str(part["text"].as_str().unwrap_or_default()));
    }
    (text, calls)
}

#[tokio::test]
async fn nothing_of_a_recorded_stream_is_lost() {
    let streams = files("recorded/openai-responses", ".sse");
    let recordings: Vec<_> = streams.iter().map(|path| recorded(path, 200, EVENTS)).collect();
    assert!(recordings.len() > 15, "only {} streams", recordings.len());
    let server = Server::start(recordings.iter().map(|recording| recording.steps(1000)).collect());
    for recording in &recordings {
        let name = &recording.name;
        let reply = ask(&server).await.1.unwrap_or_else(|error| panic!("{name}: {error}"));
        let (text, calls) = read_plainly(&recording.body);
        assert_eq!(reply.text, text, "{name}");
        let args = |call: &ToolCall| serde_json::to_value(&call.args).expect("JSON");
        let made: Vec<_> = reply.tool_calls.iter().map(|call| (call.id.to_string(), args(call))).collect();
        assert_eq!(made, calls, "{name}");
    }
}

#[tokio::test]
async fn calls_that_the_limit_of_tokens_cuts_are_not_made() {
    let events = [
        json!({"type": "response.output_item.added", "output_index": 0,
            "item": {"type": "function_call", "call_id": "c", "name": "f", "arguments": ""}}),
        json!({"type": "response.function_call_arguments.delta", "output_index": 0, "delta": "{}"}),
        json!({"type": "response.incomplete", "response": {"status": "incomplete", "output": [],
            "incomplete_details": {"reason": "max_output_tokens"}}}),
    ];
    let text: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    let server = Server::start(vec![answer(200, &[EVENTS], text.as_bytes(), 11)]);
    let reply = ask(&server).await.1.expect("an answer");
    assert_eq!(reply.finish_reason.as_deref(), Some("max_output_tokens"));
    assert_eq!((reply.tool_calls.len(), reply.invalid_tool_calls.len()), (0, 1));
    assert!(server.request().0.starts_with("post /v1/responses http/1.1\r\n"));
}

#[test]
fn the_whole_conversation_is_sent() {
    let args = Map::from_iter([("q".into(), "x".into())]);
    let call = ToolCall { id: "c1".into(), name: "search".into(), args };
    let invalid = InvalidToolCall { id: "c2".into(), name: "f".into(), args: "{".into(), error: "e".into() };
    let role = Role::Ai { tool_calls: vec![call], invalid_tool_calls: vec![invalid], usage: None };
    let tool = Role::Tool { tool_call_id: "c1".into(), status: ToolStatus::Success, artifact: Value::Null };
    let image = Value::from(json!([{"type": "text", "text": "see"},
        {"type": "image_url", "image_url": {"url": "u"}}]));
    let content = Content::from_value(&image).expect("content");
    let closed = json!({"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"],
        "additionalProperties": false});
    let mut settings = settings();
    (settings.max_tokens, settings.temperature) = (Some(7), Some(0.5));
    let request = Request {
        system_prompt: Some("You are.".into()),
        messages: [
            Message { content, ..Message::new("h", Role::Human, "") },
            Message::new("a", role, "I look."),
            Message::new("t", tool, "42"),
        ]
        .into_iter()
        .map(Arc::new)
        .collect(),
        tools: vec![ToolSpec {
            name: "search".into(),
            description: "d".into(),
            parameters: closed.clone().into(),
        }],
        output_schema: Some(closed.clone().into()),
        ..request(settings)
    };
    let body = body(&request, &[Quirk::StrictTools].into()).expect("valid");
    assert_eq!(
        serde_json::from_slice::<Json>(&body).expect("JSON"),
        json!({
            "model": "m", "stream": true, "store": false, "instructions": "You are.", "temperature": 0.5,
            "max_output_tokens": 7,
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "see"},
                    {"type": "input_image", "image_url": "u"}]},
                {"role": "assistant", "content": "I look."},
                {"type": "function_call", "call_id": "c1", "name": "search", "arguments": "{\"q\":\"x\"}"},
                {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{"},
                {"type": "function_call_output", "call_id": "c1", "output": "42"}
            ],
            "tools": [{"type": "function", "name": "search", "description": "d", "parameters": closed,
                "strict": true}],
            "text": {"format": {"type": "json_schema", "name": "answer", "schema": closed, "strict": true}}
        })
    );
}

#[test]
fn what_responses_does_not_have_is_refused() {
    let mut settings = settings();
    settings.stop = Some(vec!["END".into()]);
    let error = body(&request(settings), &BTreeSet::new()).expect_err("refused");
    assert_eq!(error.code(), "MODEL_SETTINGS");
}

//! What is sent.

use std::sync::Arc;

use expect_test::{Expect, expect};
use serde_json::{Value as Json, json};

use super::{super::request::body, request};
use crate::{
    graph::ModelSettings,
    model::{Request, ToolSpec},
    value::{Content, InvalidToolCall, Map, Message, Role, ToolCall, ToolStatus, Value},
};

fn sent(request: &Request) -> Json {
    serde_json::from_slice(&body(request).expect("valid")).expect("JSON")
}

/// The messages as sent, one on a line.
fn check(messages: Vec<Message>, expected: Expect) {
    let request = Request { messages: messages.into_iter().map(Arc::new).collect(), ..request() };
    let sent = sent(&request);
    let lines: Vec<_> = sent["messages"].as_array().expect("a list").iter().map(Json::to_string).collect();
    expected.assert_eq(&lines.join("\n"));
}

fn ai(content: Json, tool_calls: Vec<ToolCall>, invalid_tool_calls: Vec<InvalidToolCall>) -> Message {
    let content = Content::from_value(&Value::from(content)).expect("content");
    Message { content, ..Message::new("a", Role::Ai { tool_calls, invalid_tool_calls, usage: None }, "") }
}

fn human(text: &str) -> Message {
    Message::new("h", Role::Human, text)
}

fn result(id: &str, text: &str, status: ToolStatus) -> Message {
    Message::new("t", Role::Tool { tool_call_id: id.into(), status, artifact: Value::Null }, text)
}

fn weather(id: &str, city: &str) -> ToolCall {
    let args = Map::from_iter([("city".into(), city.into())]);
    ToolCall { id: id.into(), name: "weather".into(), args }
}

#[test]
fn results_are_the_users_and_stand_first() {
    let invalid = InvalidToolCall { id: "c.2".into(), name: "f".into(), args: "{".into(), error: "e".into() };
    check(
        vec![
            human("hi"),
            ai(json!("I look."), vec![weather("c1", "Paris")], vec![invalid]),
            human("hurry"),
            result("c1", "18", ToolStatus::Success),
            result("c.2", "wrong arguments", ToolStatus::Error),
            ai(json!("18 degrees"), vec![], vec![]),
            human("thanks"),
        ],
        expect![[r#"
            {"role":"user","content":[{"type":"text","text":"hi"}]}
            {"role":"assistant","content":[{"type":"text","text":"I look."},{"type":"tool_use","id":"c1","name":"weather","input":{"city":"Paris"}},{"type":"tool_use","id":"c_2","name":"f","input":{"invalid_json":"{"}}]}
            {"role":"user","content":[{"type":"tool_result","tool_use_id":"c1","content":[{"type":"text","text":"18"}],"is_error":false},{"type":"tool_result","tool_use_id":"c_2","content":[{"type":"text","text":"wrong arguments"}],"is_error":true},{"type":"text","text":"hurry"}]}
            {"role":"assistant","content":[{"type":"text","text":"18 degrees"}]}
            {"role":"user","content":[{"type":"text","text":"thanks"}]}"#]],
    );
}

#[test]
fn the_user_begins_and_ends() {
    check(
        vec![ai(json!("Welcome."), vec![], vec![]), human(""), ai(json!("More."), vec![], vec![])],
        expect![[r#"
            {"role":"user","content":[{"type":"text","text":"(no message)"}]}
            {"role":"assistant","content":[{"type":"text","text":"Welcome."},{"type":"text","text":"More."}]}
            {"role":"user","content":[{"type":"text","text":"Go on."}]}"#]],
    );
    check(vec![], expect![[r#"{"role":"user","content":[{"type":"text","text":"(no message)"}]}"#]]);
}

#[test]
fn thoughts_go_back_as_they_came_and_calls_as_a_person_left_them() {
    let blocks = json!([
        {"type": "thinking", "thinking": "hm", "signature": "s", "index": 0},
        {"type": "thinking", "thinking": "unsigned"},
        {"type": "redacted_thinking", "data": "xyz"},
        {"type": "text", "text": ""},
        {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "London"}, "partial_json": "{}"},
        {"type": "tool_use", "id": "rejected", "name": "weather", "input": {}},
        {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "x"}},
        {"type": "text", "text": "said", "citations": [{"type": "char_location"}]},
        {"type": "reasoning", "id": "rs_1"}
    ]);
    check(
        vec![
            human("hi"),
            ai(blocks, vec![weather("c1", "Paris")], vec![]),
            result("c1", "", ToolStatus::Success),
        ],
        expect![[r#"
            {"role":"user","content":[{"type":"text","text":"hi"}]}
            {"role":"assistant","content":[{"type":"thinking","thinking":"hm","signature":"s"},{"type":"redacted_thinking","data":"xyz"},{"type":"tool_use","id":"c1","name":"weather","input":{"city":"Paris"}},{"type":"server_tool_use","id":"s1","name":"web_search","input":{"query":"x"}},{"type":"text","text":"said","citations":[{"type":"char_location"}]}]}
            {"role":"user","content":[{"type":"tool_result","tool_use_id":"c1","content":[],"is_error":false}]}"#]],
    );
}

#[test]
fn images_are_sent_as_messages_has_them() {
    let blocks = json!([
        {"type": "text", "text": "see"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "image_url", "image_url": "https://example.com/a.png"},
        {"type": "image", "base64": "BBBB", "mime_type": "image/jpeg"}
    ]);
    let content = Content::from_value(&Value::from(blocks)).expect("content");
    check(
        vec![Message { content, ..human("") }],
        expect![[
            r#"{"role":"user","content":[{"type":"text","text":"see"},{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AAAA"}},{"type":"image","source":{"type":"url","url":"https://example.com/a.png"}},{"type":"image","source":{"type":"base64","media_type":"image/jpeg","data":"BBBB"}}]}"#
        ]],
    );
}

fn settings(more: Json) -> Arc<ModelSettings> {
    let mut settings = json!({"provider": "anthropic", "model": "m"});
    for (key, value) in more.as_object().expect("an object") {
        settings[key] = value.clone();
    }
    Arc::new(serde_json::from_value(settings).expect("valid"))
}

#[test]
fn settings_and_instructions_are_sent() {
    let mut request = request();
    request.messages.push(Arc::new(Message::new("s", Role::System, "Be brief.")));
    request.system_prompt = Some("You are.".into());
    request.settings = settings(json!({"temperature": 0.5, "stop": ["END", " "], "max_tokens": 7,
        "cache_control": {"type": "ephemeral", "ttl": "1h"}}));
    let sent = sent(&request);
    let cache = json!({"type": "ephemeral", "ttl": "1h"});
    assert_eq!(
        sent["system"],
        json!([{"type": "text", "text": "You are."},
            {"type": "text", "text": "Be brief.", "cache_control": cache}])
    );
    assert_eq!(sent["messages"][0]["content"][0]["cache_control"], cache);
    assert_eq!(
        (&sent["temperature"], &sent["stop_sequences"], &sent["max_tokens"]),
        (&json!(0.5), &json!(["END"]), &json!(7))
    );
    for absent in ["tools", "tool_choice", "thinking", "output_config", "top_p"] {
        assert!(sent.get(absent).is_none(), "{absent}");
    }
}

#[test]
fn thinking_has_room_beside_the_answer() {
    let request = |more: Json| Request { settings: settings(more), ..request() };
    let enabled = sent(&request(json!({"thinking": {"type": "enabled", "budget_tokens": 2000}})));
    assert_eq!(enabled["thinking"], json!({"type": "enabled", "budget_tokens": 2000}));
    assert_eq!(enabled["max_tokens"], 6096);
    let adaptive = sent(&request(json!({"thinking": {"type": "adaptive"}})));
    assert_eq!(
        (&adaptive["thinking"], &adaptive["max_tokens"]),
        (&json!({"type": "adaptive"}), &json!(4096))
    );
}

#[test]
fn a_schema_is_a_tool_or_the_providers_own() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "string"}}});
    let tool = ToolSpec { name: "weather".into(), description: "d".into(), parameters: Json::Null.into() };
    let mut request = Request { output_schema: Some(schema.clone().into()), ..request() };
    let forced = sent(&request);
    assert_eq!(forced["tool_choice"], json!({"type": "tool", "name": "give_final_answer"}));
    assert_eq!(forced["tools"][0]["input_schema"], schema);

    request.tools = vec![tool];
    let any = sent(&request);
    assert_eq!(any["tool_choice"], json!({"type": "any"}));
    assert_eq!(
        any["tools"][0],
        json!({"name": "weather", "description": "d", "input_schema": {"type": "object", "properties": {}}})
    );
    assert_eq!(any["tools"][1]["name"], "give_final_answer");

    request.settings = settings(json!({"thinking": {"type": "adaptive"}}));
    let native = sent(&request);
    assert_eq!(native["output_config"], json!({"format": {"type": "json_schema", "schema": schema}}));
    assert_eq!((native.get("tool_choice"), native["tools"].as_array().map(Vec::len)), (None, Some(1)));
}

#[test]
fn a_conversation_with_calls_has_tools() {
    let messages = vec![
        human("hi"),
        ai(json!(""), vec![weather("c1", "Paris")], vec![]),
        result("c1", "18", ToolStatus::Success),
    ];
    let sent = sent(&Request { messages: messages.into_iter().map(Arc::new).collect(), ..request() });
    assert_eq!(
        (&sent["tools"], &sent["tool_choice"]),
        (
            &json!([{"name": "weather", "input_schema": {"type": "object", "properties": {}}}]),
            &json!({"type": "none"})
        )
    );
}

#[test]
fn settings_that_cannot_be_sent_are_refused() {
    let refused =
        |more: Json| body(&Request { settings: settings(more), ..request() }).expect_err("refused").code();
    assert_eq!(refused(json!({"api": "responses"})), "MODEL_SETTINGS");
}

//! The body of a Chat Completions request, and what Responses has in common with it.
//!
//! **Invariant:** texts of the conversation are borrowed until they are written as JSON.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use serde::Serialize;
use serde_json::{Value as Json, json};

use super::schema::allows_strict;
use crate::{
    graph::SharedSchema,
    model::{Error, Quirk, Request, ToolSpec},
    value::{Content, InvalidToolCall, Message, Role, ToolCall, Value},
};

/// What OpenAI allows in the name of a speaker; others would be refused.
const MAX_NAME_CHARS: usize = 64;

/// Kinds of content blocks that belong to other providers' protocols and mean nothing to this one.
const FOREIGN_BLOCKS: [&str; 7] =
    ["tool_use", "thinking", "redacted_thinking", "reasoning", "reasoning_content", "compaction", "fallback"];
/// How the kinds end of calls that another provider made itself, and of what came of them.
const FOREIGN_ENDINGS: [&str; 2] = ["_tool_use", "_tool_result"];

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    messages: Vec<WireMessage<'a>>,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<Json>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<WireTool<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_format: Option<Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop: Option<&'a [String]>,
}

#[derive(Serialize)]
struct WireMessage<'a> {
    role: &'static str,
    content: Option<WireContent<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<WireCall<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum WireContent<'a> {
    Text(&'a str),
    Blocks(Vec<Cow<'a, Value>>),
}

#[derive(Serialize)]
struct WireCall<'a> {
    id: &'a str,
    r#type: &'static str,
    function: WireFunction<'a>,
}

#[derive(Serialize)]
struct WireFunction<'a> {
    name: &'a str,
    /// JSON text, not JSON.
    arguments: Cow<'a, str>,
}

#[derive(Serialize)]
struct WireTool<'a> {
    r#type: &'static str,
    function: WireSpec<'a>,
}

#[derive(Serialize)]
struct WireSpec<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'a str,
    parameters: Cow<'a, Json>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    strict: bool,
}

/// The JSON text of a request. Fails when a setting is not a number.
pub(super) fn body(request: &Request, quirks: &BTreeSet<Quirk>) -> Result<Vec<u8>, Error> {
    let settings = &request.settings;
    check(request)?;
    let has = |quirk| quirks.contains(&quirk);
    let schema = request.output_schema.as_ref().map(SharedSchema::json);
    let told = schema.filter(|_| has(Quirk::NoResponseFormat)).map(schema_told);
    let system = request.system_prompt.as_deref().into_iter().chain(told.as_deref());
    let system = system.filter(|text| !text.is_empty());
    let system = system.map(|text| WireMessage::new("system", Some(WireContent::Text(text))));
    let is_strict = has(Quirk::StrictTools);
    let body = Body {
        model: &settings.model,
        messages: system.chain(request.messages.iter().filter_map(message)).collect(),
        stream: true,
        stream_options: (!has(Quirk::NoStreamOptions)).then(|| json!({"include_usage": true})),
        tools: request.tools.iter().map(|spec| tool(spec, is_strict)).collect(),
        response_format: schema.filter(|_| !has(Quirk::NoResponseFormat)).map(response_format),
        temperature: settings.temperature,
        top_p: settings.top_p,
        max_tokens: settings.max_tokens.filter(|_| !has(Quirk::MaxCompletionTokens)),
        max_completion_tokens: settings.max_tokens.filter(|_| has(Quirk::MaxCompletionTokens)),
        stop: settings.stop.as_deref().filter(|stop| !stop.is_empty()),
    };
    Ok(serde_json::to_vec(&body).expect("text keys and finite numbers are always JSON"))
}

/// Refuses settings that cannot be sent.
pub(super) fn check(request: &Request) -> Result<(), Error> {
    let settings = &request.settings;
    for (name, value) in [("temperature", settings.temperature), ("top_p", settings.top_p)] {
        if value.is_some_and(|value| !value.is_finite()) {
            return Err(Error::Settings(format!("{name} is not a number")));
        }
    }
    Ok(())
}

/// The schema of an answer in words, for servers that cannot be told otherwise.
pub(super) fn schema_told(schema: &Json) -> String {
    format!("Answer with JSON alone, without a code fence. It must satisfy this JSON Schema:\n{schema}")
}

impl<'a> WireMessage<'a> {
    fn new(role: &'static str, content: Option<WireContent<'a>>) -> Self {
        Self { role, content, name: None, tool_calls: Vec::new(), tool_call_id: None }
    }
}

fn message(message: &Arc<Message>) -> Option<WireMessage<'_>> {
    let name = message.name.as_deref().filter(|name| is_wire_name(name));
    let message = match &message.role {
        Role::Human => WireMessage { name, ..WireMessage::new("user", content(message)) },
        Role::System => WireMessage { name, ..WireMessage::new("system", content(message)) },
        Role::Ai { tool_calls, invalid_tool_calls, .. } => {
            let valid = tool_calls.iter().map(call);
            let tool_calls: Vec<_> = valid.chain(invalid_tool_calls.iter().map(invalid_call)).collect();
            // Null is right beside tool calls, and refused without them.
            let content = match said(message) {
                None if tool_calls.is_empty() => Some(WireContent::Text("")),
                content => content,
            };
            WireMessage { name, tool_calls, ..WireMessage::new("assistant", content) }
        }
        Role::Tool { tool_call_id, .. } => {
            WireMessage { tool_call_id: Some(tool_call_id), ..WireMessage::new("tool", content(message)) }
        }
        Role::Remove => return None,
    };
    Some(message)
}

fn content(message: &Message) -> Option<WireContent<'_>> {
    Some(match &message.content {
        Content::Text(text) => WireContent::Text(text),
        Content::Blocks(blocks) => WireContent::Blocks(blocks.iter().map(Cow::Borrowed).collect()),
    })
}

/// What a model said, without the blocks that only its own provider understands.
fn said(message: &Message) -> Option<WireContent<'_>> {
    match content(message)? {
        WireContent::Text("") => None,
        WireContent::Text(text) => Some(WireContent::Text(text)),
        WireContent::Blocks(blocks) => {
            let blocks: Vec<_> = blocks.into_iter().filter_map(own_block).collect();
            (!blocks.is_empty()).then_some(WireContent::Blocks(blocks))
        }
    }
}

/// A block of a model's message as this protocol has it: none of other protocols, and text without their extras.
fn own_block(block: Cow<'_, Value>) -> Option<Cow<'_, Value>> {
    let field = |key: &str| block.as_map()?.get(key)?.as_str().map(str::to_owned);
    let kind = field("type").unwrap_or_default();
    if FOREIGN_BLOCKS.contains(&&*kind) || FOREIGN_ENDINGS.iter().any(|ending| kind.ends_with(ending)) {
        return None;
    }
    match field("text") {
        Some(text) if kind == "text" && block.as_map().is_some_and(|map| map.len() > 2) => {
            Some(Cow::Owned(Value::map([("type", "text".into()), ("text", text.into())])))
        }
        Some(_) | None => Some(block),
    }
}

fn is_wire_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    !name.is_empty() && name.len() <= MAX_NAME_CHARS && name.chars().all(allowed)
}

fn call(call: &ToolCall) -> WireCall<'_> {
    let arguments = serde_json::to_string(&call.args).expect("values have text keys and finite numbers");
    wire_call(&call.id, &call.name, arguments.into())
}

fn invalid_call(call: &InvalidToolCall) -> WireCall<'_> {
    wire_call(&call.id, &call.name, Cow::Borrowed(&call.args))
}

fn wire_call<'a>(id: &'a str, name: &'a str, arguments: Cow<'a, str>) -> WireCall<'a> {
    WireCall { id, r#type: "function", function: WireFunction { name, arguments } }
}

fn tool(spec: &ToolSpec, is_strict: bool) -> WireTool<'_> {
    let parameters = parameters(spec.parameters.json());
    let strict = is_strict && allows_strict(&parameters);
    let function = WireSpec { name: &spec.name, description: &spec.description, parameters, strict };
    WireTool { r#type: "function", function }
}

/// The schema of a tool's arguments. OpenAI refuses an object schema that does not say `properties`.
pub(super) fn parameters(schema: &Json) -> Cow<'_, Json> {
    match schema.as_object() {
        Some(object) if object.contains_key("properties") || object.contains_key("$ref") => {
            Cow::Borrowed(schema)
        }
        Some(object) => {
            let mut object = object.clone();
            object.entry("type").or_insert_with(|| "object".into());
            object.insert("properties".into(), json!({}));
            Cow::Owned(Json::Object(object))
        }
        None => Cow::Owned(json!({"type": "object", "properties": {}})),
    }
}

fn response_format(schema: &Json) -> Json {
    json!({
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, "strict": allows_strict(schema)},
    })
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::value::{Map, ToolStatus};

    fn request(messages: Vec<Message>) -> Request {
        Request {
            settings: serde_json::from_value(json!({"provider": "openai", "model": "m"})).expect("valid"),
            system_prompt: None,
            messages: messages.into_iter().map(Arc::new).collect(),
            tools: Vec::new(),
            output_schema: None,
            retry: 0,
        }
    }

    fn sent(request: &Request) -> Json {
        let body = body(request, &BTreeSet::new()).expect("valid");
        serde_json::from_slice(&body).expect("JSON")
    }

    /// The messages as sent, one on a line.
    fn check(request: &Request, expected: Expect) {
        let lines = sent(request)["messages"]
            .as_array()
            .expect("a list")
            .iter()
            .map(Json::to_string)
            .collect::<Vec<_>>();
        expected.assert_eq(&lines.join("\n"));
    }

    fn ai(text: &str, tool_calls: Vec<ToolCall>, invalid_tool_calls: Vec<InvalidToolCall>) -> Message {
        Message::new("a", Role::Ai { tool_calls, invalid_tool_calls, usage: None }, text)
    }

    fn blocks(mut message: Message, blocks: Json) -> Message {
        message.content = Content::from_value(&Value::from(blocks)).expect("a list");
        message
    }

    #[test]
    fn every_role_has_its_shape() {
        let args = Map::from_iter([("q".into(), "x".into()), ("n".into(), 2.into())]);
        let call = ToolCall { id: "c1".into(), name: "search".into(), args };
        let invalid =
            InvalidToolCall { id: "c2".into(), name: "f".into(), args: "{".into(), error: "e".into() };
        let tool = |id: &str| Role::Tool {
            tool_call_id: id.into(),
            status: ToolStatus::Success,
            artifact: "kept".into(),
        };
        let mut named = Message::new("h", Role::Human, "hi");
        named.name = Some("Ann-1".into());
        let mut badly_named = ai("hello", vec![], vec![]);
        badly_named.name = Some("main agent".into());
        let mut request = request(vec![
            named,
            ai("", vec![call], vec![invalid]),
            Message::new("t1", tool("c1"), "42"),
            Message::new("t2", tool("c2"), "wrong arguments"),
            badly_named,
            ai("", vec![], vec![]),
            Message::new("s", Role::System, "be nice"),
            Message::new("h", Role::Remove, ""),
        ]);
        request.system_prompt = Some("You are.".into());
        check(
            &request,
            expect![[r#"
                {"role":"system","content":"You are."}
                {"role":"user","content":"hi","name":"Ann-1"}
                {"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"search","arguments":"{\"q\":\"x\",\"n\":2}"}},{"id":"c2","type":"function","function":{"name":"f","arguments":"{"}}]}
                {"role":"tool","content":"42","tool_call_id":"c1"}
                {"role":"tool","content":"wrong arguments","tool_call_id":"c2"}
                {"role":"assistant","content":"hello"}
                {"role":"assistant","content":""}
                {"role":"system","content":"be nice"}"#]],
        );
    }

    #[test]
    fn blocks_pass_but_for_those_of_other_protocols() {
        let image =
            json!([{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "u"}}]);
        let thought = json!([{"type": "thinking", "thinking": "…"}, {"type": "server_tool_use", "id": "s"},
            {"type": "web_search_tool_result"}, {"type": "text", "text": "said", "citations": []}]);
        check(
            &request(vec![
                blocks(Message::new("h", Role::Human, ""), image),
                blocks(ai("", vec![], vec![]), thought),
                blocks(ai("", vec![], vec![]), json!([{"type": "tool_use", "id": "x"}])),
            ]),
            expect![[r#"
                {"role":"user","content":[{"type":"text","text":"see"},{"type":"image_url","image_url":{"url":"u"}}]}
                {"role":"assistant","content":[{"type":"text","text":"said"}]}
                {"role":"assistant","content":""}"#]],
        );
    }

    #[test]
    fn settings_tools_and_schema_are_sent() {
        let mut request = request(vec![]);
        assert_eq!(
            sent(&request),
            json!({"model": "m", "messages": [], "stream": true, "stream_options": {"include_usage": true}})
        );
        let settings = Arc::make_mut(&mut request.settings);
        settings.temperature = Some(0.5);
        settings.top_p = Some(1.0);
        settings.max_tokens = Some(7);
        settings.stop = Some(vec!["END".into()]);
        let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}});
        let tool = |name: &str, parameters: Json| ToolSpec {
            name: name.into(),
            description: "d".into(),
            parameters: parameters.into(),
        };
        request.tools = vec![
            tool("weather", schema.clone()),
            tool("any", json!({"type": "object"})),
            tool("none", Json::Null),
        ];
        request.output_schema = Some(schema.clone().into());
        let mut sent = sent(&request);
        let object = json!({"type": "object", "properties": {}});
        let tools: Vec<_> = (0..3).map(|at| sent["tools"][at]["function"]["parameters"].take()).collect();
        assert_eq!(tools, [schema.clone(), object.clone(), object]);
        assert_eq!(
            sent["tools"][1],
            json!({"type": "function", "function": {"name": "any", "description": "d", "parameters": null}})
        );
        assert_eq!(
            sent["response_format"],
            json!({"type": "json_schema", "json_schema":
                {"name": "answer", "schema": schema, "strict": false}})
        );
        assert_eq!(
            (&sent["temperature"], &sent["top_p"], &sent["max_tokens"], &sent["stop"]),
            (&json!(0.5), &json!(1.0), &json!(7), &json!(["END"]))
        );
        let body = body(&request, &[Quirk::MaxCompletionTokens].into()).expect("valid");
        let sent: Json = serde_json::from_slice(&body).expect("JSON");
        assert_eq!((sent.get("max_tokens"), &sent["max_completion_tokens"]), (None, &json!(7)));
    }

    #[test]
    fn quirks_change_what_is_sent() {
        let mut request = request(vec![]);
        let closed = json!({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"],
            "additionalProperties": false});
        let tool = |name: &str, parameters: &Json| ToolSpec {
            name: name.into(),
            description: String::new(),
            parameters: parameters.clone().into(),
        };
        request.tools = vec![tool("closed", &closed), tool("open", &json!({"type": "object"}))];
        request.output_schema = Some(closed.into());
        let quirks = [Quirk::NoResponseFormat, Quirk::NoStreamOptions, Quirk::StrictTools].into();
        let sent: Json = serde_json::from_slice(&body(&request, &quirks).expect("valid")).expect("JSON");
        assert_eq!((sent.get("response_format"), sent.get("stream_options")), (None, None));
        let told = sent["messages"][0]["content"].as_str().expect("a text");
        assert!(told.contains("\"additionalProperties\":false"), "{told}");
        let strict = |at: usize| sent["tools"][at]["function"].get("strict").cloned();
        assert_eq!((strict(0), strict(1)), (Some(json!(true)), None));
    }

    #[test]
    fn a_setting_that_is_no_number_is_refused() {
        let mut request = request(vec![]);
        Arc::make_mut(&mut request.settings).top_p = Some(f64::NAN);
        assert_eq!(body(&request, &BTreeSet::new()).expect_err("refused").code(), "MODEL_SETTINGS");
    }
}

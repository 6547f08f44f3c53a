//! The body of a Messages request. Pure.
//!
//! **Invariant:** the first and the last message are the user's, unless the model is to go on with a paused turn.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value as Json, json};

use super::conversation::{WireMessage, conversation, system};
use crate::{
    graph::{CacheControl, ModelSettings, SharedSchema, Thinking},
    model::{Error, Request},
};

/// The tool whose arguments are the answer when it has to satisfy a schema.
pub(super) const ANSWER_TOOL: &str = "give_final_answer";
/// Most tokens of an answer when nobody says; Messages wants a number, and every model allows this one.
const DEFAULT_MAX_TOKENS: u32 = 4096;

/// How an answer is held to its schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Structure {
    /// It has none.
    Free,
    /// It is the arguments of a tool that the model must call; every model can.
    Tool,
    /// By the provider: beside thoughts, no tool can be forced, and a tool's arguments are always an object.
    Native,
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    max_tokens: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    system: Vec<Json>,
    messages: Vec<WireMessage<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking: Option<&'a Thinking>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_config: Option<Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stop_sequences: Vec<&'a str>,
    stream: bool,
}

impl Structure {
    /// How the answer to `request` is held to its schema.
    pub(super) fn of(request: &Request) -> Self {
        match request.output_schema.as_ref().map(SharedSchema::json) {
            None => Self::Free,
            Some(schema) if schema["type"] == "object" && request.settings.thinking.is_none() => Self::Tool,
            Some(_) => Self::Native,
        }
    }
}

/// Most tokens of an answer, thoughts included.
pub(super) fn max_tokens(settings: &ModelSettings) -> u32 {
    let thoughts = match settings.thinking {
        Some(Thinking::Enabled { budget_tokens }) => budget_tokens,
        Some(Thinking::Adaptive {}) | None => 0,
    };
    settings.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS.saturating_add(thoughts))
}

/// The JSON text of a request. Fails when a setting cannot be sent.
pub(super) fn body(request: &Request) -> Result<Vec<u8>, Error> {
    let settings = &request.settings;
    for (name, value) in [("temperature", settings.temperature), ("top_p", settings.top_p)] {
        if value.is_some_and(|value| !value.is_finite()) {
            return Err(Error::Settings(format!("{name} is not a number")));
        }
    }
    if settings.api.is_some() {
        return Err(Error::Settings("api is for OpenAI-compatible providers".into()));
    }
    let structure = Structure::of(request);
    let cache = settings.cache_control.as_ref();
    let mut messages = conversation(&request.messages);
    if let Some(message) = messages.last_mut().filter(|message| message.is_users()) {
        message.keep(cache);
    }
    let (mut tools, tool_choice) = tools(request, structure);
    let mut system = system(request);
    // The provider keeps all that stands before the mark: tools come before the system's text.
    if let Some(last) = system.last_mut().or(tools.last_mut()) {
        mark(last, cache);
    }
    let native = request.output_schema.as_ref().filter(|_| structure == Structure::Native);
    let body = Body {
        model: &settings.model,
        max_tokens: max_tokens(settings),
        system,
        messages,
        tools,
        tool_choice,
        thinking: settings.thinking.as_ref(),
        output_config: native
            .map(|schema| json!({"format": {"type": "json_schema", "schema": schema.json()}})),
        temperature: settings.temperature,
        top_p: settings.top_p,
        // A stop of white space alone would be refused.
        stop_sequences: settings
            .stop
            .iter()
            .flatten()
            .map(String::as_str)
            .filter(|stop| !stop.trim().is_empty())
            .collect(),
        stream: true,
    };
    Ok(serde_json::to_vec(&body).expect("text keys and finite numbers are always JSON"))
}

/// The tools the model may call, and whether it must.
fn tools(request: &Request, structure: Structure) -> (Vec<Json>, Option<Json>) {
    let mut tools: Vec<Json> = request
        .tools
        .iter()
        .map(|spec| tool(&spec.name, &spec.description, parameters(spec.parameters.json())))
        .collect();
    if let Some(schema) = request.output_schema.as_ref().filter(|_| structure == Structure::Tool) {
        let choice = match tools.is_empty() {
            true => json!({"type": "tool", "name": ANSWER_TOOL}),
            false => json!({"type": "any"}),
        };
        tools.push(tool(ANSWER_TOOL, "Gives the final answer and ends the turn.", parameters(schema.json())));
        return (tools, Some(choice));
    }
    if tools.is_empty() {
        // A conversation with calls is refused without tools.
        let calls = request.messages.iter().flat_map(|message| message.tool_calls());
        let called: BTreeMap<&str, ()> = calls.map(|call| (&*call.name, ())).collect();
        tools.extend(called.keys().map(|name| tool(name, "", json!({"type": "object", "properties": {}}))));
        let choice = (!tools.is_empty()).then(|| json!({"type": "none"}));
        return (tools, choice);
    }
    (tools, None)
}

fn tool(name: &str, description: &str, schema: Json) -> Json {
    let mut tool = json!({"name": name, "input_schema": schema});
    if !description.is_empty() {
        tool["description"] = description.into();
    }
    tool
}

/// The schema of a tool's arguments, which must say that it is an object's.
fn parameters(schema: &Json) -> Json {
    match schema {
        Json::Object(object) => {
            let mut object = object.clone();
            object.insert("type".into(), "object".into());
            Json::Object(object)
        }
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_) => {
            json!({"type": "object", "properties": {}})
        }
    }
}

fn mark(block: &mut Json, cache: Option<&CacheControl>) {
    if let Some(cache) = cache {
        block["cache_control"] = serde_json::to_value(cache).expect("words are always JSON");
    }
}

//! OpenAI's Responses: the body of a request, and the events of a streamed answer put together to one reply. Pure.
//!
//! **Invariant:** the reply's text is the emitted pieces joined.
//! **Invariant:** nothing is kept by the provider: each request brings the whole conversation.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use serde::Deserialize;
use serde_json::{Value as Json, json, value::RawValue};

use super::{
    request::{check, parameters, schema_told},
    schema::allows_strict,
};
use crate::{
    graph::SharedSchema,
    model::{
        Chunk, Error, Quirk, Reply, Request,
        answer::{Assemble, Fault, MAX_TOOL_CALLS, Progress, Size, arguments, too_many_calls, unreadable},
        lenient::{Count, Text, details},
    },
    value::{Content, InvalidToolCall, Message, Role, ToolCall, Usage, Value},
};

/// The JSON text of a request. Fails when a setting cannot be sent.
pub(super) fn body(request: &Request, quirks: &BTreeSet<Quirk>) -> Result<Vec<u8>, Error> {
    check(request)?;
    let settings = &request.settings;
    if settings.stop.as_ref().is_some_and(|stop| !stop.is_empty()) {
        return Err(Error::Settings("Responses has no `stop`; use the API chat_completions".into()));
    }
    let schema = request.output_schema.as_ref().map(SharedSchema::json);
    let told = schema.filter(|_| quirks.contains(&Quirk::NoResponseFormat)).map(schema_told);
    let instructions: Vec<&str> =
        request.system_prompt.as_deref().into_iter().chain(told.as_deref()).collect();
    let input: Vec<Json> = request.messages.iter().flat_map(|message| items(message)).collect();
    let mut body = json!({"model": settings.model, "input": input, "stream": true, "store": false});
    let mut set = |key: &str, value: Option<Json>| {
        if let Some(value) = value {
            body[key] = value;
        }
    };
    set("instructions", (!instructions.is_empty()).then(|| instructions.join("\n\n").into()));
    set("temperature", settings.temperature.map(Json::from));
    set("top_p", settings.top_p.map(Json::from));
    set("max_output_tokens", settings.max_tokens.map(Json::from));
    let tools: Vec<Json> = request
        .tools
        .iter()
        .map(|spec| {
            let parameters = parameters(spec.parameters.json());
            // Without the word, Responses takes every schema for a strict one.
            let strict = quirks.contains(&Quirk::StrictTools) && allows_strict(&parameters);
            json!({"type": "function", "name": &*spec.name, "description": spec.description,
                "parameters": parameters, "strict": strict})
        })
        .collect();
    set("tools", (!tools.is_empty()).then_some(tools.into()));
    let format = schema.filter(|_| told.is_none()).map(|schema| {
        json!({"format": {"type": "json_schema", "name": "answer", "schema": schema,
            "strict": allows_strict(schema)}})
    });
    set("text", format);
    Ok(serde_json::to_vec(&body).expect("text keys and finite numbers are always JSON"))
}

/// A message as items: what it says, and the calls it makes or answers.
fn items(message: &Message) -> Vec<Json> {
    let said = |role: &str| json!({"role": role, "content": content(&message.content)});
    match &message.role {
        Role::Human => vec![said("user")],
        Role::System => vec![said("system")],
        Role::Ai { tool_calls, invalid_tool_calls, .. } => {
            let text = message.content.text();
            let text = (!text.is_empty()).then(|| json!({"role": "assistant", "content": &*text}));
            let call = |id: &str, name: &str, args: &str| json!({"type": "function_call", "call_id": id, "name": name, "arguments": args});
            let valid = tool_calls.iter().map(|it| {
                let args = serde_json::to_string(&it.args).expect("values have text keys and finite numbers");
                call(&it.id, &it.name, &args)
            });
            let invalid = invalid_tool_calls.iter().map(|it| call(&it.id, &it.name, &it.args));
            text.into_iter().chain(valid).chain(invalid).collect()
        }
        Role::Tool { tool_call_id, .. } => {
            let output = message.content.text();
            vec![json!({"type": "function_call_output", "call_id": &**tool_call_id, "output": &*output})]
        }
        Role::Remove => Vec::new(),
    }
}

/// What a person says: text, or texts and images.
fn content(content: &Content) -> Json {
    let part = |block: &Value| -> Option<Json> {
        if let Some(text) = block.as_str() {
            return Some(json!({"type": "input_text", "text": text}));
        }
        let map = block.as_map()?;
        match map.get("type")?.as_str()? {
            "text" => Some(json!({"type": "input_text", "text": map.get("text")?.as_str()?})),
            "image_url" => {
                let url = map.get("image_url")?;
                let url = url.as_str().or_else(|| url.as_map()?.get("url")?.as_str())?;
                Some(json!({"type": "input_image", "image_url": url}))
            }
            _ => Some(block.to_json()),
        }
    };
    match content {
        Content::Text(text) => Json::from(&**text),
        Content::Blocks(blocks) => blocks.iter().filter_map(part).collect(),
    }
}

/// An answer as far as it came.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    reply: Reply,
    /// Calls by their place in the output.
    calls: BTreeMap<u64, Call>,
    /// Places whose text came in pieces.
    spoken: BTreeSet<u64>,
    size: Size,
    progress: Progress,
}

#[derive(Debug, Default)]
struct Call {
    id: String,
    name: String,
    args: String,
    is_done: bool,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, default)]
    r#type: Text<'a>,
    #[serde(default)]
    output_index: u64,
    #[serde(borrow, default)]
    delta: Text<'a>,
    #[serde(borrow, default)]
    item: Option<Item<'a>>,
    #[serde(borrow, default)]
    response: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct Item<'a> {
    #[serde(borrow, default)]
    r#type: Text<'a>,
    #[serde(borrow, default)]
    call_id: Text<'a>,
    #[serde(borrow, default)]
    name: Text<'a>,
    #[serde(borrow, default)]
    arguments: Text<'a>,
    #[serde(borrow, default)]
    status: Text<'a>,
    #[serde(borrow, default)]
    content: Option<Vec<Part<'a>>>,
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow, default)]
    text: Text<'a>,
    #[serde(borrow, default)]
    refusal: Text<'a>,
}

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow, default)]
    model: Text<'a>,
    #[serde(borrow, default)]
    status: Text<'a>,
    #[serde(default)]
    error: Option<Json>,
    #[serde(default)]
    incomplete_details: Option<Json>,
    #[serde(borrow, default)]
    output: Option<Vec<&'a RawValue>>,
    #[serde(default)]
    usage: Option<Counts>,
}

#[derive(Deserialize)]
struct Counts {
    #[serde(default)]
    input_tokens: Option<Count>,
    #[serde(default)]
    output_tokens: Option<Count>,
    #[serde(default)]
    total_tokens: Option<Count>,
    #[serde(default)]
    input_tokens_details: Option<Details>,
    #[serde(default)]
    output_tokens_details: Option<Details>,
}

#[derive(Default, Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Option<Count>,
    #[serde(default)]
    reasoning_tokens: Option<Count>,
}

impl Counts {
    fn usage(self) -> Usage {
        let count = |count: Option<Count>| count.map_or(0, |count| count.0);
        let (input_tokens, output_tokens) = (count(self.input_tokens), count(self.output_tokens));
        let cached = self.input_tokens_details.unwrap_or_default().cached_tokens;
        let reasoning = self.output_tokens_details.unwrap_or_default().reasoning_tokens;
        Usage {
            input_tokens,
            output_tokens,
            total_tokens: self.total_tokens.map_or(input_tokens + output_tokens, |total| total.0),
            input_token_details: details([("cache_read", cached)]),
            output_token_details: details([("reasoning", reasoning)]),
        }
    }
}

impl Assembly {
    fn say(&mut self, text: Text<'_>, ready: &mut VecDeque<Chunk>) -> Result<(), Fault> {
        self.size.grow(text.0.len())?;
        if !text.0.is_empty() {
            self.reply.text.push_str(&text.0);
            ready.push_back(Chunk::Text(text.0.into_owned()));
        }
        Ok(())
    }

    fn refuse(&mut self, text: &Text<'_>) -> Result<(), Fault> {
        self.size.grow(text.0.len())?;
        if !text.0.is_empty() {
            self.reply.refusal.get_or_insert_default().push_str(&text.0);
        }
        Ok(())
    }

    /// Takes an item: its beginning, or the whole of it.
    fn item(
        &mut self,
        index: u64,
        (item, is_done): (Item<'_>, bool),
        ready: &mut VecDeque<Chunk>,
    ) -> Result<(), Fault> {
        match &*item.r#type.0 {
            "function_call" => {
                if self.calls.len() == MAX_TOOL_CALLS && !self.calls.contains_key(&index) {
                    return Err(too_many_calls());
                }
                self.size.grow(item.name.0.len() + item.call_id.0.len() + item.arguments.0.len())?;
                let call = self.calls.entry(index).or_default();
                call.id = item.call_id.0.into_owned();
                call.name = item.name.0.into_owned();
                call.is_done = is_done && &*item.status.0 != "incomplete";
                // The whole says again what the pieces said.
                if !item.arguments.0.is_empty() {
                    call.args = item.arguments.0.into_owned();
                }
            }
            "message" if is_done && self.spoken.insert(index) => {
                for part in item.content.unwrap_or_default() {
                    self.say(part.text, ready)?;
                    self.refuse(&part.refusal)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes the response at the start or the end of the answer.
    fn response(&mut self, raw: &RawValue, ready: &mut VecDeque<Chunk>) -> Result<(), Fault> {
        let response: Response<'_> = serde_json::from_str(raw.get())
            .map_err(|error| unreadable("the answer is no response", &error))?;
        if let Some(error) = response.error.filter(|error| !error.is_null()) {
            return Err(Fault::Complaint(error));
        }
        if !response.model.0.is_empty() {
            self.reply.model = Some(response.model.0.into_owned());
        }
        if let Some(usage) = response.usage {
            self.reply.usage = Some(usage.usage());
        }
        let reason = response.incomplete_details.as_ref().and_then(|details| details["reason"].as_str());
        let status = &*response.status.0;
        if !matches!(status, "completed" | "incomplete") {
            self.progress = self.progress.max(Progress::Started);
            return Ok(());
        }
        let known = |index: &u64| self.spoken.contains(index) || self.calls.contains_key(index);
        let output = response.output.unwrap_or_default();
        let new: Vec<_> = (0..).zip(output).filter(|(index, _)| !known(index)).collect();
        for (index, raw) in new {
            if let Ok(item) = serde_json::from_str(raw.get()) {
                self.item(index, (item, true), ready)?;
            }
        }
        self.reply.finish_reason = Some(reason.unwrap_or(status).to_owned());
        self.progress = Progress::Closed;
        Ok(())
    }
}

impl Assemble for Assembly {
    fn progress(&self) -> Progress {
        self.progress
    }

    fn close(&mut self) {
        self.progress = Progress::Closed;
    }

    fn event(&mut self, name: &str, data: &str, ready: &mut VecDeque<Chunk>) -> Result<(), Fault> {
        let data = data.trim();
        if self.progress == Progress::Closed || data.is_empty() || data == "[DONE]" {
            return Ok(());
        }
        let event: Event<'_> = match serde_json::from_str(data) {
            Ok(event) => event,
            Err(_) if name == "error" => return Err(Fault::Complaint(data.into())),
            Err(error) => return Err(unreadable("an event is not one of Responses", &error)),
        };
        let index = event.output_index;
        let kind = if event.r#type.0.is_empty() { name } else { &event.r#type.0 };
        match kind {
            "error" => {
                let json: Json = serde_json::from_str(data).unwrap_or_default();
                let inner = json.get("error").filter(|error| error.is_object());
                return Err(Fault::Complaint(inner.unwrap_or(&json).clone()));
            }
            "response.output_text.delta" => {
                self.spoken.insert(index);
                self.say(event.delta, ready)?;
            }
            "response.refusal.delta" => {
                self.spoken.insert(index);
                self.refuse(&event.delta)?;
            }
            "response.function_call_arguments.delta" => {
                self.size.grow(event.delta.0.len())?;
                self.calls.entry(index).or_default().args.push_str(&event.delta.0);
            }
            "response.output_item.added" | "response.output_item.done" => {
                let is_done = kind.ends_with(".done");
                self.item(index, (event.item.unwrap_or_default(), is_done), ready)?;
            }
            "response.created"
            | "response.in_progress"
            | "response.completed"
            | "response.incomplete"
            | "response.failed" => {
                if let Some(response) = event.response {
                    self.response(response, ready)?;
                }
            }
            // Kinds of output that were not asked for, and those that are yet to come.
            _ => {}
        }
        Ok(())
    }

    fn whole(&mut self, body: &[u8], ready: &mut VecDeque<Chunk>) -> Result<(), Fault> {
        let text = String::from_utf8_lossy(body);
        let raw: &RawValue =
            serde_json::from_str(&text).map_err(|error| unreadable("the answer is not JSON", &error))?;
        self.response(raw, ready)?;
        match self.progress {
            Progress::Closed => Ok(()),
            Progress::Silent | Progress::Started | Progress::Finished => {
                Err(Fault::Unreadable("the answer is not a complete response".into()))
            }
        }
    }

    fn finish(self: Box<Self>, earlier_calls: usize) -> Reply {
        let Self { mut reply, calls, .. } = *self;
        let mut ids: Vec<Arc<str>> = Vec::new();
        for (at, call) in calls.into_values().enumerate() {
            let given =
                Some(&*call.id).filter(|id| !id.is_empty() && !ids.iter().any(|known| **known == **id));
            let id: Arc<str> =
                given.map_or_else(|| format!("call_{}", earlier_calls + at + 1).into(), Arc::from);
            ids.push(id.clone());
            let checked = match call.is_done {
                true => arguments(&call.name, &call.args),
                false => Err("the answer ended within the arguments".to_owned()),
            };
            match checked {
                Ok(args) => reply.tool_calls.push(ToolCall { id, name: call.name.into(), args }),
                Err(error) => reply.invalid_tool_calls.push(InvalidToolCall {
                    id,
                    name: call.name.into(),
                    args: call.args.into(),
                    error: error.into(),
                }),
            }
        }
        reply
    }
}

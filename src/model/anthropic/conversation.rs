//! A conversation as Messages wants it: turns that alternate, and results right behind their calls. Pure.
//!
//! **Invariant:** texts of the conversation are borrowed until they are written as JSON.

use std::{borrow::Cow, sync::Arc};

use serde::{Serialize, Serializer};
use serde_json::{Value as Json, json};

use crate::{
    graph::CacheControl,
    model::Request,
    value::{Content, InvalidToolCall, Map, Message, Role, ToolCall, ToolStatus, Value},
};

/// What stands in for a user who says nothing: a conversation begins with the user.
const SILENCE: &str = "(no message)";
/// What stands in for a user after the answer of another model.
const GO_ON: &str = "Go on.";
/// The reason to stop after which the model goes on with its own turn.
pub(super) const PAUSED: &str = "pause_turn";
/// Kinds of blocks of other protocols, which mean nothing to this one.
const FOREIGN_BLOCKS: [&str; 5] =
    ["reasoning", "reasoning_content", "function_call", "refusal", "image_generation_call"];
/// Fields by which LangChain joins the pieces of a stream; refused when they come back.
const STREAM_FIELDS: [&str; 2] = ["index", "partial_json"];

/// A turn of one side.
#[derive(Serialize)]
pub(super) struct WireMessage<'a> {
    role: &'static str,
    content: Vec<WireBlock<'a>>,
}

#[derive(Serialize)]
struct WireBlock<'a> {
    #[serde(flatten)]
    block: Block<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_control: Option<&'a CacheControl>,
}

enum Block<'a> {
    Text(Cow<'a, str>),
    Use { id: String, name: &'a str, input: Input<'a> },
    Result { id: String, content: Vec<WireBlock<'a>>, is_error: bool },
    Raw(Cow<'a, Map>),
    Json(Json),
}

enum Input<'a> {
    Valid(&'a Map),
    /// A call that could not be read is shown as what it was.
    Invalid(&'a str),
}

impl Serialize for Input<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Valid(map) => serializer.collect_map(map.iter().map(|(key, value)| (&**key, value))),
            Self::Invalid(text) => serializer.collect_map([("invalid_json", text)]),
        }
    }
}

impl Serialize for Block<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(tag = "type", rename_all = "snake_case")]
        enum Known<'a> {
            Text { text: &'a str },
            ToolUse { id: &'a str, name: &'a str, input: &'a Input<'a> },
            ToolResult { tool_use_id: &'a str, content: &'a [WireBlock<'a>], is_error: bool },
        }
        match self {
            Self::Text(text) => Known::Text { text }.serialize(serializer),
            Self::Use { id, name, input } => Known::ToolUse { id, name, input }.serialize(serializer),
            Self::Result { id, content, is_error } => {
                Known::ToolResult { tool_use_id: id, content, is_error: *is_error }.serialize(serializer)
            }
            Self::Raw(map) => serializer.collect_map(map.iter().map(|(key, value)| (&**key, value))),
            Self::Json(json) => json.serialize(serializer),
        }
    }
}

impl<'a> From<Block<'a>> for WireBlock<'a> {
    fn from(block: Block<'a>) -> Self {
        Self { block, cache_control: None }
    }
}

impl<'a> WireMessage<'a> {
    fn users(text: &'static str) -> Self {
        Self { role: "user", content: vec![Block::Text(text.into()).into()] }
    }

    pub(super) fn is_users(&self) -> bool {
        self.role == "user"
    }

    /// Marks the end of what the provider shall keep.
    pub(super) fn keep(&mut self, cache: Option<&'a CacheControl>) {
        if let Some(last) = self.content.last_mut() {
            last.cache_control = cache;
        }
    }
}

/// The instructions: the node's, then those of the conversation, which has no place for them.
pub(super) fn system(request: &Request) -> Vec<Json> {
    let own = request.system_prompt.iter().map(|text| Cow::Borrowed(text.as_str()));
    let is_system = |message: &&Arc<Message>| matches!(message.role, Role::System);
    let said = request.messages.iter().filter(is_system);
    let said = said.map(|message| Cow::Owned(message.content.text().to_string()));
    let texts = own.chain(said).filter(|text| !text.trim().is_empty());
    texts.map(|text| json!({"type": "text", "text": text})).collect()
}

/// The turns of a conversation.
pub(super) fn conversation(messages: &[Arc<Message>]) -> Vec<WireMessage<'_>> {
    let spoken = messages.iter().map(|message| turn(message)).filter(|(_, blocks)| !blocks.is_empty());
    let mut turns: Vec<WireMessage<'_>> = Vec::new();
    for (role, blocks) in spoken {
        if turns.is_empty() && role != "user" {
            turns.push(WireMessage::users(SILENCE));
        }
        let blocks = blocks.into_iter().map(WireBlock::from);
        match turns.last_mut() {
            Some(turn) if turn.role == role => turn.content.extend(blocks),
            Some(_) | None => turns.push(WireMessage { role, content: blocks.collect() }),
        }
    }
    match turns.last() {
        None => turns.push(WireMessage::users(SILENCE)),
        Some(turn) if turn.is_users() || messages.last().is_some_and(|message| is_paused(message)) => {}
        // Newer models refuse to go on with words that were put in their mouth.
        Some(_) => turns.push(WireMessage::users(GO_ON)),
    }
    for turn in turns.iter_mut().filter(|turn| turn.is_users()) {
        // Results come first; the order is theirs otherwise.
        turn.content.sort_by_key(|block| !matches!(block.block, Block::Result { .. }));
    }
    turns
}

/// Whether the model was interrupted in its turn and goes on with it.
fn is_paused(message: &Message) -> bool {
    let reason = message.response_metadata.get("finish_reason").and_then(Value::as_str);
    matches!(message.role, Role::Ai { .. }) && reason == Some(PAUSED)
}

fn turn(message: &Message) -> (&'static str, Vec<Block<'_>>) {
    match &message.role {
        Role::Human => ("user", said(&message.content)),
        Role::Ai { tool_calls, invalid_tool_calls, .. } => {
            ("assistant", spoken(&message.content, tool_calls, invalid_tool_calls))
        }
        Role::Tool { tool_call_id, status, .. } => {
            let content = said(&message.content).into_iter().map(WireBlock::from).collect();
            let is_error = *status == ToolStatus::Error;
            ("user", vec![Block::Result { id: wire_id(tool_call_id), content, is_error }])
        }
        Role::System | Role::Remove => ("user", Vec::new()),
    }
}

/// What a person or a tool says.
fn said(content: &Content) -> Vec<Block<'_>> {
    match content {
        Content::Text(text) => text_block(text).into_iter().collect(),
        Content::Blocks(blocks) => blocks.iter().filter_map(said_block).collect(),
    }
}

/// Empty texts are refused.
fn text_block(text: &str) -> Option<Block<'_>> {
    (!text.trim().is_empty()).then(|| Block::Text(text.into()))
}

fn said_block(value: &Value) -> Option<Block<'_>> {
    if let Some(text) = value.as_str() {
        return text_block(text);
    }
    let map = value.as_map()?;
    let field = |key: &str| map.get(key).and_then(Value::as_str);
    match field("type")? {
        "text" => text_block(field("text")?),
        "image_url" => {
            let url = map.get("image_url")?;
            let url = url.as_str().or_else(|| url.as_map()?.get("url")?.as_str())?;
            Some(image(url))
        }
        "image" if !map.contains_key("source") => match (field("base64"), field("mime_type"), field("url")) {
            (Some(data), Some(kind), _) => Some(image_of(kind, data)),
            (_, _, Some(url)) => Some(image(url)),
            _ => None,
        },
        kind if FOREIGN_BLOCKS.contains(&kind) => None,
        _ => Some(Block::Raw(without_stream_fields(map))),
    }
}

/// An image by its address, which may hold the image itself.
fn image(url: &str) -> Block<'_> {
    match url.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,")) {
        Some((kind, data)) => image_of(kind, data),
        None => Block::Json(json!({"type": "image", "source": {"type": "url", "url": url}})),
    }
}

fn image_of<'a>(kind: &str, data: &str) -> Block<'a> {
    let source = json!({"type": "base64", "media_type": kind, "data": data});
    Block::Json(json!({"type": "image", "source": source}))
}

fn without_stream_fields(map: &Map) -> Cow<'_, Map> {
    if !STREAM_FIELDS.iter().any(|field| map.contains_key(*field)) {
        return Cow::Borrowed(map);
    }
    let kept = map.iter().filter(|(key, _)| !STREAM_FIELDS.contains(&&***key));
    Cow::Owned(kept.map(|(key, value)| (key.clone(), value.clone())).collect())
}

/// What the model said. Its calls are the message's, which a person may have edited, in the places of their blocks.
fn spoken<'a>(content: &'a Content, valid: &'a [ToolCall], invalid: &'a [InvalidToolCall]) -> Vec<Block<'a>> {
    let valid = valid.iter().map(|call| (&*call.id, &*call.name, Input::Valid(&call.args)));
    let invalid = invalid.iter().map(|call| (&*call.id, &*call.name, Input::Invalid(&call.args)));
    let mut calls: Vec<_> = valid.chain(invalid).collect();
    let made = |(id, name, input): (&str, &'a str, Input<'a>)| Block::Use { id: wire_id(id), name, input };
    let mut blocks = Vec::new();
    match content {
        Content::Text(text) => blocks.extend(text_block(text)),
        Content::Blocks(all) => {
            for value in all.iter() {
                let map = value.as_map();
                let field = |key: &str| map?.get(key)?.as_str();
                match field("type") {
                    Some("tool_use") => {
                        let at = calls.iter().position(|(id, ..)| Some(*id) == field("id"));
                        blocks.extend(at.map(|at| made(calls.remove(at))));
                    }
                    // Thoughts of other providers, or of mocks, are not signed.
                    Some("thinking") if field("signature").unwrap_or_default().is_empty() => {}
                    Some("text") if map.is_some_and(|map| map.contains_key("citations")) => {
                        blocks.extend(map.map(|map| Block::Raw(without_stream_fields(map))));
                    }
                    _ => blocks.extend(said_block(value)),
                }
            }
        }
    }
    blocks.extend(calls.into_iter().map(made));
    blocks
}

/// An id with the letters that ids may have here; other providers' have more.
fn wire_id(id: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    id.chars().map(|c| if allowed(c) { c } else { '_' }).collect()
}

//! Chat messages as the pydantic objects LangChain stores, and back.
//!
//! **Invariant:** a message with a field, or a value in a field, that [`Message`] has no place for is not
//! decoded at all, so that writing it back loses nothing. (A missing field counts as its default, and an empty
//! id, or name or error of an invalid tool call, as nil.)

use std::sync::Arc;

use super::{
    Error,
    decode::{Head, Reader},
    encode::Writer,
    ext, python,
};
use crate::value::{Content, InvalidToolCall, Map, Message, Name, Role, ToolCall, ToolStatus, Usage, Value};

/// The classes this crate knows: module, class, value of the field `type`.
const HUMAN: [&str; 3] = ["langchain_core.messages.human", "HumanMessage", "human"];
const SYSTEM: [&str; 3] = ["langchain_core.messages.system", "SystemMessage", "system"];
const AI: [&str; 3] = ["langchain_core.messages.ai", "AIMessage", "ai"];
const AI_CHUNK: [&str; 3] = ["langchain_core.messages.ai", "AIMessageChunk", "AIMessageChunk"];
const TOOL: [&str; 3] = ["langchain_core.messages.tool", "ToolMessage", "tool"];
const REMOVE: [&str; 3] = ["langchain_core.messages.modifier", "RemoveMessage", "remove"];

/// Writes `message` with the fields of its class, in the order in which Python writes them.
pub(super) fn encode(out: &mut Writer<'_>, message: &Message) -> Result<(), Error> {
    let ([module, class, kind], fields) = match &message.role {
        Role::Human => (HUMAN, 6),
        Role::System => (SYSTEM, 6),
        Role::Ai { .. } => (AI, 9),
        Role::Tool { .. } => (TOOL, 9),
        Role::Remove => (REMOVE, 6),
    };
    out.object(ext::PYDANTIC, |out| {
        out.class(4, module, class)?;
        out.map_len(fields)?;
        out.text("content");
        match &message.content {
            Content::Text(text) => out.text(text),
            Content::Blocks(blocks) => out.list(blocks)?,
        }
        out.text("additional_kwargs");
        out.map(&message.additional_kwargs)?;
        out.text("response_metadata");
        out.map(&message.response_metadata)?;
        out.text("type");
        out.text(kind);
        out.text("name");
        match &message.name {
            Some(name) => out.text(name),
            None => out.nil(),
        }
        out.text("id");
        filled(out, &message.id);
        role_fields(out, &message.role)?;
        out.text(python::VALIDATE);
        Ok(())
    })
}

/// A text; nil when it is empty, for the fields in which the empty text stands for none.
fn filled(out: &mut Writer<'_>, text: &str) {
    if text.is_empty() { out.nil() } else { out.text(text) }
}

fn role_fields(out: &mut Writer<'_>, role: &Role) -> Result<(), Error> {
    match role {
        Role::Human | Role::System | Role::Remove => Ok(()),
        Role::Ai { tool_calls, invalid_tool_calls, usage } => {
            out.text("tool_calls");
            out.array_len(tool_calls.len())?;
            tool_calls.iter().try_for_each(|call| tool_call(out, call))?;
            out.text("invalid_tool_calls");
            out.array_len(invalid_tool_calls.len())?;
            invalid_tool_calls.iter().try_for_each(|call| invalid_tool_call(out, call))?;
            out.text("usage_metadata");
            match usage {
                Some(usage) => usage_metadata(out, usage),
                None => {
                    out.nil();
                    Ok(())
                }
            }
        }
        Role::Tool { tool_call_id, status, artifact } => {
            out.text("tool_call_id");
            out.text(tool_call_id);
            out.text("artifact");
            out.value(artifact)?;
            out.text("status");
            out.text(status.as_str());
            Ok(())
        }
    }
}

fn tool_call(out: &mut Writer<'_>, call: &ToolCall) -> Result<(), Error> {
    out.map_len(4)?;
    out.text("name");
    out.text(&call.name);
    out.text("args");
    out.map(&call.args)?;
    out.text("id");
    filled(out, &call.id);
    out.text("type");
    out.text("tool_call");
    Ok(())
}

fn invalid_tool_call(out: &mut Writer<'_>, call: &InvalidToolCall) -> Result<(), Error> {
    out.map_len(5)?;
    out.text("type");
    out.text("invalid_tool_call");
    out.text("id");
    filled(out, &call.id);
    out.text("name");
    filled(out, &call.name);
    // Not nil when empty: providers' converters hand it on as it is, and want a text.
    out.text("args");
    out.text(&call.args);
    out.text("error");
    filled(out, &call.error);
    Ok(())
}

fn usage_metadata(out: &mut Writer<'_>, usage: &Usage) -> Result<(), Error> {
    let details = [
        ("input_token_details", &usage.input_token_details),
        ("output_token_details", &usage.output_token_details),
    ];
    let given = details.iter().filter(|(_, map)| !map.is_empty());
    out.map_len(3 + given.clone().count())?;
    for (key, count) in [
        ("input_tokens", usage.input_tokens),
        ("output_tokens", usage.output_tokens),
        ("total_tokens", usage.total_tokens),
    ] {
        out.text(key);
        out.uint(count);
    }
    given.copied().try_for_each(|(key, map)| {
        out.text(key);
        out.map(map)
    })
}

/// What has been read of a message; every field but the content may be missing.
#[derive(Default)]
struct Fields {
    content: Option<Content>,
    additional_kwargs: Map,
    response_metadata: Map,
    name: Option<Arc<str>>,
    id: Option<Arc<str>>,
    tool_calls: Vec<ToolCall>,
    invalid_tool_calls: Vec<InvalidToolCall>,
    usage: Option<Usage>,
    tool_call_id: Option<Arc<str>>,
    artifact: Option<Value>,
    status: Option<ToolStatus>,
}

/// The message whose module and class have been read; `None` when it is not one of ours or would lose something.
pub(super) fn decode(input: &mut Reader<'_>, module: &str, class: &str) -> Result<Option<Message>, Error> {
    let known = [HUMAN, SYSTEM, AI, AI_CHUNK, TOOL, REMOVE];
    let Some(spec) = known.into_iter().find(|spec| spec[..2] == [module, class]) else { return Ok(None) };
    let Head::Map(len) = input.head()? else { return Ok(None) };
    let mut fields = Fields::default();
    for _ in 0..len {
        let Some(key) = input.text_or_none()? else { return Ok(None) };
        if fields.read(input, key, spec)?.is_none() {
            return Ok(None);
        }
    }
    if input.text_or_none()?.is_none() {
        return Ok(None);
    }
    Ok(fields.into_message(spec))
}

impl Fields {
    /// Reads the value of field `key`; `None` when the class has no such field or the value no place.
    fn read(&mut self, input: &mut Reader<'_>, key: &str, spec: [&str; 3]) -> Result<Option<()>, Error> {
        let ai = spec == AI || spec == AI_CHUNK;
        let value = input.value()?;
        Ok(match key {
            "content" => content(value).map(|content| self.content = Some(content)),
            "additional_kwargs" => owned_map(value).map(|map| self.additional_kwargs = map),
            "response_metadata" => owned_map(value).map(|map| self.response_metadata = map),
            "type" => (value.as_str() == Some(spec[2])).then_some(()),
            "name" => optional_text(value).map(|name| self.name = name),
            "id" => optional_text(value).map(|id| self.id = id),
            // Messages had it before LangChain 1.0, always with its default.
            "example" if spec == HUMAN || ai => (value == Value::Bool(false)).then_some(()),
            "tool_calls" if ai => all(value, read_tool_call).map(|calls| self.tool_calls = calls),
            "invalid_tool_calls" if ai => {
                all(value, read_invalid_tool_call).map(|calls| self.invalid_tool_calls = calls)
            }
            "usage_metadata" if ai => read_usage(value).map(|usage| self.usage = usage),
            // A chunk in a checkpoint is a whole message that was streamed: these only helped to join it.
            "tool_call_chunks" | "chunk_position" if spec == AI_CHUNK => Some(()),
            "tool_call_id" if spec == TOOL => optional_text(value).map(|id| self.tool_call_id = id),
            "artifact" if spec == TOOL => {
                self.artifact = Some(value);
                Some(())
            }
            "status" if spec == TOOL => match value.as_str() {
                Some("success") => Some(ToolStatus::Success),
                Some("error") => Some(ToolStatus::Error),
                _ => None,
            }
            .map(|status| self.status = Some(status)),
            _ => None,
        })
    }

    fn into_message(self, spec: [&str; 3]) -> Option<Message> {
        let role = match spec {
            HUMAN => Role::Human,
            SYSTEM => Role::System,
            TOOL => Role::Tool {
                tool_call_id: self.tool_call_id?,
                status: self.status.unwrap_or(ToolStatus::Success),
                artifact: self.artifact.unwrap_or(Value::Null),
            },
            REMOVE => Role::Remove,
            _ => Role::Ai {
                tool_calls: self.tool_calls,
                invalid_tool_calls: self.invalid_tool_calls,
                usage: self.usage,
            },
        };
        Some(Message {
            id: self.id.unwrap_or_default(),
            content: self.content?,
            role,
            name: self.name,
            additional_kwargs: self.additional_kwargs,
            response_metadata: self.response_metadata,
        })
    }
}

fn content(value: Value) -> Option<Content> {
    if value == Value::Null { None } else { Content::from_value(&value) }
}

fn owned_map(value: Value) -> Option<Map> {
    let Value::Map(map) = value else { return None };
    Some(Arc::unwrap_or_clone(map))
}

/// A text or nil.
fn optional_text(value: Value) -> Option<Option<Arc<str>>> {
    if let Value::String(text) = value { Some(Some(text)) } else { (value == Value::Null).then_some(None) }
}

fn all<T>(value: Value, read: impl Fn(Map) -> Option<T>) -> Option<Vec<T>> {
    value.as_list()?.iter().map(|item| owned_map(item.clone()).and_then(&read)).collect()
}

/// Takes the fields `keys` out of a map; `None` when it holds any other field.
fn exactly<const N: usize>(mut map: Map, keys: [&str; N]) -> Option<[Option<Value>; N]> {
    let taken = keys.map(|key| map.swap_remove(&Name::from(key)));
    map.is_empty().then_some(taken)
}

fn read_tool_call(map: Map) -> Option<ToolCall> {
    let [name, args, id, kind] = exactly(map, ["name", "args", "id", "type"])?;
    let kind_holds = kind.is_none_or(|kind| kind.as_str() == Some("tool_call"));
    let Some(Value::String(name)) = name.filter(|_| kind_holds) else { return None };
    Some(ToolCall { id: optional_text(id?)?.unwrap_or_default(), name, args: owned_map(args?)? })
}

fn read_invalid_tool_call(map: Map) -> Option<InvalidToolCall> {
    let [kind, id, name, args, error] = exactly(map, ["type", "id", "name", "args", "error"])?;
    let text =
        |value: Option<Value>| optional_text(value.unwrap_or(Value::Null)).map(Option::unwrap_or_default);
    if kind.is_some_and(|kind| kind.as_str() != Some("invalid_tool_call")) {
        return None;
    }
    Some(InvalidToolCall { id: text(id)?, name: text(name)?, args: text(args)?, error: text(error)? })
}

fn read_usage(value: Value) -> Option<Option<Usage>> {
    if value == Value::Null {
        return Some(None);
    }
    let keys =
        ["input_tokens", "output_tokens", "total_tokens", "input_token_details", "output_token_details"];
    let [input, output, total, input_details, output_details] = exactly(owned_map(value)?, keys)?;
    let count = |value: Option<Value>| {
        let Some(Value::Number(number)) = value else { return None };
        number.as_u64()
    };
    let details = |value: Option<Value>| value.map_or(Some(Map::new()), owned_map);
    Some(Some(Usage {
        input_tokens: count(input)?,
        output_tokens: count(output)?,
        total_tokens: count(total)?,
        input_token_details: details(input_details)?,
        output_token_details: details(output_details)?,
    }))
}

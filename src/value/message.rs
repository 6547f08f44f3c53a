//! Chat messages with LangChain's fields, so that Python reads back the objects it knows.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "one kind of value is asked for; all others are answered alike"
)]

use std::sync::Arc;

use serde::{Serialize, Serializer, ser::SerializeMap};

use super::{Map, Value};

/// One chat message.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Unique in its conversation; a second message with the same id replaces the first.
    pub id: Arc<str>,
    /// What is said.
    pub content: Content,
    /// Who says it, with what only that role has.
    pub role: Role,
    /// The speaker's or the tool's name.
    pub name: Option<Arc<str>>,
    /// LangChain's `additional_kwargs`.
    pub additional_kwargs: Map,
    /// LangChain's `response_metadata`: model name, finish reason.
    pub response_metadata: Map,
}

/// The content of a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Plain text.
    Text(Arc<str>),
    /// Content blocks (text, image, …) in the provider's shape.
    Blocks(Arc<Vec<Value>>),
}

/// Who speaks.
#[derive(Clone, Debug, PartialEq)]
pub enum Role {
    /// The person.
    Human,
    /// The operator's instructions.
    System,
    /// The model.
    Ai {
        /// Calls it asks for.
        tool_calls: Vec<ToolCall>,
        /// Calls whose arguments could not be parsed.
        invalid_tool_calls: Vec<InvalidToolCall>,
        /// Tokens it took.
        usage: Option<Usage>,
    },
    /// A tool's answer.
    Tool {
        /// The call it answers.
        tool_call_id: Arc<str>,
        /// Whether the call succeeded.
        status: ToolStatus,
        /// What the tool keeps beside its answer; not shown to the model.
        artifact: Value,
    },
    /// Not said by anybody: removes the message with the same id.
    Remove,
}

/// A call the model asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    /// Unique in its message; the tool's answer carries it back.
    pub id: Arc<str>,
    /// The tool.
    pub name: Arc<str>,
    /// The arguments, an object.
    pub args: Map,
}

/// A call whose arguments are not a JSON object.
#[derive(Clone, Debug, PartialEq)]
pub struct InvalidToolCall {
    /// Unique in its message.
    pub id: Arc<str>,
    /// The tool.
    pub name: Arc<str>,
    /// The arguments as the model wrote them.
    pub args: Arc<str>,
    /// What is wrong with them.
    pub error: Arc<str>,
}

/// Whether a tool call succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolStatus {
    /// It did.
    Success,
    /// It did not; the content says why.
    Error,
}

impl ToolStatus {
    /// `success` or `error`, as LangChain spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Error => "error",
        }
    }
}

/// Tokens of one or many model calls.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens read.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Both.
    pub total_tokens: u64,
    /// The provider's split of the input (`cache_read`, …); empty when it gives none.
    pub input_token_details: Map,
    /// The provider's split of the output (`reasoning`, …); empty when it gives none.
    pub output_token_details: Map,
}

impl Content {
    /// The text: the content itself, or the text blocks joined.
    pub fn text(&self) -> Arc<str> {
        match self {
            Self::Text(text) => text.clone(),
            Self::Blocks(blocks) => {
                let texts = blocks.iter().filter_map(|block| match block {
                    Value::String(text) => Some(&**text),
                    Value::Map(map) => map.get("text").and_then(Value::as_str),
                    _ => None,
                });
                texts.collect::<String>().into()
            }
        }
    }

    /// The content as a value: a string, or a list of blocks.
    pub fn to_value(&self) -> Value {
        match self {
            Self::Text(text) => Value::String(text.clone()),
            Self::Blocks(blocks) => Value::List(blocks.clone()),
        }
    }

    /// The content a value stands for; `None` when it is neither text nor a list.
    pub fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Some(Self::Text(text.clone())),
            Value::List(blocks) => Some(Self::Blocks(blocks.clone())),
            Value::Null => Some(Self::Text("".into())),
            _ => None,
        }
    }
}

impl Message {
    /// A message with empty metadata.
    pub fn new(id: impl Into<Arc<str>>, role: Role, content: impl Into<Arc<str>>) -> Self {
        Self {
            id: id.into(),
            content: Content::Text(content.into()),
            role,
            name: None,
            additional_kwargs: Map::new(),
            response_metadata: Map::new(),
        }
    }

    /// LangChain's `type` of the message.
    pub fn type_name(&self) -> &'static str {
        match &self.role {
            Role::Human => "human",
            Role::System => "system",
            Role::Ai { .. } => "ai",
            Role::Tool { .. } => "tool",
            Role::Remove => "remove",
        }
    }

    /// The calls this message asks for; empty for all but the model's.
    pub fn tool_calls(&self) -> &[ToolCall] {
        match &self.role {
            Role::Ai { tool_calls, .. } => tool_calls,
            Role::Human | Role::System | Role::Tool { .. } | Role::Remove => &[],
        }
    }

    /// Understands the spellings publishers use: `{"role","content"}`, LangChain's `{"type","content"}`
    /// and a bare text (a person's message). A missing id becomes `fallback_id`.
    ///
    /// Fails with a sentence that says what is wrong with the value.
    pub fn coerce(value: &Value, fallback_id: &str) -> Result<Arc<Self>, String> {
        match value {
            Value::Message(message) if !message.id.is_empty() => Ok(message.clone()),
            Value::Message(message) => {
                let mut message = Self::clone(message);
                message.id = fallback_id.into();
                Ok(Arc::new(message))
            }
            Value::String(text) => Ok(Arc::new(Self::new(fallback_id, Role::Human, text.clone()))),
            Value::Map(map) => Self::from_map(map, fallback_id).map(Arc::new),
            _ => Err("a message must be an object with role and content, or a text".into()),
        }
    }

    fn from_map(map: &Map, fallback_id: &str) -> Result<Self, String> {
        let text = |key: &str| map.get(key).and_then(Value::as_str);
        let role = text("role").or_else(|| text("type")).ok_or("a message needs a role")?;
        let role = role_from_map(role, map)?;
        let content = Content::from_value(map.get("content").unwrap_or(&Value::Null))
            .ok_or("the content of a message must be a text or a list of blocks")?;
        let object = |key: &str| map.get(key).and_then(Value::as_map).cloned().unwrap_or_default();
        let id = text("id").filter(|id| !id.is_empty()).unwrap_or(fallback_id);
        Ok(Self {
            id: id.into(),
            content,
            role,
            name: text("name").map(Into::into),
            additional_kwargs: object("additional_kwargs"),
            response_metadata: object("response_metadata"),
        })
    }
}

fn role_from_map(role: &str, map: &Map) -> Result<Role, String> {
    match role {
        "user" | "human" => Ok(Role::Human),
        "system" | "developer" => Ok(Role::System),
        "assistant" | "ai" => Ok(Role::Ai {
            tool_calls: tool_calls_from(map)?,
            invalid_tool_calls: Vec::new(),
            usage: map.get("usage_metadata").and_then(Value::as_map).map(Usage::from_map),
        }),
        "tool" => {
            let call = map.get("tool_call_id").and_then(Value::as_str);
            let failed = map.get("status").and_then(Value::as_str) == Some("error");
            Ok(Role::Tool {
                tool_call_id: call.ok_or("a tool message needs a tool_call_id")?.into(),
                status: if failed { ToolStatus::Error } else { ToolStatus::Success },
                artifact: map.get("artifact").cloned().unwrap_or(Value::Null),
            })
        }
        "remove" => Ok(Role::Remove),
        other => Err(format!("unknown message role {other:?}; known: user, assistant, system, tool")),
    }
}

fn tool_calls_from(map: &Map) -> Result<Vec<ToolCall>, String> {
    let calls = map.get("tool_calls").and_then(Value::as_list).unwrap_or_default();
    let call = |call: &Value| -> Option<ToolCall> {
        let call = call.as_map()?;
        // OpenAI nests name and arguments (a JSON text) under `function`; LangChain has them flat.
        let (name, args) = match call.get("function").and_then(Value::as_map) {
            Some(function) => {
                let text = function.get("arguments").and_then(Value::as_str).unwrap_or("{}");
                let args = Value::from(serde_json::from_str::<serde_json::Value>(text).ok()?);
                (function.get("name")?.as_str()?, args.as_map()?.clone())
            }
            None => {
                let args = call.get("args").and_then(Value::as_map).cloned().unwrap_or_default();
                (call.get("name")?.as_str()?, args)
            }
        };
        Some(ToolCall { id: call.get("id")?.as_str()?.into(), name: name.into(), args })
    };
    let parsed: Option<Vec<_>> = calls.iter().map(call).collect();
    parsed.ok_or_else(|| "tool_calls must be objects with id, name and args".into())
}

impl Usage {
    /// Usage from LangChain's `usage_metadata`; missing numbers count as zero.
    pub fn from_map(map: &Map) -> Self {
        let count = |key: &str| match map.get(key) {
            Some(Value::Number(n)) => n.as_u64().unwrap_or(0),
            _ => 0,
        };
        let details = |key: &str| map.get(key).and_then(Value::as_map).cloned().unwrap_or_default();
        Self {
            input_tokens: count("input_tokens"),
            output_tokens: count("output_tokens"),
            total_tokens: count("total_tokens"),
            input_token_details: details("input_token_details"),
            output_token_details: details("output_token_details"),
        }
    }

    /// LangChain's `usage_metadata`.
    pub fn to_map(&self) -> Map {
        let count = |n: u64| Value::Number(n.into());
        let mut map = Map::from_iter([
            (Arc::from("input_tokens"), count(self.input_tokens)),
            (Arc::from("output_tokens"), count(self.output_tokens)),
            (Arc::from("total_tokens"), count(self.total_tokens)),
        ]);
        for (key, details) in [
            ("input_token_details", &self.input_token_details),
            ("output_token_details", &self.output_token_details),
        ] {
            if !details.is_empty() {
                map.insert(key.into(), Value::Map(Arc::new(details.clone())));
            }
        }
        map
    }
}

impl ToolCall {
    /// LangChain's form of the call: `name`, `args`, `id`, `type`.
    pub fn to_value(&self) -> Value {
        Value::map([
            ("name", Value::String(self.name.clone())),
            ("args", Value::Map(Arc::new(self.args.clone()))),
            ("id", Value::String(self.id.clone())),
            ("type", "tool_call".into()),
        ])
    }

    /// A call from LangChain's form; `None` when a field is missing or of the wrong type.
    pub fn from_value(value: &Value) -> Option<Self> {
        let map = value.as_map()?;
        let text = |key: &str| map.get(key).and_then(Value::as_str).map(Arc::from);
        Some(Self { id: text("id")?, name: text("name")?, args: map.get("args")?.as_map()?.clone() })
    }
}

impl InvalidToolCall {
    /// LangChain's form of the call: `type`, `id`, `name`, `args` (a text), `error`.
    pub fn to_value(&self) -> Value {
        Value::map([
            ("type", "invalid_tool_call".into()),
            ("id", Value::String(self.id.clone())),
            ("name", Value::String(self.name.clone())),
            ("args", Value::String(self.args.clone())),
            ("error", Value::String(self.error.clone())),
        ])
    }

    /// An invalid call from LangChain's form; missing texts count as empty.
    pub fn from_value(value: &Value) -> Option<Self> {
        let map = value.as_map()?;
        let text = |key: &str| map.get(key).and_then(Value::as_str).unwrap_or_default().into();
        Some(Self { id: text("id"), name: text("name"), args: text("args"), error: text("error") })
    }
}

impl Message {
    /// The message's fields in the order in which LangChain writes them.
    pub fn fields(&self) -> Map {
        let list = |items: Vec<Value>| Value::list(items);
        let mut fields = Map::from_iter([
            (Arc::from("content"), self.content.to_value()),
            (Arc::from("additional_kwargs"), Value::Map(Arc::new(self.additional_kwargs.clone()))),
            (Arc::from("response_metadata"), Value::Map(Arc::new(self.response_metadata.clone()))),
            (Arc::from("type"), self.type_name().into()),
            (Arc::from("name"), self.name.clone().map_or(Value::Null, Value::String)),
            (Arc::from("id"), Value::String(self.id.clone())),
        ]);
        match &self.role {
            Role::Human | Role::System | Role::Remove => {}
            Role::Ai { tool_calls, invalid_tool_calls, usage } => {
                let calls = tool_calls.iter().map(ToolCall::to_value).collect();
                let invalid = invalid_tool_calls.iter().map(InvalidToolCall::to_value).collect();
                let usage = usage.as_ref().map_or(Value::Null, |usage| Value::Map(Arc::new(usage.to_map())));
                fields.insert("tool_calls".into(), list(calls));
                fields.insert("invalid_tool_calls".into(), list(invalid));
                fields.insert("usage_metadata".into(), usage);
            }
            Role::Tool { tool_call_id, status, artifact } => {
                fields.insert("tool_call_id".into(), Value::String(tool_call_id.clone()));
                fields.insert("artifact".into(), artifact.clone());
                fields.insert("status".into(), status.as_str().into());
            }
        }
        fields
    }
}

impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fields = self.fields();
        let mut out = serializer.serialize_map(Some(fields.len()))?;
        for (key, value) in &fields {
            out.serialize_entry(&**key, value)?;
        }
        out.end()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn coerced(json: serde_json::Value) -> Result<serde_json::Value, String> {
        Message::coerce(&Value::from(json), "m1").map(|message| Value::Message(message).to_json())
    }

    #[test]
    fn publishers_spellings_become_one_message() {
        let expected = json!({"content": "hi", "additional_kwargs": {}, "response_metadata": {},
            "type": "human", "name": null, "id": "m1"});
        for spelling in
            [json!({"role": "user", "content": "hi"}), json!({"type": "human", "content": "hi"}), json!("hi")]
        {
            assert_eq!(coerced(spelling), Ok(expected.clone()));
        }
    }

    #[test]
    fn openai_tool_calls_are_understood() {
        let message = json!({"role": "assistant", "content": null, "tool_calls":
            [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{\"a\":1}"}}]});
        assert_eq!(
            coerced(message).expect("valid")["tool_calls"],
            json!([{"name": "add", "args": {"a": 1}, "id": "c1", "type": "tool_call"}])
        );
    }

    #[test]
    fn wrong_messages_say_what_is_wrong() {
        assert_eq!(coerced(json!({"content": "x"})), Err("a message needs a role".into()));
        assert!(coerced(json!({"role": "robot"})).expect_err("unknown role").contains("known: user"));
        assert!(coerced(json!({"role": "tool", "content": "x"})).is_err());
        assert!(coerced(json!(7)).is_err());
    }
}

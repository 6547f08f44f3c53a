//! What channels carry: plain values, chat messages and the objects LangGraph stores beside them.
//!
//! **Invariant:** cloning a [`Value`] never copies its content; a state of any size is shared, not copied.
//! **Invariant:** nothing that came in as JSON becomes a [`Value::Send`], [`Value::Interrupt`] or
//! [`Value::Opaque`]: those reach Python as objects, and a publisher must not be able to forge one.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "one kind of value is asked for; all others are answered alike"
)]

mod conversation;
mod json;
mod message;
mod money;

pub use conversation::{OpenCall, open_calls, with_answers};
pub use json::map_to_json;
pub use message::{Content, InvalidToolCall, Message, Role, ToolCall, ToolStatus, Usage};
pub use money::{Cost, Rate};

use std::sync::Arc;

use bytes::Bytes;
use indexmap::IndexMap;
use serde_json::Number;

/// The channel of the conversation; every graph has it.
pub const MESSAGES: &str = "messages";

/// The name of a channel or of a node; cheap to clone because it stands in every write.
pub type Name = Arc<str>;

/// An ordered map from text to values; order is the order of insertion, as Python keeps it.
pub type Map = IndexMap<Name, Value>;

/// The values of the available channels of a graph, by channel name.
pub type State = IndexMap<Name, Value>;

/// One value in a channel or in a write.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// No value.
    Null,
    /// A truth value.
    Bool(bool),
    /// An integer of 64 bits or a finite float.
    Number(Number),
    /// A text.
    String(Arc<str>),
    /// Raw bytes; Python's `bytes`.
    Bytes(Bytes),
    /// A list.
    List(Arc<Vec<Value>>),
    /// A map with text keys.
    Map(Arc<Map>),
    /// A chat message.
    Message(Arc<Message>),
    /// A set of values; LangGraph keeps the names a join has seen in one.
    Set(Arc<Vec<Value>>),
    /// An order to run a node with an input of its own in the next superstep.
    Send(Arc<Send>),
    /// A question that a task waits on.
    Interrupt(Arc<Interrupt>),
    /// A Python object this crate does not interpret: its msgpack bytes, written back unchanged.
    Opaque(Bytes),
}

/// An order to run `node` with `arg` in the next superstep.
#[derive(Clone, Debug, PartialEq)]
pub struct Send {
    /// The node to run.
    pub node: Name,
    /// What the task gets as its input.
    pub arg: Value,
}

/// A question to a person, raised by a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Interrupt {
    /// 32 hex digits, deterministic per task and question.
    pub id: Arc<str>,
    /// What is asked.
    pub value: Value,
    /// JSON Schema of the expected answer, or null.
    pub response_schema: Value,
}

impl Value {
    /// A list of values.
    pub fn list(items: Vec<Value>) -> Self {
        Self::List(Arc::new(items))
    }

    /// A map from pairs, in their order.
    pub fn map<K: Into<Name>>(pairs: impl IntoIterator<Item = (K, Value)>) -> Self {
        Self::Map(Arc::new(pairs.into_iter().map(|(k, v)| (k.into(), v)).collect()))
    }

    /// The text, when this is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The items, when this is a list.
    pub fn as_list(&self) -> Option<&[Value]> {
        match self {
            Self::List(items) => Some(items),
            _ => None,
        }
    }

    /// The map, when this is one.
    pub fn as_map(&self) -> Option<&Map> {
        match self {
            Self::Map(map) => Some(map),
            _ => None,
        }
    }

    /// The chat message, when this is one.
    pub fn as_message(&self) -> Option<&Arc<Message>> {
        match self {
            Self::Message(message) => Some(message),
            _ => None,
        }
    }

    /// The chat messages in a list, others skipped; empty when this is no list.
    pub fn messages(&self) -> impl DoubleEndedIterator<Item = &Arc<Message>> {
        self.as_list().unwrap_or_default().iter().filter_map(Value::as_message)
    }

    /// Whether LangGraph stores this inline in the checkpoint JSON rather than as a blob.
    pub fn is_inline(&self) -> bool {
        matches!(self, Self::Null | Self::Bool(_) | Self::Number(_) | Self::String(_))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text.into())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Number(value.into())
    }
}

impl From<Message> for Value {
    fn from(message: Message) -> Self {
        Self::Message(Arc::new(message))
    }
}

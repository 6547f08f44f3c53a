//! Values to and from JSON.

use std::sync::Arc;

use serde::{
    Serialize, Serializer,
    ser::{SerializeMap, SerializeSeq},
};
use serde_json::Value as Json;

use super::{Map, Value};

impl From<Json> for Value {
    fn from(json: Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(value),
            Json::Number(value) => Self::Number(value),
            Json::String(text) => Self::String(text.into()),
            Json::Array(items) => Self::List(Arc::new(items.into_iter().map(Self::from).collect())),
            Json::Object(map) => Self::Map(Arc::new(map_from_json(map))),
        }
    }
}

/// A JSON object as a map of values, in its order.
fn map_from_json(map: serde_json::Map<String, Json>) -> Map {
    map.into_iter().map(|(key, value)| (key.into(), Value::from(value))).collect()
}

/// A map as a JSON object, as [`Value::to_json`] makes it.
pub fn map_to_json(map: &Map) -> Json {
    serde_json::to_value(map).expect("values have text keys and finite numbers")
}

impl Value {
    /// The value as JSON: messages as LangChain-shaped objects, foreign objects as a placeholder.
    pub fn to_json(&self) -> Json {
        serde_json::to_value(self).expect("values have text keys and finite numbers")
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(value) => value.serialize(serializer),
            Self::String(text) => serializer.serialize_str(text),
            Self::Bytes(bytes) => placeholder(serializer, "bytes", bytes.len()),
            Self::List(items) | Self::Set(items) => {
                let mut seq = serializer.serialize_seq(Some(items.len()))?;
                for item in items.iter() {
                    seq.serialize_element(item)?;
                }
                seq.end()
            }
            Self::Map(map) => {
                let mut out = serializer.serialize_map(Some(map.len()))?;
                for (key, value) in map.iter() {
                    out.serialize_entry(&**key, value)?;
                }
                out.end()
            }
            Self::Message(message) => message.serialize(serializer),
            Self::Send(send) => {
                let mut out = serializer.serialize_map(Some(2))?;
                out.serialize_entry("node", &*send.node)?;
                out.serialize_entry("arg", &send.arg)?;
                out.end()
            }
            Self::Interrupt(interrupt) => {
                let mut out = serializer.serialize_map(None)?;
                out.serialize_entry("id", &*interrupt.id)?;
                out.serialize_entry("value", &interrupt.value)?;
                if interrupt.response_schema != Value::Null {
                    out.serialize_entry("response_schema", &interrupt.response_schema)?;
                }
                out.end()
            }
            Self::Opaque(bytes) => placeholder(serializer, "python", bytes.len()),
        }
    }
}

/// What readers of JSON see of a value that JSON cannot carry: its kind and its size in bytes.
fn placeholder<S: Serializer>(serializer: S, kind: &str, size: usize) -> Result<S::Ok, S::Error> {
    let mut out = serializer.serialize_map(Some(2))?;
    out.serialize_entry("__opaque__", kind)?;
    out.serialize_entry("size", &size)?;
    out.end()
}

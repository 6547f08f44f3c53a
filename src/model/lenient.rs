//! Pieces of providers' JSON, read leniently and borrowed from the event they came in.
//!
//! **Invariant:** a field that is missing, null, unknown or of an odd type never makes a chunk unreadable.
//! **Invariant:** reading a piece of text copies nothing but texts with escapes.

use std::{borrow::Cow, fmt, sync::Arc};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::value::{Map, Value};

/// A small number; `None` when it is none.
pub(super) fn number(raw: Option<&RawValue>) -> Option<u32> {
    raw?.get().parse().ok()
}

/// A text, borrowed when it has no escapes. Text blocks are joined; whatever else is no text is empty.
#[derive(Debug, Default)]
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor).map(Text)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(""))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(""))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Cow::Owned(number.to_string()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Cow::Owned(number.to_string()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
        Ok(Cow::Owned(number.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut blocks: A) -> Result<Self::Value, A::Error> {
        let mut joined = String::new();
        while let Some(Text(text)) = blocks.next_element()? {
            joined.push_str(&text);
        }
        Ok(Cow::Owned(joined))
    }

    /// A text block: `{"type":"text","text":"…"}`.
    fn visit_map<A: MapAccess<'de>>(self, mut block: A) -> Result<Self::Value, A::Error> {
        let mut found = Cow::Borrowed("");
        while let Some(Text(key)) = block.next_key()? {
            if key == "text" {
                found = block.next_value::<Text<'de>>()?.0;
            } else {
                block.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// A number of tokens; some servers write it as a float.
#[derive(Clone, Copy, Debug)]
pub(super) struct Count(pub(super) u64);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = serde_json::Number::deserialize(deserializer)?;
        let whole = number.as_f64().filter(|count| *count >= 0.0 && *count < 1e15).map(|count| count as u64);
        number.as_u64().or(whole).map(Self).ok_or_else(|| D::Error::custom("not a number of tokens"))
    }
}

/// LangChain's names of the details the provider gives.
pub(super) fn details<const N: usize>(counts: [(&str, Option<Count>); N]) -> Map {
    let given = counts.into_iter().filter_map(|(name, count)| Some((name, count?)));
    given.map(|(name, Count(count))| (Arc::from(name), Value::Number(count.into()))).collect()
}

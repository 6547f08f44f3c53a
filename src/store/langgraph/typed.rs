//! Values as LangGraph's serializer makes them, and the form in which our tables keep each of them.
//!
//! **Invariant:** whatever form is chosen, reading gives back the same type and the same bytes.

use indexmap::IndexMap;
use serde_json::value::RawValue;

use super::{Error, checkpoint, encode, typed};
use crate::value::{State, Value};

const NULL: &str = "null";
const MSGPACK: &str = "msgpack";

/// A value as LangGraph's serializer makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Typed {
    /// The form of the bytes: `null`, `msgpack`, `bytes`, …
    pub kind: String,
    /// The value in that form.
    pub bytes: Vec<u8>,
}

impl Typed {
    /// `value` as Python's serializer would make it.
    fn of(value: &Value) -> Result<Self, Error> {
        if *value == Value::Null {
            return Ok(Self { kind: NULL.into(), bytes: Vec::new() });
        }
        let mut bytes = Vec::new();
        encode::value(value, &mut bytes)?;
        Ok(Self { kind: MSGPACK.into(), bytes })
    }

    /// The value that stands in the checkpoint itself; `None` when it needs a row of its own. Fails on bytes that
    /// an executor could not read.
    fn inline(&self) -> Result<Option<Value>, Error> {
        let value = match typed(&self.kind, self.bytes.clone()) {
            Ok(value) => value,
            // Such as an encrypted one: a reader with the key knows what to do with it.
            Err(Error::UnknownType(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        // Longer forms of a number would come back as the shortest, and `jsonb` has no -0.0 and no U+0000.
        let keeps = value.is_inline() && !is_lost_in_json(&value) && Self::of(&value)? == *self;
        Ok(keeps.then_some(value))
    }
}

fn is_lost_in_json(value: &Value) -> bool {
    let negative_zero = |number: &serde_json::Number| {
        number.as_f64().is_some_and(|float| float == 0.0 && float.is_sign_negative())
    };
    match value {
        Value::Number(number) => number.is_f64() && negative_zero(number),
        Value::String(text) => text.contains('\0'),
        Value::Null | Value::Bool(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_) => false,
        Value::Message(_) | Value::Set(_) | Value::Send(_) | Value::Interrupt(_) | Value::Opaque(_) => false,
    }
}

/// A checkpoint with its channels apart, as it goes into the tables.
#[derive(Debug)]
pub(crate) struct Divided {
    /// The column `checkpoint`, inline values included.
    pub(crate) checkpoint: String,
    /// Channels that need rows of their own.
    pub(crate) blobs: Vec<(String, Typed)>,
}

/// Puts each of `values` where it belongs. Fails with the channel whose value cannot be kept, or with what is
/// wrong with `checkpoint`.
pub(crate) fn divide(checkpoint: &str, values: IndexMap<String, Typed>) -> Result<Divided, Error> {
    let mut fields: IndexMap<String, Box<RawValue>> = parse(checkpoint)?;
    let (mut inline, mut blobs) = (State::new(), Vec::new());
    for (channel, value) in values {
        let found = value.inline().map_err(|error| Error::Json(format!("channel {channel}: {error}")))?;
        match found {
            Some(found) => {
                inline.insert(channel.into(), found);
            }
            None => blobs.push((channel, value)),
        }
    }
    fields.insert("channel_values".into(), parse(&checkpoint::inline_text(&inline)?)?);
    let checkpoint = serde_json::to_string(&fields).map_err(|error| Error::Json(error.to_string()))?;
    Ok(Divided { checkpoint, blobs })
}

/// The inline values in the column `checkpoint`.
pub(crate) fn inline(checkpoint: &str) -> Result<IndexMap<String, Typed>, Error> {
    let values = checkpoint::inline_values(checkpoint)?;
    values.iter().map(|(channel, value)| Ok((channel.to_string(), Typed::of(value)?))).collect()
}

/// Fails on bytes that an executor could not read.
pub(crate) fn check(channel: &str, value: &Typed) -> Result<(), Error> {
    value.inline().map(drop).map_err(|error| Error::Json(format!("channel {channel}: {error}")))
}

fn parse<'a, T: serde::Deserialize<'a>>(text: &'a str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| Error::Json(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn msgpack(bytes: &[u8]) -> Typed {
        Typed { kind: MSGPACK.into(), bytes: bytes.to_vec() }
    }

    /// What becomes of a value in the tables and back: whether it stands in the checkpoint, and what is read.
    fn kept(value: &Typed) -> (bool, Typed) {
        let divided =
            divide(r#"{"v":4}"#, IndexMap::from([("c".to_owned(), value.clone())])).expect("it is kept");
        let mut read = inline(&divided.checkpoint).expect("it is read");
        let is_inline = read.contains_key("c");
        read.extend(divided.blobs);
        (is_inline, read.swap_remove("c").expect("the channel"))
    }

    #[test]
    fn plain_values_stand_in_the_checkpoint_and_all_come_back_with_the_same_bytes() {
        let float = |float: f64| [&[0xcb][..], &float.to_be_bytes()].concat();
        let plain = [
            Typed { kind: NULL.into(), bytes: vec![] },
            msgpack(&[0xc3]),
            msgpack(&[0x2a]),
            msgpack(&[0xcf, 255, 255, 255, 255, 255, 255, 255, 255]),
            msgpack(&[0xd3, 128, 0, 0, 0, 0, 0, 0, 0]),
            msgpack(&float(1e16)),
            msgpack(&float(5e-324)),
            msgpack(&float(0.1)),
            msgpack(b"\xa5hello"),
        ];
        for value in plain {
            assert_eq!(kept(&value), (true, value));
        }
        let others = [
            msgpack(&[0xc0]),
            msgpack(&[0xcd, 0, 1]),
            msgpack(&float(-0.0)),
            msgpack(&float(f64::NAN)),
            msgpack(b"\xa1\0"),
            msgpack(&[0x93, 1, 2, 3]),
            msgpack(&[0x81, 1, 2]),
            msgpack(&[0xd4, 0x63, 1]),
            Typed { kind: "bytes".into(), bytes: vec![1] },
            Typed { kind: "bytearray".into(), bytes: vec![1] },
            Typed { kind: "json".into(), bytes: b"1".to_vec() },
            Typed { kind: "msgpack+aes".into(), bytes: vec![0xc1] },
        ];
        for value in others {
            assert_eq!(kept(&value), (false, value));
        }
    }

    #[test]
    fn what_nobody_could_read_is_refused_by_name_and_the_rest_of_a_checkpoint_is_kept_as_it_came() {
        let values = IndexMap::from([("half".to_owned(), msgpack(&[0x92, 1]))]);
        let error = divide("{}", values).expect_err("the list has two items");
        assert!(error.to_string().starts_with("channel half: "), "{error}");
        assert!(divide("[]", IndexMap::new()).is_err());
        let divided =
            divide(r#"{"v":1,"x":1e400,"channel_values":{"old":1}}"#, IndexMap::new()).expect("an object");
        assert_eq!(divided.checkpoint, r#"{"v":1,"x":1e400,"channel_values":{}}"#);
    }
}

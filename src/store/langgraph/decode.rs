//! Msgpack to values.
//!
//! **Invariant:** an element that [`Value`] cannot carry without loss becomes [`Value::Opaque`] with exactly
//! its bytes: an unknown object, a map with a key that is no text, a float that is not finite.
//! **Invariant:** no input recurses deeper than [`MAX_DEPTH`] or reserves more memory than it has bytes for.

use std::sync::Arc;

use bytes::Bytes;
use rmp::Marker;
use serde_json::Number;

use super::{Error, MAX_DEPTH, ext, message, python};
use crate::value::{Interrupt, Map, Name, Send, Value};

/// Older LangGraph versions had `Send` here.
const OLD_SEND_MODULE: &str = "langgraph.constants";

/// Elements to reserve memory for on the word of a header; nested headers that lie would add up.
const FIRST_RESERVE: usize = 1024;

/// The one value that `bytes` hold.
pub fn value(bytes: &[u8]) -> Result<Value, Error> {
    let mut reader = Reader { bytes, at: 0, depth: 0 };
    let value = reader.value()?;
    match reader.bytes.len() - reader.at {
        0 => Ok(value),
        rest => Err(Error::Trailing(rest)),
    }
}

/// The value in LangGraph's object `Overwrite`, if `bytes` are one.
pub(super) fn overwrite(bytes: &[u8]) -> Option<Value> {
    let mut outer = Reader { bytes, at: 0, depth: 0 };
    let Ok(Head::Ext(ext::KEYWORDS, payload)) = outer.head() else { return None };
    let mut inner = Reader { bytes: payload, at: 0, depth: 1 };
    let Ok(Head::Array(3)) = inner.head() else { return None };
    let class = (inner.text_or_none().ok()??, inner.text_or_none().ok()??);
    let fields = inner.value().ok()?;
    fields.as_map().filter(|_| class == (python::TYPES, python::OVERWRITE))?.get("value").cloned()
}

/// The start of an element; what follows a container's header is still to be read.
pub(super) enum Head<'a> {
    Nil,
    Bool(bool),
    Uint(u64),
    Int(i64),
    Float(f64),
    Text(&'a str),
    Bytes(&'a [u8]),
    Array(usize),
    Map(usize),
    Ext(i8, &'a [u8]),
}

/// Reads elements from a slice.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: u32,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Error> {
        let end = self.at.checked_add(len).ok_or(Error::Truncated)?;
        let taken = self.bytes.get(self.at..end).ok_or(Error::Truncated)?;
        self.at = end;
        Ok(taken)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        Ok(self.take(N)?.try_into().expect("take returns what was asked for"))
    }

    fn len8(&mut self) -> Result<usize, Error> {
        Ok(usize::from(u8::from_be_bytes(self.fixed()?)))
    }

    fn len16(&mut self) -> Result<usize, Error> {
        Ok(usize::from(u16::from_be_bytes(self.fixed()?)))
    }

    fn len32(&mut self) -> Result<usize, Error> {
        usize::try_from(u32::from_be_bytes(self.fixed()?)).map_err(|_| Error::Truncated)
    }

    fn text(&mut self, len: usize) -> Result<Head<'a>, Error> {
        std::str::from_utf8(self.take(len)?).map(Head::Text).map_err(|_| Error::NotUtf8)
    }

    fn ext(&mut self, len: usize) -> Result<Head<'a>, Error> {
        let code = i8::from_be_bytes(self.fixed()?);
        Ok(Head::Ext(code, self.take(len)?))
    }

    /// A container of `elements` elements; each takes a byte at least, so a length beyond the input is a lie.
    fn container(&self, elements: usize, head: Head<'a>) -> Result<Head<'a>, Error> {
        if elements > self.bytes.len() - self.at { Err(Error::Truncated) } else { Ok(head) }
    }

    fn array(&self, len: usize) -> Result<Head<'a>, Error> {
        self.container(len, Head::Array(len))
    }

    fn pairs(&self, len: usize) -> Result<Head<'a>, Error> {
        self.container(len.saturating_mul(2), Head::Map(len))
    }

    pub(super) fn head(&mut self) -> Result<Head<'a>, Error> {
        let [first] = self.fixed()?;
        match Marker::from_u8(first) {
            Marker::Null => Ok(Head::Nil),
            Marker::False => Ok(Head::Bool(false)),
            Marker::True => Ok(Head::Bool(true)),
            Marker::FixPos(n) => Ok(Head::Uint(n.into())),
            Marker::FixNeg(n) => Ok(Head::Int(n.into())),
            Marker::U8 => Ok(Head::Uint(u8::from_be_bytes(self.fixed()?).into())),
            Marker::U16 => Ok(Head::Uint(u16::from_be_bytes(self.fixed()?).into())),
            Marker::U32 => Ok(Head::Uint(u32::from_be_bytes(self.fixed()?).into())),
            Marker::U64 => Ok(Head::Uint(u64::from_be_bytes(self.fixed()?))),
            Marker::I8 => Ok(Head::Int(i8::from_be_bytes(self.fixed()?).into())),
            Marker::I16 => Ok(Head::Int(i16::from_be_bytes(self.fixed()?).into())),
            Marker::I32 => Ok(Head::Int(i32::from_be_bytes(self.fixed()?).into())),
            Marker::I64 => Ok(Head::Int(i64::from_be_bytes(self.fixed()?))),
            Marker::F32 => Ok(Head::Float(f32::from_be_bytes(self.fixed()?).into())),
            Marker::F64 => Ok(Head::Float(f64::from_be_bytes(self.fixed()?))),
            Marker::FixStr(len) => self.text(len.into()),
            Marker::Str8 => self.len8().and_then(|len| self.text(len)),
            Marker::Str16 => self.len16().and_then(|len| self.text(len)),
            Marker::Str32 => self.len32().and_then(|len| self.text(len)),
            Marker::Bin8 => self.len8().and_then(|len| self.take(len)).map(Head::Bytes),
            Marker::Bin16 => self.len16().and_then(|len| self.take(len)).map(Head::Bytes),
            Marker::Bin32 => self.len32().and_then(|len| self.take(len)).map(Head::Bytes),
            Marker::FixArray(len) => self.array(len.into()),
            Marker::Array16 => self.len16().and_then(|len| self.array(len)),
            Marker::Array32 => self.len32().and_then(|len| self.array(len)),
            Marker::FixMap(len) => self.pairs(len.into()),
            Marker::Map16 => self.len16().and_then(|len| self.pairs(len)),
            Marker::Map32 => self.len32().and_then(|len| self.pairs(len)),
            Marker::FixExt1 => self.ext(1),
            Marker::FixExt2 => self.ext(2),
            Marker::FixExt4 => self.ext(4),
            Marker::FixExt8 => self.ext(8),
            Marker::FixExt16 => self.ext(16),
            Marker::Ext8 => self.len8().and_then(|len| self.ext(len)),
            Marker::Ext16 => self.len16().and_then(|len| self.ext(len)),
            Marker::Ext32 => self.len32().and_then(|len| self.ext(len)),
            Marker::Reserved => Err(Error::Reserved),
        }
    }

    pub(super) fn value(&mut self) -> Result<Value, Error> {
        let start = self.at;
        Ok(match self.head()? {
            Head::Nil => Value::Null,
            Head::Bool(flag) => Value::Bool(flag),
            Head::Uint(number) => Value::Number(number.into()),
            Head::Int(number) => Value::Number(number.into()),
            Head::Float(float) => match Number::from_f64(float) {
                Some(number) => Value::Number(number),
                None => self.opaque_since(start),
            },
            Head::Text(text) => Value::String(text.into()),
            Head::Bytes(bytes) => Value::Bytes(Bytes::copy_from_slice(bytes)),
            Head::Array(len) => Value::List(Arc::new(self.items(len)?)),
            Head::Map(len) => match self.map_body(len)? {
                Some(map) => Value::Map(Arc::new(map)),
                None => {
                    self.at = start;
                    self.skip()?;
                    self.opaque_since(start)
                }
            },
            Head::Ext(code, payload) => match self.object(code, payload) {
                // A payload that cannot be read is the affair of whoever wrote it: its frame is sound.
                Ok(Some(value)) => value,
                Ok(None) | Err(_) => self.opaque_since(start),
            },
        })
    }

    fn opaque_since(&self, start: usize) -> Value {
        Value::Opaque(Bytes::copy_from_slice(&self.bytes[start..self.at]))
    }

    /// The `len` elements of an array whose header has been read.
    pub(super) fn items(&mut self, len: usize) -> Result<Vec<Value>, Error> {
        self.nested(|input| {
            let mut items = Vec::with_capacity(len.min(FIRST_RESERVE));
            for _ in 0..len {
                items.push(input.value()?);
            }
            Ok(items)
        })
    }

    /// The `len` pairs of a map whose header has been read; `None`, somewhere inside it, when a key is no text.
    pub(super) fn map_body(&mut self, len: usize) -> Result<Option<Map>, Error> {
        self.nested(|input| {
            let mut map = Map::with_capacity(len.min(FIRST_RESERVE));
            for _ in 0..len {
                let Head::Text(key) = input.head()? else { return Ok(None) };
                map.insert(Name::from(key), input.value()?);
            }
            Ok(Some(map))
        })
    }

    fn nested<T>(&mut self, body: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        if self.depth == MAX_DEPTH {
            return Err(Error::TooDeep);
        }
        self.depth += 1;
        let result = body(self);
        self.depth -= 1;
        result
    }

    /// Passes over one element without recursion; nesting does not matter to it.
    fn skip(&mut self) -> Result<(), Error> {
        let mut left: u64 = 1;
        while left > 0 {
            left -= 1;
            match self.head()? {
                Head::Array(len) => left += len as u64,
                Head::Map(len) => left += 2 * len as u64,
                Head::Nil | Head::Bool(_) | Head::Uint(_) | Head::Int(_) | Head::Float(_) => {}
                Head::Text(_) | Head::Bytes(_) | Head::Ext(..) => {}
            }
        }
        Ok(())
    }

    /// The object of an extension; `None` when it is not one of ours.
    fn object(&mut self, code: i8, payload: &'a [u8]) -> Result<Option<Value>, Error> {
        if self.depth == MAX_DEPTH {
            return Err(Error::TooDeep);
        }
        let mut inner = Reader { bytes: payload, at: 0, depth: self.depth + 1 };
        let Head::Array(len) = inner.head()? else { return Ok(None) };
        let (Some(module), Some(class)) = (inner.text_or_none()?, inner.text_or_none()?) else {
            return Ok(None);
        };
        let value = match (code, module, class, len) {
            (ext::SINGLE_ARG, python::BUILTINS, python::SET, 3) => inner.set()?,
            (ext::POSITIONAL, python::TYPES | OLD_SEND_MODULE, python::SEND, 3) => inner.send()?,
            (ext::KEYWORDS, python::TYPES, python::INTERRUPT, 3) => inner.interrupt()?,
            (ext::PYDANTIC, _, _, 4) => message::decode(&mut inner, module, class)?.map(Value::from),
            _ => None,
        };
        Ok(value.filter(|_| inner.at == payload.len()))
    }

    /// The text that comes next; `None` when the next element is no text.
    pub(super) fn text_or_none(&mut self) -> Result<Option<&'a str>, Error> {
        Ok(match self.head()? {
            Head::Text(text) => Some(text),
            Head::Nil | Head::Bool(_) | Head::Uint(_) | Head::Int(_) | Head::Float(_) => None,
            Head::Bytes(_) | Head::Array(_) | Head::Map(_) | Head::Ext(..) => None,
        })
    }

    fn set(&mut self) -> Result<Option<Value>, Error> {
        let Head::Array(len) = self.head()? else { return Ok(None) };
        Ok(Some(Value::Set(Arc::new(self.items(len)?))))
    }

    /// `[node, arg]`, or `[node, arg, timeout]`: the timeout is the runtime's affair and is not kept.
    fn send(&mut self) -> Result<Option<Value>, Error> {
        let Head::Array(len @ 2..=3) = self.head()? else { return Ok(None) };
        let Some(node) = self.text_or_none()? else { return Ok(None) };
        let arg = self.value()?;
        if len == 3 {
            self.skip()?;
        }
        Ok(Some(Value::Send(Arc::new(Send { node: node.into(), arg }))))
    }

    fn interrupt(&mut self) -> Result<Option<Value>, Error> {
        let Head::Map(len) = self.head()? else { return Ok(None) };
        let (mut id, mut value, mut response_schema) = (None, None, Value::Null);
        for _ in 0..len {
            match self.text_or_none()? {
                Some("value") => value = Some(self.value()?),
                Some("id") => id = self.text_or_none()?,
                Some("response_schema") => response_schema = self.value()?,
                _ => return Ok(None),
            }
        }
        let (Some(id), Some(value)) = (id, value) else { return Ok(None) };
        Ok(Some(Value::Interrupt(Arc::new(Interrupt { id: id.into(), value, response_schema }))))
    }
}

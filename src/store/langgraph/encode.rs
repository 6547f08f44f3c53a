//! Values to msgpack, with the bytes that Python's ormsgpack would write.
//!
//! **Invariant:** the smallest form of every integer, length and extension header is chosen, as ormsgpack does.

use rmp::encode as mp;

use super::{Error, MAX_DEPTH, MAX_VALUE_BYTES, ext, message, python};
use crate::value::{Interrupt, Map, Send, Value};

/// Length of the extension header that is reserved before the payload is known: `c8`, two bytes of length,
/// one of code. Most messages have 256 to 65535 bytes, and then nothing has to move.
const RESERVED_HEADER: usize = 4;

/// Appends the msgpack of `value` to `out`.
pub fn value(value: &Value, out: &mut Vec<u8>) -> Result<(), Error> {
    let start = out.len();
    let mut writer = Writer { out, depth: 0 };
    writer.value(value)?;
    if out.len() - start > MAX_VALUE_BYTES { Err(Error::TooLarge) } else { Ok(()) }
}

/// Appends to a buffer and counts the nesting.
pub(super) struct Writer<'a> {
    out: &'a mut Vec<u8>,
    depth: u32,
}

impl Writer<'_> {
    pub(super) fn value(&mut self, value: &Value) -> Result<(), Error> {
        match value {
            Value::Null => self.nil(),
            Value::Bool(flag) => never_fails(mp::write_bool(self.out, *flag)),
            Value::Number(number) => self.number(number),
            Value::String(text) => self.text(text),
            Value::Bytes(bytes) => never_fails(mp::write_bin(self.out, bytes)),
            Value::List(items) => return self.list(items),
            Value::Map(map) => return self.map(map),
            Value::Message(message) => return message::encode(self, message),
            Value::Set(items) => return self.set(items),
            Value::Send(send) => return self.send(send),
            Value::Interrupt(interrupt) => return self.interrupt(interrupt),
            Value::Opaque(bytes) => self.out.extend_from_slice(bytes),
        }
        Ok(())
    }

    pub(super) fn nil(&mut self) {
        never_fails(mp::write_nil(self.out));
    }

    pub(super) fn text(&mut self, text: &str) {
        never_fails(mp::write_str(self.out, text));
    }

    pub(super) fn uint(&mut self, number: u64) {
        never_fails(mp::write_uint(self.out, number));
    }

    pub(super) fn array_len(&mut self, len: usize) -> Result<(), Error> {
        never_fails(mp::write_array_len(self.out, u32::try_from(len).map_err(|_| Error::TooLarge)?));
        Ok(())
    }

    pub(super) fn map_len(&mut self, len: usize) -> Result<(), Error> {
        never_fails(mp::write_map_len(self.out, u32::try_from(len).map_err(|_| Error::TooLarge)?));
        Ok(())
    }

    fn number(&mut self, number: &serde_json::Number) {
        if let Some(positive) = number.as_u64() {
            self.uint(positive);
        } else if let Some(negative) = number.as_i64() {
            never_fails(mp::write_sint(self.out, negative));
        } else {
            let float = number.as_f64().expect("without arbitrary precision a number is u64, i64 or f64");
            never_fails(mp::write_f64(self.out, float));
        }
    }

    pub(super) fn list(&mut self, items: &[Value]) -> Result<(), Error> {
        self.nested(|out| {
            out.array_len(items.len())?;
            items.iter().try_for_each(|item| out.value(item))
        })
    }

    pub(super) fn map(&mut self, map: &Map) -> Result<(), Error> {
        self.nested(|out| {
            out.map_len(map.len())?;
            map.iter().try_for_each(|(key, value)| {
                out.text(key);
                out.value(value)
            })
        })
    }

    fn set(&mut self, items: &[Value]) -> Result<(), Error> {
        self.object(ext::SINGLE_ARG, |out| {
            out.class(3, python::BUILTINS, python::SET)?;
            out.list(items)
        })
    }

    fn send(&mut self, send: &Send) -> Result<(), Error> {
        self.object(ext::POSITIONAL, |out| {
            out.class(3, python::TYPES, python::SEND)?;
            out.array_len(2)?;
            out.text(&send.node);
            out.value(&send.arg)
        })
    }

    fn interrupt(&mut self, interrupt: &Interrupt) -> Result<(), Error> {
        self.object(ext::KEYWORDS, |out| {
            out.class(3, python::TYPES, python::INTERRUPT)?;
            out.map_len(3)?;
            out.text("value");
            out.value(&interrupt.value)?;
            out.text("id");
            out.text(&interrupt.id);
            out.text("response_schema");
            out.value(&interrupt.response_schema)
        })
    }

    /// The start of an object's payload: an array of `len` whose first elements are module and class.
    pub(super) fn class(&mut self, len: usize, module: &str, class: &str) -> Result<(), Error> {
        self.array_len(len)?;
        self.text(module);
        self.text(class);
        Ok(())
    }

    /// An extension whose payload `body` writes.
    pub(super) fn object(
        &mut self,
        code: i8,
        body: impl FnOnce(&mut Self) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let start = self.out.len();
        self.out.extend_from_slice(&[0; RESERVED_HEADER]);
        self.nested(body)?;
        let payload = self.out.len() - start - RESERVED_HEADER;
        let mut header = [0; 6];
        let mut rest = &mut header[..];
        let len = u32::try_from(payload).map_err(|_| Error::TooLarge)?;
        mp::write_ext_meta(&mut rest, len, code).expect("six bytes hold the longest header");
        let used = 6 - rest.len();
        if used == RESERVED_HEADER {
            self.out[start..start + used].copy_from_slice(&header[..used]);
        } else {
            self.out.splice(start..start + RESERVED_HEADER, header[..used].iter().copied());
        }
        Ok(())
    }

    fn nested(&mut self, body: impl FnOnce(&mut Self) -> Result<(), Error>) -> Result<(), Error> {
        if self.depth == MAX_DEPTH {
            return Err(Error::TooDeep);
        }
        self.depth += 1;
        let result = body(self);
        self.depth -= 1;
        result
    }
}

fn never_fails<T, E: std::fmt::Debug>(result: Result<T, E>) {
    result.expect("writing to a vector does not fail");
}

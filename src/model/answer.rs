//! What the answers of all dialects have in common: how far one is, what can be wrong with it, and its limits. Pure.
//!
//! **Invariant:** a reply's text is the emitted pieces joined.

use std::{collections::VecDeque, sync::Arc};

use serde_json::Value as Json;

use super::{Chunk, Reply};
use crate::value::Value;

/// Most bytes of text and arguments of one reply; ten times what the longest answers have.
pub(super) const MAX_REPLY_BYTES: usize = 8 << 20;
/// Most tool calls of one reply; OpenAI's own limit of tools is the same.
pub(super) const MAX_TOOL_CALLS: usize = 128;

/// Why an answer cannot be read on.
#[derive(Debug, PartialEq)]
pub(super) enum Fault {
    /// The provider reports an error in the middle of the answer.
    Complaint(Json),
    /// The answer is not what the protocol allows.
    Unreadable(String),
}

/// How far the answer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Progress {
    /// Nothing of the answer came yet.
    #[default]
    Silent,
    /// It began, and would be cut if it ended now.
    Started,
    /// It is complete; its usage may follow.
    Finished,
    /// The provider said that nothing follows.
    Closed,
}

/// An answer as far as it came, in one dialect.
pub(super) trait Assemble: Send {
    /// How far the answer is.
    fn progress(&self) -> Progress;

    /// Nothing follows.
    fn close(&mut self);

    /// Takes the data of one event; what it brings of the text goes to `ready`.
    fn event(&mut self, name: &str, data: &str, ready: &mut VecDeque<Chunk>) -> Result<(), Fault>;

    /// Takes a whole answer that came as one JSON object.
    fn whole(&mut self, body: &[u8], ready: &mut VecDeque<Chunk>) -> Result<(), Fault>;

    /// The reply. `earlier_calls` is how many tool calls the conversation has already: calls that came without
    /// an id are numbered on from there, so that their ids are unique in it.
    fn finish(self: Box<Self>, earlier_calls: usize) -> Reply;
}

/// The bytes a reply has, and may have.
#[derive(Debug, Default)]
pub(super) struct Size(usize);

impl Size {
    /// Counts `bytes` more; fails beyond [`MAX_REPLY_BYTES`].
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Fault> {
        self.0 += bytes;
        if self.0 > MAX_REPLY_BYTES {
            return Err(Fault::Unreadable(format!("the answer is longer than {MAX_REPLY_BYTES} bytes")));
        }
        Ok(())
    }
}

/// Too many tool calls.
pub(super) fn too_many_calls() -> Fault {
    Fault::Unreadable(format!("the answer has more than {MAX_TOOL_CALLS} tool calls"))
}

/// Where a JSON text is wrong, without what stands there.
pub(super) fn unreadable(what: &str, error: &serde_json::Error) -> Fault {
    let (kind, column) = (error.classify(), error.column());
    Fault::Unreadable(format!("{what} ({kind:?} error in line {}, column {column})", error.line()))
}

/// The arguments of a call, or what is wrong with it.
pub(super) fn arguments(name: &str, text: &str) -> Result<crate::value::Map, String> {
    if name.is_empty() {
        return Err("the call names no tool".into());
    }
    if text.trim().is_empty() {
        return Ok(crate::value::Map::new());
    }
    match serde_json::from_str::<Json>(text).map(Value::from) {
        Ok(Value::Map(map)) => Ok(Arc::unwrap_or_clone(map)),
        Ok(_) => Err("the arguments are not a JSON object".into()),
        Err(error) => Err(format!("the arguments are not valid JSON: {error}")),
    }
}

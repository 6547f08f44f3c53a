//! LangGraph's storage format: values, checkpoints and writes to and from the rows of its tables.
//!
//! **Invariant:** what is written here, Python's `PostgresSaver` reads as the objects it knows, and what is
//! read here and not understood is written back byte for byte.

mod checkpoint;
mod decode;
mod encode;
#[cfg(test)]
mod golden;
mod message;
mod rows;
mod typed;

pub(crate) use checkpoint::{Sends, adopt_sends};
pub use decode::value as decode_value;
pub use encode::value as encode_value;
pub(crate) use rows::{BlobRow, CheckpointRow, Rows, StoredBlob, StoredRow, StoredWrite, WriteRow, typed};
pub use typed::Typed;
pub(crate) use typed::{check, divide, inline};

/// Deepest nesting of lists, maps and objects. JSON parsers of both sides stop at 128 to 1024; the decoder
/// recurses, and 256 levels fit the 2 MiB stack of a worker thread in a debug build.
pub const MAX_DEPTH: u32 = 256;

/// Largest encoded value in bytes. Postgres refuses a message of 1 GiB; a batch must stay far below.
pub const MAX_VALUE_BYTES: usize = 256 << 20;

/// Why bytes are not a value, or a value not bytes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The bytes end inside a value.
    #[error("the bytes end inside a value")]
    Truncated,
    /// Bytes follow the value.
    #[error("{0} bytes follow the value")]
    Trailing(usize),
    /// A text is not UTF-8.
    #[error("a text is not UTF-8")]
    NotUtf8,
    /// Byte 0xc1, which msgpack never uses.
    #[error("byte 0xc1 starts no value")]
    Reserved,
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// Larger than [`MAX_VALUE_BYTES`].
    #[error("larger than {MAX_VALUE_BYTES} bytes")]
    TooLarge,
    /// A blob of a type that this crate does not read, such as an encrypted one.
    #[error("unknown blob type {0:?}")]
    UnknownType(String),
    /// JSON that is not what its column must hold.
    #[error("{0}")]
    Json(String),
}

/// The msgpack extension codes of LangGraph's `JsonPlusSerializer`.
mod ext {
    /// `[module, class, arg]`.
    pub(super) const SINGLE_ARG: i8 = 0;
    /// `[module, class, [args]]`.
    pub(super) const POSITIONAL: i8 = 1;
    /// `[module, class, {kwargs}]`.
    pub(super) const KEYWORDS: i8 = 2;
    /// `[module, class, {fields}, "model_validate_json"]`.
    pub(super) const PYDANTIC: i8 = 5;
}

/// Modules and classes of the objects this crate reads and writes.
mod python {
    /// Module of `set`.
    pub(super) const BUILTINS: &str = "builtins";
    /// The class `set`.
    pub(super) const SET: &str = "set";
    /// Module of `Send` and `Interrupt`.
    pub(super) const TYPES: &str = "langgraph.types";
    /// The class `Send`.
    pub(super) const SEND: &str = "Send";
    /// The class `Interrupt`.
    pub(super) const INTERRUPT: &str = "Interrupt";
    /// The class `Overwrite`.
    pub(super) const OVERWRITE: &str = "Overwrite";
    /// Last element of a pydantic object.
    pub(super) const VALIDATE: &str = "model_validate_json";
}

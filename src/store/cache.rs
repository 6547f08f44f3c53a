//! Port of the cache of nodes: what nodes wrote, by a digest of what they do and read.
//!
//! Shared by all threads and processes, and fenced by nobody: an entry says the same whoever writes it.

use std::{fmt, time::Duration};

use async_trait::async_trait;

use super::{Error, langgraph};
use crate::{
    encoding::hex,
    value::{Name, Value},
};

/// Largest encoded entry in bytes: the longest answers of models are about 100 KB, and the table is read by everybody.
pub const MAX_CACHED_BYTES: usize = 256 << 10;

/// What an entry is found by: SHA-256 of what its node does and of the inputs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheKey(pub [u8; 32]);

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(self.0))
    }
}

/// What a node wrote.
#[derive(Clone, Debug)]
pub struct CacheEntry {
    /// Where it is found.
    pub key: CacheKey,
    /// The node, for operators.
    pub node: Name,
    /// `[[channel, value], …]`.
    pub value: Value,
    /// How long it may be used.
    pub ttl: Duration,
}

impl CacheEntry {
    /// The value in LangGraph's bytes. Fails with [`Error::Unstorable`] when it cannot be encoded or is larger than
    /// [`MAX_CACHED_BYTES`].
    pub(crate) fn encode(&self) -> Result<Vec<u8>, Error> {
        let unstorable =
            |reason: String| Error::Unstorable { channel: format!("cache of {}", self.node), reason };
        let mut bytes = Vec::new();
        langgraph::encode_value(&self.value, &mut bytes).map_err(|error| unstorable(error.to_string()))?;
        if bytes.len() > MAX_CACHED_BYTES {
            let reason = format!("it has {} bytes, at most {MAX_CACHED_BYTES} are kept", bytes.len());
            return Err(unstorable(reason));
        }
        Ok(bytes)
    }

    /// Reads what [`CacheEntry::encode`] made.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Value, Error> {
        let corrupt = |error: langgraph::Error| Error::Corrupt {
            thread_id: String::new(),
            what: "cache entry",
            reason: error.to_string(),
        };
        langgraph::decode_value(bytes).map_err(corrupt)
    }
}

/// The cache of nodes.
#[async_trait]
pub trait NodeCache: Send + Sync {
    /// The value of the entry, unless it is too old.
    async fn cached(&self, key: &CacheKey) -> Result<Option<Value>, Error>;

    /// Keeps an entry in place of the one with its key.
    async fn keep(&self, entry: &CacheEntry) -> Result<(), Error>;

    /// Removes at most `limit` entries that are too old; how many it has removed.
    async fn expire_cache(&self, limit: u32) -> Result<u64, Error>;
}

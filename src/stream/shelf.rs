//! Port of a shelf: values that all processes share and that may be gone at any time.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::Instant;

/// The shelf does not answer.
#[derive(Debug, thiserror::Error)]
#[error("the shelf does not answer: {0}")]
pub struct Away(pub String);

/// Where values stand by their keys.
#[async_trait]
pub trait Shelf: Send + Sync {
    /// The value under `key`; `None` when there is none, or one of more than `most` bytes.
    async fn get(&self, key: &str, most: usize) -> Result<Option<Vec<u8>>, Away>;

    /// Puts a value in place of the one under `key`, for as long as `ttl`.
    async fn put(&self, key: &str, value: Vec<u8>, ttl: Duration) -> Result<(), Away>;
}

/// A shelf in this process, without bounds: for tests.
#[derive(Debug, Default)]
pub struct MemoryShelf {
    values: Mutex<HashMap<String, (Vec<u8>, Instant)>>,
}

#[async_trait]
impl Shelf for MemoryShelf {
    async fn get(&self, key: &str, most: usize) -> Result<Option<Vec<u8>>, Away> {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let value = values.get(key).filter(|(value, until)| value.len() <= most && *until > Instant::now());
        Ok(value.map(|(value, _)| value.clone()))
    }

    async fn put(&self, key: &str, value: Vec<u8>, ttl: Duration) -> Result<(), Away> {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        values.insert(key.to_owned(), (value, Instant::now() + ttl));
        Ok(())
    }
}

//! A shelf on the Redis-protocol server, over a connection of its own: large values must not hold up events.

use std::time::Duration;

use async_trait::async_trait;
use fred::{interfaces::KeysInterface, types::Expiration};

use super::{Config, Error, link::Link};
use crate::stream::shelf::{Away, Shelf};

/// Values under their keys as plain strings with an expiry.
pub struct DragonflyShelf {
    link: Link,
    patience: Duration,
}

impl DragonflyShelf {
    /// Starts to connect; whether that succeeds shows later. Must be called inside a tokio runtime.
    pub fn open(config: Config) -> Result<Self, Error> {
        let patience = config.command_timeout;
        Ok(Self { link: Link::open(config)?, patience })
    }
}

fn away(error: fred::error::Error) -> Away {
    Away(error.to_string())
}

#[async_trait]
impl Shelf for DragonflyShelf {
    async fn get(&self, key: &str, most: usize) -> Result<Option<Vec<u8>>, Away> {
        // A range has a bound, whatever somebody else has put there; one more byte tells that it was cut.
        let found: Result<bytes::Bytes, _> = self.link.client(self.patience).getrange(key, 0, most).await;
        self.link.note(found.as_ref().err());
        let found = found.map_err(away)?;
        Ok((!found.is_empty() && found.len() <= most).then(|| found.to_vec()))
    }

    async fn put(&self, key: &str, value: Vec<u8>, ttl: Duration) -> Result<(), Away> {
        let millis = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        let expiry = Some(Expiration::PX(millis.max(1)));
        let client = self.link.client(self.patience);
        let put = client.set::<(), _, _>(key, value.as_slice(), expiry, None, false).await;
        self.link.note(put.as_ref().err());
        put.map_err(away)
    }
}

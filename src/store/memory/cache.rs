//! The cache of nodes.

use async_trait::async_trait;

use super::{
    MemoryStore, count,
    tables::{Claimant, Tables},
};
use crate::{
    ids::UnixNanos,
    store::{CacheEntry, CacheKey, Error, NodeCache},
    value::Value,
};

/// An entry as it is stored.
pub(super) struct Cached {
    writes: Vec<u8>,
    expires: UnixNanos,
}

/// Counts as no write: a run goes on without its cache.
#[async_trait]
impl NodeCache for MemoryStore {
    async fn cached(&self, key: &CacheKey) -> Result<Option<Value>, Error> {
        let tables = self.tables()?;
        tables.cached(key, &self.claimant()).map(CacheEntry::decode).transpose()
    }

    async fn keep(&self, entry: &CacheEntry) -> Result<(), Error> {
        let writes = entry.encode()?;
        self.tables()?.keep(entry, writes, &self.claimant());
        Ok(())
    }

    async fn expire_cache(&self, limit: u32) -> Result<u64, Error> {
        Ok(self.tables()?.expire_cache(count(limit), &self.claimant()))
    }
}

impl Tables {
    fn cached(&self, key: &CacheKey, by: &Claimant<'_>) -> Option<&[u8]> {
        let cached = self.node_cache.get(key).filter(|cached| cached.expires > by.now)?;
        Some(&cached.writes)
    }

    fn keep(&mut self, entry: &CacheEntry, writes: Vec<u8>, by: &Claimant<'_>) {
        self.node_cache.insert(entry.key, Cached { writes, expires: by.after(entry.ttl) });
    }

    fn expire_cache(&mut self, limit: usize, by: &Claimant<'_>) -> u64 {
        let mut old: Vec<_> = self.node_cache.iter().map(|(key, cached)| (cached.expires, *key)).collect();
        old.retain(|(expires, _)| *expires <= by.now);
        old.sort_unstable();
        old.truncate(limit);
        for (_, key) in &old {
            self.node_cache.remove(key);
        }
        u64::try_from(old.len()).expect("a count fits 64 bits")
    }
}

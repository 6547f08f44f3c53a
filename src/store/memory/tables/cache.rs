//! The cache of nodes.

use super::{Claimant, Tables};
use crate::{
    ids::UnixNanos,
    store::{CacheEntry, CacheKey},
};

/// An entry as it is stored.
pub(super) struct Cached {
    writes: Vec<u8>,
    expires: UnixNanos,
}

impl Tables {
    pub(in crate::store::memory) fn cached(&self, key: &CacheKey, by: &Claimant<'_>) -> Option<&[u8]> {
        let cached = self.node_cache.get(key).filter(|cached| cached.expires > by.now)?;
        Some(&cached.writes)
    }

    pub(in crate::store::memory) fn keep(&mut self, entry: &CacheEntry, writes: Vec<u8>, by: &Claimant<'_>) {
        self.node_cache.insert(entry.key, Cached { writes, expires: by.after(entry.ttl) });
    }

    pub(in crate::store::memory) fn expire_cache(&mut self, limit: usize, by: &Claimant<'_>) -> u64 {
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

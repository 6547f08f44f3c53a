//! The cache of nodes, as rows.

use async_trait::async_trait;
use sqlx::SqliteConnection;

use super::{SqliteStore, claims::Claimant, failure::Failure, rows::stored_time};
use crate::{
    store::{CacheEntry, CacheKey, Error, NodeCache},
    value::Value,
};

const CACHED: &str = "SELECT writes FROM executor_node_cache WHERE key = ? AND expires_at > ?";

const KEEP: &str = "INSERT OR REPLACE INTO executor_node_cache (key, node, writes, created_at, expires_at) \
    VALUES (?, ?, ?, ?, ?)";

const EXPIRE: &str = "DELETE FROM executor_node_cache WHERE key IN ( \
    SELECT key FROM executor_node_cache WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)";

/// Entries that are too old and go when one comes: nobody else removes them from a file that only `run` uses. More
/// than come, so that they get fewer; few, so that the write lock is held shortly.
const SWEPT: u32 = 8;

#[async_trait]
impl NodeCache for SqliteStore {
    async fn cached(&self, key: &CacheKey) -> Result<Option<Value>, Error> {
        let (key, by) = (*key, self.claimant());
        let writes = self.link.read(move |db| Box::pin(async move { cached(db, &key, &by).await })).await?;
        writes.as_deref().map(CacheEntry::decode).transpose()
    }

    async fn keep(&self, entry: &CacheEntry) -> Result<(), Error> {
        let (writes, entry, by) = (entry.encode()?, entry.clone(), self.claimant());
        self.link.write(move |db| Box::pin(async move { keep(db, &entry, &writes, &by).await })).await
    }

    async fn expire_cache(&self, limit: u32) -> Result<u64, Error> {
        let by = self.claimant();
        self.link.write(move |db| Box::pin(async move { expire(db, limit, &by).await })).await
    }
}

async fn cached(
    db: &mut SqliteConnection,
    key: &CacheKey,
    by: &Claimant,
) -> Result<Option<Vec<u8>>, Failure> {
    let cached = sqlx::query_scalar(CACHED).bind(&key.0[..]).bind(stored_time(by.now));
    Ok(cached.fetch_optional(db).await?)
}

async fn keep(
    db: &mut SqliteConnection,
    entry: &CacheEntry,
    writes: &[u8],
    by: &Claimant,
) -> Result<(), Failure> {
    sqlx::query(KEEP)
        .bind(&entry.key.0[..])
        .bind(&*entry.node)
        .bind(writes)
        .bind(stored_time(by.now))
        .bind(by.after(entry.ttl))
        .execute(&mut *db)
        .await?;
    expire(db, SWEPT, by).await.map(drop)
}

async fn expire(db: &mut SqliteConnection, limit: u32, by: &Claimant) -> Result<u64, Failure> {
    let removed = sqlx::query(EXPIRE).bind(stored_time(by.now)).bind(limit).execute(db).await?;
    Ok(removed.rows_affected())
}

//! The cache of nodes.

use async_trait::async_trait;
use sqlx::Row;

use super::{
    PostgresStore,
    statement::{millis, plain},
};
use crate::{
    store::{CacheEntry, CacheKey, Error, NodeCache},
    value::Value,
};

const CACHED: &str =
    "SELECT writes FROM executor_node_cache WHERE key = $1 AND expires_at > clock_timestamp()";

const KEEP: &str = "INSERT INTO executor_node_cache (key, node, writes, expires_at) \
    VALUES ($1, $2, $3, clock_timestamp() + $4 * interval '1 millisecond') \
    ON CONFLICT (key) DO UPDATE SET writes = excluded.writes, node = excluded.node, \
        created_at = clock_timestamp(), expires_at = excluded.expires_at";

/// Processes that remove at the same time take different rows.
const EXPIRE: &str = "WITH old AS ( \
        DELETE FROM executor_node_cache x WHERE x.key = ANY (ARRAY( \
            SELECT c.key FROM executor_node_cache c WHERE c.expires_at <= clock_timestamp() \
            ORDER BY c.expires_at LIMIT $1 FOR UPDATE SKIP LOCKED)) RETURNING 1) \
    SELECT count(*) FROM old";

#[async_trait]
impl NodeCache for PostgresStore {
    async fn cached(&self, key: &CacheKey) -> Result<Option<Value>, Error> {
        let key = *key;
        let rows = self.link.rows(move || sqlx::query(CACHED).bind(key.0.to_vec())).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        CacheEntry::decode(row.try_get(0).map_err(corrupt)?).map(Some)
    }

    async fn keep(&self, entry: &CacheEntry) -> Result<(), Error> {
        let (bytes, key, node, ttl) = (entry.encode()?, entry.key, plain(&entry.node), millis(entry.ttl));
        let statement =
            move || sqlx::query(KEEP).bind(key.0.to_vec()).bind(node.clone()).bind(bytes.clone()).bind(ttl);
        self.link.rows(statement).await.map(drop)
    }

    async fn expire_cache(&self, limit: u32) -> Result<u64, Error> {
        let rows = self.link.rows(move || sqlx::query(EXPIRE).bind(i64::from(limit))).await?;
        let removed: i64 = rows.first().map_or(Ok(0), |row| row.try_get(0)).map_err(corrupt)?;
        Ok(u64::try_from(removed).unwrap_or_default())
    }
}

fn corrupt(error: sqlx::Error) -> Error {
    Error::Corrupt { thread_id: String::new(), what: "cache entry", reason: error.to_string() }
}

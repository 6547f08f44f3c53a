//! Dead letters, deadlines, looks and repairs by hand, and the removal of what is old, in memory.

use std::time::Duration;

use async_trait::async_trait;

use super::{MemoryStore, count};
use crate::{
    ids::{JobId, ThreadId},
    store::{
        CacheEntry, CacheKey, DeadLetter, Deadline, Deadlines, Error, Expired, Grace, Inspect, JobView,
        Letter, LetterFilter, Letters, NodeCache, Overview, Replayed, Retention, Trail, Waiting, WholeLetter,
    },
    value::Value,
};

#[async_trait]
impl Letters for MemoryStore {
    async fn bury(&self, letter: &DeadLetter) -> Result<bool, Error> {
        self.write(|tables| Ok(tables.bury(letter, &self.claimant())))
    }

    async fn letters(&self, filter: &LetterFilter, limit: u32) -> Result<Vec<Letter>, Error> {
        Ok(self.tables()?.list_letters(filter, count(limit), &self.claimant()))
    }

    async fn letter(&self, id: i64) -> Result<Option<WholeLetter>, Error> {
        Ok(self.tables()?.letter(id))
    }

    async fn mark_replayed(&self, replayed: &Replayed) -> Result<bool, Error> {
        self.write(|tables| Ok(tables.mark_replayed(replayed, &self.claimant())))
    }

    async fn discard(&self, ids: &[i64]) -> Result<u64, Error> {
        self.write(|tables| Ok(tables.discard(ids, &self.claimant())))
    }
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

/// Removals count as no write: how often they happen depends on time.
#[async_trait]
impl Inspect for MemoryStore {
    async fn job(&self, job_id: &JobId) -> Result<Option<JobView>, Error> {
        Ok(self.tables()?.view(job_id))
    }

    async fn trail(&self, thread_id: &ThreadId, job_id: &JobId) -> Result<Trail, Error> {
        Ok(self.tables()?.trail(thread_id, job_id))
    }

    async fn overview(&self, grace: &Grace) -> Result<Overview, Error> {
        Ok(self.tables()?.overview(grace, &self.claimant()))
    }

    async fn waiting(&self, age: Duration, limit: u32) -> Result<Vec<Waiting>, Error> {
        Ok(self.tables()?.waiting(age, count(limit), &self.claimant()))
    }

    async fn copied(&self, job_id: &JobId, stream_seq: u64) -> Result<(), Error> {
        self.write(|tables| {
            tables.copied(job_id, stream_seq);
            Ok(())
        })
    }

    async fn free_dead(&self, grace: Duration, limit: u32) -> Result<Vec<ThreadId>, Error> {
        self.write(|tables| Ok(tables.free_dead(grace, count(limit), &self.claimant())))
    }

    async fn expire(&self, retention: &Retention, limit: u32) -> Result<Expired, Error> {
        Ok(self.tables()?.expire(retention, count(limit), &self.claimant()))
    }
}

#[async_trait]
impl Deadlines for MemoryStore {
    async fn set_deadline(&self, deadline: &Deadline, after: Duration) -> Result<(), Error> {
        self.write(|tables| {
            tables.set_deadline(deadline, after, &self.claimant());
            Ok(())
        })
    }

    async fn passed(&self, limit: u32) -> Result<Vec<Deadline>, Error> {
        Ok(self.tables()?.passed(count(limit), &self.claimant()))
    }

    async fn clear_deadline(&self, thread_id: &ThreadId, interrupt_id: &str) -> Result<(), Error> {
        self.write(|tables| {
            tables.clear_deadline(thread_id, interrupt_id);
            Ok(())
        })
    }
}

//! Dead letters, looks and repairs by hand, and the removal of what is old, in SQLite.

use std::time::Duration;

use async_trait::async_trait;

use super::{SqliteStore, inspect, letters};
use crate::{
    ids::{JobId, ThreadId},
    store::{
        DeadLetter, Error, Expired, Grace, Inspect, JobView, Letter, LetterFilter, Letters, Overview,
        Replayed, Retention, Trail, Waiting, WholeLetter,
    },
};

#[async_trait]
impl Letters for SqliteStore {
    async fn bury(&self, letter: &DeadLetter) -> Result<bool, Error> {
        let (letter, by) = (letter.clone(), self.claimant());
        self.link.write(move |db| Box::pin(async move { letters::bury(db, &letter, &by).await })).await
    }

    async fn letters(&self, filter: &LetterFilter, limit: u32) -> Result<Vec<Letter>, Error> {
        let (filter, by) = (filter.clone(), self.claimant());
        self.link
            .read(move |db| Box::pin(async move { letters::letters(db, &filter, limit, &by).await }))
            .await
    }

    async fn letter(&self, id: i64) -> Result<Option<WholeLetter>, Error> {
        self.link.read(move |db| Box::pin(async move { letters::letter(db, id).await })).await
    }

    async fn mark_replayed(&self, replayed: &Replayed) -> Result<bool, Error> {
        let (replayed, by) = (replayed.clone(), self.claimant());
        self.link
            .write(move |db| Box::pin(async move { letters::mark_replayed(db, &replayed, &by).await }))
            .await
    }

    async fn discard(&self, ids: &[i64]) -> Result<u64, Error> {
        let (ids, by) = (ids.to_vec(), self.claimant());
        self.link.write(move |db| Box::pin(async move { letters::discard(db, &ids, &by).await })).await
    }
}

#[async_trait]
impl Inspect for SqliteStore {
    async fn job(&self, job_id: &JobId) -> Result<Option<JobView>, Error> {
        let job_id = job_id.clone();
        self.link.read(move |db| Box::pin(async move { inspect::job(db, &job_id).await })).await
    }

    async fn trail(&self, thread_id: &ThreadId, job_id: &JobId) -> Result<Trail, Error> {
        let (thread_id, job_id) = (thread_id.clone(), job_id.clone());
        self.link.read(move |db| Box::pin(async move { inspect::trail(db, &thread_id, &job_id).await })).await
    }

    async fn overview(&self, grace: &Grace) -> Result<Overview, Error> {
        let (grace, by) = (*grace, self.claimant());
        self.link.read(move |db| Box::pin(async move { inspect::overview(db, &grace, &by).await })).await
    }

    async fn waiting(&self, age: Duration, limit: u32) -> Result<Vec<Waiting>, Error> {
        let by = self.claimant();
        self.link.read(move |db| Box::pin(async move { inspect::waiting(db, age, limit, &by).await })).await
    }

    async fn copied(&self, job_id: &JobId, stream_seq: u64) -> Result<(), Error> {
        let job_id = job_id.clone();
        self.link
            .write(move |db| Box::pin(async move { inspect::copied(db, &job_id, stream_seq).await }))
            .await
    }

    async fn free_dead(&self, grace: Duration, limit: u32) -> Result<Vec<ThreadId>, Error> {
        let by = self.claimant();
        self.link
            .write(move |db| Box::pin(async move { inspect::free_dead(db, grace, limit, &by).await }))
            .await
    }

    async fn expire(&self, retention: &Retention, limit: u32) -> Result<Expired, Error> {
        let (retention, by) = (*retention, self.claimant());
        self.link
            .write(move |db| Box::pin(async move { inspect::expire(db, &retention, limit, &by).await }))
            .await
    }
}

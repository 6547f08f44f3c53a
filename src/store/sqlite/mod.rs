//! Durable state in one SQLite file: for runs without any server.
//!
//! **Invariant:** every call is one transaction; one that writes holds the only write lock from its beginning.
//! **Invariant:** values go through LangGraph's codec as in Postgres; several processes may share the file.

mod admin;
mod agents;
mod cache;
mod checkpoints;
mod claims;
mod deadlines;
mod failure;
mod inspect;
mod jobs;
mod letters;
mod link;
mod rows;
mod thread_changes;
mod threads;
mod unfinished;
mod upkeep;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

pub use link::Place;
pub use unfinished::Unfinished;

use self::{claims::Claimant, link::Link, upkeep::Sweep};
use super::{
    Cancel, Checkpoints, Claim, Commit, Doomed, EffectRow, Ending, Error, Finish, Jobs, Known,
    MAX_STATE_BYTES, Met, Offer, Record, Renewed, Saved, StoredResult, Target, Upkeep, Verdict,
    langgraph::Rows,
};
use crate::ids::{CheckpointId, Clock, Epoch, JobId, Namespace, TaskId, ThreadId};

/// Where the file is, and on what terms threads are claimed.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the database is.
    pub place: Place,
    /// How long a claim lasts unless it is renewed.
    pub lease: Duration,
    /// After how many owners that vanished without progress a job is given up.
    pub max_crashes: usize,
    /// Most bytes of one commit.
    pub max_state_bytes: usize,
}

impl Config {
    /// As the defaults of the Postgres store.
    pub fn at(place: Place) -> Self {
        let lease = Duration::from_secs(5);
        Self { place, lease, max_crashes: 5, max_state_bytes: MAX_STATE_BYTES }
    }
}

/// One process's view of a database file.
pub struct SqliteStore {
    link: Link,
    clock: Arc<dyn Clock>,
    owner: Arc<str>,
    config: Config,
}

impl SqliteStore {
    /// Opens the database for `owner`, which names one incarnation of a process, and brings its schema up to date.
    ///
    /// Fails with [`Error::Unavailable`] when the file cannot be opened and with [`Error::Migration`] when it is
    /// something else.
    pub async fn open(config: Config, clock: Arc<dyn Clock>, owner: &str) -> Result<Self, Error> {
        let link = Link::open(&config.place).await?;
        Ok(Self { link, clock, owner: owner.into(), config })
    }

    /// Waits for every call that was made, then closes the file.
    pub async fn close(&self) {
        self.link.close().await;
    }

    fn claimant(&self) -> Claimant {
        Claimant {
            owner: self.owner.clone(),
            now: self.clock.now(),
            lease: self.config.lease,
            max_crashes: self.config.max_crashes,
        }
    }

    async fn saved(
        &self,
        thread_id: &ThreadId,
        ns: &Namespace,
        (id, limit): (Option<&CheckpointId>, u32),
    ) -> Result<Vec<Saved>, Error> {
        let (thread, space, id) = (thread_id.clone(), ns.clone(), id.cloned());
        let rows = self
            .link
            .read(move |db| {
                Box::pin(async move { checkpoints::load(db, (&thread, &space), id.as_ref(), limit).await })
            })
            .await?;
        rows.into_iter().map(|row| row.into_saved(thread_id).map(|(saved, _)| saved)).collect()
    }
}

#[async_trait]
impl Checkpoints for SqliteStore {
    async fn load(
        &self,
        thread_id: &ThreadId,
        ns: &Namespace,
        id: Option<&CheckpointId>,
    ) -> Result<Option<Saved>, Error> {
        Ok(self.saved(thread_id, ns, (id, 1)).await?.pop())
    }

    async fn commit(&self, commit: Commit) -> Result<(), Error> {
        let rows = Rows::encode(&commit, self.config.max_state_bytes)?;
        // The lease counts from when the commit is done, which may be after a wait.
        let (clock, by) = (self.clock.clone(), self.claimant());
        self.link
            .insist(move |db| {
                Box::pin(async move {
                    let by = Claimant { now: clock.now(), ..by };
                    checkpoints::commit(db, &commit, &rows, &by).await
                })
            })
            .await
    }

    fn lease(&self) -> Duration {
        self.config.lease
    }

    async fn effects(
        &self,
        thread_id: &ThreadId,
        ns: &Namespace,
        task_id: &TaskId,
    ) -> Result<Vec<EffectRow>, Error> {
        let (thread, ns, task) = (thread_id.clone(), ns.clone(), task_id.clone());
        let rows = self
            .link
            .read(move |db| Box::pin(async move { checkpoints::effects(db, (&thread, &ns), &task).await }))
            .await?;
        rows.into_iter().map(|row| row.into_row(thread_id)).collect()
    }

    async fn history(&self, thread_id: &ThreadId, ns: &Namespace, limit: u32) -> Result<Vec<Saved>, Error> {
        self.saved(thread_id, ns, (None, limit)).await
    }
}

#[async_trait]
impl Jobs for SqliteStore {
    async fn accept(&self, offer: &Offer) -> Result<Verdict, Error> {
        let (offer, by) = (offer.clone(), self.claimant());
        self.link.write(move |db| Box::pin(async move { jobs::accept(db, &offer, &by).await })).await
    }

    async fn finish(&self, finish: Finish) -> Result<Option<Claim>, Error> {
        let last = finish.last.as_ref().map(|last| Rows::encode(last, self.config.max_state_bytes));
        let last = last.transpose()?.unwrap_or_default();
        let (clock, by) = (self.clock.clone(), self.claimant());
        self.link
            .insist(move |db| {
                Box::pin(async move {
                    let by = Claimant { now: clock.now(), ..by };
                    jobs::finish(db, &finish, &last, &by).await
                })
            })
            .await
    }

    async fn end(&self, ending: &Ending) -> Result<bool, Error> {
        let (ending, by) = (ending.clone(), self.claimant());
        self.link.write(move |db| Box::pin(async move { jobs::end(db, &ending, &by).await })).await
    }

    async fn release(&self, claim: &Claim) -> Result<(), Error> {
        let (claim, by) = (claim.clone(), self.claimant());
        self.link.write(move |db| Box::pin(async move { claims::release(db, &claim, &by).await })).await
    }

    async fn refund(&self, claim: &Claim) -> Result<(), Error> {
        let claim = claim.clone();
        self.link.write(move |db| Box::pin(async move { claims::refund(db, &claim).await })).await
    }

    async fn renew(&self, claims: &[(ThreadId, Epoch)]) -> Result<Vec<Renewed>, Error> {
        if claims.is_empty() {
            return Ok(Vec::new());
        }
        let (claims, by) = (claims.to_vec(), self.claimant());
        self.link.write(move |db| Box::pin(async move { claims::renew(db, &claims, &by).await })).await
    }

    async fn mark_published(&self, job_id: &JobId) -> Result<(), Error> {
        let (job_id, by) = (job_id.clone(), self.claimant());
        self.link.write(move |db| Box::pin(async move { jobs::mark_published(db, &job_id, &by).await })).await
    }

    async fn result(&self, job_id: &JobId) -> Result<Option<Bytes>, Error> {
        let job_id = job_id.clone();
        self.link.read(move |db| Box::pin(async move { jobs::result(db, &job_id).await })).await
    }

    async fn ping(&self) -> Result<(), Error> {
        self.link
            .read(|db| {
                Box::pin(async move {
                    sqlx::query("SELECT 1").execute(db).await?;
                    Ok(())
                })
            })
            .await
    }
}

#[async_trait]
impl Upkeep for SqliteStore {
    async fn orphans(&self, limit: u32, queued: bool, lane: bool) -> Result<Vec<ThreadId>, Error> {
        let (sweep, by) = (Sweep { limit, queued, lane }, self.claimant());
        self.link.read(move |db| Box::pin(async move { upkeep::orphans(db, sweep, &by).await })).await
    }

    async fn adopt(&self, thread_id: &ThreadId, lane: bool) -> Result<Option<Verdict>, Error> {
        let (thread_id, by) = (thread_id.clone(), self.claimant());
        self.link
            .write(move |db| Box::pin(async move { upkeep::adopt(db, &thread_id, lane, &by).await }))
            .await
    }

    async fn doomed(&self, limit: u32) -> Result<Vec<Doomed>, Error> {
        let by = self.claimant();
        self.link.write(move |db| Box::pin(async move { upkeep::doomed(db, limit, &by).await })).await
    }

    async fn unpublished(
        &self,
        age: Duration,
        after: Option<&JobId>,
        limit: u32,
    ) -> Result<Vec<StoredResult>, Error> {
        let (after, by) = (after.cloned(), self.claimant());
        self.link
            .read(move |db| {
                Box::pin(async move { upkeep::unpublished(db, (age, limit), after.as_ref(), &by).await })
            })
            .await
    }

    async fn record(&self, record: &Record) -> Result<bool, Error> {
        let (record, by) = (record.clone(), self.claimant());
        self.link.write(move |db| Box::pin(async move { upkeep::record(db, &record, &by).await })).await
    }

    async fn forget(&self, job_id: &JobId) -> Result<(), Error> {
        let job_id = job_id.clone();
        self.link.write(move |db| Box::pin(async move { upkeep::forget(db, &job_id).await })).await
    }

    async fn known(&self, job_ids: &[JobId]) -> Result<Vec<Known>, Error> {
        let job_ids = job_ids.to_vec();
        self.link.read(move |db| Box::pin(async move { upkeep::known(db, &job_ids).await })).await
    }

    async fn wish(&self, id: &str, target: Target, cancel: &Cancel) -> Result<Met, Error> {
        let (id, cancel, by) = (id.to_owned(), cancel.clone(), self.claimant());
        self.link
            .write(move |db| Box::pin(async move { upkeep::wish(db, (&id, target), &cancel, &by).await }))
            .await
    }

    async fn take_duty(&self, name: &'static str, every: Duration) -> Result<bool, Error> {
        let by = self.claimant();
        self.link
            .write(move |db| Box::pin(async move { upkeep::take_duty(db, name, every, &by).await }))
            .await
    }
}

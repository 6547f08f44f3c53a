//! Durable state in PostgreSQL: LangGraph's tables and ours.
//!
//! **Invariant:** every call is one statement that works through a transaction pooler and may be repeated when
//! its answer is lost.

mod commit;
mod config;
mod failure;
mod jobs;
mod link;
mod load;
mod migrate;
mod statement;

use std::{
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use config::{Config, Statements};

use self::{
    commit::{Committer, Entry},
    link::Link,
};
use super::{
    Checkpoints, Claim, Commit, DeadLetter, Error, Finish, Jobs, Offer, Saved, Verdict, langgraph::Rows,
};
use crate::ids::{CheckpointId, Epoch, JobId, Namespace, ThreadId};

/// The store of one process.
#[derive(Debug)]
pub struct PostgresStore {
    link: Link,
    /// One inbox per commit task; a thread always uses the same one.
    inboxes: Vec<mpsc::Sender<Entry>>,
    owner: Arc<str>,
    lease: Duration,
    max_crashes: i32,
    closing: CancellationToken,
}

impl PostgresStore {
    /// Opens the store for `owner`, which names one incarnation of a process: `<pod>/<uuid>`.
    ///
    /// Fails with [`Error::Unavailable`] when the database does not answer and with [`Error::Refused`] when the
    /// configuration cannot be right. The schema must be there already: see [`PostgresStore::migrate`].
    pub async fn connect(config: &Config, owner: &str) -> Result<Self, Error> {
        let store = Self::open(config, owner)?;
        store.link.ping().await?;
        Ok(store)
    }

    /// As [`PostgresStore::connect`], without asking the database yet. Starts its tasks, so it needs a runtime.
    pub fn open(config: &Config, owner: &str) -> Result<Self, Error> {
        let link = Link::open(config)?;
        let closing = CancellationToken::new();
        let commit_task = |_| {
            let (inbox, arrivals) = mpsc::channel(commit::QUEUE);
            let committer = Committer {
                link: link.clone(),
                owner: owner.to_owned(),
                lease: config.lease,
                closing: closing.clone(),
            };
            link.tasks().spawn(committer.run(arrivals));
            inbox
        };
        let inboxes = (0..config.commit_connections.max(1)).map(commit_task).collect();
        let (lease, max_crashes) = (config.lease, config.max_crashes);
        Ok(Self { link, inboxes, owner: owner.into(), lease, max_crashes, closing })
    }

    /// Brings the schema up to date, next to Python's `setup()` and with any number of processes at once.
    pub async fn migrate(config: &Config) -> Result<(), Error> {
        let config = config.clone();
        // In a task of its own: a cancelled transaction would leave its connection in the middle of it.
        let task = tokio_util::task::TaskTracker::new().spawn(async move { migrate::run(&config).await });
        task.await.map_err(|error| Error::Migration(error.to_string()))?
    }

    /// Waits for every commit that was handed in, then closes the connections. While the database is away each
    /// waiting commit gets one more try and ends as unavailable.
    pub async fn close(&self) {
        self.closing.cancel();
        self.link.close().await;
    }

    fn inbox(&self, thread_id: &ThreadId) -> &mpsc::Sender<Entry> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(thread_id);
        let count = u64::try_from(self.inboxes.len()).expect("a count fits 64 bits");
        let place = usize::try_from(hash % count).expect("smaller than the count");
        &self.inboxes[place]
    }
}

#[async_trait]
impl Checkpoints for PostgresStore {
    async fn load(
        &self,
        thread_id: &ThreadId,
        ns: &Namespace,
        id: Option<&CheckpointId>,
    ) -> Result<Option<Saved>, Error> {
        load::one(&self.link, thread_id, ns, id).await
    }

    async fn commit(&self, commit: Commit) -> Result<(), Error> {
        let rows = Rows::encode(&commit)?;
        let inbox = self.inbox(&commit.thread_id);
        let (entry, answered) = Entry::new(commit, rows);
        let closed = || Error::Unavailable("the store is closed".into());
        inbox.send(entry).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }

    async fn history(&self, thread_id: &ThreadId, ns: &Namespace, limit: u32) -> Result<Vec<Saved>, Error> {
        load::many(&self.link, thread_id, ns, limit).await
    }
}

#[async_trait]
impl Jobs for PostgresStore {
    async fn accept(&self, offer: &Offer) -> Result<Verdict, Error> {
        self.accept_job(offer).await
    }

    async fn finish(&self, finish: &Finish) -> Result<Option<Claim>, Error> {
        self.finish_job(finish).await
    }

    async fn release(&self, claim: &Claim) -> Result<(), Error> {
        self.release_thread(claim).await
    }

    async fn refund(&self, claim: &Claim) -> Result<(), Error> {
        self.refund_epoch(claim).await
    }

    async fn renew(&self, claims: &[(ThreadId, Epoch)]) -> Result<Vec<(ThreadId, Epoch)>, Error> {
        if claims.is_empty() {
            return Ok(Vec::new());
        }
        self.renew_leases(claims).await
    }

    async fn mark_published(&self, job_id: &JobId) -> Result<(), Error> {
        self.note_published(job_id).await
    }

    async fn result(&self, job_id: &JobId) -> Result<Option<Bytes>, Error> {
        self.full_result(job_id).await
    }

    async fn bury(&self, letter: &DeadLetter) -> Result<(), Error> {
        self.keep_letter(letter).await
    }

    async fn ping(&self) -> Result<(), Error> {
        self.link.ping().await
    }
}

//! Durable state in PostgreSQL: LangGraph's tables and ours.
//!
//! **Invariant:** every call is one statement that works through a transaction pooler and may be repeated when
//! its answer is lost.

mod agents;
mod cache;
mod checkpoints;
mod commit;
mod config;
mod deadlines;
mod effect;
mod failure;
mod gather;
mod inspect;
mod jobs;
mod late;
mod letters;
mod link;
mod migrate;
mod saver;
mod statement;
mod threads;
mod upkeep;

use std::{
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::Arc,
};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use config::{Config, Statements};
pub use saver::{GivenCheckpoint, GivenWrites, Kept, Saver, Wanted};

use self::{
    commit::{Answer, Committer, Entry},
    gather::Gather,
    jobs::Claimant,
    link::Link,
};
use super::{Error, Offer, Verdict};
use crate::ids::{JobId, ThreadId};

/// The store of one process.
#[derive(Debug)]
pub struct PostgresStore {
    link: Link,
    /// One inbox per commit task; a thread always uses the same one.
    inboxes: Vec<mpsc::Sender<Entry>>,
    /// Offers, each with the nonce of its call.
    accepts: Gather<(Offer, String), Verdict>,
    marks: Gather<JobId, ()>,
    owner: Arc<str>,
    claimant: Claimant,
    max_state_bytes: usize,
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
        let claimant =
            Claimant { owner: owner.to_owned(), lease: config.lease, max_crashes: config.max_crashes };
        let (offering, marking, offered_by) = (link.clone(), link.clone(), claimant.clone());
        let accepts = Gather::start(link.tasks(), closing.clone(), move |offers| {
            let (link, claimant) = (offering.clone(), offered_by.clone());
            async move { jobs::accept(&link, &claimant, offers).await }
        });
        let marks = Gather::start(link.tasks(), closing.clone(), move |job_ids| {
            let link = marking.clone();
            async move { jobs::mark_published(&link, job_ids).await }
        });
        let max_state_bytes = config.max_state_bytes;
        Ok(Self { link, inboxes, accepts, marks, owner: owner.into(), claimant, max_state_bytes, closing })
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

    async fn hand_in(&self, entry: Entry, answered: oneshot::Receiver<Answer>) -> Answer {
        let inbox = self.inbox(entry.thread_id());
        let closed = || Error::Unavailable("the store is closed".into());
        inbox.send(entry).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }

    fn inbox(&self, thread_id: &ThreadId) -> &mpsc::Sender<Entry> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(thread_id);
        let count = u64::try_from(self.inboxes.len()).expect("a count fits 64 bits");
        let place = usize::try_from(hash % count).expect("smaller than the count");
        &self.inboxes[place]
    }
}

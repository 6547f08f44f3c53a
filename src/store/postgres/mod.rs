//! Durable state in PostgreSQL: LangGraph's tables and ours.
//!
//! **Invariant:** every call is one statement that works through a transaction pooler and may be repeated when
//! its answer is lost.

mod agents;
mod cache;
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
mod load;
mod migrate;
mod saver;
mod statement;
mod threads;
mod upkeep;

use std::{
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
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
use super::{
    AgentFilter, AgentRef, AgentView, Agents, Barred, CacheEntry, CacheKey, Cancel, Checkpoints, Claim,
    Commit, DeadLetter, Doomed, EffectRow, Ending, Error, Expired, ExpiredThreads, Finish, Grace, Held,
    Inspect, JobView, Jobs, Known, Letter, LetterFilter, Letters, Met, NewAgent, NodeCache, Offer,
    OldThreads, Overview, PutAgent, Record, Renewed, Replayed, Retention, Saved, StoredResult, Target,
    ThreadFilter, ThreadSize, ThreadView, Threads, Trail, Upkeep, Verdict, Waiting, WholeLetter,
    langgraph::Rows,
};
use crate::{
    ids::{CheckpointId, Epoch, JobId, Namespace, TaskId, ThreadId},
    value::Value,
};

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

    /// Gives the claim that came with an end its request, whenever the database can be asked: the end is durable, and
    /// an error would look as if it were not.
    async fn complete(&self, claim: &mut Claim) -> Result<(), Error> {
        while let Err(error) = jobs::complete(&self.link, claim).await {
            tracing::warn!(thread_id = %claim.thread_id, %error, "the next job's request is asked for again");
            let pause = tokio::time::sleep(commit::LONGEST_PAUSE);
            if !matches!(error, Error::Unavailable(_))
                || self.closing.run_until_cancelled(pause).await.is_none()
            {
                return Err(error);
            }
        }
        Ok(())
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
        let rows = Rows::encode(&commit, self.max_state_bytes)?;
        let (entry, answered) = Entry::new(commit, rows);
        self.hand_in(entry, answered).await.map(drop)
    }

    fn lease(&self) -> Duration {
        self.claimant.lease
    }

    async fn effects(
        &self,
        thread_id: &ThreadId,
        ns: &Namespace,
        task_id: &TaskId,
    ) -> Result<Vec<EffectRow>, Error> {
        effect::of_task(&self.link, thread_id, ns, task_id).await
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

    async fn finish(&self, finish: Finish) -> Result<Option<Claim>, Error> {
        let rows = finish
            .last
            .as_ref()
            .map(|last| Rows::encode(last, self.max_state_bytes))
            .transpose()?
            .unwrap_or_default();
        let (entry, answered) = Entry::ending(finish, rows);
        let mut next = self.hand_in(entry, answered).await?;
        if let Some(claim) = &mut next {
            self.complete(claim).await?;
        }
        Ok(next)
    }

    async fn end(&self, ending: &Ending) -> Result<bool, Error> {
        self.end_job(ending).await
    }

    async fn release(&self, claim: &Claim) -> Result<(), Error> {
        self.release_thread(claim).await
    }

    async fn refund(&self, claim: &Claim) -> Result<(), Error> {
        self.refund_epoch(claim).await
    }

    async fn renew(&self, claims: &[(ThreadId, Epoch)]) -> Result<Vec<Renewed>, Error> {
        if claims.is_empty() {
            return Ok(Vec::new());
        }
        self.renew_leases(claims).await
    }

    async fn mark_published(&self, job_id: &JobId) -> Result<(), Error> {
        self.marks.call(job_id.clone()).await
    }

    async fn result(&self, job_id: &JobId) -> Result<Option<Bytes>, Error> {
        self.full_result(job_id).await
    }

    async fn ping(&self) -> Result<(), Error> {
        self.link.ping().await
    }
}

#[async_trait]
impl Letters for PostgresStore {
    async fn bury(&self, letter: &DeadLetter) -> Result<bool, Error> {
        letters::bury(&self.link, letter).await
    }

    async fn letters(&self, filter: &LetterFilter, limit: u32) -> Result<Vec<Letter>, Error> {
        letters::letters(&self.link, filter, limit).await
    }

    async fn letter(&self, id: i64) -> Result<Option<WholeLetter>, Error> {
        letters::letter(&self.link, id).await
    }

    async fn mark_replayed(&self, replayed: &Replayed) -> Result<bool, Error> {
        letters::mark_replayed(&self.link, replayed).await
    }

    async fn discard(&self, ids: &[i64]) -> Result<u64, Error> {
        letters::discard(&self.link, ids).await
    }
}

#[async_trait]
impl Inspect for PostgresStore {
    async fn job(&self, job_id: &JobId) -> Result<Option<JobView>, Error> {
        inspect::job(&self.link, job_id).await
    }

    async fn trail(&self, thread_id: &ThreadId, job_id: &JobId) -> Result<Trail, Error> {
        inspect::trail(&self.link, thread_id, job_id).await
    }

    async fn overview(&self, grace: &Grace) -> Result<Overview, Error> {
        inspect::overview(&self.link, grace).await
    }

    async fn waiting(&self, age: Duration, limit: u32) -> Result<Vec<Waiting>, Error> {
        inspect::waiting(&self.link, age, limit).await
    }

    async fn copied(&self, job_id: &JobId, stream_seq: u64) -> Result<(), Error> {
        inspect::copied(&self.link, job_id, stream_seq).await
    }

    async fn free_dead(&self, grace: Duration, limit: u32) -> Result<Vec<ThreadId>, Error> {
        inspect::free_dead(&self.link, grace, limit).await
    }

    async fn expire(&self, retention: &Retention, limit: u32) -> Result<Expired, Error> {
        inspect::expire(&self.link, retention, limit).await
    }
}

#[async_trait]
impl NodeCache for PostgresStore {
    async fn cached(&self, key: &CacheKey) -> Result<Option<Value>, Error> {
        cache::cached(&self.link, key).await
    }

    async fn keep(&self, entry: &CacheEntry) -> Result<(), Error> {
        cache::keep(&self.link, entry).await
    }

    async fn expire_cache(&self, limit: u32) -> Result<u64, Error> {
        cache::expire(&self.link, limit).await
    }
}

#[async_trait]
impl Upkeep for PostgresStore {
    async fn orphans(&self, limit: u32, queued: bool, lane: bool) -> Result<Vec<ThreadId>, Error> {
        upkeep::orphans(&self.link, limit, queued, lane).await
    }

    async fn adopt(&self, thread_id: &ThreadId, lane: bool) -> Result<Option<Verdict>, Error> {
        upkeep::adopt(&self.link, &self.claimant, thread_id, lane).await
    }

    async fn doomed(&self, limit: u32) -> Result<Vec<Doomed>, Error> {
        upkeep::doomed(&self.link, limit).await
    }

    async fn unpublished(
        &self,
        age: Duration,
        after: Option<&JobId>,
        limit: u32,
    ) -> Result<Vec<StoredResult>, Error> {
        upkeep::unpublished(&self.link, age, after, limit).await
    }

    async fn record(&self, record: &Record) -> Result<bool, Error> {
        upkeep::record(&self.link, record).await
    }

    async fn forget(&self, job_id: &JobId) -> Result<(), Error> {
        upkeep::forget(&self.link, job_id).await
    }

    async fn known(&self, job_ids: &[JobId]) -> Result<Vec<Known>, Error> {
        upkeep::known(&self.link, job_ids).await
    }

    async fn wish(&self, id: &str, target: Target, cancel: &Cancel) -> Result<Met, Error> {
        upkeep::wish(&self.link, id, target, cancel).await
    }

    async fn take_duty(&self, name: &'static str, every: Duration) -> Result<bool, Error> {
        upkeep::take_duty(&self.link, name, every).await
    }
}

#[async_trait]
impl Agents for PostgresStore {
    async fn put_agent(&self, agent: &NewAgent) -> Result<PutAgent, Error> {
        agents::put(&self.link, agent).await
    }

    async fn agent(&self, agent: &AgentRef) -> Result<Option<(AgentView, Bytes)>, Error> {
        agents::one(&self.link, agent).await
    }

    async fn agents(&self, filter: &AgentFilter, limit: u32) -> Result<Vec<AgentView>, Error> {
        agents::list(&self.link, filter, limit).await
    }

    async fn pin_agent(&self, job_id: &JobId, agent: &AgentRef) -> Result<Option<String>, Error> {
        agents::pin(&self.link, job_id, agent).await
    }
}

#[async_trait]
impl Threads for PostgresStore {
    async fn threads(&self, filter: &ThreadFilter, limit: u32) -> Result<Vec<ThreadView>, Error> {
        threads::list(&self.link, filter, limit).await
    }

    async fn graphs(&self, thread_id: &ThreadId) -> Result<Vec<Namespace>, Error> {
        threads::graphs(&self.link, thread_id).await
    }

    async fn checkpoint_ids(&self, thread_id: &ThreadId, ns: &Namespace) -> Result<Vec<CheckpointId>, Error> {
        threads::checkpoint_ids(&self.link, thread_id, ns).await
    }

    async fn sizes(&self, only: Option<&ThreadId>, limit: u32) -> Result<Vec<ThreadSize>, Error> {
        threads::sizes(&self.link, only, limit).await
    }

    async fn seize(&self, thread_id: &ThreadId) -> Result<Result<Held, Barred>, Error> {
        threads::seize(&self.link, &self.claimant, thread_id).await
    }

    async fn let_go(&self, held: &Held) -> Result<(), Error> {
        threads::let_go(&self.link, &self.claimant, held).await
    }

    async fn delete_thread(&self, thread_id: &ThreadId) -> Result<Result<u64, Barred>, Error> {
        threads::delete(&self.link, thread_id).await
    }

    async fn copy_thread(
        &self,
        from: &ThreadId,
        at: &CheckpointId,
        to: &ThreadId,
    ) -> Result<Result<u64, Barred>, Error> {
        threads::copy(&self.link, from, at, to).await
    }

    async fn expire_threads(
        &self,
        old: &OldThreads,
        after: &str,
        limit: u32,
    ) -> Result<ExpiredThreads, Error> {
        threads::expire(&self.link, old, after, limit).await
    }
}

//! Stored definitions and whole threads, in memory.

use async_trait::async_trait;
use bytes::Bytes;

use super::{MemoryStore, count};
use crate::{
    ids::{CheckpointId, JobId, Namespace, ThreadId},
    store::{
        AgentFilter, AgentRef, AgentView, Agents, Barred, Error, ExpiredThreads, Held, NewAgent, OldThreads,
        PutAgent, ThreadFilter, ThreadSize, ThreadView, Threads,
    },
};

#[async_trait]
impl Agents for MemoryStore {
    async fn put_agent(&self, agent: &NewAgent) -> Result<PutAgent, Error> {
        self.write(|tables| Ok(tables.put_agent(agent, &self.claimant())))
    }

    async fn agent(&self, agent: &AgentRef) -> Result<Option<(AgentView, Bytes)>, Error> {
        Ok(self.tables()?.agent(agent))
    }

    async fn agents(&self, filter: &AgentFilter, limit: u32) -> Result<Vec<AgentView>, Error> {
        Ok(self.tables()?.list_agents(filter, count(limit)))
    }

    async fn pin_agent(&self, job_id: &JobId, agent: &AgentRef) -> Result<Option<String>, Error> {
        self.write(|tables| Ok(tables.pin_agent(job_id, agent)))
    }
}

#[async_trait]
impl Threads for MemoryStore {
    async fn threads(&self, filter: &ThreadFilter, limit: u32) -> Result<Vec<ThreadView>, Error> {
        Ok(self.tables()?.list_threads(filter, count(limit), &self.claimant()))
    }

    async fn graphs(&self, thread_id: &ThreadId) -> Result<Vec<Namespace>, Error> {
        Ok(self.tables()?.namespaces(thread_id))
    }

    async fn checkpoint_ids(&self, thread_id: &ThreadId, ns: &Namespace) -> Result<Vec<CheckpointId>, Error> {
        Ok(self.tables()?.checkpoint_ids(thread_id, ns))
    }

    async fn sizes(&self, only: Option<&ThreadId>, limit: u32) -> Result<Vec<ThreadSize>, Error> {
        Ok(self.tables()?.sizes(only, count(limit)))
    }

    async fn seize(&self, thread_id: &ThreadId) -> Result<Result<Held, Barred>, Error> {
        self.write(|tables| Ok(tables.seize(thread_id, &self.claimant())))
    }

    async fn let_go(&self, held: &Held) -> Result<(), Error> {
        self.write(|tables| {
            tables.let_go(held, &self.claimant());
            Ok(())
        })
    }

    async fn delete_thread(&self, thread_id: &ThreadId) -> Result<Result<u64, Barred>, Error> {
        self.write(|tables| Ok(tables.delete_thread(thread_id, &self.claimant())))
    }

    async fn copy_thread(
        &self,
        from: &ThreadId,
        at: &CheckpointId,
        to: &ThreadId,
    ) -> Result<Result<u64, Barred>, Error> {
        self.write(|tables| Ok(tables.copy_thread(from, at, to, &self.claimant())))
    }

    async fn expire_threads(
        &self,
        old: &OldThreads,
        after: &str,
        limit: u32,
    ) -> Result<ExpiredThreads, Error> {
        self.write(|tables| Ok(tables.expire_threads(old, after, count(limit), &self.claimant())))
    }
}

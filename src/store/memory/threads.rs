//! Whole threads: what operators see of them. What they change stands in `thread_changes`.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use serde_json::Value as Json;

use super::{
    MemoryStore, count,
    tables::{Claimant, Row, Tables},
};
use crate::{
    graph::Trigger,
    ids::{CheckpointId, Namespace, ThreadId},
    pregel::{ERROR, INTERRUPT, SENDS},
    store::{Barred, Error, ExpiredThreads, Held, OldThreads, ThreadFilter, ThreadSize, ThreadView, Threads},
};

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

pub(super) fn json(text: &str) -> Json {
    serde_json::from_str(text).expect("it was written by the codec")
}

pub(super) fn number(count: usize) -> u64 {
    u64::try_from(count).expect("a count fits 64 bits")
}

impl Tables {
    pub(super) fn thread_ids(&self) -> BTreeSet<ThreadId> {
        self.checkpoints.keys().map(|(thread_id, _)| thread_id.clone()).collect()
    }

    pub(super) fn roots(&self, thread_id: &ThreadId) -> Option<&BTreeMap<CheckpointId, Row>> {
        self.checkpoints.get(&(thread_id.clone(), Namespace::root()))
    }

    pub(super) fn waits(&self, thread_id: &ThreadId, at: &CheckpointId) -> bool {
        let graph = (thread_id.clone(), Namespace::root());
        let writes = self.writes.get(&(graph, at.clone()));
        let written =
            |channel: &str| writes.into_iter().flatten().any(|(_, written)| &*written.channel == channel);
        let row = self.roots(thread_id).and_then(|rows| rows.get(at));
        let values = row.map(|row| json(&row.checkpoint)["channel_values"].clone()).unwrap_or_default();
        let mut channels = values.as_object().into_iter().flatten().map(|(channel, _)| channel);
        let is_armed = channels.any(|channel| matches!(Trigger::of(channel), Some(Trigger::Branch(_))));
        written(INTERRUPT) || (is_armed || self.has_sends(thread_id, at)) && !written(ERROR)
    }

    /// Whether a root checkpoint is about to run sends. An empty list of them is one byte of msgpack.
    fn has_sends(&self, thread_id: &ThreadId, at: &CheckpointId) -> bool {
        let Some(row) = self.roots(thread_id).and_then(|rows| rows.get(at)) else { return false };
        let versions = json(&row.checkpoint)["channel_versions"].take();
        let Some(version) = versions[SENDS].as_str() else { return false };
        let graph = (thread_id.clone(), Namespace::root());
        self.blobs.get(&(graph, SENDS.into(), version.into())).is_some_and(|sends| sends.blob.len() > 1)
    }

    fn list_threads(&self, filter: &ThreadFilter, limit: usize, by: &Claimant<'_>) -> Vec<ThreadView> {
        let wanted = |id: &ThreadId| {
            filter.id.as_ref().is_none_or(|only| only == id)
                && id.as_str().starts_with(&filter.prefix)
                && id.as_str() > filter.after.as_str()
        };
        let ids = self.thread_ids().into_iter().filter(wanted).take(limit);
        ids.map(|thread_id| self.thread_view(&thread_id, by)).collect()
    }

    fn thread_view(&self, thread_id: &ThreadId, by: &Claimant<'_>) -> ThreadView {
        let newest = self.roots(thread_id).and_then(BTreeMap::last_key_value);
        let (checkpoint, metadata) =
            newest.map(|(_, row)| (json(&row.checkpoint), json(&row.metadata))).unwrap_or_default();
        let text = |json: &Json| json.as_str().map(str::to_owned);
        let thread = self.threads.get(thread_id).filter(|thread| thread.lease_until > by.now);
        let open = self.jobs.values().filter(|job| job.thread_id == *thread_id && job.end.is_none());
        let nested = self.checkpoints.keys().filter(|(id, ns)| id == thread_id && !ns.is_root());
        ThreadView {
            thread_id: thread_id.to_string(),
            checkpoints: number(self.roots(thread_id).map_or(0, BTreeMap::len)),
            nested: number(nested.count()),
            checkpoint_id: newest.map(|(id, _)| id.to_string()),
            step: metadata["step"].as_i64(),
            ts: text(&checkpoint["ts"]),
            job_id: text(&metadata["job_id"]),
            definition: text(&metadata["executor_definition"]),
            waits: newest.is_some_and(|(id, _)| self.waits(thread_id, id)),
            owner: thread.and_then(|thread| thread.owner.as_deref().map(str::to_owned)),
            open_jobs: number(open.count()),
        }
    }

    fn checkpoint_ids(&self, thread_id: &ThreadId, ns: &Namespace) -> Vec<CheckpointId> {
        let rows = self.checkpoints.get(&(thread_id.clone(), ns.clone()));
        rows.into_iter().flat_map(|rows| rows.keys().rev()).cloned().collect()
    }

    fn sizes(&self, only: Option<&ThreadId>, limit: usize) -> Vec<ThreadSize> {
        let mut sizes: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        let mut add = |thread_id: &ThreadId, table: &str, bytes: usize| {
            if only.is_none_or(|only| only == thread_id) {
                let tables = sizes.entry(thread_id.to_string()).or_default();
                *tables.entry(table.to_owned()).or_default() += number(bytes);
            }
        };
        for ((thread_id, _), rows) in &self.checkpoints {
            let bytes = rows.values().map(|row| row.checkpoint.len() + row.metadata.len());
            add(thread_id, "checkpoints", bytes.sum());
        }
        for (((thread_id, _), ..), typed) in &self.blobs {
            add(thread_id, "checkpoint_blobs", typed.blob.len());
        }
        for (((thread_id, _), _), rows) in &self.writes {
            add(thread_id, "checkpoint_writes", rows.values().map(|row| row.value.blob.len()).sum());
        }
        for (((thread_id, _), ..), effect) in &self.effects {
            add(thread_id, "executor_effect", effect.answer.as_deref().map_or(0, <[u8]>::len));
        }
        for job in self.jobs.values() {
            let result = job.end.as_ref().map_or(0, |end| end.result.event.len());
            add(&job.thread_id, "executor_job", job.request.len() + result);
        }
        let size = |(thread_id, tables): (String, BTreeMap<String, u64>)| ThreadSize {
            thread_id,
            bytes: tables.values().sum(),
            tables,
        };
        let mut sizes: Vec<_> = sizes.into_iter().map(size).collect();
        sizes.sort_by_key(|size| std::cmp::Reverse(size.bytes));
        sizes.truncate(limit);
        sizes
    }
}

//! The tables in memory and the rules of their functions, as `migrations/` has them.

mod agents;
mod cache;
mod deadlines;
mod inspect;
mod jobs;
mod letters;
mod threads;
mod upkeep;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use super::Config;
use crate::{
    ids::{CheckpointId, Epoch, JobId, Namespace, TaskId, ThreadId, UnixNanos},
    pregel::Version,
    store::{
        CacheKey, Cancel, Commit, Error, JobState, StoredEffect, StoredResult,
        langgraph::{Rows, StoredBlob, StoredRow, StoredWrite, WriteRow},
    },
    value::Name,
};

/// Who asks, and when.
pub(super) struct Claimant<'a> {
    pub(super) owner: &'a Arc<str>,
    pub(super) now: UnixNanos,
    pub(super) config: Config,
}

impl Claimant<'_> {
    fn lease_until(&self) -> UnixNanos {
        self.after(self.config.lease)
    }

    fn after(&self, time: Duration) -> UnixNanos {
        UnixNanos(self.now.0.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
    }
}

type Graph = (ThreadId, Namespace);

#[derive(Default)]
pub(super) struct Tables {
    last_epoch: i64,
    threads: BTreeMap<ThreadId, Thread>,
    jobs: BTreeMap<JobId, Job>,
    checkpoints: BTreeMap<Graph, BTreeMap<CheckpointId, Row>>,
    blobs: HashMap<(Graph, Name, Version), Typed>,
    writes: BTreeMap<(Graph, CheckpointId), BTreeMap<(TaskId, i32), Written>>,
    effects: BTreeMap<(Graph, TaskId, Arc<str>), StoredEffect>,
    last_letter: i64,
    letters: BTreeMap<(String, u64), letters::Kept>,
    /// Wishes to cancel jobs that nobody has heard of yet.
    wishes: BTreeMap<JobId, Cancel>,
    /// Stored definitions, the oldest first.
    agents: Vec<agents::Kept>,
    /// The stored definition each job runs.
    pins: BTreeMap<JobId, String>,
    node_cache: BTreeMap<CacheKey, cache::Cached>,
    /// When each was last taken.
    duties: BTreeMap<&'static str, UnixNanos>,
    deadlines: BTreeMap<(ThreadId, Arc<str>), deadlines::Due>,
}

#[derive(Clone)]
struct Thread {
    epoch: Epoch,
    owner: Option<Arc<str>>,
    /// The epoch whose finish handed the thread on to this claim.
    chained_from: Option<Epoch>,
    job_id: Option<JobId>,
    lease_until: UnixNanos,
    head: Option<CheckpointId>,
}

struct Job {
    thread_id: ThreadId,
    /// `None`: recorded before its message has a place.
    stream_seq: Option<u64>,
    /// The place of a copy of its message.
    copy_seq: Option<u64>,
    policy: &'static str,
    attempt: u32,
    charged: Vec<Epoch>,
    head_at_claim: Option<CheckpointId>,
    /// The head of the thread when the job was first claimed.
    base_head: Option<CheckpointId>,
    request: Bytes,
    accepted: UnixNanos,
    deadline: UnixNanos,
    cancel: Option<Cancel>,
    running: bool,
    /// Whether its policy was applied to the jobs before it.
    decided: bool,
    end: Option<End>,
}

struct End {
    state: JobState,
    /// `None`: it never ran.
    epoch: Option<Epoch>,
    result: StoredResult,
    body: Option<Bytes>,
    error: Option<serde_json::Value>,
    published: bool,
    at: UnixNanos,
}

struct Row {
    parent: Option<CheckpointId>,
    checkpoint: String,
    metadata: String,
}

struct Typed {
    kind: &'static str,
    blob: Vec<u8>,
}

struct Written {
    task_path: Arc<str>,
    channel: Name,
    value: Typed,
}

impl Tables {
    pub(super) fn expire_leases(&mut self, now: UnixNanos) {
        for thread in self.threads.values_mut() {
            thread.lease_until = thread.lease_until.min(now);
        }
    }

    fn thread(&mut self, id: &ThreadId) -> &mut Thread {
        self.threads.entry(id.clone()).or_insert(Thread {
            epoch: Epoch(0),
            owner: None,
            chained_from: None,
            job_id: None,
            lease_until: UnixNanos(0),
            head: None,
        })
    }

    fn newest(&self, thread_id: &ThreadId) -> Option<CheckpointId> {
        let rows = self.checkpoints.get(&(thread_id.clone(), Namespace::root()))?;
        rows.last_key_value().map(|(id, _)| id.clone())
    }

    pub(super) fn namespaces(&self, thread_id: &ThreadId) -> Vec<Namespace> {
        self.checkpoints.keys().filter(|(thread, _)| thread == thread_id).map(|(_, ns)| ns.clone()).collect()
    }

    pub(super) fn commit(&mut self, commit: &Commit, rows: &Rows, by: &Claimant<'_>) -> Result<(), Error> {
        let thread = self.thread(&commit.thread_id);
        let held = thread.epoch == commit.epoch && thread.owner.as_ref() == Some(by.owner);
        let moves = commit.advance.as_ref().is_none_or(|advance| {
            let repeated = thread.head.as_ref() == Some(&advance.to);
            let grows = advance.from.as_ref().is_none_or(|from| advance.to > *from);
            repeated || (thread.head == advance.from && grows)
        });
        if !held || !moves {
            return Err(fenced(&commit.thread_id, commit.epoch));
        }
        if let Some(advance) = &commit.advance {
            thread.head = Some(advance.to.clone());
        }
        thread.lease_until = by.lease_until();
        self.insert(&commit.thread_id, rows);
        Ok(())
    }

    fn insert(&mut self, thread_id: &ThreadId, rows: &Rows) {
        let graph = |ns: &Namespace| (thread_id.clone(), ns.clone());
        let typed = |kind, range: &_| Typed { kind, blob: rows.blob(range).to_vec() };
        for row in &rows.blobs {
            let key = (graph(&row.ns), row.channel.clone(), row.version.clone());
            self.blobs.entry(key).or_insert_with(|| typed(row.kind, &row.blob));
        }
        for row in &rows.writes {
            let WriteRow { task_id, task_path, idx, channel, kind, blob, .. } = row;
            let of_checkpoint = self.writes.entry((graph(&row.ns), row.checkpoint_id.clone())).or_default();
            let written = || Written {
                task_path: task_path.clone(),
                channel: channel.clone(),
                value: typed(kind, blob),
            };
            let place = of_checkpoint.entry((task_id.clone(), *idx));
            // Ordinary writes are immutable; errors, questions and answers are replaced.
            if *idx < 0 {
                place.insert_entry(written());
            } else {
                place.or_insert_with(written);
            }
        }
        for effect in &rows.effects {
            let row = &effect.row;
            let key = (graph(&row.ns), row.task_id.clone(), row.call_id.clone());
            self.effects.insert(key, effect.clone());
        }
        for row in &rows.checkpoints {
            let of_graph = self.checkpoints.entry(graph(&row.ns)).or_default();
            of_graph.entry(row.id.clone()).or_insert_with(|| Row {
                parent: row.parent.clone(),
                checkpoint: row.checkpoint.clone(),
                metadata: row.metadata.clone(),
            });
        }
    }

    pub(super) fn effects(
        &self,
        thread_id: &ThreadId,
        ns: &Namespace,
        task_id: &TaskId,
    ) -> Vec<StoredEffect> {
        let graph = (thread_id.clone(), ns.clone());
        let of_task = self.effects.iter().filter(|((of, task, _), _)| *of == graph && task == task_id);
        of_task.map(|(_, row)| row.clone()).collect()
    }

    /// The newest `limit` checkpoints of a graph, or the one called `id`.
    pub(super) fn checkpoints(
        &self,
        thread_id: &ThreadId,
        ns: &Namespace,
        id: Option<&CheckpointId>,
        limit: usize,
    ) -> Vec<StoredRow> {
        let graph = (thread_id.clone(), ns.clone());
        let rows = self.checkpoints.get(&graph).into_iter().flatten().rev();
        let chosen = rows.filter(|(row, _)| id.is_none_or(|id| *row == id)).take(limit);
        chosen.map(|(id, row)| self.stored(&graph, id, row)).collect()
    }

    fn stored(&self, graph: &Graph, id: &CheckpointId, row: &Row) -> StoredRow {
        let checkpoint: serde_json::Value =
            serde_json::from_str(&row.checkpoint).expect("it was written by the codec");
        let versions = checkpoint["channel_versions"].as_object().into_iter().flatten();
        let blobs = versions.filter_map(|(channel, version)| {
            let key = (graph.clone(), Name::from(&**channel), Version::from(version.as_str()?));
            let Typed { kind, blob } = self.blobs.get(&key)?;
            Some(StoredBlob { channel: channel.clone(), kind: (*kind).to_owned(), blob: blob.clone() })
        });
        let written = self.writes.get(&(graph.clone(), id.clone())).into_iter().flatten();
        let mut writes: Vec<StoredWrite> = written
            .map(|((task_id, idx), Written { task_path, channel, value })| StoredWrite {
                task_id: task_id.to_string(),
                task_path: task_path.to_string(),
                idx: *idx,
                channel: channel.to_string(),
                kind: value.kind.to_owned(),
                blob: value.blob.clone(),
            })
            .collect();
        // Stable: task id and idx are in order already.
        writes.sort_by(|a, b| a.task_path.cmp(&b.task_path));
        StoredRow {
            checkpoint: row.checkpoint.clone(),
            metadata: row.metadata.clone(),
            parent: row.parent.as_ref().map(ToString::to_string),
            blobs: blobs.collect(),
            writes,
        }
    }
}

fn fenced(thread_id: &ThreadId, epoch: Epoch) -> Error {
    Error::Fenced { thread_id: thread_id.clone(), epoch }
}

//! Checkpoints, writes and the ledger of effects.

use std::time::Duration;

use async_trait::async_trait;

use super::{
    MemoryStore, count,
    tables::{Claimant, Graph, Row, Tables, Typed, Written, fenced},
};
use crate::{
    ids::{CheckpointId, Namespace, TaskId, ThreadId},
    pregel::Version,
    store::{
        Checkpoints, Commit, EffectRow, Error, MAX_STATE_BYTES, Saved, StoredEffect,
        langgraph::{Rows, StoredBlob, StoredRow, StoredWrite, WriteRow},
    },
    value::Name,
};

#[async_trait]
impl Checkpoints for MemoryStore {
    async fn load(
        &self,
        thread_id: &ThreadId,
        ns: &Namespace,
        id: Option<&CheckpointId>,
    ) -> Result<Option<Saved>, Error> {
        let stored = self.tables()?.checkpoints(thread_id, ns, id, 1);
        stored.into_iter().next().map(|row| row.into_saved(thread_id).map(|(saved, _)| saved)).transpose()
    }

    async fn commit(&self, commit: Commit) -> Result<(), Error> {
        let rows = Rows::encode(&commit, MAX_STATE_BYTES)?;
        self.write(|tables| tables.commit(&commit, &rows, &self.claimant()))
    }

    fn lease(&self) -> Duration {
        self.database.config.lease
    }

    async fn effects(
        &self,
        thread_id: &ThreadId,
        ns: &Namespace,
        task_id: &TaskId,
    ) -> Result<Vec<EffectRow>, Error> {
        let stored = self.tables()?.effects(thread_id, ns, task_id);
        stored.into_iter().map(|row| row.into_row(thread_id)).collect()
    }

    async fn history(&self, thread_id: &ThreadId, ns: &Namespace, limit: u32) -> Result<Vec<Saved>, Error> {
        let stored = self.tables()?.checkpoints(thread_id, ns, None, count(limit));
        stored.into_iter().map(|row| row.into_saved(thread_id).map(|(saved, _)| saved)).collect()
    }
}

impl Tables {
    pub(super) fn newest(&self, thread_id: &ThreadId) -> Option<CheckpointId> {
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

    fn effects(&self, thread_id: &ThreadId, ns: &Namespace, task_id: &TaskId) -> Vec<StoredEffect> {
        let graph = (thread_id.clone(), ns.clone());
        let of_task = self.effects.iter().filter(|((of, task, _), _)| *of == graph && task == task_id);
        of_task.map(|(_, row)| row.clone()).collect()
    }

    /// The newest `limit` checkpoints of a graph, or the one called `id`.
    fn checkpoints(
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

//! Whole threads: what operators change of them, and the removal of old ones.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::{
    claims::freed,
    tables::{Claimant, Row, Tables, Thread, Typed, Written},
    threads::{json, number},
};
use crate::{
    ids::{CheckpointId, Epoch, Namespace, TaskId, ThreadId},
    pregel::SENDS,
    store::{Barred, ExpiredThreads, Held, Leave, OldThreads},
};

/// Whether jobs that have not started yet keep an operator away too.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Queued {
    Allowed,
    Barring,
}

impl Tables {
    fn barred(&self, thread_id: &ThreadId, queued: Queued, by: &Claimant<'_>) -> Option<Barred> {
        let owned = self.threads.get(thread_id);
        if let Some(thread) = owned.filter(|t| t.owner.is_some() && t.lease_until > by.now) {
            return Some(Barred::Owned(thread.job_id.as_ref().map(ToString::to_string)));
        }
        let of_thread = self.jobs.iter().filter(|(_, job)| job.thread_id == *thread_id && job.end.is_none());
        let mut open = of_thread.filter(|(_, job)| job.running || queued == Queued::Barring);
        open.next().map(|(job_id, _)| Barred::Open(Some(job_id.to_string())))
    }

    fn next_epoch(&mut self) -> Epoch {
        self.last_epoch += 1;
        Epoch(self.last_epoch)
    }

    pub(super) fn seize(&mut self, thread_id: &ThreadId, by: &Claimant<'_>) -> Result<Held, Barred> {
        if self.namespaces(thread_id).is_empty() {
            return Err(Barred::Unknown);
        }
        if let Some(barred) = self.barred(thread_id, Queued::Allowed, by) {
            return Err(barred);
        }
        let (epoch, head) = (self.next_epoch(), self.newest(thread_id));
        let claimed = Thread {
            epoch,
            owner: Some(by.owner.clone()),
            chained_from: None,
            job_id: None,
            lease_until: by.lease_until(),
            head: head.clone(),
        };
        *self.thread(thread_id) = claimed;
        Ok(Held { thread_id: thread_id.clone(), epoch, head })
    }

    pub(super) fn let_go(&mut self, held: &Held, by: &Claimant<'_>) {
        let thread = self.thread(&held.thread_id);
        if thread.epoch == held.epoch && thread.owner.as_ref() == Some(by.owner) {
            *thread = freed(thread.clone());
        }
    }

    /// Removes what `keep` does not want of a thread; how many checkpoints that were.
    fn remove(&mut self, thread_id: &ThreadId, keep: impl Fn(&Namespace, &CheckpointId) -> bool) -> u64 {
        let mut removed = 0;
        for ((_, ns), rows) in self.checkpoints.iter_mut().filter(|((id, _), _)| id == thread_id) {
            let before = rows.len();
            rows.retain(|id, _| keep(ns, id));
            removed += before - rows.len();
        }
        self.checkpoints.retain(|_, rows| !rows.is_empty());
        let mut values = HashSet::new();
        let mut parents = HashSet::new();
        for (graph, rows) in self.checkpoints.iter().filter(|((id, _), _)| id == thread_id) {
            for row in rows.values() {
                parents.extend(row.parent.iter().map(|parent| (graph.clone(), parent.clone())));
                let versions = json(&row.checkpoint)["channel_versions"].take();
                let versions = versions.as_object().into_iter().flatten();
                values.extend(versions.map(|(channel, version)| {
                    (graph.clone(), channel.clone(), version.as_str().unwrap_or_default().to_owned())
                }));
            }
        }
        self.blobs.retain(|(graph, channel, version), _| {
            graph.0 != *thread_id
                || values.contains(&(graph.clone(), channel.to_string(), version.to_string()))
        });
        let checkpoints = &self.checkpoints;
        self.writes.retain(|(graph, id), rows| {
            if graph.0 != *thread_id || checkpoints.get(graph).is_some_and(|rows| rows.contains_key(id)) {
                return true;
            }
            let is_parent = parents.contains(&(graph.clone(), id.clone()));
            rows.retain(|_, row| is_parent && &*row.channel == SENDS);
            !rows.is_empty()
        });
        number(removed)
    }

    fn wipe(&mut self, thread_id: &ThreadId) -> u64 {
        let removed = self.remove(thread_id, |_, _| false);
        self.effects.retain(|((id, _), ..), _| id != thread_id);
        self.deadlines.retain(|(id, _), _| id != thread_id);
        let epoch = self.next_epoch();
        let thread = self.thread(thread_id);
        *thread = Thread { epoch, job_id: None, head: None, ..freed(thread.clone()) };
        removed
    }

    pub(super) fn delete_thread(&mut self, thread_id: &ThreadId, by: &Claimant<'_>) -> Result<u64, Barred> {
        if self.namespaces(thread_id).is_empty() {
            return Err(Barred::Unknown);
        }
        match self.barred(thread_id, Queued::Barring, by) {
            Some(barred) => Err(barred),
            None => Ok(self.wipe(thread_id)),
        }
    }

    pub(super) fn copy_thread(
        &mut self,
        from: &ThreadId,
        at: &CheckpointId,
        to: &ThreadId,
        by: &Claimant<'_>,
    ) -> Result<u64, Barred> {
        let roots = self.roots(from).filter(|rows| rows.contains_key(at)).ok_or(Barred::Unknown)?;
        let next = |id: &CheckpointId| roots.get(id).and_then(|row| row.parent.clone());
        let chain: BTreeSet<_> = std::iter::successors(Some(at.clone()), next).collect();
        if !self.namespaces(to).is_empty() || self.barred(to, Queued::Barring, by).is_some() {
            return Err(Barred::Exists);
        }
        let is_newest = roots.last_key_value().is_some_and(|(newest, _)| newest == at);
        if let Some(barred) = self.barred(from, Queued::Allowed, by).filter(|_| is_newest) {
            return Err(barred);
        }
        let hangs_on_chain = |ns: &Namespace, id: &CheckpointId, row: &Row| match ns.is_root() {
            true => chain.contains(id),
            false => json(&row.metadata)["parents"][""]
                .as_str()
                .is_some_and(|parent| chain.iter().any(|id| id.as_str() == parent)),
        };
        let mut copied = Vec::new();
        for ((_, ns), rows) in self.checkpoints.iter().filter(|((id, _), _)| id == from) {
            for (id, row) in rows.iter().filter(|(id, row)| hangs_on_chain(ns, id, row)) {
                let row = Row {
                    parent: row.parent.clone(),
                    checkpoint: row.checkpoint.clone(),
                    metadata: row.metadata.clone(),
                };
                copied.push((ns.clone(), id.clone(), row));
            }
        }
        self.copy_values(from, to, &copied);
        let number = number(copied.len());
        for (ns, id, row) in copied {
            self.checkpoints.entry((to.clone(), ns)).or_default().insert(id, row);
        }
        Ok(number)
    }

    /// Copies the values, writes and effects that belong to `copied`.
    fn copy_values(&mut self, from: &ThreadId, to: &ThreadId, copied: &[(Namespace, CheckpointId, Row)]) {
        let copy = |typed: &Typed| Typed { kind: typed.kind, blob: typed.blob.clone() };
        let blobs: Vec<_> = self
            .blobs
            .iter()
            .filter(|((graph, ..), _)| graph.0 == *from)
            .map(|((graph, channel, version), typed)| {
                (((to.clone(), graph.1.clone()), channel.clone(), version.clone()), copy(typed))
            })
            .collect();
        self.blobs.extend(blobs);
        for (ns, id, _) in copied {
            let Some(rows) = self.writes.get(&((from.clone(), ns.clone()), id.clone())) else { continue };
            let rows: BTreeMap<(TaskId, i32), Written> = rows
                .iter()
                .map(|(place, row)| {
                    let row = Written {
                        task_path: row.task_path.clone(),
                        channel: row.channel.clone(),
                        value: copy(&row.value),
                    };
                    (place.clone(), row)
                })
                .collect();
            self.writes.insert(((to.clone(), ns.clone()), id.clone()), rows);
        }
        let effects: Vec<_> = self
            .effects
            .iter()
            .filter(|((graph, ..), _)| graph.0 == *from)
            .map(|((graph, task, call), row)| {
                (((to.clone(), graph.1.clone()), task.clone(), call.clone()), row.clone())
            })
            .collect();
        self.effects.extend(effects);
    }

    pub(super) fn expire_threads(
        &mut self,
        old: &OldThreads,
        after: &str,
        limit: usize,
        by: &Claimant<'_>,
    ) -> ExpiredThreads {
        let before = CheckpointId::next(None, old.before, 0, 0);
        let ids: Vec<_> =
            self.thread_ids().into_iter().filter(|id| id.as_str() > after).take(limit).collect();
        let more = ids.len() == limit;
        let mut expired = ExpiredThreads {
            after: ids.last().filter(|_| more).map(ToString::to_string),
            ..ExpiredThreads::default()
        };
        for thread_id in ids {
            let Some(newest) = self.newest(&thread_id).filter(|newest| *newest < before) else { continue };
            let waits = self.waits(&thread_id, &newest);
            if waits && !old.waiting || self.barred(&thread_id, Queued::Barring, by).is_some() {
                continue;
            }
            let removed = match old.leave {
                Leave::Nothing => self.wipe(&thread_id),
                Leave::Latest => {
                    let last = |ns: &Namespace| {
                        let rows = self.checkpoints.get(&(thread_id.clone(), ns.clone()))?;
                        let (id, row) = rows.last_key_value()?;
                        // A graph that has failed goes on from there, and must not make its calls again.
                        let is_under_newest = || json(&row.metadata)["parents"][""] == newest.as_str();
                        (ns.is_root() || waits || is_under_newest()).then(|| id.clone())
                    };
                    let graphs = self.namespaces(&thread_id);
                    let kept: BTreeMap<_, _> =
                        graphs.into_iter().filter_map(|ns| Some((ns.clone(), last(&ns)?))).collect();
                    self.remove(&thread_id, |ns, id| kept.get(ns) == Some(id))
                }
            };
            expired.threads += u64::from(removed > 0);
            expired.checkpoints += removed;
        }
        expired
    }
}

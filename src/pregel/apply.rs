//! Apply: the writes of a superstep's tasks become the next checkpoint.

use std::collections::BTreeSet;

use indexmap::IndexMap;

use super::{Checkpoint, Error, NO_WRITES, Task, Version, Write, channel::Kind};
use crate::{
    graph::CompiledGraph,
    ids::{CheckpointId, Epoch},
    value::{Name, Value},
};

/// A finished task with what it wrote.
#[derive(Clone, Debug)]
pub struct TaskWrites {
    /// The task.
    pub task: Task,
    /// Its writes, in its order.
    pub writes: Vec<Write>,
}

/// What the next checkpoint is stamped with.
#[derive(Clone, Debug)]
pub struct Stamp {
    /// Its id; sorts above the id of the checkpoint it follows.
    pub id: CheckpointId,
    /// Its time, as [`Checkpoint::ts`].
    pub ts: String,
    /// The claim; part of every version, so that two attempts never share one.
    pub epoch: Epoch,
}

/// The next checkpoint, and the channels that got a new version with it.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// Channels with a new version, sorted.
    pub changed: Vec<Name>,
}

/// Applies the writes of all tasks of a superstep, in path order.
pub fn apply(
    graph: &CompiledGraph,
    before: &Checkpoint,
    tasks: &[TaskWrites],
    stamp: Stamp,
) -> Result<Applied, Error> {
    let mut tasks: Vec<&TaskWrites> = tasks.iter().collect();
    tasks.sort_by(|a, b| a.task.path.cmp(&b.task.path));
    let mut next = Checkpoint { id: stamp.id, ts: stamp.ts, updated: None, ..before.clone() };
    let version = next_version(before, stamp.epoch);
    let mut changed = BTreeSet::new();

    mark_seen(&mut next, &tasks);
    consume_barriers(graph, &mut next, &tasks, &mut changed);
    let written = update_channels(graph, &mut next, &tasks, &version)?;
    changed.extend(written.iter().cloned());
    if tasks.iter().any(|task| !task.task.triggers.is_empty()) {
        clear_consumed(graph, &mut next, &written, &mut changed);
    }
    for channel in &changed {
        next.versions.insert(channel.clone(), version.clone());
    }
    let is_available = |name: &Name| Kind::of(graph, name).is_available(next.values.get(name));
    next.updated = Some(changed.iter().filter(|name| is_available(name)).cloned().collect());
    Ok(Applied { checkpoint: next, changed: changed.into_iter().collect() })
}

/// One more than the greatest version of any channel, with the claim as its fraction.
fn next_version(checkpoint: &Checkpoint, epoch: Epoch) -> Version {
    let greatest = checkpoint.versions.values().max();
    let whole = |version: &Version| version.split('.').next().and_then(|digits| digits.parse::<u64>().ok());
    let number = greatest.and_then(whole).unwrap_or(0) + 1;
    format!("{number:032}.{:016}", epoch.0).into()
}

fn mark_seen(next: &mut Checkpoint, tasks: &[&TaskWrites]) {
    for TaskWrites { task, .. } in tasks.iter().filter(|task| !task.task.triggers.is_empty()) {
        let seen = next.seen.entry(task.name.clone()).or_default();
        for trigger in &task.triggers {
            if let Some(version) = next.versions.get(trigger) {
                seen.insert(trigger.clone(), version.clone());
            }
        }
    }
}

/// A complete join starts again from nothing once its node has run.
fn consume_barriers(
    graph: &CompiledGraph,
    next: &mut Checkpoint,
    tasks: &[&TaskWrites],
    changed: &mut BTreeSet<Name>,
) {
    for trigger in tasks.iter().flat_map(|task| &task.task.triggers) {
        let kind = Kind::of(graph, trigger);
        if matches!(kind, Kind::Barrier(_)) && kind.is_available(next.values.get(trigger)) {
            next.values.insert(trigger.clone(), Value::Set(Vec::new().into()));
            changed.insert(trigger.clone());
        }
    }
}

/// Folds the writes into their channels; returns the channels written to.
fn update_channels(
    graph: &CompiledGraph,
    next: &mut Checkpoint,
    tasks: &[&TaskWrites],
    version: &Version,
) -> Result<BTreeSet<Name>, Error> {
    let mut by_channel: IndexMap<&Name, Vec<&Value>> = IndexMap::new();
    for write in tasks.iter().flat_map(|task| &task.writes).filter(|write| &*write.channel != NO_WRITES) {
        by_channel.entry(&write.channel).or_default().push(&write.value);
    }
    let mut written = BTreeSet::new();
    for (channel, values) in by_channel {
        let current = next.values.swap_remove(channel);
        let kind = Kind::of(graph, channel);
        let value = kind.update(channel, current, &values, &format!("{version}|{channel}"))?;
        next.values.insert(channel.clone(), value);
        written.insert(channel.clone());
    }
    Ok(written)
}

/// Empties the one-superstep channels that this superstep has consumed and not written again.
fn clear_consumed(
    graph: &CompiledGraph,
    next: &mut Checkpoint,
    written: &BTreeSet<Name>,
    changed: &mut BTreeSet<Name>,
) {
    let stale: Vec<(Name, Option<Value>)> = next
        .values
        .iter()
        .filter(|(name, _)| !written.contains(*name))
        .filter_map(|(name, value)| Some((name.clone(), Kind::of(graph, name).after_consumption(value)?)))
        .collect();
    for (name, value) in stale {
        match value {
            Some(value) => next.values.insert(name.clone(), value),
            None => next.values.swap_remove(&name),
        };
        changed.insert(name);
    }
}

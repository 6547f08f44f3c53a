//! Supersteps that wait a moment, so that several of a thread are stored in one commit.
//!
//! **Invariant:** what waits can be made again from what is stored, by expressions alone: no model, tool or person has
//! been asked for it, and none is asked before it is stored.
//! **Invariant:** what waits has not been told to anybody.

use std::time::Duration;

use serde_json::Value as Json;
use tokio::time::Instant;

use super::committer::Step;
use crate::{
    graph::{CompiledGraph, Node, NodeKind},
    pregel::{Task, TaskInput},
    store::Put,
    value::{Content, Message, Role, Value},
};

/// Checkpoints in one commit. Beyond it a commit costs what its rows cost, and holds up other threads.
const MOST: usize = 16;

/// How long the first of them waits. A commit alone takes about as long.
const LONGEST: Duration = Duration::from_millis(1);

/// Bytes of all that waits, about: so little that no commit is refused for it, and enough for chains of small steps.
const LIGHT: usize = 64 << 10;

/// What an entry of a list, a map or the versions costs beside its text.
const ENTRY: usize = 32;

/// The supersteps of a root graph that wait. The default is that none does.
#[derive(Default)]
pub(super) struct Gathered {
    /// Their checkpoints and writes.
    waiting: Option<Step>,
    /// When the first of them came.
    since: Option<Instant>,
    /// Bytes of them all, about.
    bytes: usize,
}

impl Gathered {
    /// Lets `step` wait, or gives it back because it is too large beside the others, or not plain enough: those it is
    /// stored with must not be refused for what is in it.
    pub(super) fn add(&mut self, step: Step) -> Result<(), Step> {
        let Some(left) = after_step(&step, LIGHT.saturating_sub(self.bytes)) else { return Err(step) };
        self.bytes = LIGHT - left;
        self.since.get_or_insert_with(Instant::now);
        self.waiting = Some(self.waiting.take().unwrap_or_default().and(step));
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_none()
    }

    /// All that waits.
    pub(super) fn take(&mut self) -> Option<Step> {
        std::mem::take(self).waiting
    }

    /// Whether there are enough of them, or the first has waited long enough.
    pub(super) fn is_due(&self) -> bool {
        let is_full = self.waiting.as_ref().is_some_and(|step| step.puts.len() >= MOST);
        is_full || self.since.is_some_and(|since| since.elapsed() >= LONGEST)
    }
}

/// Whether all that `tasks` do is to compute: then doing it again is as good as having stored it.
pub(super) fn is_computed(graph: &CompiledGraph, tasks: &[Task]) -> bool {
    let computes = |task: &Task| {
        let node = graph.node(&task.name);
        let is_transform = |node: &Node| matches!(node.kind, NodeKind::Transform(_));
        let is_plain = node.is_some_and(|node| is_transform(node) && node.policy.only_computes());
        is_plain && !matches!(task.input, TaskInput::Send(_))
    };
    tasks.iter().all(computes)
}

/// What is left of `left` bytes after a superstep; `None` when it takes more, or holds what may not be storable.
fn after_step(step: &Step, left: usize) -> Option<usize> {
    let left = step.puts.iter().try_fold(left, |left, put| after_put(put, left))?;
    let mut writes = step.writes.iter().flat_map(|of_task| &of_task.writes);
    writes.try_fold(left, |left, write| after_value(&write.value, left.checked_sub(ENTRY)?))
}

fn after_put(put: &Put, left: usize) -> Option<usize> {
    let checkpoint = &put.checkpoint;
    let seen: usize = checkpoint.seen.values().map(|versions| versions.len() + 1).sum();
    let names = checkpoint.versions.len() + seen + put.metadata.parents.len();
    let mut left = left.checked_sub(names.checked_mul(ENTRY)?)?;
    for text in put.metadata.extra.values() {
        left = after_json(text, left)?;
    }
    // Plain values stand in every checkpoint, others only where they have changed.
    for (channel, value) in &checkpoint.values {
        if value.is_inline() || put.changed.contains(channel) {
            left = after_value(value, left.checked_sub(ENTRY)?)?;
        }
    }
    Some(left)
}

fn after_value(value: &Value, left: usize) -> Option<usize> {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => left.checked_sub(ENTRY),
        Value::String(text) => after_text(text, left),
        Value::List(items) | Value::Set(items) => {
            items.iter().try_fold(left.checked_sub(ENTRY)?, |left, item| after_value(item, left))
        }
        Value::Map(map) => map.iter().try_fold(left.checked_sub(ENTRY)?, |left, (name, value)| {
            after_value(value, after_text(name, left)?)
        }),
        Value::Message(message) => after_message(message, left),
        // Not made by expressions, or rare.
        Value::Bytes(_) | Value::Send(_) | Value::Interrupt(_) | Value::Opaque(_) => None,
    }
}

fn after_message(message: &Message, left: usize) -> Option<usize> {
    let Content::Text(text) = &message.content else { return None };
    let is_plain = match &message.role {
        Role::Human | Role::System | Role::Remove => true,
        Role::Ai { tool_calls, invalid_tool_calls, .. } => {
            tool_calls.is_empty() && invalid_tool_calls.is_empty()
        }
        Role::Tool { .. } => false,
    };
    let is_plain = is_plain && message.additional_kwargs.is_empty() && message.response_metadata.is_empty();
    let left = after_text(&message.id, after_text(text, left)?)?;
    // Its other fields are a name and counts.
    if is_plain { left.checked_sub(8 * ENTRY) } else { None }
}

fn after_json(value: &Json, left: usize) -> Option<usize> {
    match value {
        Json::Null | Json::Bool(_) | Json::Number(_) => left.checked_sub(ENTRY),
        Json::String(text) => after_text(text, left),
        Json::Array(items) => items.iter().try_fold(left, |left, item| after_json(item, left)),
        Json::Object(map) => {
            map.iter().try_fold(left, |left, (name, value)| after_json(value, after_text(name, left)?))
        }
    }
}

/// PostgreSQL refuses texts with the character U+0000.
fn after_text(text: &str, left: usize) -> Option<usize> {
    let left = left.checked_sub(text.len().checked_add(ENTRY)?)?;
    (!text.as_bytes().contains(&0)).then_some(left)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use super::*;
    use crate::{
        ids::Namespace,
        pregel::{Checkpoint, Metadata, Source},
    };

    /// A superstep that leaves `value` behind.
    fn step(value: impl Into<Value>) -> Step {
        let mut checkpoint = Checkpoint::empty();
        checkpoint.values.insert("note".into(), value.into());
        let metadata = Metadata {
            source: Source::Loop,
            step: 0,
            parents: BTreeMap::new(),
            extra: serde_json::Map::default(),
        };
        let (ns, changed) = (Namespace::root(), vec!["note".into()]);
        let put = Put { ns, checkpoint: Arc::new(checkpoint), metadata, parent: None, changed };
        Step { puts: vec![put], writes: Vec::new() }
    }

    #[test]
    fn what_could_spoil_a_commit_waits_for_nobody() {
        let mut gathered = Gathered::default();
        assert!(gathered.add(step("small")).is_ok());
        assert!(gathered.add(step("x".repeat(LIGHT))).is_err(), "too large");
        assert!(gathered.add(step("a\0b")).is_err(), "PostgreSQL refuses it");
        let nested = Value::list(vec![Value::map([("deep", Value::from("c\0d"))])]);
        assert!(gathered.add(step(nested)).is_err(), "also inside");
        assert!(gathered.add(step(Value::Opaque(bytes::Bytes::from_static(b"x")))).is_err(), "unknown");
        assert!(gathered.add(step("small too")).is_ok());
        assert_eq!(gathered.take().map(|step| step.puts.len()), Some(2));
        assert!(gathered.is_empty());
    }

    #[test]
    fn together_they_stay_light() {
        let mut gathered = Gathered::default();
        let third = || step("x".repeat(LIGHT / 3));
        assert!(gathered.add(third()).is_ok());
        assert!(gathered.add(third()).is_ok());
        assert!(gathered.add(third()).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn they_are_stored_when_there_are_enough_or_the_first_has_waited() {
        let mut gathered = Gathered::default();
        assert!(!gathered.is_due(), "nothing waits");
        for _ in 1..MOST {
            assert!(gathered.add(step("small")).is_ok());
            assert!(!gathered.is_due());
        }
        assert!(gathered.add(step("small")).is_ok());
        assert!(gathered.is_due());
        assert!(gathered.take().is_some());
        assert!(gathered.add(step("small")).is_ok());
        assert!(!gathered.is_due());
        tokio::time::advance(LONGEST).await;
        assert!(gathered.is_due());
    }
}

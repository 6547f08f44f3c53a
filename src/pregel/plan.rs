//! Plan: which tasks the next superstep runs.

use std::{collections::BTreeMap, sync::Arc};

use super::{Checkpoint, PendingWrite, SENDS, START, Version, Write, channel::Kind, interrupt::is_mark};
use crate::{
    graph::CompiledGraph,
    ids::{self, Namespace, TaskId},
    value::{Name, Value},
};

/// One node's execution in one superstep.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Deterministic: the same superstep of the same checkpoint gives the same id in every attempt.
    pub id: TaskId,
    /// LangGraph's text of the task's path; writes are applied in the order of these texts.
    pub path: Arc<str>,
    /// The node, or [`START`].
    pub name: Name,
    /// Channels whose news run it; empty for writes from outside.
    pub triggers: Vec<Name>,
    /// What it gets beside the state.
    pub input: TaskInput,
}

impl Task {
    /// Whoever writes from outside a run, under LangGraph's id for that; `name` is empty when nobody is named.
    pub fn outside(name: impl Into<Name>) -> Self {
        let (id, triggers, input) = (TaskId::null(), Vec::new(), TaskInput::State);
        Self { id, path: "".into(), name: name.into(), triggers, input }
    }
}

/// What a task gets beside the state.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskInput {
    /// Nothing: an edge led to it.
    State,
    /// The argument of a send.
    Send(Value),
    /// The job's input.
    Start(Value),
}

/// The tasks of superstep `step`, in path order. Empty means that the run is over.
///
/// `step` is the step of the checkpoint they start from, plus 1.
pub fn plan(graph: &CompiledGraph, ns: &Namespace, checkpoint: &Checkpoint, step: i64) -> Vec<Task> {
    let maker = Maker { ns, checkpoint, step };
    let mut tasks = Vec::new();
    if let Some(input) = checkpoint.values.get(START).filter(|_| is_news(graph, checkpoint, START, START)) {
        tasks.push(maker.pull(START.into(), vec![START.into()], TaskInput::Start(input.clone())));
    }
    let sends = checkpoint.values.get(SENDS).and_then(Value::as_list).unwrap_or_default();
    for (index, send) in sends.iter().enumerate() {
        let Value::Send(send) = send else { continue };
        if graph.node(&send.node).is_some() {
            tasks.push(maker.push(index, &send.node, send.arg.clone()));
        }
    }
    for node in graph.nodes() {
        if node.triggers.iter().any(|trigger| is_news(graph, checkpoint, &node.name, trigger)) {
            tasks.push(maker.pull(node.name.clone(), node.triggers.clone(), TaskInput::State));
        }
    }
    tasks.sort_by(|a, b| a.path.cmp(&b.path));
    tasks
}

/// Whether `trigger` is available and newer than what `node` last ran with.
fn is_news(graph: &CompiledGraph, checkpoint: &Checkpoint, node: &str, trigger: &str) -> bool {
    if !Kind::of(graph, trigger).is_available(checkpoint.values.get(trigger)) {
        return false;
    }
    let Some(seen) = checkpoint.seen.get(node) else { return true };
    let version = |versions: &BTreeMap<Name, Version>| versions.get(trigger).cloned();
    version(&checkpoint.versions) > version(seen)
}

struct Maker<'a> {
    ns: &'a Namespace,
    checkpoint: &'a Checkpoint,
    step: i64,
}

impl Maker<'_> {
    fn pull(&self, name: Name, triggers: Vec<Name>, input: TaskInput) -> Task {
        let id = self.id(&name, "__pregel_pull", &triggers);
        let path = format!("~__pregel_pull, {name}").into();
        Task { id, path, name, triggers, input }
    }

    fn push(&self, index: usize, node: &Name, arg: Value) -> Task {
        let id = self.id(node, "__pregel_push", &[index.to_string()]);
        let path = format!("~__pregel_push, {index:010}, 0000000000").into();
        let triggers = vec!["__pregel_push".into()];
        Task { id, path, name: node.clone(), triggers, input: TaskInput::Send(arg) }
    }

    fn id(&self, name: &str, kind: &str, rest: &[impl AsRef<str>]) -> TaskId {
        let checkpoint = self.checkpoint.id.bytes();
        let ns = if self.ns.is_root() { name.to_owned() } else { format!("{}|{name}", self.ns) };
        let step = self.step.to_string();
        let mut parts: Vec<&[u8]> =
            vec![&checkpoint, ns.as_bytes(), step.as_bytes(), name.as_bytes(), kind.as_bytes()];
        parts.extend(rest.iter().map(|part| part.as_ref().as_bytes()));
        TaskId::from_digest(ids::digest(&parts))
    }
}

/// The writes of `task` if an earlier attempt finished it: at least one stored write that is not a mark
/// of failure or of an interrupt.
pub fn restore(task: &Task, pending: &[PendingWrite]) -> Option<Vec<Write>> {
    let own = pending.iter().filter(|write| write.task_id == task.id && !is_mark(&write.channel));
    let writes: Vec<_> = own.map(|write| Write::new(write.channel.clone(), write.value.clone())).collect();
    (!writes.is_empty()).then_some(writes)
}

#[cfg(test)]
mod tests {
    use indexmap::IndexMap;

    use super::*;
    use crate::{
        ids::CheckpointId,
        pregel::{ERROR, INTERRUPT, RESUME},
    };

    fn checkpoint(id: &str) -> Checkpoint {
        Checkpoint {
            id: CheckpointId::parse(id).expect("a uuid"),
            ts: String::new(),
            values: IndexMap::new(),
            versions: BTreeMap::new(),
            seen: BTreeMap::new(),
            updated: None,
        }
    }

    #[test]
    fn task_ids_are_the_ones_langgraph_computed_for_the_same_checkpoints() {
        let ns = Namespace::root();
        let input = checkpoint("1f1e533b-1e75-67ed-bfff-4b5d0ac8932d");
        let start = Maker { ns: &ns, checkpoint: &input, step: 0 }.pull(
            START.into(),
            vec![START.into()],
            TaskInput::State,
        );
        assert_eq!(start.id.as_str(), "714ff8a3-00e3-e20c-66ee-fe010b657ce2");
        assert_eq!(&*start.path, "~__pregel_pull, __start__");

        let first = checkpoint("1f1e533b-1e8b-616a-8000-46c9aea0afb1");
        let agent = Maker { ns: &ns, checkpoint: &first, step: 1 }.pull(
            "agent".into(),
            vec!["branch:to:agent".into()],
            TaskInput::State,
        );
        assert_eq!(agent.id.as_str(), "d25a3369-22da-9798-555f-2473d795a953");
    }

    #[test]
    fn a_task_is_finished_only_by_a_write_that_is_no_mark() {
        let ns = Namespace::root();
        let before = checkpoint("1f1e533b-1e8b-616a-8000-46c9aea0afb1");
        let task = Maker { ns: &ns, checkpoint: &before, step: 1 }.pull(
            "a".into(),
            vec!["branch:to:a".into()],
            TaskInput::State,
        );
        let write = |channel: &str| PendingWrite {
            task_id: task.id.clone(),
            task_path: task.path.clone(),
            idx: 0,
            channel: channel.into(),
            value: Value::Null,
        };
        assert_eq!(restore(&task, &[]), None);
        assert_eq!(restore(&task, &[write(ERROR), write(INTERRUPT), write(RESUME)]), None);
        assert_eq!(restore(&task, &[write(ERROR), write("log")]).map(|writes| writes.len()), Some(1));
    }
}

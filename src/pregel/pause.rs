//! Pauses: a run stops before or after nodes whose author wants it, until a job continues it.
//!
//! As in LangGraph nothing is stored of a pause but the missing next superstep, and a run that was continued pauses
//! again only once something has changed since.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::json;

use super::{Checkpoint, INTERRUPT, SENDS, Task, TaskInput, TaskWrites};
use crate::{
    graph::{CompiledGraph, NodeKind},
    ids::{self, Namespace},
    value::{Interrupt, Name, Value},
};

/// The nodes among those of `ran` after which runs pause; in the order of their names, since tasks finish in any.
///
/// A task that sends its node to itself is not done yet: it comes back with what is wrong with its answer.
pub fn pausing_after(graph: &CompiledGraph, ran: &[TaskWrites]) -> Vec<Name> {
    let pauses = |ran: &&TaskWrites| graph.node(&ran.task.name).is_some_and(|node| node.pauses.after);
    let done = ran.iter().filter(pauses).filter(|ran| !sends_to_itself(ran));
    let names: BTreeSet<Name> = done.map(|ran| ran.task.name.clone()).collect();
    names.into_iter().collect()
}

#[expect(clippy::wildcard_enum_match_arm, reason = "nothing else sends")]
fn sends_to_itself(ran: &TaskWrites) -> bool {
    ran.writes.iter().filter(|write| &*write.channel == SENDS).any(|write| match &write.value {
        Value::Send(send) => send.node == ran.task.name,
        _ => false,
    })
}

/// Whether `task` goes on with what its node has begun: what a model was sent to correct. Calls of tools are sent, too,
/// and begin with that.
fn goes_on(graph: &CompiledGraph, task: &Task) -> bool {
    let is_call = || graph.node(&task.name).is_some_and(|node| matches!(node.kind, NodeKind::Tools(_)));
    matches!(task.input, TaskInput::Send(_)) && !is_call()
}

/// The pause at `checkpoint`, if there is one: `ran` are the nodes of [`pausing_after`] whose superstep made it,
/// `next` the tasks that would run now.
pub fn pause(
    (graph, ns): (&CompiledGraph, &Namespace),
    checkpoint: &Checkpoint,
    ran: &[Name],
    next: &[Task],
) -> Option<Interrupt> {
    let is_due =
        |task: &&Task| graph.node(&task.name).is_some_and(|node| node.pauses.before) && !goes_on(graph, task);
    let before: BTreeSet<&str> = next.iter().filter(is_due).map(|task| &*task.name).collect();
    let (phase, nodes): (_, Vec<&str>) = match ran {
        [] if before.is_empty() => return None,
        [] => ("before", before.into_iter().collect()),
        ran => ("after", ran.iter().map(|name| &**name).collect()),
    };
    if next.is_empty() || !has_changed(checkpoint) {
        return None;
    }
    let value = Value::from(json!({ "kind": "pause", "phase": phase, "nodes": nodes }));
    let id = ids::digest(&[b"pause|", ns.as_str().as_bytes(), b"|", checkpoint.id.as_str().as_bytes()]);
    Some(Interrupt { id: Arc::from(format!("{id:032x}")), value, response_schema: Value::Null })
}

/// Whether a channel has been written since a job last continued the thread.
fn has_changed(checkpoint: &Checkpoint) -> bool {
    let seen = checkpoint.seen.get(INTERRUPT);
    let is_newer = |(channel, version): (&Name, &super::Version)| {
        seen.and_then(|seen| seen.get(channel)).is_none_or(|seen| version > seen)
    };
    checkpoint.versions.iter().any(is_newer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        graph::{self, Limits},
        ids::TaskId,
        pregel::{Write, mark_resumed},
        value::Send,
    };

    fn graph() -> CompiledGraph {
        let node = |id: &str, pause: &str| json!({ "id": id, "type": "transform", "writes": { "x": "1" }, pause: true });
        let definition = json!({
            "channels": { "x": {} },
            "nodes": [node("a", "interrupt_after"), node("b", "interrupt_before")],
            "edges": [{ "from": "START", "to": "a" }, { "from": "a", "to": "b" }, { "from": "b", "to": "END" }],
        });
        graph::compile(definition.to_string().as_bytes(), &Limits::default()).expect("no mistakes")
    }

    fn task(name: &str) -> Task {
        let id = TaskId::from_digest(1);
        Task { id, path: name.into(), name: name.into(), triggers: Vec::new(), input: TaskInput::State }
    }

    fn phase(checkpoint: &Checkpoint, ran: &[&str], next: &[&str]) -> Option<String> {
        let (graph, root) = (graph(), Namespace::root());
        let ran: Vec<_> =
            ran.iter().map(|name| TaskWrites { task: task(name), writes: Vec::new() }).collect();
        let next: Vec<Task> = next.iter().map(|name| task(name)).collect();
        let after = pausing_after(&graph, &ran);
        let interrupt = pause((&graph, &root), checkpoint, &after, &next)?;
        let value = interrupt.value.to_json();
        Some(format!("{} {}", value["phase"].as_str().unwrap_or_default(), value["nodes"]))
    }

    #[test]
    fn a_run_pauses_after_what_ran_or_before_what_runs_next_until_it_is_continued() {
        let mut checkpoint = Checkpoint::empty();
        assert_eq!(phase(&checkpoint, &["a"], &["b"]), None, "nothing has happened");
        checkpoint.versions.insert("x".into(), "1".into());
        assert_eq!(phase(&checkpoint, &["a"], &["b"]).as_deref(), Some(r#"after ["a"]"#));
        assert_eq!(phase(&checkpoint, &["b"], &["b", "b"]).as_deref(), Some(r#"before ["b"]"#));
        assert_eq!(phase(&checkpoint, &["b"], &["a"]), None);
        assert_eq!(phase(&checkpoint, &["a"], &[]), None, "the run is over");
        mark_resumed(&mut checkpoint);
        assert_eq!(phase(&checkpoint, &["a"], &["b"]), None, "it was continued");
        checkpoint.versions.insert("x".into(), "2".into());
        assert_eq!(phase(&checkpoint, &[], &["b"]).as_deref(), Some(r#"before ["b"]"#));
    }

    #[test]
    fn a_correction_is_no_new_run_of_its_node() {
        let (graph, mut checkpoint) = (graph(), Checkpoint::empty());
        checkpoint.versions.insert("x".into(), "1".into());
        let send = |node: &str| Value::Send(Arc::new(Send { node: node.into(), arg: Value::Null }));
        let ran =
            |target: &str| [TaskWrites { task: task("a"), writes: vec![Write::new(SENDS, send(target))] }];
        assert_eq!(pausing_after(&graph, &ran("a")), Vec::<Name>::new(), "it is not done");
        assert_eq!(pausing_after(&graph, &ran("b")), [Name::from("a")]);
        let correction = Task { input: TaskInput::Send(Value::Null), ..task("b") };
        assert!(pause((&graph, &Namespace::root()), &checkpoint, &[], &[correction]).is_none());
        assert!(pause((&graph, &Namespace::root()), &checkpoint, &[], &[task("b")]).is_some());
    }
}

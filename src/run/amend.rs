//! Changes of a thread's state from outside a run: an update as a node would have made it, and a fork.
//!
//! **Invariant:** what is made is stored under an operator's claim, so no job can be going on at the same time.

use std::sync::Arc;

use serde_json::{Map as JsonMap, Value as Json};

use super::{code, definition::DEFINITION, failure, metadata::EPOCH, task::route};
use crate::{
    graph::CompiledGraph,
    ids::{CheckpointId, Epoch, Namespace, UnixNanos},
    job::Failure,
    pregel::{self, Checkpoint, INTERRUPT, Source, Stamp, Task, Write},
    store::{Put, Saved},
    value::{Name, Value},
};

/// When and under which claim a change is made.
#[derive(Clone, Debug)]
pub struct Occasion {
    /// The thread's newest checkpoint; the new one sorts above it.
    pub newest: Option<CheckpointId>,
    /// The time.
    pub now: UnixNanos,
    /// The claim.
    pub epoch: Epoch,
}

impl Occasion {
    fn stamp(&self, step: i64) -> Stamp {
        let id = CheckpointId::next(self.newest.as_ref(), self.now, step, fastrand::u64(..));
        Stamp { id, ts: self.now.isoformat(), epoch: self.epoch }
    }

    fn put(&self, saved: &Saved, made: (Checkpoint, Source, Vec<Name>), definition: Option<&str>) -> Put {
        let (checkpoint, source, changed) = made;
        let mut extra = JsonMap::new();
        extra.insert(EPOCH.into(), self.epoch.0.into());
        if let Some(hash) = definition {
            extra.insert(DEFINITION.into(), hash.into());
        }
        let (step, parents) = (saved.metadata.step + 1, saved.metadata.parents.clone());
        let metadata = pregel::Metadata { source, step, parents, extra };
        let parent = Some(saved.checkpoint.id.clone());
        Put { ns: Namespace::root(), checkpoint: Arc::new(checkpoint), metadata, parent, changed }
    }
}

/// The checkpoint `saved` once more, as the newest of its thread.
pub fn fork(saved: &Saved, occasion: &Occasion) -> Put {
    let Stamp { id, ts, .. } = occasion.stamp(saved.metadata.step + 1);
    let checkpoint = Checkpoint { id, ts, updated: None, ..saved.checkpoint.clone() };
    let definition = saved.metadata.extra.get(DEFINITION).and_then(Json::as_str);
    occasion.put(saved, (checkpoint, Source::Fork, Vec::new()), definition)
}

/// The checkpoint after `values` are written to `saved`: by `as_node`, whose edges lead on from there, or by nobody,
/// and then what was about to run still is.
///
/// Fails with BAD_REQUEST for channels and nodes that are not there and values that channels cannot take, and with
/// CONDITION_FAILED when the node's edges cannot be decided.
pub fn update(
    graph: &CompiledGraph,
    saved: &Saved,
    (values, as_node): (JsonMap<String, Json>, Option<&str>),
    occasion: &Occasion,
) -> Result<Put, Failure> {
    if let Some(unknown) = values.keys().find(|channel| !graph.channels.contains_key(channel.as_str())) {
        let known = graph.channels.keys().map(|name| &**name).collect::<Vec<_>>().join(", ");
        let message = format!("the graph has no channel {unknown:?}; it has {known}");
        return Err(failure(code::BAD_REQUEST, message));
    }
    let written = values.into_iter().map(|(channel, value)| Write::new(channel, Value::from(value)));
    let mut writes: Vec<_> = written.collect();
    let mut writer = Task::outside("");
    if let Some(name) = as_node {
        let Some(node) = graph.node(name) else {
            let known = graph.nodes().map(|node| &*node.name).collect::<Vec<_>>().join(", ");
            return Err(failure(
                code::BAD_REQUEST,
                format!("the graph has no node {name:?}; it has {known}"),
            ));
        };
        let state = pregel::fold(graph, &pregel::view(graph, &saved.checkpoint), &writes).map_err(refused)?;
        writes.extend(route(&node.routes, name, &state)?);
        // As LangGraph: the update stands for the node, and whatever else was about to run is not run.
        writer = Task { name: node.name.clone(), triggers: vec![INTERRUPT.into()], ..writer };
    }
    let tasks = [pregel::TaskWrites { task: writer, writes }];
    let stamp = occasion.stamp(saved.metadata.step + 1);
    let applied = pregel::apply(graph, &saved.checkpoint, &tasks, stamp).map_err(refused)?;
    // Unknown to readers that would otherwise run only what this change triggers.
    let checkpoint = Checkpoint { updated: None, ..applied.checkpoint };
    Ok(occasion.put(saved, (checkpoint, Source::Update, applied.changed), Some(&graph.hash)))
}

fn refused(error: pregel::Error) -> Failure {
    failure(code::BAD_REQUEST, error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::graph::{Limits, compile};

    fn graph() -> CompiledGraph {
        let definition = json!({
            "channels": {"log": {"reducer": "append"}, "kind": {}},
            "nodes": [{"id": "a", "type": "transform", "writes": {"log": "'a'"}},
                {"id": "b", "type": "transform", "writes": {"log": "'b'"}},
                {"id": "c", "type": "transform", "writes": {"log": "'c'"}}],
            "edges": [{"from": "START", "to": "a"}, {"from": "a", "to": "b", "when": "kind == 'b'"},
                {"from": "a", "to": "c", "otherwise": true}, {"from": "b", "to": "END"}, {"from": "c", "to": "END"}],
        });
        compile(definition.to_string().as_bytes(), &Limits::default()).expect("no mistakes")
    }

    fn saved() -> Saved {
        let values = [("log", Value::list(vec!["x".into()])), ("branch:to:a", Value::Null)];
        let checkpoint = Checkpoint {
            values: values.iter().map(|(name, value)| ((*name).into(), value.clone())).collect(),
            versions: values
                .iter()
                .map(|(name, _)| ((*name).into(), format!("{:032}.1", 2).into()))
                .collect(),
            ..Checkpoint::empty()
        };
        let metadata =
            pregel::Metadata { source: Source::Loop, step: 3, parents: [].into(), extra: JsonMap::new() };
        Saved { checkpoint, metadata, parent: None, writes: Vec::new() }
    }

    fn occasion() -> Occasion {
        let newest = Some(saved().checkpoint.id);
        Occasion { newest, now: UnixNanos(1_800_000_000_000_000_000), epoch: Epoch(7) }
    }

    fn updated(values: &Json, as_node: Option<&str>) -> Result<Put, Failure> {
        let values = values.as_object().expect("an object").clone();
        update(&graph(), &saved(), (values, as_node), &occasion())
    }

    fn runs(put: &Put) -> Vec<String> {
        let tasks = pregel::plan(&graph(), &Namespace::root(), &put.checkpoint, put.metadata.step + 1);
        tasks.iter().map(|task| task.name.to_string()).collect()
    }

    #[test]
    fn an_update_by_nobody_is_folded_in_and_what_was_about_to_run_still_is() {
        let put = updated(&json!({"log": "y"}), None).expect("it fits");
        assert_eq!(put.checkpoint.values["log"].to_json(), json!(["x", "y"]));
        assert_eq!(runs(&put), ["a"]);
        assert_eq!((put.metadata.source, put.metadata.step), (Source::Update, 4));
        assert!(put.checkpoint.id > saved().checkpoint.id && put.parent == Some(saved().checkpoint.id));
    }

    #[test]
    fn an_update_as_a_node_follows_that_nodes_edges() {
        assert_eq!(runs(&updated(&json!({"kind": "b"}), Some("a")).expect("it fits")), ["b"]);
        assert_eq!(runs(&updated(&json!({"kind": "x"}), Some("a")).expect("it fits")), ["c"]);
        assert!(runs(&updated(&json!({}), Some("c")).expect("it fits")).is_empty(), "it leads to END");
    }

    #[test]
    fn what_the_graph_does_not_have_is_refused() {
        for (values, as_node, part) in
            [(json!({"lgo": 1}), None, "no channel \"lgo\""), (json!({}), Some("d"), "no node \"d\"")]
        {
            let failed = updated(&values, as_node).expect_err("it is not there");
            assert!(failed.code == code::BAD_REQUEST && failed.message.contains(part), "{failed:?}");
        }
    }

    #[test]
    fn a_fork_is_the_same_state_under_a_new_id() {
        let put = fork(&saved(), &occasion());
        assert_eq!(put.checkpoint.values, saved().checkpoint.values);
        assert_eq!((put.metadata.source, runs(&put)), (Source::Fork, vec!["a".to_owned()]));
        assert!(put.checkpoint.id > saved().checkpoint.id && put.changed.is_empty());
    }
}

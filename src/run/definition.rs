//! Which definition a job runs, and whether its thread can go on with it.
//!
//! **Invariant:** every attempt of a job runs the same definition, whatever has been stored under its name since.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::Value as Json;

use super::{Error, Running, code, failure, graphs::Prepared};
use crate::{
    graph::{self, CompiledGraph, Stored},
    job::{Failure, Task},
    pregel::{self, Checkpoint},
    store::{self, AgentRef, Agents, Saved},
    value::Value,
};

/// Metadata key: the hash of the definition a checkpoint was made with.
pub const DEFINITION: &str = "executor_definition";

/// The graph of the job, or why there is none to run.
pub(super) async fn graph_of(running: &Running) -> Result<Result<Arc<Prepared>, Failure>, Error> {
    let ports = &running.attempt.ports;
    match &running.attempt.job.task {
        Task::Inline(definition) => {
            let definition = definition.get().as_bytes();
            if let Some(prepared) = ports.graphs.kept_of(definition) {
                return Ok(Ok(prepared));
            }
            let stored = referred(&*ports.store, definition).await?;
            Ok(ports.graphs.prepare(definition, &stored, &ports.toolbox))
        }
        Task::Stored(name) => stored(running, name).await,
        Task::Invalid(problems) => Ok(Err(failure(code::BAD_REQUEST, problems.join("; ")))),
    }
}

async fn stored(running: &Running, name: &str) -> Result<Result<Arc<Prepared>, Failure>, Error> {
    let ports = &running.attempt.ports;
    let not_found = || failure(code::AGENT_NOT_FOUND, format!("no definition is stored under {name:?}"));
    let hash = match AgentRef::parse(name) {
        AgentRef::Hash(hash) => hash,
        named @ AgentRef::Named { .. } => {
            match ports.store.pin_agent(&running.attempt.claim.job_id, &named).await? {
                Some(hash) => hash,
                None => return Ok(Err(not_found())),
            }
        }
    };
    if let Some(prepared) = ports.graphs.known(&hash) {
        return Ok(Ok(prepared));
    }
    match ports.store.agent(&AgentRef::Hash(hash.clone())).await? {
        Some((_, definition)) => {
            let stored = referred(&*ports.store, &definition).await?;
            Ok(ports.graphs.prepare_stored(&hash, (&definition, &stored), &ports.toolbox))
        }
        None => Ok(Err(not_found())),
    }
}

/// The stored definitions that `definition` leads to, by the references that name them. One that is missing, or one
/// more than compiling allows, is left out: compiling says so.
pub async fn referred(store: &dyn Agents, definition: &[u8]) -> Result<Stored, store::Error> {
    let mut found = Stored::new();
    let mut open = graph::references(definition);
    while let Some(reference) = open.pop_first() {
        if found.contains_key(&reference) || found.len() > graph::MAX_STORED {
            continue;
        }
        if let Some((_, definition)) = store.agent(&AgentRef::parse(&reference)).await? {
            open.extend(graph::references(&definition));
            found.insert(reference, Box::from(&*definition));
        }
    }
    Ok(found)
}

/// Whether `graph` can go on from `saved`, which may have been made with another definition. A thread that Python
/// wrote is bound to none.
pub(super) fn check(graph: &CompiledGraph, saved: &Saved) -> Result<(), Failure> {
    let before = saved.metadata.extra.get(DEFINITION).and_then(Json::as_str);
    if before.is_none_or(|before| before == &*graph.hash) {
        return Ok(());
    }
    let missing = missing(graph, &saved.checkpoint);
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.into_iter().collect::<Vec<_>>().join(", ");
    let message = format!(
        "the thread was made with another definition, and this one lacks {missing}; \
         config.allow_incompatible goes on without"
    );
    Err(failure(code::DEFINITION_INCOMPATIBLE, message))
}

/// What a thread holds or is about to run and `graph` does not have.
fn missing(graph: &CompiledGraph, checkpoint: &Checkpoint) -> BTreeSet<String> {
    let held = checkpoint.values.iter().filter(|(name, value)| {
        !graph::is_internal(name) && !is_empty(value) && !graph.channels.contains_key(*name)
    });
    let channels = held.map(|(name, _)| format!("channel {name}"));
    let nodes = pregel::armed(checkpoint).into_iter().filter(|node| graph.node(node).is_none());
    let nodes = nodes.map(|node| format!("node {node}"));
    channels.chain(nodes).collect()
}

/// Whether nothing is lost with a value.
fn is_empty(value: &Value) -> bool {
    let is_empty_map = value.as_map().is_some_and(crate::value::Map::is_empty);
    *value == Value::Null || is_empty_map || value.as_list().is_some_and(<[Value]>::is_empty)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::graph::{Limits, compile};

    fn graph(definition: &Json) -> CompiledGraph {
        compile(definition.to_string().as_bytes(), &Limits::default()).expect("no mistakes")
    }

    fn holding(values: &[(&str, Value)]) -> Checkpoint {
        let values = values.iter().map(|(name, value)| ((*name).into(), value.clone())).collect();
        Checkpoint { values, ..Checkpoint::empty() }
    }

    #[test]
    fn only_what_a_thread_holds_or_is_about_to_run_can_be_missing() {
        let graph = graph(&json!({
            "channels": {"log": {}},
            "nodes": [{"id": "note", "type": "transform", "writes": {"log": "'x'"}}],
        }));
        let full = Value::list(vec![Value::Null]);
        let lacks =
            |values: &[(&str, Value)]| missing(&graph, &holding(values)).into_iter().collect::<Vec<_>>();
        assert!(lacks(&[("log", full.clone()), ("branch:to:note", Value::Null)]).is_empty());
        assert!(lacks(&[("plan", Value::list(Vec::new())), ("topic", Value::Null)]).is_empty());
        assert_eq!(
            lacks(&[("plan", full.clone()), ("branch:to:gone", Value::Null), ("join:a+b:c", Value::Null)]),
            ["channel plan", "node c", "node gone"]
        );
    }
}

//! Writes of nodes that earlier runs with the same inputs have left.
//!
//! **Invariant:** the cache can only save work: what goes wrong with it is a miss.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use sha2::{Digest, Sha256};

use super::Running;
use crate::{
    graph::{CachePolicy, NodeKind},
    ids,
    node::{self, TaskView},
    pregel::{MESSAGES, Write},
    store::{CacheEntry, CacheKey, langgraph},
    stream::EventType,
    telemetry::metric,
    value::{Map, Message, Name, Role, Value},
};

/// How long the cache is waited for; running the node is the other choice.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where the writes of a task are, or will be.
pub(super) struct Slot {
    key: CacheKey,
    ttl: Duration,
}

impl Slot {
    /// The place of the task's writes; `None` when its node is not cached. Fails when the key cannot be computed.
    pub(super) fn of(view: TaskView<'_>) -> Result<Option<Self>, node::Error> {
        let Some(CachePolicy { key, ttl, fingerprint }) = &view.node.policy.cache else { return Ok(None) };
        let inputs = match key {
            Some(key) => key.eval(view.state).map_err(|error| node::Error::Expression {
                what: "cache.key".into(),
                reason: error.to_string(),
            })?,
            None => {
                let read = node::reads(view.node).into_iter();
                Value::map(read.map(|name| (name, view.state.get(name).cloned().unwrap_or(Value::Null))))
            }
        };
        let mut bytes = fingerprint.as_bytes().to_vec();
        // What cannot be encoded cannot be told apart from other inputs.
        let is_encoded = langgraph::encode_value(&nameless(&inputs), &mut bytes).is_ok();
        Ok(is_encoded.then(|| Self { key: CacheKey(Sha256::digest(&bytes).into()), ttl: *ttl }))
    }

    /// The writes an earlier run has left; readers are told that they are used.
    pub(super) async fn load(&self, running: &Running, view: TaskView<'_>) -> Option<Vec<Write>> {
        let loaded = tokio::time::timeout(PATIENCE, running.attempt.ports.store.cached(&self.key)).await;
        let value = match loaded {
            Ok(Ok(value)) => value,
            Ok(Err(error)) => {
                tracing::warn!(node = %view.node.name, %error, "the cache of nodes cannot be read");
                None
            }
            Err(_) => {
                tracing::warn!(node = %view.node.name, "the cache of nodes is slow");
                None
            }
        };
        let writes = value.as_ref().and_then(|value| writes(view, value));
        let outcome = if writes.is_some() { "hit" } else { "miss" };
        metrics::counter!(metric::NODE_CACHE, "outcome" => outcome).increment(1);
        if writes.is_some() {
            let data = json!({ "kind": "cache", "node": &*view.node.name, "cached": true });
            running.scope.emitter.emit(EventType::Custom, view.origin(), data);
        }
        writes
    }

    /// Leaves what the node itself wrote for later runs; where it leads is decided anew each time.
    pub(super) async fn keep(&self, running: &Running, view: TaskView<'_>, writes: &[Write]) {
        let own = writes.iter().filter(|write| view.graph.channels.contains_key(&write.channel));
        let pair =
            |write: &Write| Value::list(vec![Value::String(write.channel.clone()), write.value.clone()]);
        let (node, value) = (view.node.name.clone(), Value::list(own.map(pair).collect()));
        let entry = CacheEntry { key: self.key, node, value, ttl: self.ttl };
        let kept = tokio::time::timeout(PATIENCE, running.attempt.ports.store.keep(&entry)).await;
        let error = match kept {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it is slow".to_owned(),
        };
        tracing::warn!(node = %view.node.name, error, "writes of a node are not kept in the cache");
    }
}

/// The writes in `value`, as if the task had made them: a model's message gets an id of this task's, for the one it
/// has may be in the conversation already.
fn writes(view: TaskView<'_>, value: &Value) -> Option<Vec<Write>> {
    // As a graph of its own: an item whose model's answer may be corrected.
    let is_model = matches!(view.node.kind, NodeKind::Model(_) | NodeKind::Subgraph(_));
    let id = format!("run-{}", ids::dashed(ids::digest(&[view.id.as_str().as_bytes(), b"cached"])));
    let mine = |item: &Value| match item.as_message() {
        Some(message) if is_model => Message { id: id.as_str().into(), ..Message::clone(message) }.into(),
        _ => item.clone(),
    };
    let write = |pair: &Value| {
        let [channel, value] = pair.as_list()? else { return None };
        let channel: Name = channel.as_str()?.into();
        let value = match value.as_list().filter(|_| &*channel == MESSAGES) {
            Some(items) => Value::list(items.iter().map(mine).collect()),
            None => value.clone(),
        };
        view.graph.channels.contains_key(&channel).then(|| Write { channel, value })
    };
    value.as_list()?.iter().map(write).collect()
}

/// The value without what differs between messages that say the same: their ids, and what they cost.
#[expect(clippy::wildcard_enum_match_arm, reason = "everything else holds no messages")]
fn nameless(value: &Value) -> Value {
    match value {
        Value::List(items) => Value::list(items.iter().map(nameless).collect()),
        Value::Map(map) => Value::map(map.iter().map(|(key, value)| (key.clone(), nameless(value)))),
        Value::Message(message) => {
            let mut message =
                Message { id: "".into(), response_metadata: Map::new(), ..Message::clone(message) };
            if let Role::Ai { usage, .. } = &mut message.role {
                *usage = None;
            }
            Value::Message(Arc::new(message))
        }
        other => other.clone(),
    }
}

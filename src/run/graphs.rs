//! Compiled graphs by content: publishers send the same definition with every message.

use std::sync::Arc;

use moka::sync::Cache;
use sha2::{Digest, Sha256};

use super::{check, code, failure};
use crate::{
    graph::{CompiledGraph, Limits, Stored},
    job::Failure,
    node::ToolSet,
    secrets::Asker,
    tool::Toolbox,
    value::Name,
};

/// Definitions kept compiled; a compiled graph takes some tens of kilobytes.
const CACHED_GRAPHS: u64 = 1_000;

/// Most mistakes named in a result; the rest are counted.
const REPORTED_MISTAKES: usize = 20;

/// A compiled graph with its tools.
pub struct Prepared {
    /// The graph.
    pub graph: Arc<CompiledGraph>,
    /// Its tools.
    pub tools: Arc<ToolSet>,
}

/// Compiled graphs by the SHA-256 of their definition's bytes, and stored ones by that of their hash.
pub struct Graphs {
    limits: Limits,
    compiled: Cache<[u8; 32], Arc<Prepared>>,
}

impl Graphs {
    /// No graph yet.
    pub fn new(limits: Limits) -> Self {
        Self::with_room(limits, CACHED_GRAPHS)
    }

    /// The same with room for another number of graphs.
    pub fn with_room(limits: Limits, most: u64) -> Self {
        Self { limits, compiled: Cache::new(most) }
    }

    /// How many graphs are kept.
    pub fn kept(&self) -> u64 {
        self.compiled.run_pending_tasks();
        self.compiled.entry_count()
    }

    /// What is wrong with `definition`, in one text; `None` when it compiles.
    pub fn mistakes(&self, definition: &[u8], toolbox: &Toolbox) -> Option<String> {
        self.prepare(definition, &Stored::new(), toolbox).err().map(|failure| failure.message)
    }

    /// The graph of `definition`, which may refer to `stored` ones, compiled if it is new. Mistakes are not cached: they
    /// are cheap to find. What is referred to never changes, so the bytes say which graph it is.
    pub(super) fn prepare(
        &self,
        definition: &[u8],
        stored: &Stored,
        toolbox: &Toolbox,
    ) -> Result<Arc<Prepared>, Failure> {
        let key = Sha256::digest(definition).into();
        self.compiled_as((key, Asker::inline), (definition, stored), toolbox)
    }

    /// The graph of these bytes, when it is kept.
    pub(super) fn kept_of(&self, definition: &[u8]) -> Option<Arc<Prepared>> {
        self.compiled.get::<[u8; 32]>(&Sha256::digest(definition).into())
    }

    /// The graph with that hash, when it is kept.
    pub(super) fn known(&self, hash: &str) -> Option<Arc<Prepared>> {
        self.compiled.get(&stored_key(hash))
    }

    /// The graph of the stored definition with that hash, which is that of its canonical JSON.
    pub(super) fn prepare_stored(
        &self,
        hash: &str,
        (definition, stored): (&[u8], &Stored),
        toolbox: &Toolbox,
    ) -> Result<Arc<Prepared>, Failure> {
        self.compiled_as((stored_key(hash), Asker::stored), (definition, stored), toolbox)
    }

    fn compiled_as(
        &self,
        (key, asker): ([u8; 32], fn(&Name) -> Asker),
        (definition, stored): (&[u8], &Stored),
        toolbox: &Toolbox,
    ) -> Result<Arc<Prepared>, Failure> {
        if let Some(prepared) = self.compiled.get(&key) {
            return Ok(prepared);
        }
        let span = tracing::info_span!("graph_compile");
        let _entered = span.enter();
        let graph = check::compile(definition, &self.limits, stored).map_err(|mistakes| {
            let named: Vec<_> = mistakes.iter().take(REPORTED_MISTAKES).map(ToString::to_string).collect();
            let more = mistakes.len().saturating_sub(REPORTED_MISTAKES);
            let tail = if more == 0 { String::new() } else { format!("; and {more} more") };
            failure(code::DEFINITION_INVALID, format!("{}{tail}", named.join("; ")))
        })?;
        if !graph.unset.is_empty() {
            let names = graph.unset.iter().map(|name| &**name).collect::<Vec<_>>().join(", ");
            let message = format!("the definition is a template, and nothing is filled in for {names}");
            return Err(failure(code::VARIABLES_UNSET, message));
        }
        let tools = Arc::new(ToolSet::of(&graph, &toolbox.in_name_of(asker(&graph.name))));
        let prepared = Arc::new(Prepared { graph: Arc::new(graph), tools });
        self.compiled.insert(key, prepared.clone());
        Ok(prepared)
    }
}

/// The key of the stored definition with that hash. Kept apart from those that came with a message: bytes that somebody
/// sent must never be taken for what is stored.
fn stored_key(hash: &str) -> [u8; 32] {
    Sha256::new().chain_update(b"stored:").chain_update(hash).finalize().into()
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use super::*;
    use crate::{encoding::hex, tool::memory::Outside};

    #[test]
    fn fifteen_hundred_stored_agents_take_no_more_memory_than_the_graphs_that_are_kept() {
        const ROOM: u64 = 40;
        let toolbox = Toolbox::in_memory(Arc::new(Outside::default()));
        let graphs = Graphs::with_room(Limits::default(), ROOM);
        let alive = |all: &[Weak<CompiledGraph>]| all.iter().filter(|graph| graph.strong_count() > 0).count();
        let mut all = Vec::new();
        for number in 0..1_500 {
            let definition = serde_json::json!({
                "name": format!("agent-{number}"),
                "nodes": [{"id": "a", "type": "agent", "model": "scripted:x", "system_prompt": "Do it."}],
            });
            let hash = format!("{number:064x}");
            assert!(graphs.known(&hash).is_none(), "nothing is kept of an agent that was not used");
            let definition = definition.to_string();
            let prepared = graphs
                .prepare_stored(&hash, (definition.as_bytes(), &Stored::new()), &toolbox)
                .expect("it compiles");
            all.push(Arc::downgrade(&prepared.graph));
            drop(prepared);
            if graphs.kept() > 0 {
                let again = graphs.known(&hash);
                assert!(again.is_none_or(|kept| *kept.graph.name == *format!("agent-{number}")));
            }
        }
        assert!((1..=ROOM).contains(&graphs.kept()), "{} are kept", graphs.kept());
        let alive = alive(&all);
        assert!(u64::try_from(alive).expect("a count") <= ROOM, "{alive} are alive");
    }

    #[test]
    fn what_came_with_a_message_is_never_taken_for_a_stored_definition() {
        let toolbox = Toolbox::in_memory(Arc::new(Outside::default()));
        let graphs = Graphs::new(Limits::default());
        let definition = br#"{"nodes": [{"id": "a", "type": "agent", "model": "scripted:x"}]}"#;
        graphs.prepare(definition, &Stored::new(), &toolbox).expect("it compiles");
        let hash = hex(Sha256::digest(definition));
        assert!(graphs.kept_of(definition).is_some());
        assert!(graphs.known(&hash).is_none());
        graphs.prepare_stored(&hash, (definition, &Stored::new()), &toolbox).expect("it compiles");
        assert!(graphs.known(&hash).is_some());
    }
}

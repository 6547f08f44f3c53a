//! Compiled graphs by content: publishers send the same definition with every message.

use std::sync::Arc;

use moka::sync::Cache;
use sha2::{Digest, Sha256};

use super::{check, code, failure};
use crate::{
    graph::{CompiledGraph, Limits},
    job::Failure,
    node::ToolSet,
    tool::Toolbox,
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

/// Compiled graphs by the SHA-256 of their definition's bytes.
pub struct Graphs {
    limits: Limits,
    compiled: Cache<[u8; 32], Arc<Prepared>>,
}

impl Graphs {
    /// No graph yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, compiled: Cache::new(CACHED_GRAPHS) }
    }

    /// What is wrong with `definition`, in one text; `None` when it compiles.
    pub fn mistakes(&self, definition: &[u8], toolbox: &Toolbox) -> Option<String> {
        self.prepare(definition, toolbox).err().map(|failure| failure.message)
    }

    /// The graph of `definition`, compiled if it is new. Mistakes are not cached: they are cheap to find.
    pub(super) fn prepare(&self, definition: &[u8], toolbox: &Toolbox) -> Result<Arc<Prepared>, Failure> {
        let key: [u8; 32] = Sha256::digest(definition).into();
        if let Some(prepared) = self.compiled.get(&key) {
            return Ok(prepared);
        }
        let span = tracing::info_span!("graph_compile");
        let _entered = span.enter();
        let graph = check::compile(definition, &self.limits).map_err(|mistakes| {
            let named: Vec<_> = mistakes.iter().take(REPORTED_MISTAKES).map(ToString::to_string).collect();
            let more = mistakes.len().saturating_sub(REPORTED_MISTAKES);
            let tail = if more == 0 { String::new() } else { format!("; and {more} more") };
            failure(code::DEFINITION_INVALID, format!("{}{tail}", named.join("; ")))
        })?;
        let tools = Arc::new(ToolSet::of(&graph, toolbox));
        let prepared = Arc::new(Prepared { graph: Arc::new(graph), tools });
        self.compiled.insert(key, prepared.clone());
        Ok(prepared)
    }
}

//! From a definition to a [`CompiledGraph`], with every mistake reported at once.

use super::{compiled::CompiledGraph, diagnostic::Diagnostic};

/// How large a definition may be.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of JSON.
    pub max_bytes: usize,
    /// Nodes, specialists included.
    pub max_nodes: usize,
    /// Edges.
    pub max_edges: usize,
    /// Levels of nested JSON.
    pub max_depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_bytes: 1 << 20, max_nodes: 200, max_edges: 1_000, max_depth: 32 }
    }
}

/// Compiles the definition in `json`.
pub fn compile(_json: &[u8], _limits: &Limits) -> Result<CompiledGraph, Vec<Diagnostic>> {
    todo!("owner: graph helper")
}

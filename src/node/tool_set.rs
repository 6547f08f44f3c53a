//! The tools of one definition, ready to be called.

use std::collections::HashMap;

use crate::{
    graph::CompiledGraph,
    model::ToolSpec,
    tool::{self, SharedTool, Toolbox},
    value::Name,
};

/// The name of the tool that delegates to a sub-agent.
pub(super) const TASK: &str = "task";

/// Tools by name; shared by all runs of a definition.
pub struct ToolSet {
    tools: HashMap<Name, SharedTool>,
}

impl ToolSet {
    /// Every tool that the graph and its sub-agents name.
    pub fn of(graph: &CompiledGraph, toolbox: &Toolbox) -> Self {
        let mut names: Vec<Name> = Vec::new();
        collect_names(graph, &mut names);
        let resolve = |name: Name| toolbox.resolve(&name, &graph.tools).map(|tool| (name, tool));
        Self { tools: names.into_iter().filter_map(resolve).collect() }
    }

    /// The tool of that name.
    pub fn get(&self, name: &str) -> Option<&SharedTool> {
        self.tools.get(name)
    }

    /// What a model is told about the tools `names` of an agent of `graph`.
    pub(super) fn specs(&self, graph: &CompiledGraph, names: &[Name]) -> Vec<ToolSpec> {
        let spec = |name: &Name| match self.get(name) {
            Some(tool) => Some(tool.spec().clone()),
            None if &**name == TASK => Some(task_spec(graph)),
            None => None,
        };
        names.iter().filter_map(spec).collect()
    }
}

pub(super) fn task_spec(graph: &CompiledGraph) -> ToolSpec {
    let subagents = graph.subagents.iter().map(|(name, subagent)| (&**name, subagent.description.as_str()));
    tool::task_spec(subagents)
}

fn collect_names(graph: &CompiledGraph, names: &mut Vec<Name>) {
    for node in graph.nodes() {
        if let crate::graph::NodeKind::Model(model) = &node.kind {
            names.extend(model.tools.iter().cloned());
        }
    }
    for subagent in graph.subagents.values() {
        collect_names(&subagent.graph, names);
    }
}

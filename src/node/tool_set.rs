//! The tools of one definition, ready to be called.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::{
    graph::{CompiledGraph, NodeKind},
    model::ToolSpec,
    tool::{self, SharedTool, Toolbox},
    value::Name,
};

/// The name of the tool that delegates to a sub-agent.
pub(super) const TASK: &str = "task";

/// Tools by name; shared by all runs of a definition.
pub struct ToolSet {
    tools: HashMap<Name, SharedTool>,
    /// Those of `subgraph` nodes, whose definitions bring tools of their own along.
    nested: HashMap<Name, Arc<ToolSet>>,
}

impl ToolSet {
    /// Every tool that the graph and its sub-agents name.
    pub fn of(graph: &CompiledGraph, toolbox: &Toolbox) -> Self {
        Self::once(graph, toolbox, &mut HashMap::new())
    }

    /// The same with the tools of graphs that have been met, by their addresses: what several nodes run is shared.
    fn once(
        graph: &CompiledGraph,
        toolbox: &Toolbox,
        met: &mut HashMap<*const CompiledGraph, Arc<ToolSet>>,
    ) -> Self {
        let mut names: Vec<Name> = Vec::new();
        collect_names(graph, &mut names);
        let resolve = |name: Name| toolbox.resolve(&name, &graph.tools).map(|tool| (name, tool));
        let mut nested = HashMap::new();
        for node in graph.nodes() {
            let NodeKind::Subgraph(inner) = &node.kind else { continue };
            let at = Arc::as_ptr(&inner.graph);
            let tools = match met.get(&at) {
                Some(tools) => Arc::clone(tools),
                None => {
                    let tools = Arc::new(Self::once(&inner.graph, toolbox, met));
                    met.insert(at, Arc::clone(&tools));
                    tools
                }
            };
            nested.insert(node.name.clone(), tools);
        }
        Self { tools: names.into_iter().filter_map(resolve).collect(), nested }
    }

    /// Finds out what definitions leave open, before models are told of the tools.
    pub async fn prepare(&self) {
        let tools = self.all().into_iter().flat_map(|set| set.tools.values());
        futures::future::join_all(tools.map(|tool| tool.prepare())).await;
    }

    /// These tools and those inside, each set once.
    fn all(&self) -> Vec<&Self> {
        let (mut all, mut met, mut next) = (vec![self], HashSet::new(), 0);
        while let Some(&set) = all.get(next) {
            let nested = set.nested.values().filter(|nested| met.insert(Arc::as_ptr(nested)));
            all.extend(nested.map(|nested| &**nested));
            next += 1;
        }
        all
    }

    /// The tools of the graph that the `subgraph` node `name` runs.
    pub fn nested(&self, name: &str) -> Option<&Arc<ToolSet>> {
        self.nested.get(name)
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
        match &node.kind {
            NodeKind::Model(model) => names.extend(model.tools.iter().cloned()),
            NodeKind::Tool(tool) => names.push(tool.tool.clone()),
            NodeKind::Tools(_)
            | NodeKind::Transform(_)
            | NodeKind::Map(_)
            | NodeKind::Gather
            | NodeKind::Subgraph(_)
            | NodeKind::Router(_)
            | NodeKind::Approval(_)
            | NodeKind::Fail(_)
            | NodeKind::Summary(_) => {}
        }
    }
    for subagent in graph.subagents.values() {
        collect_names(&subagent.graph, names);
    }
}

//! The tools of one definition, ready to be called.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use indexmap::IndexMap;

use super::{Error, TaskView};
use crate::{
    graph::{CompiledGraph, NodeKind},
    model::ToolSpec,
    tool::{self, SharedOffer, SharedTool, Toolbox},
    value::Name,
};

/// The name of the tool that delegates to a sub-agent.
pub(super) const TASK: &str = "task";

/// Tools by name; shared by all runs of a definition.
pub struct ToolSet {
    tools: HashMap<Name, SharedTool>,
    /// Names that stand for tools which somebody else lists.
    /// In the order of the definition: where two have a tool of one name, the first counts, in every process.
    offers: IndexMap<Name, SharedOffer>,
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
        let (mut tools, mut offers) = (HashMap::new(), IndexMap::new());
        for name in names {
            if let Some(offer) = toolbox.offer(&name, &graph.tools) {
                offers.insert(name, offer);
            } else if let Some(tool) = toolbox.resolve(&name, &graph.tools) {
                tools.insert(name, tool);
            }
        }
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
        Self { tools, offers, nested }
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

    /// The tool of that name, or the one that the name of an offer stands for.
    pub fn get(&self, name: &str) -> Option<SharedTool> {
        if let Some(tool) = self.tools.get(name) {
            return Some(tool.clone());
        }
        if let [only] = &*self.offers.get(name).map(|offer| offer.known()).unwrap_or_default() {
            return Some(only.clone());
        }
        self.offers.values().find_map(|offer| one_of(offer, name))
    }

    /// Finds out which tools others list under `names`.
    pub(super) async fn list(&self, names: impl Iterator<Item = &Name>) -> Result<(), tool::Error> {
        let offers: Vec<_> = names.filter_map(|name| self.offers.get(name)).collect();
        // The first failure in the order of the definition is told, whichever came first.
        futures::future::join_all(offers.iter().map(|offer| offer.list())).await.into_iter().collect()
    }

    /// The names, here and inside, behind which nobody lists what they stand for, and why; in the order of the names.
    pub async fn missing(&self) -> Vec<(Name, tool::Error)> {
        let all = self.all();
        let offers = all.iter().flat_map(|set| &set.offers);
        let listed = offers
            .map(|(name, offer)| async move { offer.list().await.err().map(|why| (name.clone(), why)) });
        let mut missing: Vec<_> = futures::future::join_all(listed).await.into_iter().flatten().collect();
        missing.sort_by(|(one, _), (other, _)| one.cmp(other));
        missing
    }

    /// Whether `names` let an agent call `tool`.
    pub(super) fn allow(&self, names: &[Name], tool: &str) -> bool {
        names.iter().any(|name| match self.offers.get(name) {
            Some(offer) => one_of(offer, tool).is_some(),
            None => **name == *tool,
        })
    }

    /// What `names` are called when they are called.
    pub(super) fn names(&self, names: &[Name]) -> Vec<String> {
        let called = |name: &Name| match self.offers.get(name) {
            Some(offer) => offer.known().iter().map(|tool| tool.spec().name.to_string()).collect(),
            None => vec![name.to_string()],
        };
        names.iter().flat_map(called).collect()
    }

    /// What a model is told about the tools `names` of an agent of `graph`.
    pub(super) fn specs(&self, graph: &CompiledGraph, names: &[Name]) -> Vec<ToolSpec> {
        let mut told: Vec<ToolSpec> = Vec::new();
        for name in names {
            let specs = match (self.offers.get(name), self.tools.get(name)) {
                (Some(offer), _) => offer.known().iter().map(|tool| tool.spec().clone()).collect(),
                (None, Some(tool)) => vec![tool.spec().clone()],
                (None, None) if &**name == TASK => vec![task_spec(graph)],
                (None, None) => Vec::new(),
            };
            for spec in specs {
                // One tool may be named twice, by itself and among all of its server.
                if !told.iter().any(|known| known.name == spec.name) {
                    told.push(spec);
                }
            }
        }
        told
    }
}

/// The tool of the offer that is called `name`.
fn one_of(offer: &SharedOffer, name: &str) -> Option<SharedTool> {
    offer.known().iter().find(|tool| *tool.spec().name == *name).cloned()
}

/// Finds out which tools a node has, when others list them; the node's own work comes after it.
pub async fn find_tools(task: TaskView<'_>) -> Result<(), Error> {
    let kind = &task.node.kind;
    let (calls, approvals) = if let NodeKind::Tools(node) = kind {
        (node.tools.as_slice(), node.approvals.as_slice())
    } else {
        (kind.tools(), [].as_slice())
    };
    task.tools.list(calls.iter().chain(approvals)).await.map_err(Error::Tools)
}

pub(super) fn task_spec(graph: &CompiledGraph) -> ToolSpec {
    let subagents = graph.subagents.iter().map(|(name, subagent)| (&**name, subagent.description.as_str()));
    tool::task_spec(subagents)
}

fn collect_names(graph: &CompiledGraph, names: &mut Vec<Name>) {
    for node in graph.nodes() {
        names.extend(node.kind.tools().iter().cloned());
        if let NodeKind::Tools(tools) = &node.kind {
            // Some may need a person's word without the rest of their server.
            names.extend(tools.approvals.iter().cloned());
        }
    }
    for subagent in graph.subagents.values() {
        collect_names(&subagent.graph, names);
    }
}

//! From a definition to a [`CompiledGraph`], with every mistake reported at once.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use indexmap::IndexMap;
use petgraph::graph::DiGraph;

use super::{
    channels::{self, Channels},
    compiled::{Branch, Case, CompiledGraph, Edge, Node, NodeKind, Routes, Subagent},
    definition::{NodeDefinition, ToolDefinition},
    diagnostic::Diagnostic,
    flow::{self, Checked, FlowEdge, FlowKind, Point},
    lower::{self, Lowered, PlainNode},
    read::{self, Parts},
    tools,
};
use crate::value::Name;

/// Supersteps of a flat graph, unless the definition says otherwise.
const FLAT_RECURSION_LIMIT: u32 = 25;
/// Supersteps of a deep agent, unless the definition says otherwise; each tool call of a long task is two.
const DEEP_RECURSION_LIMIT: u32 = 1_000;
/// Most mistakes reported at once; who made more reads the first ones first.
const MAX_MISTAKES: usize = 100;
/// The name of a graph without one.
const DEFAULT_NAME: &str = "agent";

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

/// Compiles the definition in `json`, or reports every mistake in it with the author's pointer.
pub fn compile(json: &[u8], limits: &Limits) -> Result<CompiledGraph, Vec<Diagnostic>> {
    let mut mistakes = Vec::new();
    let graph = read::read(json, limits, &mut mistakes).and_then(|parts| assemble(&parts, &mut mistakes));
    match graph {
        Some(graph) if mistakes.is_empty() => Ok(graph),
        _ => {
            mistakes.truncate(MAX_MISTAKES);
            Err(mistakes)
        }
    }
}

/// Checks the parts against each other and builds the graph; `None` when mistakes make that senseless.
fn assemble(parts: &Parts, mistakes: &mut Vec<Diagnostic>) -> Option<CompiledGraph> {
    let definition = &parts.definition.value;
    // Where parts are missing, what is unreachable or leads nowhere cannot be told.
    let is_read = parts.nodes.len() == definition.nodes.len() && parts.edges.len() == definition.edges.len();
    check_names(parts, mistakes);
    let tools = tools::read(parts, mistakes);
    let channels = channels::read(parts, mistakes);
    let lowered = lower::lower(parts, &tools, &channels, mistakes);
    check_output(parts, &channels, mistakes);
    let recursion_limit = recursion_limit(parts, mistakes);
    let (mut edges, are_joined) =
        flow::read(&parts.edges, &names(parts), &|name| channels.check(name), mistakes);
    if is_read && are_joined {
        check_flow(parts, &lowered, &mut edges, mistakes);
    }
    if !mistakes.is_empty() {
        return None;
    }
    let shared = Shared {
        hash: Arc::clone(&parts.hash),
        channels,
        tools: Arc::new(tools),
        recursion_limit: recursion_limit?,
    };
    let name = match (&definition.name, lowered.nodes.as_slice()) {
        (Some(name), _) => Name::from(name.as_str()),
        (None, [only]) => Name::clone(&only.name),
        (None, _) => DEFAULT_NAME.into(),
    };
    let mut graph = build(&name, lowered.nodes, edges, &shared);
    for specialist in lowered.specialists {
        let name = Name::clone(&specialist.node.name);
        let mut edges = Vec::new();
        flow::complete(&mut edges, 1);
        let graph_of_one = build(&name, vec![specialist.node], edges, &shared);
        let subagent = Subagent { description: specialist.description, graph: Arc::new(graph_of_one) };
        graph.subagents.insert(name, subagent);
    }
    graph.output = definition.output.iter().map(|name| name.as_str().into()).collect();
    Some(graph)
}

/// Reserved names, and names given twice.
fn check_names(parts: &Parts, mistakes: &mut Vec<Diagnostic>) {
    let delegates = lower::delegates(parts);
    let mut ids: HashMap<String, String> = HashMap::new();
    let mut names: HashMap<&str, String> = HashMap::new();
    for node in &parts.nodes {
        let id = node.value.id();
        if let Some(message) = channels::wrong_name(id) {
            mistakes.push(Diagnostic::new(node.place("/id"), message));
        }
        for name in own_names(&node.value) {
            match ids.get(&name) {
                Some(place) => {
                    mistakes.push(Diagnostic::new(
                        node.place("/id"),
                        format!("the id `{name}` is taken by {place}"),
                    ));
                    break;
                }
                None => ids.insert(name, node.place("")),
            };
        }
        if lower::is_in_flow(&node.value, delegates) {
            continue;
        }
        let name = node.value.name();
        if let Some(message) = channels::wrong_name(name).filter(|_| name != id) {
            mistakes.push(Diagnostic::new(node.place("/name"), message));
        }
        match names.get(name) {
            Some(place) if name != id => {
                let message = format!("the name `{name}` is taken by {place}");
                mistakes.push(Diagnostic::new(node.place("/name"), message));
            }
            Some(_) => {}
            None => {
                names.insert(name, node.place(""));
            }
        }
    }
}

/// The names a node takes: its id and, of an agent, that of its tools.
fn own_names(node: &NodeDefinition) -> Vec<String> {
    let id = node.id();
    match node {
        NodeDefinition::Orchestrator(_) | NodeDefinition::Specialist(_) | NodeDefinition::Agent(_) => {
            vec![id.to_owned(), format!("{id}.tools")]
        }
        NodeDefinition::Model(_) | NodeDefinition::Transform(_) => vec![id.to_owned()],
    }
}

/// What edges may name.
fn names(parts: &Parts) -> flow::Names<'_> {
    let delegates = lower::delegates(parts);
    let in_flow = |node: &&read::Placed<NodeDefinition>| lower::is_in_flow(&node.value, delegates);
    let mut nodes = HashMap::new();
    for (index, node) in parts.nodes.iter().filter(in_flow).enumerate() {
        nodes.entry(node.value.id()).or_insert(index);
    }
    for (index, node) in parts.nodes.iter().filter(in_flow).enumerate() {
        nodes.entry(node.value.name()).or_insert(index);
    }
    let outside = parts.nodes.iter().filter(|node| !in_flow(node));
    let specialists = outside.flat_map(|node| [node.value.id(), node.value.name()]);
    let specialists = specialists.filter(|name| !nodes.contains_key(name)).collect();
    let unread = parts.unread_nodes.iter().map(String::as_str).collect();
    flow::Names { nodes, specialists, unread }
}

fn check_output(parts: &Parts, channels: &Channels, mistakes: &mut Vec<Diagnostic>) {
    for (index, name) in parts.definition.value.output.iter().enumerate() {
        if let Some(message) = channels.check(name) {
            mistakes.push(Diagnostic::new(parts.definition.place(&format!("/output/{index}")), message));
        }
    }
}

fn recursion_limit(parts: &Parts, mistakes: &mut Vec<Diagnostic>) -> Option<u32> {
    let definition = &parts.definition.value;
    let other = definition.limits.as_ref().and_then(|limits| limits.recursion);
    match (definition.recursion_limit, other) {
        (Some(one), Some(other)) if one != other => {
            let message = "says something else than `recursion_limit`";
            mistakes.push(Diagnostic::new(parts.definition.place("/limits/recursion"), message));
            None
        }
        (Some(limit), _) | (None, Some(limit)) => Some(limit),
        (None, None) if lower::is_deep(parts) => Some(DEEP_RECURSION_LIMIT),
        (None, None) => Some(FLAT_RECURSION_LIMIT),
    }
}

fn check_flow(parts: &Parts, lowered: &Lowered, edges: &mut Vec<FlowEdge>, mistakes: &mut Vec<Diagnostic>) {
    if lowered.nodes.is_empty() {
        mistakes.push(Diagnostic::new("/nodes", "has no node that could run"));
        return;
    }
    let orchestrators =
        parts.nodes.iter().filter(|node| matches!(node.value, NodeDefinition::Orchestrator(_))).count();
    if edges.is_empty() && lowered.nodes.len() > 1 {
        let message = match orchestrators {
            0 | 1 => format!("{} nodes, but no edges that say in which order they run", lowered.nodes.len()),
            several => format!("{several} orchestrators, but no edges that say in which order they run"),
        };
        mistakes.push(Diagnostic::new("/nodes", message));
        return;
    }
    flow::complete(edges, lowered.nodes.len());
    let checked = |node: &PlainNode| matches!(node.kind, NodeKind::Model(_));
    let nodes: Vec<_> = lowered
        .nodes
        .iter()
        .map(|node| Checked { name: &node.name, place: node.place.clone(), is_model: checked(node) })
        .collect();
    flow::check(edges, &nodes, mistakes);
}

/// What the graph of a definition and those of its specialists have in common.
struct Shared {
    hash: Arc<str>,
    channels: Channels,
    tools: Arc<IndexMap<Name, ToolDefinition>>,
    recursion_limit: u32,
}

/// Builds a graph of which everything has been checked.
fn build(name: &str, nodes: Vec<PlainNode>, edges: Vec<FlowEdge>, shared: &Shared) -> CompiledGraph {
    let names: Vec<Name> = nodes.iter().map(|node| Name::clone(&node.name)).collect();
    let mut wiring = Wiring::new(&names, edges);
    let mut topology = DiGraph::new();
    let mut by_name = HashMap::new();
    let mut indices = Vec::new();
    for (index, node) in nodes.into_iter().enumerate() {
        let routes = wiring.routes.remove(&Point::Node(index)).unwrap_or_default();
        let triggers = wiring.triggers[index].iter().cloned().collect();
        let at = topology.add_node(Node { name: Name::clone(&node.name), kind: node.kind, triggers, routes });
        by_name.insert(Name::clone(&node.name), at);
        indices.push(at);
        let Some((tools_name, tools)) = node.tools else { continue };
        let back = Routes { always: vec![branch_channel(&node.name)], branch: None };
        let triggers = vec![branch_channel(&tools_name)];
        let kind = NodeKind::Tools(tools);
        let tools_at =
            topology.add_node(Node { name: Name::clone(&tools_name), kind, triggers, routes: back });
        by_name.insert(tools_name, tools_at);
        topology.add_edge(at, tools_at, Edge::ToolCalls);
        topology.add_edge(tools_at, at, Edge::Static);
    }
    for (source, target, edge) in wiring.drawn {
        topology.add_edge(indices[source], indices[target], edge);
    }
    CompiledGraph {
        name: name.into(),
        hash: Arc::clone(&shared.hash),
        channels: shared.channels.specs.clone(),
        topology,
        start: wiring.routes.remove(&Point::Start).unwrap_or_default(),
        by_name,
        subagents: IndexMap::new(),
        tools: Arc::clone(&shared.tools),
        recursion_limit: shared.recursion_limit,
        output: Vec::new(),
    }
}

/// Edges as channels: what each point writes when it is done, and what each node waits for.
struct Wiring {
    routes: HashMap<Point, Routes>,
    triggers: Vec<BTreeSet<Name>>,
    drawn: Vec<(usize, usize, Edge)>,
}

impl Wiring {
    fn new(names: &[Name], edges: Vec<FlowEdge>) -> Self {
        let triggers = names.iter().map(|name| BTreeSet::from([branch_channel(name)])).collect();
        let mut wiring = Self { routes: HashMap::new(), triggers, drawn: Vec::new() };
        for edge in edges {
            wiring.add(names, edge);
        }
        wiring
    }

    fn add(&mut self, names: &[Name], edge: FlowEdge) {
        let target = match edge.target {
            Point::Node(index) => Some(index),
            Point::Start | Point::End => None,
        };
        let channel = target.map(|index| branch_channel(&names[index]));
        let routes = self.routes.entry(edge.source).or_default();
        let drawn = match edge.kind {
            FlowKind::Static => {
                routes.always.extend(channel);
                Edge::Static
            }
            FlowKind::When(when, label) => {
                branch(routes).cases.push(Case { when, target: channel });
                Edge::Conditional(label)
            }
            FlowKind::Otherwise => {
                branch(routes).otherwise = channel;
                Edge::Conditional("otherwise".into())
            }
            FlowKind::Join(sources) => {
                self.add_join(names, &sources, target);
                return;
            }
        };
        if let (Point::Node(source), Some(target)) = (edge.source, target) {
            self.drawn.push((source, target, drawn));
        }
    }

    fn add_join(&mut self, names: &[Name], sources: &[usize], target: Option<usize>) {
        let Some(target) = target else { return };
        let joined = sources.iter().map(|index| &*names[*index]).collect::<Vec<_>>().join("+");
        let channel = Name::from(format!("join:{joined}:{}", names[target]));
        self.triggers[target].insert(Name::clone(&channel));
        for source in sources {
            let routes = self.routes.entry(Point::Node(*source)).or_default();
            routes.always.push(Name::clone(&channel));
            self.drawn.push((*source, target, Edge::Join));
        }
    }
}

fn branch(routes: &mut Routes) -> &mut Branch {
    routes.branch.get_or_insert_with(|| Branch { cases: Vec::new(), otherwise: None })
}

fn branch_channel(node: &str) -> Name {
    format!("branch:to:{node}").into()
}

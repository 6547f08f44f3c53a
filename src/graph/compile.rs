//! From a definition to a [`CompiledGraph`], with every mistake reported at once.

use std::{collections::HashMap, sync::Arc};

use super::{
    build::{Shared, build},
    channels::{self, Channels},
    compiled::{CompiledGraph, NodeKind, Subagent},
    definition::{NodeDefinition, NodeWork},
    diagnostic::Diagnostic,
    flow::{self, Checked, FlowEdge},
    gates,
    lower::{self, ItemNode, Lowered, PlainNode, Policies},
    nested::{Nesting, Stored, alone},
    read::{self, Parts},
    routing, tools, variables,
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
/// What the final text of a run that failed by its own word begins with, unless the definition says otherwise.
const FAILURE_MARK: &str = "HALT:";

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
    /// Items of one `map`.
    pub max_map_items: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_bytes: 1 << 20, max_nodes: 200, max_edges: 1_000, max_depth: 32, max_map_items: 1_000 }
    }
}

/// Compiles the definition in `json`, or reports every mistake in it with the author's pointer.
pub fn compile(json: &[u8], limits: &Limits) -> Result<CompiledGraph, Vec<Diagnostic>> {
    compile_with(json, limits, &Stored::new())
}

/// The same for a definition that refers to `stored` ones; see [`references`](super::references).
pub fn compile_with(json: &[u8], limits: &Limits, stored: &Stored) -> Result<CompiledGraph, Vec<Diagnostic>> {
    let mut mistakes = Vec::new();
    let nesting = Nesting::new(limits, stored);
    let graph =
        read::read(json, limits, &mut mistakes).and_then(|parts| assemble(&parts, &nesting, &mut mistakes));
    match graph {
        Some(graph) if mistakes.is_empty() => Ok(graph),
        _ => {
            mistakes.truncate(MAX_MISTAKES);
            Err(mistakes)
        }
    }
}

/// Checks the parts against each other and builds the graph; `None` when mistakes make that senseless.
pub(super) fn assemble(
    parts: &Parts,
    nesting: &Nesting<'_>,
    mistakes: &mut Vec<Diagnostic>,
) -> Option<CompiledGraph> {
    let definition = &parts.definition.value;
    // Where parts are missing, what is unreachable or leads nowhere cannot be told.
    let is_read = parts.nodes.len() == definition.nodes.len() && parts.edges.len() == definition.edges.len();
    check_names(parts, mistakes);
    let tools = tools::read(parts, mistakes);
    let channels = channels::read(parts, mistakes);
    let variables = variables::read(parts, &channels, mistakes);
    let known = lower::Known { tools: &tools, channels: &channels, variables: &variables, nesting };
    let lowered = lower::lower(parts, known, mistakes);
    let names = names(parts);
    let policies = lower::policies(parts, &lowered, (&channels, &names), mistakes);
    check_output(parts, &channels, mistakes);
    let recursion_limit = recursion_limit(parts, mistakes);
    let (mut edges, are_joined) = flow::read(&parts.edges, &names, &|name| channels.check(name), mistakes);
    let are_routed = routing::add(parts, &names, &mut edges, mistakes);
    if is_read && are_joined && are_routed {
        check_flow(parts, (&lowered, &policies), &mut edges, mistakes);
    }
    if !mistakes.is_empty() {
        return None;
    }
    let shared = Shared {
        hash: Arc::clone(&parts.hash),
        channels,
        variables,
        tools: Arc::new(tools),
        policies,
        recursion_limit: recursion_limit?,
    };
    let name = match (&definition.name, lowered.nodes.as_slice()) {
        (Some(name), _) => Name::from(name.as_str()),
        (None, [only]) => Name::clone(&only.name),
        (None, _) => DEFAULT_NAME.into(),
    };
    let items = lowered.items.into_iter().map(|item| ItemNode { node: alone(item.node, &shared), ..item });
    let mut graph = build(&name, (lowered.nodes, items.collect()), edges, &shared);
    for specialist in lowered.specialists {
        let name = Name::clone(&specialist.node.name);
        let mut edges = Vec::new();
        flow::complete(&mut edges, 1);
        let mut graph_of_one = build(&name, (vec![specialist.node], Vec::new()), edges, &shared);
        for node in graph_of_one.topology.node_weights_mut() {
            // There is no other node to lead to; whoever delegates is told of the failure.
            node.policy.on_error = None;
        }
        let subagent = Subagent { description: specialist.description, graph: Arc::new(graph_of_one) };
        graph.subagents.insert(name, subagent);
    }
    graph.limits = lower::limits(parts);
    graph.version = definition.version.as_deref().map(Arc::from);
    graph.output = definition.output.iter().map(|name| name.as_str().into()).collect();
    let mark = definition.failure_mark.as_deref().unwrap_or(FAILURE_MARK).trim();
    for node in &parts.nodes {
        let at = graph.by_name.get(node.value.id()).copied();
        if let Some(node_there) = at.and_then(|at| graph.topology.node_weight_mut(at)) {
            node_there.gates = gates::written(&node.value.common.requires);
        }
    }
    graph.failure_mark = (!mark.is_empty()).then(|| mark.into());
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
        if !node.value.common.requires.is_empty() {
            let message =
                "a specialist runs when it is delegated to; what it requires belongs to a node of the flow";
            mistakes.push(Diagnostic::new(node.place("/requires"), message));
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

/// The names a node takes: its id and, of an agent, those of the nodes behind it; of a map, those of its parts.
fn own_names(node: &NodeDefinition) -> Vec<String> {
    let id = node.id();
    let mut names = vec![id.to_owned()];
    if let Some(agent) = node.work.agent() {
        names.push(format!("{id}.tools"));
        names.extend(agent.summarize.as_ref().map(|_| lower::summary_name(id).to_string()));
    }
    if let NodeWork::Map(map) = &node.work {
        names.push(format!("{id}.done"));
        names.extend(map.node.is_object().then(|| format!("{id}.item")));
    }
    names
}

/// Nodes of the flow, in the order of their indices.
fn in_flow(parts: &Parts) -> Vec<&read::Placed<NodeDefinition>> {
    let (delegates, targets) = (lower::delegates(parts), lower::targets(parts));
    let is_in_flow = |node: &&read::Placed<NodeDefinition>| {
        lower::is_in_flow(&node.value, delegates) && !targets.contains(node.value.id())
    };
    parts.nodes.iter().filter(is_in_flow).collect()
}

/// What edges may name.
fn names(parts: &Parts) -> flow::Names<'_> {
    let (delegates, targets) = (lower::delegates(parts), lower::targets(parts));
    let (in_flow, mut nodes) = (in_flow(parts), HashMap::new());
    for (index, node) in in_flow.iter().enumerate() {
        nodes.entry(node.value.id()).or_insert(index);
    }
    for (index, node) in in_flow.iter().enumerate() {
        nodes.entry(node.value.name()).or_insert(index);
    }
    let outside = parts.nodes.iter().filter(|node| !lower::is_in_flow(&node.value, delegates));
    let specialists = outside.flat_map(|node| [node.value.id(), node.value.name()]);
    let specialists = specialists.filter(|name| !nodes.contains_key(name)).collect();
    let unread = parts.unread_nodes.iter().map(String::as_str).collect();
    flow::Names { nodes, specialists, targets, unread }
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

fn check_flow(
    parts: &Parts,
    (lowered, policies): (&Lowered, &Policies),
    edges: &mut Vec<FlowEdge>,
    mistakes: &mut Vec<Diagnostic>,
) {
    if lowered.nodes.is_empty() {
        mistakes.push(Diagnostic::new("/nodes", "has no node that could run"));
        return;
    }
    let orchestrators =
        parts.nodes.iter().filter(|node| matches!(node.value.work, NodeWork::Orchestrator(_))).count();
    if edges.is_empty() && lowered.nodes.len() > 1 {
        let message = match orchestrators {
            0 | 1 => format!("{} nodes, but no edges that say in which order they run", lowered.nodes.len()),
            several => format!("{several} orchestrators, but no edges that say in which order they run"),
        };
        mistakes.push(Diagnostic::new("/nodes", message));
        return;
    }
    flow::complete(edges, lowered.nodes.len());
    edges.extend(policies.routes.iter().cloned());
    // A person bounds what a loop can do in a moment as well.
    let is_slow =
        |node: &PlainNode| node.kind.model().is_some() || matches!(node.kind, NodeKind::Approval(_));
    let nodes: Vec<_> = lowered
        .nodes
        .iter()
        .map(|node| Checked { name: &node.name, place: node.place.clone(), is_slow: is_slow(node) })
        .collect();
    flow::check(edges, &nodes, mistakes);
    gates::check(&in_flow(parts), edges, &names(parts), mistakes);
}

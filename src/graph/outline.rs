//! The outline of a compiled graph: its nodes and edges with START and END, as people and drawings see them.

use petgraph::visit::EdgeRef;
use serde::Serialize;

use super::{
    compiled::{CompiledGraph, Edge, Node, NodeKind, Routes},
    describe,
    lower::TASK_TOOL,
};
use crate::value::Name;

/// Where a run begins.
pub(super) const FIRST: &str = "START";
/// Where it ends.
pub(super) const LAST: &str = "END";

/// A graph as it is drawn.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outline {
    /// The graph.
    pub name: String,
    /// Its nodes in the order of the definition, without START and END.
    pub nodes: Vec<OutlineNode>,
    /// Its edges, those from START first.
    pub edges: Vec<OutlineEdge>,
    /// Graphs that nodes of it run.
    pub clusters: Vec<Cluster>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutlineNode {
    /// Its name.
    pub name: String,
    /// What kind of node it is.
    pub kind: OutlineKind,
    /// What it does, in a few words.
    pub does: String,
    /// What every way to it passes, one text per requirement.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
}

/// What a node looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OutlineKind {
    /// It calls a model.
    Model,
    /// It calls tools.
    Tools,
    /// It computes.
    Transform,
    /// It chooses where to go on.
    Router,
    /// It asks a person.
    Approval,
    /// It ends the job as failed.
    Fail,
    /// It sends the items of a list.
    Map,
    /// It waits for all of them.
    Gather,
    /// It runs another graph.
    Subgraph,
    /// It calls one tool.
    Tool,
}

/// An edge.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutlineEdge {
    /// Where it comes from: a node, or START.
    pub from: String,
    /// Where it leads: a node, or END.
    pub to: String,
    /// When it is taken.
    pub kind: EdgeKind,
    /// Its condition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// When an edge is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EdgeKind {
    /// Always.
    Always,
    /// When its condition holds.
    Conditional,
    /// When all sources of the join have finished.
    Join,
    /// For each tool call of a model.
    ToolCalls,
    /// For each item of a map.
    Items,
    /// When the node has failed for good.
    OnError,
}

/// A graph inside of another one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cluster {
    /// Nodes that run it.
    pub run_by: Vec<String>,
    /// The graph.
    pub graph: Outline,
}

impl Outline {
    /// The outline of `graph`.
    pub fn of(graph: &CompiledGraph) -> Self {
        let mut edges = leaving(FIRST, &graph.start, &named(graph));
        for node in graph.nodes() {
            edges.extend(inner(graph, node));
            edges.extend(leaving(&node.name, &node.routes, &|_| None));
        }
        let is_task = |tool: &Name| &**tool == TASK_TOOL;
        let delegates =
            |node: &&Node| matches!(&node.kind, NodeKind::Tools(of) if of.tools.iter().any(is_task));
        let delegates = graph.nodes().filter(delegates);
        let run_by: Vec<String> = delegates.map(|node| node.name.to_string()).collect();
        let specialists = graph
            .subagents
            .values()
            .map(|subagent| Cluster { run_by: run_by.clone(), graph: Self::of(&subagent.graph) });
        let subgraphs = graph.nodes().filter_map(|node| {
            let NodeKind::Subgraph(inner) = &node.kind else { return None };
            Some(Cluster { run_by: vec![node.name.to_string()], graph: Self::of(&inner.graph) })
        });
        let clusters = specialists.chain(subgraphs);
        Self {
            name: graph.name.to_string(),
            nodes: graph.nodes().map(outlined).collect(),
            edges,
            clusters: clusters.collect(),
        }
    }
}

fn outlined(node: &Node) -> OutlineNode {
    let kind = match &node.kind {
        NodeKind::Model(_) | NodeKind::Summary(_) => OutlineKind::Model,
        NodeKind::Tools(_) => OutlineKind::Tools,
        NodeKind::Transform(_) => OutlineKind::Transform,
        NodeKind::Router(_) => OutlineKind::Router,
        NodeKind::Approval(_) => OutlineKind::Approval,
        NodeKind::Fail(_) => OutlineKind::Fail,
        NodeKind::Map(_) => OutlineKind::Map,
        NodeKind::Gather => OutlineKind::Gather,
        NodeKind::Subgraph(_) => OutlineKind::Subgraph,
        NodeKind::Tool(_) => OutlineKind::Tool,
    };
    OutlineNode {
        name: node.name.to_string(),
        kind,
        does: describe::kind(node),
        requires: node.gates.clone(),
    }
}

/// Edges from a node to nodes of its graph.
fn inner(graph: &CompiledGraph, node: &Node) -> Vec<OutlineEdge> {
    let Some(index) = graph.by_name.get(&node.name) else { return Vec::new() };
    let outlined = graph.topology.edges(*index).map(|edge| {
        let (kind, label) = match edge.weight() {
            Edge::Static => (EdgeKind::Always, None),
            Edge::Conditional(label) => (EdgeKind::Conditional, Some(label.clone())),
            Edge::Join => (EdgeKind::Join, None),
            Edge::ToolCalls => (EdgeKind::ToolCalls, None),
            Edge::Items => (EdgeKind::Items, None),
            Edge::OnError => (EdgeKind::OnError, Some("on error".to_owned())),
        };
        let to = graph.topology[edge.target()].name.to_string();
        OutlineEdge { from: node.name.to_string(), to, kind, label }
    });
    let mut edges: Vec<_> = outlined.collect();
    // petgraph keeps the newest first.
    edges.reverse();
    edges
}

/// The node that a trigger channel runs, when it may be drawn.
type Target<'a> = &'a dyn Fn(&str) -> Option<String>;

fn named(graph: &CompiledGraph) -> impl Fn(&str) -> Option<String> {
    |channel| {
        let runs = |node: &&Node| node.triggers.iter().any(|trigger| **trigger == *channel);
        graph.nodes().find(runs).map(|node| node.name.to_string())
    }
}

/// The edges of `routes` that are in no topology: those of START, of which `target` finds the nodes, and those that
/// lead to END.
fn leaving(from: &str, routes: &Routes, target: Target<'_>) -> Vec<OutlineEdge> {
    let edge = |to: String, kind, label| OutlineEdge { from: from.to_owned(), to, kind, label };
    let mut edges: Vec<_> = routes
        .always
        .iter()
        .filter_map(|channel| target(channel))
        .map(|to| edge(to, EdgeKind::Always, None))
        .collect();
    let Some(branch) = &routes.branch else {
        if routes.always.is_empty() {
            edges.push(edge(LAST.into(), EdgeKind::Always, None));
        }
        return edges;
    };
    let cases = branch.cases.iter().map(|case| (&case.target, case.label.clone()));
    for (channel, label) in cases.chain([(&branch.otherwise, "otherwise".to_owned())]) {
        let to = match channel {
            Some(channel) => target(channel),
            None => Some(LAST.into()),
        };
        edges.extend(to.map(|to| edge(to, EdgeKind::Conditional, Some(label))));
    }
    edges
}

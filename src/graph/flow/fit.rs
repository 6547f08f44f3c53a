//! How the edges of a graph fit together: branches, what is reached, ways to END, loops that nothing ends.

use std::collections::BTreeSet;

use petgraph::{algo::tarjan_scc, graph::DiGraph};

use super::{FlowEdge, FlowKind, Point};
use crate::graph::diagnostic::Diagnostic;

/// What the checks know about a node.
pub(in crate::graph) struct Checked<'a> {
    /// Its name.
    pub(in crate::graph) name: &'a str,
    /// The author's pointer to it.
    pub(in crate::graph) place: String,
    /// Whether it waits for a model or a person, which bounds what a loop through it can do in a moment.
    pub(in crate::graph) is_slow: bool,
}

/// Checks how the edges fit together.
pub(in crate::graph) fn check(edges: &[FlowEdge], nodes: &[Checked<'_>], mistakes: &mut Vec<Diagnostic>) {
    check_branches(edges, mistakes);
    check_repeats(edges, mistakes);
    if !edges.iter().any(|edge| edge.source == Point::Start) {
        mistakes.push(Diagnostic::new("/edges", "no edge leaves START"));
        return;
    }
    check_reachable(edges, nodes, mistakes);
    check_ends(edges, nodes, mistakes);
    check_loops(edges, nodes, mistakes);
}

fn check_branches(edges: &[FlowEdge], mistakes: &mut Vec<Diagnostic>) {
    let from = |source: Point| edges.iter().filter(move |edge| edge.source == source);
    let sources: BTreeSet<Point> = edges.iter().map(|edge| edge.source).collect();
    for source in sources {
        let is_conditional = from(source).any(|edge| matches!(edge.kind, FlowKind::When(..)));
        let is_static = from(source).any(|edge| matches!(edge.kind, FlowKind::Static));
        let otherwise = from(source).filter(|edge| matches!(edge.kind, FlowKind::Otherwise));
        for (index, edge) in otherwise.enumerate() {
            let message = match index {
                0 if !is_conditional => "`otherwise` needs an edge with `when` that leaves the same node",
                0 if is_static => {
                    "`otherwise` beside an edge without a condition: give that edge a `when`, or leave `otherwise` out"
                }
                0 => continue,
                _ => "a second `otherwise` leaves the same node",
            };
            mistakes.push(Diagnostic::new(&edge.place, message));
        }
        let idle =
            from(source).filter(|edge| matches!(edge.kind, FlowKind::Static) && edge.target == Point::End);
        if is_conditional {
            mistakes.extend(idle.map(|edge| {
                Diagnostic::new(
                    &edge.place,
                    "an edge to END beside conditional edges does nothing; mark it `otherwise`",
                )
            }));
        }
    }
}

/// The same join or unconditional edge twice is a slip: the second has no effect.
fn check_repeats(edges: &[FlowEdge], mistakes: &mut Vec<Diagnostic>) {
    let mut seen = BTreeSet::new();
    for edge in edges {
        let sources = match &edge.kind {
            FlowKind::Static => BTreeSet::from([edge.source]),
            FlowKind::Join(sources) => sources.iter().copied().map(Point::Node).collect(),
            FlowKind::When(..) | FlowKind::Otherwise | FlowKind::OnError => continue,
        };
        if !seen.insert((sources, edge.target)) {
            mistakes.push(Diagnostic::new(&edge.place, "the same edge is there before"));
        }
    }
}

fn check_reachable(edges: &[FlowEdge], nodes: &[Checked<'_>], mistakes: &mut Vec<Diagnostic>) {
    let mut reached = BTreeSet::from([Point::Start]);
    // Each round reaches at least one more node, so there are at most as many rounds as nodes.
    loop {
        let before = reached.len();
        for edge in edges {
            let is_taken = match &edge.kind {
                FlowKind::Join(sources) => {
                    sources.iter().all(|source| reached.contains(&Point::Node(*source)))
                }
                FlowKind::Static | FlowKind::When(..) | FlowKind::Otherwise | FlowKind::OnError => {
                    reached.contains(&edge.source)
                }
            };
            if is_taken {
                reached.insert(edge.target);
            }
        }
        if reached.len() == before {
            break;
        }
    }
    for (index, node) in nodes.iter().enumerate().filter(|(index, _)| !reached.contains(&Point::Node(*index)))
    {
        let waits = edges.iter().any(|edge| edge.target == Point::Node(index));
        let why = if waits { "no way leads to it from START" } else { "no edge leads to it" };
        mistakes
            .push(Diagnostic::new(&node.place, format!("the node `{}` is unreachable: {why}", node.name)));
    }
}

fn check_ends(edges: &[FlowEdge], nodes: &[Checked<'_>], mistakes: &mut Vec<Diagnostic>) {
    // A failure is no way to end that an author can count on.
    let ways = edges.iter().filter(|edge| !matches!(edge.kind, FlowKind::OnError)).collect::<Vec<_>>();
    let leaving = |index: usize| ways.iter().filter(move |edge| edge.leaves(index));
    let mut ending = BTreeSet::from([Point::End]);
    for (index, node) in nodes.iter().enumerate() {
        let mut conditional =
            leaving(index).filter(|edge| matches!(edge.kind, FlowKind::When(..))).peekable();
        let has_otherwise = leaving(index).any(|edge| matches!(edge.kind, FlowKind::Otherwise));
        if leaving(index).next().is_none() {
            let message =
                format!("the node `{}` leads nowhere: add an edge to END or to another node", node.name);
            mistakes.push(Diagnostic::new(&node.place, message));
            ending.insert(Point::Node(index));
        } else if conditional.peek().is_some() && !has_otherwise {
            ending.insert(Point::Node(index));
        }
    }
    // As above: every round but the last adds a node.
    loop {
        let before = ending.len();
        for index in 0..nodes.len() {
            if leaving(index).any(|edge| ending.contains(&edge.target)) {
                ending.insert(Point::Node(index));
            }
        }
        if ending.len() == before {
            break;
        }
    }
    for (_, node) in nodes.iter().enumerate().filter(|(index, _)| !ending.contains(&Point::Node(*index))) {
        mistakes.push(Diagnostic::new(&node.place, format!("the node `{}` has no way to END", node.name)));
    }
}

/// A loop without a model or a condition spins until the recursion limit, whatever the state says.
fn check_loops(edges: &[FlowEdge], nodes: &[Checked<'_>], mistakes: &mut Vec<Diagnostic>) {
    let mut graph = DiGraph::<usize, ()>::new();
    let indices: Vec<_> = (0..nodes.len()).map(|index| graph.add_node(index)).collect();
    let mut own_loops = BTreeSet::new();
    for edge in edges {
        let sources = match &edge.kind {
            FlowKind::Static => vec![edge.source],
            FlowKind::Join(sources) => sources.iter().copied().map(Point::Node).collect(),
            FlowKind::When(..) | FlowKind::Otherwise | FlowKind::OnError => continue,
        };
        for source in sources {
            if let (Point::Node(source), Point::Node(target)) = (source, edge.target)
                && !nodes[source].is_slow
                && !nodes[target].is_slow
            {
                graph.add_edge(indices[source], indices[target], ());
                own_loops.extend((source == target).then_some(source));
            }
        }
    }
    for component in tarjan_scc(&graph) {
        let mut members: Vec<usize> = component.into_iter().map(|index| graph[index]).collect();
        members.sort_unstable();
        if members.len() == 1 && !own_loops.contains(&members[0]) {
            continue;
        }
        let names: Vec<_> = members.iter().map(|index| format!("`{}`", nodes[*index].name)).collect();
        let message = format!(
            "the loop through {} has no model and no condition, so nothing can end it: give one of its edges a `when`",
            names.join(", ")
        );
        mistakes.push(Diagnostic::new(&nodes[members[0]].place, message));
    }
}

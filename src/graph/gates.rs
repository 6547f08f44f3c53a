//! Gates: whether every way to a node passes what the node `requires`.
//!
//! A set of edges lies on every way to a node when the node cannot be reached without them: in the flow without
//! those edges it is then unreachable, and otherwise the way to it is the one that bypasses the gate. With one edge
//! this is dominance in the graph whose edges are split; sets of edges, which loops and people who may overrule a
//! model need, have no dominator tree.
//!
//! **Invariant:** a join is reached when all of its sources are, and any other edge when its source is; so a join
//! behind one gated source is gated.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    definition::{Gate, NodeDefinition, Requirement},
    diagnostic::Diagnostic,
    flow::{FlowEdge, FlowKind, Names, Point},
    read::Placed,
};

/// Longest bypass that is written out; the middle of a longer one is left out.
const MAX_NAMED_NODES: usize = 12;

/// Checks what every node of the flow requires. `nodes` are those of the flow, in the order of their indices.
pub(super) fn check(
    nodes: &[&Placed<NodeDefinition>],
    edges: &[FlowEdge],
    names: &Names<'_>,
    mistakes: &mut Vec<Diagnostic>,
) {
    let flow = Flow { nodes, edges, names };
    for (index, node) in nodes.iter().enumerate() {
        for (number, requirement) in node.value.common.requires.iter().enumerate() {
            let place = format!("/requires/{number}");
            let (mut passing, mut is_read) = (BTreeSet::new(), true);
            let gates = requirement.gates();
            for (part, gate) in &gates {
                match flow.passing(index, gate) {
                    Ok(edges) => passing.extend(edges),
                    Err((field, message)) => {
                        is_read = false;
                        mistakes.push(Diagnostic::new(node.place(&format!("{place}{part}{field}")), message));
                    }
                }
            }
            if let Some(path) = flow.way_to(index, &passing).filter(|_| is_read) {
                let gates = gates.iter().map(|(_, gate)| format!("`{}` ({})", gate.node, gate.when));
                let message = format!(
                    "the node `{}` can be reached without passing {}: {}",
                    node.value.id(),
                    gates.collect::<Vec<_>>().join(" or "),
                    flow.written(&path)
                );
                mistakes.push(Diagnostic::new(node.place(&place), message));
            }
        }
    }
}

/// The requirements as people read them.
pub(super) fn written(requires: &[Requirement]) -> Vec<String> {
    let one = |requirement: &Requirement| {
        let gates = requirement.gates().into_iter().map(|(_, gate)| gate);
        gates.map(|gate| format!("{} ({})", gate.node, gate.when)).collect::<Vec<_>>().join(" or ")
    };
    requires.iter().map(one).collect()
}

struct Flow<'a> {
    nodes: &'a [&'a Placed<NodeDefinition>],
    edges: &'a [FlowEdge],
    names: &'a Names<'a>,
}

/// The field of a gate that is wrong, and why.
type Wrong = (&'static str, String);

impl Flow<'_> {
    /// The edges, by index, that are taken when `gate` lets the run pass on its way to `target`.
    fn passing(&self, target: usize, gate: &Gate) -> Result<Vec<usize>, Wrong> {
        let Some(node) = self.names.nodes.get(gate.node.as_str()).copied() else {
            let known = self.nodes.iter().map(|node| node.value.id()).collect::<Vec<_>>().join(", ");
            return Err(("/node", format!("unknown node `{}`; known: {known}", gate.node)));
        };
        if node == target {
            return Err(("/node", "a node is no gate of its own".into()));
        }
        let leaving = || self.edges.iter().enumerate().filter(|(_, edge)| edge.leaves(node));
        let is_meant = |(_, edge): &(usize, &FlowEdge)| edge.gate_label() == Some(gate.when.as_str());
        let (passing, always): (Vec<_>, Vec<_>) =
            leaving().filter(is_meant).partition(|(_, edge)| match edge.kind {
                FlowKind::When(..) | FlowKind::Otherwise => true,
                FlowKind::Static | FlowKind::Join(_) | FlowKind::OnError => false,
            });
        if !always.is_empty() {
            let message = format!(
                "the edge `{}` that leaves `{}` has no condition, so it stops nobody",
                gate.when, gate.node
            );
            return Err(("/when", message));
        }
        if passing.is_empty() {
            let known: Vec<_> = leaving().filter_map(|(_, edge)| edge.gate_label()).collect();
            let known = if known.is_empty() {
                "it has no conditional edge".into()
            } else {
                format!("known: {}", known.join(", "))
            };
            return Err((
                "/when",
                format!("no edge that leaves `{}` is called `{}`; {known}", gate.node, gate.when),
            ));
        }
        Ok(passing.into_iter().map(|(index, _)| index).collect())
    }

    /// A way from START to `target` that takes none of the edges `without`.
    fn way_to(&self, target: usize, without: &BTreeSet<usize>) -> Option<Vec<Point>> {
        let target = Point::Node(target);
        // From where each point was first reached; a join is reached from the last of its sources.
        let mut reached: BTreeMap<Point, Option<Point>> = BTreeMap::from([(Point::Start, None)]);
        // Every round but the last reaches a node more. Points reached in a round count from the next one on, so that
        // the way is a shortest one.
        while !reached.contains_key(&target) {
            let mut next: BTreeMap<Point, Option<Point>> = BTreeMap::new();
            for (_, edge) in self.edges.iter().enumerate().filter(|(index, _)| !without.contains(index)) {
                let from = match &edge.kind {
                    FlowKind::Join(sources) => {
                        let sources: Vec<_> = sources.iter().map(|source| Point::Node(*source)).collect();
                        let is_complete = sources.iter().all(|source| reached.contains_key(source));
                        sources.last().copied().filter(|_| is_complete)
                    }
                    FlowKind::Static | FlowKind::When(..) | FlowKind::Otherwise | FlowKind::OnError => {
                        Some(edge.source).filter(|source| reached.contains_key(source))
                    }
                };
                if from.is_some() && !reached.contains_key(&edge.target) {
                    next.entry(edge.target).or_insert(from);
                }
            }
            if next.is_empty() {
                return None;
            }
            reached.extend(next);
        }
        let mut way = vec![target];
        while let Some(Some(before)) = way.last().and_then(|point| reached.get(point)) {
            way.push(*before);
        }
        way.reverse();
        Some(way)
    }

    fn written(&self, way: &[Point]) -> String {
        let name = |point: &Point| match point {
            Point::Start => "START",
            Point::Node(index) => self.nodes[*index].value.id(),
            Point::End => "END",
        };
        let mut names: Vec<&str> = way.iter().map(name).collect();
        if names.len() > MAX_NAMED_NODES {
            names.splice(MAX_NAMED_NODES / 2..names.len() - MAX_NAMED_NODES / 2, ["…"]);
        }
        names.join(" → ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use crate::graph::{Limits, compile};

    /// What is wrong with a graph of transforms whose node `last` has these requirements.
    fn mistakes(requires: Json, edges: Json) -> Vec<String> {
        let nodes = ["work", "other", "gate", "person", "last"].map(|id| {
            let requires = if id == "last" { requires.clone() } else { json!([]) };
            json!({"id": id, "type": "transform", "writes": {"x": "1"}, "requires": requires})
        });
        let definition = json!({"channels": {"x": {"reducer": "replace"}}, "nodes": nodes, "edges": edges});
        match compile(definition.to_string().as_bytes(), &Limits::default()) {
            Ok(_) => Vec::new(),
            Err(mistakes) => mistakes.iter().map(ToString::to_string).collect(),
        }
    }

    /// START leads to work, other, gate and person, in this order and by way of each other; `more` comes besides.
    fn flow(more: Json) -> Json {
        let mut edges = json!([
            {"from": "START", "to": "work"}, {"from": "work", "to": "gate"},
            {"from": "gate", "to": "last", "when": "x == 1", "label": "approved"},
            {"from": "gate", "to": "work", "when": "x < 3", "label": "rejected"},
            {"from": "gate", "to": "person", "otherwise": true},
            {"from": "person", "to": "last", "when": "x == 2"}, {"from": "person", "to": "END", "otherwise": true},
            {"from": "last", "to": "END"},
        ]);
        let more = more.as_array().expect("a list").iter().cloned();
        edges.as_array_mut().expect("a list").extend(more);
        edges
    }

    const OTHER: [(&str, &str); 2] = [("work", "other"), ("other", "END")];

    fn around(more: &[(&str, &str)]) -> Json {
        let edges = OTHER.iter().chain(more).map(|(from, to)| json!({"from": from, "to": to}));
        flow(edges.collect())
    }

    #[test]
    fn a_gate_or_another_one_holds_when_every_way_passes_one_of_them() {
        let both =
            json!([{"node": "gate", "when": "approved", "or": [{"node": "person", "when": "x == 2"}]}]);
        assert_eq!(mistakes(both, around(&[])), Vec::<String>::new());
    }

    #[test]
    fn the_way_that_bypasses_a_gate_is_named() {
        let gate = json!([{"node": "gate", "when": "approved"}]);
        assert_eq!(
            mistakes(gate, around(&[])),
            ["/nodes/4/requires/0: the node `last` can be reached without passing `gate` (approved): \
              START → work → gate → person → last"]
        );
        let both =
            json!([{"node": "gate", "when": "approved", "or": [{"node": "person", "when": "x == 2"}]}]);
        assert_eq!(
            mistakes(both, around(&[("other", "last")])),
            [
                "/nodes/4/requires/0: the node `last` can be reached without passing `gate` (approved) or `person` \
              (x == 2): START → work → other → last"
            ]
        );
    }

    #[test]
    fn each_requirement_must_hold() {
        let two = json!([{"node": "gate", "when": "otherwise"}, {"node": "person", "when": "x == 2"}]);
        let found = mistakes(two, around(&[]));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().all(|mistake| mistake.ends_with("START → work → gate → last")), "{found:?}");
    }

    #[test]
    fn a_join_is_gated_when_one_of_its_sources_is() {
        let edges = |approved: &str| {
            json!([
                {"from": "START", "to": "work"}, {"from": "START", "to": "gate"},
                {"from": "gate", "to": "person", "when": "x", "label": "approved"},
                {"from": "gate", "to": approved, "otherwise": true},
                {"from": "other", "to": "END"}, {"from": "work", "to": "other"},
                {"from": ["work", "person"], "to": "last"}, {"from": "last", "to": "END"},
            ])
        };
        let gate = || json!([{"node": "gate", "when": "approved"}]);
        assert_eq!(mistakes(gate(), edges("END")), Vec::<String>::new());
        let bypassed = mistakes(gate(), edges("person"));
        assert!(bypassed[0].ends_with("START → gate → person → last"), "{bypassed:?}");
    }

    #[test]
    fn gates_that_are_none_say_why() {
        let edges = || around(&[]);
        for (gate, part) in [
            (
                json!({"node": "nobody", "when": "x"}),
                "/requires/0/node: unknown node `nobody`; known: work, other",
            ),
            (json!({"node": "last", "when": "x"}), "/requires/0/node: a node is no gate of its own"),
            (json!({"node": "gate", "when": "aproved"}), "known: approved, rejected, otherwise"),
            (json!({"node": "work", "when": "x"}), "it has no conditional edge"),
            (json!({"node": "gate"}), "/requires/0: needs the field `when`"),
            (
                json!({"node": "gate", "when": "approved", "or": [{"node": "person", "when": "x"}]}),
                "/or/0/when",
            ),
        ] {
            let found = mistakes(json!([gate]), edges());
            assert!(found.iter().any(|mistake| mistake.contains(part)), "{gate}: {found:?}");
        }
        let labelled =
            flow(json!([{"from": "work", "to": "other", "label": "on"}, {"from": "other", "to": "END"}]));
        let found = mistakes(json!([{"node": "work", "when": "on"}]), labelled);
        assert!(found[0].contains("has no condition, so it stops nobody"), "{found:?}");
    }

    #[test]
    fn a_specialist_has_no_gates() {
        let definition = json!({"nodes": [{"type": "orchestrator", "id": "main"},
            {"type": "specialist", "id": "s", "requires": [{"node": "main", "when": "x"}]}]});
        let found = compile(definition.to_string().as_bytes(), &Limits::default()).expect_err("no gate");
        assert!(found[0].to_string().contains("/nodes/1/requires: a specialist"), "{found:?}");
    }
}

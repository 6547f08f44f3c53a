//! Where routers and `fail` nodes lead, as edges like those an author draws.

use std::collections::HashMap;

use serde_json::json;

use super::{
    compiled::{Comparison, Condition},
    definition::{NodeWork, ROUTE, RouteNode},
    diagnostic::Diagnostic,
    flow::{FlowEdge, FlowKind, Names, Point},
    pointer::escape,
    read::{Parts, Placed},
    spelling::{END, START},
};
use crate::{graph::definition::NodeDefinition, value::Value};

/// Adds the edges that routers and `fail` nodes imply to those an author drew; `false` when one of them leads
/// nowhere.
pub(super) fn add(
    parts: &Parts,
    names: &Names<'_>,
    edges: &mut Vec<FlowEdge>,
    mistakes: &mut Vec<Diagnostic>,
) -> bool {
    let before = mistakes.len();
    let mut implied = HashMap::new();
    for node in &parts.nodes {
        let Some(source) = names.nodes.get(node.value.id()).copied().map(Point::Node) else { continue };
        let (leads, why) = match &node.value.work {
            NodeWork::Router(router) => (
                of_router(node, router, (source, names), mistakes),
                "a router leads where its `targets` and `otherwise` say; leave this edge out",
            ),
            NodeWork::Fail(_) => (
                vec![FlowEdge {
                    source,
                    target: Point::End,
                    kind: FlowKind::Static,
                    place: node.place(""),
                    label: None,
                }],
                "a `fail` node ends the job; no edge leaves it",
            ),
            NodeWork::Orchestrator(_)
            | NodeWork::Specialist(_)
            | NodeWork::Agent(_)
            | NodeWork::Model(_)
            | NodeWork::Transform(_)
            | NodeWork::Approval(_)
            | NodeWork::Map(_)
            | NodeWork::Subgraph(_)
            | NodeWork::Tool(_) => continue,
        };
        implied.insert(source, (leads, why));
    }
    for edge in edges.iter() {
        let sources = match &edge.kind {
            FlowKind::Join(sources) => sources.iter().copied().map(Point::Node).collect(),
            FlowKind::Static | FlowKind::When(..) | FlowKind::Otherwise | FlowKind::OnError => {
                vec![edge.source]
            }
        };
        let wrong = sources.iter().filter_map(|source| implied.get(source)).map(|(_, why)| *why);
        mistakes.extend(wrong.take(1).map(|why| Diagnostic::new(&edge.place, why)));
    }
    // In the order of the definition, so that diagnostics and drawings do not change places.
    let mut implied: Vec<_> = implied.into_iter().collect();
    implied.sort_by_key(|(source, _)| *source);
    edges.extend(implied.into_iter().flat_map(|(_, (leads, _))| leads));
    mistakes.len() == before
}

fn of_router(
    node: &Placed<NodeDefinition>,
    router: &RouteNode,
    (source, names): (Point, &Names<'_>),
    mistakes: &mut Vec<Diagnostic>,
) -> Vec<FlowEdge> {
    let mut edges = Vec::new();
    let mut lead = |kind, name: &str, place: String| match point(names, name) {
        Ok(target) => edges.push(FlowEdge { source, target, kind, place, label: None }),
        Err(message) => mistakes.push(Diagnostic::new(place, message)),
    };
    for (name, target) in &router.targets {
        let place = node.place(&format!("/targets/{}/node", escape(name)));
        lead(FlowKind::When(chosen(router, name), name.clone()), &target.node, place);
    }
    if let Some(otherwise) = &router.otherwise {
        lead(FlowKind::Otherwise, otherwise, node.place("/otherwise"));
    }
    edges
}

/// The condition under which `target` was chosen, over the channel the router writes.
fn chosen(router: &RouteNode, target: &str) -> Condition {
    let channel = escape(router.writes.as_deref().unwrap_or(ROUTE));
    let compare =
        |field: &str, op, value: Value| Condition::Compare { path: format!("/{channel}/{field}"), op, value };
    let named = compare("target", Comparison::Eq, target.into());
    match router.min_confidence.filter(|least| *least > 0.0) {
        None => named,
        Some(least) => {
            Condition::All(vec![named, compare("confidence", Comparison::Ge, json!(least).into())])
        }
    }
}

/// The point a name stands for, spelled as in edges.
fn point(names: &Names<'_>, name: &str) -> Result<Point, String> {
    let name = match name {
        "END" => END,
        "START" => START,
        name => name,
    };
    if let Some(message) = names.wrong_end(name, true) {
        return Err(message);
    }
    match name {
        START => Err("no choice leads to START".into()),
        END => Ok(Point::End),
        // A name that is known and no node could not be read; that is reported already.
        name => Ok(names.nodes.get(name).copied().map_or(Point::End, Point::Node)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use crate::graph::{CompiledGraph, Edge, Limits, compile};

    fn graph(router: &Json, more: &[Json]) -> Result<CompiledGraph, Vec<String>> {
        let mut desk = json!({ "id": "desk", "type": "router" });
        for (field, value) in router.as_object().expect("fields of a router") {
            desk[field] = value.clone();
        }
        let mut edges =
            vec![json!({ "from": "START", "to": "desk" }), json!({ "from": "sell", "to": "END" })];
        edges.extend(more.iter().cloned());
        let nodes = json!([
            desk,
            { "id": "sell", "type": "transform", "writes": { "done": "true" } },
            { "id": "unknown", "type": "fail", "code": "UNKNOWN", "message": "what?" },
        ]);
        let definition = json!({ "channels": { "done": {}, "log": { "reducer": "append" } }, "nodes": nodes,
            "edges": edges });
        let compiled = compile(definition.to_string().as_bytes(), &Limits::default());
        compiled.map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
    }

    fn targets(node: &str) -> Json {
        json!({ "sales": { "description": "orders", "node": node } })
    }

    #[test]
    fn a_router_leads_where_its_targets_say_by_conditional_edges() {
        let router = json!({ "targets": targets("sell"), "min_confidence": 0.5, "otherwise": "unknown" });
        let graph = graph(&router, &[]).expect("no mistakes");
        let drawn: Vec<_> = graph.topology.edge_weights().collect();
        let conditional = |label: &str| Edge::Conditional(label.to_owned());
        assert_eq!(drawn, [&conditional("sales"), &conditional("otherwise")]);
        let branch =
            graph.node("desk").and_then(|node| node.routes.branch.as_ref()).expect("conditional edges");
        let taken = |target: &str, confidence: f64| {
            let choice = json!({ "target": target, "confidence": confidence });
            let state = [("route".into(), choice.into())].into_iter().collect();
            branch.cases[0].when.eval(&state).expect("it can be decided")
        };
        assert!(taken("sales", 0.5) && !taken("sales", 0.4) && !taken("other", 1.0));
        assert_eq!(branch.otherwise.as_deref(), Some("branch:to:unknown"));
        assert!(graph.channels.contains_key("route"), "it brings its channel along");
    }

    #[test]
    fn what_leads_nowhere_or_twice_is_a_mistake() {
        let whole = json!({ "targets": targets("sell"), "otherwise": "unknown" });
        let with = |field: &str, value: Json| {
            let mut router = whole.clone();
            router[field] = value;
            router
        };
        let edge = |from: &str, to: &str| [json!({ "from": from, "to": to })];
        for (router, more, place, part) in [
            (with("targets", targets("sels")), &[][..], "/nodes/0/targets/sales/node", "unknown node `sels`"),
            (with("targets", targets("START")), &[], "/nodes/0/targets/sales/node", "START"),
            (with("otherwise", json!("nobody")), &[], "/nodes/0/otherwise", "unknown node `nobody`"),
            (with("writes", json!("log")), &[], "/nodes/0/writes", "last_value or replace"),
            (with("writes", json!("lgo")), &[], "/nodes/0/writes", "unknown channel"),
            (with("otherwise", Json::Null), &[], "/nodes/2", "unreachable"),
            (whole.clone(), &edge("desk", "sell"), "/edges/2", "a router leads where"),
            (whole.clone(), &edge("unknown", "sell"), "/edges/2", "ends the job"),
        ] {
            let mistakes = graph(&router, more).expect_err("a mistake");
            let found = mistakes.iter().any(|mistake| mistake.starts_with(place) && mistake.contains(part));
            assert!(found, "{place}: {part}: {mistakes:#?}");
        }
    }
}

//! A `map` → the node that sends the items, and the node that runs for each of them.

use std::collections::BTreeSet;

use serde_json::Value as Json;

use super::{Lowering, Place, PlainNode};
use crate::{
    graph::{
        compiled::{ItemRules, MapNode, NodeKind, Reducer},
        definition::{self, NodeDefinition, NodeWork},
        read::{self, Parts, Placed},
    },
    value::Name,
};

/// What the node of an item may read beside the state.
const LOCALS: &[&str] = &["item", "index"];

/// The node that runs for the items of a map.
#[derive(Debug)]
pub(in crate::graph) struct ItemNode {
    /// The map's index among the nodes of the flow.
    pub(in crate::graph) map: usize,
    pub(in crate::graph) node: PlainNode,
    pub(in crate::graph) rules: ItemRules,
    /// Its definition, when it stands inside the map's.
    pub(in crate::graph) inline: Option<Placed<NodeDefinition>>,
}

/// Ids of the nodes that run for the items of a map: they are no part of the flow.
pub(in crate::graph) fn targets(parts: &Parts) -> BTreeSet<&str> {
    parts.nodes.iter().filter_map(|node| target(&node.value)).collect()
}

fn target(node: &NodeDefinition) -> Option<&str> {
    let NodeWork::Map(map) = &node.work else { return None };
    map.node.as_str()
}

impl Lowering<'_> {
    /// The map at `index` of the flow and the node of its items, if that could be read.
    pub(super) fn map(
        &mut self,
        (map, index): (&definition::MapNode, usize),
        id: &str,
        place: Place<'_>,
    ) -> (PlainNode, Option<ItemNode>) {
        let items = self.expression(&map.items, place("/items"));
        self.check_errors(map.errors.as_deref(), place);
        let node = match map.node.as_str() {
            Some(target) => self.target(target, id, place).map(|node| (node, None)),
            None => self.inline(&map.node, id, place),
        };
        let (node, inline) = node.map_or((None, None), |(node, inline)| (Some(node), inline));
        if let Some(node) = &node {
            self.check_side_by_side(&node.kind, place("/node"));
        }
        let of_all = self.parts.definition.value.limits.as_ref().and_then(|limits| limits.plan_steps);
        let said = [map.max_items, of_all].into_iter().flatten();
        let said = said.filter_map(|limit| usize::try_from(limit).ok());
        let limit = said.fold(self.nesting.limits.max_map_items, usize::min);
        let kind = match (items, &node) {
            (Some(items), Some(node)) => {
                NodeKind::Map(MapNode { items, node: Name::clone(&node.name), max_items: limit })
            }
            // The graph is not built, but the node stays in it for the checks that follow.
            _ => NodeKind::Gather,
        };
        let rules = ItemRules {
            max_concurrency: map.max_concurrency.and_then(|count| usize::try_from(count).ok()),
            errors: map.errors.as_deref().map(Name::from),
        };
        let plain = PlainNode::new(id.into(), place(""), kind);
        (plain, node.map(|node| ItemNode { map: index, node, rules, inline }))
    }

    fn check_errors(&mut self, errors: Option<&str>, place: Place<'_>) {
        self.check_channel(errors, place("/errors"));
        let spec = errors.and_then(|name| self.channels.specs.get(name));
        if spec.is_some_and(|spec| spec.reducer != Reducer::Append) {
            self.wrong(
                place("/errors"),
                "the errors of several items need a channel with the reducer `append`",
            );
        }
    }

    /// A node of the definition, which nothing else may lead to.
    fn target(&mut self, target: &str, map: &str, place: Place<'_>) -> Option<PlainNode> {
        let parts = self.parts;
        let Some(node) = parts.nodes.iter().find(|node| node.value.id() == target) else {
            if !parts.unread_nodes.iter().any(|unread| unread == target) {
                let known: Vec<_> = parts.nodes.iter().map(|node| node.value.id()).collect();
                let message = format!("unknown node `{target}`; known: {}", known.join(", "));
                self.wrong(place("/node"), message);
            }
            return None;
        };
        let maps = parts.nodes.iter().filter(|node| self::target(&node.value) == Some(target));
        let first = maps.map(|node| node.value.id()).next();
        if let Some(first) = first.filter(|first| *first != map) {
            let message = format!(
                "the node `{target}` runs for the items of `{first}` already: write one for each map"
            );
            self.wrong(place("/node"), message);
            return None;
        }
        self.item(node, &place("/node"))
    }

    /// A node that is written inside the map; it is called `<map>.item`.
    fn inline(
        &mut self,
        json: &Json,
        map: &str,
        place: Place<'_>,
    ) -> Option<(PlainNode, Option<Placed<NodeDefinition>>)> {
        let name = format!("{map}.item");
        let mut json = json.clone();
        if let Some(fields) = json.as_object_mut() {
            fields.insert("id".into(), name.as_str().into());
        }
        let node = read::read_node(&json, &place("/node"), self.mistakes)?;
        let item = self.item(&node, &place("/node"))?;
        Some((item, Some(node)))
    }

    fn item(&mut self, node: &Placed<NodeDefinition>, map_place: &str) -> Option<PlainNode> {
        let place = |pointer: &str| node.place(pointer);
        let id = node.value.id();
        for (field, is_set) in [
            ("/interrupt_before", node.value.common.interrupt_before),
            ("/interrupt_after", node.value.common.interrupt_after),
        ] {
            if is_set {
                self.wrong(place(field), "a run pauses at a map, not at single items");
            }
        }
        if !node.value.common.requires.is_empty() {
            self.wrong(place("/requires"), "what the items require belongs to their map");
        }
        self.locals = LOCALS;
        let plain = match &node.value.work {
            NodeWork::Model(call) => Ok(self.call(call, id, &place)),
            NodeWork::Transform(node) => Ok(self.expressions(node, id, &place)),
            NodeWork::Subgraph(node) => Ok(self.subgraph(node, id, &place)),
            NodeWork::Tool(node) => Ok(self.tool(node, id, &place)),
            NodeWork::Approval(node) => Ok(self.approval(node, id, &place)),
            NodeWork::Fail(node) => Ok(self.fail(node, id, &place)),
            NodeWork::Router(_) => Err("a router leads to other nodes: put it into a `subgraph`"),
            NodeWork::Orchestrator(_) | NodeWork::Specialist(_) | NodeWork::Agent(_) => Err(
                "the items would share the agent's conversation in `messages`: put the agent into a `subgraph`",
            ),
            NodeWork::Map(_) => Err("a map inside a map needs a state of its own: put it into a `subgraph`"),
        };
        self.locals = &[];
        plain.map_err(|message| self.wrong(map_place.to_owned(), message)).ok()
    }

    /// Items run side by side, so a channel that keeps one value cannot take theirs.
    fn check_side_by_side(&mut self, kind: &NodeKind, place: String) {
        let written: Vec<&Name> = match kind {
            NodeKind::Model(model) => model.writes.iter().collect(),
            NodeKind::Transform(transform) => transform.writes.iter().map(|(channel, _)| channel).collect(),
            NodeKind::Subgraph(subgraph) => subgraph.output.iter().map(|(channel, _)| channel).collect(),
            NodeKind::Tool(tool) => tool.writes.iter().collect(),
            NodeKind::Approval(approval) => vec![&approval.writes],
            NodeKind::Router(_)
            | NodeKind::Summary(_)
            | NodeKind::Fail(_)
            | NodeKind::Tools(_)
            | NodeKind::Map(_)
            | NodeKind::Gather => Vec::new(),
        };
        let keeps_one = |name: &&&Name| {
            self.channels.specs.get(**name).is_some_and(|spec| spec.reducer == Reducer::LastValue)
        };
        let wrong: Vec<_> = written.iter().filter(keeps_one).map(ToString::to_string).collect();
        for name in wrong {
            let message = format!(
                "the items write `{name}` side by side, and it keeps one value: give it a reducer such as `append`"
            );
            self.wrong(place.clone(), message);
        }
    }
}

//! Builds a [`CompiledGraph`] of parts that have been checked: nodes with what stands behind them, and edges as
//! channels.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use indexmap::IndexMap;
use petgraph::graph::{DiGraph, NodeIndex};

use super::{
    channels::Channels,
    compiled::{Branch, Case, CompiledGraph, Edge, Node, NodeKind, Pauses, Routes},
    definition::ToolDefinition,
    flow::{FlowEdge, FlowKind, Point},
    lower::{ItemNode, PlainNode, Policies},
    policy::{CallLimits, Policy},
    trigger::Trigger,
    variables::Variables,
};
use crate::value::Name;

/// What the graph of a definition and those of its specialists have in common.
pub(super) struct Shared {
    pub(super) hash: Arc<str>,
    pub(super) channels: Channels,
    pub(super) variables: Variables,
    pub(super) tools: Arc<IndexMap<Name, ToolDefinition>>,
    pub(super) policies: Policies,
    pub(super) recursion_limit: u32,
}

/// Builds a graph of which everything has been checked.
pub(super) fn build(
    name: &str,
    (nodes, items): (Vec<PlainNode>, Vec<ItemNode>),
    edges: Vec<FlowEdge>,
    shared: &Shared,
) -> CompiledGraph {
    let names = nodes.iter().map(|node| {
        let leaves = if matches!(node.kind, NodeKind::Map(_)) { done(&node.name) } else { node.name.clone() };
        Ends { enters: node.name.clone(), leaves }
    });
    let mut wiring = Wiring::new(&names.collect::<Vec<_>>(), edges);
    let mut items: HashMap<usize, ItemNode> = items.into_iter().map(|item| (item.map, item)).collect();
    let mut drawing = Drawing::default();
    // Where edges enter each node of the flow, and where they leave it.
    let mut ends = Vec::new();
    for (index, node) in nodes.into_iter().enumerate() {
        let routes = wiring.routes.remove(&Point::Node(index)).unwrap_or_default();
        let triggers = wiring.triggers[index].iter().cloned().collect();
        let (policy, of_tools) = (shared.policies.of(&node), shared.policies.of_tools(&node));
        // Summarising is a part of the agent's work.
        let of_summary = Policy { cache: None, ..policy.clone() };
        let PlainNode { name, kind, pauses, tools, summary, .. } = node;
        if let Some(item) = items.remove(&index) {
            let item_policy = shared.policies.of(&item.node);
            let map = Node { pauses, policy, ..Node::plain(name, kind, triggers) };
            ends.push(drawing.map(map, (item, item_policy), routes));
            continue;
        }
        let at = Node { pauses, routes, policy, ..Node::plain(name.clone(), kind, triggers) };
        let at = drawing.add(at);
        ends.push((at, at));
        let tools = tools.map(|(name, tools)| (name, NodeKind::Tools(tools), Edge::ToolCalls, of_tools));
        let summary = summary.map(|(name, summary)| {
            let label = format!("above {} tokens", summary.limits.trigger_tokens);
            (name, NodeKind::Summary(Box::new(summary)), Edge::Conditional(label), of_summary)
        });
        for (behind_name, kind, edge, policy) in tools.into_iter().chain(summary) {
            let triggers = vec![Trigger::Branch(&behind_name).channel()];
            let routes = Routes { always: vec![Trigger::Branch(&name).channel()], branch: None };
            let node = Node { routes, policy, ..Node::plain(behind_name, kind, triggers) };
            let behind = drawing.add(node);
            drawing.topology.add_edge(at, behind, edge);
            drawing.topology.add_edge(behind, at, Edge::Static);
        }
    }
    let Drawing { mut topology, by_name } = drawing;
    for (source, target, edge) in wiring.drawn {
        topology.add_edge(ends[source].1, ends[target].0, edge);
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
        variables: Arc::clone(&shared.variables.values),
        unset: shared.variables.unset.clone(),
        recursion_limit: shared.recursion_limit,
        limits: CallLimits::default(),
        version: None,
        output: Vec::new(),
        failure_mark: None,
    }
}

/// Nodes as they are added to a graph.
#[derive(Default)]
struct Drawing {
    topology: DiGraph<Node, Edge>,
    by_name: HashMap<Name, NodeIndex>,
}

impl Drawing {
    fn add(&mut self, node: Node) -> NodeIndex {
        let name = Name::clone(&node.name);
        let at = self.topology.add_node(node);
        self.by_name.insert(name, at);
        at
    }

    /// Adds a map, the node of its items, and the node where they come together, which goes on as `routes` say: a
    /// condition after the map sees what all items wrote, and is decided once.
    fn map(
        &mut self,
        map: Node,
        (item, policy): (ItemNode, Policy),
        routes: Routes,
    ) -> (NodeIndex, NodeIndex) {
        let done = done(&map.name);
        let gather = || Routes { always: vec![Trigger::Branch(&done).channel()], branch: None };
        let Pauses { before, after } = map.pauses;
        // Without items the map goes there itself.
        let at = self.add(Node { routes: gather(), pauses: Pauses { before, after: false }, ..map });
        let triggers = vec![Trigger::Branch(&item.node.name).channel()];
        let items = Some(item.rules);
        let item = Node::plain(item.node.name, item.node.kind, triggers);
        let item_at = self.add(Node { routes: gather(), items, policy, ..item });
        let triggers = vec![Trigger::Branch(&done).channel()];
        let pauses = Pauses { before: false, after };
        let done_at = self.add(Node { routes, pauses, ..Node::plain(done, NodeKind::Gather, triggers) });
        self.topology.add_edge(at, item_at, Edge::Items);
        self.topology.add_edge(at, done_at, Edge::Static);
        self.topology.add_edge(item_at, done_at, Edge::Static);
        (at, done_at)
    }
}

/// The node where the items of a map come together.
fn done(map: &str) -> Name {
    format!("{map}.done").into()
}

/// The names of a node of the flow as the target and as the source of edges; only of a map they differ.
struct Ends {
    enters: Name,
    leaves: Name,
}

/// Edges as channels: what each point writes when it is done, and what each node waits for.
struct Wiring {
    routes: HashMap<Point, Routes>,
    triggers: Vec<BTreeSet<Name>>,
    drawn: Vec<(usize, usize, Edge)>,
}

impl Wiring {
    fn new(names: &[Ends], edges: Vec<FlowEdge>) -> Self {
        let triggers =
            names.iter().map(|name| BTreeSet::from([Trigger::Branch(&name.enters).channel()])).collect();
        let mut wiring = Self { routes: HashMap::new(), triggers, drawn: Vec::new() };
        for edge in edges {
            wiring.add(names, edge);
        }
        wiring
    }

    fn add(&mut self, names: &[Ends], edge: FlowEdge) {
        let target = match edge.target {
            Point::Node(index) => Some(index),
            Point::Start | Point::End => None,
        };
        let channel = target.map(|index| Trigger::Branch(&names[index].enters).channel());
        let routes = self.routes.entry(edge.source).or_default();
        let label = edge.gate_label().unwrap_or_default().to_owned();
        let drawn = match edge.kind {
            FlowKind::Static => {
                routes.always.extend(channel);
                Edge::Static
            }
            FlowKind::When(when, _) => {
                branch(routes).cases.push(Case { when, target: channel, label: label.clone() });
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
            // Where it leads is in the node's policy.
            FlowKind::OnError => Edge::OnError,
        };
        if let (Point::Node(source), Some(target)) = (edge.source, target) {
            self.drawn.push((source, target, drawn));
        }
    }

    fn add_join(&mut self, names: &[Ends], sources: &[usize], target: Option<usize>) {
        let Some(target) = target else { return };
        let joined = sources.iter().map(|index| &*names[*index].leaves).collect::<Vec<_>>().join("+");
        let channel = Trigger::Join { names: &joined, node: &names[target].enters }.channel();
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

//! The flow of a graph: edges between nodes by index, and the mistakes one can make in each of them.

mod fit;

use std::collections::{BTreeSet, HashMap};

use super::{
    compiled::Condition,
    condition,
    definition::EdgeDefinition,
    diagnostic::Diagnostic,
    read::Placed,
    schema::EDGE_TYPES,
    spelling::{END, START},
};

pub(super) use fit::{Checked, check};

/// One end of an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Point {
    /// Where a run begins.
    Start,
    /// A node, by its index.
    Node(usize),
    /// Where it ends.
    End,
}

/// An edge of the flow.
#[derive(Clone, Debug)]
pub(super) struct FlowEdge {
    pub(super) source: Point,
    pub(super) target: Point,
    pub(super) kind: FlowKind,
    /// The author's pointer to it; empty when the author left it out.
    pub(super) place: String,
    /// What the author calls it, if anything.
    pub(super) label: Option<String>,
}

impl FlowEdge {
    /// Whether it leaves the node.
    pub(super) fn leaves(&self, node: usize) -> bool {
        match &self.kind {
            FlowKind::Join(sources) => sources.contains(&node),
            FlowKind::Static | FlowKind::When(..) | FlowKind::Otherwise | FlowKind::OnError => {
                self.source == Point::Node(node)
            }
        }
    }

    /// What gates call it: its label, or else its condition.
    pub(super) fn gate_label(&self) -> Option<&str> {
        let own = match &self.kind {
            FlowKind::When(_, condition) => Some(condition.as_str()),
            FlowKind::Otherwise => Some("otherwise"),
            FlowKind::Static | FlowKind::Join(_) | FlowKind::OnError => None,
        };
        self.label.as_deref().or(own)
    }
}

/// When an edge is taken.
#[derive(Clone, Debug)]
pub(super) enum FlowKind {
    /// Always.
    Static,
    /// When the condition holds; with its source text.
    When(Condition, String),
    /// When no condition does.
    Otherwise,
    /// When all of these nodes have finished; `source` is the first of them.
    Join(Vec<usize>),
    /// When the source has failed for good.
    OnError,
}

/// What flow edges may name.
#[derive(Debug)]
pub(super) struct Names<'a> {
    /// Nodes of the flow by id and, where that is clear, by name.
    pub(super) nodes: HashMap<&'a str, usize>,
    /// Ids and names of specialists: edges to them say who delegates.
    pub(super) specialists: BTreeSet<&'a str>,
    /// Nodes that run for the items of a map.
    pub(super) targets: BTreeSet<&'a str>,
    /// Names of nodes that could not be read.
    pub(super) unread: BTreeSet<&'a str>,
}

impl Names<'_> {
    fn is_known(&self, name: &str) -> bool {
        self.nodes.contains_key(name)
            || self.specialists.contains(name)
            || self.targets.contains(name)
            || self.unread.contains(name)
            || [START, END].contains(&name)
    }

    /// What is wrong with `name` as an end of an edge, if anything.
    pub(super) fn wrong_end(&self, name: &str, is_flow: bool) -> Option<String> {
        if !self.is_known(name) {
            return Some(format!("unknown node `{name}`; known: {}", self.list()));
        }
        if self.targets.contains(name) {
            return Some(format!(
                "`{name}` runs for the items of a map; the map's edges say what comes before and after"
            ));
        }
        (is_flow && self.specialists.contains(name))
            .then(|| format!("`{name}` is a specialist: it runs when it is delegated to, not in the flow"))
    }

    fn list(&self) -> String {
        let all = self.nodes.keys().chain(&self.specialists).chain(&self.unread).copied();
        // Nodes that forgot their names go by their pointers.
        let names: BTreeSet<_> = all.filter(|name| !name.starts_with("/nodes/")).collect();
        names.into_iter().chain(["START", "END"]).collect::<Vec<_>>().join(", ")
    }
}

/// Reads the edges of the flow, and whether all of them could be read. Edges that describe delegation are
/// checked and left out.
pub(super) fn read(
    edges: &[Placed<EdgeDefinition>],
    names: &Names<'_>,
    check_channel: &dyn Fn(&str) -> Option<String>,
    mistakes: &mut Vec<Diagnostic>,
) -> (Vec<FlowEdge>, bool) {
    let (mut flow, mut are_joined) = (Vec::new(), true);
    for edge in edges {
        let before = mistakes.len();
        let Some(sources) = check_points(edge, names, mistakes) else { continue };
        if mistakes.len() > before {
            are_joined = false;
            continue;
        }
        let point = |name: &str| match name {
            START => Some(Point::Start),
            END => Some(Point::End),
            name => names.nodes.get(name).copied().map(Point::Node),
        };
        let ends = (sources.first().and_then(|name| point(name)), point(&edge.value.target));
        let kind = match &edge.value.sources {
            Some(sources) => read_join(edge, sources, &point, mistakes),
            None => Some(read_kind(edge, check_channel, mistakes)),
        };
        match (ends, kind) {
            ((Some(source), Some(target)), Some(kind)) => {
                let label = edge.value.label.clone();
                flow.push(FlowEdge { source, target, kind, place: edge.place(""), label });
            }
            _ => are_joined = false,
        }
    }
    (flow, are_joined)
}

/// Checks what the edge joins; `None` when it is no part of the flow.
fn check_points<'a>(
    edge: &'a Placed<EdgeDefinition>,
    names: &Names<'_>,
    mistakes: &mut Vec<Diagnostic>,
) -> Option<Vec<&'a str>> {
    let definition = &edge.value;
    let mut wrong = |part: &str, message: String| mistakes.push(Diagnostic::new(edge.place(part), message));
    let sources: Vec<&str> = match (&definition.source, &definition.sources) {
        (Some(source), None) => vec![source],
        (None, Some(sources)) => sources.iter().map(String::as_str).collect(),
        (None, None) => {
            wrong("", "needs the field `source` or `sources`".into());
            vec![]
        }
        (Some(_), Some(_)) => {
            wrong("/sources", "an edge has `source` or `sources`, not both".into());
            vec![]
        }
    };
    let kind = definition.kind.as_deref().unwrap_or("flow");
    if !EDGE_TYPES.contains(&kind) {
        wrong("/type", format!("unknown edge type `{kind}`; known: {}", EDGE_TYPES.join(", ")));
    }
    let target = definition.target.as_str();
    let is_flow = kind == "flow" && !is_delegation(&sources, target, names);
    let part = |index: usize| match definition.sources {
        Some(_) => format!("/sources/{index}"),
        None => "/source".into(),
    };
    for (index, name) in sources.iter().enumerate() {
        let message = names.wrong_end(name, is_flow);
        let message = message.or_else(|| (*name == END).then(|| "no edge leaves END".to_owned()));
        message.into_iter().for_each(|message| wrong(&part(index), message));
    }
    let message = names.wrong_end(target, is_flow);
    let message = message.or_else(|| (target == START).then(|| "no edge leads to START".to_owned()));
    message.into_iter().for_each(|message| wrong("/target", message));
    if sources.contains(&START) && target == END {
        wrong("", "leads from START to END without a node".into());
    }
    is_flow.then_some(sources)
}

/// Whether the edge joins a specialist with a node that delegates, whatever its type says.
fn is_delegation(sources: &[&str], target: &str, names: &Names<'_>) -> bool {
    let touches = |name: &str| names.specialists.contains(name);
    let ends = sources.iter().copied().chain([target]);
    let is_inside = ends.clone().all(|name| name != START && name != END);
    is_inside && ends.clone().any(touches)
}

fn read_kind(
    edge: &Placed<EdgeDefinition>,
    check_channel: &dyn Fn(&str) -> Option<String>,
    mistakes: &mut Vec<Diagnostic>,
) -> FlowKind {
    let otherwise = edge.value.otherwise == Some(true);
    match &edge.value.when {
        Some(when) => {
            if otherwise {
                let message = "an edge has `when` or `otherwise`, not both";
                mistakes.push(Diagnostic::new(edge.place("/otherwise"), message));
            }
            let condition = condition::read(when, &edge.place("/when"), check_channel);
            let condition = condition.unwrap_or_else(|wrong| {
                mistakes.extend(wrong);
                // The graph is not built, but the edge stays in it for the checks that follow.
                Condition::Any(Vec::new())
            });
            let label = condition.to_string();
            FlowKind::When(condition, label)
        }
        None if otherwise => FlowKind::Otherwise,
        None => FlowKind::Static,
    }
}

fn read_join(
    edge: &Placed<EdgeDefinition>,
    sources: &[String],
    point: &dyn Fn(&str) -> Option<Point>,
    mistakes: &mut Vec<Diagnostic>,
) -> Option<FlowKind> {
    let before = mistakes.len();
    let mut wrong = |part: &str, message: &str| mistakes.push(Diagnostic::new(edge.place(part), message));
    for field in ["when", "otherwise"] {
        let is_set =
            if field == "when" { edge.value.when.is_some() } else { edge.value.otherwise == Some(true) };
        if is_set {
            wrong(&format!("/{field}"), "a join waits for all of its sources; it has no condition");
        }
    }
    if edge.value.target == END {
        wrong("/target", "a join leads to a node; END needs no join");
    }
    let mut seen = BTreeSet::new();
    let mut joined = Vec::new();
    for (index, name) in sources.iter().enumerate() {
        match point(name) {
            Some(Point::Start) => wrong(&format!("/sources/{index}"), "START cannot be waited for"),
            Some(Point::Node(node)) if !seen.insert(node) => {
                wrong(&format!("/sources/{index}"), "this source is in the join twice");
            }
            // `a` and `b+c`, `a+b` and `c` would share a channel.
            _ if name.contains('+') => {
                wrong(&format!("/sources/{index}"), "a source of a join has no `+` in its id")
            }
            Some(Point::Node(node)) => joined.push(node),
            Some(Point::End) | None => {}
        }
    }
    (mistakes.len() == before).then_some(FlowKind::Join(joined))
}

/// Adds the edges that a graph of one node may leave out.
pub(super) fn complete(edges: &mut Vec<FlowEdge>, nodes: usize) {
    if nodes != 1 {
        return;
    }
    let only = Point::Node(0);
    let implied = |source, target| FlowEdge {
        source,
        target,
        kind: FlowKind::Static,
        place: String::new(),
        label: None,
    };
    if !edges.iter().any(|edge| edge.source == Point::Start) {
        edges.push(implied(Point::Start, only));
    }
    if !edges.iter().any(|edge| edge.source == only) {
        edges.push(implied(only, Point::End));
    }
}

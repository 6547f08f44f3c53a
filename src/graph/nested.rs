//! Graphs inside graphs: definitions that are written into a node or referred to by one, compiled once each.
//!
//! **Invariant:** no definition contains itself, over however many references.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use serde_json::{Map as JsonMap, Value as Json};

use super::{
    build::{Shared, build},
    compile::{Limits, assemble},
    compiled::{CompiledGraph, NodeKind, SubgraphNode},
    diagnostic::Diagnostic,
    expression::{Expression, Template},
    flow,
    lower::PlainNode,
    read,
    variables::Variables,
};
use crate::value::{MESSAGES, Name};

/// Deepest nesting of graphs; each level may run side by side what the one around it does, and costs native stack.
const MAX_DEPTH: usize = 4;
/// Most stored definitions one definition may lead to: a system of many agents, and a bound on what one request loads.
pub const MAX_STORED: usize = 64;
/// Mistakes of a stored definition that are repeated where it is referred to; its own author reads all of them.
const MAX_REPEATED: usize = 5;

/// Stored definitions, as JSON, by the reference that names them.
pub type Stored = BTreeMap<String, Box<[u8]>>;

/// The references to stored definitions in a definition, in any order; empty when it is not JSON. Whoever compiles
/// looks them up first, and then those that are in what was found.
pub fn references(definition: &[u8]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    if let Ok(json) = serde_json::from_slice(definition) {
        collect(&json, &mut found);
    }
    found
}

/// Nodes may be inside maps and inside definitions of other nodes; JSON readers stop at 128 levels.
fn collect(json: &Json, found: &mut BTreeSet<String>) {
    match json {
        Json::Object(map) => {
            let is_subgraph = map
                .get("type")
                .and_then(Json::as_str)
                .is_some_and(|kind| kind.eq_ignore_ascii_case("subgraph"));
            if is_subgraph && found.len() < MAX_STORED {
                let agents = [map.get("agent"), map.get("config").and_then(|config| config.get("agent"))];
                found.extend(agents.into_iter().flatten().filter_map(Json::as_str).map(str::to_owned));
            }
            map.values().for_each(|value| collect(value, found));
        }
        Json::Array(items) => items.iter().for_each(|item| collect(item, found)),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}

/// A graph with its height.
type Compiled = (Arc<CompiledGraph>, usize);

/// What compiling the graphs inside a graph needs.
#[derive(Debug)]
pub(super) struct Nesting<'a> {
    pub(super) limits: &'a Limits,
    stored: &'a Stored,
    depth: Cell<usize>,
    /// References that are being compiled, outermost first.
    open: RefCell<Vec<String>>,
    /// Those that have been, each with its height; `None` for one with mistakes.
    done: RefCell<HashMap<String, Option<Compiled>>>,
    /// The height of the highest graph inside the one that is being compiled.
    inside: Cell<usize>,
}

impl<'a> Nesting<'a> {
    pub(super) fn new(limits: &'a Limits, stored: &'a Stored) -> Self {
        Self {
            limits,
            stored,
            depth: Cell::new(0),
            open: RefCell::default(),
            done: RefCell::default(),
            inside: Cell::new(0),
        }
    }

    /// The graph of a definition that stands at `place`.
    pub(super) fn inline(
        &self,
        definition: &JsonMap<String, Json>,
        place: &str,
        mistakes: &mut Vec<Diagnostic>,
    ) -> Option<Arc<CompiledGraph>> {
        self.check_depth(1, place, mistakes)?;
        let (graph, wrong) =
            self.compiled(|own| read::read_json(&Json::Object(definition.clone()), self.limits, own));
        let inside = |found: Diagnostic| Diagnostic::new(format!("{place}{}", found.pointer), found.message);
        mistakes.extend(wrong.into_iter().map(inside));
        graph.map(|(graph, _)| graph)
    }

    /// The graph of the stored definition that `reference`, at `place`, names.
    pub(super) fn stored(
        &self,
        reference: &str,
        place: &str,
        mistakes: &mut Vec<Diagnostic>,
    ) -> Option<Arc<CompiledGraph>> {
        let mut wrong = |message: String| mistakes.push(Diagnostic::new(place, message));
        if !reference.contains('@') && !reference.starts_with("sha256:") {
            // A name alone may mean another graph when the job goes on after a crash.
            wrong(format!("`{reference}` names no version: write `{reference}@<version>` or `sha256:…`"));
            return None;
        }
        if self.open.borrow().iter().any(|open| open == reference) {
            let open = self.open.borrow();
            let circle = open.iter().skip_while(|open| *open != reference).map(String::as_str);
            let circle: Vec<_> = circle.chain([reference]).collect();
            wrong(format!("the definitions contain each other: {}", circle.join(" → ")));
            return None;
        }
        if let Some(done) = self.done.borrow().get(reference) {
            let (graph, height) = done.as_ref()?;
            self.check_depth(*height, place, mistakes)?;
            self.inside.set(self.inside.get().max(*height));
            return Some(Arc::clone(graph));
        }
        let Some(json) = self.stored.get(reference) else {
            wrong(format!("no definition is stored under `{reference}`"));
            return None;
        };
        if self.done.borrow().len() >= MAX_STORED {
            wrong(format!("leads to more than {MAX_STORED} stored definitions"));
            return None;
        }
        self.check_depth(1, place, mistakes)?;
        self.open.borrow_mut().push(reference.to_owned());
        let (graph, found) = self.compiled(|own| read::read(json, self.limits, own));
        self.open.borrow_mut().pop();
        self.done.borrow_mut().insert(reference.to_owned(), graph.clone());
        let repeated = found.iter().take(MAX_REPEATED);
        mistakes.extend(repeated.map(|found| Diagnostic::new(place, format!("in `{reference}`: {found}"))));
        graph.map(|(graph, _)| graph)
    }

    /// Whether a graph of that height has room here.
    fn check_depth(&self, height: usize, place: &str, mistakes: &mut Vec<Diagnostic>) -> Option<()> {
        if self.depth.get() + height <= MAX_DEPTH {
            return Some(());
        }
        mistakes.push(Diagnostic::new(place, format!("graphs are nested deeper than {MAX_DEPTH} levels")));
        None
    }

    /// The graph of what `read` reads with its height, which is one more than that of the highest graph inside it.
    fn compiled(
        &self,
        read: impl FnOnce(&mut Vec<Diagnostic>) -> Option<read::Parts>,
    ) -> (Option<Compiled>, Vec<Diagnostic>) {
        self.depth.set(self.depth.get() + 1);
        let beside = self.inside.replace(0);
        let mut own = Vec::new();
        let graph = read(&mut own).and_then(|parts| assemble(&parts, self, &mut own));
        let height = self.inside.get() + 1;
        self.depth.set(self.depth.get() - 1);
        self.inside.set(beside.max(height));
        (graph.filter(|_| own.is_empty()).map(|graph| (Arc::new(graph), height)), own)
    }
}

/// The node of an item, as a graph of its own if a model's answer may be corrected: a correction is a superstep, and
/// the item must come back in the place of the map's list, however often it was corrected.
pub(super) fn alone(node: PlainNode, shared: &Shared) -> PlainNode {
    let policies = shared.policies.inside(&node);
    let NodeKind::Model(model) = node.kind else { return node };
    if model.output_schema.is_none() || model.schema_retries == 0 {
        return PlainNode { kind: NodeKind::Model(model), ..node };
    }
    let mut model = *model;
    let templates = [&model.system_prompt, &model.prompt];
    let names = templates.into_iter().flatten().flat_map(Template::names);
    let mut reads: BTreeSet<String> =
        names.filter(|name| !shared.variables.has(name)).map(str::to_owned).collect();
    if model.prompt.is_none() {
        reads.insert(MESSAGES.into());
    }
    let same = |name: &str| Expression::parse(name).ok().map(|expression| (Name::from(name), expression));
    let input: Vec<_> = reads.iter().filter_map(|name| same(name)).collect();
    let (written, answer) = match model.writes.take() {
        Some(channel) => {
            let mut answer = "answer".to_owned();
            while reads.contains(&answer) {
                answer.push('_');
            }
            model.writes = Some(answer.as_str().into());
            (channel, answer)
        }
        None => (MESSAGES.into(), format!("{MESSAGES}[-1:]")),
    };
    let output: Vec<_> =
        Expression::parse(&answer).ok().into_iter().map(|answer| (Name::clone(&written), answer)).collect();
    let inner = Shared {
        hash: Arc::clone(&shared.hash),
        channels: shared.channels.only(reads.iter().map(String::as_str).chain(model.writes.as_deref())),
        variables: Variables::default(),
        tools: Arc::default(),
        policies,
        recursion_limit: model.schema_retries.saturating_add(1),
    };
    let mut edges = Vec::new();
    flow::complete(&mut edges, 1);
    let PlainNode { name, place, tools, pauses, .. } = node;
    let kind = NodeKind::Model(Box::new(model));
    let inside = PlainNode { tools, ..PlainNode::new(Name::clone(&name), place.clone(), kind) };
    let graph = Arc::new(build(&name, (vec![inside], Vec::new()), edges, &inner));
    let kind = NodeKind::Subgraph(SubgraphNode { graph, input, output, place: place.clone() });
    PlainNode { pauses, ..PlainNode::new(name, place, kind) }
}

#[cfg(test)]
mod tests;

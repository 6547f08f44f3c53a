//! What a compiled graph will do and what it needs, for people and for programs that check definitions.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use petgraph::{algo::tarjan_scc, graph::NodeIndex, visit::EdgeRef};
use regex::Regex;
use serde::Serialize;
use serde_json::Value as Json;

use super::{
    compiled::{CompiledGraph, Edge, NodeKind},
    definition::{ModelSettings, ToolDefinition},
    lower::{BUILTIN_TOOLS, OFFERED_TOOLS, TASK_TOOL},
    mcp::McpName,
    outline::Outline,
    tools::secrets_of,
};

/// What a graph will do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// `sha256:` and the hash of the definition's canonical JSON.
    pub hash: String,
    /// Nodes, edges and the graphs inside.
    pub graph: Outline,
    /// The channels of the state.
    pub channels: Vec<ChannelText>,
    /// Most supersteps of one job.
    pub recursion_limit: u32,
    /// Ways that lead back to where they began, of this graph and of those inside.
    pub loops: Vec<LoopText>,
    /// Every tool that an agent may call.
    pub tools: Vec<ToolText>,
    /// Every model that may be asked, fallbacks included, as `provider:model`.
    pub models: BTreeSet<String>,
    /// Secrets that the operator must allow.
    pub secrets: BTreeSet<String>,
    /// Channels whose values are the output; empty means the text of the last AI message.
    pub output: Vec<String>,
    /// What that text begins with when the job has failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_mark: Option<String>,
    /// What is not wrong and may surprise.
    pub warnings: Vec<String>,
}

/// A channel.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChannelText {
    /// Its name.
    pub name: String,
    /// How several writes become one value.
    pub reducer: Json,
}

/// A loop.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoopText {
    /// The graph it is in.
    pub graph: String,
    /// Its nodes, in the order of the definition.
    pub nodes: Vec<String>,
    /// What ends it.
    pub bound: String,
    /// Whether nothing but the limit of supersteps is sure to end it.
    pub by_limit_only: bool,
}

/// A tool.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ToolText {
    /// The name models use.
    pub name: String,
    /// `built-in`, `delegation`, `http`, `nats` or `script`.
    pub kind: &'static str,
}

/// Says what `graph` will do.
pub fn explain(graph: &CompiledGraph) -> Explanation {
    let mut found = Found::default();
    found.collect(graph);
    let warnings = warnings(graph, &found);
    let reducer = |reducer| serde_json::to_value(reducer).unwrap_or_default();
    let channels = graph.channels.iter();
    let channels =
        channels.map(|(name, spec)| ChannelText { name: name.to_string(), reducer: reducer(spec.reducer) });
    Explanation {
        hash: format!("sha256:{}", graph.hash),
        graph: Outline::of(graph),
        channels: channels.collect(),
        recursion_limit: graph.recursion_limit,
        tools: found.tools.iter().map(|(name, kind)| ToolText { name: name.clone(), kind }).collect(),
        loops: found.loops,
        models: found.models,
        secrets: found.secrets,
        output: graph.output.iter().map(ToString::to_string).collect(),
        failure_mark: graph
            .failure_mark
            .as_ref()
            .filter(|_| graph.output.is_empty())
            .map(ToString::to_string),
        warnings,
    }
}

fn warnings(graph: &CompiledGraph, found: &Found) -> Vec<String> {
    let unused = graph.tools.keys().filter(|name| !found.tools.contains_key(&***name));
    let unused = unused.map(|name| format!("no agent may call the tool `{name}`"));
    let endless = found.loops.iter().filter(|one| one.by_limit_only).map(|one| {
        format!("nothing counts the rounds of the loop through {}: {}", one.nodes.join(", "), one.bound)
    });
    unused.chain(endless).collect()
}

#[derive(Default)]
struct Found {
    tools: BTreeMap<String, &'static str>,
    models: BTreeSet<String>,
    loops: Vec<LoopText>,
    secrets: BTreeSet<String>,
}

impl Found {
    fn collect(&mut self, graph: &CompiledGraph) {
        for node in graph.nodes() {
            node.kind.model().into_iter().for_each(|model| self.model(model));
            let tools = node.kind.tools().iter();
            self.tools.extend(tools.map(|name| (name.to_string(), kind(name, graph.tools.get(name)))));
            if let NodeKind::Subgraph(inner) = &node.kind {
                self.collect(&inner.graph);
            }
        }
        self.loops.extend(loops(graph));
        let http = graph.tools.values().filter_map(|tool| tool.http.as_ref());
        self.secrets.extend(http.flat_map(|http| {
            let login = http.auth.as_ref().map(|auth| &auth.client_secret);
            http.headers.values().chain(login).flat_map(secrets_of)
        }));
        let mcp = graph.tools.values().filter_map(ToolDefinition::mcp);
        self.secrets.extend(mcp.flat_map(|runtime| runtime.headers.values().flat_map(secrets_of)));
        for subagent in graph.subagents.values() {
            self.collect(&subagent.graph);
        }
    }

    fn model(&mut self, settings: &ModelSettings) {
        self.models.insert(format!("{}:{}", settings.provider, settings.model));
        settings.fallbacks.iter().for_each(|fallback| self.model(fallback));
    }
}

fn kind(name: &str, definition: Option<&ToolDefinition>) -> &'static str {
    match definition {
        Some(tool) if tool.http.is_some() => "http",
        Some(tool) if tool.nats.is_some() => "nats",
        Some(tool) if tool.mcp().is_some() => "mcp",
        Some(_) => "script",
        None if McpName::parse(name).is_some() => "mcp",
        None if name == TASK_TOOL => "delegation",
        None if BUILTIN_TOOLS.contains(&name) || OFFERED_TOOLS.contains(&name) => "built-in",
        None => "unknown",
    }
}

fn loops(graph: &CompiledGraph) -> Vec<LoopText> {
    let topology = &graph.topology;
    // A conversation is summarised once and handed back: no loop.
    let is_summary = |index: &&NodeIndex| matches!(topology[**index].kind, NodeKind::Summary(_));
    let is_loop = |component: &Vec<NodeIndex>| match component.as_slice() {
        [only] => topology.find_edge(*only, *only).is_some(),
        several => several.len() > several.iter().filter(is_summary).count() + 1,
    };
    let mut components: Vec<_> = tarjan_scc(topology).into_iter().filter(is_loop).collect();
    components.iter_mut().for_each(|component| component.sort());
    components.sort();
    components.iter().map(|component| bounded(graph, component)).collect()
}

/// A loop and what ends it.
fn bounded(graph: &CompiledGraph, component: &[NodeIndex]) -> LoopText {
    let (topology, limit) = (&graph.topology, graph.recursion_limit);
    let leaving = component.iter().flat_map(|index| topology.edges(*index));
    let staying: Vec<_> = leaving.filter(|edge| component.contains(&edge.target())).collect();
    let conditions = staying.iter().filter_map(|edge| condition(graph, edge.source(), edge.weight()));
    let counted: BTreeSet<String> = conditions.flat_map(|condition| counters(&condition)).collect();
    // Agents stop when their models ask for no more tools; that is what they are.
    let is_behind = |index: NodeIndex| topology[index].kind.agent().is_some();
    let is_agent = staying.iter().all(|edge| is_behind(edge.source()) || is_behind(edge.target()));
    let end = match (counted.is_empty(), is_agent) {
        (false, _) => format!("goes on while {}; ", Vec::from_iter(counted.clone()).join(" or ")),
        (true, true) => "until the model calls no tool; ".to_owned(),
        (true, false) => String::new(),
    };
    LoopText {
        graph: graph.name.to_string(),
        nodes: component.iter().map(|index| topology[*index].name.to_string()).collect(),
        bound: format!("{end}at most {limit} supersteps"),
        by_limit_only: counted.is_empty() && !is_agent,
    }
}

/// The condition of an edge, which may go by a label.
fn condition(graph: &CompiledGraph, source: NodeIndex, edge: &Edge) -> Option<String> {
    let Edge::Conditional(label) = edge else { return None };
    let branch = graph.topology[source].routes.branch.as_ref()?;
    let case = branch.cases.iter().find(|case| case.label == *label);
    Some(case.map_or_else(|| label.clone(), |case| case.when.to_string()))
}

/// The comparisons with a number in a condition that are true for small numbers only: what counts rounds.
fn counters(condition: &str) -> Vec<String> {
    static COUNTER: LazyLock<Regex> = LazyLock::new(|| {
        let pattern = r"(?:^|[\s(])(/?[A-Za-z_][\w./]*)\s*(<=?)\s*(\d+|[A-Za-z_][\w.]*)(?:$|[\s)])";
        Regex::new(pattern).expect("the pattern is constant and tested")
    });
    COUNTER
        .captures_iter(condition)
        .map(|found| format!("{} {} {}", &found[1], &found[2], &found[3]))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::graph::{Limits, compile, tests::compiled};

    #[test]
    fn an_explanation_names_all_that_a_graph_needs() {
        let json = include_str!("../../graph-definitions/agent-http-tool.json");
        let graph = compile(json.as_bytes(), &Limits::default()).expect("the example compiles");
        let explanation = explain(&graph);
        assert_eq!(explanation.models, BTreeSet::from(["scripted:demo".into()]));
        let secrets = Vec::from_iter(&explanation.secrets);
        assert_eq!(
            secrets,
            Vec::<&String>::from_iter(secrets.iter().copied().filter(|name| json.contains(&***name)))
        );
        assert!(explanation.hash.starts_with("sha256:"));
        assert_eq!(explanation.loops[0].bound, "until the model calls no tool; at most 25 supersteps");
        assert_eq!(serde_json::to_value(&explanation).expect("JSON")["graph"]["edges"][0]["from"], "START");
    }

    #[test]
    fn loops_say_what_ends_them() {
        let node = |id: &str| json!({"id": id, "type": "transform", "writes": {"n": "1"}});
        let bounds = |when: Json| {
            let graph = compiled(&json!({"channels": {"n": {"reducer": "add"}, "most": {"default": 3}},
                "tool_definitions": [{"name": "unused", "http": {"url": "https://example.com/"}}],
                "nodes": [node("a"), node("b")], "edges": [{"from": "START", "to": "a"}, {"from": "a", "to": "b"},
                    {"from": "b", "to": "a", "when": when, "label": "again"}, {"from": "b", "to": "END", "otherwise": true}]}));
            let explanation = explain(&graph);
            (explanation.loops[0].bound.clone(), explanation.warnings)
        };
        assert_eq!(bounds(json!("n < 5 and most")).0, "goes on while n < 5; at most 25 supersteps");
        assert_eq!(bounds(json!("n <= most")).0, "goes on while n <= most; at most 25 supersteps");
        let typed = bounds(json!({"path": "/n", "op": "lt", "value": 5}));
        assert_eq!(typed.0, "goes on while /n < 5; at most 25 supersteps");
        let (bound, warnings) = bounds(json!("n != 5"));
        assert_eq!(bound, "at most 25 supersteps");
        assert_eq!(
            warnings,
            [
                "no agent may call the tool `unused`",
                "nothing counts the rounds of the loop through a, b: at most 25 supersteps"
            ]
        );
    }

    #[test]
    fn secrets_of_headers_are_named_once() {
        let graph =
            compiled(&json!({"nodes": [{"id": "a", "type": "agent", "tools": ["t"]}], "tool_definitions": [
            {"name": "t", "http": {"url": "https://example.com/", "headers": {
                "authorization": "Bearer {{ secrets.ONE }}", "x": "{{secrets.TWO}}{{ secrets.ONE }}",
                "y": {"secret": "a-third"}}}}]}));
        assert_eq!(Vec::from_iter(explain(&graph).secrets), ["ONE", "TWO", "a-third"]);
    }
}

//! A compiled graph in a few lines, for people.

use std::fmt::Write;

use petgraph::visit::EdgeRef;

use super::compiled::{CompiledGraph, Edge, Node, NodeKind, Routes};

/// What is in `graph`: nodes and where they lead, channels, tools, subagents, limits, hash.
pub fn describe(graph: &CompiledGraph) -> String {
    let mut text = format!("graph {}  sha256:{}\n", graph.name, graph.hash);
    let channels = graph.channels.iter().map(|(name, spec)| {
        let reducer = serde_json::to_value(spec.reducer).unwrap_or_default();
        format!("{name} ({})", reducer.as_str().unwrap_or_default())
    });
    let mut line = |name: &str, items: Vec<String>| {
        if !items.is_empty() {
            // Writing to a text cannot fail.
            let _ = writeln!(text, "  {name:<10} {}", items.join(", "));
        }
    };
    line("channels", channels.collect());
    line("tools", graph.tools.keys().map(ToString::to_string).collect());
    line("subagents", graph.subagents.keys().map(ToString::to_string).collect());
    line("output", graph.output.iter().map(ToString::to_string).collect());
    line("recursion", vec![format!("at most {} supersteps", graph.recursion_limit)]);
    line("START", vec![format!("→ {}", leads(&graph.start))]);
    for node in graph.nodes() {
        line(&node.name, vec![format!("{}  → {}", kind(node), leads_of(graph, node))]);
    }
    text
}

fn kind(node: &Node) -> String {
    match &node.kind {
        NodeKind::Model(model) => {
            let settings = &model.model;
            let tools = match model.tools.len() {
                0 => String::new(),
                count => format!(", {count} tools"),
            };
            format!("model {}:{}{tools}", settings.provider, settings.model)
        }
        NodeKind::Tools(tools) => format!("tools of {}", tools.agent),
        NodeKind::Transform(transform) => {
            let channels: Vec<_> = transform.writes.iter().map(|(channel, _)| &**channel).collect();
            format!("transform of {}", channels.join(", "))
        }
    }
}

fn leads_of(graph: &CompiledGraph, node: &Node) -> String {
    let calls = graph.by_name.get(&node.name).and_then(|index| {
        let mut edges = graph.topology.edges(*index);
        edges.find(|edge| *edge.weight() == Edge::ToolCalls).map(|edge| &graph.topology[edge.target()].name)
    });
    match calls {
        Some(tools) => format!("{tools} for tool calls, else {}", leads(&node.routes)),
        None => leads(&node.routes),
    }
}

fn leads(routes: &Routes) -> String {
    let mut parts: Vec<String> = routes.always.iter().map(|channel| target(channel)).collect();
    if let Some(branch) = &routes.branch {
        let cases = branch.cases.iter().map(|case| case.target.as_deref());
        let targets = cases.chain([branch.otherwise.as_deref()]);
        let targets: Vec<_> =
            targets.map(|channel| channel.map_or_else(|| "END".to_owned(), target)).collect();
        parts.push(format!("one of {}", targets.join(", ")));
    }
    if parts.is_empty() { "END".into() } else { parts.join(", ") }
}

/// The node that a trigger channel runs.
fn target(channel: &str) -> String {
    let node = channel.rsplit(':').next().unwrap_or(channel);
    if channel.starts_with("join:") { format!("{node} (join)") } else { node.to_owned() }
}

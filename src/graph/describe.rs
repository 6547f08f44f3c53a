//! A compiled graph in a few lines, for people.

use std::{fmt::Write, time::Duration};

use petgraph::visit::EdgeRef;

use super::{
    compiled::{CompiledGraph, Edge, Node, NodeKind, Routes},
    explain::explain,
    policy::{CallLimits, Policy},
    trigger::Trigger,
};

/// What is in `graph`: nodes and where they lead, channels, tools, subagents, models, secrets, loops, limits, hash.
pub fn describe(graph: &CompiledGraph) -> String {
    let explained = explain(graph);
    let version = graph.version.as_ref().map(|version| format!("@{version}")).unwrap_or_default();
    let mut text = format!("graph {}{version}  sha256:{}\n", graph.name, graph.hash);
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
    let unset = graph.unset.iter().map(|name| format!("{name} (to be filled in)"));
    line("variables", unset.chain(graph.variables.keys().map(ToString::to_string)).collect());
    line("tools", graph.tools.keys().map(ToString::to_string).collect());
    line("subagents", graph.subagents.keys().map(ToString::to_string).collect());
    line("output", graph.output.iter().map(ToString::to_string).collect());
    line("models", explained.models.into_iter().collect());
    line("secrets", explained.secrets.into_iter().collect());
    line("recursion", vec![format!("at most {} supersteps", graph.recursion_limit)]);
    line("limits", limits(graph));
    line("START", vec![format!("→ {}", leads(&graph.start))]);
    for node in graph.nodes() {
        line(&node.name, vec![format!("{}{}  → {}", kind(node), pauses(node), leads_of(graph, node))]);
        line("", node.gates.iter().map(|gate| format!("every way to it passes {gate}")).collect());
        line("", policy(&node.policy));
    }
    for one in explained.loops {
        line("loop", vec![format!("{}: {}", one.nodes.join(" → "), one.bound)]);
    }
    for warning in explained.warnings {
        line("warning", vec![warning]);
    }
    text
}

fn limits(graph: &CompiledGraph) -> Vec<String> {
    let CallLimits { model_calls, tool_calls } = graph.limits;
    let limit = |limit: Option<u64>, what: &str| limit.map(|limit| format!("at most {limit} {what}"));
    let limits = [limit(model_calls, "calls of models"), limit(tool_calls, "calls of tools")];
    limits.into_iter().flatten().collect()
}

fn policy(policy: &Policy) -> Vec<String> {
    let seconds =
        |limit: Option<Duration>, what: &str| limit.map(|limit| format!("{what} {} s", limit.as_secs_f64()));
    let retry = policy.retry.as_ref().filter(|retry| retry.max_attempts > 1).map(|retry| {
        let on = serde_json::to_value(&retry.retry_on).unwrap_or_default();
        let on = on.as_array().into_iter().flatten().filter_map(serde_json::Value::as_str);
        format!("at most {} runs on {}", retry.max_attempts, on.collect::<Vec<_>>().join("/"))
    });
    let on_error = policy.on_error.as_ref().map(|route| {
        format!("on error → {}", route.target.as_deref().map_or_else(|| "END".to_owned(), target))
    });
    let cached = seconds(policy.cache.as_ref().map(|cache| cache.ttl), "cached for");
    let silence = seconds(policy.idle_timeout, "silence of at most");
    let parts = [retry, seconds(policy.timeout, "at most"), silence, cached, on_error];
    parts.into_iter().flatten().collect()
}

/// What running the node means, in a few words.
pub(super) fn kind(node: &Node) -> String {
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
        NodeKind::Summary(summary) => {
            format!("summary by {}:{}", summary.model.provider, summary.model.model)
        }
        NodeKind::Transform(transform) => {
            let channels: Vec<_> = transform.writes.iter().map(|(channel, _)| &**channel).collect();
            format!("transform of {}", channels.join(", "))
        }
        NodeKind::Router(router) => {
            let settings = &router.call.model;
            format!("router {}:{}", settings.provider, settings.model)
        }
        NodeKind::Approval(approval) => match &approval.deadline {
            Some((limit, _)) => format!("approval, for at most {} s", limit.as_secs_f64()),
            None => "approval".into(),
        },
        NodeKind::Fail(fail) => format!("fails with {}", fail.code),
        NodeKind::Map(map) => format!("map of {} items at most to {}", map.max_items, map.node),
        NodeKind::Gather => "gathers the items of a map".to_owned(),
        NodeKind::Subgraph(subgraph) => {
            format!("subgraph {} of {} nodes", subgraph.graph.name, subgraph.graph.topology.node_count())
        }
        NodeKind::Tool(tool) => format!("tool {}", tool.tool),
    }
}

fn pauses(node: &Node) -> &'static str {
    match (node.pauses.before, node.pauses.after) {
        (false, false) => "",
        (true, false) => ", pauses before",
        (false, true) => ", pauses after",
        (true, true) => ", pauses before and after",
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
    match Trigger::of(channel) {
        Some(Trigger::Join { node, .. }) => format!("{node} (join)"),
        Some(Trigger::Branch(node)) => node.to_owned(),
        None => channel.to_owned(),
    }
}

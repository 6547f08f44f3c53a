//! Graphviz' language.

use std::fmt::Write;

use super::{remark, short};
use crate::graph::outline::{EdgeKind, FIRST, LAST, Outline, OutlineKind};

pub(super) fn draw(outline: &Outline) -> String {
    let mut text = format!("digraph {} {{\n  node [shape=box, style=rounded];\n", quoted(&outline.name));
    graph(&mut text, outline, "", "  ");
    text.push_str("}\n");
    text
}

/// Writes a graph whose nodes are called by `path` and their names.
fn graph(text: &mut String, outline: &Outline, path: &str, indent: &str) {
    let id = |name: &str| quoted(&format!("{path}{name}"));
    // Writing to a text cannot fail.
    for end in [FIRST, LAST] {
        let _ = writeln!(text, "{indent}{} [label={}, shape=oval];", id(end), quoted(end));
    }
    for node in &outline.nodes {
        let remark = remark(node.kind, &node.does);
        let label = if remark.is_empty() { node.name.clone() } else { format!("{}\n{remark}", node.name) };
        let _ = writeln!(text, "{indent}{} [label={}{}];", id(&node.name), quoted(&label), shape(node.kind));
    }
    for edge in &outline.edges {
        let style = match edge.kind {
            EdgeKind::Always => "solid",
            EdgeKind::Conditional | EdgeKind::ToolCalls | EdgeKind::OnError => "dashed",
            EdgeKind::Join | EdgeKind::Items => "bold",
        };
        let label =
            edge.label.as_ref().map(|label| format!(", label={}", quoted(&short(label)))).unwrap_or_default();
        let _ = writeln!(text, "{indent}{} -> {} [style={style}{label}];", id(&edge.from), id(&edge.to));
    }
    for (number, cluster) in outline.clusters.iter().enumerate() {
        let inner = format!("{path}{number}/");
        let _ = writeln!(text, "{indent}subgraph {} {{", quoted(&format!("cluster {inner}")));
        let _ = writeln!(text, "{indent}  label={};", quoted(&cluster.graph.name));
        graph(text, &cluster.graph, &inner, &format!("{indent}  "));
        let _ = writeln!(text, "{indent}}}");
        for run_by in &cluster.run_by {
            let start = quoted(&format!("{inner}{FIRST}"));
            let _ = writeln!(text, "{indent}{} -> {start} [style=dotted];", id(run_by));
        }
    }
}

fn shape(kind: OutlineKind) -> &'static str {
    match kind {
        OutlineKind::Model => "",
        OutlineKind::Tools | OutlineKind::Tool => ", shape=component",
        OutlineKind::Map | OutlineKind::Gather => ", shape=hexagon",
        OutlineKind::Subgraph => ", shape=folder",
        OutlineKind::Transform => ", shape=parallelogram",
        OutlineKind::Router => ", shape=diamond",
        OutlineKind::Approval => ", shape=house",
        OutlineKind::Fail => ", shape=octagon",
    }
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            c if c.is_control() => quoted.push(' '),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

//! Mermaid's flowcharts.

use std::fmt::Write;

use super::{remark, short};
use crate::graph::outline::{EdgeKind, FIRST, LAST, Outline, OutlineKind};

pub(super) fn draw(outline: &Outline) -> String {
    let mut text = String::from("flowchart TD\n");
    let mut ids = 0;
    graph(&mut text, outline, &mut ids, "  ");
    text
}

/// Writes a graph; the ids of its nodes, by name.
fn graph(text: &mut String, outline: &Outline, ids: &mut usize, indent: &str) -> Vec<(String, String)> {
    let mut names: Vec<(String, String)> = Vec::new();
    let mut id = |name: &str| {
        *ids += 1;
        names.push((name.to_owned(), format!("n{ids}")));
        format!("n{ids}")
    };
    // Writing to a text cannot fail.
    let _ = writeln!(text, "{indent}{}([START])", id(FIRST));
    for node in &outline.nodes {
        let remark = remark(node.kind, &node.does);
        let remark =
            if remark.is_empty() { remark } else { format!("<br/><small>{}</small>", escape(&remark)) };
        let (open, close) = shape(node.kind);
        let _ = writeln!(text, "{indent}{}{open}\"{}{remark}\"{close}", id(&node.name), escape(&node.name));
    }
    let _ = writeln!(text, "{indent}{}([END])", id(LAST));
    let find = |names: &[(String, String)], name: &str| {
        names.iter().find(|(known, _)| known == name).map(|(_, id)| id.clone()).unwrap_or_default()
    };
    for edge in &outline.edges {
        let arrow = match edge.kind {
            EdgeKind::Always => "-->",
            EdgeKind::Conditional | EdgeKind::ToolCalls | EdgeKind::OnError => "-.->",
            EdgeKind::Join | EdgeKind::Items => "==>",
        };
        let label =
            edge.label.as_ref().map(|label| format!("|\"{}\"|", escape(&short(label)))).unwrap_or_default();
        let _ =
            writeln!(text, "{indent}{} {arrow}{label} {}", find(&names, &edge.from), find(&names, &edge.to));
    }
    for cluster in &outline.clusters {
        *ids += 1;
        let _ = writeln!(text, "{indent}subgraph c{ids} [\"{}\"]", escape(&cluster.graph.name));
        let inner = graph(text, &cluster.graph, ids, &format!("{indent}  "));
        let _ = writeln!(text, "{indent}end");
        for run_by in &cluster.run_by {
            let _ = writeln!(text, "{indent}{} -.-> {}", find(&names, run_by), find(&inner, FIRST));
        }
    }
    names
}

fn shape(kind: OutlineKind) -> (&'static str, &'static str) {
    match kind {
        OutlineKind::Model => ("[", "]"),
        OutlineKind::Tools | OutlineKind::Tool | OutlineKind::Subgraph => ("[[", "]]"),
        OutlineKind::Map => ("[/", "\\]"),
        OutlineKind::Gather => ("[\\", "/]"),
        OutlineKind::Transform => ("[/", "/]"),
        OutlineKind::Router => ("{{", "}}"),
        OutlineKind::Approval => (">", "]"),
        OutlineKind::Fail => ("(((", ")))"),
    }
}

/// Text between quotes: Mermaid reads entities after `#`, and passes the rest on as HTML.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' => escaped.push_str("#quot;"),
            '#' => escaped.push_str("#35;"),
            '<' => escaped.push_str("#lt;"),
            '>' => escaped.push_str("#gt;"),
            '&' => escaped.push_str("#amp;"),
            '`' | '\\' | '[' | ']' | '{' | '}' | '|' => {
                let _ = write!(escaped, "#{};", u32::from(c));
            }
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

//! Pictures without the help of other programs.

use std::{collections::BTreeMap, fmt::Write};

use super::{
    layout::{Cell, cells},
    remark, short,
};
use crate::graph::outline::{EdgeKind, FIRST, LAST, Outline, OutlineEdge, OutlineKind};

/// Pixels of a node and of what is between nodes; a name of 24 letters fits.
const WIDTH: usize = 200;
const HEIGHT: usize = 48;
const GAP_X: usize = 70;
const GAP_Y: usize = 60;
/// Around a graph, with room for its title and for edges that lead back.
const MARGIN: usize = 60;
/// Letters that fit into a node; its whole text is the tooltip.
const MAX_LETTERS: usize = 26;

const STYLE: &str = "\
text{font:13px sans-serif;text-anchor:middle;fill:#222}.small{font-size:10px;fill:#666}.title{font-weight:bold;text-anchor:start}\
.node rect{fill:#fff;stroke:#446;stroke-width:1.5}.end rect{fill:#eee}.tools rect{fill:#eef6ff}.model rect{fill:#fff7e6}\
.router rect{fill:#f3ecff}.approval rect{fill:#e9f9ec}.fail rect{fill:#ffecec}\
path{fill:none;stroke:#446;stroke-width:1.3}.conditional,.tool_calls,.on_error{stroke-dasharray:5 3}.on_error{stroke:#b33}.join,.items{stroke-width:2.6}.runs{stroke-dasharray:1 4}\
.cluster{fill:#fafafa;stroke:#bbb}";

/// A graph that has been drawn.
struct Drawn {
    body: String,
    width: usize,
    height: usize,
    /// The middles of its nodes.
    middles: BTreeMap<String, (usize, usize)>,
}

pub(super) fn draw(outline: &Outline) -> String {
    let Drawn { body, width, height, .. } = graph(outline);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\">\n\
         <style>{STYLE}</style>\n<defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"7\" \
         markerHeight=\"7\" orient=\"auto\"><polygon points=\"0,0 8,4 0,8\" fill=\"#446\"/></marker></defs>\n{body}</svg>\n"
    )
}

/// Draws a graph with those inside of it to its right.
fn graph(outline: &Outline) -> Drawn {
    let cells = cells(outline);
    let slots = |layer: usize| cells.values().filter(|cell| cell.layer == layer).count();
    let layers = cells.values().map(|cell| cell.layer + 1).max().unwrap_or_default();
    let widest = (0..layers).map(slots).max().unwrap_or_default();
    let line = |count: usize| count * WIDTH + count.saturating_sub(1) * GAP_X;
    let (mut width, mut height) = (line(widest) + 2 * MARGIN, layers * (HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN);
    let middle = |cell: &Cell| {
        let left = MARGIN + (line(widest) - line(slots(cell.layer))) / 2;
        let x = left + cell.slot * (WIDTH + GAP_X) + WIDTH / 2;
        (x, MARGIN + cell.layer * (HEIGHT + GAP_Y) + HEIGHT / 2)
    };
    let middles: BTreeMap<String, (usize, usize)> =
        cells.iter().map(|(name, cell)| (name.clone(), middle(cell))).collect();
    // Writing to a text cannot fail.
    let mut body =
        format!("<text class=\"title\" x=\"12\" y=\"22\">{}</text>\n", escape(&fitted(&outline.name)));
    for edge in &outline.edges {
        if let (Some(from), Some(to)) = (middles.get(&edge.from), middles.get(&edge.to)) {
            body += &drawn_edge(edge, *from, *to);
        }
    }
    let ends = [FIRST, LAST].map(|name| (name, "end", String::new()));
    let inner = outline
        .nodes
        .iter()
        .map(|node| (node.name.as_str(), class(node.kind), remark(node.kind, &node.does)));
    for (name, class, remark) in ends.into_iter().chain(inner) {
        if let Some(at) = middles.get(name) {
            body += &drawn_node((name, &remark), class, *at);
        }
    }
    for cluster in &outline.clusters {
        let inside = graph(&cluster.graph);
        let _ = writeln!(
            body,
            "<rect class=\"cluster\" x=\"{}\" y=\"8\" width=\"{}\" height=\"{}\" rx=\"8\"/>\n<g transform=\"translate({},8)\">\n{}</g>",
            width, inside.width, inside.height, width, inside.body
        );
        let start = inside.middles.get(FIRST).map(|(x, y)| (x + width - WIDTH / 2, y + 8));
        for from in cluster.run_by.iter().filter_map(|name| middles.get(name)) {
            if let Some((x, y)) = start {
                let (left, top) = (from.0 + WIDTH / 2, from.1);
                let _ = writeln!(
                    body,
                    "<path class=\"runs\" d=\"M{left},{top} L{x},{y}\" marker-end=\"url(#tip)\"/>"
                );
            }
        }
        width += inside.width + 20;
        height = height.max(inside.height + 16);
    }
    Drawn { body, width, height, middles }
}

fn drawn_node((name, remark): (&str, &str), class: &str, (x, y): (usize, usize)) -> String {
    let (left, top) = (x - WIDTH / 2, y - HEIGHT / 2);
    let title = if remark.is_empty() { name.to_owned() } else { format!("{name}: {remark}") };
    let name_y = if remark.is_empty() { y + 5 } else { y - 2 };
    let small = match remark {
        "" => String::new(),
        remark => {
            format!("<text class=\"small\" x=\"{x}\" y=\"{}\">{}</text>", y + 14, escape(&fitted(remark)))
        }
    };
    format!(
        "<g class=\"node {class}\"><title>{}</title><rect x=\"{left}\" y=\"{top}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"8\"/>\
         <text x=\"{x}\" y=\"{name_y}\">{}</text>{small}</g>\n",
        escape(&title),
        escape(&fitted(name))
    )
}

/// Down from node to node; what leads back or passes a layer goes round on the right.
fn drawn_edge(edge: &OutlineEdge, from: (usize, usize), to: (usize, usize)) -> String {
    let step = HEIGHT + GAP_Y;
    let (path, label) = if to.1 > from.1 && (to.1 - from.1 <= step || to.0 != from.0) {
        let (start, end) = (from.1 + HEIGHT / 2, to.1 - HEIGHT / 2);
        let half = (start + end) / 2;
        let path = format!("M{},{start} C{},{half} {},{half} {},{end}", from.0, from.0, to.0, to.0);
        (path, ((from.0 + to.0) / 2, half + 4))
    } else {
        let (start, end) = (from.0 + WIDTH / 2, to.0 + WIDTH / 2);
        let bend = start.max(end) + GAP_X / 2 + 15;
        let path =
            format!("M{start},{} C{bend},{} {bend},{} {end},{}", from.1 + 6, from.1 + 6, to.1 - 6, to.1 - 6);
        (path, (bend - 10, (from.1 + to.1) / 2 + 4))
    };
    let text = match &edge.label {
        Some(text) => {
            let (x, y) = label;
            let whole = escape(text);
            format!(
                "<text class=\"small\" x=\"{x}\" y=\"{y}\"><title>{whole}</title>{}</text>",
                escape(&fitted(text))
            )
        }
        None => String::new(),
    };
    let class = match edge.kind {
        EdgeKind::Always => "always",
        EdgeKind::Conditional => "conditional",
        EdgeKind::Join => "join",
        EdgeKind::ToolCalls => "tool_calls",
        EdgeKind::Items => "items",
        EdgeKind::OnError => "on_error",
    };
    format!("<path class=\"{class}\" d=\"{path}\" marker-end=\"url(#tip)\"/>{text}\n")
}

fn class(kind: OutlineKind) -> &'static str {
    match kind {
        OutlineKind::Model => "model",
        OutlineKind::Tools => "tools",
        OutlineKind::Tool => "tool",
        OutlineKind::Map => "map",
        OutlineKind::Gather => "gather",
        OutlineKind::Subgraph => "subgraph",
        OutlineKind::Transform => "transform",
        OutlineKind::Router => "router",
        OutlineKind::Approval => "approval",
        OutlineKind::Fail => "fail",
    }
}

fn fitted(text: &str) -> String {
    let text = short(text);
    match text.char_indices().nth(MAX_LETTERS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

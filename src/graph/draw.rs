//! Drawings of graphs: Mermaid and DOT as text for other programs, SVG as a finished picture.
//!
//! **Invariant:** whatever stands in a definition, a drawing of it is well formed: every text is escaped.

mod dot;
mod layout;
mod mermaid;
mod svg;

use super::outline::{Outline, OutlineKind};

/// Longest label of an edge in a drawing; `validate` shows the whole condition.
const MAX_LABEL_CHARS: usize = 48;

/// How a graph is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Mermaid's `flowchart`.
    Mermaid,
    /// Graphviz' `digraph`.
    Dot,
    /// A picture.
    Svg,
}

/// Draws `outline`, with the graphs inside as clusters.
pub fn draw(outline: &Outline, format: Format) -> String {
    match format {
        Format::Mermaid => mermaid::draw(outline),
        Format::Dot => dot::draw(outline),
        Format::Svg => svg::draw(outline),
    }
}

/// A label that fits into a drawing.
fn short(label: &str) -> String {
    let line = label.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_LABEL_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// What a drawn node says besides its name.
fn remark(kind: OutlineKind, does: &str) -> String {
    match kind {
        // The name says it.
        OutlineKind::Tools => String::new(),
        OutlineKind::Model
        | OutlineKind::Tool
        | OutlineKind::Map
        | OutlineKind::Gather
        | OutlineKind::Subgraph
        | OutlineKind::Transform
        | OutlineKind::Router
        | OutlineKind::Approval
        | OutlineKind::Fail => short(does),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::graph::tests::compiled;

    /// A deep agent whose texts are made to break every format.
    fn nasty() -> Outline {
        let graph = compiled(&json!({"channels": {"n": {"reducer": "add"}}, "nodes": [
            {"id": "a\"]<&>--{}x", "type": "orchestrator", "model": "scripted:\"<script>alert(1)</script>"},
            {"id": "count", "type": "transform", "writes": {"n": "1"}},
            {"id": "help\\", "type": "specialist"}],
            "edges": [{"from": "START", "to": "a\"]<&>--{}x"}, {"from": "a\"]<&>--{}x", "to": "count"},
                {"from": "count", "to": "a\"]<&>--{}x", "when": "n < 3 and '\"' != '<'"},
                {"from": "count", "to": "END", "otherwise": true}]}));
        Outline::of(&graph)
    }

    #[test]
    fn the_examples_are_drawn_as_expected() {
        let mut all = String::new();
        for name in ["condition-expression", "deep-agent", "parallel-join"] {
            let path = format!("{}/graph-definitions/{name}.json", env!("CARGO_MANIFEST_DIR"));
            let json = serde_json::from_slice(&std::fs::read(path).expect("readable")).expect("JSON");
            let outline = Outline::of(&compiled(&json));
            for format in [Format::Mermaid, Format::Dot] {
                all += &format!("## {name} {format:?}\n{}", draw(&outline, format));
            }
        }
        expect_test::expect_file!["draw/examples.expected"].assert_eq(&all);
    }

    #[test]
    fn a_picture_is_well_formed_and_shows_every_node_and_edge() {
        let picture = draw(&nasty(), Format::Svg);
        assert!(
            !picture.contains("<script") && !picture.contains("&\"") && !picture.contains("< 3"),
            "{picture}"
        );
        let count = |part: &str| picture.matches(part).count();
        // Two nodes and the tools of one, two specialists with their tools, START and END of three graphs.
        assert_eq!(count("class=\"node"), 3 + 2 * 2 + 3 * 2, "{picture}");
        assert_eq!(count("<title>"), count("</title>"));
        assert_eq!(count("<g"), count("</g>"));
        assert_eq!(count("class=\"cluster\""), 2);
        assert!(!picture.contains("NaN"));
    }

    #[test]
    fn texts_of_a_definition_stay_texts() {
        let outline = nasty();
        let mermaid = draw(&outline, Format::Mermaid);
        assert!(mermaid.contains("a#quot;") && !mermaid.contains("<script"), "{mermaid}");
        let dot = draw(&outline, Format::Dot);
        assert!(dot.contains("a\\\"]<&>--{}x") && dot.contains("help\\\\"), "{dot}");
    }
}

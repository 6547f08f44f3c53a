//! Where the nodes of one graph stand: in layers from START to END, each as near to what leads to it as it can be.

use std::collections::{BTreeMap, BTreeSet};

use crate::graph::outline::{FIRST, LAST, Outline};

/// Rounds in which nodes move towards their neighbours; more change little.
const SWEEPS: usize = 8;

/// A node's layer, and its place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) layer: usize,
    pub(super) slot: usize,
}

/// The cells of START, the nodes and END, by name.
pub(super) fn cells(outline: &Outline) -> BTreeMap<String, Cell> {
    let inner = outline.nodes.iter().map(|node| node.name.as_str());
    let names: Vec<&str> = [FIRST].into_iter().chain(inner).chain([LAST]).collect();
    let place = |name: &str| names.iter().position(|known| *known == name);
    let edges: BTreeSet<(usize, usize)> =
        outline.edges.iter().filter_map(|edge| Some((place(&edge.from)?, place(&edge.to)?))).collect();
    let forward = without_loops(names.len(), &edges);
    let layers = layers(names.len(), &forward);
    let ordered = ordered(&layers, &edges);
    let mut cells = BTreeMap::new();
    for (layer, nodes) in ordered.iter().enumerate() {
        for (slot, node) in nodes.iter().enumerate() {
            cells.insert(names[*node].to_owned(), Cell { layer, slot });
        }
    }
    cells
}

/// The edges without those that lead back to where a walk came from.
fn without_loops(count: usize, edges: &BTreeSet<(usize, usize)>) -> Vec<(usize, usize)> {
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        Not,
        OnTheWay,
        Done,
    }
    let mut seen = vec![Seen::Not; count];
    let mut forward = Vec::new();
    // A walk of our own, not a recursion: graphs may be long.
    for root in 0..count {
        let mut way = vec![(root, 0)];
        while let Some((node, tried)) = way.pop() {
            if tried == 0 {
                if seen[node] != Seen::Not {
                    continue;
                }
                seen[node] = Seen::OnTheWay;
            }
            let Some((_, target)) = edges.range((node, 0)..=(node, usize::MAX)).nth(tried) else {
                seen[node] = Seen::Done;
                continue;
            };
            way.push((node, tried + 1));
            if seen[*target] == Seen::OnTheWay {
                continue;
            }
            forward.push((node, *target));
            if seen[*target] == Seen::Not {
                way.push((*target, 0));
            }
        }
    }
    forward
}

/// The nodes of each layer: every edge leads to a later one, and END stands last.
fn layers(count: usize, forward: &[(usize, usize)]) -> Vec<Vec<usize>> {
    let mut layer = vec![0; count];
    // Without loops no way is longer than there are nodes.
    for _ in 0..count {
        for (from, to) in forward {
            layer[*to] = layer[*to].max(layer[*from] + 1);
        }
    }
    let end = count - 1;
    layer[end] = layer.iter().take(end).max().map_or(1, |last| last + 1);
    let mut layers = vec![Vec::new(); layer[end] + 1];
    for (node, layer) in layer.into_iter().enumerate() {
        layers[layer].push(node);
    }
    layers.retain(|nodes| !nodes.is_empty());
    layers
}

/// Orders each layer by the middle of what its nodes are joined with.
fn ordered(layers: &[Vec<usize>], edges: &BTreeSet<(usize, usize)>) -> Vec<Vec<usize>> {
    let mut layers = layers.to_vec();
    for _ in 0..SWEEPS {
        let slots: BTreeMap<usize, usize> = layers
            .iter()
            .flat_map(|nodes| {
                nodes
                    .iter()
                    .enumerate()
                    .map(|(slot, node)| (*node, 2 * slot + 1 + widest(&layers) - nodes.len()))
            })
            .collect();
        for nodes in &mut layers {
            // In thousandths, so that the order is the same on every machine.
            nodes.sort_by_key(|node| {
                let joined = edges.iter().filter_map(|(from, to)| match (from == node, to == node) {
                    (true, false) => slots.get(to),
                    (false, true) => slots.get(from),
                    (true, true) | (false, false) => None,
                });
                let joined: Vec<usize> = joined.copied().collect();
                let own = slots.get(node).copied().unwrap_or_default() * 1_000;
                if joined.is_empty() { own } else { joined.iter().sum::<usize>() * 1_000 / joined.len() }
            });
        }
    }
    layers
}

fn widest(layers: &[Vec<usize>]) -> usize {
    layers.iter().map(Vec::len).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::outline::{EdgeKind, OutlineEdge, OutlineKind, OutlineNode};

    fn outline(nodes: &[&str], edges: &[(&str, &str)]) -> Outline {
        let node = |name: &&str| OutlineNode {
            name: (*name).into(),
            kind: OutlineKind::Transform,
            does: String::new(),
            requires: Vec::new(),
        };
        let edge = |(from, to): &(&str, &str)| OutlineEdge {
            from: (*from).into(),
            to: (*to).into(),
            kind: EdgeKind::Always,
            label: None,
        };
        Outline {
            name: "g".into(),
            nodes: nodes.iter().map(node).collect(),
            edges: edges.iter().map(edge).collect(),
            clusters: Vec::new(),
        }
    }

    #[test]
    fn layers_follow_the_flow_and_loops_do_not_stretch_them() {
        let cells = cells(&outline(
            &["a", "b", "c"],
            &[("START", "a"), ("a", "b"), ("b", "a"), ("a", "c"), ("b", "c"), ("c", "c"), ("c", "END")],
        ));
        let layers: Vec<_> = ["START", "a", "b", "c", "END"].iter().map(|name| cells[*name].layer).collect();
        assert_eq!(layers, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn no_two_nodes_share_a_cell() {
        let names: Vec<String> = (0..50).map(|n| format!("n{n}")).collect();
        let nodes: Vec<&str> = names.iter().map(String::as_str).collect();
        let edges: Vec<(&str, &str)> =
            (0..50).flat_map(|n| [(nodes[n], nodes[(n * 7 + 3) % 50]), ("START", nodes[n])]).collect();
        let cells = cells(&outline(&nodes, &edges));
        let taken: BTreeSet<_> = cells.values().map(|cell| (cell.layer, cell.slot)).collect();
        assert_eq!(taken.len(), 52);
    }
}

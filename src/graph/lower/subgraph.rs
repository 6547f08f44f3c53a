//! A `subgraph` → its compiled graph and the mappings between the two states.

use super::{Lowering, Place, PlainNode};
use crate::{
    graph::{
        compiled::{CompiledGraph, NodeKind, SubgraphNode},
        definition,
        expression::Expression,
        pointer::escape,
    },
    value::Name,
};

impl Lowering<'_> {
    pub(super) fn subgraph(
        &mut self,
        node: &definition::SubgraphNode,
        id: &str,
        place: Place<'_>,
    ) -> PlainNode {
        let (pointer, graph) = match (&node.definition, &node.agent) {
            (Some(definition), None) => {
                let pointer = place("/definition");
                let graph = self.nesting.inline(definition, &pointer, self.mistakes);
                (pointer, graph)
            }
            (None, Some(reference)) => {
                let pointer = place("/agent");
                let graph = self.nesting.stored(reference, &pointer, self.mistakes);
                (pointer, graph)
            }
            (None, None) => {
                self.wrong(place(""), "needs the field `definition` or `agent`");
                (String::new(), None)
            }
            (Some(_), Some(_)) => {
                self.wrong(place("/agent"), "a subgraph has `definition` or `agent`, not both");
                (String::new(), None)
            }
        };
        if let Some(graph) = graph.as_deref().filter(|graph| !graph.unset.is_empty()) {
            let unset = graph.unset.iter().map(|name| &**name).collect::<Vec<_>>().join(", ");
            self.wrong(pointer.clone(), format!("is a template, and nothing is filled in for {unset}"));
        }
        let (mut input, mut output) = (Vec::new(), Vec::new());
        for (channel, source) in &node.input {
            let place = place(&format!("/input/{}", escape(channel)));
            self.check_inner(graph.as_deref(), [channel.as_str()].into_iter(), &place);
            let expression = self.expression(source, place);
            input.extend(expression.map(|expression| (Name::from(channel.as_str()), expression)));
        }
        for (channel, source) in &node.output {
            let place = place(&format!("/output/{}", escape(channel)));
            self.check_channel(Some(channel), place.clone());
            match Expression::parse(source) {
                Ok(expression) => {
                    self.check_inner(graph.as_deref(), expression.names(), &place);
                    output.push((Name::from(channel.as_str()), expression));
                }
                Err(error) => self.wrong(place, format!("expression: {error}")),
            }
        }
        let kind = match graph {
            Some(graph) => NodeKind::Subgraph(SubgraphNode { graph, input, output, place: pointer }),
            // The graph is not built, but the node stays in it for the checks that follow.
            None => NodeKind::Gather,
        };
        PlainNode::new(id.into(), place(""), kind)
    }

    /// Reports names that are no channels of the subgraph; of a subgraph with mistakes nothing is known.
    fn check_inner<'n>(
        &mut self,
        graph: Option<&CompiledGraph>,
        names: impl Iterator<Item = &'n str>,
        place: &str,
    ) {
        let Some(graph) = graph else { return };
        for name in names.filter(|name| !graph.channels.contains_key(*name)) {
            let known: Vec<_> = graph.channels.keys().map(|name| &**name).collect();
            let message = format!("the subgraph has no channel `{name}`; known: {}", known.join(", "));
            self.wrong(place.to_owned(), message);
        }
    }
}

//! What a node reads of the state.

use crate::{
    graph::{Expression, ModelNode, Node, NodeKind, Template},
    value::MESSAGES,
};

/// The channels whose values decide what `node` does.
pub fn reads(node: &Node) -> Vec<&str> {
    let mut names: Vec<&str> = match &node.kind {
        NodeKind::Model(model) => of_call(model),
        NodeKind::Router(router) => of_call(&router.call),
        NodeKind::Transform(transform) => {
            let expressions = transform.writes.iter().map(|(_, expression)| expression);
            expressions.flat_map(Expression::names).collect()
        }
        // A model whose answers are corrected in a graph of its own.
        NodeKind::Subgraph(inner) => {
            inner.input.iter().flat_map(|(_, expression)| expression.names()).collect()
        }
        // Calls come as arguments of their tasks; the others leave nothing that could be used again.
        NodeKind::Tools(_)
        | NodeKind::Tool(_)
        | NodeKind::Approval(_)
        | NodeKind::Fail(_)
        | NodeKind::Map(_)
        | NodeKind::Gather
        | NodeKind::Summary(_) => Vec::new(),
    };
    names.sort_unstable();
    names.dedup();
    names
}

fn of_call(model: &ModelNode) -> Vec<&str> {
    let conversation = model.prompt.is_none().then_some(MESSAGES);
    let templates = [&model.system_prompt, &model.prompt].into_iter().flatten();
    templates.flat_map(Template::names).chain(conversation).collect()
}

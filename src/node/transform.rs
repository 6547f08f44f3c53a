//! The `transform` node: expressions that write channels.

use super::{Error, TaskView};
use crate::{graph::TransformNode, pregel::Write};

pub(super) fn run(task: TaskView<'_>, node: &TransformNode) -> Result<Vec<Write>, Error> {
    let write = |(channel, expression): &(_, crate::graph::Expression)| {
        let value = expression.eval(task.state).map_err(|error| Error::Expression {
            what: format!("the expression for {channel}"),
            reason: error.to_string(),
        })?;
        Ok(Write::new(std::sync::Arc::clone(channel), value))
    };
    node.writes.iter().map(write).collect()
}

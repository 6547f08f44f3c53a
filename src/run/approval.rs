//! An `approval` node's task: asks, sets the clock if there is a deadline, and goes on with the answer.

use std::sync::Arc;

use super::{Error, Running, task::TaskEnd};
use crate::{
    graph::ApprovalNode,
    node::{self, TaskView},
    pregel::{Dialogue, Write},
    store::Deadline,
};

/// Asks what `node` asks. The deadline is stored before the question is: a crash in between asks the same question,
/// which keeps its deadline.
pub(super) async fn ask(
    running: &Running,
    view: TaskView<'_>,
    node: &ApprovalNode,
    dialogue: &mut Dialogue<'_>,
) -> Result<TaskEnd, Error> {
    let question = match node::question(view, node) {
        Ok(question) => question,
        Err(error) => return Ok(TaskEnd::Failed(error.failure(&view.node.name))),
    };
    match dialogue.ask(question) {
        Ok(answer) => Ok(TaskEnd::Finished(vec![Write::new(node.writes.clone(), answer)])),
        Err(interrupt) => {
            if let Some((limit, default)) = &node.deadline {
                let claim = &running.attempt.claim;
                let deadline = Deadline {
                    thread_id: claim.thread_id.clone(),
                    interrupt_id: interrupt.id.clone(),
                    answer: default.clone(),
                    request: claim.request.clone(),
                };
                running.attempt.ports.store.set_deadline(&deadline, *limit).await?;
            }
            Ok(TaskEnd::Waits(vec![Arc::new(interrupt)]))
        }
    }
}

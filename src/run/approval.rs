//! An `approval` node's task: asks, sets the clock if there is a deadline, and goes on with the answer.

use std::sync::Arc;

use super::{
    Error,
    task::{TaskEnd, TaskRun},
};
use crate::{graph::ApprovalNode, node, pregel::Write, store::Deadline};

/// Asks what `node` asks. The deadline is stored before the question is: a crash in between asks the same question,
/// which keeps its deadline.
pub(super) async fn ask(run: &mut TaskRun<'_>, node: &ApprovalNode) -> Result<TaskEnd, Error> {
    let (running, view) = (run.here.running, run.view);
    let question = match node::question(view, node) {
        Ok(question) => question,
        Err(error) => return Ok(TaskEnd::Failed(error.failure(&view.node.name))),
    };
    match run.dialogue.ask(question) {
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

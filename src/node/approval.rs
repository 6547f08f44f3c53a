//! The `approval` node's question, and the `fail` node's error: what a graph says to people.

use serde_json::json;

use super::{Error, TaskView};
use crate::{
    graph::{ApprovalNode, ExpressionError, FailNode},
    job::Failure,
    pregel::Question,
    value::Value,
};

/// What an approval asks.
pub fn question(task: TaskView<'_>, node: &ApprovalNode) -> Result<Question, Error> {
    let failed = |what: &str, error: ExpressionError| Error::Expression {
        what: what.into(),
        reason: error.to_string(),
    };
    let text = node.question.render(task.state).map_err(|error| failed("question", error))?;
    let mut value = vec![
        ("kind", "approval".into()),
        ("node", Value::String(task.node.name.clone())),
        ("question", text.as_str().into()),
    ];
    if let Some(details) = &node.details {
        value.push(("details", details.eval(task.state).map_err(|error| failed("details", error))?));
    }
    if let Some((limit, default)) = &node.deadline {
        let seconds = match limit.subsec_nanos() {
            0 => json!(limit.as_secs()),
            _ => json!(limit.as_secs_f64()),
        };
        value.push(("deadline_seconds", seconds.into()));
        value.push(("default", default.clone().into()));
    }
    Ok(Question { value: Value::map(value), response_schema: node.response_schema.clone() })
}

/// How a job ends at a `fail` node.
pub fn failed(task: TaskView<'_>, node: &FailNode) -> Failure {
    match node.message.render(task.state) {
        Ok(message) => {
            let (code, name) = (node.code.clone(), task.node.name.to_string());
            Failure { code, message, node: Some(name), retryable: false }
        }
        Err(error) => {
            let error = Error::Expression { what: "message".into(), reason: error.to_string() };
            error.failure(&task.node.name)
        }
    }
}

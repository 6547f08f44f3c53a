//! A person's word on a tool call before it is made: yes, yes with other arguments, or no.
//!
//! **Invariant:** a call that needs a person's word is not made without one.

use std::sync::Arc;

use serde_json::json;

use super::{Asked, TaskView, tool_call, tool_node};
use crate::{
    graph::{EFFECT_CLASS, Effect, NodeKind},
    pregel::{Dialogue, Question},
    tool,
    value::{Interrupt, Map, Name, ToolCall, Value, map_to_json},
};

/// The answers that need nothing more.
const APPROVE: &str = "approve";
const REJECT: &str = "reject";
/// The decision that comes with other arguments.
const EDIT: &str = "edit";

/// What a person says of a call.
pub enum Consent {
    /// Nothing yet.
    Waits(Arc<Interrupt>),
    /// What is to be done now.
    Given {
        /// The call as it is to be made, or the answer that says that it is not.
        asked: Asked,
        /// What the model should know beside the answer.
        note: Option<String>,
    },
}

/// The kind of the question.
const KIND: &str = "tool_approval";

/// Asks a person about a call whose tool needs that; every other call goes on as it is.
pub fn consent(task: TaskView<'_>, asked: Asked, dialogue: &mut Dialogue<'_>) -> Consent {
    let is_call = match &asked {
        Asked::Call(_) | Asked::Task { .. } => true,
        Asked::Refused(..) => false,
    };
    // A tool that says something else of itself by now does not take a person's word away.
    let is_guarded = is_call && (is_guarded(task, &asked.call().name) || dialogue.has_asked(KIND));
    if !is_guarded {
        return Consent::Given { asked, note: None };
    }
    let call = asked.call().clone();
    let mut error = None;
    // Ends because every turn takes an answer.
    loop {
        let effect = effect_of(task, &call.name);
        let answer = match dialogue.ask(question(task.origin().node, (&call, effect), error.take())) {
            Ok(answer) => answer,
            Err(interrupt) => return Consent::Waits(Arc::new(interrupt)),
        };
        match decision(&answer) {
            Decision::Approve => return Consent::Given { asked, note: None },
            Decision::Reject(reason) => {
                let asked = Asked::Refused(call, tool::Error::Rejected(reason).into());
                return Consent::Given { asked, note: None };
            }
            Decision::Edit(args) => {
                let note = format!("A person has changed the arguments to {}.", map_to_json(&args));
                let edited = ToolCall { args, ..call.clone() };
                match again(task, edited) {
                    Asked::Refused(_, answer) => error = Some(answer.content),
                    asked @ (Asked::Call(_) | Asked::Task { .. }) => {
                        return Consent::Given { asked, note: Some(note) };
                    }
                }
            }
        }
    }
}

/// Whether a person must approve of the tool's calls at this node.
fn is_guarded(task: TaskView<'_>, tool: &Name) -> bool {
    if let NodeKind::Tools(node) = &task.node.kind {
        let class = effect_of(task, tool).map(|effect| format!("{EFFECT_CLASS}{}", effect.as_str()));
        let is_of_class = |name: &Name| Some(&**name) == class.as_deref();
        return task.tools.allow(&node.approvals, tool) || node.approvals.iter().any(is_of_class);
    }
    task.graph.tools.get(tool).is_some_and(|tool| tool.requires_approval)
}

/// What a call of the tool does outside; a delegation says nothing about it.
fn effect_of(task: TaskView<'_>, tool: &Name) -> Option<Effect> {
    task.tools.get(tool).map(|tool| tool.effect())
}

/// The call with the arguments that a person gave it, or what is wrong with them.
fn again(task: TaskView<'_>, edited: ToolCall) -> Asked {
    if let NodeKind::Tools(node) = &task.node.kind {
        return tool_call::decide(task, node, edited);
    }
    tool_node::checked(task, edited)
}

enum Decision {
    Approve,
    Edit(Map),
    /// With what the person says about it.
    Reject(Option<String>),
}

/// The schema lets nothing else through; what it cannot say counts as a no.
fn decision(answer: &Value) -> Decision {
    let field = |name: &str| answer.as_map().and_then(|map| map.get(name));
    let word = answer.as_str().or_else(|| field("decision").and_then(Value::as_str));
    match (word, field("args").and_then(Value::as_map)) {
        (Some(APPROVE), _) => Decision::Approve,
        (Some(EDIT), Some(args)) => Decision::Edit(args.clone()),
        _ => Decision::Reject(field("message").and_then(Value::as_str).map(str::to_owned)),
    }
}

fn question(node: &str, (call, effect): (&ToolCall, Option<Effect>), error: Option<String>) -> Question {
    let mut value = json!({
        "kind": KIND,
        "node": node,
        "tool": &*call.name,
        "tool_call_id": &*call.id,
        "args": map_to_json(&call.args),
        "question": format!(
            "May {} be called with these arguments? Answer \"{APPROVE}\", \"{REJECT}\", {{\"decision\": \"{EDIT}\", \
             \"args\": {{…}}}} or {{\"decision\": \"{REJECT}\", \"message\": \"…\"}}.",
            call.name
        ),
    });
    if let Some(effect) = effect {
        value["effect"] = effect.as_str().into();
    }
    if let Some(error) = error {
        value["error"] = error.into();
    }
    let only = |word: &str, field: &str, schema: serde_json::Value, required: &[&str]| {
        json!({ "type": "object", "properties": { "decision": { "const": word }, field: schema },
            "required": required, "additionalProperties": false })
    };
    let schema = json!({ "anyOf": [
        { "enum": [APPROVE, REJECT] },
        { "type": "object", "properties": { "decision": { "const": APPROVE } }, "required": ["decision"],
            "additionalProperties": false },
        only(EDIT, "args", json!({ "type": "object" }), &["decision", "args"]),
        only(REJECT, "message", json!({ "type": "string" }), &["decision"]),
    ] });
    Question { value: value.into(), response_schema: Some(schema) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(answer: serde_json::Value) -> String {
        match decision(&answer.into()) {
            Decision::Approve => "yes".into(),
            Decision::Edit(args) => format!("with {}", map_to_json(&args)),
            Decision::Reject(reason) => format!("no: {reason:?}"),
        }
    }

    #[test]
    fn answers_are_read_and_what_is_no_yes_is_a_no() {
        assert_eq!(told(json!("approve")), "yes");
        assert_eq!(told(json!({"decision": "approve"})), "yes");
        assert_eq!(told(json!({"decision": "edit", "args": {"a": 1}})), r#"with {"a":1}"#);
        assert_eq!(told(json!({"decision": "reject", "message": "too dear"})), r#"no: Some("too dear")"#);
        assert_eq!(told(json!("reject")), "no: None");
        assert_eq!(told(json!({"decision": "edit"})), "no: None");
        assert_eq!(told(json!(true)), "no: None");
    }
}

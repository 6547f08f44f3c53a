//! Conversations as model providers want them: every call of a tool has its answer behind it.

use std::sync::Arc;

use super::{Message, Role, ToolStatus, Value};
use crate::ids;

/// What the model reads in place of an answer that will never come.
const NO_ANSWER: &str = "Error: this call has no answer. The conversation went on before it had one, so it is not known \
                         whether the call took effect.";

/// A call of a conversation that no later message answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenCall {
    /// The place of the message that asks for it.
    pub at: usize,
    /// Its id.
    pub id: Arc<str>,
    /// The tool.
    pub name: Arc<str>,
}

/// The calls in `messages` without an answer, in their order.
///
/// An answer belongs to the last open call of its id before it: some models use the same ids in every turn.
pub fn open_calls(messages: &[Value]) -> Vec<OpenCall> {
    let mut open: Vec<OpenCall> = Vec::new();
    for (at, message) in messages.iter().enumerate() {
        let Some(message) = message.as_message() else { continue };
        match &message.role {
            Role::Ai { tool_calls, invalid_tool_calls, .. } => {
                let valid = tool_calls.iter().map(|call| (&call.id, &call.name));
                let invalid = invalid_tool_calls.iter().map(|call| (&call.id, &call.name));
                let calls = valid.chain(invalid);
                open.extend(calls.map(|(id, name)| OpenCall { at, id: id.clone(), name: name.clone() }));
            }
            Role::Tool { tool_call_id, .. } => {
                if let Some(answered) = open.iter().rposition(|call| call.id == *tool_call_id) {
                    open.remove(answered);
                }
            }
            Role::Human | Role::System | Role::Remove => {}
        }
    }
    open
}

/// `messages` with an error as the answer to every open call, behind the answers its message has; `None` when no
/// call is open. The same messages get the same answers with the same ids.
pub fn with_answers(messages: &[Value]) -> Option<Vec<Value>> {
    let open = open_calls(messages);
    if open.is_empty() {
        return None;
    }
    let mut answered = Vec::with_capacity(messages.len() + open.len());
    let mut due: Vec<&OpenCall> = Vec::new();
    for (at, message) in messages.iter().enumerate() {
        let is_answer = message.as_message().is_some_and(|m| matches!(m.role, Role::Tool { .. }));
        if !is_answer {
            answered.extend(due.drain(..).map(|call| no_answer(messages, call)));
        }
        answered.push(message.clone());
        due.extend(open.iter().filter(|call| call.at == at));
    }
    answered.extend(due.into_iter().map(|call| no_answer(messages, call)));
    Some(answered)
}

fn no_answer(messages: &[Value], call: &OpenCall) -> Value {
    let asked_in = messages[call.at].as_message().map_or("", |message| &*message.id);
    let digest = ids::digest(&[asked_in.as_bytes(), b"|", call.id.as_bytes(), b"|no answer"]);
    let role = Role::Tool { tool_call_id: call.id.clone(), status: ToolStatus::Error, artifact: Value::Null };
    let answer = Message::new(ids::dashed(digest), role, NO_ANSWER);
    Message { name: Some(call.name.clone()), ..answer }.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::{InvalidToolCall, Map, ToolCall};

    fn says(id: &str, role: Role) -> Value {
        Message::new(id, role, "").into()
    }

    fn asks(id: &str, calls: &[&str]) -> Value {
        let call = |id: &&str| ToolCall { id: (*id).into(), name: "t".into(), args: Map::new() };
        let tool_calls = calls.iter().map(call).collect();
        says(id, Role::Ai { tool_calls, invalid_tool_calls: Vec::new(), usage: None })
    }

    fn answers(call: &str) -> Value {
        let role =
            Role::Tool { tool_call_id: call.into(), status: ToolStatus::Success, artifact: Value::Null };
        says(call, role)
    }

    fn shape(messages: &[Value]) -> Vec<String> {
        let shape = |message: &Arc<Message>| match &message.role {
            Role::Tool { tool_call_id, status, .. } => format!("{tool_call_id}:{}", status.as_str()),
            Role::Human | Role::System | Role::Ai { .. } | Role::Remove => message.id.to_string(),
        };
        messages.iter().filter_map(Value::as_message).map(shape).collect()
    }

    #[test]
    fn a_conversation_in_order_stays_as_it_is() {
        let all = [says("h", Role::Human), asks("a", &["1", "2"]), answers("2"), answers("1")];
        assert_eq!(with_answers(&all), None);
        assert_eq!(with_answers(&[]), None);
    }

    #[test]
    fn open_calls_get_errors_behind_the_answers_that_are_there() {
        let all = [asks("a", &["1", "2", "3"]), answers("2"), says("h", Role::Human), asks("b", &["4"])];
        let mended = with_answers(&all).expect("calls are open");
        assert_eq!(shape(&mended), ["a", "2:success", "1:error", "3:error", "h", "b", "4:error"]);
        assert_eq!(with_answers(&all), Some(mended.clone()), "the same ids every time");
        assert_eq!(with_answers(&mended), None);
    }

    #[test]
    fn an_id_that_is_used_again_does_not_hide_an_open_call() {
        let all = [asks("a", &["1"]), says("h", Role::Human), asks("b", &["1"]), answers("1")];
        let mended = with_answers(&all).expect("the first call is open");
        assert_eq!(shape(&mended), ["a", "1:error", "h", "b", "1:success"]);
    }

    #[test]
    fn calls_that_could_not_be_read_are_open_too() {
        let invalid =
            InvalidToolCall { id: "1".into(), name: "t".into(), args: "{".into(), error: "".into() };
        let role = Role::Ai { tool_calls: Vec::new(), invalid_tool_calls: vec![invalid], usage: None };
        assert_eq!(shape(&with_answers(&[says("a", role)]).expect("open")), ["a", "1:error"]);
    }
}

//! Answers of tools that are commands: channels they write, and what the model reads.
//!
//! **Invariant:** a command that cannot be carried out writes nothing; the model reads why.

use serde_json::{Map as JsonMap, Value as Json};

use super::TaskView;
use crate::{
    graph::Returns,
    pregel::{self, MESSAGES, Write},
    tool::{Answer, Error},
    value::{Message, Name, Role, ToolCall, ToolStatus, Value},
};

/// Most messages of one command; they become one answer.
const MAX_MESSAGES: usize = 100;

/// `answer`, carried out when it is a command: a script says so, or the definition of the tool.
pub(super) fn carry_out(task: TaskView<'_>, call: &ToolCall, answer: Answer) -> Answer {
    let returns = task.graph.tools.get(&call.name).and_then(|definition| definition.returns);
    let is_command = answer.is_command || returns == Some(Returns::Command);
    if !is_command || answer.status == ToolStatus::Error {
        return answer;
    }
    let outcome = answer.outcome;
    match read(task, call, &answer.content) {
        Ok(read) => Answer { outcome, ..read },
        Err(reason) => Answer { outcome, ..Error::Command(reason).into() },
    }
}

fn read(task: TaskView<'_>, call: &ToolCall, text: &str) -> Result<Answer, String> {
    let json: Json = serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))?;
    let Json::Object(mut command) = json else { return Err("it is not a JSON object".into()) };
    let update = match command.shift_remove("update") {
        None | Some(Json::Null) => JsonMap::new(),
        Some(Json::Object(update)) => update,
        Some(_) => return Err("/update: must be an object of channels".into()),
    };
    let messages = match command.shift_remove("messages") {
        None | Some(Json::Null) => Vec::new(),
        Some(Json::Array(messages)) if messages.len() <= MAX_MESSAGES => messages,
        Some(Json::Array(_)) => return Err(format!("/messages: at most {MAX_MESSAGES} are allowed")),
        Some(_) => return Err("/messages: must be a list".into()),
    };
    if let Some(field) = command.keys().next() {
        return Err(format!("/{field}: unknown field; known: update, messages"));
    }
    let writes = writes(task, update)?;
    let (said, status) = said(call, messages)?;
    let content = if said.is_empty() { told(&writes) } else { said.join("\n") };
    Ok(Answer { writes, status, ..Answer::success(content) })
}

/// The channels of `update`, each of which must exist and take its value.
fn writes(task: TaskView<'_>, update: JsonMap<String, Json>) -> Result<Vec<(Name, Value)>, String> {
    let mut writes = Vec::with_capacity(update.len());
    for (channel, value) in update {
        if channel == MESSAGES {
            return Err("/update/messages: what the model shall read stands in `messages`".into());
        }
        let Some((name, _)) = task.graph.channels.get_key_value(channel.as_str()) else {
            let known = task.graph.channels.keys().filter(|name| &***name != MESSAGES);
            let known = known.map(|name| &**name).collect::<Vec<_>>().join(", ");
            return Err(format!("/update: unknown channel `{channel}`; known: {known}"));
        };
        let value = Value::from(value);
        if pregel::is_overwriting(&value) {
            return Err(format!("/update/{channel}: a tool cannot replace what a channel holds"));
        }
        writes.push((name.clone(), value));
    }
    let folded: Vec<_> = writes.iter().map(|(name, value)| Write::new(name.clone(), value.clone())).collect();
    pregel::fold(task.graph, task.state, &folded).map_err(|error| format!("/update: {error}"))?;
    Ok(writes)
}

/// The texts of the messages, and whether one of them tells of an error.
fn said(call: &ToolCall, messages: Vec<Json>) -> Result<(Vec<String>, ToolStatus), String> {
    let (mut texts, mut all) = (Vec::new(), ToolStatus::Success);
    for (index, json) in messages.into_iter().enumerate() {
        let json = match json {
            Json::String(text) => {
                texts.push(text);
                continue;
            }
            Json::Object(mut message) => {
                // Who answers this call need not say so.
                message.entry("tool_call_id").or_insert_with(|| (*call.id).into());
                Json::Object(message)
            }
            other @ (Json::Null | Json::Bool(_) | Json::Number(_) | Json::Array(_)) => other,
        };
        let message = Message::coerce(&Value::from(json), "answer");
        let message = message.map_err(|reason| format!("/messages/{index}: {reason}"))?;
        match &message.role {
            Role::Tool { tool_call_id, status, .. } if *tool_call_id == call.id => {
                if *status == ToolStatus::Error {
                    all = ToolStatus::Error;
                }
                texts.push(message.content.text().to_string());
            }
            Role::Tool { .. } => {
                return Err(format!("/messages/{index}/tool_call_id: is the id of another call"));
            }
            Role::Human | Role::System | Role::Ai { .. } | Role::Remove => {
                return Err(format!(
                    "/messages/{index}: must be a text or a message of the role tool; between a call and its answer \
                     nobody else speaks"
                ));
            }
        }
    }
    Ok((texts, all))
}

fn told(writes: &[(Name, Value)]) -> String {
    match writes {
        [] => "done".into(),
        writes => {
            format!("updated {}", writes.iter().map(|(name, _)| &**name).collect::<Vec<_>>().join(", "))
        }
    }
}

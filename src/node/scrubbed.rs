//! What models and tools say, without known secrets: it is removed here, before it reaches a channel.
//!
//! Only known values are removed, nothing by the name beside it: what is in channels belongs to people.

use std::{borrow::Cow, sync::Arc};

use crate::{
    pregel::Write,
    telemetry::scrub::{Scrubber, Values},
    value::{Content, Interrupt, InvalidToolCall, Map, Message, Role, Send, ToolCall, Value},
};

/// The same writes without known secrets; what has none is not copied.
pub(super) fn writes(writes: Vec<Write>) -> Vec<Write> {
    let Some(values) = Scrubber::process().values() else { return writes };
    let clean = |write: Write| match changed(&values, &write.value) {
        Some(value) => Write { value, ..write },
        None => write,
    };
    writes.into_iter().map(clean).collect()
}

/// The same value without known secrets.
pub(super) fn clean(value: Value) -> Value {
    Scrubber::process().values().and_then(|values| changed(&values, &value)).unwrap_or(value)
}

/// `value` without the secrets that it has; `None` when it has none.
fn changed(secrets: &Values, value: &Value) -> Option<Value> {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Bytes(_) | Value::Opaque(_) => None,
        Value::String(text) => self::text(secrets, text).map(Value::String),
        Value::List(items) => list(secrets, items).map(Value::list),
        Value::Set(items) => list(secrets, items).map(|items| Value::Set(Arc::new(items))),
        Value::Map(map) => self::map(secrets, map).map(|map| Value::Map(Arc::new(map))),
        Value::Message(message) => self::message(secrets, message).map(Value::from),
        Value::Send(send) => {
            let arg = changed(secrets, &send.arg)?;
            Some(Value::Send(Arc::new(Send { node: send.node.clone(), arg })))
        }
        Value::Interrupt(asked) => {
            let value = changed(secrets, &asked.value)?;
            Some(Value::Interrupt(Arc::new(Interrupt { value, ..Interrupt::clone(asked) })))
        }
    }
}

fn text(secrets: &Values, text: &str) -> Option<Arc<str>> {
    match secrets.remove(text) {
        Cow::Borrowed(_) => None,
        Cow::Owned(clean) => Some(clean.into()),
    }
}

fn list(secrets: &Values, items: &[Value]) -> Option<Vec<Value>> {
    let found: Vec<_> = items.iter().map(|item| changed(secrets, item)).collect();
    let has_any = found.iter().any(Option::is_some);
    has_any.then(|| found.into_iter().zip(items).map(|(clean, item)| clean.unwrap_or(item.clone())).collect())
}

fn map(secrets: &Values, map: &Map) -> Option<Map> {
    let found: Vec<_> =
        map.iter().map(|(name, value)| (text(secrets, name), changed(secrets, value))).collect();
    let has_any = found.iter().any(|(name, value)| name.is_some() || value.is_some());
    has_any.then(|| {
        let pairs = found.into_iter().zip(map);
        pairs
            .map(|((key, clean), (name, value))| {
                (key.unwrap_or(name.clone()), clean.unwrap_or(value.clone()))
            })
            .collect()
    })
}

fn message(secrets: &Values, message: &Message) -> Option<Message> {
    let content = match &message.content {
        Content::Text(said) => text(secrets, said).map(Content::Text),
        Content::Blocks(blocks) => list(secrets, blocks).map(|blocks| Content::Blocks(Arc::new(blocks))),
    };
    let role = role(secrets, &message.role);
    let kwargs = map(secrets, &message.additional_kwargs);
    let metadata = map(secrets, &message.response_metadata);
    if content.is_none() && role.is_none() && kwargs.is_none() && metadata.is_none() {
        return None;
    }
    let was = message.clone();
    Some(Message {
        content: content.unwrap_or(was.content),
        role: role.unwrap_or(was.role),
        additional_kwargs: kwargs.unwrap_or(was.additional_kwargs),
        response_metadata: metadata.unwrap_or(was.response_metadata),
        ..was
    })
}

fn role(secrets: &Values, role: &Role) -> Option<Role> {
    match role {
        Role::Human | Role::System | Role::Remove => None,
        Role::Ai { tool_calls, invalid_tool_calls, usage } => {
            let calls: Vec<_> = tool_calls.iter().map(|call| map(secrets, &call.args)).collect();
            let invalid: Vec<_> = invalid_tool_calls.iter().map(|call| text(secrets, &call.args)).collect();
            if calls.iter().all(Option::is_none) && invalid.iter().all(Option::is_none) {
                return None;
            }
            let call = |(args, call): (Option<Map>, &ToolCall)| match args {
                Some(args) => ToolCall { args, ..call.clone() },
                None => call.clone(),
            };
            let unread = |(args, call): (Option<Arc<str>>, &InvalidToolCall)| match args {
                Some(args) => InvalidToolCall { args, ..call.clone() },
                None => call.clone(),
            };
            Some(Role::Ai {
                tool_calls: calls.into_iter().zip(tool_calls).map(call).collect(),
                invalid_tool_calls: invalid.into_iter().zip(invalid_tool_calls).map(unread).collect(),
                usage: usage.clone(),
            })
        }
        Role::Tool { tool_call_id, status, artifact } => {
            let artifact = changed(secrets, artifact)?;
            Some(Role::Tool { tool_call_id: tool_call_id.clone(), status: *status, artifact })
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SECRET: &str = "Tr0ub4dor&3";

    fn secrets() -> Values {
        Values::of([SECRET]).expect("there is one")
    }

    fn call() -> ToolCall {
        let args = Value::from(json!({"to": [SECRET, 7], "password": "of a person"}));
        ToolCall { id: "c".into(), name: "t".into(), args: args.as_map().expect("a map").clone() }
    }

    #[test]
    fn every_part_of_a_message_loses_known_values_and_keeps_the_rest() {
        let invalid = InvalidToolCall {
            id: "i".into(),
            name: "t".into(),
            args: format!("{{{SECRET}").into(),
            error: "no JSON".into(),
        };
        let role = Role::Ai { tool_calls: vec![call()], invalid_tool_calls: vec![invalid], usage: None };
        let mut said = Message::new("m", role, format!("it is {SECRET}"));
        said.additional_kwargs.insert("thinking".into(), SECRET.into());
        said.response_metadata.insert("model_name".into(), "gpt".into());
        let clean = changed(&secrets(), &Value::list(vec![said.into()])).expect("there was something");
        let text = clean.to_json().to_string();
        assert!(!text.contains(SECRET), "{text}");
        assert!(text.contains("it is ***REDACTED***") && text.contains("of a person"), "{text}");
        assert!(text.contains("gpt") && text.contains("***REDACTED***\",7"), "{text}");
        let blocks = Content::Blocks(Arc::new(vec![Value::from(json!({"type": "text", "text": SECRET}))]));
        let role = Role::Tool {
            tool_call_id: "c".into(),
            status: crate::value::ToolStatus::Error,
            artifact: SECRET.into(),
        };
        let answer = Message { content: blocks, ..Message::new("a", role, "") };
        let clean = changed(&secrets(), &Value::from(answer)).expect("there was something");
        assert!(!format!("{clean:?}").contains(SECRET), "{clean:?}");
    }

    #[test]
    fn what_has_none_is_not_copied() {
        let harmless = Value::from(json!({"password": "of a person", "list": ["x", null, 1.5]}));
        assert!(changed(&secrets(), &harmless).is_none());
        let send = |arg: Value| Value::Send(Arc::new(Send { node: "n".into(), arg }));
        assert!(changed(&secrets(), &send(harmless)).is_none());
        let clean = changed(&secrets(), &send(SECRET.into())).expect("there was something");
        assert_eq!(clean, send("***REDACTED***".into()));
    }
}

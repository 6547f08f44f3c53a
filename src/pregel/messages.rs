//! The `messages` reducer: LangGraph's `add_messages`.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "one kind of value is asked for; all others are answered alike"
)]

use std::sync::Arc;

use crate::{
    ids,
    value::{Message, Role, Value},
};

/// The id of a remove message that removes everything before it.
pub const REMOVE_ALL: &str = "__remove_all__";

/// Adds the messages in `update` to those in `current`: same id replaces, `remove` removes, others are appended.
///
/// A message without an id gets one made from `seed` and its position, so that applying the same writes
/// again gives the same ids. Fails with a sentence when `update` holds something that is no message.
pub(super) fn add_messages(current: Option<Value>, update: &Value, seed: &str) -> Result<Value, String> {
    let mut list = match current {
        Some(Value::List(list)) => list,
        Some(Value::Null) | None => Arc::new(Vec::new()),
        Some(_) => return Err("the channel holds something that is not a list of messages".into()),
    };
    let updates = match update {
        Value::List(items) => items.as_slice(),
        Value::Null => return Ok(Value::List(list)),
        single => std::slice::from_ref(single),
    };
    let messages = Arc::make_mut(&mut list);
    for (position, item) in updates.iter().enumerate() {
        if matches!(item, Value::Opaque(_)) {
            messages.push(item.clone());
            continue;
        }
        let fallback = ids::dashed(ids::digest(&[seed.as_bytes(), b"|", position.to_string().as_bytes()]));
        merge(messages, Message::coerce(item, &fallback)?);
    }
    Ok(Value::List(list))
}

fn merge(messages: &mut Vec<Value>, message: Arc<Message>) {
    // Searched from the end: a replaced message is nearly always a recent one.
    let place = messages.iter().rposition(|held| held.as_message().is_some_and(|held| held.id == message.id));
    match (&message.role, place) {
        (Role::Remove, _) if &*message.id == REMOVE_ALL => messages.clear(),
        (Role::Remove, Some(at)) => {
            messages.remove(at);
        }
        (Role::Remove, None) => {}
        (_, Some(at)) => messages[at] = Value::Message(message),
        (_, None) => messages.push(Value::Message(message)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ids_after(current: serde_json::Value, update: serde_json::Value) -> Vec<String> {
        let current = add_messages(None, &Value::from(current), "a").expect("messages");
        let merged = add_messages(Some(current), &Value::from(update), "b").expect("messages");
        merged.messages().map(|m| format!("{}={}", m.id, m.content.text())).collect()
    }

    #[test]
    fn messages_are_appended_replaced_and_removed_by_id() {
        let current =
            json!([{"role": "user", "content": "1", "id": "x"}, {"role": "user", "content": "2", "id": "y"}]);
        let said = |id: &str, text: &str| json!({"role": "assistant", "content": text, "id": id});
        assert_eq!(ids_after(current.clone(), json!([said("z", "3")])), ["x=1", "y=2", "z=3"]);
        assert_eq!(ids_after(current.clone(), said("x", "new")), ["x=new", "y=2"]);
        assert_eq!(ids_after(current.clone(), json!([{"type": "remove", "id": "x"}])), ["y=2"]);
        let all = json!([{"type": "remove", "id": "__remove_all__"}, said("z", "3")]);
        assert_eq!(ids_after(current, all), ["z=3"]);
    }

    #[test]
    fn missing_ids_are_the_same_when_applied_again_and_differ_by_position() {
        let hello = Value::from(json!([{"role": "user", "content": "a"}, {"role": "user", "content": "a"}]));
        let once = add_messages(None, &hello, "seed").expect("messages");
        assert_eq!(once, add_messages(None, &hello, "seed").expect("messages"));
        assert_eq!(once.messages().count(), 2);
    }
}

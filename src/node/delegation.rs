//! Delegation to a sub-agent: what it is given, and what comes back.

use std::sync::Arc;

use crate::{
    graph::TODOS,
    value::{MESSAGES, Map, Message, Name, Role, State, Value},
};

/// Channels a sub-agent does not share with its parent.
const OWN: [&str; 2] = [MESSAGES, TODOS];

/// The input of a sub-agent: the parent's state without its messages and todos, and the task as a person's message.
pub fn child_input(parent: &State, description: &str, message_id: &str) -> Map {
    let shared = parent.iter().filter(|(channel, _)| !OWN.contains(&&***channel));
    let mut input: Map = shared.map(|(channel, value)| (channel.clone(), value.clone())).collect();
    let request = Message::new(message_id, Role::Human, description);
    input.insert(MESSAGES.into(), Value::list(vec![request.into()]));
    input
}

/// What a finished sub-agent gives back: the text of its last message, and the channels it changed.
///
/// Of a map only the changed keys come back, so that sub-agents that ran side by side do not undo
/// each other's work.
pub fn merge_back(parent: &State, child: &State) -> (Arc<str>, Vec<(Name, Value)>) {
    let answer = child.get(MESSAGES).and_then(|messages| messages.messages().next_back().cloned());
    let text = answer.map_or_else(|| "".into(), |message| message.content.text());
    let shared = child.iter().filter(|(channel, _)| !OWN.contains(&&***channel));
    let changed = shared.filter_map(|(channel, value)| {
        let change = match (parent.get(channel), value) {
            (Some(before), after) if before == after => return None,
            (Some(Value::Map(before)), Value::Map(after)) => {
                Value::Map(Arc::new(changed_keys(before, after)))
            }
            (_, after) => after.clone(),
        };
        Some((channel.clone(), change))
    });
    (text, changed.collect())
}

/// Keys that are new or different in `after`, and nulls for those that are gone.
fn changed_keys(before: &Map, after: &Map) -> Map {
    let new = after.iter().filter(|(key, value)| before.get(*key) != Some(value));
    let gone = before.keys().filter(|key| !after.contains_key(*key));
    new.map(|(key, value)| (key.clone(), value.clone()))
        .chain(gone.map(|key| (key.clone(), Value::Null)))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn state(json: serde_json::Value) -> State {
        Value::from(json).as_map().expect("an object").clone()
    }

    #[test]
    fn a_child_sees_the_files_but_not_the_talk() {
        let parent = state(json!({"messages": ["x"], "todos": [1], "files": {"/a": 1}}));
        let input = Value::Map(Arc::new(child_input(&parent, "do it", "m1"))).to_json();
        assert_eq!(input["files"], json!({"/a": 1}));
        assert_eq!(input["messages"][0]["content"], json!("do it"));
        assert!(input.get("todos").is_none());
    }

    #[test]
    fn only_changed_files_come_back() {
        let parent = state(json!({"files": {"/a": 1, "/b": 1, "/c": 1}, "topic": "t"}));
        let mut child = state(json!({"files": {"/a": 1, "/b": 2, "/d": 3}, "topic": "t", "todos": [1]}));
        let answer = Message::new("m", Role::Human, "done");
        child.insert("messages".into(), Value::list(vec![answer.into()]));
        let (text, changed) = merge_back(&parent, &child);
        assert_eq!(&*text, "done");
        assert_eq!(changed.len(), 1);
        assert_eq!(changed[0].1.to_json(), json!({"/b": 2, "/d": 3, "/c": null}));
    }
}

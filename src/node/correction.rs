//! Answers that do not satisfy their schema: what the model is told, and how the next task gets to know it.
//!
//! **Invariant:** each correction is a superstep of its own, a send of the node to itself, so a crash repeats one
//! call at most.

use std::sync::Arc;

use serde_json::json;

use super::{Scope, TaskView};
use crate::{
    pregel::{SENDS, Write},
    stream::EventType,
    value::{Map, Message, Name, Role, Send, Value},
};

/// What a send carries beside the names of the item it is about.
pub(super) const CORRECTION: &str = "__correction__";

/// Problems that a model is told at once; it corrects a few at a time.
const MAX_PROBLEMS: usize = 10;

/// What earlier calls of a node answered wrongly.
#[derive(Default)]
pub(super) struct Correction {
    /// How many.
    count: u32,
    /// Each wrong answer, and what was said about it.
    pub(super) messages: Vec<Arc<Message>>,
}

impl Correction {
    /// What `task` was sent, if it was sent to correct an answer.
    pub(super) fn of(task: TaskView<'_>) -> Self {
        let sent = task.sent.and_then(|sent| sent.get(CORRECTION)).and_then(Value::as_map);
        let messages = sent.and_then(|sent| sent.get("messages")).into_iter();
        let messages: Vec<_> = messages.flat_map(|list| list.messages().cloned()).collect();
        let wrong = messages.iter().filter(|message| matches!(message.role, Role::Ai { .. })).count();
        Self { count: u32::try_from(wrong).unwrap_or(u32::MAX), messages }
    }

    /// Whether the node may be asked again.
    pub(super) fn is_allowed(&self, retries: u32) -> bool {
        self.count < retries
    }

    /// Tells readers that the text of `answer` counts no more, and sends the node to itself with what is wrong.
    pub(super) fn again(
        mut self,
        scope: &Scope,
        task: TaskView<'_>,
        answer: Message,
        problems: &[String],
    ) -> Write {
        let problems: Vec<_> = problems.iter().take(MAX_PROBLEMS).map(String::as_str).collect();
        let data = json!({
            "kind": "answer_superseded",
            "message_id": &*answer.id,
            "problems": &problems,
            "retry": self.count + 1,
        });
        scope.emitter.emit(EventType::Custom, task.origin(), data);
        let text = format!(
            "Your last answer does not satisfy the JSON Schema it must satisfy:\n- {}\nAnswer again with the \
             corrected JSON and nothing else.",
            problems.join("\n- ")
        );
        let hint = Message::new(format!("{}-correction", task.id), Role::Human, text);
        self.messages.extend([answer, hint].map(Arc::new));
        let messages = Value::list(self.messages.into_iter().map(Value::Message).collect());
        let mut arg: Map = task.sent.cloned().unwrap_or_default();
        arg.insert(Name::from(CORRECTION), Value::map([("messages", messages)]));
        let send = Send { node: task.node.name.clone(), arg: Value::Map(Arc::new(arg)) };
        Write::new(SENDS, Value::Send(Arc::new(send)))
    }
}

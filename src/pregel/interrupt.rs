//! Interrupts: what a task asks, under which id, and the answers it has been given.
//!
//! A task that waits is run again from its start: its first question gets its first answer, and so on.

use std::{collections::HashMap, sync::Arc};

use serde_json::Value as Json;

use super::{ERROR, ERROR_SOURCE, INTERRUPT, PendingWrite, RESUME, Task};
use crate::{
    graph::Schema,
    ids::{self, Namespace, TaskId},
    value::{Interrupt, Value},
};

/// Problems of one answer that the next question lists.
const MAX_PROBLEMS: usize = 5;

/// Answers of a command by the id of the interrupt they answer.
pub type Answers = HashMap<Arc<str>, Value>;

/// What a task wants to know.
#[derive(Clone, Debug)]
pub struct Question {
    /// What is asked.
    pub value: Value,
    /// JSON Schema of the answer; an answer that does not satisfy it is asked for again.
    pub response_schema: Option<Json>,
}

/// The questions and answers of one task, in the order in which it asks.
#[derive(Clone, Debug)]
pub struct Dialogue<'a> {
    ns: &'a Namespace,
    task: &'a Task,
    pending: &'a [PendingWrite],
    given: &'a Answers,
    used: Vec<Value>,
}

impl<'a> Dialogue<'a> {
    /// The dialogue of `task` of the graph in `ns`: what is stored of it in `pending`, and what a command has
    /// `given`. Costs nothing until the task asks.
    pub fn new(ns: &'a Namespace, task: &'a Task, pending: &'a [PendingWrite], given: &'a Answers) -> Self {
        Self { ns, task, pending, given, used: Vec::new() }
    }

    /// The answer to `question`, or the interrupt to wait for. Ends because every turn takes an answer.
    pub fn ask(&mut self, question: Question) -> Result<Value, Interrupt> {
        let schema = question.response_schema.as_ref().and_then(|schema| Schema::compile(schema).ok());
        let mut value = question.value.clone();
        while let Some(answer) = self.answer(self.used.len()) {
            self.used.push(answer.clone());
            let problems = schema.as_ref().map(|schema| schema.check(&answer.to_json())).unwrap_or_default();
            if problems.is_empty() {
                return Ok(answer);
            }
            value = with_error(&question.value, &problems);
        }
        let id = self.id(self.used.len());
        let response_schema = question.response_schema.map_or(Value::Null, Value::from);
        Err(Interrupt { id, value, response_schema })
    }

    /// Goes past the first `count` questions: what they decided is done already.
    pub fn skip(&mut self, count: usize) {
        while self.used.len() < count {
            let answer = self.answer(self.used.len()).unwrap_or(Value::Null);
            self.used.push(answer);
        }
    }

    /// The answers used so far.
    pub fn used(&self) -> &[Value] {
        &self.used
    }

    /// The same, when the task is over.
    pub fn into_used(self) -> Vec<Value> {
        self.used
    }

    /// Whether the task waits, or waited last, for the answer to a question of this `kind`.
    pub fn has_asked(&self, kind: &str) -> bool {
        let is_own = |write: &&PendingWrite| write.task_id == self.task.id && &*write.channel == INTERRUPT;
        let asked = self.pending.iter().filter(is_own).filter_map(|write| write.value.as_list()).flatten();
        let mut kinds = asked.filter_map(|asked| {
            let Value::Interrupt(interrupt) = asked else { return None };
            interrupt.value.as_map()?.get("kind")?.as_str()
        });
        kinds.any(|asked| asked == kind)
    }

    fn id(&self, number: usize) -> Arc<str> {
        interrupt_id(&self.ns.child(&self.task.name, &self.task.id), number)
    }

    fn answer(&self, number: usize) -> Option<Value> {
        let is_own = |write: &&PendingWrite| write.task_id == self.task.id && &*write.channel == RESUME;
        let stored = self.pending.iter().find(is_own).and_then(|write| write.value.as_list());
        let stored = stored.and_then(|answers| answers.get(number).cloned());
        stored.or_else(|| self.given.get(&self.id(number)).cloned())
    }
}

/// The question once more, saying what was wrong with the last answer.
fn with_error(value: &Value, problems: &[String]) -> Value {
    let named: Vec<_> = problems.iter().take(MAX_PROBLEMS).map(String::as_str).collect();
    let error =
        Value::from(format!("the last answer does not satisfy response_schema: {}", named.join("; ")));
    match value.as_map() {
        Some(map) => {
            let pairs = map.iter().map(|(key, value)| (key.clone(), value.clone()));
            Value::map(pairs.chain([("error".into(), error)]))
        }
        None => Value::map([("question", value.clone()), ("error", error)]),
    }
}

/// LangGraph's id of the question that a task asks after `answered` others.
fn interrupt_id(task_ns: &Namespace, answered: usize) -> Arc<str> {
    let digest = match answered {
        0 => ids::digest(&[task_ns.as_str().as_bytes()]),
        answered => ids::digest(&[task_ns.as_str().as_bytes(), b"|", answered.to_string().as_bytes()]),
    };
    format!("{digest:032x}").into()
}

/// Whether a write says nothing about what its task did: of a failure, of a question, of its answers.
pub(super) fn is_mark(channel: &str) -> bool {
    matches!(channel, ERROR | ERROR_SOURCE | INTERRUPT | RESUME)
}

/// The interrupts that wait among the writes of a checkpoint: those of tasks that have not finished.
pub fn waiting(pending: &[PendingWrite]) -> Vec<Arc<Interrupt>> {
    let asked = unfinished(pending, INTERRUPT);
    asked.flat_map(|write| interrupts(&write.value)).collect()
}

/// Whether a task that starts from the checkpoint with these writes has failed, and has not finished since.
pub fn has_failed(pending: &[PendingWrite]) -> bool {
    unfinished(pending, ERROR).next().is_some()
}

/// The marks on `channel` of tasks that have not finished.
fn unfinished<'a>(
    pending: &'a [PendingWrite],
    channel: &'static str,
) -> impl Iterator<Item = &'a PendingWrite> {
    let is_finished =
        |task: &TaskId| pending.iter().any(|write| write.task_id == *task && !is_mark(&write.channel));
    pending.iter().filter(move |write| &*write.channel == channel && !is_finished(&write.task_id))
}

/// LangGraph stores a list, and reads a bare interrupt too.
fn interrupts(value: &Value) -> Vec<Arc<Interrupt>> {
    let one =
        |value: &Value| if let Value::Interrupt(interrupt) = value { Some(interrupt.clone()) } else { None };
    match value.as_list() {
        Some(list) => list.iter().filter_map(one).collect(),
        None => one(value).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TASK: &str = "dbd7e974-5f5a-cdb9-f4c8-12254b4de927";

    fn task() -> Task {
        let (id, triggers) = (TaskId::from_stored(TASK), Vec::new());
        Task { id, path: "p".into(), name: "sub".into(), triggers, input: super::super::TaskInput::State }
    }

    fn write(task: &str, channel: &str, value: Value) -> PendingWrite {
        let task_id = TaskId::from_stored(task);
        PendingWrite { task_id, task_path: "p".into(), idx: 0, channel: channel.into(), value }
    }

    fn question(schema: Option<Json>) -> Question {
        Question { value: json!({"kind": "q"}).into(), response_schema: schema }
    }

    #[test]
    fn ids_are_the_ones_langgraph_computed_for_the_same_tasks() {
        // langgraph-interop.md A.6: the interrupt inside the subgraph, and its namespace.
        let ns = Namespace::from_stored("sub:dbd7e974-5f5a-cdb9-f4c8-12254b4de927");
        let inner = ns.child("ask", &TaskId::from_stored("b2b48449-6cce-9e32-76b2-7e4f7f25583b"));
        assert_eq!(&*interrupt_id(&inner, 0), "bb473537836d0fdb401bb8c19757bb97");
        assert_ne!(interrupt_id(&inner, 1), interrupt_id(&inner, 0));
    }

    #[test]
    fn questions_get_their_answers_in_order_and_the_next_one_waits() {
        let (task, root) = (task(), Namespace::root());
        let stored = [write(TASK, RESUME, Value::list(vec!["first".into()]))];
        let id = |number| interrupt_id(&root.child("sub", &task.id), number);
        let given = Answers::from([(id(1), "second".into()), (id(7), "of nobody".into())]);
        let mut dialogue = Dialogue::new(&root, &task, &stored, &given);
        assert_eq!(dialogue.ask(question(None)), Ok("first".into()));
        assert_eq!(dialogue.ask(question(None)), Ok("second".into()));
        let waits = dialogue.ask(question(None)).expect_err("nobody has answered");
        assert_eq!((waits.id, waits.value.to_json()), (id(2), json!({"kind": "q"})));
        assert_eq!(dialogue.used(), ["first".into(), "second".into()]);
    }

    #[test]
    fn a_wrong_answer_is_asked_for_again_under_another_id() {
        let (task, root) = (task(), Namespace::root());
        let id = |number| interrupt_id(&root.child("sub", &task.id), number);
        let given = Answers::from([(id(0), 7.into())]);
        let schema = json!({"enum": ["yes", "no"]});
        let mut dialogue = Dialogue::new(&root, &task, &[], &given);
        let waits = dialogue.ask(question(Some(schema.clone()))).expect_err("7 is no answer");
        assert_eq!(waits.id, id(1));
        let text = waits.value.to_json();
        assert!(text["error"].as_str().is_some_and(|error| error.contains("response_schema")), "{text}");
        assert_eq!((&text["kind"], waits.response_schema.to_json()), (&json!("q"), schema));
    }

    #[test]
    fn skipped_questions_keep_their_answers() {
        let (task, root) = (task(), Namespace::root());
        let given = Answers::from([(interrupt_id(&root.child("sub", &task.id), 0), "yes".into())]);
        let mut dialogue = Dialogue::new(&root, &task, &[], &given);
        dialogue.skip(1);
        assert!(dialogue.ask(question(None)).is_err());
        assert_eq!(dialogue.into_used(), ["yes".into()]);
    }

    #[test]
    fn interrupts_of_unfinished_tasks_wait() {
        let interrupt = |id: &str| {
            let value = Interrupt { id: id.into(), value: Value::Null, response_schema: Value::Null };
            Value::Interrupt(Arc::new(value))
        };
        let pending = [
            write("a", INTERRUPT, Value::list(vec![interrupt("1"), interrupt("2")])),
            write("b", INTERRUPT, interrupt("3")),
            write("b", RESUME, Value::list(vec!["yes".into()])),
            write("c", INTERRUPT, interrupt("4")),
            write("c", "log", Value::Null),
        ];
        let ids: Vec<_> = waiting(&pending).iter().map(|interrupt| interrupt.id.to_string()).collect();
        assert_eq!(ids, ["1", "2", "3"]);
        assert!(!has_failed(&pending));
    }

    #[test]
    fn a_task_that_has_finished_since_has_not_failed() {
        let error = || write("a", ERROR, "CODE: why".into());
        assert!(has_failed(&[error()]));
        assert!(!has_failed(&[error(), write("a", "log", Value::Null)]));
    }
}

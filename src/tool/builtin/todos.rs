//! `write_todos`: the agent's list of what is left to do.

use super::list;
use crate::{
    graph::TODOS,
    tool::{Answer, Call},
    value::Value,
};

/// Most entries; a longer list is no plan.
const MAX_TODOS: usize = 200;

/// Characters of one entry; it is a line in a list, not a document.
const MAX_TODO_CHARS: usize = 2_000;

/// How far an entry is, as models spell it.
pub(super) const STATUSES: [&str; 3] = ["pending", "in_progress", "completed"];

pub(super) fn write_todos(call: &Call<'_>) -> Result<Answer, String> {
    let items = list(call.args, "todos")?;
    if items.len() > MAX_TODOS {
        return Err(format!("todos may have at most {MAX_TODOS} entries, this list has {}.", items.len()));
    }
    let todos: Vec<(&str, &str)> =
        items.iter().enumerate().map(|(index, item)| todo(index, item)).collect::<Result<_, _>>()?;
    let count = |status: &str| todos.iter().filter(|(_, s)| *s == status).count();
    let mut answer = Answer::success(format!(
        "Saved the todo list: {} completed, {} in progress, {} pending.",
        count("completed"),
        count("in_progress"),
        count("pending")
    ));
    let todo = |(content, status): &(&str, &str)| {
        Value::map([("content", Value::from(*content)), ("status", Value::from(*status))])
    };
    answer.writes.push((TODOS.into(), Value::list(todos.iter().map(todo).collect())));
    Ok(answer)
}

fn todo(index: usize, item: &Value) -> Result<(&str, &str), String> {
    let field = |key: &str| item.as_map().and_then(|map| map.get(key)).and_then(Value::as_str);
    let content = field("content").ok_or_else(|| format!("todos[{index}] needs a text in content."))?;
    if content.chars().count() > MAX_TODO_CHARS {
        return Err(format!("todos[{index}].content may have at most {MAX_TODO_CHARS} characters."));
    }
    let status = field("status").filter(|status| STATUSES.contains(status));
    let status =
        status.ok_or_else(|| format!("todos[{index}].status must be one of {}.", STATUSES.join(", ")))?;
    Ok((content, status))
}

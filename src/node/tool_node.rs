//! The `tool` node: a call made of the state, and its answer as a value.

use std::sync::Arc;

use super::{Asked, Error, Scope, TaskView, Told, tool_call};
use crate::{
    graph::{Argument, ExpressionError, ToolNode},
    ids,
    pregel::{self, OVERWRITE, Write},
    tool::{self, Answer},
    value::{Map, State, ToolCall, ToolStatus, Value},
};

/// The call that the node makes on this state. Its id follows from the task, so it is the same in every attempt.
pub fn call_of(task: TaskView<'_>, node: &ToolNode) -> Result<Asked, Error> {
    let mut args = Map::new();
    for (name, argument) in &node.arguments {
        let value = value(argument, task.state).map_err(|error| Error::Expression {
            what: format!("the argument {name}"),
            reason: error.to_string(),
        })?;
        args.insert(name.clone(), value);
    }
    let digest = ids::digest(&[task.id.as_str().as_bytes(), b"call"]);
    let call = ToolCall { id: format!("call_{digest:032x}").into(), name: node.tool.clone(), args };
    Ok(checked(task, call))
}

/// The call if it can be made, or the answer that says why not.
pub(super) fn checked(task: TaskView<'_>, call: ToolCall) -> Asked {
    let Some(tool) = task.tools.get(&call.name) else {
        return Asked::Refused(call, Answer::error("the tool is not available"));
    };
    match tool::validate_args(tool.spec(), &call.args) {
        Ok(()) => Asked::Call(call),
        Err(problems) => Asked::Refused(call, tool::Error::Arguments(problems).into()),
    }
}

fn value(argument: &Argument, state: &State) -> Result<Value, ExpressionError> {
    match argument {
        Argument::Expression(expression) => expression.eval(state),
        Argument::Text(template) => template.render(state).map(|text| Value::from(text.as_str())),
        Argument::Plain(value) => Ok(value.clone()),
        Argument::List(items) => {
            items.iter().map(|item| value(item, state)).collect::<Result<_, _>>().map(Value::list)
        }
        Argument::Map(fields) => {
            let fields = fields.iter().map(|(name, field)| Ok((name.clone(), value(field, state)?)));
            fields.collect::<Result<Map, _>>().map(|map| Value::Map(Arc::new(map)))
        }
    }
}

/// Reports the answer, and turns it into the task's writes; a call that failed fails the task, since there is no
/// model that could react to it.
pub fn finish_call(
    scope: &Scope,
    task: TaskView<'_>,
    (node, call): (&ToolNode, &ToolCall),
    told: Told,
) -> Result<Vec<Write>, Error> {
    let answer = tool_call::tell(scope, task, call, told);
    if answer.status == ToolStatus::Error {
        // The rest of the answer may hold anything; readers of the events have it.
        let code = answer.content.split_once(": ").map(|(code, _)| code);
        let is_ours = |code: &&str| code.starts_with("TOOL_") || code.starts_with("SECRET_");
        let code = code.filter(|code| is_ours(code) && !code.contains(char::is_whitespace));
        let reason = code.unwrap_or("its answer says why, see on_tool_end").to_owned();
        return Err(Error::Tool { tool: call.name.to_string(), reason });
    }
    let value = || match serde_json::from_str::<serde_json::Value>(&answer.content) {
        Ok(json) => Value::from(json),
        Err(_) => Value::from(answer.content.as_str()),
    };
    let own: Vec<_> = node.writes.iter().map(|channel| Write::new(channel.clone(), value())).collect();
    if own.iter().any(|write| pregel::is_overwriting(&write.value)) {
        let reason = format!("its answer is an object whose only field is `{OVERWRITE}`");
        return Err(Error::Tool { tool: call.name.to_string(), reason });
    }
    let theirs = answer.writes.into_iter().map(|(channel, value)| Write { channel, value });
    Ok(own.into_iter().chain(theirs).collect())
}

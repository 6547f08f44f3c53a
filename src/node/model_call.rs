//! One model call: the conversation in, streamed text out, an AI message and the calls it asks for as writes.

use std::sync::Arc;

use serde_json::Value as Json;

use super::{
    Error, Scope, TaskView,
    asking::{Answer, ask},
    correction::Correction,
    summary, tool_call,
};
use crate::{
    graph::{ModelNode, Template},
    model::{Reply, Request},
    pregel::{self, MESSAGES, OVERWRITE, SENDS, Write},
    value::{Content, Map, Message, Role, Send, State, Value, with_answers},
};

pub(super) async fn run(scope: &Scope, task: TaskView<'_>, node: &ModelNode) -> Result<Vec<Write>, Error> {
    let correction = Correction::of(task);
    if correction.messages.is_empty()
        && let Some(writes) = summary::hand_over(task, node)
    {
        return Ok(writes);
    }
    let mut request = request(task, node)?;
    request.messages.extend(correction.messages.iter().cloned());
    let answer = Box::pin(ask(scope, task, Arc::new(request))).await?;
    let sends = sends(node, &answer.reply);
    if !sends.is_empty() {
        return Ok(std::iter::once(to_messages(message(answer))).chain(sends).collect());
    }
    match value(node, &answer.reply.text) {
        Ok(value) => Ok(writes(node, answer, value)),
        Err(problems) if correction.is_allowed(node.schema_retries) => {
            Ok(vec![correction.again(scope, task, message(answer), &problems)])
        }
        Err(problems) => Err(Error::Output(problems.join("; "))),
    }
}

pub(super) fn request(task: TaskView<'_>, node: &ModelNode) -> Result<Request, Error> {
    let system_prompt =
        node.system_prompt.as_ref().map(|t| render("system_prompt", t, task.state)).transpose()?;
    let messages = match &node.prompt {
        Some(prompt) => {
            let text = render("prompt", prompt, task.state)?;
            vec![Arc::new(Message::new(format!("{}-prompt", task.id), Role::Human, text))]
        }
        None => conversation(task.state),
    };
    Ok(Request {
        settings: node.model.clone(),
        system_prompt,
        messages,
        tools: task.tools.specs(task.graph, &node.tools),
        output_schema: node.output_schema.clone(),
        retry: task.tries.number(),
    })
}

/// The conversation, with an answer to every call: providers refuse one without.
fn conversation(state: &State) -> Vec<Arc<Message>> {
    let messages = state.get(MESSAGES).and_then(Value::as_list).unwrap_or_default();
    let mended = with_answers(messages);
    let messages = mended.as_deref().unwrap_or(messages);
    messages.iter().filter_map(Value::as_message).cloned().collect()
}

pub(super) fn render(what: &str, template: &Template, state: &State) -> Result<String, Error> {
    let failed = |error: crate::graph::ExpressionError| Error::Expression {
        what: what.into(),
        reason: error.to_string(),
    };
    template.render(state).map_err(failed)
}

/// Where a final answer goes: to the conversation, to a channel, or to both.
fn writes(node: &ModelNode, answer: Answer, value: Value) -> Vec<Write> {
    let own = node.writes.clone().map(|channel| Write::new(channel, value));
    let keeps = own.is_none() || node.keeps_answer;
    keeps.then(|| to_messages(message(answer))).into_iter().chain(own).collect()
}

fn to_messages(message: Message) -> Write {
    Write::new(MESSAGES, Value::list(vec![message.into()]))
}

/// One send per tool call.
fn sends(node: &ModelNode, reply: &Reply) -> Vec<Write> {
    let Some(target) = &node.tools_node else { return Vec::new() };
    let send = |arg: Value| Write::new(SENDS, Value::Send(Arc::new(Send { node: target.clone(), arg })));
    let calls = reply.tool_calls.iter().map(tool_call::argument);
    let invalid = reply.invalid_tool_calls.iter().map(tool_call::invalid_argument);
    calls.chain(invalid).map(send).collect()
}

/// The answer as a value: text, or JSON checked against the node's schema; or what is wrong with it.
fn value(node: &ModelNode, text: &str) -> Result<Value, Vec<String>> {
    let Some(schema) = &node.output_schema else { return Ok(text.into()) };
    let json: Json = serde_json::from_str(text).map_err(|_| vec!["it is not JSON".to_owned()])?;
    let mut problems = match schema.compiled() {
        Ok(schema) => schema.check(&json),
        Err(wrong) => vec![wrong],
    };
    let value = Value::from(json);
    if pregel::is_overwriting(&value) {
        problems.push(format!("the only field is `{OVERWRITE}`, which an answer cannot have"));
    }
    if problems.is_empty() { Ok(value) } else { Err(problems) }
}

fn message(answer: Answer) -> Message {
    let Answer { message_id, reply } = answer;
    let mut response_metadata = Map::new();
    for (key, value) in [("model_name", reply.model), ("finish_reason", reply.finish_reason)] {
        if let Some(value) = value {
            response_metadata.insert(key.into(), value.into());
        }
    }
    let role = Role::Ai {
        tool_calls: reply.tool_calls,
        invalid_tool_calls: reply.invalid_tool_calls,
        usage: reply.usage,
    };
    let content = match reply.blocks.is_empty() {
        true => Content::Text(reply.text.into()),
        false => Content::Blocks(Arc::new(reply.blocks)),
    };
    Message { content, response_metadata, ..Message::new(message_id, role, "") }
}

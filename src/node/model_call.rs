//! One model call: the conversation in, streamed text out, an AI message and the calls it asks for as writes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt;
use serde_json::Value as Json;
use tokio::time::timeout;
use tracing::Instrument;

use super::{Error, Scope, TaskView, correction::Correction, summary, tool_call};
use crate::{
    graph::{FailureClass, ModelNode, ModelSettings, NodeKind, Schema, Template},
    model::{self, ChatModel, Chunk, Reply, Request, retry},
    pregel::{self, MESSAGES, OVERWRITE, SENDS, Write},
    stream::{Piece, TokenBuffer},
    telemetry::{label, metric},
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
    let answer = Box::pin(ask(scope, task, request)).await?;
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
        retry: 0,
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

/// A model's answer under the message id its text was streamed with.
pub(super) struct Answer {
    message_id: String,
    pub(super) reply: Reply,
}

/// Asks the request's model, then its fallbacks, each as often as the retry policy allows.
pub(super) async fn ask(scope: &Scope, task: TaskView<'_>, mut request: Request) -> Result<Answer, Error> {
    let first = request.settings.clone();
    let fallbacks = first.fallbacks.iter().map(|settings| Arc::new(settings.clone()));
    let mut last = None;
    for settings in std::iter::once(first.clone()).chain(fallbacks) {
        request.settings = settings;
        match ask_one(scope, task, &mut request).await {
            Err(Error::Model(error)) if error.is_retryable() => last = Some(error),
            other => return other,
        }
    }
    Err(last.expect("there is always the node's own model").into())
}

async fn ask_one(scope: &Scope, task: TaskView<'_>, request: &mut Request) -> Result<Answer, Error> {
    request.retry = task.tries.number();
    let policy = retry_policy(scope, task);
    let mut failed = 0;
    loop {
        scope.spending.check()?;
        scope.spending.model_call()?;
        let error = match call(scope, task, request.clone()).await {
            Ok(answer) => return accept(answer),
            Err(Error::Model(error)) => error,
            Err(other) => return Err(other),
        };
        let Some(wait) = policy.delay(failed, &error, fastrand::u64(..)) else {
            error
                .retry_after()
                .into_iter()
                .for_each(|asked| task.tries.waits(asked.min(policy.longest_asked)));
            return Err(error.into());
        };
        failed += 1;
        let (ModelSettings { provider, model, .. }, code) = (&*request.settings, error.code());
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(node = %task.node.name, %provider, %model, code, %error, retry = request.retry, wait_ms, "model call failed, trying again");
        request.retry += 1;
        tokio::time::sleep(wait).await;
    }
}

/// How often a model is asked in one run of the node: as the operator says, unless the node says when it is run
/// again; both together would multiply.
fn retry_policy(scope: &Scope, task: TaskView<'_>) -> retry::Policy {
    let retry = task.node.policy.retry.as_ref();
    let is_covered = retry.is_some_and(|retry| retry.covers(FailureClass::ModelUnavailable));
    retry::Policy { tries: if is_covered { 1 } else { scope.retry.tries }, ..scope.retry }
}

fn accept(answer: Answer) -> Result<Answer, Error> {
    match &answer.reply.refusal {
        Some(refusal) if answer.reply.text.is_empty() => Err(Error::Refused(refusal.clone())),
        _ => Ok(answer),
    }
}

/// One try: streams the text as it comes, under a message id of its own so that a retry never doubles text.
async fn call(scope: &Scope, task: TaskView<'_>, request: Request) -> Result<Answer, Error> {
    let settings = request.settings.clone();
    let ModelSettings { provider, model, .. } = &*settings;
    let span = tracing::info_span!(
        "model_call",
        otel.name = format!("chat {model}"),
        gen_ai.operation.name = "chat",
        gen_ai.provider.name = provider,
        gen_ai.request.model = model,
        gen_ai.usage.input_tokens = tracing::field::Empty,
        gen_ai.usage.output_tokens = tracing::field::Empty,
        node = %task.node.name,
    );
    // Only configured providers become label values; models are bounded.
    let adapter = scope.models.provider(provider)?;
    let label = label::MODEL.value(model);
    // Waiting is no part of the call, but of the time of the node and the job.
    let _turn = scope.models.turn().await;
    let started = Instant::now();
    let result = stream(scope, task, (adapter, request)).instrument(span.clone()).await;
    let elapsed = started.elapsed().as_secs_f64();
    metrics::histogram!(metric::LLM_SECONDS, "provider" => provider.clone(), "model" => label.clone())
        .record(elapsed);
    let answer = result.inspect_err(|error| {
        let labels = [("provider", provider.clone()), ("code", label::CODE.value(error.code()))];
        metrics::counter!(metric::LLM_FAILURES, &labels).increment(1);
    })?;
    if let Some(usage) = &answer.reply.usage {
        span.record("gen_ai.usage.input_tokens", usage.input_tokens);
        span.record("gen_ai.usage.output_tokens", usage.output_tokens);
        let cached = if let Some(Value::Number(tokens)) = usage.input_token_details.get("cache_read") {
            tokens.as_u64().unwrap_or_default()
        } else {
            0
        };
        let kinds = [("input", usage.input_tokens), ("output", usage.output_tokens), ("cache_read", cached)];
        for (kind, tokens) in kinds {
            let labels =
                [("provider", provider.clone()), ("model", label.clone()), ("kind", kind.to_owned())];
            metrics::counter!(metric::LLM_TOKENS, &labels).increment(tokens);
        }
        scope.spending.add(format!("{provider}:{model}"), task.path(), usage);
    }
    Ok(answer)
}

async fn stream(
    scope: &Scope,
    task: TaskView<'_>,
    (adapter, request): (Arc<dyn ChatModel>, Request),
) -> Result<Answer, Error> {
    let idle = task.node.policy.idle_timeout;
    let silent = |limit: Duration| Error::Idle(limit.as_secs_f64());
    let message_id = format!("run-{}", uuid::Uuid::new_v4());
    let mut chunks = match idle {
        None => adapter.call(request).await?,
        Some(limit) => timeout(limit, adapter.call(request)).await.map_err(|_| silent(limit))??,
    };
    let mut heard = tokio::time::Instant::now();
    let mut text = TokenBuffer::new(scope.emitter.tokens());
    // A summary is part of the conversation, and nobody's answer.
    let is_heard = !matches!(task.node.kind, NodeKind::Summary(_));
    let say = |piece: &Piece| {
        if is_heard {
            scope.emitter.token(task.origin(), &message_id, piece);
        }
    };
    let mut is_first = true;
    loop {
        let chunk = tokio::select! {
            // The clock is read only when the model has nothing to say.
            biased;
            chunk = chunks.next() => chunk,
            limit = silence(heard, idle) => return Err(silent(limit)),
            () = due(&text) => {
                if let Some(piece) = text.tick(Instant::now()) {
                    say(&piece);
                }
                continue;
            }
        };
        if idle.is_some() {
            heard = tokio::time::Instant::now();
        }
        match chunk {
            Some(Ok(Chunk::Text(piece))) => {
                if is_first {
                    task.tries.says(&message_id);
                }
                if let Some(seconds) = is_first.then(|| scope.spending.first_token()).flatten() {
                    metrics::histogram!(metric::FIRST_TOKEN_SECONDS).record(seconds);
                }
                is_first = false;
                if let Some(piece) = text.push(&piece, Instant::now()) {
                    say(&piece);
                }
            }
            Some(Ok(Chunk::Done(reply))) => {
                if let Some(piece) = text.finish() {
                    say(&piece);
                }
                return Ok(Answer { message_id, reply: *reply });
            }
            Some(Err(error)) => return Err(error.into()),
            None => {
                let message = "the answer ended without an end".to_owned();
                return Err(model::Error::Protocol { provider: "model".into(), message }.into());
            }
        }
    }
}

/// Waits until nothing has come for as long as the node allows; for ever when it says nothing.
async fn silence(heard: tokio::time::Instant, idle: Option<Duration>) -> Duration {
    let Some(limit) = idle else { return std::future::pending().await };
    tokio::time::sleep(limit.saturating_sub(heard.elapsed())).await;
    limit
}

/// Waits until the text that waits may be sent; for ever when none does.
async fn due(text: &TokenBuffer) {
    match text.due_in(Instant::now()) {
        Some(due) => tokio::time::sleep(due).await,
        None => std::future::pending().await,
    }
}

/// Where a final answer goes: to the conversation, to a channel, or to both.
fn writes(node: &ModelNode, answer: Answer, value: Value) -> Vec<Write> {
    let own = node.writes.clone().map(|channel| Write::new(channel, value));
    let keeps = own.is_none() || node.keeps_answer;
    keeps.then(|| to_messages(message(answer))).into_iter().chain(own).collect()
}

fn to_messages(message: Message) -> Write {
    Write::new("messages", Value::list(vec![message.into()]))
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
    let mut problems = match Schema::compile(schema) {
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
    let content = Content::Text(reply.text.into());
    Message { content, response_metadata, ..Message::new(message_id, role, "") }
}

//! One model call: the conversation in, streamed text out, an AI message and the calls it asks for as writes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt;
use serde_json::Value as Json;
use tracing::Instrument;

use super::{Error, Scope, TaskView, tool_call};
use crate::{
    graph::{ModelNode, ModelSettings, Schema, Template},
    model::{self, ChatModel, Chunk, Reply, Request},
    pregel::{SENDS, Write},
    stream::TokenBuffer,
    telemetry::{label, metric},
    value::{Content, Map, Message, Role, Send, State, Value},
};

pub(super) async fn run(scope: &Scope, task: TaskView<'_>, node: &ModelNode) -> Result<Vec<Write>, Error> {
    let request = request(task, node)?;
    let call = ask(scope, task, node, request);
    let answer = match node.timeout_seconds {
        None => Box::pin(call).await?,
        Some(limit) => tokio::time::timeout(Duration::from_secs_f64(limit), Box::pin(call))
            .await
            .map_err(|_| Error::Timeout(limit))??,
    };
    writes(node, answer)
}

fn request(task: TaskView<'_>, node: &ModelNode) -> Result<Request, Error> {
    let system_prompt =
        node.system_prompt.as_ref().map(|t| render("system_prompt", t, task.state)).transpose()?;
    let messages = match &node.prompt {
        Some(prompt) => {
            let text = render("prompt", prompt, task.state)?;
            vec![Arc::new(Message::new(format!("{}-prompt", task.id), Role::Human, text))]
        }
        None => task.state.get("messages").into_iter().flat_map(|list| list.messages().cloned()).collect(),
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

fn render(what: &str, template: &Template, state: &State) -> Result<String, Error> {
    let failed = |error: crate::graph::ExpressionError| Error::Expression {
        what: what.into(),
        reason: error.to_string(),
    };
    template.render(state).map_err(failed)
}

/// A model's answer under the message id its text was streamed with.
struct Answer {
    message_id: String,
    reply: Reply,
}

/// Asks the node's model, then its fallbacks, each as often as the retry policy allows.
async fn ask(
    scope: &Scope,
    task: TaskView<'_>,
    node: &ModelNode,
    mut request: Request,
) -> Result<Answer, Error> {
    let fallbacks = node.model.fallbacks.iter().map(|settings| Arc::new(settings.clone()));
    let mut last = None;
    for settings in std::iter::once(node.model.clone()).chain(fallbacks) {
        request.settings = settings;
        match ask_one(scope, task, &mut request).await {
            Err(Error::Model(error)) if error.is_retryable() => last = Some(error),
            other => return other,
        }
    }
    Err(last.expect("there is always the node's own model").into())
}

async fn ask_one(scope: &Scope, task: TaskView<'_>, request: &mut Request) -> Result<Answer, Error> {
    request.retry = 0;
    loop {
        scope.spending.check()?;
        let error = match call(scope, task, request.clone()).await {
            Ok(answer) => return accept(answer),
            Err(error) => error,
        };
        let Some(wait) = scope.retry.delay(request.retry, &error, fastrand::u64(..)) else {
            return Err(error.into());
        };
        let (ModelSettings { provider, model, .. }, code) = (&*request.settings, error.code());
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(node = %task.node.name, %provider, %model, code, %error, retry = request.retry, wait_ms, "model call failed, trying again");
        request.retry += 1;
        tokio::time::sleep(wait).await;
    }
}

fn accept(answer: Answer) -> Result<Answer, Error> {
    match &answer.reply.refusal {
        Some(refusal) if answer.reply.text.is_empty() => Err(Error::Refused(refusal.clone())),
        _ => Ok(answer),
    }
}

/// One try: streams the text as it comes, under a message id of its own so that a retry never doubles text.
async fn call(scope: &Scope, task: TaskView<'_>, request: Request) -> Result<Answer, model::Error> {
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
    let answer = result?;
    if let Some(usage) = &answer.reply.usage {
        span.record("gen_ai.usage.input_tokens", usage.input_tokens);
        span.record("gen_ai.usage.output_tokens", usage.output_tokens);
        for (kind, tokens) in [("input", usage.input_tokens), ("output", usage.output_tokens)] {
            let labels =
                [("provider", provider.clone()), ("model", label.clone()), ("kind", kind.to_owned())];
            metrics::counter!(metric::LLM_TOKENS, &labels).increment(tokens);
        }
        scope.spending.add(format!("{provider}:{model}"), usage);
    }
    Ok(answer)
}

async fn stream(
    scope: &Scope,
    task: TaskView<'_>,
    (adapter, request): (Arc<dyn ChatModel>, Request),
) -> Result<Answer, model::Error> {
    let message_id = format!("run-{}", uuid::Uuid::new_v4());
    let mut chunks = adapter.call(request).await?;
    let mut text = TokenBuffer::new(scope.emitter.tokens());
    let mut is_first = true;
    loop {
        let chunk = tokio::select! {
            // The clock is read only when the model has nothing to say.
            biased;
            chunk = chunks.next() => chunk,
            () = due(&text) => {
                if let Some(piece) = text.tick(Instant::now()) {
                    scope.emitter.token(task.origin(), &message_id, &piece);
                }
                continue;
            }
        };
        match chunk {
            Some(Ok(Chunk::Text(piece))) => {
                if let Some(seconds) = is_first.then(|| scope.spending.first_token()).flatten() {
                    metrics::histogram!(metric::FIRST_TOKEN_SECONDS).record(seconds);
                }
                is_first = false;
                if let Some(piece) = text.push(&piece, Instant::now()) {
                    scope.emitter.token(task.origin(), &message_id, &piece);
                }
            }
            Some(Ok(Chunk::Done(reply))) => {
                if let Some(piece) = text.finish() {
                    scope.emitter.token(task.origin(), &message_id, &piece);
                }
                return Ok(Answer { message_id, reply: *reply });
            }
            Some(Err(error)) => return Err(error),
            None => {
                let message = "the answer ended without an end".to_owned();
                return Err(model::Error::Protocol { provider: "model".into(), message });
            }
        }
    }
}

/// Waits until the text that waits may be sent; for ever when none does.
async fn due(text: &TokenBuffer) {
    match text.due_in(Instant::now()) {
        Some(due) => tokio::time::sleep(due).await,
        None => std::future::pending().await,
    }
}

/// The AI message, the channel the answer goes to, and one send per tool call.
fn writes(node: &ModelNode, answer: Answer) -> Result<Vec<Write>, Error> {
    let sends = sends(node, &answer.reply);
    let mut writes = Vec::with_capacity(1 + sends.len());
    match &node.writes {
        Some(channel) if sends.is_empty() => {
            writes.push(Write::new(channel.clone(), value(node, &answer.reply.text)?))
        }
        Some(_) | None => {
            if sends.is_empty() {
                value(node, &answer.reply.text)?;
            }
            writes.push(Write::new("messages", Value::list(vec![message(answer).into()])));
        }
    }
    writes.extend(sends);
    Ok(writes)
}

fn sends(node: &ModelNode, reply: &Reply) -> Vec<Write> {
    let Some(target) = &node.tools_node else { return Vec::new() };
    let send = |arg: Value| Write::new(SENDS, Value::Send(Arc::new(Send { node: target.clone(), arg })));
    let calls = reply.tool_calls.iter().map(tool_call::argument);
    let invalid = reply.invalid_tool_calls.iter().map(tool_call::invalid_argument);
    calls.chain(invalid).map(send).collect()
}

/// The answer as a value: text, or JSON checked against the node's schema.
fn value(node: &ModelNode, text: &str) -> Result<Value, Error> {
    let Some(schema) = &node.output_schema else { return Ok(text.into()) };
    let json: Json = serde_json::from_str(text).map_err(|_| Error::Output("it is not JSON".into()))?;
    let schema = Schema::compile(schema).map_err(Error::Output)?;
    let problems = schema.check(&json);
    if problems.is_empty() { Ok(json.into()) } else { Err(Error::Output(problems.join("; "))) }
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

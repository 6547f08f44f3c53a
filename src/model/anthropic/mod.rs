//! Anthropic's Messages, and the servers that speak the same.
//!
//! **Invariant:** a turn that the provider paused is gone on with here: callers see one answer.

mod assembly;
mod block;
mod conversation;
mod request;
#[cfg(test)]
mod tests;
mod usage;

use std::sync::Arc;

use async_trait::async_trait;
use futures::{StreamExt, stream, stream::BoxStream};
use reqwest::header::{HeaderName, HeaderValue};
use tokio::time::Instant;

use self::{
    assembly::Assembly,
    conversation::PAUSED,
    request::{ANSWER_TOOL, Structure},
};
use super::{
    ChatModel, Chunk, Error, Provider, Reply, Request, Timeouts,
    address::AllowedHosts,
    remote::{Call, Remote},
};
use crate::{
    graph::ModelSettings,
    value::{Content, Map, Message, Role, Usage, Value},
};

/// The host that never answers without a key.
const ANTHROPIC_HOST: &str = "api.anthropic.com";
/// The version of the protocol that this module speaks.
const VERSION: (HeaderName, HeaderValue) =
    (HeaderName::from_static("anthropic-version"), HeaderValue::from_static("2023-06-01"));
/// Most times one turn is gone on with; the provider pauses after ten rounds of its own tools.
const MAX_PAUSES: usize = 8;

/// A provider that speaks Messages.
pub(super) struct Anthropic {
    remote: Arc<Remote>,
}

impl Anthropic {
    /// The provider at its configured address; asks nobody yet.
    pub(super) fn new(
        name: &str,
        provider: Provider,
        allowed: Arc<AllowedHosts>,
        timeouts: Timeouts,
    ) -> Result<Self, Error> {
        Ok(Self { remote: Arc::new(Remote::new(name, provider, allowed, timeouts)?) })
    }
}

#[async_trait]
impl ChatModel for Anthropic {
    async fn call(&self, request: Arc<Request>) -> Result<BoxStream<'static, Result<Chunk, Error>>, Error> {
        let chunks = send(&self.remote, request.clone()).await?;
        let turn = Turn { remote: self.remote.clone(), request, chunks, said: Reply::default(), pauses: 0 };
        Ok(stream::try_unfold(Some(turn), |turn| async move {
            match turn {
                Some(turn) => turn.next().await,
                None => Ok(None),
            }
        })
        .boxed())
    }

    fn longest_answer(&self, settings: &ModelSettings) -> Option<u64> {
        Some(request::max_tokens(settings).into())
    }
}

async fn send(
    remote: &Remote,
    request: Arc<Request>,
) -> Result<BoxStream<'static, Result<Chunk, Error>>, Error> {
    let url = remote.endpoint(&request, "/v1/messages", ANTHROPIC_HOST)?;
    let body = request::body(&request)?;
    let answer_tool = (Structure::of(&request) == Structure::Tool).then_some(ANSWER_TOOL);
    let assembly = Box::new(Assembly::new(answer_tool));
    remote.send(Instant::now(), Call { request, url, headers: vec![VERSION], body, assembly }).await
}

/// A turn of the model, which may take several answers; limits of time hold for each of them.
struct Turn {
    remote: Arc<Remote>,
    request: Arc<Request>,
    chunks: BoxStream<'static, Result<Chunk, Error>>,
    /// What the answers before this one said.
    said: Reply,
    pauses: usize,
}

impl Turn {
    /// The next chunk, with what is needed to go on.
    async fn next(mut self) -> Result<Option<(Chunk, Option<Self>)>, Error> {
        loop {
            let reply = match self.chunks.next().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(error),
                // It goes on with what has begun.
                Some(Ok(Chunk::Begun)) if self.pauses > 0 => continue,
                Some(Ok(Chunk::Begun)) => return Ok(Some((Chunk::Begun, Some(self)))),
                Some(Ok(Chunk::Text(text))) => return Ok(Some((Chunk::Text(text), Some(self)))),
                Some(Ok(Chunk::Done(reply))) => *reply,
            };
            let is_paused = reply.finish_reason.as_deref() == Some(PAUSED);
            if !is_paused || self.pauses == MAX_PAUSES {
                let whole = if self.pauses == 0 { reply } else { joined(self.said, reply) };
                return Ok(Some((Chunk::Done(Box::new(whole)), None)));
            }
            self.pauses += 1;
            // Whoever asked keeps the question as it was.
            Arc::make_mut(&mut self.request).messages.push(Arc::new(paused(&reply, self.pauses)));
            self.said = joined(self.said, reply);
            self.chunks = send(&self.remote, self.request.clone()).await?;
        }
    }
}

/// The content blocks of an answer, made when its text says it all.
fn blocks(reply: &Reply) -> Vec<Value> {
    match reply.blocks.is_empty() {
        false => reply.blocks.clone(),
        true if reply.text.is_empty() => Vec::new(),
        true => {
            let text = Value::String(reply.text.as_str().into());
            vec![Value::map([("type", "text".into()), ("text", text)])]
        }
    }
}

/// The message of a paused answer, for the request that goes on with it.
fn paused(reply: &Reply, pauses: usize) -> Message {
    let role = Role::Ai {
        tool_calls: reply.tool_calls.clone(),
        invalid_tool_calls: reply.invalid_tool_calls.clone(),
        usage: None,
    };
    Message {
        content: Content::Blocks(Arc::new(blocks(reply))),
        response_metadata: Map::from_iter([("finish_reason".into(), PAUSED.into())]),
        ..Message::new(format!("paused-{pauses}"), role, "")
    }
}

/// Two answers of one turn as one.
fn joined(mut first: Reply, second: Reply) -> Reply {
    let needs_blocks = !first.blocks.is_empty() || !second.blocks.is_empty();
    let all = [blocks(&first), blocks(&second)].concat();
    first.text.push_str(&second.text);
    first.tool_calls.extend(second.tool_calls);
    first.invalid_tool_calls.extend(second.invalid_tool_calls);
    Reply {
        text: first.text,
        blocks: if needs_blocks { all } else { Vec::new() },
        tool_calls: first.tool_calls,
        invalid_tool_calls: first.invalid_tool_calls,
        usage: match (first.usage, second.usage) {
            (Some(first), Some(second)) => Some(sum(first, &second)),
            (first, second) => first.or(second),
        },
        finish_reason: second.finish_reason,
        model: second.model.or(first.model),
        refusal: second.refusal,
    }
}

/// What both answers cost: each is paid for.
fn sum(first: Usage, second: &Usage) -> Usage {
    let details = |mut first: Map, second: &Map| {
        for (name, count) in second {
            let number = |value: Option<&Value>| match value {
                Some(Value::Number(number)) => number.as_u64().unwrap_or(0),
                Some(_) | None => 0,
            };
            let both = number(first.get(name)) + number(Some(count));
            first.insert(name.clone(), Value::Number(both.into()));
        }
        first
    };
    Usage {
        input_tokens: first.input_tokens + second.input_tokens,
        output_tokens: first.output_tokens + second.output_tokens,
        total_tokens: first.total_tokens + second.total_tokens,
        input_token_details: details(first.input_token_details, &second.input_token_details),
        output_token_details: details(first.output_token_details, &second.output_token_details),
    }
}

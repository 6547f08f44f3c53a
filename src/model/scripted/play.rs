//! A script's reply to a conversation, streamed.

use std::time::Duration;

use futures::{StreamExt, stream, stream::BoxStream};
use serde_json::Value as Json;
use tokio::time::sleep;

use super::script::{Fail, Line, Script, Tokens};
use crate::{
    model::{
        Chunk, Error, Reply, Request,
        answer::arguments,
        failure::{Complaint, Judge},
    },
    value::{InvalidToolCall, Message, Role, ToolCall, Usage},
};

/// What a model says whose script has nothing more.
const SCRIPT_ENDED: &str = "(script ended)";

/// Streams the reply that follows in the conversation, or fails as the script says.
pub(super) async fn play(
    script: &Script,
    request: &Request,
) -> Result<BoxStream<'static, Result<Chunk, Error>>, Error> {
    let replies = request.messages.iter().filter(|message| is_ai(message)).count();
    let line = script.line(request, replies);
    if line.delay_ms > 0 {
        sleep(Duration::from_millis(line.delay_ms)).await;
    }
    let pieces = line.pieces.clone().unwrap_or_else(|| words(&line.text));
    let fail = line.fail.as_ref().filter(|fail| request.retry < fail.times);
    if let Some(fail) = fail.filter(|fail| fail.after_pieces == 0) {
        return Err(failure(request, fail));
    }
    let pieces: Vec<_> = pieces.into_iter().filter(|piece| !piece.is_empty()).collect();
    let cut = fail.map_or(pieces.len(), |fail| fail.after_pieces);
    let last = match fail {
        Some(fail) => Err(failure(request, fail)),
        None => Ok(Chunk::Done(Box::new(reply(&line, pieces.concat(), request, replies)))),
    };
    let chunks = pieces.into_iter().take(cut).map(Chunk::Text).map(Ok).chain([last]);
    let pause = Duration::from_millis(line.token_delay_ms);
    if pause.is_zero() {
        return Ok(stream::iter(chunks).boxed());
    }
    let chunks = stream::unfold((chunks, Duration::ZERO), move |(mut chunks, wait)| async move {
        let chunk = chunks.next()?;
        // The end comes with the last piece.
        if !wait.is_zero() && !matches!(chunk, Ok(Chunk::Done(_))) {
            sleep(wait).await;
        }
        Some((chunk, (chunks, pause)))
    });
    Ok(chunks.boxed())
}

fn is_ai(message: &Message) -> bool {
    matches!(message.role, Role::Ai { .. })
}

impl Script {
    /// The reply that follows when `replies` are already in the conversation.
    fn line(&self, request: &Request, replies: usize) -> Line {
        let human = |message: &Message| matches!(message.role, Role::Human);
        let asked = request.messages.iter().rposition(|message| human(message));
        let text = asked.map(|at| request.messages[at].content.text()).unwrap_or_default();
        let since = request.messages.iter().skip(asked.unwrap_or(0)).filter(|message| is_ai(message)).count();
        let line = match self.by_user_text.iter().find(|(words, _)| text.contains(words.as_str())) {
            Some((_, lines)) => lines.get(since),
            None => self.replies.get(replies),
        };
        line.cloned().unwrap_or_else(|| {
            let text = if self.echo { format!("echo: {text}") } else { SCRIPT_ENDED.to_owned() };
            Line { text, ..Line::default() }
        })
    }
}

/// The words of a text, each with the white space after it.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for piece in text.split_inclusive(char::is_whitespace) {
        match words.last_mut() {
            Some(word) if piece.trim().is_empty() => word.push_str(piece),
            _ => words.push(piece.to_owned()),
        }
    }
    words
}

fn failure(request: &Request, fail: &Fail) -> Error {
    let judge = Judge { provider: &request.settings.provider, key: None, prompt: Vec::new() };
    let message = if fail.message.is_empty() { "scripted failure" } else { &fail.message };
    let complaint = Complaint::from_json(&Json::from(message));
    judge.status(fail.status, complaint, fail.retry_after_ms.map(Duration::from_millis))
}

fn reply(line: &Line, text: String, request: &Request, replies: usize) -> Reply {
    let mut reply = Reply {
        usage: Some(usage(line.usage, &text, request)),
        finish_reason: Some(if line.tool_calls.is_empty() { "stop" } else { "tool_calls" }.to_owned()),
        model: Some(request.settings.model.clone()),
        text,
        ..Reply::default()
    };
    for (at, call) in line.tool_calls.iter().enumerate() {
        let id = call.id.clone().unwrap_or_else(|| format!("call_{replies}_{}", at + 1)).into();
        let name = call.name.as_str().into();
        let args = call.args.as_str().map_or_else(|| call.args.to_string(), str::to_owned);
        match arguments(&call.name, &args) {
            Ok(args) => reply.tool_calls.push(ToolCall { id, name, args }),
            Err(error) => {
                let invalid = InvalidToolCall { id, name, args: args.into(), error: error.into() };
                reply.invalid_tool_calls.push(invalid);
            }
        }
    }
    reply
}

/// The script's count of tokens, or the number of words.
fn usage(tokens: Option<Tokens>, text: &str, request: &Request) -> Usage {
    let count = |text: &str| text.split_whitespace().count() as u64;
    let tokens = tokens.unwrap_or_else(|| {
        let said: u64 = request.messages.iter().map(|message| count(&message.content.text())).sum();
        let system = request.system_prompt.as_deref().map_or(0, count);
        Tokens { input_tokens: system + said, output_tokens: count(text), total_tokens: None }
    });
    Usage {
        input_tokens: tokens.input_tokens,
        output_tokens: tokens.output_tokens,
        total_tokens: tokens.total_tokens.unwrap_or(tokens.input_tokens + tokens.output_tokens),
        ..Usage::default()
    }
}

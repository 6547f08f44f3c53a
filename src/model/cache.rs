//! Answers that are given again to the same question, where a definition asks for that.
//!
//! **Invariant:** trouble with the shelf is a miss, never a failure.
//! **Invariant:** an answer is found only by whoever asks the whole same question in the same namespace.

use std::{io::Read, sync::Arc, time::Duration};

use flate2::{Compression, bufread::DeflateDecoder, bufread::DeflateEncoder};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

use super::{Reply, Request, answer::MAX_REPLY_BYTES};
use crate::{
    encoding::hex,
    graph::SharedSchema,
    stream::Shelf,
    telemetry::{metric, scrub::Scrubber},
    value::{Message, Role, ToolCall, Usage, Value, map_to_json},
};

/// Part of every key: another number when questions or answers are written in another way.
const FORMAT: u32 = 1;
/// Most bytes of an answer as JSON: its texts, escaped, and what stands around them.
const MAX_PLAIN_BYTES: u64 = 4 * MAX_REPLY_BYTES as u64;
/// Why a model stopped in the middle of what it had to say, in the words of the dialects. Another try may fare better.
const CUT: [&str; 4] = ["length", "max_tokens", "max_output_tokens", "content_filter"];

/// Which answers may be kept, and where.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// `MODEL_CACHE`: whether definitions get what they ask for.
    pub enabled: bool,
    /// `MODEL_CACHE_NAMESPACE`: processes with the same one share their answers.
    pub namespace: String,
    /// `MODEL_CACHE_MAX_BYTES`: largest kept answer, compressed.
    pub max_bytes: usize,
    /// `MODEL_CACHE_MAX_TTL_SECONDS`: longest time an answer is kept, whatever a definition says.
    pub max_ttl: Duration,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            namespace: "default".to_owned(),
            max_bytes: 256 << 10,
            max_ttl: Duration::from_hours(24),
        }
    }
}

/// Kept answers.
pub struct AnswerCache {
    config: CacheConfig,
    shelf: Arc<dyn Shelf>,
}

/// An answer as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    text: String,
    blocks: Vec<Json>,
    tool_calls: Vec<KeptCall>,
    usage: Option<Json>,
    finish_reason: Option<String>,
    model: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct KeptCall {
    id: String,
    name: String,
    args: serde_json::Map<String, Json>,
}

impl AnswerCache {
    /// Answers on `shelf`.
    pub fn new(config: CacheConfig, shelf: Arc<dyn Shelf>) -> Self {
        Self { config, shelf }
    }

    /// The answer that was given to the same question; `None` too when the request's model keeps none.
    pub async fn find(&self, request: &Request) -> Option<Reply> {
        request.settings.cache.as_ref()?;
        let found = self.shelf.get(&self.key(request), self.config.max_bytes).await;
        let (reply, outcome) = match found {
            Ok(None) => (None, "miss"),
            Ok(Some(bytes)) => match unpacked(&bytes) {
                Some(reply) => (Some(reply), "hit"),
                None => (None, "unreadable"),
            },
            Err(error) => {
                tracing::warn!(%error, "kept answers of models are out of reach");
                (None, "error")
            }
        };
        metrics::counter!(metric::LLM_CACHE, "outcome" => outcome).increment(1);
        reply
    }

    /// Keeps an answer, when its model asks for that and it is a whole one.
    pub async fn keep(&self, request: &Request, reply: &Reply) {
        let Some(cache) = request.settings.cache.as_ref().filter(|_| is_whole(request, reply)) else {
            return;
        };
        let packed = packed(reply);
        if packed.len() > self.config.max_bytes {
            return;
        }
        let ttl = Duration::from_secs(cache.ttl_seconds).min(self.config.max_ttl);
        if let Err(error) = self.shelf.put(&self.key(request), packed, ttl).await {
            tracing::warn!(%error, "an answer of a model is not kept");
        }
    }

    fn key(&self, request: &Request) -> String {
        let digest = hex(Sha256::digest(question(request).to_string()));
        format!("agent-executor:answer:{}:{digest}", self.config.namespace)
    }
}

/// Everything that goes to the provider, and nothing that differs between two who ask the same: ids of messages,
/// what earlier answers cost, which try it is.
fn question(request: &Request) -> Json {
    let mut settings = serde_json::to_value(&*request.settings).expect("settings are JSON");
    if let Some(settings) = settings.as_object_mut() {
        // What is asked when this one stays away, and for how long the answer counts, is not part of the question.
        settings.remove("fallbacks");
        settings.remove("cache");
    }
    let tools = request.tools.iter();
    let tools = tools.map(|tool| json!([&*tool.name, tool.description, tool.parameters.json()]));
    sorted(json!({
        "format": FORMAT,
        "settings": settings,
        "system": request.system_prompt,
        "messages": request.messages.iter().map(|message| said(message)).collect::<Vec<_>>(),
        "tools": tools.collect::<Vec<_>>(),
        "schema": request.output_schema.as_ref().map(SharedSchema::json),
    }))
}

fn said(message: &Message) -> Json {
    let of_role = match &message.role {
        Role::Human | Role::System | Role::Remove => Json::Null,
        Role::Ai { tool_calls, invalid_tool_calls, .. } => {
            let calls =
                tool_calls.iter().map(|call| json!([&*call.id, &*call.name, map_to_json(&call.args)]));
            let invalid = invalid_tool_calls.iter().map(|call| json!([&*call.id, &*call.name, &*call.args]));
            json!([calls.collect::<Vec<_>>(), invalid.collect::<Vec<_>>()])
        }
        Role::Tool { tool_call_id, status, .. } => json!([&**tool_call_id, status.as_str()]),
    };
    json!([message.type_name(), message.name.as_deref(), message.content.to_value().to_json(), of_role])
}

/// The same with the keys of all objects in order: who writes them in another order asks the same.
fn sorted(json: Json) -> Json {
    match json {
        Json::Object(object) => {
            let mut members: Vec<_> = object.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            members.sort_by(|a, b| a.0.cmp(&b.0));
            Json::Object(members.into_iter().collect())
        }
        Json::Array(items) => Json::Array(items.into_iter().map(sorted).collect()),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => json,
    }
}

/// Whether the answer is what was asked for; one that is not would be wrong again each time.
fn is_whole(request: &Request, reply: &Reply) -> bool {
    let is_cut = reply.finish_reason.as_deref().is_some_and(|reason| CUT.contains(&reason));
    let is_broken = reply.refusal.is_some() || !reply.invalid_tool_calls.is_empty();
    let is_empty = reply.text.is_empty() && reply.blocks.is_empty() && reply.tool_calls.is_empty();
    !is_cut && !is_broken && !is_empty && fits_schema(request, reply)
}

/// An answer that asks for tools need not satisfy the schema.
fn fits_schema(request: &Request, reply: &Reply) -> bool {
    let Some(schema) = request.output_schema.as_ref().filter(|_| reply.tool_calls.is_empty()) else {
        return true;
    };
    let (Ok(schema), Ok(answer)) = (schema.compiled(), serde_json::from_str(&reply.text)) else {
        return false;
    };
    schema.check(&answer).is_empty()
}

fn packed(reply: &Reply) -> Vec<u8> {
    let call = |call: &ToolCall| KeptCall {
        id: call.id.to_string(),
        name: call.name.to_string(),
        args: map_to_json(&call.args).as_object().cloned().unwrap_or_default(),
    };
    let kept = Kept {
        text: reply.text.clone(),
        blocks: reply.blocks.iter().map(Value::to_json).collect(),
        tool_calls: reply.tool_calls.iter().map(call).collect(),
        usage: reply.usage.as_ref().map(|usage| map_to_json(&usage.to_map())),
        finish_reason: reply.finish_reason.clone(),
        model: reply.model.clone(),
    };
    let plain = serde_json::to_vec(&kept).expect("an answer is JSON");
    // What is kept is read by whoever reads the server.
    let plain = Scrubber::process().json_bytes(&plain).unwrap_or(plain);
    let mut packed = Vec::new();
    DeflateEncoder::new(plain.as_slice(), Compression::fast())
        .read_to_end(&mut packed)
        .expect("memory can be read");
    packed
}

/// Reads what [`packed`] made; `None` for anything else.
fn unpacked(bytes: &[u8]) -> Option<Reply> {
    let mut plain = Vec::new();
    let read = DeflateDecoder::new(bytes).take(MAX_PLAIN_BYTES + 1).read_to_end(&mut plain).ok()?;
    if u64::try_from(read).ok()? > MAX_PLAIN_BYTES {
        return None;
    }
    let kept: Kept = serde_json::from_slice(&plain).ok()?;
    let map = |json: Json| Value::from(json).as_map().cloned();
    let call = |call: KeptCall| {
        let args = map(Json::Object(call.args)).unwrap_or_default();
        ToolCall { id: call.id.into(), name: call.name.into(), args }
    };
    Some(Reply {
        text: kept.text,
        blocks: kept.blocks.into_iter().map(Value::from).collect(),
        tool_calls: kept.tool_calls.into_iter().map(call).collect(),
        usage: kept.usage.and_then(map).map(|usage| Usage::from_map(&usage)),
        finish_reason: kept.finish_reason,
        model: kept.model,
        ..Reply::default()
    })
}

#[cfg(test)]
mod tests;

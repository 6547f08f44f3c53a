//! One content block of a Messages answer, as far as it came. Pure.

use std::{borrow::Cow, sync::Arc};

use serde_json::{Map as JsonMap, Value as Json};

use super::assembly::Delta;
use crate::value::Value;

/// What a block is to this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text for everybody.
    Text,
    /// Thoughts.
    Thinking,
    /// A call of one of our tools.
    ToolUse,
    /// The call whose arguments are the answer.
    Answer,
    /// Whatever else; kept for the provider's next turn.
    Other,
}

/// A block that is being put together.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) index: u64,
    pub(super) kind: Kind,
    /// The text of a text block, the thought of a thinking block.
    pub(super) text: String,
    /// The arguments of a call, in JSON, as far as they came in pieces.
    pub(super) input: String,
    /// Whether the provider said that it is complete.
    pub(super) is_closed: bool,
    signature: String,
    summary: String,
    citations: Vec<Json>,
    /// How it began.
    raw: JsonMap<String, Json>,
}

impl Block {
    /// The block that begins with `raw`. A call of `answer_tool` is the answer.
    pub(super) fn new(index: u64, raw: Json, answer_tool: Option<&str>) -> Self {
        let mut raw = match raw {
            Json::Object(raw) => raw,
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_) => JsonMap::new(),
        };
        let name = raw.get("name").and_then(Json::as_str);
        let kind = match raw.get("type").and_then(Json::as_str) {
            Some("text") => Kind::Text,
            Some("thinking") => Kind::Thinking,
            Some("tool_use") if name.is_some() && name == answer_tool => Kind::Answer,
            Some("tool_use") => Kind::ToolUse,
            _ => Kind::Other,
        };
        let mut take = |key: &str| match raw.remove(key) {
            Some(Json::String(text)) => text,
            Some(_) | None => String::new(),
        };
        let text = match kind {
            Kind::Text => take("text"),
            Kind::Thinking => take("thinking"),
            Kind::ToolUse | Kind::Answer | Kind::Other => String::new(),
        };
        let signature = if kind == Kind::Thinking { take("signature") } else { String::new() };
        let citations = match raw.remove("citations") {
            Some(Json::Array(citations)) => citations,
            Some(_) | None => Vec::new(),
        };
        let (input, summary, is_closed) = (String::new(), String::new(), false);
        Self { index, kind, text, input, is_closed, signature, summary, citations, raw }
    }

    /// Takes a piece, and says how many bytes it has.
    pub(super) fn add(&mut self, delta: &Delta<'_>) -> usize {
        match &*delta.r#type.0 {
            "text_delta" => self.text.push_str(&delta.text.0),
            "thinking_delta" => self.text.push_str(&delta.thinking.0),
            "signature_delta" => self.signature.push_str(&delta.signature.0),
            "input_json_delta" => self.input.push_str(&delta.partial_json.0),
            "compaction_delta" => self.summary.push_str(&delta.content.0),
            "citations_delta" => self.citations.extend(delta.citation.clone()),
            _ => {}
        }
        let texts = [&delta.text, &delta.thinking, &delta.signature, &delta.partial_json, &delta.content];
        let citation = delta.citation.as_ref().map_or(0, |citation| citation.to_string().len());
        texts.into_iter().map(|text| text.0.len()).sum::<usize>() + citation
    }

    /// How many bytes it began with.
    pub(super) fn bytes(&self) -> usize {
        let rest: usize = self.raw.values().map(|value| value.to_string().len()).sum();
        self.text.len() + self.signature.len() + rest
    }

    /// A text of how it began; empty when there is none.
    pub(super) fn field(&self, name: &str) -> &str {
        self.raw.get(name).and_then(Json::as_str).unwrap_or_default()
    }

    /// The JSON of its arguments: the pieces, or what it began with when none came.
    pub(super) fn input(&self) -> Cow<'_, str> {
        let whole =
            self.raw.get("input").filter(|input| input.as_object().is_some_and(|map| !map.is_empty()));
        match whole {
            Some(input) if self.input.is_empty() => Cow::Owned(input.to_string()),
            Some(_) | None => Cow::Borrowed(&self.input),
        }
    }

    /// Whether text and tool calls say all that the blocks say, in the same order.
    pub(super) fn are_plain(blocks: &[Self]) -> bool {
        let is_text = |block: &Self| block.kind == Kind::Text && block.citations.is_empty();
        let calls = blocks.iter().skip_while(|block| is_text(block));
        calls.into_iter().all(|block| block.kind == Kind::ToolUse)
    }

    /// The block as LangChain keeps it; none when it says nothing. A call takes the next of `ids`.
    pub(super) fn into_value(self, ids: &mut impl Iterator<Item = Arc<str>>) -> Option<Value> {
        let input = self.input();
        let parsed: Option<Json> = serde_json::from_str(&input).ok().filter(Json::is_object);
        let mut raw = self.raw.clone();
        let mut set = |key: &str, value: Json| raw.insert(key.to_owned(), value);
        match self.kind {
            Kind::Text if self.text.is_empty() => return None,
            Kind::Text => drop(set("text", self.text.into())),
            Kind::Thinking => {
                set("thinking", self.text.into());
                set("signature", self.signature.into());
            }
            Kind::ToolUse | Kind::Answer => {
                set("id", ids.next()?.as_ref().into());
                set("input", parsed.unwrap_or_else(|| JsonMap::new().into()));
            }
            Kind::Other => {
                if let Some(input) = parsed {
                    set("input", input);
                }
                if !self.summary.is_empty() {
                    set("content", self.summary.into());
                }
            }
        }
        if !self.citations.is_empty() {
            set("citations", self.citations.into());
        }
        Some(Json::Object(raw).into())
    }
}

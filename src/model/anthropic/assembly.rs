//! The events of a streamed Messages answer put together to one reply. Pure.
//!
//! **Invariant:** the reply's text is the emitted pieces joined.
//! **Invariant:** a call whose arguments were cut off is never a valid one.

use std::{borrow::Cow, collections::VecDeque, sync::Arc};

use serde::Deserialize;
use serde_json::{Value as Json, json, value::RawValue};

use super::{
    block::{Block, Kind},
    usage::Counts,
};
use crate::{
    model::{
        Chunk, Reply,
        answer::{Assemble, Fault, MAX_TOOL_CALLS, Progress, Size, arguments, too_many_calls, unreadable},
        lenient::Text,
    },
    value::{InvalidToolCall, ToolCall},
};

/// Most content blocks of one answer; many times what answers with dozens of searches have.
const MAX_BLOCKS: usize = 4_096;
/// Reasons to stop that leave the last block unfinished.
const CUT: [&str; 2] = ["max_tokens", "model_context_window_exceeded"];

/// An answer as far as it came.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    /// The tool whose arguments are the answer, when one was asked for.
    answer_tool: Option<&'static str>,
    reply: Reply,
    blocks: Vec<Block>,
    counts: Counts,
    size: Size,
    progress: Progress,
}

/// An event, or the error of one.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, default)]
    r#type: Text<'a>,
    #[serde(default)]
    index: Option<u64>,
    #[serde(borrow, default)]
    message: Option<&'a RawValue>,
    #[serde(default)]
    content_block: Option<Json>,
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
    #[serde(default)]
    error: Option<Json>,
}

/// What is new in a block, or at the end of the answer.
#[derive(Default, Deserialize)]
pub(super) struct Delta<'a> {
    #[serde(borrow, default)]
    pub(super) r#type: Text<'a>,
    #[serde(borrow, default)]
    pub(super) text: Text<'a>,
    #[serde(borrow, default)]
    pub(super) partial_json: Text<'a>,
    #[serde(borrow, default)]
    pub(super) thinking: Text<'a>,
    #[serde(borrow, default)]
    pub(super) signature: Text<'a>,
    #[serde(borrow, default)]
    pub(super) content: Text<'a>,
    #[serde(default)]
    pub(super) citation: Option<Json>,
    #[serde(borrow, default)]
    stop_reason: Text<'a>,
    #[serde(default)]
    stop_details: Option<Json>,
}

/// A whole answer, or the start of one.
#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    r#type: Text<'a>,
    #[serde(borrow, default)]
    model: Text<'a>,
    #[serde(default)]
    content: Option<Vec<Json>>,
    #[serde(borrow, default)]
    stop_reason: Text<'a>,
    #[serde(default)]
    stop_details: Option<Json>,
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
    #[serde(default)]
    error: Option<Json>,
}

impl Assembly {
    /// An answer to come. With `answer_tool`, the arguments of that tool are its text.
    pub(super) fn new(answer_tool: Option<&'static str>) -> Self {
        Self { answer_tool, ..Self::default() }
    }

    /// The answer begins. A gateway that lost its own server may begin it once more.
    fn start(&mut self, message: Option<&RawValue>) -> Result<(), Fault> {
        if !self.reply.text.is_empty() {
            let message = "the answer began anew after a part of it";
            return Err(Fault::Complaint(json!({"type": "api_error", "message": message})));
        }
        self.blocks.clear();
        self.progress = self.progress.max(Progress::Started);
        let Some(raw) = message else { return Ok(()) };
        let message: Message<'_> =
            serde_json::from_str(raw.get()).map_err(|error| unreadable("the start is no message", &error))?;
        self.reply.model = Some(message.model.0.into_owned()).filter(|model| !model.is_empty());
        self.counts.update(message.usage);
        Ok(())
    }

    fn open(&mut self, index: u64, raw: Json, ready: &mut VecDeque<Chunk>) -> Result<(), Fault> {
        self.progress = self.progress.max(Progress::Started);
        if self.blocks.len() == MAX_BLOCKS {
            return Err(Fault::Unreadable(format!("the answer has more than {MAX_BLOCKS} blocks")));
        }
        let block = Block::new(index, raw, self.answer_tool);
        self.size.grow(block.bytes())?;
        let calls = self.blocks.iter().filter(|block| block.kind == Kind::ToolUse).count();
        if block.kind == Kind::ToolUse && calls == MAX_TOOL_CALLS {
            return Err(too_many_calls());
        }
        let text = block.text.clone();
        let kind = block.kind;
        self.blocks.push(block);
        if kind == Kind::Text {
            self.say(text.into(), ready);
        }
        Ok(())
    }

    fn delta(&mut self, index: u64, delta: Delta<'_>, ready: &mut VecDeque<Chunk>) -> Result<(), Fault> {
        if !self.blocks.iter().any(|block| block.index == index) {
            // Some gateways send text without the start of its block.
            if &*delta.r#type.0 != "text_delta" {
                return Err(Fault::Unreadable("a piece came before the start of its block".into()));
            }
            self.open(index, json!({"type": "text"}), ready)?;
        }
        let block = self.blocks.iter_mut().rfind(|block| block.index == index).expect("opened above");
        let kind = block.kind;
        self.size.grow(block.add(&delta))?;
        match kind {
            Kind::Text => self.say(delta.text.0, ready),
            Kind::Answer => self.answer(delta.partial_json.0, ready),
            Kind::Thinking | Kind::ToolUse | Kind::Other => {}
        }
        Ok(())
    }

    /// A block is complete.
    fn close_block(&mut self, index: Option<u64>, ready: &mut VecDeque<Chunk>) {
        let Some(at) = self.blocks.iter().rposition(|block| Some(block.index) == index) else { return };
        let block = &mut self.blocks[at];
        let came_whole = !block.is_closed && block.kind == Kind::Answer && block.input.is_empty();
        block.is_closed = true;
        if came_whole {
            let input = self.blocks[at].input();
            self.answer(input.into_owned().into(), ready);
        }
    }

    /// Text of the answer, unless the answer is to be the arguments of a tool: what is said beside would spoil it.
    fn say(&mut self, text: Cow<'_, str>, ready: &mut VecDeque<Chunk>) {
        if self.answer_tool.is_none() {
            self.answer(text, ready);
        }
    }

    fn answer(&mut self, text: Cow<'_, str>, ready: &mut VecDeque<Chunk>) {
        if !text.is_empty() {
            self.reply.text.push_str(&text);
            ready.push_back(Chunk::Text(text.into_owned()));
        }
    }

    /// The answer is complete.
    fn stop(&mut self, reason: Cow<'_, str>, details: Option<Json>, ready: &mut VecDeque<Chunk>) {
        if reason.is_empty() {
            return;
        }
        if reason == "refusal" {
            let text = |key: &str| details.as_ref()?.get(key)?.as_str().map(str::to_owned);
            let category = || text("category").map(|category| format!("refused as {category}"));
            let why = text("explanation").or_else(category);
            self.reply.refusal = Some(why.unwrap_or_else(|| "no reason given".into()));
        }
        self.reply.finish_reason = Some(reason.into_owned());
        self.progress = self.progress.max(Progress::Finished);
        let is_call = |block: &Block| matches!(block.kind, Kind::Answer | Kind::ToolUse);
        if self.answer_tool.is_some() && !self.blocks.iter().any(is_call) {
            let texts = self.blocks.iter().filter(|block| block.kind == Kind::Text);
            let said: String = texts.map(|block| block.text.as_str()).collect();
            self.answer(said.into(), ready);
        }
    }

    /// Why the call of the block `at` cannot be made although its arguments may look complete.
    fn cut(&self, at: usize) -> Option<&'static str> {
        let block = &self.blocks[at];
        let is_last = at + 1 == self.blocks.len();
        let reason = self.reply.finish_reason.as_deref().unwrap_or_default();
        let is_whole = block.is_closed && !block.input().trim().is_empty();
        (is_last && CUT.contains(&reason) && !is_whole)
            .then_some("the answer reached its limit of tokens within the arguments")
    }

    /// The calls, and the id of each in the order of their blocks.
    fn calls(&self, earlier_calls: usize) -> Calls {
        let (mut valid, mut invalid) = (Vec::new(), Vec::new());
        let mut ids: Vec<Arc<str>> = Vec::new();
        for (at, block) in self.blocks.iter().enumerate().filter(|(_, block)| block.kind == Kind::ToolUse) {
            let given = Some(block.field("id"))
                .filter(|id| !id.is_empty() && !ids.iter().any(|known| **known == **id));
            let id: Arc<str> =
                given.map_or_else(|| format!("call_{}", earlier_calls + ids.len() + 1).into(), Arc::from);
            ids.push(id.clone());
            let (name, args) = (block.field("name"), block.input());
            let checked = match self.cut(at) {
                Some(why) => Err(why.to_owned()),
                None => arguments(name, &args),
            };
            match checked {
                Ok(args) => valid.push(ToolCall { id, name: name.into(), args }),
                Err(error) => {
                    let args = args.into_owned().into();
                    invalid.push(InvalidToolCall { id, name: name.into(), args, error: error.into() });
                }
            }
        }
        Calls { valid, invalid, ids }
    }
}

/// The calls of an answer.
struct Calls {
    valid: Vec<ToolCall>,
    invalid: Vec<InvalidToolCall>,
    ids: Vec<Arc<str>>,
}

impl Assemble for Assembly {
    fn progress(&self) -> Progress {
        self.progress
    }

    fn close(&mut self) {
        self.progress = Progress::Closed;
    }

    fn event(&mut self, name: &str, data: &str, ready: &mut VecDeque<Chunk>) -> Result<(), Fault> {
        let data = data.trim();
        if self.progress == Progress::Closed || data.is_empty() || data == "[DONE]" {
            return Ok(());
        }
        let event: Event<'_> = match serde_json::from_str(data) {
            Ok(event) => event,
            Err(_) if name == "error" => return Err(Fault::Complaint(data.into())),
            Err(error) => return Err(unreadable("an event is not one of Messages", &error)),
        };
        if let Some(error) = event.error.filter(|error| !error.is_null()) {
            return Err(Fault::Complaint(error));
        }
        let kind = if event.r#type.0.is_empty() { name } else { &event.r#type.0 };
        match (kind, event.index) {
            ("error", _) => return Err(Fault::Complaint(serde_json::from_str(data).unwrap_or_default())),
            ("message_start", _) => self.start(event.message)?,
            ("content_block_start", Some(index)) => {
                self.open(index, event.content_block.unwrap_or_default(), ready)?;
            }
            ("content_block_delta", Some(index)) => {
                self.delta(index, event.delta.unwrap_or_default(), ready)?;
            }
            ("content_block_stop", index) => self.close_block(index, ready),
            ("message_delta", _) => {
                self.counts.update(event.usage);
                let delta = event.delta.unwrap_or_default();
                self.stop(delta.stop_reason.0, delta.stop_details, ready);
            }
            ("message_stop", _) if self.progress > Progress::Silent => self.close(),
            // Pings, and kinds of events that are yet to come.
            _ => {}
        }
        Ok(())
    }

    fn whole(&mut self, body: &[u8], ready: &mut VecDeque<Chunk>) -> Result<(), Fault> {
        let text = String::from_utf8_lossy(body);
        let message: Message<'_> =
            serde_json::from_str(&text).map_err(|error| unreadable("the answer is not a message", &error))?;
        if let Some(error) = message.error.filter(|error| !error.is_null()) {
            return Err(Fault::Complaint(error));
        }
        let Some(blocks) = message.content.filter(|_| &*message.r#type.0 == "message") else {
            return Err(Fault::Unreadable("the answer is not a message: it has no content".into()));
        };
        self.reply.model = Some(message.model.0.into_owned()).filter(|model| !model.is_empty());
        self.counts.update(message.usage);
        for (index, block) in (0..).zip(blocks) {
            self.open(index, block, ready)?;
            self.close_block(Some(index), ready);
        }
        self.stop(message.stop_reason.0, message.stop_details, ready);
        self.progress = Progress::Closed;
        Ok(())
    }

    fn finish(self: Box<Self>, earlier_calls: usize) -> Reply {
        let Calls { valid, invalid, ids } = self.calls(earlier_calls);
        let Self { mut reply, blocks, counts, .. } = *self;
        let is_answer = blocks.iter().any(|block| block.kind == Kind::Answer);
        if !is_answer && !Block::are_plain(&blocks) {
            let mut ids = ids.into_iter();
            reply.blocks = blocks.into_iter().filter_map(|block| block.into_value(&mut ids)).collect();
        }
        reply.usage = counts.usage();
        Reply { tool_calls: valid, invalid_tool_calls: invalid, ..reply }
    }
}

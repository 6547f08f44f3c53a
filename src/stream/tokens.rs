//! Cuts a model's text into pieces worth an event each.

use std::{
    borrow::Cow,
    time::{Duration, Instant},
};

use serde_json::value::RawValue;

use super::TokenConfig;

/// Text of one message that is worth an event.
#[derive(Debug)]
pub struct Piece<'a> {
    /// The piece, as a JSON string.
    pub token: Cow<'a, RawValue>,
    /// Characters (Unicode scalar values) of the message before the piece.
    pub offset: usize,
    /// The text of the message so far, as a JSON string; `None` when switched off.
    pub cumulative_text: Option<Cow<'a, RawValue>>,
    /// Whether the message ends with it.
    pub last: bool,
}

/// Collects the text of one message. (being written)
#[derive(Debug)]
pub struct TokenBuffer {
    config: TokenConfig,
}

impl TokenBuffer {
    /// An empty message.
    pub fn new(config: TokenConfig) -> Self {
        Self { config }
    }

    /// Adds `text`. Returns a piece when one is due at `now`: the first at once, later ones when the window is over.
    pub fn push(&mut self, _text: &str, _now: Instant) -> Option<Piece<'_>> {
        todo!("owner: stream helper")
    }

    /// Time until [`Self::tick`] has a piece; `None` when no text waits.
    pub fn due_in(&self, _now: Instant) -> Option<Duration> {
        todo!("owner: stream helper")
    }

    /// The text that waits, if its window is over.
    pub fn tick(&mut self, _now: Instant) -> Option<Piece<'_>> {
        todo!("owner: stream helper")
    }

    /// The rest of the message, marked as last; `None` when the message had no text at all.
    pub fn finish(&mut self) -> Option<Piece<'_>> {
        let _ = self.config;
        todo!("owner: stream helper")
    }
}

//! Cuts a model's text into pieces worth an event each.
//!
//! **Invariant:** the pieces of a message, joined, are its text; only the first one comes without having waited.
//! **Invariant:** no piece has a known secret in it, however the model's pieces split it.
//! **Invariant:** text is escaped once, when it arrives; a piece is made of slices of what is already there.

use std::time::{Duration, Instant};

use super::escape::escape;
use crate::telemetry::scrub::{Guard, Scrubber};

/// Most bytes of escaped text kept to be sent again as the text so far. Beyond it the pieces of a message come without:
/// half of [`super::MAX_EVENT_BYTES`], since the last event carries a piece and the text.
const MAX_CUMULATIVE_BYTES: usize = super::MAX_EVENT_BYTES / 2;

/// How text from models is cut into events.
#[derive(Clone, Copy, Debug)]
pub struct TokenConfig {
    /// Whether events on the channel carry the text so far.
    pub cumulative_text: bool,
    /// Least time between two pieces of one message.
    pub window: Duration,
    /// Most bytes of text a message may publish per second; longer texts come in larger pieces.
    pub bytes_per_second: usize,
}

impl Default for TokenConfig {
    fn default() -> Self {
        Self { cumulative_text: true, window: Duration::from_millis(40), bytes_per_second: 128 * 1024 }
    }
}

/// Text of one message that is worth an event. Texts are the inside of JSON strings: escaped, without quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The piece, escaped; empty when a message ends whose text has all been sent.
    pub token: &'a str,
    /// Characters (Unicode scalar values) of the message before the piece.
    pub offset: usize,
    /// The text of the message so far, escaped, this piece included; `None` when switched off or too long.
    pub cumulative_text: Option<&'a str>,
    /// Whether the message ends with it.
    pub last: bool,
}

/// Collects the text of one message.
#[derive(Debug)]
pub struct TokenBuffer {
    config: TokenConfig,
    /// Holds back text that may be the beginning of a secret; none when no secret is known.
    guard: Option<Guard>,
    /// Whether sent text stays in `escaped` for the text so far.
    keeps_text: bool,
    /// The text, escaped: all of it when `keeps_text`, else what waits.
    escaped: String,
    /// Bytes of `escaped` that are in pieces already.
    sent: usize,
    /// Characters in pieces already.
    sent_chars: usize,
    /// Characters that wait.
    waiting_chars: usize,
    /// When the next piece may come; `None` before the first.
    next_at: Option<Instant>,
    finished: bool,
}

impl TokenBuffer {
    /// An empty message.
    pub fn new(config: TokenConfig) -> Self {
        Self::without(Scrubber::process(), config)
    }

    /// An empty message whose text loses what `scrubber` knows by now.
    fn without(scrubber: &Scrubber, config: TokenConfig) -> Self {
        Self {
            config,
            guard: scrubber.values().map(Guard::new),
            keeps_text: config.cumulative_text,
            escaped: String::new(),
            sent: 0,
            sent_chars: 0,
            waiting_chars: 0,
            next_at: None,
            finished: false,
        }
    }

    /// Adds `text`. Returns a piece when one is due at `now`: the first at once, later ones when the window is over.
    pub fn push(&mut self, text: &str, now: Instant) -> Option<Piece<'_>> {
        self.forget_sent();
        match &mut self.guard {
            None => self.add(text),
            Some(guard) => {
                let shown = guard.push(text);
                self.add(&shown);
            }
        }
        self.tick(now)
    }

    fn add(&mut self, text: &str) {
        let Self { escaped, .. } = self;
        escape(text, |part| escaped.push_str(part));
        self.waiting_chars += text.chars().count();
    }

    /// Time until [`Self::tick`] has a piece; `None` when no text waits.
    pub fn due_in(&self, now: Instant) -> Option<Duration> {
        if self.waiting_chars == 0 {
            return None;
        }
        Some(self.next_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now)))
    }

    /// The text that waits, if its window is over.
    pub fn tick(&mut self, now: Instant) -> Option<Piece<'_>> {
        if !self.due_in(now)?.is_zero() {
            return None;
        }
        self.next_at = Some(now + self.interval());
        Some(self.cut())
    }

    /// The rest of the message, marked as last; `None` when the message had no text at all.
    ///
    /// When all text has been sent, the piece is empty: it is there for the text so far, which readers of the stream
    /// get with the last piece only. Without that text there is no such piece.
    pub fn finish(&mut self) -> Option<Piece<'_>> {
        if let Some(mut guard) = self.guard.take() {
            self.forget_sent();
            self.add(&guard.finish());
        }
        let had_text = self.sent_chars + self.waiting_chars > 0;
        let has_more_to_say = self.waiting_chars > 0 || self.keeps_text;
        if self.finished || !had_text || !has_more_to_say {
            return None;
        }
        self.finished = true;
        Some(Piece { last: true, ..self.cut() })
    }

    fn cut(&mut self) -> Piece<'_> {
        if self.escaped.len() > MAX_CUMULATIVE_BYTES {
            self.keeps_text = false;
        }
        let from = std::mem::replace(&mut self.sent, self.escaped.len());
        let offset = self.sent_chars;
        self.sent_chars += std::mem::take(&mut self.waiting_chars);
        Piece {
            token: &self.escaped[from..],
            offset,
            cumulative_text: self.keeps_text.then_some(&self.escaped),
            last: false,
        }
    }

    /// The pause after a piece: the window, or what the text so far costs to send again.
    fn interval(&self) -> Duration {
        if !self.keeps_text {
            return self.config.window;
        }
        let bytes = u64::try_from(self.escaped.len()).expect("a length fits");
        let per_second = u64::try_from(self.config.bytes_per_second).expect("a length fits").max(1);
        self.config.window.max(Duration::from_millis(bytes.saturating_mul(1000) / per_second))
    }

    fn forget_sent(&mut self) {
        if !self.keeps_text {
            self.escaped.drain(..self.sent);
            self.sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_millis(40);
    const WITHOUT: TokenConfig =
        TokenConfig { cumulative_text: false, window: WINDOW, bytes_per_second: 128 * 1024 };

    fn piece(token: &str, offset: usize, so_far: &str) -> Option<(String, usize, Option<String>)> {
        Some((token.into(), offset, Some(so_far.into())))
    }

    fn seen(piece: Option<Piece<'_>>) -> Option<(String, usize, Option<String>)> {
        piece.map(|p| (p.token.into(), p.offset, p.cumulative_text.map(Into::into)))
    }

    #[test]
    fn the_first_piece_comes_at_once_and_later_ones_are_merged() {
        let mut buffer = TokenBuffer::new(TokenConfig::default());
        let start = Instant::now();
        assert_eq!(seen(buffer.push("He", start)), piece("He", 0, "He"));
        assert_eq!(buffer.due_in(start), None, "nothing waits");
        let soon = start + WINDOW / 4;
        assert_eq!(buffer.push("l", soon), None);
        assert_eq!(buffer.push("lo", soon), None);
        assert_eq!(buffer.due_in(soon), Some(WINDOW * 3 / 4));
        assert_eq!(buffer.tick(soon), None);
        assert_eq!(seen(buffer.tick(start + WINDOW)), piece("llo", 2, "Hello"));
        assert_eq!(seen(buffer.push("!", start + WINDOW * 3)), piece("!", 5, "Hello!"));
    }

    #[test]
    fn the_end_brings_what_waits_and_an_empty_piece_when_nothing_does() {
        let mut buffer = TokenBuffer::new(TokenConfig::default());
        let start = Instant::now();
        assert!(buffer.push("a", start).is_some());
        assert_eq!(buffer.push("b", start), None);
        let last = buffer.finish().expect("text waits");
        assert!(last.last);
        assert_eq!(seen(Some(last)), piece("b", 1, "ab"));
        assert_eq!(buffer.finish(), None, "a message ends once");

        let mut buffer = TokenBuffer::new(TokenConfig::default());
        assert!(buffer.push("ab", start).is_some());
        assert_eq!(seen(buffer.finish()), piece("", 2, "ab"));
    }

    #[test]
    fn a_message_without_text_has_no_piece() {
        let mut buffer = TokenBuffer::new(TokenConfig::default());
        assert_eq!(buffer.push("", Instant::now()), None);
        assert_eq!(buffer.finish(), None);
    }

    #[test]
    fn without_the_text_so_far_nothing_of_it_is_kept() {
        let mut buffer = TokenBuffer::new(WITHOUT);
        let mut now = Instant::now();
        for _ in 0..1000 {
            assert_eq!(seen(buffer.push("0123456789", now)).map(|p| p.2), Some(None));
            now += WINDOW;
        }
        assert!(buffer.escaped.capacity() < 100, "{}", buffer.escaped.capacity());
        assert_eq!(buffer.finish(), None, "an empty piece would say nothing");
    }

    #[test]
    fn the_longer_the_text_the_longer_the_pause() {
        let config = TokenConfig { bytes_per_second: 1000, ..TokenConfig::default() };
        let mut buffer = TokenBuffer::new(config);
        let start = Instant::now();
        assert!(buffer.push(&"x".repeat(500), start).is_some());
        assert_eq!(buffer.push("y", start), None);
        assert_eq!(buffer.due_in(start), Some(Duration::from_millis(500)));
    }

    #[test]
    fn a_text_too_long_to_repeat_goes_on_without_the_text_so_far() {
        let mut buffer = TokenBuffer::new(TokenConfig::default());
        let start = Instant::now();
        assert!(buffer.push(&"x".repeat(MAX_CUMULATIVE_BYTES), start).is_some());
        assert_eq!(buffer.push("y", start), None);
        let last = seen(buffer.finish());
        assert_eq!(last, Some(("y".into(), MAX_CUMULATIVE_BYTES, None)));
    }

    #[test]
    fn a_secret_that_comes_in_two_pieces_is_in_none() {
        let scrubber = Scrubber::default();
        scrubber.keep(["Tr0ub4dor&3"]);
        for config in [TokenConfig::default(), WITHOUT] {
            let mut buffer = TokenBuffer::without(&scrubber, config);
            let (mut now, mut sent) = (Instant::now(), String::new());
            for text in ["It is Tr0u", "b4dor", "&3, or Tr", "0uble. T"] {
                now += WINDOW * 2;
                sent.extend(buffer.push(text, now).map(|piece| {
                    assert_eq!(piece.offset, sent.chars().count());
                    piece.token.to_owned()
                }));
            }
            assert_eq!(sent, "It is ***REDACTED***, or Tr0uble. ");
            let last = buffer.finish().expect("a letter was held back");
            assert_eq!((last.token, last.offset), ("T", sent.chars().count()));
            assert!(last.cumulative_text.is_none_or(|text| text == format!("{sent}T")));
        }
    }

    fn unescaped(escaped: &str) -> String {
        serde_json::from_str(&format!("\"{escaped}\"")).expect("a piece is the inside of a JSON string")
    }

    proptest! {
        #[test]
        fn pieces_joined_are_the_text_and_know_their_place(
            texts in proptest::collection::vec((any::<String>(), 0..60_u64), 0..20),
            cumulative_text in any::<bool>(),
        ) {
            let mut buffer = TokenBuffer::new(TokenConfig { cumulative_text, ..TokenConfig::default() });
            let mut now = Instant::now();
            let (mut sent, mut pushed, mut last_at) = (String::new(), String::new(), None);
            for (text, pause) in &texts {
                now += Duration::from_millis(*pause);
                pushed.push_str(text);
                if let Some(piece) = buffer.push(text, now) {
                    prop_assert!(last_at.is_none_or(|at| now >= at + WINDOW), "too early");
                    last_at = Some(now);
                    prop_assert_eq!(piece.offset, sent.chars().count());
                    sent.push_str(&unescaped(piece.token));
                    prop_assert_eq!(&sent, &pushed, "a piece brings all that waits");
                    prop_assert_eq!(piece.cumulative_text.map(unescaped), cumulative_text.then(|| sent.clone()));
                    prop_assert!(!piece.last);
                }
            }
            if let Some(piece) = buffer.finish() {
                prop_assert!(piece.last);
                prop_assert_eq!(piece.offset, sent.chars().count());
                sent.push_str(&unescaped(piece.token));
                prop_assert_eq!(piece.cumulative_text.map(unescaped), cumulative_text.then(|| sent.clone()));
            }
            prop_assert_eq!(sent, pushed);
        }
    }
}

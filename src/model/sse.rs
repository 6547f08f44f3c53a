//! Server-Sent Events from byte chunks as they arrive.
//!
//! **Invariant:** how the bytes are cut into chunks never changes the events.
//! **Invariant:** memory is bounded by [`MAX_EVENT_BYTES`], whatever the server sends.

use std::borrow::Cow;

/// Most bytes of one line and of one event; a whole answer of 128,000 tokens is below 1 MiB.
const MAX_EVENT_BYTES: usize = 4 << 20;

const BOM: &[u8] = "\u{feff}".as_bytes();

/// One event, borrowed from the decoder.
#[derive(Debug, PartialEq)]
pub(super) struct Event<'a> {
    /// Its `event:` field; empty when it has none.
    pub(super) name: &'a str,
    /// Its `data:` lines, joined by line feeds.
    pub(super) data: Cow<'a, str>,
}

/// A line or an event is longer than [`MAX_EVENT_BYTES`].
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("an event is longer than {MAX_EVENT_BYTES} bytes")]
pub(super) struct TooLong;

/// What is known of the stream so far.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    line: Vec<u8>,
    name: String,
    data: Vec<u8>,
    has_data: bool,
    past_first_line: bool,
    skip_line_feed: bool,
}

impl Decoder {
    /// Takes the next bytes and hands each event they complete to `on_event`.
    ///
    /// Fails when a line or an event is too long; the stream cannot be read on after that.
    pub(super) fn feed(&mut self, bytes: &[u8], mut on_event: impl FnMut(Event<'_>)) -> Result<(), TooLong> {
        let mut rest = bytes;
        if self.skip_line_feed && !rest.is_empty() {
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
            self.skip_line_feed = false;
        }
        while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            let (line, tail) = rest.split_at(end);
            rest = match tail {
                [b'\r', b'\n', after @ ..] => after,
                [b'\r'] => {
                    self.skip_line_feed = true;
                    &[]
                }
                _ => &tail[1..],
            };
            if self.line.is_empty() {
                self.end_line(line, &mut on_event)?;
            } else {
                self.keep(line)?;
                // Taken out so that its memory is used again for the next partial line.
                let mut whole = std::mem::take(&mut self.line);
                let outcome = self.end_line(&whole, &mut on_event);
                whole.clear();
                self.line = whole;
                outcome?;
            }
        }
        self.keep(rest)
    }

    /// Ends the stream: an event that lacks its blank line, or its last line end, is handed out too.
    pub(super) fn finish(mut self, mut on_event: impl FnMut(Event<'_>)) -> Result<(), TooLong> {
        let last = std::mem::take(&mut self.line);
        self.end_line(&last, &mut on_event)?;
        self.dispatch(&mut on_event);
        Ok(())
    }

    fn keep(&mut self, part: &[u8]) -> Result<(), TooLong> {
        if self.line.len() + part.len() > MAX_EVENT_BYTES {
            return Err(TooLong);
        }
        self.line.extend_from_slice(part);
        Ok(())
    }

    fn end_line(&mut self, line: &[u8], on_event: &mut impl FnMut(Event<'_>)) -> Result<(), TooLong> {
        let line = match std::mem::replace(&mut self.past_first_line, true) {
            true => line,
            false => line.strip_prefix(BOM).unwrap_or(line),
        };
        if line.is_empty() {
            self.dispatch(on_event);
            return Ok(());
        }
        let (field, value) = match line.iter().position(|byte| *byte == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &b""[..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => self.add_data(value),
            b"event" => {
                self.name.clear();
                self.name.push_str(&String::from_utf8_lossy(value));
                Ok(())
            }
            // Comments have an empty field; `id` and `retry` matter only to clients that reconnect.
            _ => Ok(()),
        }
    }

    fn add_data(&mut self, value: &[u8]) -> Result<(), TooLong> {
        if self.data.len() + value.len() >= MAX_EVENT_BYTES {
            return Err(TooLong);
        }
        if self.has_data {
            self.data.push(b'\n');
        }
        self.data.extend_from_slice(value);
        self.has_data = true;
        Ok(())
    }

    fn dispatch(&mut self, on_event: &mut impl FnMut(Event<'_>)) {
        if self.has_data {
            on_event(Event { name: &self.name, data: String::from_utf8_lossy(&self.data) });
        }
        self.name.clear();
        self.data.clear();
        self.has_data = false;
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    /// The events of `bytes` cut into chunks of `size`, one `name|data` each.
    fn events(bytes: &[u8], size: usize) -> Vec<String> {
        let mut decoder = Decoder::default();
        let mut events = Vec::new();
        let mut keep = |event: Event<'_>| events.push(format!("{}|{}", event.name, event.data));
        for chunk in bytes.chunks(size) {
            decoder.feed(chunk, &mut keep).expect("short");
        }
        decoder.finish(&mut keep).expect("short");
        events
    }

    fn check(text: &str, expected: Expect) {
        expected.assert_eq(&format!("{:?}", events(text.as_bytes(), usize::MAX)));
        for size in 1..text.len() {
            expected.assert_eq(&format!("{:?}", events(text.as_bytes(), size)));
        }
    }

    #[test]
    fn all_line_ends_and_fields_are_understood() {
        check("data: a\n\ndata:b\r\n\r\ndata: c\r\r", expect![[r#"["|a", "|b", "|c"]"#]]);
        check(
            "event: e\nid: 7\nretry: x\nnope\ndata:  two\ndata\ndata: lines\n\n",
            expect![[r#"["e| two\n\nlines"]"#]],
        );
        check(": comment\n\n:\n\nevent: lonely\n\ndata: x\n\n", expect![[r#"["|x"]"#]]);
    }

    #[test]
    fn a_byte_order_mark_is_skipped_once() {
        check(
            "\u{feff}data: a\n\n\u{feff}data: b\n\ndata: \u{feff}c\n\n",
            expect![[r#"["|a", "|\u{feff}c"]"#]],
        );
    }

    #[test]
    fn the_last_event_needs_no_blank_line() {
        check("data: a\n\ndata: b", expect![[r#"["|a", "|b"]"#]]);
        check("data: a\r", expect![[r#"["|a"]"#]]);
        check("", expect!["[]"]);
    }

    #[test]
    fn lines_and_events_have_a_limit() {
        let mut decoder = Decoder::default();
        let half = vec![b'x'; MAX_EVENT_BYTES / 2];
        decoder.feed(&half, |_| ()).expect("within the limit");
        decoder.feed(&half, |_| ()).expect("at the limit");
        assert_eq!(decoder.feed(b"x", |_| ()), Err(TooLong));

        let mut decoder = Decoder::default();
        let line = [b"data: ".as_slice(), &half, b"\n"].concat();
        decoder.feed(&line, |_| ()).expect("within the limit");
        assert_eq!(decoder.feed(&line, |_| ()), Err(TooLong));
    }

    #[test]
    fn bytes_that_are_not_utf_8_do_not_end_the_stream() {
        assert_eq!(events(b"data: \xff\n\ndata: b\n\n", 4), ["|\u{fffd}", "|b"]);
    }

    proptest! {
        #[test]
        fn chunk_sizes_change_nothing(
            parts in proptest::collection::vec(
                prop_oneof![
                    Just("\n"), Just("\r"), Just("\r\n"), Just("data:"), Just("data: "), Just("event: "),
                    Just(":"), Just("\u{feff}"), Just("x"), Just("ünï✓"), Just(" "), Just("{\"a\":1}"),
                ],
                0..60,
            ),
            sizes in proptest::collection::vec(1usize..9, 1..20),
        ) {
            let text = parts.concat();
            let whole = events(text.as_bytes(), usize::MAX);
            for size in 1..10 {
                prop_assert_eq!(&events(text.as_bytes(), size), &whole);
            }
            let mut decoder = Decoder::default();
            let mut mixed = Vec::new();
            let mut keep = |event: Event<'_>| mixed.push(format!("{}|{}", event.name, event.data));
            let (mut rest, mut sizes) = (text.as_bytes(), sizes.into_iter().cycle());
            while !rest.is_empty() {
                let (chunk, tail) = rest.split_at(sizes.next().expect("cycles").min(rest.len()));
                decoder.feed(chunk, &mut keep).expect("short");
                rest = tail;
            }
            decoder.finish(&mut keep).expect("short");
            prop_assert_eq!(mixed, whole);
        }
    }
}

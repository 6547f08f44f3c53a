//! Secret values in every spelling that is cheap to know, and one automaton that finds all of them.

use std::{borrow::Cow, collections::BTreeSet, fmt};

use aho_corasick::{AhoCorasick, MatchKind};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use serde_json::Value as Json;

use super::REDACTED;
use crate::encoding::{UNRESERVED, percent};

/// Longest value whose encodings are known too: every spelling is as long, and keys of this length are shown whole.
const LONGEST_ENCODED: usize = 1_024;

/// Bits of a byte, and of a character of base64.
const BYTE_BITS: usize = 8;
const SEXTET_BITS: usize = 6;

/// Values to look for.
pub struct Values {
    automaton: AhoCorasick,
    /// The spellings by their first byte; a text may end within one.
    by_first: Vec<Vec<Box<str>>>,
    longest: usize,
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Values").finish_non_exhaustive()
    }
}

impl Values {
    /// Looks for these values, however short, and what percent-encoding, JSON and base64 make of them. `None` when
    /// there are none, or more than an automaton takes.
    pub fn of<'a>(values: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let spellings: BTreeSet<String> = values.into_iter().flat_map(spellings).collect();
        if spellings.is_empty() {
            return None;
        }
        // The longest wins, so that a value within another one does not uncover the rest of it.
        let automaton =
            AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&spellings).ok()?;
        let longest = spellings.iter().map(String::len).max().unwrap_or_default();
        let mut by_first = vec![Vec::new(); usize::from(u8::MAX) + 1];
        for spelling in spellings {
            by_first[usize::from(spelling.as_bytes()[0])].push(spelling.into_boxed_str());
        }
        Some(Self { automaton, by_first, longest })
    }

    /// `text` without the values.
    pub fn remove<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.automaton.is_match(text) {
            let mut clean = String::with_capacity(text.len());
            self.automaton.replace_all_with(text, &mut clean, |_, _, clean| {
                clean.push_str(REDACTED);
                true
            });
            Cow::Owned(clean)
        } else {
            Cow::Borrowed(text)
        }
    }

    /// `text` that was cut at its end, without the values and without the beginning of one at the cut.
    pub fn remove_from_cut(&self, text: &str) -> String {
        self.remove_up_to_open_end(text).0
    }

    /// `text` without the values up to where one may begin that goes on in a later text, and the rest from there.
    pub(super) fn remove_up_to_open_end<'t>(&self, text: &'t str) -> (String, &'t str) {
        let mut clean = String::with_capacity(text.len());
        let mut from = 0;
        let mut open = self.open_end(text, from);
        for found in self.automaton.find_iter(text) {
            if found.start() >= open {
                break;
            }
            clean.push_str(&text[from..found.start()]);
            clean.push_str(REDACTED);
            from = found.end();
            if from > open {
                open = self.open_end(text, from);
            }
        }
        clean.push_str(&text[from..open]);
        (clean, &text[open..])
    }

    /// Where a value may begin, at `from` or later, that the text ends within; its length when there is none.
    fn open_end(&self, text: &str, from: usize) -> usize {
        let bytes = text.as_bytes();
        let first = from.max((bytes.len() + 1).saturating_sub(self.longest));
        let is_open = |at: &usize| {
            let tail = &bytes[*at..];
            let spellings = &self.by_first[usize::from(tail[0])];
            spellings
                .iter()
                .any(|spelling| spelling.len() > tail.len() && spelling.as_bytes().starts_with(tail))
        };
        (first..bytes.len()).find(is_open).unwrap_or(bytes.len())
    }

    /// Whether the bytes of a JSON text look like they have one of the values in them.
    pub(super) fn may_be_in(&self, json: &[u8]) -> bool {
        self.automaton.is_match(json)
    }

    /// Removes the values from every text, names of fields included.
    pub(super) fn remove_from_json(&self, json: &mut Json) {
        match json {
            Json::String(text) => {
                if let Cow::Owned(clean) = self.remove(text) {
                    *text = clean;
                }
            }
            Json::Array(items) => items.iter_mut().for_each(|item| self.remove_from_json(item)),
            Json::Object(fields) => {
                fields.values_mut().for_each(|value| self.remove_from_json(value));
                if fields.keys().any(|name| self.automaton.is_match(name)) {
                    let all = std::mem::take(fields).into_iter();
                    fields.extend(all.map(|(name, value)| (self.remove(&name).into_owned(), value)));
                }
            }
            Json::Null | Json::Bool(_) | Json::Number(_) => {}
        }
    }
}

/// A value as programs write it.
fn spellings(value: &str) -> BTreeSet<String> {
    let quoted = Json::from(value).to_string();
    let escaped = quoted.strip_prefix('"').and_then(|quoted| quoted.strip_suffix('"')).unwrap_or_default();
    let mut all = BTreeSet::from([value.to_owned(), escaped.to_owned()]);
    if value.len() <= LONGEST_ENCODED {
        let percent = percent(value, UNRESERVED);
        all.insert(percent.replace("%20", "+"));
        all.insert(lower_escapes(&percent));
        all.insert(percent);
        for before in 0..3 {
            all.insert(within_base64(&STANDARD_NO_PAD, value, before));
            all.insert(within_base64(&URL_SAFE_NO_PAD, value, before));
        }
    }
    all.retain(|spelling| !spelling.is_empty());
    all
}

/// The characters that base64 makes of `value` alone when `before` bytes, and any number of groups of three, stand
/// before it: what is around it reaches into the first and the last of them.
fn within_base64(engine: &impl Engine, value: &str, before: usize) -> String {
    let mut bytes = vec![0; before];
    bytes.extend_from_slice(value.as_bytes());
    let text = engine.encode(&bytes);
    let from = (before * BYTE_BITS).div_ceil(SEXTET_BITS);
    let to = bytes.len() * BYTE_BITS / SEXTET_BITS;
    text.get(from..to).unwrap_or_default().to_owned()
}

/// The escapes of percent-encoding in lower case.
fn lower_escapes(encoded: &str) -> String {
    let mut left = 0_u8;
    let lower = encoded.chars().map(|c| {
        let in_escape = left > 0;
        left = if c == '%' { 2 } else { left.saturating_sub(1) };
        if in_escape { c.to_ascii_lowercase() } else { c }
    });
    lower.collect()
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};

    use super::*;

    fn values(all: &[&str]) -> Values {
        Values::of(all.iter().copied()).expect("there are some")
    }

    #[test]
    fn a_value_is_removed_in_every_spelling() {
        let values = values(&["a\"b c/ü", "a\"b"]);
        assert_eq!(values.remove("x a\"b c/ü y"), "x ***REDACTED*** y");
        assert_eq!(values.remove(r#"{"k":"a\"b c/ü"}"#), r#"{"k":"***REDACTED***"}"#);
        for encoded in ["a%22b%20c%2F%C3%BC", "a%22b%20c%2f%c3%bc", "a%22b+c%2F%C3%BC"] {
            assert_eq!(values.remove(encoded), REDACTED, "{encoded}");
        }
        assert_eq!(values.remove("nothing here"), "nothing here");
        assert!(Values::of([""]).is_none());
    }

    #[test]
    fn base64_hides_no_value_wherever_it_stands() {
        const VALUE: &str = "s3cr3t-v4lu3>?";
        let values = values(&[VALUE]);
        for before in ["", "u", "us", "use", "user:", "Aladdin:"] {
            for after in ["", "x", "xy", "xyz"] {
                let text = format!("{before}{VALUE}{after}");
                for encoded in [STANDARD.encode(&text), URL_SAFE.encode(&text), STANDARD_NO_PAD.encode(&text)]
                {
                    let clean = values.remove(&encoded);
                    assert!(clean.contains(REDACTED), "{text}: {encoded}");
                    // At most the characters that hold bits of what is around it are left of it.
                    assert!(
                        clean.len() <= REDACTED.len() + encoded.len() - VALUE.len() * 8 / 6 + 2,
                        "{clean}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_beginning_of_a_value_at_a_cut_is_removed() {
        let values = values(&["hunter2"]);
        assert_eq!(values.remove_from_cut("key: hunte"), "key: ");
        assert_eq!(values.remove_from_cut("hunter2 and h"), "***REDACTED*** and ");
        assert_eq!(values.remove_from_cut("hunter2"), "***REDACTED***");
    }

    #[test]
    fn only_escapes_change_their_case() {
        assert_eq!(lower_escapes("A%2FB%C3%BCCD"), "A%2fB%c3%bcCD");
    }
}

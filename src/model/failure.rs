//! What a provider's failing answer means, in words that can be shown to anybody.
//!
//! **Invariant:** no message made here holds a key or a longer piece of the prompt; providers echo both.

use std::sync::Arc;
use std::{collections::HashMap, sync::LazyLock, time::Duration};

use regex::Regex;
use serde_json::Value as Json;

use super::Error;

/// Most characters of a provider's message in an error: a sentence or two, not a page.
const MAX_MESSAGE_CHARS: usize = 300;
/// Most characters of a provider's message that are looked at; bounds the search for secrets in it.
const MAX_SEARCHED_CHARS: usize = 2_000;
/// As many bytes in common with a key are taken for the key: providers show its first or last few.
const KEY_WINDOW: usize = 8;
/// As many bytes in common with the prompt are taken for an echo; shorter runs happen by chance.
const PROMPT_WINDOW: usize = 24;
/// The shortest text that is looked for as a whole; shorter ones are words like "hi".
const SHORTEST_SECRET: usize = 6;

/// What a provider says about a failure.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Complaint {
    message: String,
    /// Its `code` and `type`, lower case, joined by a space.
    kind: String,
    /// Its `code`, when that is an HTTP status.
    status: Option<u16>,
}

impl Complaint {
    /// The complaint in the body of a failing answer; says so when there is none to be found.
    pub(super) fn from_body(body: &[u8]) -> Self {
        let Ok(json) = serde_json::from_slice::<Json>(body) else {
            // Pages of proxies tell nothing, and raw text may be an echo of the request.
            return Self { message: "no error message in JSON".into(), ..Self::default() };
        };
        match json.get("error") {
            Some(error) if !error.is_null() => Self::from_json(error),
            _ => Self::from_json(&json),
        }
    }

    /// The complaint an `error` value makes: an object or a text.
    pub(super) fn from_json(error: &Json) -> Self {
        let text = |key: &str| match error.get(key) {
            Some(Json::String(text)) => text.clone(),
            Some(Json::Number(number)) => number.to_string(),
            _ => String::new(),
        };
        let said = ["message", "detail", "error"].map(text).into_iter().find(|text| !text.is_empty());
        let message = error.as_str().map(str::to_owned).or(said).unwrap_or_else(|| "no error message".into());
        let code = text("code");
        Self {
            message,
            kind: format!("{code} {}", text("type")).to_lowercase(),
            status: code.parse().ok().filter(|status| (400..600).contains(status)),
        }
    }

    /// The HTTP status that says what this complaint says; for errors that came with status 200.
    fn implied_status(&self) -> u16 {
        let says = |words: &[&str]| words.iter().any(|word| self.kind.contains(word));
        match self.status {
            Some(status) => status,
            None if says(&["insufficient_quota", "rate_limit", "throttl", "too_many"]) => 429,
            None if says(&["overloaded"]) => 529,
            None if says(&["authentication", "invalid_api_key"]) => 401,
            None if says(&["permission"]) => 403,
            None if says(&["billing"]) => 402,
            None if says(&["not_found"]) => 404,
            None if says(&["too_large"]) => 413,
            None if says(&["invalid", "unsupported", "context_length", "content_filter"]) => 400,
            // A bare text or an unknown word: the server failed, and asking again may help.
            None => 500,
        }
    }
}

/// Whether asking again helps.
enum Verdict {
    /// After a while: the provider is overloaded.
    Wait,
    /// It may: something broke.
    Again,
    /// It does not.
    Never,
}

impl Verdict {
    fn of(status: u16, complaint: &Complaint) -> Self {
        match status {
            // The money is used up, which no wait mends.
            429 if complaint.kind.contains("insufficient_quota") => Self::Never,
            429 | 503 | 529 => Self::Wait,
            // Of the other 4xx both providers' own clients repeat these two: a request that took too long, and a lock.
            408 | 409 | 500.. => Self::Again,
            _ => Self::Never,
        }
    }
}

/// Turns complaints of one call into errors.
#[derive(Debug)]
pub(super) struct Judge<'a> {
    /// The provider's name.
    pub(super) provider: &'a str,
    /// The key of the call, if it has one.
    pub(super) key: Option<&'a str>,
    /// The texts of the request that must not come back in an error.
    pub(super) prompt: Vec<Arc<str>>,
}

impl Judge<'_> {
    /// The error an answer with a failing `status` is.
    pub(super) fn status(&self, status: u16, complaint: Complaint, retry_after: Option<Duration>) -> Error {
        let message = self.clean(&complaint.message);
        let provider = self.provider.to_owned();
        match Verdict::of(status, &complaint) {
            Verdict::Wait => Error::Throttled { provider, status, message, retry_after },
            Verdict::Again => Error::Unavailable { provider, message: format!("status {status}: {message}") },
            Verdict::Never => Error::Rejected { provider, status, message },
        }
    }

    /// The error a complaint is that came with status 200.
    pub(super) fn complaint(&self, complaint: Complaint) -> Error {
        let message = self.clean(&complaint.message);
        let provider = self.provider.to_owned();
        let status = complaint.implied_status();
        match Verdict::of(status, &complaint) {
            Verdict::Wait => Error::Throttled { provider, status, message, retry_after: None },
            Verdict::Again => Error::Unavailable { provider, message },
            Verdict::Never => Error::Rejected { provider, status, message },
        }
    }

    /// A message without secrets, on one line, shortened.
    pub(super) fn clean(&self, message: &str) -> String {
        static KEYS: LazyLock<Regex> = LazyLock::new(|| {
            // `sk-…` keys, whole or masked; anything masked with asterisks; bearer tokens.
            Regex::new(r"\bsk-[\w\-*.…]{4,}|[\w\-]*\*{3,}[\w\-*]*|(?i:bearer)\s+[\w\-.~+/=*]{8,}")
                .expect("a constant pattern that a test uses")
        });
        let mut message: String = message.chars().take(MAX_SEARCHED_CHARS).collect();
        message = hide(&message, self.key, KEY_WINDOW);
        message = hide(&message, self.prompt.iter().map(|text| &**text), PROMPT_WINDOW);
        let message = KEYS.replace_all(&message, "[…]");
        // Line ends and control characters would let a provider forge log lines.
        let words: Vec<&str> = message.split(|c: char| c.is_whitespace() || c.is_control()).collect();
        let line = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
        shorten(line)
    }
}

fn shorten(line: String) -> String {
    match line.char_indices().nth(MAX_MESSAGE_CHARS) {
        None => line,
        Some(_) => line.chars().take(MAX_MESSAGE_CHARS - 1).chain(['…']).collect(),
    }
}

/// `message` with `[…]` for each run of `window` or more bytes that is also in one of `secrets`, and for
/// each secret shorter than that.
fn hide<'a>(message: &str, secrets: impl IntoIterator<Item = &'a str>, window: usize) -> String {
    // The message is short and a prompt may be megabytes, so the prompt is walked once.
    let mut places: HashMap<&[u8], Vec<usize>> = HashMap::new();
    for (at, piece) in message.as_bytes().windows(window).enumerate() {
        places.entry(piece).or_default().push(at);
    }
    let mut hidden = vec![false; message.len()];
    for secret in secrets.into_iter().map(str::trim) {
        if secret.len() < window && secret.len() >= SHORTEST_SECRET {
            message.match_indices(secret).for_each(|(at, _)| hidden[at..at + secret.len()].fill(true));
        }
        if places.is_empty() {
            continue;
        }
        for found in secret.as_bytes().windows(window).filter_map(|piece| places.get(piece)) {
            found.iter().for_each(|at| hidden[*at..at + window].fill(true));
        }
    }
    let mut out = String::with_capacity(message.len());
    for (at, char) in message.char_indices() {
        match hidden[at..at + char.len_utf8()].contains(&true) {
            false => out.push(char),
            true if out.ends_with("[…]") => {}
            true => out.push_str("[…]"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::json;

    use super::*;

    const KEY: &str = "prov_0123456789abcdefXYZ";

    fn judge() -> Judge<'static> {
        let prompt = vec!["My neighbour's name is Rumpelstiltskin, tell nobody.".into(), "hi".into()];
        Judge { provider: "openai", key: Some(KEY), prompt }
    }

    fn check(message: &str, expected: Expect) {
        expected.assert_eq(&judge().clean(message));
    }

    #[test]
    fn keys_are_hidden_whole_or_in_parts() {
        check(&format!("bad key {KEY}."), expect!["bad key […]."]);
        check("bad key prov_0123456 at", expect!["bad key […] at"]);
        check("key ending in abcdefXYZ!", expect!["key ending in […]!"]);
        check(
            "Incorrect API key provided: sk-ab12*****wxyz. You can",
            expect!["Incorrect API key provided: […] You can"],
        );
        check("key pk_l***z and Bearer abc.def-ghi_jkl", expect!["key […] and […]"]);
        check("asking is not sk-ipping", expect!["asking is not […]"]);
    }

    #[test]
    fn echoes_of_the_prompt_are_hidden() {
        check(
            "invalid input 'My neighbour's name is Rumpelstiltskin, tell nobody.' (hi)",
            expect!["invalid input '[…]' (hi)"],
        );
        check("maximum context length is 8192 tokens", expect!["maximum context length is 8192 tokens"]);
    }

    #[test]
    fn messages_are_one_short_line() {
        check("one\r\n\ttwo\u{1b}[31m  three", expect!["one two [31m three"]);
        let long = judge().clean(&"ä".repeat(5_000));
        assert_eq!((long.chars().count(), long.ends_with('…')), (MAX_MESSAGE_CHARS, true));
    }

    #[test]
    fn every_status_has_its_error() {
        let kind = |status, error: Json| {
            let body = json!({ "error": error }).to_string();
            judge().status(status, Complaint::from_body(body.as_bytes()), None).code()
        };
        for status in [429, 503, 529] {
            assert_eq!(kind(status, json!({"message": "slow"})), "MODEL_THROTTLED");
        }
        for status in [408, 409, 500, 502, 504, 520] {
            assert_eq!(kind(status, json!("down")), "MODEL_UNAVAILABLE");
        }
        for status in [302, 400, 401, 403, 404, 413, 422] {
            assert_eq!(kind(status, json!({"message": "no"})), "MODEL_REJECTED");
        }
        assert_eq!(kind(429, json!({"code": "insufficient_quota"})), "MODEL_REJECTED");
        assert_eq!(kind(429, json!({"type": "insufficient_quota", "code": null})), "MODEL_REJECTED");
    }

    #[test]
    fn errors_with_status_200_are_judged_by_their_words() {
        let code = |error: Json| judge().complaint(Complaint::from_json(&error)).code();
        assert_eq!(code(json!({"type": "server_error", "code": null})), "MODEL_UNAVAILABLE");
        assert_eq!(code(json!("thinking_budget is not supported")), "MODEL_UNAVAILABLE");
        assert_eq!(code(json!({"code": 429, "message": "x"})), "MODEL_THROTTLED");
        assert_eq!(code(json!({"code": "503"})), "MODEL_THROTTLED");
        assert_eq!(code(json!({"type": "overloaded_error"})), "MODEL_THROTTLED");
        assert_eq!(code(json!({"type": "api_error"})), "MODEL_UNAVAILABLE");
        assert_eq!(code(json!({"type": "billing_error"})), "MODEL_REJECTED");
        assert_eq!(code(json!({"code": "rate_limit_exceeded"})), "MODEL_THROTTLED");
        assert_eq!(code(json!({"type": "insufficient_quota"})), "MODEL_REJECTED");
        assert_eq!(code(json!({"type": "invalid_request_error"})), "MODEL_REJECTED");
        assert_eq!(code(json!({"code": "context_length_exceeded"})), "MODEL_REJECTED");
    }

    #[test]
    fn messages_are_found_in_the_shapes_servers_use() {
        let message = |body: &str| Complaint::from_body(body.as_bytes()).message;
        assert_eq!(message(r#"{"error":{"message":"a"}}"#), "a");
        assert_eq!(message(r#"{"error":"b"}"#), "b");
        assert_eq!(message(r#"{"object":"error","message":"c","code":40001}"#), "c");
        assert_eq!(message(r#"{"detail":"d"}"#), "d");
        assert_eq!(message("<html>"), "no error message in JSON");
        assert_eq!(message("[]"), "no error message");
    }
}

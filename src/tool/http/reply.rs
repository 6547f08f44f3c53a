//! What the model reads of an HTTP response, and what it must never read: a secret that came back.

use std::sync::Arc;

use reqwest::{Response, header::CONTENT_TYPE};

use crate::{
    secrets::Secret,
    telemetry::scrub::{Scrubber, Values},
};

/// The body of a response.
pub(super) enum Body {
    /// Text, with whether all of it was read.
    Text { text: String, complete: bool },
    /// Something a model cannot read.
    Binary { kind: String, bytes: Option<u64> },
}

/// Reads at most `limit` bytes of the body, counted after decompression.
pub(super) async fn read(mut response: Response, limit: u64) -> Result<Body, reqwest::Error> {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = kind.unwrap_or_default().to_ascii_lowercase();
    if !kind.is_empty() && !is_text(&kind) {
        return Ok(Body::Binary { kind, bytes: response.content_length() });
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut bytes = Vec::new();
    let mut complete = true;
    while let Some(chunk) = response.chunk().await? {
        let room = limit - bytes.len();
        bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if chunk.len() > room {
            complete = false;
            break;
        }
    }
    if kind.is_empty() && looks_binary(&bytes) {
        return Ok(Body::Binary { kind: "unknown type".into(), bytes: Some(bytes.len() as u64) });
    }
    // Postgres takes no NUL in JSON, and results end up there.
    let text = String::from_utf8_lossy(&bytes).replace('\0', "\u{FFFD}");
    Ok(Body::Text { text, complete })
}

fn is_text(kind: &str) -> bool {
    let essence = kind.split(';').next().unwrap_or_default().trim();
    let textual = ["json", "xml", "yaml", "javascript", "x-www-form-urlencoded", "graphql", "csv"];
    essence.starts_with("text/") || textual.iter().any(|word| essence.contains(word))
}

fn looks_binary(bytes: &[u8]) -> bool {
    // A cut can split the last character, so only an error further in counts.
    bytes.contains(&0) || std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_some())
}

/// The secrets that must not be read in an answer, in every spelling a server may send back.
#[derive(Debug)]
pub(in crate::tool) struct Redaction {
    /// Those that were sent, however short, and those that the process knows.
    all: Vec<Arc<Values>>,
}

impl Redaction {
    /// Of a request that carried `sent`.
    pub(super) fn of<'a>(sent: impl Iterator<Item = &'a Secret>) -> Self {
        let sent = Values::of(sent.map(Secret::expose)).map(Arc::new);
        Self { all: sent.into_iter().chain(Scrubber::process().values()).collect() }
    }

    /// Of `own`, and of what the process knows by now.
    pub(in crate::tool) fn with(own: Option<&Arc<Values>>) -> Self {
        Self { all: own.cloned().into_iter().chain(Scrubber::process().values()).collect() }
    }

    /// `text` without any secret.
    pub(in crate::tool) fn apply(&self, text: String) -> String {
        self.all.iter().fold(text, |text, values| values.remove(&text).into_owned())
    }

    /// `text` that was cut at its end, without any secret and without the beginning of one at the cut.
    pub(super) fn apply_to_cut(&self, text: String) -> String {
        self.all.iter().fold(text, |text, values| values.remove_from_cut(&text))
    }
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;

    #[test]
    fn what_was_sent_is_removed_however_short_it_is() {
        let redaction = Redaction::of([Secret::from(SecretString::from("a\"b"))].iter());
        assert_eq!(
            redaction.apply(r#"{"k":"a\"b"} a%22b"#.into()),
            r#"{"k":"***REDACTED***"} ***REDACTED***"#
        );
        assert_eq!(redaction.apply_to_cut("key: a".into()), "key: ");
    }

    #[test]
    fn text_is_told_from_the_rest_by_its_type() {
        for kind in
            ["text/html; charset=utf-8", "application/json", "application/problem+json", "image/svg+xml"]
        {
            assert!(is_text(kind), "{kind}");
        }
        for kind in ["image/png", "application/octet-stream", "application/pdf", "application/zip"] {
            assert!(!is_text(kind), "{kind}");
        }
        assert!(
            looks_binary(&[0x89, b'P', 0]) && !looks_binary("é".as_bytes()) && !looks_binary(&[b'a', 0xC3])
        );
    }
}

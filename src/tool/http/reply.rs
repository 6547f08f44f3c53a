//! What the model reads of an HTTP response, and what it must never read: a secret that came back.

use reqwest::{Response, header::CONTENT_TYPE};
use secrecy::{ExposeSecret, SecretString};

use super::request::percent_encoded;

/// What stands in an answer where a secret stood.
const REDACTED: &str = "[secret]";

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

/// The operator's secrets in every spelling a server may send back.
#[derive(Debug)]
pub(super) struct Redaction {
    /// Longest first, so that a secret within another one does not uncover the rest of it.
    spellings: Vec<SecretString>,
}

impl Redaction {
    pub(super) fn of<'a>(secrets: impl Iterator<Item = &'a SecretString>) -> Self {
        let mut spellings: Vec<String> = secrets
            .map(ExposeSecret::expose_secret)
            .flat_map(|secret| {
                let quoted = serde_json::Value::from(secret).to_string();
                let escaped = quoted.trim_start_matches('"').strip_suffix('"').unwrap_or_default().to_owned();
                [secret.to_owned(), escaped, percent_encoded(secret)]
            })
            .filter(|spelling| !spelling.is_empty())
            .collect();
        spellings.sort_by_key(|spelling| std::cmp::Reverse(spelling.len()));
        spellings.dedup();
        Self { spellings: spellings.into_iter().map(SecretString::from).collect() }
    }

    /// `text` without any secret.
    pub(super) fn apply(&self, text: String) -> String {
        self.spellings.iter().map(ExposeSecret::expose_secret).fold(text, |text, secret| {
            if text.contains(secret) { text.replace(secret, REDACTED) } else { text }
        })
    }

    /// `text` that was cut at its end, without any secret and without the beginning of one at the cut.
    pub(super) fn apply_to_cut(&self, text: String) -> String {
        let mut text = self.apply(text);
        let partial = |secret: &str, text: &str| {
            secret
                .char_indices()
                .skip(1)
                .map(|(end, _)| end)
                .filter(|end| text.ends_with(&secret[..*end]))
                .max()
        };
        let longest = self.spellings.iter().filter_map(|secret| partial(secret.expose_secret(), &text)).max();
        text.truncate(text.len() - longest.unwrap_or(0));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_removed_in_every_spelling() {
        let secrets = [SecretString::from("a\"b c"), SecretString::from("a\"b"), SecretString::from("")];
        let redaction = Redaction::of(secrets.iter());
        assert_eq!(redaction.apply("x a\"b c y".into()), "x [secret] y");
        assert_eq!(redaction.apply(r#"{"k":"a\"b c"}"#.into()), r#"{"k":"[secret]"}"#);
        assert_eq!(redaction.apply("q=a%22b%20c&r=a%22b".into()), "q=[secret]&r=[secret]");
        assert_eq!(redaction.apply("nothing here".into()), "nothing here");
    }

    #[test]
    fn the_beginning_of_a_secret_at_a_cut_is_removed() {
        let redaction = Redaction::of([SecretString::from("hunter2")].iter());
        assert_eq!(redaction.apply_to_cut("key: hunte".into()), "key: ");
        assert_eq!(redaction.apply_to_cut("hunter2 and h".into()), "[secret] and ");
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

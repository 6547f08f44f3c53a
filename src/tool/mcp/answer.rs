//! From what a server answers to what the model reads.

use rmcp::model::{CallToolResult, ContentBlock, ResourceContents};
use serde_json::Value as Json;

use crate::tool::{Answer, Error, cut, http::Redaction};

/// Characters of the parts of a note: addresses and types are as long as the server likes.
const MAX_NOTE_CHARS: usize = 500;

/// The answer of a tool, without secrets and not too long.
pub(super) fn answer(result: &CallToolResult, redaction: &Redaction) -> Answer {
    let texts: Vec<String> = result.content.iter().filter_map(text_of).collect();
    let mut text = texts.join("\n");
    if let Some(structured) = &result.structured_content
        && !texts.iter().any(|text| says_the_same(text, structured))
    {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&structured.to_string());
    }
    if text.is_empty() {
        text.push_str("the tool answered without content");
    }
    // Postgres takes no NUL in JSON, and results end up there.
    let text = cut(redaction.apply(text.replace('\0', "\u{FFFD}")));
    if result.is_error == Some(true) { Error::Failed(text).into() } else { Answer::success(text) }
}

/// A block of content as text, or a note about what a model cannot read.
fn text_of(block: &ContentBlock) -> Option<String> {
    let text = match block {
        ContentBlock::Text(text) => text.text.clone(),
        ContentBlock::Image(image) => note("image", &image.mime_type, &image.data),
        ContentBlock::Audio(audio) => note("audio", &audio.mime_type, &audio.data),
        ContentBlock::ResourceLink(link) => {
            let kind = link.mime_type.as_deref().unwrap_or("unknown type");
            format!("[resource {}: {}, {}]", brief(&link.uri), brief(&link.name), brief(kind))
        }
        ContentBlock::Resource(embedded) => match &embedded.resource {
            ResourceContents::TextResourceContents { uri, text, .. } => {
                format!("[resource {}]\n{text}", brief(uri))
            }
            ResourceContents::BlobResourceContents { uri, mime_type, blob, .. } => {
                let kind = mime_type.as_deref().unwrap_or("unknown type");
                format!("[resource {}: {}]", brief(uri), sized(kind, blob))
            }
            _ => "[resource of an unknown kind]".to_owned(),
        },
        _ => "[content of an unknown kind]".to_owned(),
    };
    (!text.is_empty()).then_some(text)
}

fn note(what: &str, kind: &str, base64: &str) -> String {
    format!("[{what}: {}]", sized(kind, base64))
}

fn sized(kind: &str, base64: &str) -> String {
    // Three bytes are four characters, and padding is none.
    let bytes = base64.trim_end_matches('=').len() * 3 / 4;
    format!("{}, {bytes} bytes", brief(kind))
}

fn brief(text: &str) -> String {
    let is_plain = |c: &char| !c.is_control();
    text.chars().filter(is_plain).take(MAX_NOTE_CHARS).collect()
}

/// Whether the text is the structured content once more: its JSON, or the only text in it.
fn says_the_same(text: &str, structured: &Json) -> bool {
    let json = || serde_json::from_str::<Json>(text).ok();
    if structured.as_str() == Some(text) || json().as_ref() == Some(structured) {
        return true;
    }
    let only = structured.as_object().filter(|map| map.len() == 1).and_then(|map| map.values().next());
    only.is_some_and(|value| value.as_str() == Some(text) || json().as_ref() == Some(value))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;
    use std::sync::Arc;

    use crate::{telemetry::scrub::Values, tool::MAX_RESULT_CHARS, value::ToolStatus};

    fn told(result: Json) -> Answer {
        let result: CallToolResult = serde_json::from_value(result).expect("a result");
        answer(&result, &Redaction::with(Values::of(["hunter22"]).map(Arc::new).as_ref()))
    }

    #[test]
    fn texts_are_read_and_the_rest_is_noted() {
        let answer = told(json!({"content": [
            {"type": "text", "text": "one hunter22\u{0}"},
            {"type": "text", "text": ""},
            {"type": "image", "mimeType": "image/png", "data": "AAAAAA=="},
            {"type": "audio", "mimeType": "audio/wav", "data": "AAAA"},
            {"type": "resource_link", "uri": "file:///a", "name": "a", "mimeType": "text/plain"},
            {"type": "resource", "resource": {"uri": "demo://t", "mimeType": "text/plain", "text": "inside"}},
            {"type": "resource", "resource": {"uri": "demo://b", "blob": "AAAA"}},
        ]}));
        expect![[r#"
            one ***REDACTED***�
            [image: image/png, 4 bytes]
            [audio: audio/wav, 3 bytes]
            [resource file:///a: a, text/plain]
            [resource demo://t]
            inside
            [resource demo://b: unknown type, 3 bytes]"#]]
        .assert_eq(&answer.content);
        assert_eq!(told(json!({"content": []})).content, "the tool answered without content");
    }

    #[test]
    fn structured_content_is_shown_unless_a_text_says_the_same() {
        let text = |text: &str| json!([{"type": "text", "text": text}]);
        let shown = |text: Json, structured: Json| {
            told(json!({"content": text, "structuredContent": structured})).content
        };
        assert_eq!(shown(text(r#"{"b": [1], "a": 1}"#), json!({"a": 1, "b": [1]})), r#"{"b": [1], "a": 1}"#);
        assert_eq!(shown(text("Allowed: /data"), json!({"content": "Allowed: /data"})), "Allowed: /data");
        assert_eq!(shown(text("5"), json!({"result": 5})), "5");
        assert_eq!(shown(json!([]), json!({"a": 1})), r#"{"a":1}"#);
        assert_eq!(shown(text("done"), json!({"a": 1})), "done\n{\"a\":1}");
    }

    #[test]
    fn an_error_is_an_answer_and_a_long_one_is_cut() {
        let error = told(json!({"content": [{"type": "text", "text": "no such file"}], "isError": true}));
        assert_eq!((error.status, error.code), (ToolStatus::Error, Some("TOOL_FAILED")));
        assert_eq!(error.content, "TOOL_FAILED: no such file");
        let long = told(json!({"content": [{"type": "text", "text": "x".repeat(MAX_RESULT_CHARS + 1)}]}));
        assert!(long.content.contains("[cut after"), "{}", long.content.len());
    }
}

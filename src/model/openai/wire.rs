//! The JSON of Chat Completions answers, read leniently and borrowed from the event it came in.
//!
//! **Invariant:** a field that is missing, null, unknown or of an odd type never makes a chunk unreadable.
//! **Invariant:** reading a piece of text copies nothing but texts with escapes.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    model::lenient::{Count, Text, details, number},
    value::Usage,
};

/// A chunk of a streamed answer, or a whole answer.
#[derive(Debug, Deserialize)]
pub(super) struct Answer<'a> {
    #[serde(borrow, default)]
    pub(super) model: Text<'a>,
    #[serde(borrow, default)]
    pub(super) choices: Option<Vec<Choice<'a>>>,
    #[serde(borrow, default)]
    pub(super) usage: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) error: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Choice<'a> {
    #[serde(borrow, default)]
    index: Option<&'a RawValue>,
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
    #[serde(borrow, default)]
    message: Option<Delta<'a>>,
    #[serde(borrow, default)]
    pub(super) finish_reason: Text<'a>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Delta<'a> {
    #[serde(borrow, default)]
    pub(super) content: Text<'a>,
    #[serde(borrow, default)]
    pub(super) refusal: Text<'a>,
    #[serde(borrow, default)]
    pub(super) tool_calls: Option<Vec<CallDelta<'a>>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct CallDelta<'a> {
    #[serde(borrow, default)]
    index: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) id: Text<'a>,
    #[serde(borrow, default)]
    pub(super) function: Option<FunctionDelta<'a>>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct FunctionDelta<'a> {
    #[serde(borrow, default)]
    pub(super) name: Text<'a>,
    #[serde(borrow, default)]
    arguments: Option<&'a RawValue>,
}

impl<'a> Answer<'a> {
    /// The error in this answer, as JSON; `null`, `false`, `""` and `{}` are none.
    pub(super) fn complaint(&self) -> Option<serde_json::Value> {
        let error = self.error?.get();
        let none = matches!(error, "null" | "false" | "\"\"" | "{}");
        (!none).then(|| serde_json::from_str(error).expect("raw values are valid JSON"))
    }

    /// The first choice; more are never asked for.
    pub(super) fn choice(self) -> Option<Choice<'a>> {
        let mut choices = self.choices?.into_iter();
        choices.find(|choice| number(choice.index).unwrap_or(0) == 0)
    }
}

impl<'a> Choice<'a> {
    /// What is new: the delta of a chunk, or the message of a whole answer.
    pub(super) fn take_news(&mut self) -> Delta<'a> {
        self.delta.take().or_else(|| self.message.take()).unwrap_or_default()
    }
}

impl CallDelta<'_> {
    pub(super) fn index(&self) -> Option<u32> {
        number(self.index)
    }
}

impl<'a> FunctionDelta<'a> {
    /// The piece of the arguments' JSON text; some servers send the object itself.
    pub(super) fn arguments(&self) -> Cow<'a, str> {
        match self.arguments.map(RawValue::get) {
            None | Some("null") => Cow::Borrowed(""),
            Some(text) if text.starts_with('"') => {
                serde_json::from_str::<Text<'a>>(text).expect("raw values are valid JSON").0
            }
            Some(json) => Cow::Borrowed(json),
        }
    }
}

/// Tokens as the provider counts them.
#[derive(Default, Deserialize)]
struct WireUsage {
    #[serde(default)]
    prompt_tokens: Option<Count>,
    #[serde(default)]
    completion_tokens: Option<Count>,
    #[serde(default)]
    total_tokens: Option<Count>,
    #[serde(default)]
    prompt_tokens_details: Option<Details>,
    #[serde(default)]
    completion_tokens_details: Option<Details>,
}

#[derive(Default, Deserialize)]
struct Details {
    #[serde(default)]
    audio_tokens: Option<Count>,
    #[serde(default)]
    cached_tokens: Option<Count>,
    #[serde(default)]
    reasoning_tokens: Option<Count>,
}

/// The usage in a chunk; `None` when it is null, empty or not to be understood.
pub(super) fn usage(raw: &RawValue) -> Option<Usage> {
    let wire: WireUsage = serde_json::from_str(raw.get()).ok()?;
    if wire.prompt_tokens.is_none() && wire.completion_tokens.is_none() && wire.total_tokens.is_none() {
        return None;
    }
    let count = |count: Option<Count>| count.map_or(0, |count| count.0);
    let (input_tokens, output_tokens) = (count(wire.prompt_tokens), count(wire.completion_tokens));
    let input = wire.prompt_tokens_details.unwrap_or_default();
    let output = wire.completion_tokens_details.unwrap_or_default();
    Some(Usage {
        input_tokens,
        output_tokens,
        total_tokens: wire.total_tokens.map_or(input_tokens + output_tokens, |total| total.0),
        input_token_details: details([("audio", input.audio_tokens), ("cache_read", input.cached_tokens)]),
        output_token_details: details([
            ("audio", output.audio_tokens),
            ("reasoning", output.reasoning_tokens),
        ]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(json: &str) -> String {
        let mut choice = serde_json::from_str::<Answer<'_>>(json).expect(json).choice().expect(json);
        choice.take_news().content.0.into_owned()
    }

    #[test]
    fn odd_fields_do_not_matter() {
        for choice in [
            r#"{"delta":{"content":"hi"}}"#,
            r#"{"index":0,"delta":{"role":"","content":"hi","tool_calls":null,"refusal":null,"new":[{}]}}"#,
            r#"{"index":"0","delta":{"content":[{"type":"text","text":"h"},"i",{"type":"image","image":{}}]}}"#,
            r#"{"index":null,"delta":null,"message":{"content":"h\u0069"},"finish_reason":7}"#,
        ] {
            assert_eq!(
                text(&format!(r#"{{"id":null,"model":null,"choices":[{choice}],"usage":null}}"#)),
                "hi"
            );
        }
        for no_text in ["null", "true", "-1", "{}", r#"{"text":null}"#, "[]"] {
            text(&format!(r#"{{"choices":[{{"delta":{{"content":{no_text}}}}}]}}"#));
        }
    }

    #[test]
    fn plain_text_is_borrowed() {
        let json = r#"{"choices":[{"delta":{"content":"plain ünï"}}]}"#;
        let mut choice = serde_json::from_str::<Answer<'_>>(json).expect("valid").choice().expect("one");
        assert!(matches!(choice.take_news().content.0, Cow::Borrowed("plain ünï")));
    }

    #[test]
    fn usage_is_what_can_be_understood() {
        let usage = |json: &str| {
            let raw: &RawValue = serde_json::from_str(json).expect("valid");
            usage(raw).map(|usage| (usage.input_tokens, usage.output_tokens, usage.total_tokens))
        };
        assert_eq!(usage("{}"), None);
        assert_eq!(usage("null"), None);
        assert_eq!(usage(r#"{"prompt_tokens":3.0,"completion_tokens":4}"#), Some((3, 4, 7)));
        assert_eq!(usage(r#"{"prompt_tokens":3,"total_tokens":9,"cost":null}"#), Some((3, 0, 9)));
        assert_eq!(usage(r#"{"prompt_tokens":-3}"#), None);
    }
}

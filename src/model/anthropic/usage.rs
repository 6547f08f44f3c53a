//! Tokens as Anthropic counts them, in LangChain's names. Pure.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    model::lenient::{Count, details},
    value::Usage,
};

/// What is known of the usage so far: the end of an answer counts again some of what its start has counted.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Counts {
    #[serde(default)]
    input_tokens: Option<Count>,
    #[serde(default)]
    output_tokens: Option<Count>,
    #[serde(default)]
    cache_read_input_tokens: Option<Count>,
    #[serde(default)]
    cache_creation_input_tokens: Option<Count>,
    #[serde(default)]
    cache_creation: Option<Lifetimes>,
    #[serde(default)]
    output_tokens_details: Option<OutputDetails>,
}

/// Tokens written to the cache, by how long they are kept.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct Lifetimes {
    #[serde(default)]
    ephemeral_5m_input_tokens: Option<Count>,
    #[serde(default)]
    ephemeral_1h_input_tokens: Option<Count>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct OutputDetails {
    #[serde(default)]
    thinking_tokens: Option<Count>,
}

impl Lifetimes {
    fn sum(self) -> u64 {
        number(self.ephemeral_5m_input_tokens) + number(self.ephemeral_1h_input_tokens)
    }
}

impl Counts {
    /// Takes newer counts; what cannot be understood changes nothing.
    pub(super) fn update(&mut self, raw: Option<&RawValue>) {
        let Some(new) = raw.and_then(|raw| serde_json::from_str::<Option<Self>>(raw.get()).ok()).flatten()
        else {
            return;
        };
        let written = new.cache_creation_input_tokens.map(|count| count.0);
        // A newer sum without its parts makes the older parts wrong.
        let parts = self.cache_creation.filter(|parts| written.is_none_or(|written| written == parts.sum()));
        *self = Self {
            input_tokens: new.input_tokens.or(self.input_tokens),
            output_tokens: new.output_tokens.or(self.output_tokens),
            cache_read_input_tokens: new.cache_read_input_tokens.or(self.cache_read_input_tokens),
            cache_creation_input_tokens: new.cache_creation_input_tokens.or(self.cache_creation_input_tokens),
            cache_creation: new.cache_creation.or(parts),
            output_tokens_details: new.output_tokens_details.or(self.output_tokens_details),
        };
    }

    /// LangChain's usage, in which the tokens of the cache are part of the input; `None` when nothing was
    /// counted.
    pub(super) fn usage(&self) -> Option<Usage> {
        if self.input_tokens.is_none() && self.output_tokens.is_none() {
            return None;
        }
        let parts = self.cache_creation.unwrap_or_default();
        let written = match parts.sum() {
            0 => self.cache_creation_input_tokens,
            _ => Some(Count(0)),
        };
        let input_tokens =
            number(self.input_tokens) + number(self.cache_read_input_tokens) + number(written) + parts.sum();
        let output_tokens = number(self.output_tokens);
        let thoughts = self.output_tokens_details.unwrap_or_default().thinking_tokens;
        Some(Usage {
            input_tokens,
            output_tokens,
            total_tokens: input_tokens + output_tokens,
            input_token_details: details([
                ("cache_read", self.cache_read_input_tokens),
                ("cache_creation", written),
                ("ephemeral_5m_input_tokens", parts.ephemeral_5m_input_tokens),
                ("ephemeral_1h_input_tokens", parts.ephemeral_1h_input_tokens),
            ]),
            output_token_details: details([("reasoning", thoughts)]),
        })
    }
}

fn number(count: Option<Count>) -> u64 {
    count.map_or(0, |count| count.0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::value::map_to_json;

    fn counted(all: &[Json]) -> Json {
        let mut counts = Counts::default();
        for usage in all {
            let raw = RawValue::from_string(usage.to_string()).expect("JSON");
            counts.update(Some(&raw));
        }
        counts.usage().map_or(Json::Null, |usage| map_to_json(&usage.to_map()))
    }

    #[test]
    fn tokens_of_the_cache_are_part_of_the_input() {
        let lifetimes = json!({"ephemeral_5m_input_tokens": 80, "ephemeral_1h_input_tokens": 70});
        assert_eq!(
            counted(&[json!({"input_tokens": 200, "output_tokens": 30, "cache_read_input_tokens": 10,
                "cache_creation_input_tokens": 150, "cache_creation": lifetimes})]),
            json!({"input_tokens": 360, "output_tokens": 30, "total_tokens": 390, "input_token_details":
                {"cache_read": 10, "cache_creation": 0, "ephemeral_5m_input_tokens": 80,
                 "ephemeral_1h_input_tokens": 70}})
        );
        assert_eq!(
            counted(&[json!({"input_tokens": 200, "output_tokens": 30, "cache_creation_input_tokens": 50})]),
            json!({"input_tokens": 250, "output_tokens": 30, "total_tokens": 280, "input_token_details":
                {"cache_creation": 50}})
        );
    }

    #[test]
    fn the_end_of_an_answer_corrects_its_start() {
        let start = json!({"input_tokens": 100, "output_tokens": 1, "cache_creation_input_tokens": 9,
            "cache_creation": {"ephemeral_5m_input_tokens": 9}});
        assert_eq!(
            counted(&[start, json!({"output_tokens": 8, "cache_creation_input_tokens": 0})]),
            json!({"input_tokens": 100, "output_tokens": 8, "total_tokens": 108,
                "input_token_details": {"cache_creation": 0}})
        );
    }

    #[test]
    fn what_is_no_count_changes_nothing() {
        assert_eq!(counted(&[json!(null), json!({"input_tokens": "x"}), json!([])]), Json::Null);
    }
}

//! What models cost: the table that comes with the program, and the operator's own in front of it.
//!
//! **Invariant:** a model that no entry names has no price; nothing is guessed from models that are called alike.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use serde::Deserialize;

use super::Error;
use crate::value::{Cost, Map, Rate, Usage, Value};

/// List prices as far as they are known.
const SHIPPED: &str = include_str!("prices.toml");
/// Most bytes of an operator's table: ten times the shipped one with every model there is.
const MAX_TABLE_BYTES: usize = 1 << 20;
/// Most models without a price that are told of: their names come with messages, and logs are kept.
const MAX_TOLD: usize = 100;

/// What the tokens of a model cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    input: Rate,
    output: Rate,
    cache_read: Rate,
    cache_write_5m: Rate,
    cache_write_1h: Rate,
}

/// Prices by provider and model.
#[derive(Clone, Debug)]
pub struct Prices {
    /// The operator's table, if there is one, and the shipped one.
    tables: Vec<Vec<Entry>>,
    /// Models without a price that somebody has been told of.
    told: Arc<Mutex<HashSet<String>>>,
}

#[derive(Clone, Debug)]
struct Entry {
    provider: String,
    models: Vec<String>,
    price: Price,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(default)]
    price: Vec<Row>,
}

/// Dollars per million tokens. What is read from or written to the provider's cache costs what input costs unless it
/// says otherwise.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    provider: String,
    models: Vec<String>,
    input: f64,
    output: f64,
    cache_read: Option<f64>,
    cache_write_5m: Option<f64>,
    cache_write_1h: Option<f64>,
    /// Where the price is from; for people.
    #[serde(rename = "source")]
    _source: Option<String>,
    /// When it was looked up; for people.
    #[serde(rename = "as_of")]
    _as_of: Option<String>,
}

impl Default for Prices {
    fn default() -> Self {
        Self { tables: vec![read(SHIPPED).expect("a test reads the shipped table")], told: Arc::default() }
    }
}

impl Prices {
    /// The shipped table behind the entries of `own`, TOML of the same shape. Fails with [`Error::Settings`], which says
    /// what is wrong with it.
    pub fn with(own: &str) -> Result<Self, Error> {
        let own = read(own).map_err(Error::Settings)?;
        let shipped = Self::default();
        Ok(Self { tables: std::iter::once(own).chain(shipped.tables).collect(), ..Self::default() })
    }

    /// The price of a model; `None` when nobody knows it. The operator's entries go before the shipped ones, within a
    /// table an exact name before a pattern, and a longer pattern before a shorter one.
    pub fn of(&self, provider: &str, model: &str) -> Option<&Price> {
        self.tables.iter().find_map(|table| nearest(table, provider, model))
    }

    /// Whether this model without a price is to be told of: once each, and as long as they are few.
    pub fn is_first_without(&self, provider: &str, model: &str) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.len() < MAX_TOLD && told.insert(format!("{provider}:{model}"))
    }
}

fn nearest<'a>(table: &'a [Entry], provider: &str, model: &str) -> Option<&'a Price> {
    let fits = |entry: &&Entry| entry.provider == provider;
    let named = table.iter().filter(fits).filter_map(|entry| {
        let best = entry.models.iter().filter_map(|pattern| fit(pattern, model)).max();
        best.map(|best| (best, &entry.price))
    });
    named.max_by_key(|(best, _)| *best).map(|(_, price)| price)
}

impl Price {
    /// What a call costs.
    pub fn cost(&self, usage: &Usage) -> Cost {
        let detail = |key: &str| number(&usage.input_token_details, key);
        let (read, hour) = (detail("cache_read"), detail("ephemeral_1h_input_tokens"));
        let written = detail("cache_creation").saturating_add(detail("ephemeral_5m_input_tokens"));
        let special = read.saturating_add(hour).saturating_add(written);
        let parts = [
            self.input.of(usage.input_tokens.saturating_sub(special)),
            self.cache_read.of(read),
            self.cache_write_5m.of(written),
            self.cache_write_1h.of(hour),
            self.output.of(usage.output_tokens),
        ];
        parts.into_iter().sum()
    }

    /// The most that a call of so many tokens may cost when nothing of it comes from the cache or goes there.
    pub fn most(&self, input: u64, output: u64) -> Cost {
        self.input.of(input).plus(self.output.of(output))
    }

    /// The same when all that is read may be written to the cache.
    pub fn most_written(&self, input: u64, output: u64) -> Cost {
        let rates = [self.input, self.cache_write_5m, self.cache_write_1h];
        let read = rates.iter().map(|rate| rate.of(input)).max().unwrap_or_default();
        read.plus(self.output.of(output))
    }
}

fn number(details: &Map, key: &str) -> u64 {
    match details.get(key) {
        Some(Value::Number(number)) => number.as_u64().unwrap_or_default(),
        Some(_) | None => 0,
    }
}

/// How well a pattern fits a name: its characters without `*`, or the greatest number when it is the name itself.
fn fit(pattern: &str, name: &str) -> Option<usize> {
    let Some((first, rest)) = pattern.split_once('*') else { return (pattern == name).then_some(usize::MAX) };
    let mut left = name.strip_prefix(first)?;
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        left = &left[left.find(part)? + part.len()..];
    }
    left.ends_with(last).then(|| pattern.len() - pattern.matches('*').count())
}

/// The entries of a table, or what is wrong with it.
fn read(text: &str) -> Result<Vec<Entry>, String> {
    if text.len() > MAX_TABLE_BYTES {
        return Err(format!("the table of prices has more than {MAX_TABLE_BYTES} bytes"));
    }
    let table: Table = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    table.price.into_iter().map(Row::entry).collect()
}

impl Row {
    fn entry(self) -> Result<Entry, String> {
        let name = format!("{}:{}", self.provider, self.models.first().map_or("", String::as_str));
        if self.provider.is_empty() || self.models.is_empty() || self.models.iter().any(String::is_empty) {
            return Err(format!("the price of {name:?} needs a provider and models"));
        }
        let rate = |what: &str, dollars: f64| {
            Rate::per_million(dollars).ok_or_else(|| {
                format!(
                    "{what} of {name:?} must be dollars from 0 on with six decimals at most; it is {dollars}"
                )
            })
        };
        let or_input = |what: &str, dollars: Option<f64>| rate(what, dollars.unwrap_or(self.input));
        let price = Price {
            input: rate("input", self.input)?,
            output: rate("output", self.output)?,
            cache_read: or_input("cache_read", self.cache_read)?,
            cache_write_5m: or_input("cache_write_5m", self.cache_write_5m)?,
            cache_write_1h: or_input("cache_write_1h", self.cache_write_1h.or(self.cache_write_5m))?,
        };
        Ok(Entry { provider: self.provider, models: self.models, price })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(input: u64, output: u64, details: &[(&str, u64)]) -> Usage {
        let detail = |(key, count): &(&str, u64)| (Arc::from(*key), Value::Number((*count).into()));
        Usage {
            input_tokens: input,
            output_tokens: output,
            total_tokens: input + output,
            input_token_details: details.iter().map(detail).collect(),
            ..Usage::default()
        }
    }

    fn cost(model: &str, usage: &Usage) -> Option<String> {
        let (provider, model) = model.split_once(':').expect("provider:model");
        Prices::default().of(provider, model).map(|price| price.cost(usage).to_string())
    }

    #[test]
    fn a_call_costs_what_its_tokens_cost() {
        let plain = usage(1_000_000, 1_000_000, &[]);
        assert_eq!(cost("openai:gpt-4o-mini", &plain).as_deref(), Some("0.75"));
        assert_eq!(cost("anthropic:claude-sonnet-4-5-20250929", &plain).as_deref(), Some("18"));
        assert_eq!(cost("scripted:anything", &plain).as_deref(), Some("0"));
        assert_eq!(cost("openai:gpt-4o", &usage(7, 3, &[])).as_deref(), Some("0.0000475"));
    }

    #[test]
    fn tokens_of_the_cache_have_prices_of_their_own() {
        let cached = usage(1_000, 10, &[("cache_read", 600), ("audio", 5)]);
        // 400 × 2.5 + 600 × 1.25 + 10 × 10 millionths.
        assert_eq!(cost("openai:gpt-4o", &cached).as_deref(), Some("0.00185"));
        let parts =
            [("cache_read", 100), ("ephemeral_5m_input_tokens", 200), ("ephemeral_1h_input_tokens", 300)];
        // 400 × 3 + 100 × 0.3 + 200 × 3.75 + 300 × 6 + 10 × 15 millionths.
        assert_eq!(
            cost("anthropic:claude-sonnet-4-5", &usage(1_000, 10, &parts)).as_deref(),
            Some("0.00393")
        );
        let whole = usage(1_000, 0, &[("cache_creation", 1_000)]);
        assert_eq!(cost("anthropic:claude-sonnet-4-5", &whole).as_deref(), Some("0.00375"));
        let wrong = usage(10, 0, &[("cache_read", 20)]);
        assert_eq!(cost("openai:gpt-4o", &wrong).as_deref(), Some("0.000025"), "never below nothing");
    }

    #[test]
    fn nothing_is_guessed_from_a_name() {
        for unknown in
            ["openai:gpt-4o-audio-preview", "openai:gpt-9", "azure:gpt-4o", "anthropic:claude-sonnet-4-9"]
        {
            assert_eq!(cost(unknown, &usage(1, 1, &[])), None, "{unknown}");
        }
    }

    #[test]
    fn the_operators_entries_go_first_and_the_nearest_name_wins() {
        let own = r#"
            [[price]]
            provider = "azure"
            models = ["*"]
            input = 1
            output = 1
            [[price]]
            provider = "azure"
            models = ["big-*"]
            input = 2
            output = 2
            [[price]]
            provider = "openai"
            models = ["gpt-4*"]
            input = 100
            output = 0
        "#;
        let prices = Prices::with(own).expect("valid");
        let input = |provider: &str, model: &str| {
            prices.of(provider, model).map(|price| price.cost(&usage(1_000_000, 0, &[])).to_string())
        };
        assert_eq!(input("azure", "x").as_deref(), Some("1"));
        assert_eq!(input("azure", "big-1").as_deref(), Some("2"));
        assert_eq!(input("openai", "gpt-4o").as_deref(), Some("100"));
        assert_eq!(input("openai", "o3").as_deref(), Some("2"), "the shipped ones stay");
    }

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, name, expected) in [
            ("a", "a", Some(usize::MAX)),
            ("a", "ab", None),
            ("*", "anything", Some(0)),
            ("a*", "a", Some(1)),
            ("a*c", "abc", Some(2)),
            ("a*c", "ab", None),
            ("a*b*c", "a-b-c", Some(3)),
            ("a*a", "a", None),
            ("*b*", "abc", Some(1)),
        ] {
            assert_eq!(fit(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_table_that_is_wrong_says_where() {
        let row = |rest: &str| format!("[[price]]\nprovider = \"p\"\nmodels = [\"m\"]\ninput = 1\n{rest}");
        for (own, complaint) in [
            (row(""), "missing field `output`"),
            (row("output = -1"), "output of \"p:m\" must be dollars from 0 on"),
            (row("output = 0.0000001"), "six decimals at most"),
            (row("output = 1\noutptu = 1"), "unknown field `outptu`"),
            (row("output = 1").replace("[\"m\"]", "[]"), "needs a provider and models"),
            ("x".repeat(MAX_TABLE_BYTES + 1), "more than"),
        ] {
            let error = Prices::with(&own).expect_err(complaint).to_string();
            assert!(error.contains(complaint), "{error}");
        }
    }
}

//! The providers that `MODEL_PROVIDERS` names, and what models cost.

use std::fs;

use super::{Problem, resolve::Settings, value::pair};
use crate::{
    graph::ModelApi,
    model::{Auth, Dialect, Prices, Provider, Quirk, limit::Limits},
};

/// What a provider speaks, by the word for it.
const DIALECTS: [(&str, Dialect); 3] = [
    ("chat_completions", Dialect::OpenAi(ModelApi::ChatCompletions)),
    ("responses", Dialect::OpenAi(ModelApi::Responses)),
    ("anthropic", Dialect::Anthropic),
];

/// How a key is sent, by the word for it.
const AUTHS: [(&str, Auth); 3] =
    [("bearer", Auth::Bearer), ("api-key", Auth::ApiKey), ("x-api-key", Auth::XApiKey)];

/// What a provider may differ in, by the word for it.
const QUIRKS: [(&str, Quirk); 4] = [
    ("max_completion_tokens", Quirk::MaxCompletionTokens),
    ("no_stream_options", Quirk::NoStreamOptions),
    ("no_response_format", Quirk::NoResponseFormat),
    ("strict_tools", Quirk::StrictTools),
];

/// The provider `name`; none when it has no address. What is wrong with it is added to `problems`.
pub(super) fn provider(settings: &Settings, name: &str, problems: &mut Vec<Problem>) -> Option<Provider> {
    let of = settings.of("MODEL_PROVIDERS", name);
    let base_url = of.text("_BASE_URL")?;
    let dialect = of.choice("_API", &DIALECTS).unwrap_or(Dialect::OpenAi(ModelApi::ChatCompletions));
    let usual = match dialect {
        Dialect::Anthropic => Auth::XApiKey,
        Dialect::OpenAi(_) => Auth::Bearer,
    };
    let mut provider = Provider {
        dialect,
        base_url,
        key: of.text("_API_KEY").map(Into::into),
        key_variable: of.variable("_API_KEY"),
        auth: of.choice("_AUTH", &AUTHS).unwrap_or(usual),
        query: Vec::new(),
        quirks: Default::default(),
        limits: limits(|suffix| of.count(suffix)),
    };
    for text in of.list("_QUERY") {
        match pair(&text) {
            Some(pair) => provider.query.push(pair),
            None => problems.push(Problem::new(
                &of.variable("_QUERY"),
                format!("must be name=value,…, and {text:?} is not"),
            )),
        }
    }
    for word in of.list("_QUIRKS") {
        match QUIRKS.iter().find(|(known, _)| *known == word) {
            Some((_, quirk)) => drop(provider.quirks.insert(*quirk)),
            None => {
                let known = QUIRKS.map(|(known, _)| known).join(", ");
                let message = format!("has no {word:?}; there are {known}");
                problems.push(Problem::new(&of.variable("_QUIRKS"), message));
            }
        }
    }
    Some(provider)
}

/// The operator's prices before the shipped ones. What is wrong with them is added to `problems`.
pub(super) fn prices(settings: &Settings, problems: &mut Vec<Problem>) -> Prices {
    let Some(path) = settings.path("MODEL_PRICES_FILE") else { return Prices::default() };
    let own = fs::read_to_string(&path).map_err(|error| format!("cannot be read: {error}"));
    let prices = own.and_then(|own| Prices::with(&own).map_err(|error| format!("cannot be used: {error}")));
    prices.unwrap_or_else(|problem| {
        problems.push(Problem::new("MODEL_PRICES_FILE", problem));
        Prices::default()
    })
}

/// What a provider allows; `of` has its settings by their last words. 0 is no limit.
pub(super) fn limits(of: impl Fn(&str) -> Option<u64>) -> Limits {
    let limit = |suffix: &str| of(suffix).filter(|limit| *limit > 0);
    Limits {
        requests_per_minute: limit("_RPM"),
        tokens_per_minute: limit("_TPM"),
        concurrent: limit("_MAX_CONCURRENT"),
    }
}

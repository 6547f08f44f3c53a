//! The providers that `MODEL_PROVIDERS` names, and what models cost.

use std::fs;

use super::{Problem, compose::variable, resolve::Settings};
use crate::{
    graph::ModelApi,
    model::{Auth, Dialect, Prices, Provider, Quirk, limit::Limits},
};

/// What a provider may differ in, by the word for it.
const QUIRKS: [(&str, Quirk); 4] = [
    ("max_completion_tokens", Quirk::MaxCompletionTokens),
    ("no_stream_options", Quirk::NoStreamOptions),
    ("no_response_format", Quirk::NoResponseFormat),
    ("strict_tools", Quirk::StrictTools),
];

/// The provider `name`; none when it has no address. What is wrong with it is added to `problems`.
pub(super) fn provider(settings: &Settings, name: &str, problems: &mut Vec<Problem>) -> Option<Provider> {
    let named = |suffix: &str| variable("MODEL_PROVIDERS", suffix, name);
    let of = |suffix: &str| settings.member(&named(suffix));
    let base_url = of("_BASE_URL")?;
    let dialect = match of("_API").as_deref() {
        Some("anthropic") => Dialect::Anthropic,
        Some("responses") => Dialect::OpenAi(ModelApi::Responses),
        Some(_) | None => Dialect::OpenAi(ModelApi::ChatCompletions),
    };
    let auth = match (of("_AUTH").as_deref(), dialect) {
        (Some("bearer"), _) => Auth::Bearer,
        (Some("api-key"), _) => Auth::ApiKey,
        (Some("x-api-key"), _) => Auth::XApiKey,
        (Some(_) | None, Dialect::Anthropic) => Auth::XApiKey,
        (Some(_) | None, Dialect::OpenAi(_)) => Auth::Bearer,
    };
    let mut provider = Provider {
        dialect,
        base_url,
        key: of("_API_KEY").map(Into::into),
        key_variable: named("_API_KEY"),
        auth,
        query: Vec::new(),
        quirks: Default::default(),
        limits: limits(|suffix| of(suffix)),
    };
    for pair in words(of("_QUERY")) {
        match pair.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => {
                provider.query.push((key.trim().to_owned(), value.trim().to_owned()));
            }
            Some(_) | None => problems
                .push(Problem::new(&named("_QUERY"), format!("must be name=value,…, and {pair:?} is not"))),
        }
    }
    for word in words(of("_QUIRKS")) {
        match QUIRKS.iter().find(|(known, _)| *known == word) {
            Some((_, quirk)) => drop(provider.quirks.insert(*quirk)),
            None => {
                let known = QUIRKS.map(|(known, _)| known).join(", ");
                problems.push(Problem::new(&named("_QUIRKS"), format!("has no {word:?}; there are {known}")));
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

/// What a provider allows; `of` has its settings by their last words. Resolve has refused what is no number.
pub(super) fn limits(of: impl Fn(&str) -> Option<String>) -> Limits {
    let limit = |suffix: &str| of(suffix)?.trim().parse().ok().filter(|limit| *limit > 0);
    Limits {
        requests_per_minute: limit("_RPM"),
        tokens_per_minute: limit("_TPM"),
        concurrent: limit("_MAX_CONCURRENT"),
    }
}

fn words(list: Option<String>) -> Vec<String> {
    let list = list.unwrap_or_default();
    list.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

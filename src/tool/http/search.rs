//! The built-in tool `web_search`: a search at a provider with Tavily's interface, answered with numbered sources.
//!
//! **Invariant:** the provider's address and key are the operator's; nothing of a message reaches them but the
//! arguments.

use std::time::Duration;

use async_trait::async_trait;
use reqwest::{Client, header::CONTENT_TYPE, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value as Json, json};
use url::Url;

use super::{
    CONNECT_LIMIT, POOL_IDLE,
    exchange::{MAX_ERROR_BODY_CHARS, broken_off},
    reply::{self, Body, Redaction},
};
use crate::{
    graph::Effect,
    model::ToolSpec,
    secrets::Secret,
    telemetry::{Gate, Pass},
    tool::{Answer, Call, Error, Tool, cut, shorten},
    value::{Map, Name, Value, map_to_json},
};

/// The name agents use.
pub const WEB_SEARCH: &str = "web_search";

/// The channel that gets the sources too, in graphs that have it.
const CITATIONS: &str = "citations";

/// Results of one search when the model does not say: about what fits beside a conversation.
const DEFAULT_RESULTS: u64 = 5;

/// Most results of one search; providers give no more.
const MAX_RESULTS: u64 = 20;

/// Longest query in characters: Tavily refuses more.
const MAX_QUERY_CHARS: usize = 400;

/// Most domains to search in, or not in.
const MAX_DOMAINS: usize = 20;

/// Characters of one extract.
const MAX_SNIPPET_CHARS: usize = 2_000;

/// Characters of a title and of an address.
const MAX_LINE_CHARS: usize = 500;

/// Most bytes read of an answer: twenty long extracts and what is not looked at.
const MAX_ANSWER_BYTES: u64 = 2 << 20;

const DESCRIPTION: &str = "Searches the web. Answers with numbered sources, each with its title, its address and an \
    extract. Cite what you use by its title and address.";

/// The operator's word on web search.
#[derive(Clone, Debug)]
pub struct SearchConfig {
    /// `WEB_SEARCH_URL`: where searches are posted.
    pub url: Url,
    /// `WEB_SEARCH_API_KEY`: sent as a bearer token; there is no search without one.
    pub key: Option<SecretString>,
    /// `WEB_SEARCH_TIMEOUT_SECONDS`: most time of one search.
    pub timeout: Duration,
}

impl Default for SearchConfig {
    fn default() -> Self {
        let url = Url::parse("https://api.tavily.com/search").expect("it is an address");
        Self { url, key: None, timeout: Duration::from_secs(30) }
    }
}

/// The client of searches; its address is the operator's, so private ones are as good as others.
#[derive(Clone, Debug)]
pub(in crate::tool) struct Searcher {
    client: Client,
    config: SearchConfig,
    calls: Gate,
}

impl Searcher {
    pub(in crate::tool) fn new(config: SearchConfig, calls: Gate) -> Result<Self, Error> {
        let client = Client::builder()
            .user_agent(super::USER_AGENT)
            .redirect(redirect::Policy::none())
            .referer(false)
            .pool_idle_timeout(POOL_IDLE)
            .connect_timeout(CONNECT_LIMIT)
            .build()
            .map_err(|error| Error::Client(error.into()))?;
        Ok(Self { client, config, calls })
    }

    fn redaction(&self) -> Redaction {
        Redaction::of(self.config.key.clone().map(Secret::from).iter())
    }
}

/// The tool.
pub(in crate::tool) struct WebSearch {
    spec: ToolSpec,
    searcher: Searcher,
}

/// What a provider answers, as far as it is looked at.
#[derive(Deserialize)]
struct Found {
    #[serde(default)]
    answer: Option<String>,
    results: Vec<Source>,
}

/// One page that was found.
#[derive(Deserialize)]
struct Source {
    #[serde(default)]
    title: Option<String>,
    url: String,
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    published_date: Option<String>,
}

impl WebSearch {
    pub(in crate::tool) fn new(searcher: Searcher) -> Self {
        Self { spec: spec(), searcher }
    }

    async fn answer(&self, call: &Call<'_>) -> Result<Answer, Error> {
        let Searcher { client, config, .. } = &self.searcher;
        let key = config.key.as_ref().ok_or(Error::SearchOff)?;
        let asked = client
            .post(config.url.clone())
            .timeout(config.timeout)
            .bearer_auth(key.expose_secret())
            .header(CONTENT_TYPE, "application/json")
            .body(body(call.args).to_string());
        let host = config.url.host_str().unwrap_or_default();
        let failed = |error| broken_off(error, host, config.timeout);
        let response = asked.send().await.map_err(failed)?;
        let status = response.status();
        let text = match reply::read(response, MAX_ANSWER_BYTES).await.map_err(failed)? {
            Body::Text { text, complete: true } => self.searcher.redaction().apply(text),
            Body::Text { complete: false, .. } => {
                return Err(Error::Failed(format!("the answer is above {MAX_ANSWER_BYTES} bytes")));
            }
            Body::Binary { kind, .. } => {
                return Err(Error::Failed(format!("the answer is no text but {kind}")));
            }
        };
        if !status.is_success() {
            let text = shorten(text, MAX_ERROR_BODY_CHARS);
            return Err(Error::Failed(format!("the search provider answered {status}\n{text}")));
        }
        let found: Found = serde_json::from_str(&text).map_err(|error| {
            Error::Failed(format!("the answer of the search provider cannot be read: {error}"))
        })?;
        Ok(told(found, query(call.args), wanted(call.args)))
    }
}

#[async_trait]
impl Tool for WebSearch {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    fn effect(&self) -> Effect {
        Effect::Read
    }

    async fn turn(&self) -> Option<Pass> {
        Some(self.searcher.calls.enter().await)
    }

    async fn call(&self, call: Call<'_>) -> Answer {
        let answer = self.answer(&call).await.unwrap_or_else(Answer::from);
        tracing::debug!(status = answer.status.as_str(), "web search answered");
        Answer { content: cut(self.searcher.redaction().apply(answer.content)), ..answer }
    }
}

/// What a model is told of the tool.
pub(in crate::tool) fn spec() -> ToolSpec {
    let domains = |description: &str| json!({"type": "array", "items": {"type": "string"}, "maxItems": MAX_DOMAINS, "description": description});
    let parameters = json!({
        "type": "object",
        "properties": {
            "query": {"type": "string", "minLength": 1, "maxLength": MAX_QUERY_CHARS,
                "description": "What to look for, in a few words."},
            "max_results": {"type": "integer", "minimum": 1, "maximum": MAX_RESULTS,
                "description": format!("How many sources; {DEFAULT_RESULTS} when left out.")},
            "topic": {"enum": ["general", "news", "finance"], "description": "Where to look; general when left out."},
            "time_range": {"enum": ["day", "week", "month", "year"], "description": "How old a source may be."},
            "include_domains": domains("Only sources of these domains."),
            "exclude_domains": domains("No sources of these domains.")
        },
        "required": ["query"],
        "additionalProperties": false
    });
    ToolSpec { name: WEB_SEARCH.into(), description: DESCRIPTION.into(), parameters: parameters.into() }
}

fn query(args: &Map) -> &str {
    args.get("query").and_then(Value::as_str).unwrap_or_default()
}

fn wanted(args: &Map) -> usize {
    let wanted = args.get("max_results").map(Value::to_json).and_then(|count| count.as_u64());
    usize::try_from(wanted.unwrap_or(DEFAULT_RESULTS).min(MAX_RESULTS)).unwrap_or(usize::MAX)
}

/// The arguments, which have passed the schema, are what providers take.
fn body(args: &Map) -> Json {
    let mut body = map_to_json(args);
    if let Json::Object(body) = &mut body {
        body.entry("max_results").or_insert(DEFAULT_RESULTS.into());
    }
    body
}

/// The sources as the model reads them, and as data for graphs that keep them.
fn told(found: Found, query: &str, wanted: usize) -> Answer {
    let mut text = String::new();
    if let Some(answer) = found.answer.as_deref().map(str::trim).filter(|answer| !answer.is_empty()) {
        text.push_str(&shorten(answer.to_owned(), MAX_SNIPPET_CHARS));
    }
    let mut citations = Vec::new();
    for (index, source) in found.results.into_iter().take(wanted).enumerate() {
        let title = source.title.map(|title| one_line(&title)).filter(|title| !title.is_empty());
        let url = one_line(&source.url);
        let title = title.unwrap_or_else(|| url.clone());
        let snippet = source.content.unwrap_or_default();
        let snippet = shorten(snippet.trim().replace('\0', "\u{FFFD}"), MAX_SNIPPET_CHARS);
        let dated = source.published_date.map(|date| format!(" ({})", one_line(&date))).unwrap_or_default();
        let gap = if text.is_empty() { "" } else { "\n\n" };
        text.push_str(&format!("{gap}[{}] {title}{dated}\n{url}\n{snippet}", index + 1));
        citations.push(Value::map([
            ("title", Value::from(title.as_str())),
            ("url", Value::from(url.as_str())),
            ("snippet", Value::from(snippet.as_str())),
            ("query", Value::from(query)),
        ]));
    }
    if citations.is_empty() {
        let gap = if text.is_empty() { "" } else { "\n\n" };
        text.push_str(&format!("{gap}No sources were found for \"{query}\"."));
    }
    let writes = vec![(Name::from(CITATIONS), Value::list(citations))];
    Answer { writes, ..Answer::success(text) }
}

/// A title or an address: what a page says of itself must not look like another source.
fn one_line(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    shorten_line(text.trim())
}

fn shorten_line(text: &str) -> String {
    text.chars().take(MAX_LINE_CHARS).collect()
}

/// The twin of the tool: one source, whatever is looked for.
pub(in crate::tool) struct SearchTwin(ToolSpec);

impl SearchTwin {
    pub(in crate::tool) fn new() -> Self {
        Self(spec())
    }
}

#[async_trait]
impl Tool for SearchTwin {
    fn spec(&self) -> &ToolSpec {
        &self.0
    }

    fn effect(&self) -> Effect {
        Effect::Read
    }

    async fn call(&self, call: Call<'_>) -> Answer {
        let source = Source {
            title: Some("What was found".into()),
            url: "https://found.example.com/".into(),
            content: Some(format!("A page about {}.", query(call.args))),
            published_date: None,
        };
        told(Found { answer: None, results: vec![source] }, query(call.args), wanted(call.args))
    }
}

#[cfg(test)]
mod tests;

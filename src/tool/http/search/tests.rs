use expect_test::expect;

use super::*;
use crate::{ids::UnixNanos, telemetry::Limited, tool::http::tests as servers, value::State};

fn search_config(url: &str, key: Option<&str>) -> SearchConfig {
    SearchConfig {
        url: Url::parse(url).expect("an address"),
        key: key.map(SecretString::from),
        ..SearchConfig::default()
    }
}

async fn search(config: SearchConfig, args: Json) -> Answer {
    let tool = WebSearch::new(Searcher::new(config, Gate::new(Limited::ToolCalls, 1)).expect("a client"));
    let (args, state) = (Value::from(args), State::new());
    let args = args.as_map().expect("an object");
    tool.call(Call { id: "c", args, state: &state, now: UnixNanos(0), idempotency_key: "k", limit: None })
        .await
}

fn tool_args(args: Json) -> Result<(), String> {
    crate::tool::validate_args(&spec(), Value::from(args).as_map().expect("an object"))
}

#[tokio::test]
async fn sources_are_numbered_and_kept_as_data() {
    let found = json!({"query": "moon", "answer": "Far.", "results": [
        {"title": "Moon\nFacts", "url": "https://moon.example.com/", "content": " 384,400 km. ", "score": 0.9},
        {"title": "", "url": "https://b.example.com/", "content": null, "published_date": "2026-01-02"},
        {"title": "One too many", "url": "https://c.example.com/", "content": "x"}
    ]});
    let mut server = servers::serve_json("200 OK", &found).await;
    let url = format!("http://127.0.0.1:{}/search", server.port);
    let args = json!({"query": "moon", "max_results": 2, "topic": "news"});
    let answer = search(search_config(&url, Some("hunter2-key")), args).await;
    expect![[r"
        Far.

        [1] Moon Facts
        https://moon.example.com/
        384,400 km.

        [2] https://b.example.com/ (2026-01-02)
        https://b.example.com/
    "]]
    .assert_eq(&answer.content);
    let request = server.requests.recv().await.expect("a request");
    assert!(request.starts_with("POST /search HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("\r\nauthorization: Bearer hunter2-key\r\n"), "{request}");
    assert!(request.ends_with(r#"{"query":"moon","max_results":2,"topic":"news"}"#), "{request}");
    let [(channel, citations)] = answer.writes.as_slice() else { panic!("{:?}", answer.writes) };
    assert_eq!(&**channel, "citations");
    assert_eq!(
        citations.to_json()[0],
        json!({"title": "Moon Facts", "url": "https://moon.example.com/", "snippet": "384,400 km.", "query": "moon"})
    );
}

#[tokio::test]
async fn a_provider_that_fails_is_said_without_the_key() {
    let mut server = servers::serve_json("401 Unauthorized", &json!({"detail": "no key hunter2-key"})).await;
    let url = format!("http://127.0.0.1:{}/", server.port);
    let answer = search(search_config(&url, Some("hunter2-key")), json!({"query": "x"})).await;
    let expected =
        "TOOL_FAILED: the search provider answered 401 Unauthorized\n{\"detail\":\"no key ***REDACTED***\"}";
    assert_eq!(answer.content, expected);
    assert!(server.requests.recv().await.is_some());
    let server = servers::serve_json("200 OK", &json!({"results": "none"})).await;
    let url = format!("http://127.0.0.1:{}/", server.port);
    let answer = search(search_config(&url, Some("hunter2-key")), json!({"query": "x"})).await;
    assert!(answer.content.starts_with("TOOL_FAILED: the answer of the search provider cannot be read"));
}

#[tokio::test]
async fn without_a_key_nothing_is_asked_and_without_sources_it_is_said() {
    let mut server = servers::serve_json("200 OK", &json!({"results": []})).await;
    let url = format!("http://127.0.0.1:{}/", server.port);
    let off = search(search_config(&url, None), json!({"query": "x"})).await;
    assert_eq!(off.content, "TOOL_SEARCH_OFF: web search is off: WEB_SEARCH_API_KEY is not set");
    assert!(server.requests.try_recv().is_err());
    let none = search(search_config(&url, Some("hunter2-key")), json!({"query": "x"})).await;
    assert_eq!(none.content, "No sources were found for \"x\".");
}

#[test]
fn arguments_are_checked_before_anything_is_asked() {
    assert_eq!(tool_args(json!({"query": "x", "max_results": 20, "time_range": "week"})), Ok(()));
    for wrong in [
        json!({}),
        json!({"query": ""}),
        json!({"query": "x", "max_results": 21}),
        json!({"query": "x", "topic": "weather"}),
        json!({"query": "x", "api_key": "y"}),
    ] {
        assert!(tool_args(wrong.clone()).is_err(), "{wrong}");
    }
}

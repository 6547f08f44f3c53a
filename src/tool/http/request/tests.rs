use expect_test::{Expect, expect};
use serde_json::{Value as Json, json};

use super::*;

fn definition(json: Json) -> Definition {
    serde_json::from_value(json).expect("a definition")
}

fn fill(definition_json: Json, args: Json) -> Result<Filled, Error> {
    let template = RequestTemplate::compile(&definition(definition_json)).expect("no mistakes");
    let args = Value::from(args).as_map().expect("an object").clone();
    template.fill(&args, |name| (name == "KEY").then_some("hunter2"))
}

fn url(template: &str, args: Json) -> String {
    match fill(json!({"url": template}), args) {
        Ok(filled) => filled.url.to_string(),
        Err(error) => format!("{}: {error}", error.code()),
    }
}

fn check_mistakes(json: Json, expected: Expect) {
    let mistakes = RequestTemplate::compile(&definition(json)).expect_err("mistakes");
    expected.assert_eq(&mistakes.join("\n"));
}

#[test]
fn arguments_are_percent_encoded() {
    let template = "https://api.example.com/users/{{ name }}/posts?q={{ q }}&page={{ page + 1 }}";
    let args = json!({"name": "a/b?c#d", "q": "x&y=z é{{ name }}", "page": 1});
    expect![
        "https://api.example.com/users/a%2Fb%3Fc%23d/posts?q=x%26y%3Dz%20%C3%A9%7B%7B%20name%20%7D%7D&page=2"
    ]
    .assert_eq(&url(template, args));
}

#[test]
fn nested_arguments_are_percent_encoded_too() {
    let template = "https://api.example.com/?{% for k, v in filters|items %}{{ k }}={{ v[0] }}&{% endfor %}";
    expect!["https://api.example.com/?a%26b=c%26d&"]
        .assert_eq(&url(template, json!({"filters": {"a&b": ["c&d"]}})));
}

#[test]
fn an_argument_never_changes_the_host() {
    for evil in [
        "@evil.org",
        "//evil.org/",
        "\\\\evil.org",
        ":80@evil.org",
        ".evil.org",
        "?@evil.org",
        "\t//evil.org",
    ] {
        for template in [
            "https://api.example.com/{{ x }}",
            "https://api.example.com?{{ x }}",
            "https://api.example.com#{{ x }}",
        ] {
            let url = url(template, json!({"x": evil}));
            assert!(url.starts_with("https://api.example.com/"), "{template} {evil}: {url}");
        }
    }
}

#[test]
fn an_argument_cannot_climb_in_the_path() {
    for (template, args) in [
        ("https://api.example.com/users/{{ x }}/keys", json!({"x": ".."})),
        ("https://api.example.com/users/{{ x }}", json!({"x": "."})),
        ("https://api.example.com/users/{{ x }}{{ y }}/keys", json!({"x": ".", "y": "."})),
        ("https://api.example.com/users/{{ x }}%2e/keys", json!({"x": "."})),
        ("https://api.example.com/users/{{ x }}\n/keys", json!({"x": ".."})),
    ] {
        assert!(url(template, args).starts_with("TOOL_ARGUMENTS"), "{template}");
    }
    assert_eq!(
        url("https://api.example.com/a?v={{ x }}", json!({"x": ".."})),
        "https://api.example.com/a?v=.."
    );
    assert_eq!(url("https://api.example.com/{{ x }}", json!({"x": "a..b"})), "https://api.example.com/a..b");
}

#[test]
fn a_host_made_of_arguments_is_a_mistake() {
    for url in [
        "https://{{ host }}/x",
        "https://{{host}}",
        "https://api.{{ x }}.com/",
        "https://api.example.com{{ path }}",
        "https://api.example.com:{{ port }}/",
        "https://{% if x %}a.org{% endif %}/",
        "https://a.org{# #}/",
        "https://user:pw@a.org/",
        "https://a.org@{{ x }}",
        "https://a%2eorg/",
        "{{ url }}",
        "ftp://a.org/",
        "a.org/x",
        "//a.org/",
        "https:/a.org",
        "https:///x",
        "https://",
        "https://a b.org/",
        "file:///etc/passwd",
        "https://a.org/{{ unclosed",
        "https://a.org/{{ secrets.KEY }}",
        "javascript://a.org/",
    ] {
        assert!(RequestTemplate::compile(&definition(json!({"url": url}))).is_err(), "{url}");
    }
}

#[test]
fn every_mistake_is_reported_at_once() {
    check_mistakes(
        json!({
            "method": "TRACE", "url": "https://{{ host }}/",
            "headers": {"Host": "x", "bad name": "x", "X-All": "{{ secrets }}", "X-Ok": "{{ secrets.KEY }}",
                "X-Bad": {"secret": "../key"}},
            "body": {"key": "{{ secrets.KEY }}"}, "timeout_seconds": 0, "max_response_bytes": 0,
        }),
        expect![[r#"
            method must be GET, HEAD, POST, PUT, PATCH or DELETE
            the host in url must be written out: arguments may only stand in its path and query
            the header 'Host' is set by the client and cannot be defined
            'bad name' is no header name
            the header 'X-All' may insert a secret only as {{ secrets.NAME }}, unchanged
            the secret of the header 'X-Bad' needs a name of letters, digits, '_', '-' and '.'
            body must not name secrets; they may only stand in headers
            timeout_seconds must be above 0
            max_response_bytes must be above 0"#]],
    );
    check_mistakes(
        json!({"url": "https://a.org/", "body": "x"}),
        expect!["GET carries no body; name another method, or leave the body out"],
    );
    check_mistakes(
        json!({"url": "https://a.org/", "timeout_seconds": -1.0}),
        expect!["timeout_seconds must be above 0"],
    );
}

#[test]
fn a_json_body_keeps_the_types_of_whole_expressions() {
    let body = json!({
        "limit": "{{ limit }}", "tags": "{{ tags }}", "text": "n={{ limit }}", "fixed": [1, true, null],
        "quote": "{{ text }}",
    });
    let args = json!({"limit": 5, "tags": ["a", "b"], "text": "say \"hi\", {{ limit }}"});
    let filled =
        fill(json!({"method": "post", "url": "https://a.org/", "body": body}), args).expect("filled");
    expect![[
        r#"{"limit":5,"tags":["a","b"],"text":"n=5","fixed":[1,true,null],"quote":"say \"hi\", {{ limit }}"}"#
    ]]
    .assert_eq(&filled.body.expect("a body"));
    assert_eq!(filled.headers["content-type"], "application/json");
}

#[test]
fn the_type_of_a_text_body_follows_its_text_unless_the_definition_says_it() {
    let kind = |body: &str, headers: Json| {
        let json = json!({"method": "PUT", "url": "https://a.org/", "body": body, "headers": headers});
        let filled = fill(json, json!({"x": 1})).expect("filled");
        filled.headers["content-type"].to_str().expect("text").to_owned()
    };
    assert_eq!(kind("{\"x\": {{ x }}}", json!({})), "application/json");
    assert_eq!(kind("x is {{ x }}", json!({})), "text/plain; charset=utf-8");
    assert_eq!(
        kind("x={{ x }}", json!({"Content-Type": "application/x-www-form-urlencoded"})),
        "application/x-www-form-urlencoded"
    );
}

#[test]
fn headers_get_arguments_and_only_the_secrets_they_name() {
    let headers = json!({"Authorization": "Bearer {{ secrets.KEY }}", "X-Name": "{{ args['user-id'] }}",
        "X-Key": {"secret": "KEY"}});
    let filled = fill(
        json!({"url": "https://a.org/", "headers": headers}),
        json!({"user-id": "u 1", "secrets": "mine"}),
    );
    let filled = filled.expect("filled");
    assert_eq!(filled.headers["authorization"], "Bearer hunter2");
    assert!(filled.headers["authorization"].is_sensitive() && !format!("{filled:?}").contains("hunter2"));
    assert_eq!(filled.headers["x-name"], "u 1");
    assert_eq!(filled.headers["x-key"], "hunter2");
    assert!(filled.headers["x-key"].is_sensitive());
}

#[test]
fn a_header_cannot_be_split_by_an_argument() {
    let headers = json!({"X-Name": "{{ name }}"});
    let result =
        fill(json!({"url": "https://a.org/", "headers": headers}), json!({"name": "a\r\nHost: evil.org"}));
    assert_eq!(result.map(|_| ()).map_err(|error| error.code()), Err("TOOL_ARGUMENTS"));
}

#[test]
fn a_missing_argument_is_an_error_that_says_where() {
    let text = url("https://a.org/{{ nope }}", json!({}));
    assert!(text.starts_with("TOOL_ARGUMENTS: url: "), "{text}");
}

#[test]
fn a_body_stops_growing_at_its_limit() {
    let http = json!({"method": "POST", "url": "https://a.org/", "body": vec!["{{ x }}"; 20_000]});
    let result = fill(http, json!({"x": "x".repeat(100_000)}));
    let text = result.map(|_| ()).expect_err("too large").to_string();
    assert_eq!(text, "the body of the request is above 1048576 bytes");
}

#[test]
fn a_secret_is_sent_whole_or_not_at_all() {
    for value in [
        "{{ secrets.KEY|upper }}",
        "{{ secrets.KEY[:3] }}",
        "{{ secrets['KEY'] }}",
        "{{ secrets }}",
        "{% if secrets.KEY %}x{% endif %}",
        "{% for s in secrets %}{{ s }}{% endfor %}",
        "{{ secrets.KEY }} {{ secrets.KEY[0] }}",
        "{{ 'x' ~ secrets.KEY }}",
    ] {
        let http = json!({"url": "https://a.org/", "headers": {"X-Key": value}});
        assert!(RequestTemplate::compile(&definition(http)).is_err(), "{value}");
    }
    let headers = json!({"X-Key": "a {{secrets.KEY}} b {{- secrets.KEY -}} c"});
    let filled = fill(json!({"url": "https://a.org/", "headers": headers}), json!({})).expect("filled");
    assert_eq!(filled.headers["x-key"], "a hunter2 bhunter2c");
}

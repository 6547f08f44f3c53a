//! Values that are secret by the name beside them: `password=…`, `Authorization: …`, `"api_key": "…"`.
//!
//! Only for what this program reports about its work, never for what people own: a channel may be called `token`.

use std::{borrow::Cow, sync::LazyLock};

use regex::{Captures, Regex};
use serde_json::Value as Json;

use super::REDACTED;

/// The names, and what longer names end with behind a `_`.
const NAMES: [&str; 6] = ["api_key", "apikey", "password", "token", "secret", "authorization"];

/// Shortest value behind a colon; `token: none` and the like are sentences.
const SHORTEST_SAID: usize = 8;

/// Shortest word behind `Bearer` or `Basic` that is taken for credentials wherever it stands.
const SHORTEST_CREDENTIALS: usize = 16;

/// Whether the value of a field or a variable of that name is secret: `password`, `DB_PASSWORD`, `x-api-key`,
/// `accessToken`; not `max_tokens`.
pub fn is_sensitive(name: &str) -> bool {
    let mut words = String::with_capacity(name.len() + 4);
    let mut was_lower = false;
    for c in name.chars() {
        if c.is_ascii_uppercase() && was_lower {
            words.push('_');
        }
        was_lower = c.is_ascii_lowercase() || c.is_ascii_digit();
        words.push(if matches!(c, '-' | '.' | ' ') { '_' } else { c.to_ascii_lowercase() });
    }
    let ends =
        |name: &str| words.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('_'));
    NAMES.iter().any(|name| ends(name))
}

/// Replaces the values of fields whose names are sensitive, at any depth.
pub fn hide_named(json: &mut Json) {
    match json {
        Json::Array(items) => items.iter_mut().for_each(hide_named),
        Json::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Json::Null | Json::Bool(_) => {}
                    _ if is_sensitive(name) => *value = REDACTED.into(),
                    Json::Array(_) | Json::Object(_) => hide_named(value),
                    Json::String(_) | Json::Number(_) => {}
                }
            }
        }
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}

/// `text` without the values that stand beside a name, a scheme of authorization, or a user in an address.
pub(super) fn hide_in_text(text: &str) -> Cow<'_, str> {
    static NAMED: LazyLock<Regex> = LazyLock::new(|| {
        let name = r#"[\w-]*(?:api[_-]?key|password|token|secret|authorization)"#;
        Regex::new(&format!(
            r#"(?ix)
            (?<quoted> {name} \\?["'] \s* [:=] \s* \\?["'] ) (?<in_quotes> [^"'\\]+ )
            | (?<given> \b {name} = \\?["']? ) (?<value> [^\s"'&;,)}}\]\\=] [^\s"'&;,)}}\]\\]* )
            | (?<said> \b {name} :\ ? (?<scheme> (?:bearer|basic|token) \s+ )? ) (?<word> [^\s"'`&;,)}}\]\\]+ )
            | (?<scheme_alone> \b (?:bearer|basic) \s+ ) (?<credentials> [\w.~+/=-]+ )
            | (?<user> \b [a-z][a-z0-9+.-]* :// [^\s/:@"']* : ) (?<userinfo> [^\s/@"']+ ) (?<at> @ )"#
        ))
        .expect("a constant pattern that a test uses")
    });
    NAMED.replace_all(text, |found: &Captures<'_>| {
        let part = |name: &str| found.name(name).map_or("", |part| part.as_str());
        let (before, value, behind) = match () {
            () if found.name("quoted").is_some() => (part("quoted"), part("in_quotes"), ""),
            () if found.name("given").is_some() => (part("given"), part("value"), ""),
            () if found.name("said").is_some() => (part("said"), part("word"), ""),
            () if found.name("user").is_some() => (part("user"), part("userinfo"), part("at")),
            () => (part("scheme_alone"), part("credentials"), ""),
        };
        let has_digit = value.bytes().any(|byte| byte.is_ascii_digit());
        let is_prose = match () {
            () if found.name("said").is_some() => {
                let is_header = part("said").to_ascii_lowercase().contains("authorization");
                let looks_secret = (is_header || has_digit) && value.len() >= SHORTEST_SAID;
                found.name("scheme").is_none() && !looks_secret
            }
            () if found.name("scheme_alone").is_some() => !has_digit || value.len() < SHORTEST_CREDENTIALS,
            () => false,
        };
        if is_prose { found[0].to_owned() } else { format!("{before}{REDACTED}{behind}") }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_sensitive_by_their_last_word() {
        for name in [
            "password",
            "PASSWORD",
            "db_password",
            "api_key",
            "x-api-key",
            "apiKey",
            "OPENAI_API_KEY",
            "token",
            "accessToken",
            "client.secret",
            "Authorization",
            "proxy-authorization",
        ] {
            assert!(is_sensitive(name), "{name}");
        }
        for name in
            ["tokens", "max_tokens", "token_count", "input_tokens", "secretary", "key", "tokenizer", "author"]
        {
            assert!(!is_sensitive(name), "{name}");
        }
    }

    #[test]
    fn fields_are_hidden_by_name_at_any_depth() {
        let mut json = json!({"user": "u", "password": "p", "a": [{"apiKey": 7, "tokens": 3}],
            "token": null, "secret": {"x": 1}, "authorization": true});
        hide_named(&mut json);
        assert_eq!(
            json.to_string(),
            format!(
                r#"{{"user":"u","password":"{REDACTED}","a":[{{"apiKey":"{REDACTED}","tokens":3}}],"token":null,"secret":"{REDACTED}","authorization":true}}"#
            )
        );
    }

    #[test]
    fn texts_lose_what_stands_beside_a_name() {
        for (text, clean) in [
            ("password=hunter2 x", "password=*** x"),
            ("GET /x?access_token=a1b2&q=1", "GET /x?access_token=***&q=1"),
            (r#"{"api_key": "sk-1", "q": "x"}"#, r#"{"api_key": "***", "q": "x"}"#),
            (r#"\"password\":\"hunter2\""#, r#"\"password\":\"***\""#),
            ("Authorization: Bearer abc", "Authorization: Bearer ***"),
            ("authorization: abcdefghi", "authorization: ***"),
            ("x-api-key: a1b2c3d4e5", "x-api-key: ***"),
            ("sent Bearer eyJhbGciOiJIUzI1NiJ9", "sent Bearer ***"),
            ("postgres://u:p4ss@db/x", "postgres://u:***@db/x"),
            ("at redis://:p4ss@h:6379,", "at redis://:***@h:6379,"),
        ] {
            assert_eq!(hide_in_text(text), clean.replace("***", REDACTED), "{text}");
        }
    }

    #[test]
    fn sentences_about_secrets_stay() {
        for text in [
            "TOOL_SECRET: secrets are only sent to hosts",
            "the secret 'CRM' is not among HTTP_TOOL_SECRETS",
            "expected token: identifier",
            "no such token: none",
            "a bearer of bad news, basic authentication-required",
            "the budget of 10 tokens is exhausted (max_tokens=10)",
            "http://localhost:8080/x and nats://h:4222",
            "SECRET_NOT_ALLOWED: definition 'a' may not use the secret 'X'",
        ] {
            assert_eq!(hide_in_text(text), text);
        }
    }
}

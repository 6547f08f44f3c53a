//! What a setting may be: from text to a checked value, and back to text without secrets.

use std::{path::PathBuf, time::Duration};

use url::Url;

use crate::telemetry;

/// The kind of a setting.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Any text.
    Text,
    /// A name that is used in subjects, keys and SQL: letters, digits, `_` and `-`.
    Name,
    /// One of these words.
    Word(&'static [&'static str]),
    /// `true` or `false`, also `1`, `0`, `yes`, `no`, `on`, `off`.
    Flag,
    /// A whole number between these.
    Count(u64, u64),
    /// Seconds, between these; decimals allowed.
    Seconds(f64, f64),
    /// Whole milliseconds, between these.
    Millis(u64, u64),
    /// Words with commas between them.
    List,
    /// A file or folder.
    Path,
    /// An address with one of these schemes.
    Address(&'static [&'static str]),
    /// Addresses with commas between them; the first scheme is meant when one has none.
    Addresses(&'static [&'static str]),
    /// A `LOG_LEVEL`.
    Level,
}

/// A checked value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// Of [`Kind::Text`], [`Kind::Name`], [`Kind::Word`] and [`Kind::Level`].
    Text(String),
    /// Of [`Kind::Flag`].
    Flag(bool),
    /// Of [`Kind::Count`].
    Count(u64),
    /// Of [`Kind::Seconds`] and [`Kind::Millis`].
    Span(Duration),
    /// Of [`Kind::List`] and [`Kind::Addresses`].
    List(Vec<String>),
    /// Of [`Kind::Path`].
    Path(PathBuf),
    /// Of [`Kind::Address`].
    Address(Url),
}

impl Kind {
    /// Reads `text`; the error says what was expected.
    pub(super) fn parse(self, text: &str) -> Result<Value, String> {
        let text = text.trim();
        let value = match self {
            Self::Text => Some(Value::Text(text.to_owned())),
            Self::Name => is_name(text).then(|| Value::Text(text.to_owned())),
            Self::Word(words) => {
                let word = text.to_ascii_lowercase();
                words.contains(&word.as_str()).then_some(Value::Text(word))
            }
            Self::Flag => flag(text),
            Self::Count(least, most) => {
                text.parse().ok().filter(|n| (least..=most).contains(n)).map(Value::Count)
            }
            Self::Seconds(least, most) => {
                let seconds = text.parse().ok().filter(|n: &f64| *n >= least && *n <= most);
                seconds.map(|n| Value::Span(Duration::from_secs_f64(n)))
            }
            Self::Millis(least, most) => {
                let millis = text.parse().ok().filter(|n| (least..=most).contains(n));
                millis.map(|n| Value::Span(Duration::from_millis(n)))
            }
            Self::List => Some(Value::List(list(text))),
            Self::Path => Some(Value::Path(text.into())),
            Self::Address(schemes) => address(text, schemes).map(Value::Address),
            Self::Addresses(schemes) => {
                let urls = list(text).into_iter().map(|item| with_scheme(item, schemes[0]));
                let urls: Option<Vec<_>> = urls.map(|url| address(&url, schemes).map(|_| url)).collect();
                urls.filter(|urls| !urls.is_empty()).map(Value::List)
            }
            Self::Level => telemetry::check_level(text).is_ok().then(|| Value::Text(text.to_owned())),
        };
        value.ok_or_else(|| self.expected())
    }

    /// What a value must be, for people.
    pub(super) fn expected(self) -> String {
        match self {
            Self::Text => "text".to_owned(),
            Self::Name => "a name of letters, digits, `_` and `-`".to_owned(),
            Self::Word(words) => format!("one of {}", words.join(", ")),
            Self::Flag => "true or false".to_owned(),
            Self::Count(least, most) => format!("a whole number from {least} to {most}"),
            Self::Seconds(least, most) => format!("seconds from {least} to {most}"),
            Self::Millis(least, most) => format!("milliseconds from {least} to {most}"),
            Self::List => "words with commas between them".to_owned(),
            Self::Path => "a path".to_owned(),
            Self::Address(schemes) => format!("an address that starts with {}://", schemes.join(":// or ")),
            Self::Addresses(schemes) => {
                format!("addresses that start with {}://, commas between", schemes.join(":// or "))
            }
            Self::Level => {
                "error, warn, info, debug, trace, off or directives such as info,sqlx=debug".to_owned()
            }
        }
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

fn flag(text: &str) -> Option<Value> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(Value::Flag(true)),
        "false" | "0" | "no" | "off" => Some(Value::Flag(false)),
        _ => None,
    }
}

fn address(text: &str, schemes: &[&str]) -> Option<Url> {
    Url::parse(text).ok().filter(|url| schemes.contains(&url.scheme()) && url.has_host())
}

fn with_scheme(text: String, scheme: &str) -> String {
    if text.contains("://") { text } else { format!("{scheme}://{text}") }
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

/// The text of one or more addresses with their secrets masked.
pub(super) fn masked_addresses(text: &str, schemes: &[&str]) -> String {
    let masked = list(text).into_iter().map(|item| masked_address(&with_scheme(item, schemes[0])));
    masked.collect::<Vec<_>>().join(",")
}

/// The parts of one or more addresses that [`masked_addresses`] masks, as they are written and as they are meant.
pub(super) fn secrets_of_addresses(text: &str, schemes: &[&str]) -> Vec<String> {
    let urls = list(text).into_iter().filter_map(|item| Url::parse(&with_scheme(item, schemes[0])).ok());
    urls.flat_map(|url| secrets_of(&url)).collect()
}

fn secrets_of(url: &Url) -> Vec<String> {
    let token = (url.password().is_none() && !NAMES_A_USER.contains(&url.scheme())).then(|| url.username());
    let written = url.password().or(token).unwrap_or_default();
    // The rules of forms but for the plus sign, which stands for itself before the `@`.
    let meant = url::form_urlencoded::parse(written.replace('+', "%2B").replace('&', "%26").as_bytes())
        .map(|(name, value)| if value.is_empty() { name.into_owned() } else { format!("{name}={value}") })
        .collect();
    let of_query = url.query_pairs().filter(|(key, _)| !HARMLESS.contains(&&**key));
    let of_query = of_query.map(|(key, value)| if value.is_empty() { key } else { value }.into_owned());
    [written.to_owned(), meant].into_iter().chain(of_query).filter(|part| !part.is_empty()).collect()
}

/// Schemes of addresses whose word before the `@` is a user even without a password.
const NAMES_A_USER: [&str; 4] = ["postgres", "postgresql", "redis", "rediss"];

/// Parameters of addresses that hold no secret and help to see what is wrong.
const HARMLESS: [&str; 13] = [
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "application_name",
    "connect_timeout",
    "target_session_attrs",
    "channel_binding",
    "options",
    "host",
    "port",
    "user",
    "dbname",
];

fn masked_address(text: &str) -> String {
    let Ok(mut url) = Url::parse(text.trim()) else { return "***".to_owned() };
    if url.password().is_some() {
        // Fails for addresses without a host, which have no password either.
        let _ = url.set_password(Some("***"));
    }
    if url.password().is_none() && !url.username().is_empty() && !NAMES_A_USER.contains(&url.scheme()) {
        // A word alone before the `@` is a token there.
        let _ = url.set_username("***");
    }
    if url.query().is_some() {
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let masked = pairs.iter().map(|(key, value)| match value.as_str() {
            _ if HARMLESS.contains(&key.as_str()) => (key.as_str(), value.as_str()),
            // Without a value the word itself may be the secret.
            "" => ("***", ""),
            _ => (key.as_str(), "***"),
        });
        url.query_pairs_mut().clear().extend_pairs(masked);
    }
    url.to_string()
}

/// Reads `name=value`; `None` when there is no name, or no `=`.
pub(super) fn pair(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    let (name, value) = (name.trim(), value.trim());
    (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_takes_its_values_and_refuses_others() {
        let address = Kind::Address(&["http", "https"]);
        let good = [
            (Kind::Name, " AGENT_RESULTS "),
            (Kind::Word(&["json", "text"]), "JSON"),
            (Kind::Flag, "Yes"),
            (Kind::Count(1, 10), "10"),
            (Kind::Seconds(0.5, 30.0), "1.5"),
            (Kind::Millis(0, 40), "40"),
            (Kind::List, "a, b,,c"),
            (address, "http://host:4318/x"),
            (Kind::Addresses(&["nats", "tls"]), "a:4222, tls://u:p@b:4222"),
            (Kind::Level, "debug"),
        ];
        for (kind, text) in good {
            assert!(kind.parse(text).is_ok(), "{text}");
        }
        let bad = [
            (Kind::Name, "a.b"),
            (Kind::Word(&["json", "text"]), "xml"),
            (Kind::Flag, "maybe"),
            (Kind::Count(1, 10), "11"),
            (Kind::Count(1, 10), "-1"),
            (Kind::Seconds(0.5, 30.0), "NaN"),
            (Kind::Millis(0, 40), "1.5"),
            (address, "nats://host"),
            (address, "http://"),
            (Kind::Addresses(&["nats", "tls"]), ","),
            (Kind::Addresses(&["nats", "tls"]), "a:4222, http://b"),
            (Kind::Level, "a=loud"),
        ];
        for (kind, text) in bad {
            assert!(kind.parse(text).is_err(), "{text}");
        }
        assert_eq!(Kind::List.parse("a, b,,c"), Ok(Value::List(vec!["a".into(), "b".into(), "c".into()])));
    }

    #[test]
    fn what_is_masked_in_an_address_is_known_as_a_secret() {
        let secrets = |text: &str| secrets_of_addresses(text, &["nats", "tls"]);
        assert_eq!(secrets("postgres://u:p%40s+s%3D1@h/db?sslmode=require"), ["p%40s+s%3D1", "p@s+s=1"]);
        assert_eq!(secrets("postgres://h/db?password=secret"), ["secret"]);
        assert_eq!(secrets("t0ken@a:4222, nats://b:4222"), ["t0ken", "t0ken"]);
        assert_eq!(secrets("http://h/x?t0ken"), ["t0ken"]);
        assert_eq!(secrets("postgres://user@h/db"), [""; 0]);
    }

    #[test]
    fn addresses_are_shown_without_their_passwords_and_tokens() {
        assert_eq!(masked_address("postgres://u:secret@h/db"), "postgres://u:***@h/db");
        assert_eq!(masked_address("postgres://h/db?sslmode=require&password=secret"), {
            "postgres://h/db?sslmode=require&password=***"
        });
        assert_eq!(masked_address("redis://h:6379"), "redis://h:6379");
        assert_eq!(
            masked_address("http://u:secret@h/x?token=secret&a=1"),
            "http://u:***@h/x?token=***&a=***"
        );
        assert_eq!(masked_address("http://h/x?secret"), "http://h/x?***=");
        assert_eq!(masked_address("nats://secret@h:4222"), "nats://***@h:4222");
        assert_eq!(masked_address("postgres://user@h/db"), "postgres://user@h/db");
        assert_eq!(masked_address("not an address: secret"), "***");
    }
}

//! Where a model may be asked: the operator's addresses, and those of definitions that the operator allows.
//!
//! **Invariant:** an address of a definition is used only when the operator listed its scheme, host and port:
//! the provider's key goes there.

use url::{Host, Url};

use super::Error;

/// Most characters of a refused address in an error.
const MAX_SHOWN_CHARS: usize = 100;

/// The addresses that definitions may ask for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct AllowedHosts(Vec<Origin>);

#[derive(Clone, Debug, PartialEq)]
struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl Origin {
    fn of(url: &Url) -> Option<Self> {
        let host = url.host_str()?.trim_end_matches('.').to_owned();
        Some(Self { scheme: url.scheme().to_owned(), host, port: url.port_or_known_default() })
    }
}

impl AllowedHosts {
    /// Reads entries `host`, `host:port`, `https://host` or `http://host:port`; https unless the entry says
    /// http, and the scheme's own port unless it names one.
    pub(super) fn parse(entries: &[String]) -> Result<Self, Error> {
        let origin = |entry: &String| {
            let entry = entry.trim();
            let url = if entry.contains("://") { entry.to_owned() } else { format!("https://{entry}") };
            let url = Url::parse(&url).ok().filter(|url| is_plain(url) && url.path() == "/");
            url.as_ref()
                .and_then(Origin::of)
                .ok_or_else(|| Error::Settings(format!("MODEL_ALLOWED_HOSTS: {entry:?} is not a host")))
        };
        let entries = entries.iter().filter(|entry| !entry.trim().is_empty());
        entries.map(origin).collect::<Result<_, _>>().map(Self)
    }

    /// The address a definition asks for, when it is the provider's `own` or allowed.
    pub(super) fn check(&self, asked: &str, own: &Url) -> Result<Url, Error> {
        let refused = || Error::UrlRefused(shown(asked));
        let url = Url::parse(asked.trim()).ok().filter(is_plain).ok_or_else(refused)?;
        let origin = Origin::of(&url).ok_or_else(refused)?;
        let same = url.as_str().trim_end_matches('/') == own.as_str().trim_end_matches('/');
        if same || self.0.contains(&origin) { Ok(url) } else { Err(refused()) }
    }
}

/// An operator's address of a provider.
pub(super) fn operators(provider: &str, address: &str) -> Result<Url, Error> {
    let url = Url::parse(address.trim()).ok().filter(is_plain);
    url.ok_or_else(|| {
        Error::Settings(format!("the base URL of provider {provider:?} must be http(s)://host[:port][/path]"))
    })
}

/// Whether the address is http(s) without user, query or fragment.
fn is_plain(url: &Url) -> bool {
    let nothing_hidden = url.username().is_empty() && url.password().is_none();
    let only_path = url.query().is_none() && url.fragment().is_none();
    matches!(url.scheme(), "http" | "https") && url.has_host() && nothing_hidden && only_path
}

/// Whether the host is this machine; such servers are never behind a proxy.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Scheme, host and port; user names, passwords and queries stay out of errors.
fn shown(asked: &str) -> String {
    match Url::parse(asked.trim()) {
        Ok(url) if url.has_host() => {
            let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
            let shown = format!("{}://{}{port}", url.scheme(), url.host_str().unwrap_or_default());
            shown.chars().take(MAX_SHOWN_CHARS).collect()
        }
        _ => "(not an http address)".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(entries: &[&str], asked: &str) -> Result<String, String> {
        let entries: Vec<String> = entries.iter().map(|entry| (*entry).to_owned()).collect();
        let own = operators("openai", "https://api.openai.com/v1").expect("valid");
        let allowed = AllowedHosts::parse(&entries).expect("valid entries");
        allowed.check(asked, &own).map(String::from).map_err(|error| error.to_string())
    }

    #[test]
    fn only_listed_origins_pass() {
        let listed = ["llm.example.com", "gate.example.com:8443", "http://vllm:8000"];
        for good in [
            "https://llm.example.com/v1",
            "https://LLM.example.com:443/v1",
            "https://llm.example.com./v1",
            "https://gate.example.com:8443/openai/v1",
            "http://vllm:8000/v1",
            "https://api.openai.com/v1/",
        ] {
            check(&listed, good).expect(good);
        }
        for bad in [
            "http://llm.example.com/v1",
            "https://llm.example.com:8443/v1",
            "https://evil.llm.example.com/v1",
            "https://llm.example.com.evil.org/v1",
            "https://user@llm.example.com/v1",
            "https://llm.example.com/v1?x=1",
            "https://llm.example.com/v1#x",
            "https://vllm:8000/v1",
            "https://api.openai.com/other",
            "file:///etc/passwd",
            "nonsense",
        ] {
            check(&listed, bad).expect_err(bad);
        }
    }

    #[test]
    fn a_refusal_shows_no_secrets() {
        let error = check(&[], "https://me:secret@evil.example.com/v1?token=secret").expect_err("refused");
        assert_eq!(error, "base_url \"https://evil.example.com\" is not allowed; see MODEL_ALLOWED_HOSTS");
    }

    #[test]
    fn an_entry_that_is_no_host_is_named() {
        for entry in ["https://", "ftp://x", "host/path", "user@host"] {
            let error = AllowedHosts::parse(&[entry.to_owned()]).expect_err(entry);
            assert!(error.to_string().contains(&format!("{entry:?}")), "{error}");
        }
        assert_eq!(AllowedHosts::parse(&[" ".into()]).expect("blank is skipped"), AllowedHosts::default());
    }
}

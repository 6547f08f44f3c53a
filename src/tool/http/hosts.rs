//! The operator's list of hosts that http tools may reach.

use url::{Host, Url};

/// Hosts by name (`api.example.com`), by domain (`*.example.com`), or all public ones (`*`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedHosts {
    any: bool,
    exact: Vec<String>,
    /// Domains with their leading dot.
    domains: Vec<String>,
}

/// What the list says of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permission {
    /// The operator wrote it down: it may be reached, and may be sent secrets.
    Named,
    /// Only `*` covers it: it may be reached, and gets no secret.
    Any,
    /// Nothing covers it.
    Refused,
}

impl AllowedHosts {
    /// Reads a list separated by commas or white space; an empty text allows no host.
    ///
    /// Fails with a sentence that names the first part that is no host.
    pub fn parse(list: &str) -> Result<Self, String> {
        let mut hosts = Self::default();
        for part in list.split(|c: char| c == ',' || c.is_whitespace()).filter(|part| !part.is_empty()) {
            if part == "*" {
                hosts.any = true;
                continue;
            }
            let (name, list) = match part.strip_prefix("*.") {
                Some(domain) => (domain, &mut hosts.domains),
                None => (part, &mut hosts.exact),
            };
            let host = Host::parse(name.trim_end_matches('.'))
                .map_err(|_| format!("'{part}' is no host; write api.example.com, *.example.com or *"))?;
            let dot = if part.starts_with("*.") { "." } else { "" };
            list.push(format!("{dot}{host}"));
        }
        Ok(hosts)
    }

    /// What the list says of the host of `url`.
    pub(super) fn permission(&self, url: &Url) -> Permission {
        let host = url.host_str().unwrap_or_default().trim_end_matches('.');
        let named = self.exact.iter().any(|exact| exact == host)
            || self.domains.iter().any(|domain| host.len() > domain.len() && host.ends_with(domain.as_str()));
        match (named, self.any) {
            (true, _) => Permission::Named,
            (false, true) => Permission::Any,
            (false, false) => Permission::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permission(list: &str, url: &str) -> Permission {
        let url = Url::parse(url).expect("an address");
        AllowedHosts::parse(list).expect("a list").permission(&url)
    }

    #[test]
    fn hosts_are_allowed_by_name_by_domain_or_all() {
        use Permission::{Any, Named, Refused};
        for (list, url, expected) in [
            ("", "http://example.com/", Refused),
            ("example.com", "https://EXAMPLE.com:8443/x", Named),
            ("Example.COM", "https://example.com./", Named),
            ("example.com", "https://api.example.com/", Refused),
            ("*.example.com", "https://a.api.example.com/", Named),
            ("*.example.com", "https://example.com/", Refused),
            ("*.example.com", "https://notexample.com/", Refused),
            ("*.example.com", "https://example.com.evil.org/", Refused),
            ("a.org, *", "https://b.org/", Any),
            ("a.org *", "https://a.org/", Named),
            ("127.0.0.1", "http://2130706433/", Named),
            ("[::1]", "http://[0:0::1]/", Named),
        ] {
            assert_eq!(permission(list, url), expected, "{list} {url}");
        }
    }

    #[test]
    fn a_part_that_is_no_host_is_named() {
        for list in ["https://example.com", "example.com:80", "a.org, b c/d", "*."] {
            assert!(AllowedHosts::parse(list).is_err(), "{list}");
        }
    }
}

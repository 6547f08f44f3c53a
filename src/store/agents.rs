//! Port of stored definitions: put once under a name and a version, found by either or by their hash.
//!
//! **Invariant:** what a name and a version stand for never changes.

use async_trait::async_trait;
use bytes::Bytes;

use super::Error;
use crate::ids::{JobId, UnixNanos};

/// A definition to store.
#[derive(Clone, Debug)]
pub struct NewAgent {
    /// What messages call it.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of its canonical JSON, in hex.
    pub hash: String,
    /// The definition.
    pub definition: Bytes,
}

/// A stored definition without its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentView {
    /// What messages call it.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of its canonical JSON, in hex.
    pub hash: String,
    /// Size of the definition.
    pub bytes: u64,
    /// When it was stored.
    pub stored_at: UnixNanos,
    /// How many versions its name has.
    pub versions: u64,
}

/// What became of a definition that was put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutAgent {
    /// It is stored now.
    New,
    /// The same was stored already.
    Known,
    /// The version is taken by a definition with this hash.
    Taken(String),
}

/// What a message calls a stored definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentRef {
    /// The version of a name that was put last, or one of its versions.
    Named {
        /// The name.
        name: String,
        /// The version.
        version: Option<String>,
    },
    /// The hash of its canonical JSON, in lower-case hex.
    Hash(String),
}

/// Longest `name@version`, as the longest id.
const MAX_REFERENCE_CHARS: usize = 255;

impl AgentRef {
    /// Whether `name@version` can stand in a message and is read as that.
    pub fn can_be_called(name: &str, version: &str) -> bool {
        let usable = |part: &str| {
            !part.is_empty()
                && !part.contains('@')
                && !part.chars().any(|c| c.is_control() || c.is_whitespace())
        };
        let length = name.chars().count() + version.chars().count() + 1;
        usable(name) && usable(version) && !name.starts_with("sha256:") && length <= MAX_REFERENCE_CHARS
    }

    /// Reads `name`, `name@version` or `sha256:…`.
    pub fn parse(text: &str) -> Self {
        match (text.strip_prefix("sha256:"), text.split_once('@')) {
            (Some(hash), _) => Self::Hash(hash.to_ascii_lowercase()),
            (None, Some((name, version))) => {
                Self::Named { name: name.to_owned(), version: Some(version.to_owned()) }
            }
            (None, None) => Self::Named { name: text.to_owned(), version: None },
        }
    }
}

/// Which definitions to list.
#[derive(Clone, Debug, Default)]
pub struct AgentFilter {
    /// Every version of this name, newest first; the newest version of every name when absent.
    pub name: Option<String>,
    /// Names that start so.
    pub prefix: String,
    /// Names behind this one, in the order of code points.
    pub after: String,
}

/// Stored definitions.
#[async_trait]
pub trait Agents: Send + Sync {
    /// Stores a definition; nothing is ever replaced.
    async fn put_agent(&self, agent: &NewAgent) -> Result<PutAgent, Error>;

    /// One definition with its bytes.
    async fn agent(&self, agent: &AgentRef) -> Result<Option<(AgentView, Bytes)>, Error>;

    /// At most `limit` definitions, by name.
    async fn agents(&self, filter: &AgentFilter, limit: u32) -> Result<Vec<AgentView>, Error>;

    /// The hash of the definition that the job runs: noted with the job by the first call, so that every attempt
    /// gets the same. `None` when there is no such definition.
    async fn pin_agent(&self, job_id: &JobId, agent: &AgentRef) -> Result<Option<String>, Error>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_a_name_a_version_of_it_or_a_hash() {
        let named = |name: &str, version: Option<&str>| AgentRef::Named {
            name: name.to_owned(),
            version: version.map(str::to_owned),
        };
        assert_eq!(AgentRef::parse("billing"), named("billing", None));
        assert_eq!(AgentRef::parse("billing@2.1"), named("billing", Some("2.1")));
        assert_eq!(AgentRef::parse("sha256:AB"), AgentRef::Hash("ab".to_owned()));
        assert!(AgentRef::can_be_called("billing", "2.1"));
        for (name, version) in
            [("", "1"), ("a", ""), ("a@b", "1"), ("a b", "1"), ("sha256:x", "1"), ("a", "\0")]
        {
            assert!(!AgentRef::can_be_called(name, version), "{name}@{version}");
        }
        assert!(!AgentRef::can_be_called(&"a".repeat(254), "1"));
    }
}

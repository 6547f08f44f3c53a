//! What a server's tools are called here.
//!
//! **Invariant:** two tools of two servers never have the same name: the part before the first `__` is the server's.

use sha2::{Digest, Sha256};

use crate::encoding::hex;

/// Longest name of a tool that all providers of models take.
const MAX_NAME_CHARS: usize = 64;

/// Characters of the digest in a name that had to be changed: enough that no two tools of a server meet.
const DIGEST_CHARS: usize = 8;

/// How tools are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::tool) enum Naming {
    /// One tool, by this name.
    As(String),
    /// By this prefix, `__` and the server's own name for it.
    Prefixed(String),
}

impl Naming {
    /// The name of the tool that its server calls `own`.
    pub(in crate::tool) fn name(&self, own: &str) -> String {
        let prefix = match self {
            Self::As(name) => return name.clone(),
            Self::Prefixed(prefix) => prefix,
        };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let full = format!("{prefix}__{own}");
        if own.chars().all(is_plain) && full.len() <= MAX_NAME_CHARS {
            return full;
        }
        let plain: String = full.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
        let digest = hex(Sha256::digest(own));
        let room = MAX_NAME_CHARS - DIGEST_CHARS - 1;
        format!("{}_{}", plain.chars().take(room).collect::<String>(), &digest[..DIGEST_CHARS])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_models_would_not_take_is_changed_and_stays_its_own() {
        let naming = Naming::Prefixed("docs".into());
        assert_eq!(naming.name("read-text_file"), "docs__read-text_file");
        let dotted = naming.name("files.read");
        assert!(dotted.starts_with("docs__files_read_") && dotted != naming.name("files/read"), "{dotted}");
        let long = naming.name(&"x".repeat(128));
        assert!(long.len() == MAX_NAME_CHARS && long != naming.name(&"x".repeat(127)), "{long}");
        assert_eq!(Naming::As("add".into()).name("get-sum"), "add");
    }
}

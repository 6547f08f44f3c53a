//! Port of secrets: a definition names one, the operator's rules say whether it may, and a source has its value.
//!
//! **Invariant:** a value leaves here only for a definition that the rules name, and the scrubber knows it by then.
//! **Invariant:** whoever may not have a secret does not learn whether it exists.

mod folder;
mod given;
mod rules;
mod vault;

pub use given::Given;
pub use rules::Rules;
pub use vault::{Config as VaultConfig, Login as VaultLogin};

use std::{error::Error as StdError, fmt, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use indexmap::IndexMap;
use secrecy::{ExposeSecret, SecretString};

use crate::{telemetry::scrub::Scrubber, value::Name};

/// Largest value in bytes; a key with its chain of certificates fits, more is the wrong file.
pub const MAX_VALUE_BYTES: usize = 64 * 1024;

/// Longest name of a secret, as of a key in a Kubernetes secret.
const MAX_NAME_BYTES: usize = 253;

/// Where secrets come from and who may have them.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// `SECRETS_ALLOWED`: which definitions may name which secret.
    pub rules: Rules,
    /// `HTTP_TOOL_SECRETS`: names that headers of every definition's http tools may have while no rule speaks of them.
    pub open: Vec<String>,
    /// Values by name: settings, and files that settings name.
    pub given: IndexMap<String, Given>,
    /// `SECRETS_DIR`: a folder with a file per secret.
    pub folder: Option<PathBuf>,
    /// Vault.
    pub vault: Option<VaultConfig>,
}

/// A secret's value; it is never printed.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// The value, for where it is sent.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl From<SecretString> for Secret {
    fn from(value: SecretString) -> Self {
        Self(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Who asks for a secret: the definition that a job runs. What it brings along, subgraphs too, asks in its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The name in the definition.
    pub definition: Name,
    /// Where the definition comes from.
    pub origin: Origin,
}

/// Where a definition comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It came with a message: its name says what its sender wrote, and no more.
    Inline,
    /// It was stored by somebody who may write to the database.
    Stored,
}

impl Asker {
    /// A definition that came with a message.
    pub fn inline(definition: &Name) -> Self {
        Self { definition: definition.clone(), origin: Origin::Inline }
    }

    /// A stored definition.
    pub fn stored(definition: &Name) -> Self {
        Self { definition: definition.clone(), origin: Origin::Stored }
    }
}

/// Why there is no value.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No rule lets the definition name the secret.
    #[error("the definition '{definition}' may not use the secret '{name}'; SECRETS_ALLOWED does not allow it{}", stored_only(*needs_stored))]
    NotAllowed {
        /// The definition.
        definition: String,
        /// The secret.
        name: String,
        /// Whether a stored definition of that name may.
        needs_stored: bool,
    },
    /// No source has it.
    #[error("there is no secret '{name}'")]
    Unknown {
        /// The secret.
        name: String,
    },
    /// A source that may have it did not answer; it may later.
    #[error("the secret '{name}' cannot be read now: {source}")]
    Unavailable {
        /// The secret.
        name: String,
        /// Why.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
}

fn stored_only(needs_stored: bool) -> &'static str {
    if needs_stored { " unless the definition is stored" } else { "" }
}

impl Error {
    /// The heading in TROUBLESHOOTING.md.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotAllowed { .. } => "SECRET_NOT_ALLOWED",
            Self::Unknown { .. } => "SECRET_UNKNOWN",
            Self::Unavailable { .. } => "SECRET_UNAVAILABLE",
        }
    }

    /// Whether the same question may be answered later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unavailable { .. } => true,
            Self::NotAllowed { .. } | Self::Unknown { .. } => false,
        }
    }
}

/// What a source says when it cannot be asked.
type Trouble = Box<dyn StdError + Send + Sync>;

/// Something that has secrets.
#[async_trait]
trait Source: Send + Sync {
    /// The value of that name; `None` when it has none.
    async fn read(&self, name: &str) -> Result<Option<SecretString>, Trouble>;
}

/// All secrets of the process; clones are the same.
#[derive(Clone, Default)]
pub struct Secrets {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    rules: Rules,
    open: Vec<String>,
    /// Asked in this order; the first that has a name wins.
    sources: Vec<Box<dyn Source>>,
    scrubber: Scrubber,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").field("rules", &self.shared.rules).finish_non_exhaustive()
    }
}

impl Secrets {
    /// The secrets of `config`. `scrubber` learns every value that is given out. Nothing is asked yet.
    pub fn new(config: Config, scrubber: &Scrubber) -> Self {
        let Config { rules, open, given, folder, vault } = config;
        let mut sources: Vec<Box<dyn Source>> = vec![Box::new(given::GivenValues(given))];
        sources.extend(folder.map(|path| Box::new(folder::Folder(path)) as Box<dyn Source>));
        sources.extend(vault.map(|config| Box::new(vault::Vault::new(config)) as Box<dyn Source>));
        Self { shared: Arc::new(Shared { rules, open, sources, scrubber: scrubber.clone() }) }
    }

    /// The value of the secret `name`, for a definition that a rule lets name it.
    pub async fn resolve(&self, asker: &Asker, name: &str) -> Result<Secret, Error> {
        if !self.shared.rules.allow(asker, name) {
            return Err(self.refusal(asker, name));
        }
        self.value(name).await
    }

    /// The same for a header of an http tool, where names of `HTTP_TOOL_SECRETS` need no rule.
    pub async fn resolve_for_header(&self, asker: &Asker, name: &str) -> Result<Secret, Error> {
        let is_open = self.shared.open.iter().any(|open| open == name) && !self.shared.rules.speak_of(name);
        if is_open { self.value(name).await } else { self.resolve(asker, name).await }
    }

    fn refusal(&self, asker: &Asker, name: &str) -> Error {
        let definition = asker.definition.to_string();
        let needs_stored = self.shared.rules.allow(&Asker::stored(&asker.definition), name);
        Error::NotAllowed { definition, name: name.to_owned(), needs_stored }
    }

    async fn value(&self, name: &str) -> Result<Secret, Error> {
        if !is_name(name) {
            return Err(Error::Unknown { name: name.chars().take(MAX_NAME_BYTES).collect() });
        }
        for source in &self.shared.sources {
            let read = source.read(name).await;
            if let Some(value) =
                read.map_err(|source| Error::Unavailable { name: name.to_owned(), source })?
            {
                self.shared.scrubber.learn(value.expose_secret());
                return Ok(Secret(value));
            }
        }
        Err(Error::Unknown { name: name.to_owned() })
    }
}

/// Whether `name` may be a secret's: one part of a path that climbs nowhere.
pub fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(plain)
}

/// A value as it is read from a file: without the line end that editors and `echo` leave.
fn trimmed(text: &str) -> SecretString {
    SecretString::from(text.trim_end_matches(['\r', '\n']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(rules: &str) -> Secrets {
        let given =
            ["OPEN", "STRIPE"].map(|name| (name.to_owned(), Given::Value(format!("{name}-v4lue!").into())));
        let config = Config {
            rules: Rules::parse([rules]).expect("rules"),
            open: vec!["OPEN".to_owned()],
            given: given.into(),
            ..Config::default()
        };
        Secrets::new(config, &Scrubber::default())
    }

    async fn told(result: impl Future<Output = Result<Secret, Error>>) -> String {
        match result.await {
            Ok(secret) => secret.expose().to_owned(),
            Err(error) => format!("{}: {error}", error.code()),
        }
    }

    #[tokio::test]
    async fn a_definition_gets_what_a_rule_names_and_nothing_else() {
        let secrets = secrets("billing=STRIPE");
        let (billing, other) = (Asker::inline(&"billing".into()), Asker::stored(&"other".into()));
        assert_eq!(told(secrets.resolve(&billing, "STRIPE")).await, "STRIPE-v4lue!");
        for name in ["STRIPE", "NO_SUCH"] {
            let refused = told(secrets.resolve(&other, name)).await;
            assert_eq!(
                refused,
                format!(
                    "SECRET_NOT_ALLOWED: the definition 'other' may not use the secret '{name}'; SECRETS_ALLOWED does not \
                 allow it"
                )
            );
        }
        assert!(told(secrets.resolve(&billing, "OPEN")).await.starts_with("SECRET_NOT_ALLOWED"));
    }

    #[tokio::test]
    async fn headers_may_have_open_names_until_a_rule_speaks_of_them() {
        let asker = Asker::inline(&"any".into());
        assert_eq!(told(secrets("a=STRIPE").resolve_for_header(&asker, "OPEN")).await, "OPEN-v4lue!");
        let ruled = secrets("stored:any=OPEN");
        let refused = told(ruled.resolve_for_header(&asker, "OPEN")).await;
        assert!(refused.ends_with("does not allow it unless the definition is stored"), "{refused}");
        let stored = Asker::stored(&"any".into());
        assert_eq!(told(ruled.resolve_for_header(&stored, "OPEN")).await, "OPEN-v4lue!");
    }

    #[tokio::test]
    async fn what_nobody_has_is_unknown_and_a_name_leads_nowhere_else() {
        let secrets = secrets("*=*");
        let asker = Asker::inline(&"any".into());
        for name in ["NO_SUCH", "../etc/passwd", "a/b", ".hidden", "", "a b"] {
            let refused = told(secrets.resolve(&asker, name)).await;
            assert_eq!(refused, format!("SECRET_UNKNOWN: there is no secret '{name}'"));
        }
    }

    #[tokio::test]
    async fn what_is_given_out_is_known_to_the_scrubber_and_never_printed() {
        let scrubber = Scrubber::default();
        let given = IndexMap::from([("A".to_owned(), Given::Value("a-v4lue!".into()))]);
        let config = Config { rules: Rules::parse(["*=A"]).expect("a rule"), given, ..Config::default() };
        let secrets = Secrets::new(config.clone(), &scrubber);
        let secret = secrets.resolve(&Asker::inline(&"x".into()), "A").await.expect("it is allowed");
        assert_eq!(scrubber.text("it is a-v4lue!"), "it is ***REDACTED***");
        assert!(!format!("{secret:?} {secrets:?} {config:?}").contains("a-v4lue!"));
    }
}

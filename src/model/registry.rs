//! The configured providers of models, by name.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use secrecy::SecretString;

use super::{ChatModel, Error, address::AllowedHosts, openai::OpenAi, scripted::Scripted};
use crate::telemetry::{Gate, Limited, Pass};

/// Where OpenAI itself answers.
const OPENAI_BASE_URL: &str = "https://api.openai.com/v1";
/// The provider that is always there.
const SCRIPTED: &str = "scripted";

/// Which models can be asked, and how patiently.
#[derive(Clone, Debug)]
pub struct Config {
    /// OpenAI-compatible providers, by the name definitions use.
    pub providers: BTreeMap<String, Provider>,
    /// `MODEL_ALLOWED_HOSTS`: the hosts a definition's `base_url` may name, as `host[:port]` (https) or
    /// `http://host[:port]`. The provider's key is sent to them.
    pub allowed_hosts: Vec<String>,
    /// `SCRIPTED_MODELS_DIR`: where scripted models without a script of their own find `<model>.json`.
    pub scripted_dir: Option<PathBuf>,
    /// How long a call may take.
    pub timeouts: Timeouts,
    /// `MODEL_MAX_CONCURRENT`: calls at the same time in this process; others wait.
    pub max_concurrent: usize,
}

/// One OpenAI-compatible provider.
#[derive(Clone, Debug)]
pub struct Provider {
    /// Where it answers, without `/chat/completions`.
    pub base_url: String,
    /// Its key; without one no authorization is sent, as local servers like it.
    pub key: Option<SecretString>,
    /// The environment variable the key comes from, for the error that says it is missing.
    pub key_variable: String,
}

/// How long a model call may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Until the connection is made.
    pub connect: Duration,
    /// From then until the first piece of the answer.
    pub first_byte: Duration,
    /// From one piece of the answer to the next.
    pub idle: Duration,
    /// The whole call.
    pub call: Duration,
}

impl Default for Config {
    /// OpenAI without a key, and the scripted model.
    fn default() -> Self {
        Self {
            providers: BTreeMap::from([("openai".to_owned(), Provider::openai(None, None))]),
            allowed_hosts: Vec::new(),
            scripted_dir: None,
            timeouts: Timeouts::default(),
            max_concurrent: 512,
        }
    }
}

impl Provider {
    /// OpenAI, or a server that speaks like it at `base_url`.
    pub fn openai(key: Option<SecretString>, base_url: Option<String>) -> Self {
        let base_url = base_url.unwrap_or_else(|| OPENAI_BASE_URL.to_owned());
        Self { base_url, key, key_variable: "OPENAI_API_KEY".to_owned() }
    }
}

impl Default for Timeouts {
    /// 5 s to connect, 60 s to the first piece (reasoning models think first), 30 s between pieces, and
    /// 10 minutes in all.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(60),
            idle: Duration::from_secs(30),
            call: Duration::from_secs(600),
        }
    }
}

/// The configured providers.
#[derive(Clone)]
pub struct Models {
    providers: Arc<BTreeMap<String, Arc<dyn ChatModel>>>,
    calls: Gate,
}

impl Models {
    /// The providers of `config`, and `scripted`.
    ///
    /// Fails with [`Error::Settings`] when a base URL or an allowed host is not one. Asks nobody.
    pub fn new(config: Config) -> Result<Self, Error> {
        let allowed = Arc::new(AllowedHosts::parse(&config.allowed_hosts)?);
        let mut providers: BTreeMap<String, Arc<dyn ChatModel>> = BTreeMap::new();
        for (name, provider) in config.providers {
            let model = OpenAi::new(&name, provider, allowed.clone(), config.timeouts)?;
            providers.insert(name, Arc::new(model));
        }
        providers.insert(SCRIPTED.to_owned(), Arc::new(Scripted::new(config.scripted_dir)));
        let calls = Gate::new(Limited::ModelCalls, config.max_concurrent);
        Ok(Self { providers: Arc::new(providers), calls })
    }

    /// Waits until the process may make another call; it is under way until the pass is dropped.
    pub async fn turn(&self) -> Pass {
        self.calls.enter().await
    }

    /// The provider a definition names; [`Error::UnknownProvider`] lists those there are.
    pub fn provider(&self, name: &str) -> Result<Arc<dyn ChatModel>, Error> {
        let provider = self.providers.get(name).cloned();
        provider.ok_or_else(|| {
            let known: Vec<_> = self.provider_names().collect();
            Error::UnknownProvider(name.to_owned(), known.join(", "))
        })
    }

    /// The names definitions can use, sorted.
    pub fn provider_names(&self) -> impl Iterator<Item = &str> {
        self.providers.keys().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_provider_is_told_what_there_is() {
        let models = Models::new(Config::default()).expect("the default is valid");
        assert!(models.provider("openai").is_ok());
        assert!(models.provider("scripted").is_ok());
        let error = models.provider("anthropic").err().expect("not configured");
        assert_eq!(error.to_string(), r#"unknown model provider "anthropic"; configured: openai, scripted"#);
    }

    #[test]
    fn wrong_addresses_stop_the_start() {
        let mut config = Config::default();
        let provider = Provider::openai(None, Some("ftp://secret@x".into()));
        config.providers.insert("local".into(), provider);
        let error = Models::new(config).err().expect("refused").to_string();
        assert!(error.contains("\"local\"") && !error.contains("secret"), "{error}");

        let config = Config { allowed_hosts: vec!["a/b".into()], ..Config::default() };
        assert_eq!(Models::new(config).err().expect("refused").code(), "MODEL_SETTINGS");
    }

    #[test]
    fn keys_are_not_in_debug_output() {
        let provider = Provider::openai(Some("sk-very-secret".to_owned().into()), None);
        assert!(!format!("{provider:?}").contains("very"));
    }
}

//! The configured providers of models, by name.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    ChatModel, Error, Prices,
    address::AllowedHosts,
    anthropic::Anthropic,
    breaker,
    cache::{AnswerCache, CacheConfig},
    limit::{Desk, Lane, Limits, Pool},
    openai::OpenAi,
    scripted::Scripted,
};
use crate::{encoding::hex, graph::ModelApi, stream::Shelf};

/// Where OpenAI itself answers.
const OPENAI_BASE_URL: &str = "https://api.openai.com/v1";
/// Where Anthropic itself answers.
const ANTHROPIC_BASE_URL: &str = "https://api.anthropic.com";
/// The provider that is always there.
const SCRIPTED: &str = "scripted";
/// As many hexadecimal digits of a key's hash tell the keys of one provider apart, and tell nothing of the key.
const KEY_DIGITS: usize = 8;

/// Which models can be asked, and how patiently.
#[derive(Clone, Debug)]
pub struct Config {
    /// Providers, by the name definitions use.
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
    /// `MODEL_LIMIT_PARTS`: processes that the providers' limits are divided among until the pool they share has told how
    /// many there are.
    pub limit_parts: u32,
    /// When a provider that fails is not asked for a while.
    pub breaker: breaker::Config,
    /// What models cost; `MODEL_PRICES_FILE` adds to it.
    pub prices: Arc<Prices>,
    /// Which answers may be kept for the same question.
    pub cache: CacheConfig,
}

/// One provider.
#[derive(Clone, Debug)]
pub struct Provider {
    /// What it speaks.
    pub dialect: Dialect,
    /// Where it answers, without `/chat/completions`, `/responses` or `/v1/messages`.
    pub base_url: String,
    /// Its key; without one no authorization is sent, as local servers like it.
    pub key: Option<SecretString>,
    /// The environment variable the key comes from, for the error that says it is missing.
    pub key_variable: String,
    /// The header its key goes in.
    pub auth: Auth,
    /// Names and values added to the address of every request, as Azure wants its `api-version`.
    pub query: Vec<(String, String)>,
    /// What its server does not do as OpenAI does. Anthropic's dialect has none.
    pub quirks: BTreeSet<Quirk>,
    /// What it allows under its key.
    pub limits: Limits,
}

/// What a provider speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// OpenAI's, by this interface unless a definition names the other.
    OpenAi(ModelApi),
    /// Anthropic's Messages.
    Anthropic,
}

/// The header a key goes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// `Authorization: Bearer …`.
    Bearer,
    /// `api-key: …`.
    ApiKey,
    /// `x-api-key: …`.
    XApiKey,
}

/// How an OpenAI-compatible server differs from the plain protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quirk {
    /// The limit of the answer's length is called `max_completion_tokens`.
    MaxCompletionTokens,
    /// It refuses `stream_options`; answers then come without a count of tokens.
    NoStreamOptions,
    /// It refuses `response_format`; the schema of an answer is told in the instructions instead.
    NoResponseFormat,
    /// It holds calls to their tool's schema when asked with `strict`, where the schema allows that.
    StrictTools,
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
    /// OpenAI and Anthropic without keys, and the scripted model.
    fn default() -> Self {
        Self {
            providers: BTreeMap::from([
                ("anthropic".to_owned(), Provider::anthropic(None, None)),
                ("openai".to_owned(), Provider::openai(None, None)),
            ]),
            allowed_hosts: Vec::new(),
            scripted_dir: None,
            timeouts: Timeouts::default(),
            max_concurrent: 512,
            limit_parts: 1,
            breaker: breaker::Config::default(),
            prices: Arc::default(),
            cache: CacheConfig::default(),
        }
    }
}

impl Provider {
    /// OpenAI, or a server that speaks like it at `base_url`.
    pub fn openai(key: Option<SecretString>, base_url: Option<String>) -> Self {
        let base_url = base_url.unwrap_or_else(|| OPENAI_BASE_URL.to_owned());
        Self {
            dialect: Dialect::OpenAi(ModelApi::ChatCompletions),
            base_url,
            key,
            key_variable: "OPENAI_API_KEY".to_owned(),
            auth: Auth::Bearer,
            query: Vec::new(),
            quirks: BTreeSet::new(),
            limits: Limits::default(),
        }
    }

    /// Anthropic, or a server that speaks like it at `base_url`.
    pub fn anthropic(key: Option<SecretString>, base_url: Option<String>) -> Self {
        Self {
            dialect: Dialect::Anthropic,
            base_url: base_url.unwrap_or_else(|| ANTHROPIC_BASE_URL.to_owned()),
            key_variable: "ANTHROPIC_API_KEY".to_owned(),
            auth: Auth::XApiKey,
            ..Self::openai(key, None)
        }
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

/// A provider, and where its calls wait.
struct Known {
    model: Arc<dyn ChatModel>,
    lane: usize,
}

/// The configured providers.
#[derive(Clone)]
pub struct Models {
    providers: Arc<BTreeMap<String, Known>>,
    desk: Arc<Desk>,
    /// Ends the desk's tasks with the last of the providers.
    _open: Arc<DropGuard>,
    prices: Arc<Prices>,
    cache: CacheConfig,
    kept: Option<Arc<AnswerCache>>,
}

impl Models {
    /// The providers of `config`, and `scripted`.
    ///
    /// Fails with [`Error::Settings`] when a base URL or an allowed host is not one. Asks nobody.
    pub fn new(config: Config) -> Result<Self, Error> {
        let allowed = Arc::new(AllowedHosts::parse(&config.allowed_hosts)?);
        let (mut providers, mut lanes) = (BTreeMap::new(), Vec::new());
        for (name, provider) in config.providers {
            lanes.push(lane(&name, &provider, (config.limit_parts, config.breaker)));
            let (allowed, timeouts) = (allowed.clone(), config.timeouts);
            let model: Arc<dyn ChatModel> = match provider.dialect {
                Dialect::OpenAi(api) => Arc::new(OpenAi::new(&name, (provider, api), allowed, timeouts)?),
                Dialect::Anthropic => Arc::new(Anthropic::new(&name, provider, allowed, timeouts)?),
            };
            providers.insert(name, Known { model, lane: lanes.len() - 1 });
        }
        let scripted = Arc::new(Scripted::new(config.scripted_dir));
        providers.insert(SCRIPTED.to_owned(), Known { model: scripted, lane: lanes.len() });
        // Scripts are in this process: nobody limits them, and their failures are meant.
        let breaker = breaker::Config { failures: 0, ..config.breaker };
        let limits = Limits::default();
        lanes.push(Lane { provider: SCRIPTED.to_owned(), shared_as: None, limits, parts: 1, breaker });
        let closing = CancellationToken::new();
        let desk = Arc::new(Desk::new(lanes, config.max_concurrent, closing.clone()));
        let (prices, cache) = (config.prices, config.cache);
        let (providers, _open) = (Arc::new(providers), Arc::new(closing.drop_guard()));
        Ok(Self { providers, desk, _open, prices, cache, kept: None })
    }

    /// The same with answers kept on `shelf`, unless the operator does not want that.
    pub fn with_shelf(self, shelf: Arc<dyn Shelf>) -> Self {
        let kept = self.cache.enabled.then(|| Arc::new(AnswerCache::new(self.cache.clone(), shelf)));
        Self { kept, ..self }
    }

    /// Kept answers; `None` in a process that keeps none.
    pub fn kept(&self) -> Option<&AnswerCache> {
        self.kept.as_deref()
    }

    /// What models cost.
    pub fn prices(&self) -> &Prices {
        &self.prices
    }

    /// Shares the providers' limits with other processes from now on. Must be called inside a tokio runtime, once.
    pub fn share(&self, pool: Arc<dyn Pool>) {
        self.desk.share(pool);
    }

    /// Where calls of a provider wait.
    pub(super) fn lane(&self, name: &str) -> Result<(&Arc<Desk>, usize), Error> {
        self.find(name).map(|known| (&self.desk, known.lane))
    }

    /// The provider a definition names; [`Error::UnknownProvider`] lists those there are.
    pub fn provider(&self, name: &str) -> Result<Arc<dyn ChatModel>, Error> {
        self.find(name).map(|known| known.model.clone())
    }

    fn find(&self, name: &str) -> Result<&Known, Error> {
        self.providers.get(name).ok_or_else(|| {
            let known: Vec<_> = self.provider_names().collect();
            Error::UnknownProvider(name.to_owned(), known.join(", "))
        })
    }

    /// The names definitions can use, sorted.
    pub fn provider_names(&self) -> impl Iterator<Item = &str> {
        self.providers.keys().map(String::as_str)
    }
}

/// The lane of a provider: processes with the same key share what it allows.
fn lane(name: &str, provider: &Provider, (parts, breaker): (u32, breaker::Config)) -> Lane {
    let key = provider.key.as_ref().map_or("", |key| key.expose_secret().trim());
    let hash = hex(Sha256::digest(key));
    let shared_as = Some(format!("{name}:{}", &hash[..KEY_DIGITS]));
    Lane { provider: name.to_owned(), shared_as, limits: provider.limits, parts, breaker }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_provider_is_told_what_there_is() {
        let models = Models::new(Config::default()).expect("the default is valid");
        assert!(models.provider("openai").is_ok());
        assert!(models.provider("scripted").is_ok());
        assert!(models.provider("anthropic").is_ok());
        let error = models.provider("azure").err().expect("not configured");
        assert_eq!(
            error.to_string(),
            r#"unknown model provider "azure"; configured: anthropic, openai, scripted"#
        );
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

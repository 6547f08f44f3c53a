//! The one reader of the environment: flags over environment over file over defaults, read once.
//!
//! **Invariant:** a [`Config`] has passed every check; nothing after it asks whether a setting makes sense.
//! **Invariant:** no error and no rendering shows a secret.

mod compose;
mod families;
mod known;
mod mcp;
mod providers;
mod relations;
mod render;
mod resolve;
mod settings;
mod table;
mod unknown;
mod value;
#[cfg(test)]
mod tests;

pub use render::markdown;
pub use resolve::Sources;

use std::{fmt, path::PathBuf};

use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::{
    graph, http, job, model,
    queue::nats,
    secrets,
    store::postgres,
    stream::{TokenConfig, dragonfly},
    telemetry::{self, scrub},
    tool, worker,
};

/// Every setting of every part of the program.
#[derive(Clone, Debug)]
pub struct Config {
    /// Logs and traces.
    pub telemetry: telemetry::Config,
    /// Probes, metrics and intake.
    pub http: http::Config,
    /// How many jobs, and for how long.
    pub worker: worker::Config,
    /// The message broker.
    pub nats: nats::Config,
    /// How requests are read and results are written.
    pub job: job::Config,
    /// The database.
    pub postgres: postgres::Config,
    /// The server of live events.
    pub dragonfly: dragonfly::Config,
    /// How text from models is cut into events.
    pub tokens: TokenConfig,
    /// Models and their providers.
    pub models: model::Config,
    /// Tools.
    pub tools: tool::Config,
    /// Secrets of definitions.
    pub secrets: secrets::Config,
    /// How large a definition may be.
    pub limits: graph::Limits,
    /// Where readers of large results find this service; without it their `dataref` names the pod itself.
    pub public_url: Option<Url>,
    /// Where `run` keeps its threads: `agent-executor` below `XDG_STATE_HOME` or `~/.local/state`; none without a home.
    pub state_folder: Option<PathBuf>,
    /// Nobody has said how much to log.
    quiet: bool,
    /// Every value that must not be shown, with the setting it is in.
    known_secrets: Vec<(String, SecretString)>,
    rendered: String,
    suspects: Vec<Problem>,
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The setting, or the file.
    pub name: String,
    /// What is wrong with it and what was expected; never its value when that is a secret.
    pub message: String,
}

impl Problem {
    fn new(name: &str, message: impl Into<String>) -> Self {
        Self { name: name.to_owned(), message: message.into() }
    }
}

/// All settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    /// Each of them; never empty.
    pub problems: Vec<Problem>,
}

impl Error {
    /// The code operators find in TROUBLESHOOTING.md.
    pub fn code(&self) -> &'static str {
        "CONFIG_INVALID"
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        write!(f, "{count} {} cannot be used", if count == 1 { "setting" } else { "settings" })?;
        for Problem { name, message } in &self.problems {
            write!(f, "\n  {name} {message}")?;
        }
        Ok(())
    }
}

impl Config {
    /// Reads, checks and composes all settings; the error names every one that cannot be used.
    pub fn load(sources: &Sources) -> Result<Self, Error> {
        let (settings, problems) = resolve::resolve(sources);
        compose::compose(&settings, problems).map_err(|problems| Error { problems })
    }

    /// Logs for a command whose answer is on standard output: on standard error, for people, and only
    /// warnings unless somebody asked for more.
    pub fn terminal_telemetry(&self) -> telemetry::Config {
        let level = if self.quiet { "warn" } else { &self.telemetry.log_level };
        telemetry::Config {
            log_level: level.to_owned(),
            log_format: telemetry::LogFormat::Text,
            log_target: telemetry::LogTarget::Stderr,
            otlp: None,
        }
    }

    /// Tells `scrubber` every secret of the settings.
    pub fn teach(&self, scrubber: &scrub::Scrubber) {
        scrubber.keep(self.known_secrets.iter().map(|(_, value)| value.expose_secret()));
    }

    /// The settings whose secrets are too short or too plain to be found in texts.
    pub fn unrecognisable(&self) -> impl Iterator<Item = &str> {
        let is_plain = |(_, value): &&(String, SecretString)| !scrub::is_recognisable(value.expose_secret());
        self.known_secrets
            .iter()
            .filter(is_plain)
            .map(|(name, _)| name.as_str())
            .filter(|name| !name.is_empty())
    }

    /// The settings as they hold, secrets masked, each with where it comes from.
    pub fn rendered(&self) -> &str {
        &self.rendered
    }

    /// Names in the environment that look like settings and are none, and why; worth a warning.
    pub fn suspects(&self) -> &[Problem] {
        &self.suspects
    }
}

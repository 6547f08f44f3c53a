//! `serve`: run jobs until the platform says stop.

use clap::Args;

use super::error::{Error, Exit};
use crate::{app, config::Config, telemetry};

const EXAMPLES: &str = "\
Examples:
  agent-executor serve
  agent-executor serve --port 9090 --max-concurrent-jobs 20
  NATS_URL=nats://nats:4222 DATABASE_URL=postgres://u@db/agents agent-executor serve

SIGTERM or Ctrl-C stops taking jobs, lets running ones go on for SHUTDOWN_GRACE_SECONDS, hands the rest over.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Port of probes, metrics and intake; 0 takes a free one
    #[arg(long, value_name = "PORT")]
    port: Option<String>,
    /// Jobs at once in this process
    #[arg(long, value_name = "NUMBER")]
    max_concurrent_jobs: Option<String>,
}

impl Arguments {
    /// The settings that the flags stand for.
    pub(super) fn flags(&self) -> Vec<(String, String)> {
        let flags = [("PORT", &self.port), ("MAX_CONCURRENT_JOBS", &self.max_concurrent_jobs)];
        flags.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?))).collect()
    }
}

pub(super) async fn run(config: Config) -> Result<Exit, Error> {
    let guard = telemetry::init(&config.telemetry)?;
    for suspect in config.suspects() {
        let (variable, reason) = (&suspect.name, &suspect.message);
        tracing::warn!(%variable, %reason, "the environment has a name that looks like a setting");
    }
    for variable in config.unrecognisable() {
        tracing::warn!(%variable, "a secret is so short or so plain that it cannot be kept out of texts that quote it");
    }
    let served = Box::pin(app::serve(config)).await;
    if let Err(error) = &served {
        // The log is what an operator of a pod sees; standard error may go elsewhere.
        tracing::error!(error = %format_args!("{error:#}"), "the service cannot go on");
    }
    guard.shutdown().await;
    served.map(|()| Exit::Success).map_err(Error::App)
}

//! `migrate`: create or update the tables, and on request what the message broker needs; safe beside running pods.

use std::{io::Write, time::Duration};

use clap::Args;

use super::{
    error::{Error, Exit},
    progress::Progress,
};
use crate::{
    config::Config,
    queue::nats::{Nats, Patience},
    store::postgres::PostgresStore,
};

/// How long the broker may be looked for: it may be starting beside us, and a Job is tried again.
const PATIENCE: Duration = Duration::from_secs(60);

const EXAMPLES: &str = "\
Examples:
  DATABASE_URL=postgres://user@host/agents agent-executor migrate
  agent-executor migrate --queue        before something looks at the consumer, such as KEDA

`serve` does the same at its start; an advisory lock keeps two of them apart.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Also create missing streams and the consumer, and check those that exist
    #[arg(long)]
    queue: bool,
}

pub(super) async fn run(config: &Config, arguments: &Arguments) -> Result<Exit, Error> {
    let progress = Progress::show("bringing the tables up to date");
    PostgresStore::migrate(&config.postgres).await?;
    drop(progress);
    writeln!(std::io::stdout(), "the tables are up to date")?;
    if arguments.queue {
        let progress = Progress::show("creating what is missing in the message broker");
        Nats::connect(config.nats.clone(), Patience::For(PATIENCE)).await?.close().await;
        drop(progress);
        writeln!(std::io::stdout(), "the streams and the consumer are there")?;
    }
    Ok(Exit::Success)
}

//! `migrate`: create or update the tables, safe beside running pods.

use std::io::Write;

use clap::Args;

use super::{
    error::{Error, Exit},
    progress::Progress,
};
use crate::{config::Config, store::postgres::PostgresStore};

const EXAMPLES: &str = "\
Example:
  DATABASE_URL=postgres://user@host/agents agent-executor migrate

`serve` does the same at its start; an advisory lock keeps two of them apart.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {}

pub(super) async fn run(config: &Config, _arguments: &Arguments) -> Result<Exit, Error> {
    let progress = Progress::show("bringing the tables up to date");
    PostgresStore::migrate(&config.postgres).await?;
    drop(progress);
    writeln!(std::io::stdout(), "the tables are up to date")?;
    Ok(Exit::Success)
}

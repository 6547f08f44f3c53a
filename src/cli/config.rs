//! `config`: what holds, and where it comes from.

use std::io::Write;

use clap::Args;

use super::error::{Error, Exit};
use crate::config::{self, Config};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The table of all settings for the README instead
    #[arg(long, hide = true)]
    markdown: bool,
}

pub(super) fn run(
    arguments: &Arguments,
    load: impl FnOnce() -> Result<Config, Error>,
) -> Result<Exit, Error> {
    let mut out = std::io::stdout().lock();
    if arguments.markdown {
        out.write_all(config::markdown().as_bytes())?;
        return Ok(Exit::Success);
    }
    let config = load()?;
    out.write_all(config.rendered().as_bytes())?;
    for suspect in config.suspects() {
        eprintln!("warning: {} in the environment {}", suspect.name, suspect.message);
    }
    Ok(Exit::Success)
}

//! `doctor`: what is wrong with the servers and the jobs, how to mend it, and the mending.
//!
//! **Invariant:** without `--repair` nothing is created or changed.
//! **Invariant:** repairs are those of the background duties: safe beside running executors, and repeatable. A
//! living lease is never touched.

mod look;
mod repair;
mod report;
#[cfg(test)]
mod tests;

use std::time::Duration;

use clap::Args;
use uuid::Uuid;

use self::report::Report;
use super::{
    error::{Error, Exit},
    progress::Progress,
};
use crate::{
    config::Config,
    queue::{
        Queue,
        nats::{self, Nats, Patience, Provision},
    },
    store::{Grace, Store, postgres::PostgresStore},
};

const EXAMPLES: &str = "\
Examples:
  agent-executor doctor                  what is wrong; nothing is printed when nothing is
  agent-executor doctor --verbose        the numbers too
  agent-executor doctor --repair         mend what can be mended, safe beside running executors
  agent-executor doctor --json | jq '.findings[].code'

Exit codes:
  0 nothing is wrong, or all of it was mended    1 something is wrong    2 wrong usage";

/// How long the broker may be looked for; a person waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// When something counts as wrong. Running executors take up the jobs of the dead one second after their lease,
/// queued ones after ten seconds, results after five: all of it has happened long before, unless slots are full.
const GRACE: Grace = Grace {
    lease: Duration::from_secs(10),
    waiting: Duration::from_secs(60),
    unpublished: Duration::from_secs(15),
};

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Mend what can be mended
    #[arg(long)]
    repair: bool,
    /// Print versions and numbers as well
    #[arg(long, short)]
    verbose: bool,
    /// Print JSON: servers, numbers and findings
    #[arg(long)]
    json: bool,
}

/// The servers that answer.
struct Reached {
    store: Option<PostgresStore>,
    nats: Option<Nats>,
}

/// Where jobs and their messages are.
type Servers<'a> = (&'a dyn Store, &'a dyn Queue);

pub(super) async fn run(config: &Config, arguments: &Arguments) -> Result<Exit, Error> {
    let progress = Progress::show("asking the servers");
    let mut report = Report::default();
    let reached = Reached {
        store: look::at_store(config, &mut report).await,
        nats: look::at_broker(config, &mut report).await,
    };
    look::at_stream_server(config, &mut report).await;
    look::at_load(&mut report);
    if let Reached { store: Some(store), nats: Some(nats) } = &reached {
        let servers: Servers<'_> = (store, nats);
        match look::at_messages(config, servers, &mut report).await {
            Ok(found) if arguments.repair => {
                drop(progress);
                let _progress = Progress::show("mending");
                repair::all(config, servers, &found, &mut report).await;
            }
            Ok(_) => {}
            Err(error) => report.unfinished(&error),
        }
    }
    if let Some(nats) = &reached.nats {
        nats.close().await;
    }
    if let Some(store) = &reached.store {
        store.close().await;
    }
    report.print(arguments.json, arguments.verbose)?;
    Ok(if report.is_healthy() { Exit::Success } else { Exit::Error })
}

/// A store that claims nothing.
async fn open_store(config: &Config) -> Result<PostgresStore, crate::store::Error> {
    PostgresStore::connect(&config.postgres, &format!("doctor/{}", Uuid::new_v4())).await
}

/// A connection that creates nothing.
async fn open_nats(config: &Config) -> Result<Nats, crate::queue::Error> {
    let settings = nats::Config { provision: Provision::Expect, ..config.nats.clone() };
    Nats::connect(settings, Patience::For(PATIENCE)).await
}

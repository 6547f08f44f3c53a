//! `cancel`: ask whichever executor has a job to stop it.

use std::{io::Write, time::Duration};

use clap::Args;
use serde_json::Value as Json;

use super::{
    error::{Error, Exit},
    progress::Progress,
};
use crate::{
    config::Config,
    queue::{
        self,
        control::{Cancel, Kind, MAX_BY_CHARS, MAX_REASON_CHARS, answer},
        nats::{Nats, Patience},
    },
    store::{Upkeep, postgres::PostgresStore},
};

/// How long the broker may be looked for; a person waits.
const PATIENCE: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  agent-executor cancel job-1 --reason 'wrong customer' --by ann
  agent-executor cancel conversation-7 --thread        every job of the thread that has not ended

Programs do the same with a NATS request:
  nats request agent.control.job-1 '{\"action\":\"cancel\",\"reason\":\"wrong customer\",\"by\":\"ann\"}'

When no executor can be asked, the wish is left in the database.

In the subject, what is no letter, digit, `-`, `_` or `~` of an id stands in percent code.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The job; or a thread, when there is no such job
    #[arg(value_name = "JOB")]
    target: String,
    /// The id names a thread
    #[arg(long, conflicts_with = "job")]
    thread: bool,
    /// The id names a job, never a thread
    #[arg(long)]
    job: bool,
    /// Why; stands in the result
    #[arg(long, value_name = "TEXT", value_parser = at_most(MAX_REASON_CHARS))]
    reason: Option<String>,
    /// Who; stands in the result
    #[arg(long, value_name = "NAME", value_parser = at_most(MAX_BY_CHARS))]
    by: Option<String>,
}

fn at_most(limit: usize) -> impl Fn(&str) -> Result<String, String> + Clone + Send + Sync + 'static {
    move |text| {
        let fits = text.chars().count() <= limit;
        fits.then(|| text.to_owned()).ok_or_else(|| format!("has more than {limit} characters"))
    }
}

pub(super) async fn run(config: &Config, arguments: &Arguments) -> Result<Exit, Error> {
    let kind = match (arguments.thread, arguments.job) {
        (true, _) => Some(Kind::Thread),
        (false, true) => Some(Kind::Job),
        (false, false) => None,
    };
    let cancel = Cancel {
        target: arguments.target.clone(),
        kind,
        reason: arguments.reason.clone(),
        by: arguments.by.clone(),
    };
    let progress = Progress::show("asking the executors");
    let answer = match ask(config, &cancel).await {
        Err(error @ (queue::Error::NoExecutor | queue::Error::Unavailable(_))) => {
            tell_store(config, &cancel, error).await
        }
        asked => Ok(asked?),
    };
    drop(progress);
    let answer = answer?;
    if let Some(error) = answer.get("error") {
        return Err(refused(error));
    }
    writeln!(std::io::stdout(), "{answer:#}")?;
    Ok(Exit::Success)
}

async fn ask(config: &Config, cancel: &Cancel) -> Result<Json, queue::Error> {
    let nats = Nats::connect(config.nats.clone(), Patience::For(PATIENCE)).await?;
    let answer = nats.cancel(cancel).await;
    nats.close().await;
    answer
}

/// Leaves the wish where every executor looks, when none can be asked. If that fails too, `unheard` is what to say:
/// the way over the broker is the one that is meant to work.
async fn tell_store(config: &Config, cancel: &Cancel, unheard: queue::Error) -> Result<Json, Error> {
    let noted = async {
        let store = PostgresStore::connect(&config.postgres, "cancel").await?;
        let met = store.wish(&cancel.target, cancel.target_kind(), &cancel.wish()).await;
        store.close().await;
        met
    };
    match noted.await {
        Ok(met) => {
            eprintln!("note: {unheard}; the wish is in the database, where executors find it");
            Ok(answer(&met, &[]))
        }
        Err(error) => {
            tracing::debug!(code = error.code(), %error, "the wish cannot be left in the database");
            Err(unheard.into())
        }
    }
}

/// What the executor answered instead of doing it.
fn refused(error: &Json) -> Error {
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    Error::Control { code: text("code"), message: text("message") }
}

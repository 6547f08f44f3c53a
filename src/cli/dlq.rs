//! `dlq`: look at dead letters, send them again, or say that nothing is to be done about them.
//!
//! It deals with the copies in Postgres. Those in the dead-letter stream stay until the stream removes them.
//!
//! **Invariant:** payloads are printed only on request: they hold prompts.

mod print;
mod replay;

use std::{io::Write, time::Duration};

use clap::{Args, Subcommand};
use uuid::Uuid;

use super::error::{Error, Exit};
use crate::{
    config::Config,
    ids::{JobId, ThreadId},
    store::{Letter, LetterFilter, Letters, postgres::PostgresStore},
};

const EXAMPLES: &str = "\
Examples:
  agent-executor dlq list --reason poison --since 12h
  agent-executor dlq show 17
  agent-executor dlq show 17 --payload | jq .
  agent-executor dlq replay 17 --dry-run
  agent-executor dlq replay --all --reason definition_invalid
  agent-executor dlq discard --older-than 7d --yes

A job that has ended never runs twice: its replay runs as a job of its own, JOB~replay<letter>-<number>, on the same
thread, from the last checkpoint of the old one or, without any, with its input. The job of a letter that never came
to an end, or was never known, keeps its id.

The copies in the dead-letter stream are not touched.";

/// Letters read at once.
const PAGE: u32 = 500;

/// Most letters of one command: a minute of replays. The next one goes on.
const MOST: usize = 10_000;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List letters nobody has dealt with, newest first
    List(List),
    /// Show one letter: why, its job, its headers
    Show(Show),
    /// Send letters into the queue again
    Replay(Replay),
    /// Note that nothing is to be done about letters
    Discard(Discard),
}

#[derive(Debug, Args)]
struct List {
    /// Only this reason
    #[arg(long)]
    reason: Option<String>,
    /// Only this job
    #[arg(long, value_parser = JobId::parse)]
    job: Option<JobId>,
    /// Only this thread
    #[arg(long, value_parser = ThreadId::parse)]
    thread: Option<ThreadId>,
    /// Only those of the last time, such as 90s, 30m, 12h or 7d
    #[arg(long, value_name = "TIME", value_parser = time_span)]
    since: Option<Duration>,
    /// Also those that were replayed or discarded
    #[arg(long)]
    all: bool,
    /// Go on below this id
    #[arg(long, value_name = "ID")]
    below: Option<i64>,
    /// Most letters
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Show {
    /// The letter
    id: i64,
    /// Print the payload, and nothing else unless --json is given too; it may hold prompts
    #[arg(long)]
    payload: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Replay {
    /// The letters
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with_all = ["all", "reason"])]
    ids: Vec<i64>,
    /// Every letter of --reason that nobody has dealt with
    #[arg(long, requires = "reason")]
    all: bool,
    /// Only this reason
    #[arg(long, requires = "all")]
    reason: Option<String>,
    /// Say what would be sent, and send nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(true))]
struct Discard {
    /// The letters
    #[arg(value_name = "ID", group = "which", conflicts_with_all = ["reason", "older_than"])]
    ids: Vec<i64>,
    /// Those of this reason
    #[arg(long, group = "which")]
    reason: Option<String>,
    /// Those older than this, such as 12h or 7d
    #[arg(long, group = "which", value_name = "TIME", value_parser = time_span)]
    older_than: Option<Duration>,
    /// Really do it
    #[arg(long)]
    yes: bool,
}

/// A number and its unit.
fn time_span(text: &str) -> Result<Duration, &'static str> {
    let expected = "must be a whole number and a unit: 90s, 30m, 12h or 7d";
    let seconds = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 24 * 3600,
        _ => return Err(expected),
    };
    let number: u32 = text[..text.len() - 1].parse().map_err(|_| expected)?;
    Ok(Duration::from_secs(u64::from(number) * seconds))
}

pub(super) async fn run(config: &Config, arguments: &Arguments) -> Result<Exit, Error> {
    let store = PostgresStore::connect(&config.postgres, &format!("dlq/{}", Uuid::new_v4())).await?;
    let done = match &arguments.command {
        Command::List(arguments) => list(&store, arguments).await,
        Command::Show(arguments) => print::show(&store, arguments).await,
        Command::Replay(arguments) => replay::run(config, &store, arguments).await,
        Command::Discard(arguments) => discard(&store, arguments).await,
    };
    store.close().await;
    done
}

async fn list(store: &PostgresStore, arguments: &List) -> Result<Exit, Error> {
    let filter = LetterFilter {
        reason: arguments.reason.clone(),
        job_id: arguments.job.clone(),
        thread_id: arguments.thread.clone(),
        newer_than: arguments.since,
        below: arguments.below,
        dealt_with: arguments.all,
        ..LetterFilter::default()
    };
    let letters = store.letters(&filter, arguments.limit).await?;
    print::list(&letters, arguments.json)?;
    Ok(Exit::Success)
}

/// Every open letter of the filter, the oldest first: in the order in which they were sent.
async fn open_letters(store: &PostgresStore, mut filter: LetterFilter) -> Result<Vec<Letter>, Error> {
    let mut found: Vec<Letter> = Vec::new();
    while found.len() < MOST {
        let page = store.letters(&filter, PAGE).await?;
        let Some(last) = page.last() else { break };
        filter.below = Some(last.id);
        found.extend(page);
    }
    found.reverse();
    Ok(found)
}

async fn discard(store: &PostgresStore, arguments: &Discard) -> Result<Exit, Error> {
    let ids = if arguments.ids.is_empty() {
        let filter = LetterFilter {
            reason: arguments.reason.clone(),
            older_than: arguments.older_than,
            ..LetterFilter::default()
        };
        open_letters(store, filter).await?.iter().map(|letter| letter.id).collect()
    } else {
        arguments.ids.clone()
    };
    if !arguments.yes {
        return Err(Error::Unconfirmed(ids.len()));
    }
    for &id in &arguments.ids {
        store.letter(id).await?.ok_or(Error::NoLetter(id))?;
    }
    let mut discarded = 0;
    for page in ids.chunks(usize::try_from(PAGE).expect("a small number")) {
        discarded += store.discard(page).await?;
    }
    let mut out = std::io::stdout();
    writeln!(out, "discarded {discarded}")?;
    Ok(Exit::Success)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        assert_eq!(time_span("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(time_span("7d"), Ok(Duration::from_secs(604_800)));
        for wrong in ["", "7", "d", "-1h", "1.5h", "1w", "ü"] {
            assert!(time_span(wrong).is_err(), "{wrong}");
        }
    }
}

//! `threads`: what is stored of conversations, and changing it by hand.
//!
//! **Invariant:** a thread is changed only under a claim of its own, never beside a job.

mod change;
mod export;
mod print;

use clap::{Args, Subcommand};
use uuid::Uuid;

use super::{
    error::{Error, Exit},
    listing::Listing,
};
use crate::{
    config::Config,
    ids::{CheckpointId, Namespace, ThreadId},
    store::{Barred, Checkpoints, Saved, ThreadFilter, ThreadView, Threads, postgres::PostgresStore},
};

const EXAMPLES: &str = "\
Examples:
  agent-executor threads list --prefix customer-
  agent-executor threads show customer-7
  agent-executor threads history customer-7 --limit 20
  agent-executor threads state customer-7 --json | jq .values
  agent-executor threads fork customer-7 --checkpoint 1f1e533b-1e75-67ed-bfff-4b5d0ac8932d
  agent-executor threads fork customer-7 --to experiment-1
  agent-executor threads update customer-7 --values '{\"plan\": []}' --as-node planner
  agent-executor threads export customer-7 > customer-7.jsonl
  agent-executor threads report --limit 10
  agent-executor threads delete customer-7 --yes

It works on threads that Python LangGraph wrote as well. States hold what people and models said: `state`, `history
--json` and `export` print it.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List threads by id
    List(List),
    /// Say what is known of a thread
    Show(One),
    /// List the checkpoints of a thread, newest first
    History(History),
    /// Print the state of a thread at its newest or another checkpoint
    State(State),
    /// Make an older checkpoint the newest again, or copy it to a new thread
    Fork(change::Fork),
    /// Write to the state of a thread
    Update(change::Update),
    /// Remove a thread; the results of its jobs are kept
    Delete(change::Delete),
    /// Print everything that is stored of a thread, one JSON object per line
    Export(Export),
    /// Say what threads take in the database, the largest first
    Report(Report),
}

#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    listing: Listing,
    /// Most threads
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

#[derive(Debug, Args)]
struct One {
    /// The thread
    #[arg(value_parser = ThreadId::parse)]
    thread: ThreadId,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct History {
    #[command(flatten)]
    one: One,
    /// Of this nested graph: its namespace, as `threads show` lists it
    #[arg(long, value_name = "NS", default_value = "", hide_default_value = true)]
    ns: String,
    /// Most checkpoints
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
}

#[derive(Debug, Args)]
struct State {
    #[command(flatten)]
    one: One,
    /// At this checkpoint; the newest when left out
    #[arg(long, value_name = "ID", value_parser = CheckpointId::parse)]
    checkpoint: Option<CheckpointId>,
    /// Of this nested graph: its namespace, as `threads show` lists it
    #[arg(long, value_name = "NS", default_value = "", hide_default_value = true)]
    ns: String,
}

#[derive(Debug, Args)]
struct Export {
    /// The thread
    #[arg(value_parser = ThreadId::parse)]
    thread: ThreadId,
}

#[derive(Debug, Args)]
struct Report {
    /// Only this thread
    #[arg(long, value_parser = ThreadId::parse)]
    thread: Option<ThreadId>,
    /// Most threads
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: &Config, arguments: &Arguments) -> Result<Exit, Error> {
    let store = PostgresStore::connect(&config.postgres, &format!("threads/{}", Uuid::new_v4())).await?;
    let done = dispatch(config, &store, &arguments.command).await;
    store.close().await;
    done.map(|()| Exit::Success)
}

async fn dispatch(config: &Config, store: &PostgresStore, command: &Command) -> Result<(), Error> {
    match command {
        Command::List(List { listing: Listing { prefix, after, json }, limit }) => {
            let filter = ThreadFilter { id: None, prefix: prefix.clone(), after: after.clone() };
            print::list(&store.threads(&filter, *limit).await?, *json)?;
        }
        Command::Show(One { thread, json }) => {
            let (view, graphs) = (known(store, thread).await?, store.graphs(thread).await?);
            print::show(&view, &graphs, *json)?;
        }
        Command::History(History { one, ns, limit }) => {
            known(store, &one.thread).await?;
            let ns = Namespace::from_stored(ns);
            print::history(&store.history(&one.thread, &ns, *limit).await?, one.json)?;
        }
        Command::State(State { one, checkpoint, ns }) => {
            let ns = Namespace::from_stored(ns);
            let saved = checkpoint_of(store, (&one.thread, &ns), checkpoint.as_ref()).await?;
            print::state(&saved, one.json)?;
        }
        Command::Fork(arguments) => change::fork(store, arguments).await?,
        Command::Update(arguments) => change::update(config, store, arguments).await?,
        Command::Delete(arguments) => change::delete(store, arguments).await?,
        Command::Export(Export { thread }) => {
            let view = known(store, thread).await?;
            export::run(store, thread, &view).await?;
        }
        Command::Report(Report { thread, limit, json }) => {
            print::report(&store.sizes(thread.as_ref(), *limit).await?, *json)?;
        }
    }
    Ok(())
}

/// What is known of a thread that must be there.
async fn known(store: &PostgresStore, thread: &ThreadId) -> Result<ThreadView, Error> {
    let filter = ThreadFilter { id: Some(thread.clone()), ..ThreadFilter::default() };
    store.threads(&filter, 1).await?.pop().ok_or_else(|| Error::Thread(thread.clone(), Barred::Unknown))
}

/// A checkpoint that must be there.
async fn checkpoint_of(
    store: &PostgresStore,
    (thread, ns): (&ThreadId, &Namespace),
    id: Option<&CheckpointId>,
) -> Result<Saved, Error> {
    let found = store.load(thread, ns, id).await?;
    found.ok_or_else(|| Error::Thread(thread.clone(), Barred::Unknown))
}

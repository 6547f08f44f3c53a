//! Changes to threads, each under a claim.

use std::io::{self, Write};

use clap::Args;
use serde_json::{Map as JsonMap, Value as Json, json};

use super::{checkpoint_of, known};
use crate::{
    cli::{error::Error, request},
    config::Config,
    graph::CompiledGraph,
    ids::{CheckpointId, Clock, Namespace, SystemClock, ThreadId},
    run::{self, Occasion},
    store::{
        Advance, AgentRef, Agents, Checkpoints, Commit, Held, Put, Saved, Threads, postgres::PostgresStore,
    },
};

#[derive(Debug, Args)]
pub(super) struct Fork {
    /// The thread
    #[arg(value_parser = ThreadId::parse)]
    thread: ThreadId,
    /// The checkpoint; the newest when left out
    #[arg(long, value_name = "ID", value_parser = CheckpointId::parse, required_unless_present = "to")]
    checkpoint: Option<CheckpointId>,
    /// Copy it, and those before it, to this new thread
    #[arg(long, value_name = "THREAD", value_parser = ThreadId::parse)]
    to: Option<ThreadId>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Update {
    /// The thread
    #[arg(value_parser = ThreadId::parse)]
    thread: ThreadId,
    /// A JSON object of channels and what is written to them; `-` reads it from standard input
    #[arg(long, value_name = "JSON")]
    values: String,
    /// Write as this node, whose edges lead on; without it, what was about to run still is
    #[arg(long, value_name = "NODE")]
    as_node: Option<String>,
    /// On top of this checkpoint; the newest when left out
    #[arg(long, value_name = "ID", value_parser = CheckpointId::parse)]
    checkpoint: Option<CheckpointId>,
    /// The thread's definition, in a file
    #[arg(long, value_name = "FILE", conflicts_with = "agent")]
    definition: Option<String>,
    /// The thread's definition, stored; found by its hash when left out
    #[arg(long, value_name = "AGENT")]
    agent: Option<String>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Delete {
    /// The threads
    #[arg(required = true, value_name = "THREAD", value_parser = ThreadId::parse)]
    threads: Vec<ThreadId>,
    /// Really do it
    #[arg(long)]
    yes: bool,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

pub(super) async fn fork(store: &PostgresStore, arguments: &Fork) -> Result<(), Error> {
    let Fork { thread, checkpoint, to, json } = arguments;
    let saved = checkpoint_of(store, (thread, &Namespace::root()), checkpoint.as_ref()).await?;
    if let Some(to) = to {
        let copied = store.copy_thread(thread, &saved.checkpoint.id, to).await?;
        let copied = copied.map_err(|barred| Error::Thread(thread.clone(), barred))?;
        let id = &saved.checkpoint.id;
        let text = format!("copied {copied} checkpoints to {to}; newest {id}");
        tell(*json, text, json!({"thread_id": to, "checkpoint_id": id, "checkpoints": copied}))?;
        return Ok(());
    }
    let put = under_claim(store, thread, |held| Ok(run::fork(&saved, &occasion(held)))).await?;
    let text = format!("forked: checkpoint {put} is the newest now");
    tell(*json, text, json!({"thread_id": thread, "checkpoint_id": put}))?;
    Ok(())
}

pub(super) async fn update(config: &Config, store: &PostgresStore, arguments: &Update) -> Result<(), Error> {
    let Update { thread, values, as_node, checkpoint, .. } = arguments;
    let text = if values == "-" { request::read("-")? } else { values.clone().into_bytes() };
    let values: JsonMap<String, Json> =
        serde_json::from_slice(&text).map_err(|error| Error::Values(error.to_string()))?;
    known(store, thread).await?;
    let root = Namespace::root();
    let saved = checkpoint_of(store, (thread, &root), checkpoint.as_ref()).await?;
    let graph = graph_of(config, store, (arguments, &saved)).await?;
    let held = claim(store, thread).await?;
    // The newest checkpoint may be another one since it was looked at.
    let stored = async {
        let saved = match (&held.head, checkpoint) {
            (Some(head), None) if *head != saved.checkpoint.id => {
                checkpoint_of(store, (thread, &root), Some(head)).await?
            }
            _ => saved,
        };
        let put = run::update(&graph, &saved, (values, as_node.as_deref()), &occasion(&held));
        commit(store, &held, put.map_err(Error::Failed)?).await
    };
    let stored = stored.await;
    store.let_go(&held).await?;
    let id = stored?;
    let text = format!("updated: checkpoint {id} is the newest now");
    tell(arguments.json, text, json!({"thread_id": thread, "checkpoint_id": id}))?;
    Ok(())
}

/// The definition of a thread: the one that is named, or the stored one it was made with.
async fn graph_of(
    config: &Config,
    store: &PostgresStore,
    (arguments, saved): (&Update, &Saved),
) -> Result<CompiledGraph, Error> {
    let pinned = saved.metadata.extra.get(run::DEFINITION).and_then(Json::as_str);
    let bytes = match (&arguments.definition, &arguments.agent, pinned) {
        (Some(path), ..) => request::read(path)?,
        (None, Some(name), _) => {
            let found = store.agent(&AgentRef::parse(name)).await?;
            found.ok_or_else(|| Error::NoAgent(name.clone()))?.1.to_vec()
        }
        (None, None, Some(hash)) => {
            let found = store.agent(&AgentRef::Hash(hash.to_owned())).await?;
            found.ok_or(Error::NoDefinition)?.1.to_vec()
        }
        (None, None, None) => return Err(Error::NoDefinition),
    };
    let stored = run::referred(store, &bytes).await?;
    run::compile(&bytes, &config.limits, &stored).map_err(|mistakes| {
        let mistakes: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
        Error::Mismatch(mistakes.join("; "))
    })
}

pub(super) async fn delete(store: &PostgresStore, arguments: &Delete) -> Result<(), Error> {
    if !arguments.yes {
        return Err(Error::UnconfirmedThreads(arguments.threads.len()));
    }
    for thread in &arguments.threads {
        let removed = store.delete_thread(thread).await?;
        let removed = removed.map_err(|barred| Error::Thread(thread.clone(), barred))?;
        let text = format!("removed {thread}: {removed} checkpoints");
        tell(arguments.json, text, json!({"thread_id": thread, "checkpoints": removed}))?;
    }
    Ok(())
}

/// Says what was done.
fn tell(as_json: bool, text: String, json: Json) -> io::Result<()> {
    let line = if as_json { json.to_string() } else { text };
    writeln!(io::stdout(), "{line}")
}

fn occasion(held: &Held) -> Occasion {
    Occasion { newest: held.head.clone(), now: SystemClock.now(), epoch: held.epoch }
}

async fn claim(store: &PostgresStore, thread: &ThreadId) -> Result<Held, Error> {
    store.seize(thread).await?.map_err(|barred| Error::Thread(thread.clone(), barred))
}

/// Stores what `make` makes while nobody else may write to the thread; the id of the new checkpoint.
async fn under_claim(
    store: &PostgresStore,
    thread: &ThreadId,
    make: impl FnOnce(&Held) -> Result<Put, Error>,
) -> Result<CheckpointId, Error> {
    let held = claim(store, thread).await?;
    let stored = match make(&held) {
        Ok(put) => commit(store, &held, put).await,
        Err(error) => Err(error),
    };
    store.let_go(&held).await?;
    stored
}

async fn commit(store: &PostgresStore, held: &Held, put: Put) -> Result<CheckpointId, Error> {
    let id = put.checkpoint.id.clone();
    let advance = Advance { from: held.head.clone(), to: id.clone() };
    let empty = Commit::empty(held.thread_id.clone(), held.epoch);
    store.commit(Commit { advance: Some(advance), puts: vec![put], ..empty }).await?;
    Ok(id)
}

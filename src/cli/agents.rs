//! `agents`: definitions stored in Postgres, so that a message can name one instead of carrying it.

mod catalogue;
mod stamp;

use std::io::{self, Write};

use bytes::Bytes;
use clap::{Args, Subcommand};
use serde_json::{Value as Json, json};
use uuid::Uuid;

use super::{
    columns,
    error::{Error, Exit},
    listing::Listing,
    request,
};
use crate::{
    config::Config,
    graph::Stored,
    run,
    store::{AgentFilter, AgentRef, AgentView, Agents, NewAgent, PutAgent, postgres::PostgresStore},
};

const EXAMPLES: &str = "\
Examples:
  agent-executor agents put billing.json --version 3
  agent-executor agents list --prefix bill
  agent-executor agents get billing@3 > billing.json
  agent-executor agents versions billing
  agent-executor agents stamp graph-definitions/task-agent.json --catalogue agents.csv --dry-run

A request names a stored definition by \"agent\": \"billing\" (the version stored last), \"billing@3\" or \"sha256:…\".
Nothing is ever replaced: a version that is taken by other content is refused.

A catalogue is a CSV file with a header, or a JSON list of objects. Its columns are `name`, `version` (that of the
template when left out), `description`, and the variables the template declares.";

/// The code of a version that stands for other content already.
const AGENT_VERSION_TAKEN: &str = "AGENT_VERSION_TAKEN";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check definitions and store them
    Put(Put),
    /// List stored definitions: the newest version of each name
    List(List),
    /// Print a stored definition
    Get(Get),
    /// List the versions of a name, newest first
    Versions(Versions),
    /// Make many definitions from one with variables, and store them
    Stamp(stamp::Arguments),
}

#[derive(Debug, Args)]
struct Put {
    /// Definitions; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<String>,
    /// What messages call it; its own `name` when left out
    #[arg(long)]
    name: Option<String>,
    /// Its version; its own `version` when left out
    #[arg(long)]
    version: Option<String>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    listing: Listing,
    /// Most names
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

#[derive(Debug, Args)]
struct Get {
    /// `name`, `name@version` or `sha256:…`
    agent: String,
    /// Print what is known of it instead
    #[arg(long)]
    about: bool,
}

#[derive(Debug, Args)]
struct Versions {
    /// The name
    name: String,
    /// Most versions
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: &Config, arguments: &Arguments) -> Result<Exit, Error> {
    if let Command::Stamp(arguments) = &arguments.command {
        return stamp::run(config, arguments).await;
    }
    let store = connect(config).await?;
    let done = match &arguments.command {
        Command::Put(arguments) => put(config, &store, arguments).await,
        Command::List(List { listing: Listing { prefix, after, json }, limit }) => {
            let filter = AgentFilter { name: None, prefix: prefix.clone(), after: after.clone() };
            let found = store.agents(&filter, *limit).await?;
            print(&found, *json).map(|()| Exit::Success).map_err(Error::from)
        }
        Command::Get(arguments) => get(&store, arguments).await,
        Command::Versions(arguments) => versions(&store, arguments).await,
        Command::Stamp(arguments) => stamp::run(config, arguments).await,
    };
    store.close().await;
    done
}

async fn connect(config: &Config) -> Result<PostgresStore, Error> {
    Ok(PostgresStore::connect(&config.postgres, &format!("agents/{}", Uuid::new_v4())).await?)
}

/// A definition that can run, ready to be stored.
struct Checked {
    agent: NewAgent,
}

impl Checked {
    /// Checks `definition`; every mistake as a line.
    fn of(
        (definition, stored): (Bytes, &Stored),
        name: &str,
        version: &str,
        config: &Config,
    ) -> Result<Self, Vec<String>> {
        let lines = |mistakes: Vec<crate::graph::Diagnostic>| {
            mistakes.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let graph = run::compile(&definition, &config.limits, stored).map_err(lines)?;
        let mut wrong: Vec<_> =
            graph.unset.iter().map(|name| format!("/variables/{name}: has no value")).collect();
        if !AgentRef::can_be_called(name, version) {
            wrong.push(format!(
                "{name}@{version}: name and version must have 1 to 254 characters together, no white space and no @"
            ));
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let hash = graph.hash.to_string();
        let agent = NewAgent { name: name.to_owned(), version: version.to_owned(), hash, definition };
        Ok(Self { agent })
    }

    /// Stores it and says so; `false` when its version is taken.
    async fn store(&self, store: &dyn Agents, out: &mut impl Write, as_json: bool) -> Result<bool, Error> {
        let NewAgent { name, version, hash, .. } = &self.agent;
        let put = store.put_agent(&self.agent).await?;
        let (word, is_stored) = match &put {
            PutAgent::New => ("stored", true),
            PutAgent::Known => ("known", true),
            PutAgent::Taken(_) => ("taken", false),
        };
        if let PutAgent::Taken(other) = &put {
            eprintln!(
                "error: [{AGENT_VERSION_TAKEN}] {name}@{version} is sha256:{other}, and this is sha256:{hash}"
            );
        } else if as_json {
            let line =
                json!({"name": name, "version": version, "hash": format!("sha256:{hash}"), "is": word});
            writeln!(out, "{line}")?;
        } else {
            writeln!(out, "{word:<6}  {name}@{version}  sha256:{hash}")?;
        }
        Ok(is_stored)
    }
}

async fn put(config: &Config, store: &PostgresStore, arguments: &Put) -> Result<Exit, Error> {
    if arguments.files.len() > 1 && (arguments.name.is_some() || arguments.version.is_some()) {
        return Err(Error::OneAgent);
    }
    let mut exit = Exit::Success;
    let mut out = io::stdout();
    for path in &arguments.files {
        let bytes = request::read(path)?;
        let definition: Json = serde_json::from_slice(&bytes).unwrap_or_default();
        let own = |field: &str| definition[field].as_str().map(str::to_owned);
        let name = arguments.name.clone().or_else(|| own("name"));
        let version = arguments.version.clone().or_else(|| own("version"));
        let stored = run::referred(store, &bytes).await?;
        let checked = match (name, version) {
            (Some(name), Some(version)) => Checked::of((bytes.into(), &stored), &name, &version, config),
            (None, _) => Err(vec!["the definition has no `name`; --name gives one".to_owned()]),
            (_, None) => Err(vec!["the definition has no `version`; --version gives one".to_owned()]),
        };
        let is_stored = match checked {
            Ok(checked) => checked.store(store, &mut out, arguments.json).await?,
            Err(mistakes) => {
                told_mistakes(path, &mistakes);
                false
            }
        };
        if !is_stored {
            exit = Exit::Error;
        }
    }
    Ok(exit)
}

/// Says what is wrong with a definition.
fn told_mistakes(of: &str, mistakes: &[String]) {
    eprintln!("error: [DEFINITION_INVALID] {of} is not stored");
    for mistake in mistakes {
        eprintln!("  {mistake}");
    }
}

async fn get(store: &PostgresStore, arguments: &Get) -> Result<Exit, Error> {
    let not_found = || Error::NoAgent(arguments.agent.clone());
    let (view, definition) = store.agent(&AgentRef::parse(&arguments.agent)).await?.ok_or_else(not_found)?;
    let mut out = io::stdout();
    if arguments.about {
        writeln!(out, "{:#}", listed(&view))?;
    } else {
        out.write_all(&definition)?;
    }
    Ok(Exit::Success)
}

async fn versions(store: &PostgresStore, arguments: &Versions) -> Result<Exit, Error> {
    let filter = AgentFilter { name: Some(arguments.name.clone()), ..AgentFilter::default() };
    let found = store.agents(&filter, arguments.limit).await?;
    if found.is_empty() {
        return Err(Error::NoAgent(arguments.name.clone()));
    }
    print(&found, arguments.json)?;
    Ok(Exit::Success)
}

fn listed(view: &AgentView) -> Json {
    json!({
        "name": view.name,
        "version": view.version,
        "hash": format!("sha256:{}", view.hash),
        "bytes": view.bytes,
        "stored_at": view.stored_at.rfc3339_millis(),
        "versions": view.versions,
    })
}

fn print(views: &[AgentView], as_json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if as_json {
        return views.iter().try_for_each(|view| writeln!(out, "{}", listed(view)));
    }
    let row = |view: &AgentView| {
        [
            view.name.clone(),
            view.version.clone(),
            view.versions.to_string(),
            view.stored_at.rfc3339_millis(),
            view.bytes.to_string(),
            format!("sha256:{}", view.hash),
        ]
    };
    let rows: Vec<_> = views.iter().map(row).collect();
    columns::write(&mut out, ["NAME", "VERSION", "VERSIONS", "STORED", "BYTES", "HASH"], &rows)
}

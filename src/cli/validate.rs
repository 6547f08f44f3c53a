//! `validate`: every mistake of every file, before anything runs.

use std::io::Write;

use clap::Args;

use super::{
    error::{Error, Exit},
    request,
};
use crate::{config::Config, graph};

const EXAMPLES: &str = "\
Examples:
  agent-executor validate graph.json request.json
  cat graph.json | agent-executor validate -
  agent-executor validate --schema > agent-definition.schema.json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Definitions or whole requests; `-` is standard input
    #[arg(required_unless_present = "schema", value_name = "FILE")]
    files: Vec<String>,
    /// Print the JSON Schema of a definition instead
    #[arg(long, conflicts_with = "files")]
    schema: bool,
}

pub(super) fn run(config: &Config, arguments: &Arguments) -> Result<Exit, Error> {
    let mut out = std::io::stdout().lock();
    if arguments.schema {
        writeln!(out, "{:#}", graph::definition_schema())?;
        return Ok(Exit::Success);
    }
    let mut exit = Exit::Success;
    for path in &arguments.files {
        if !report(&mut out, config, path)? {
            exit = Exit::Error;
        }
    }
    Ok(exit)
}

/// Writes what is to say about a file; whether it is good.
fn report(out: &mut impl Write, config: &Config, path: &str) -> Result<bool, Error> {
    let bytes = match request::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            writeln!(out, "bad  {path}\n  {error}{}", cause.unwrap_or_default())?;
            return Ok(false);
        }
    };
    if is_schema(&bytes) {
        // The shipped JSON Schema lies beside the definitions, where `*.json` finds it.
        writeln!(out, "ok   {path}: a JSON Schema, not a definition")?;
        return Ok(true);
    }
    match request::check(&bytes, config) {
        Ok(Some(graph)) => write!(out, "ok   {path}: {}", graph::describe(&graph))?,
        Ok(None) => writeln!(out, "ok   {path}: runs a stored definition")?,
        Err(rejected) => {
            writeln!(out, "bad  {path}: {rejected}")?;
            for diagnostic in &rejected.details {
                writeln!(out, "  {diagnostic}")?;
            }
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the file is a JSON Schema: definitions have no `properties` and no `$defs`.
fn is_schema(bytes: &[u8]) -> bool {
    let json: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    let is_dialect =
        |schema: &serde_json::Value| schema.as_str().is_some_and(|url| url.contains("json-schema.org"));
    json.get("$schema").is_some_and(is_dialect)
        && (json.get("properties").is_some() || json.get("$defs").is_some())
}

//! `validate`: every mistake of every file, before anything runs.

use std::io::Write;

use clap::Args;

use serde_json::{Value as Json, json};

use super::{
    error::{Error, Exit},
    prompts,
    request::{self, Found, not_looked_up},
};
use crate::{
    app,
    config::Config,
    graph,
    run::{self, Rejected},
    tool::Toolbox,
};

const EXAMPLES: &str = "\
Examples:
  agent-executor validate graph.json request.json
  cat graph.json | agent-executor validate -
  agent-executor validate graph.json --json | jq .secrets
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
    /// Print what each file holds as one JSON object per line
    #[arg(long, conflicts_with = "schema")]
    json: bool,
}

pub(super) async fn run(config: &Config, arguments: &Arguments) -> Result<Exit, Error> {
    let mut out = std::io::stdout();
    let toolbox = app::toolbox(config).map_err(Error::App)?;
    if arguments.schema {
        writeln!(out, "{:#}", graph::definition_schema())?;
        return Ok(Exit::Success);
    }
    let mut exit = Exit::Success;
    for path in &arguments.files {
        let is_good = match arguments.json {
            true => report_json(&mut out, (config, &toolbox), path).await?,
            false => report(&mut out, (config, &toolbox), path).await?,
        };
        if !is_good {
            exit = Exit::Error;
        }
    }
    toolbox.close().await;
    Ok(exit)
}

/// Writes what is to say about a file; whether it is good.
async fn report(out: &mut impl Write, by: (&Config, &Toolbox), path: &str) -> Result<bool, Error> {
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
    match check(by, path, bytes).await {
        Ok(Found::Graph(graph)) => write!(out, "ok   {path}: {}", graph::describe(&graph))?,
        Ok(Found::Stored) => writeln!(out, "ok   {path}: runs a stored definition")?,
        Ok(Found::Refers(refers)) => writeln!(out, "ok   {path}: {}", not_looked_up(&refers))?,
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

async fn check(
    (config, toolbox): (&Config, &Toolbox),
    path: &str,
    bytes: Vec<u8>,
) -> Result<Found, Rejected> {
    let graph = match request::check(&prompts::inline(path, bytes)?, config)? {
        Found::Graph(graph) => graph,
        other @ (Found::Refers(_) | Found::Stored) => return Ok(other),
    };
    let details = run::check_tools_here(&graph, toolbox).await;
    if details.is_empty() {
        return Ok(Found::Graph(graph));
    }
    Err(Rejected { message: "a tool of the agent definition cannot be used here".to_owned(), details })
}

/// The same for programs: `{"file", "valid", …}` with what the graph will do, or with the mistakes.
async fn report_json(out: &mut impl Write, by: (&Config, &Toolbox), path: &str) -> Result<bool, Error> {
    let bad = |mistakes: Json| json!({ "file": path, "valid": false, "mistakes": mistakes });
    let said = match request::read(path) {
        Err(error) => bad(json!([{ "pointer": "", "message": error.to_string() }])),
        Ok(bytes) if is_schema(&bytes) => json!({ "file": path, "valid": true, "kind": "json_schema" }),
        Ok(bytes) => match check(by, path, bytes).await {
            Ok(Found::Graph(graph)) => {
                let mut said = json!({ "file": path, "valid": true });
                let explained = serde_json::to_value(graph::explain(&graph)).unwrap_or_default();
                if let (Json::Object(said), Json::Object(explained)) = (&mut said, explained) {
                    said.extend(explained);
                }
                said
            }
            Ok(Found::Stored) => json!({ "file": path, "valid": true, "kind": "stored_definition" }),
            Ok(Found::Refers(refers)) => json!({ "file": path, "valid": true, "not_looked_up": refers }),
            Err(rejected) => {
                let one =
                    |found: &graph::Diagnostic| json!({ "pointer": found.pointer, "message": found.message });
                bad(rejected.details.iter().map(one).collect())
            }
        },
    };
    writeln!(out, "{said}")?;
    Ok(said["valid"] == true)
}

/// Whether the file is a JSON Schema: definitions have no `properties` and no `$defs`.
fn is_schema(bytes: &[u8]) -> bool {
    let json: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    let is_dialect =
        |schema: &serde_json::Value| schema.as_str().is_some_and(|url| url.contains("json-schema.org"));
    json.get("$schema").is_some_and(is_dialect)
        && (json.get("properties").is_some() || json.get("$defs").is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    async fn said(file: &str) -> (bool, Json) {
        let config = Config::load(&Sources::default()).expect("the defaults are valid");
        let path = format!("{}/graph-definitions/{file}", env!("CARGO_MANIFEST_DIR"));
        let mut out = Vec::new();
        let toolbox = Toolbox::new(config.tools.clone()).expect("a client");
        let said = report_json(&mut out, (&config, &toolbox), &path).await;
        let is_good = said.expect("memory can be written to");
        (is_good, serde_json::from_slice(&out).expect("one line of JSON"))
    }

    #[tokio::test]
    async fn programs_are_told_what_a_graph_will_do() {
        let (is_good, said) = said("validated-change.json").await;
        assert!(is_good, "{said}");
        assert_eq!(said["models"], json!(["scripted:demo"]));
        assert_eq!(said["loops"][0]["bound"], "goes on while rejections < 2; at most 100 supersteps");
        let mut nodes = said["graph"]["nodes"].as_array().into_iter().flatten();
        let integrate = nodes.find(|node| node["name"] == "integrate").expect("it is there");
        assert_eq!(integrate["requires"], json!(["examine (approved) or person (overruled)"]));
    }

    #[tokio::test]
    async fn prompt_files_schemas_and_missing_files_are_told_apart() {
        assert!(said("prompt-files/agent.json").await.0);
        assert_eq!(said("agent-definition.schema.json").await.1["kind"], "json_schema");
        let (is_good, said) = said("nowhere.json").await;
        assert!(!is_good && said["mistakes"][0]["message"].is_string(), "{said}");
    }
}

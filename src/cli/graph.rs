//! `graph`: a drawing of a definition.

use std::io::Write;

use clap::{Args, ValueEnum};

use super::{
    error::{Error, Exit},
    prompts,
    request::{self, Found, not_looked_up},
};
use crate::{
    config::Config,
    graph::{self, Outline},
};

const EXAMPLES: &str = "\
Examples:
  agent-executor graph graph.json                           Mermaid, as README files show it
  agent-executor graph graph.json --format svg > graph.svg
  agent-executor graph graph.json --format dot | dot -Tpng > graph.png";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// A definition or a whole request; `-` is standard input
    #[arg(value_name = "FILE")]
    file: String,
    /// What the drawing is written in
    #[arg(long, value_enum, default_value_t = Format::Mermaid)]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// A flowchart for Mermaid
    Mermaid,
    /// A graph for Graphviz
    Dot,
    /// A picture
    Svg,
}

impl From<Format> for graph::Format {
    fn from(format: Format) -> Self {
        match format {
            Format::Mermaid => Self::Mermaid,
            Format::Dot => Self::Dot,
            Format::Svg => Self::Svg,
        }
    }
}

pub(super) fn run(config: &Config, arguments: &Arguments) -> Result<Exit, Error> {
    let bytes = request::read(&arguments.file)?;
    let checked = prompts::inline(&arguments.file, bytes).and_then(|bytes| request::check(&bytes, config));
    match checked {
        Ok(Found::Graph(graph)) => {
            let drawing = graph::draw(&Outline::of(&graph), arguments.format.into());
            std::io::stdout().lock().write_all(drawing.as_bytes())?;
            return Ok(Exit::Success);
        }
        Ok(Found::Refers(refers)) => {
            eprintln!("{}: {}; it cannot be drawn without", arguments.file, not_looked_up(&refers))
        }
        Ok(Found::Stored) => {
            eprintln!("{}: names a stored definition; there is nothing to draw in it", arguments.file)
        }
        Err(rejected) => {
            eprintln!("{}: {rejected}", arguments.file);
            rejected.details.iter().for_each(|diagnostic| eprintln!("  {diagnostic}"));
        }
    }
    Err(Error::Request { path: arguments.file.clone() })
}

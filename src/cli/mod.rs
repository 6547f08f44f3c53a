//! The command line: arguments in, one command, an exit code out. Home of clap.
//!
//! **Invariant:** standard output carries a command's answer and nothing else; progress, logs and errors go to
//! standard error.

mod agents;
mod cancel;
mod columns;
mod config;
mod dlq;
mod doctor;
mod drain;
mod error;
mod events;
mod graph;
mod listing;
mod migrate;
mod probe;
mod progress;
mod prompts;
mod request;
mod run;
mod serve;
mod store_stdio;
mod submit;
mod tail;
mod threads;
mod validate;
mod worker_js;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use self::{
    error::{Error, Exit},
    probe::DEFAULT_PORT,
};
use crate::{
    config::{Config, Sources},
    telemetry,
};

const EXAMPLES: &str = "\
Examples:
  agent-executor run agent.json --input 'hello'      run one job here, without any server
  agent-executor serve                               run jobs until SIGTERM
  agent-executor validate graph-definitions/*.json   check definitions
  agent-executor graph graph.json --format svg       draw a definition
  agent-executor submit request.json --follow        run one job and watch it
  agent-executor tail thread-1 --until-end           watch a thread
  agent-executor cancel job-1 --reason 'no need'     stop a job
  agent-executor doctor --repair                     see what is wrong, and mend it
  agent-executor dlq list                            what could not be run, and why
  agent-executor threads history thread-1            what a thread has been through
  agent-executor agents put billing.json             store a definition that messages name

Exit codes:
  0 done, job completed    1 error    2 wrong usage    3 job failed    4 job interrupted    5 job cancelled

Settings come from flags, the environment, a TOML file and defaults, in this order:
  agent-executor config                              shows what holds and where it comes from";

/// Runs agent graphs: execution messages from NATS JetStream in, checkpoints in Postgres, live events to a
/// Redis-protocol server, CloudEvent results out.
#[derive(Debug, Parser)]
#[command(name = "agent-executor", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Settings {
    /// TOML file with settings; also AGENT_EXECUTOR_CONFIG
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any setting, by its name in the environment; may be repeated
    #[arg(long, global = true, value_name = "NAME=VALUE", value_parser = name_and_value)]
    set: Vec<(String, String)>,
    /// Least level of log lines
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a definition here and watch it: no queue, no servers, threads in a file
    Run(run::Arguments),
    /// Take jobs from the queue and run them until SIGTERM
    Serve(serve::Arguments),
    /// End a running `serve` and wait until it has handed its jobs back
    Drain(drain::Arguments),
    /// Ask a running `serve` whether it lives, or whether it can take jobs
    Probe(probe::Arguments),
    /// Store a request in the queue, and watch its job on request
    Submit(submit::Arguments),
    /// Print the events of a thread, from the beginning of its stream and live
    Tail(tail::Arguments),
    /// Ask whichever executor has a job, or a thread's jobs, to stop
    Cancel(cancel::Arguments),
    /// Say what is wrong with the servers and the jobs, and mend it on request
    Doctor(doctor::Arguments),
    /// Look at dead letters, send them again or discard them
    Dlq(dlq::Arguments),
    /// Store definitions by name and version, and stamp many from one
    Agents(agents::Arguments),
    /// Look at threads, fork, change, export and remove them
    Threads(threads::Arguments),
    /// Check agent definitions or requests and list every mistake
    Validate(validate::Arguments),
    /// Draw an agent definition
    Graph(graph::Arguments),
    /// Create or update the tables in Postgres
    Migrate(migrate::Arguments),
    /// Print every setting with its value and where it comes from, secrets masked
    Config(config::Arguments),
    /// Serve LangGraph's tables to a checkpointer in another language: JSON lines on standard input and output
    #[command(hide = true)]
    StoreStdio(store_stdio::Arguments),
    /// Run one JavaScript tool: a JSON line in, a JSON line out
    #[command(hide = true)]
    WorkerJs(worker_js::Arguments),
}

fn name_and_value(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE")?;
    Ok((name.trim().to_ascii_uppercase(), value.to_owned()))
}

/// Runs the command that `args` ask for. The first of them is the name of the program.
pub async fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody is left to tell when the terminal itself is gone.
            let _ = error.print();
            return u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
        }
    };
    match Box::pin(dispatch(cli)).await {
        Ok(exit) => exit.into(),
        Err(error) => error.report().into(),
    }
}

async fn dispatch(cli: Cli) -> Result<Exit, Error> {
    let Cli { settings, command } = cli;
    match command {
        Command::Run(arguments) => run::run(&settings.for_terminal()?, &arguments).await,
        Command::Serve(arguments) => serve::run(settings.load(arguments.flags())?).await,
        Command::Drain(arguments) => Ok(drain::run(&arguments).await?),
        Command::Probe(arguments) => {
            // With settings that cannot be used no process runs; then the default is as good as any.
            let port = settings.load(Vec::new()).map_or(DEFAULT_PORT, |config| config.http.port);
            Ok(probe::run(&arguments, port).await?)
        }
        Command::Submit(arguments) => submit::run(&settings.for_terminal()?, &arguments).await,
        Command::Tail(arguments) => tail::run(&settings.for_terminal()?, &arguments).await,
        Command::Cancel(arguments) => cancel::run(&settings.for_terminal()?, &arguments).await,
        Command::Doctor(arguments) => doctor::run(&settings.for_terminal()?, &arguments).await,
        Command::Dlq(arguments) => dlq::run(&settings.for_terminal()?, &arguments).await,
        Command::Agents(arguments) => agents::run(&settings.for_terminal()?, &arguments).await,
        Command::Threads(arguments) => threads::run(&settings.for_terminal()?, &arguments).await,
        Command::Validate(arguments) => validate::run(&settings.for_terminal()?, &arguments).await,
        Command::Graph(arguments) => graph::run(&settings.for_terminal()?, &arguments),
        Command::Migrate(arguments) => migrate::run(&settings.for_terminal()?, &arguments).await,
        Command::Config(arguments) => config::run(&arguments, || settings.load(Vec::new())),
        Command::StoreStdio(arguments) => store_stdio::run(&arguments).await,
        Command::WorkerJs(arguments) => worker_js::run(&arguments),
    }
}

impl Settings {
    /// The settings, with `flags` of the command on top.
    fn load(self, flags: Vec<(String, String)>) -> Result<Config, Error> {
        let level = self.log_level.map(|level| ("LOG_LEVEL".to_owned(), level));
        let flags = self.set.into_iter().chain(level).chain(flags).collect();
        let config = Config::load(&Sources::from_process(flags, self.config))?;
        config.teach(telemetry::scrub::Scrubber::process());
        Ok(config)
    }

    /// The settings of a command whose answer is on standard output; logs go to standard error.
    fn for_terminal(self) -> Result<Config, Error> {
        let config = self.load(Vec::new())?;
        // Commands for a person export no traces, so the guard has nothing to flush.
        let _guard = telemetry::init(&config.terminal_telemetry())?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_has_no_contradictions() {
        Cli::command().debug_assert();
    }

    #[test]
    fn settings_can_be_given_behind_the_command() {
        let cli = Cli::try_parse_from(["x", "serve", "--port", "0", "--set", "nats_url=nats://h:4222"]);
        let cli = cli.expect("valid arguments");
        assert_eq!(cli.settings.set, [("NATS_URL".to_owned(), "nats://h:4222".to_owned())]);
        assert!(Cli::try_parse_from(["x", "serve", "--set", "nats_url"]).is_err());
    }

    #[tokio::test]
    async fn wrong_usage_is_exit_code_two() {
        let code = run(["x", "no-such-command"].map(OsString::from)).await;
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(2)));
    }
}

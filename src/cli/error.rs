//! How commands end: the exit code, and the one line that says what went wrong and what to do.

use std::{io, process::ExitCode};

use super::{drain, probe};
use crate::{
    config, embedded, ids::ThreadId, job::Failure, queue, run::Outcome, store, stream::dragonfly, telemetry,
};

/// How a command ended; scripts read it. Code 2 is wrong usage, which clap answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// Done; the job completed.
    Success,
    /// Something else went wrong.
    Error,
    /// The job failed.
    Failed,
    /// The job waits for a person.
    Interrupted,
    /// Somebody stopped the job.
    Cancelled,
}

impl Exit {
    /// The exit of the command whose job ended so.
    pub(super) fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Completed(_) => Self::Success,
            Outcome::Failed(_) => Self::Failed,
            Outcome::Interrupted(_) => Self::Interrupted,
            Outcome::Cancelled(_) => Self::Cancelled,
        }
    }

    /// The exit of the command that waited for a job with that status.
    pub(super) fn of_status(status: &str) -> Self {
        match status {
            "completed" => Self::Success,
            "failed" => Self::Failed,
            "interrupted" => Self::Interrupted,
            "cancelled" => Self::Cancelled,
            _ => Self::Error,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Success => 0_u8,
            Exit::Error => 1,
            Exit::Failed => 3,
            Exit::Interrupted => 4,
            Exit::Cancelled => 5,
        })
    }
}

/// Why a command stopped.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The settings cannot be used.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// Logs cannot be set up.
    #[error(transparent)]
    Telemetry(#[from] telemetry::Error),
    /// The message broker.
    #[error(transparent)]
    Queue(#[from] queue::Error),
    /// The database.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// An executor refused a request.
    #[error("{message}")]
    Control {
        /// The executor's code.
        code: String,
        /// Its sentence.
        message: String,
    },
    /// A process was not ended.
    #[error(transparent)]
    Drain(#[from] drain::Error),
    /// The answer of a probe is no.
    #[error(transparent)]
    Probe(#[from] probe::Error),
    /// `serve` ended.
    #[error(transparent)]
    App(anyhow::Error),
    /// `run` cannot begin.
    #[error(transparent)]
    Embedded(anyhow::Error),
    /// `run` stopped.
    #[error(transparent)]
    Session(#[from] embedded::Error),
    /// There is no folder for threads.
    #[error("there is no place for threads: neither XDG_STATE_HOME nor HOME is an absolute path")]
    NoStateFolder,
    /// A definition that cannot be run; every mistake has been printed.
    #[error("{path} is not a valid definition")]
    Definition {
        /// The file.
        path: String,
    },
    /// `--model` has nothing to replace.
    #[error("no node of the definition names a model that --model could replace")]
    NoModel,
    /// `--input` cannot be used.
    #[error("the input {0}")]
    Input(String),
    /// Nothing is asked for, and nothing is left to do.
    #[error("thread {0} has no unfinished job and no question; say what to do with --input")]
    NothingToRun(String),
    /// A file that cannot be read.
    #[error("{path} cannot be read")]
    File {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A request that no worker would run; every mistake has been printed.
    #[error("{path} is not a valid request")]
    Request {
        /// The file.
        path: String,
    },
    /// The server of live events.
    #[error(transparent)]
    Stream(#[from] dragonfly::Error),
    /// No result came.
    #[error("no result came within {0} s; the job may still run")]
    NoResult(u64),
    /// There is no such dead letter.
    #[error("there is no dead letter {0}")]
    NoLetter(i64),
    /// There is no such stored definition.
    #[error("no definition is stored under {0:?}")]
    NoAgent(String),
    /// Several files, and one name or version for all of them.
    #[error("--name and --version are for one file")]
    OneAgent,
    /// A catalogue that cannot be stamped.
    #[error("{path} {reason}")]
    Catalogue {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A thread that is not there, or must not be touched now.
    #[error("thread {0}: {1}")]
    Thread(ThreadId, #[source] store::Barred),
    /// What is to be written is no object.
    #[error("--values is no JSON object: {0}")]
    Values(String),
    /// Nobody knows the thread's definition.
    #[error("the definition of the thread is not stored")]
    NoDefinition,
    /// The definition has mistakes.
    #[error("the definition is wrong: {0}")]
    Mismatch(String),
    /// What was asked for cannot be done.
    #[error("{}", .0.message)]
    Failed(Failure),
    /// Nobody has said yes.
    #[error("nothing was changed: {0} threads would be removed for good")]
    UnconfirmedThreads(usize),
    /// Nobody has said yes.
    #[error("nothing was changed: {0} letters would be discarded")]
    Unconfirmed(usize),
    /// Standard output cannot be written.
    #[error("standard output cannot be written")]
    Output(#[from] io::Error),
}

impl Error {
    /// Writes the error to standard error and says how to exit.
    pub(super) fn report(&self) -> Exit {
        if let Self::Output(error) = self
            && error.kind() == io::ErrorKind::BrokenPipe
        {
            // Whoever read has read enough, as `head` does.
            return Exit::Success;
        }
        eprintln!("error: {}", telemetry::scrub::Scrubber::process().report(&self.line()));
        if let Some(hint) = self.hint() {
            eprintln!("hint: {hint}");
        }
        Exit::Error
    }

    /// The error with its causes and its code.
    fn line(&self) -> String {
        let text = match self {
            Self::App(error) | Self::Embedded(error) => format!("{error:#}"),
            Self::Session(_)
            | Self::NoStateFolder
            | Self::Definition { .. }
            | Self::NoModel
            | Self::Input(_)
            | Self::NothingToRun(_)
            | Self::Config(_)
            | Self::Telemetry(_)
            | Self::Queue(_)
            | Self::Store(_)
            | Self::Control { .. }
            | Self::Drain(_)
            | Self::Probe(_)
            | Self::File { .. }
            | Self::Request { .. }
            | Self::Stream(_)
            | Self::NoResult(_)
            | Self::NoLetter(_)
            | Self::NoAgent(_)
            | Self::OneAgent
            | Self::Catalogue { .. }
            | Self::Thread(..)
            | Self::Values(_)
            | Self::NoDefinition
            | Self::Mismatch(_)
            | Self::Failed(_)
            | Self::UnconfirmedThreads(_)
            | Self::Unconfirmed(_)
            | Self::Output(_) => causes(self),
        };
        self.code().map(|code| format!("[{code}] {text}")).unwrap_or(text)
    }

    fn code(&self) -> Option<&str> {
        match self {
            Self::Config(error) => Some(error.code()),
            Self::Telemetry(error) => Some(error.code()),
            Self::Queue(error) => Some(error.code()),
            Self::Store(error) => Some(error.code()),
            Self::App(error) | Self::Embedded(error) => code_within(error),
            Self::Session(embedded::Error::Store(error)) => Some(error.code()),
            Self::Definition { .. } => Some("DEFINITION_INVALID"),
            Self::Session(embedded::Error::Left)
            | Self::NoStateFolder
            | Self::NoModel
            | Self::Input(_)
            | Self::NothingToRun(_) => None,
            Self::Control { code, .. } => Some(code),
            Self::Drain(_)
            | Self::Probe(_)
            | Self::File { .. }
            | Self::NoLetter(_)
            | Self::OneAgent
            | Self::NoDefinition
            | Self::UnconfirmedThreads(_)
            | Self::Unconfirmed(_)
            | Self::Output(_) => None,
            Self::NoAgent(_) => Some("AGENT_NOT_FOUND"),
            Self::Catalogue { .. } => Some("CATALOGUE_INVALID"),
            Self::Request { .. } | Self::Values(_) => Some("BAD_REQUEST"),
            Self::Thread(_, barred) => Some(barred.code()),
            Self::Mismatch(_) => Some("DEFINITION_INVALID"),
            Self::Failed(failed) => Some(&failed.code),
            Self::Stream(error) => Some(error.code()),
            Self::NoResult(_) => Some("NO_RESULT"),
        }
    }

    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Config(_) => {
                Some("the README lists every setting; `agent-executor config` shows those that hold")
            }
            Self::Queue(queue::Error::Unavailable(_)) => {
                Some("is the server at NATS_URL running? `--set NATS_URL=nats://host:4222` names another")
            }
            Self::Store(store::Error::Unavailable(_)) => {
                Some("is the server at DATABASE_URL (or POSTGRES_HOST) running, and is the password right?")
            }
            Self::Stream(_) => {
                Some("is the server at DRAGONFLY_URL (or DRAGONFLY_HOST) running? Jobs run without it")
            }
            Self::NoStateFolder => Some("name a file with --db, or keep nothing with --db :memory:"),
            Self::Embedded(_) => Some("--db names another file, and --db :memory: keeps nothing"),
            Self::Session(embedded::Error::Store(store::Error::Unavailable(_))) => Some(
                "is the disk full, or the file of --db on one that cannot be locked? Nothing stored is lost",
            ),
            Self::Request { .. } | Self::Definition { .. } => {
                Some("`agent-executor validate --schema` prints what a definition may hold")
            }
            Self::NoResult(_) => {
                Some("`agent-executor tail THREAD` goes on watching; submitting again is safe")
            }
            Self::NoLetter(_) => {
                Some("`agent-executor dlq list --all` shows those that are kept, old ones are removed")
            }
            Self::NoAgent(_) => Some("`agent-executor agents list` shows what is stored"),
            Self::NoDefinition => Some("--definition FILE or --agent NAME gives it"),
            Self::Unconfirmed(_) | Self::UnconfirmedThreads(_) => Some("add --yes to do it"),
            Self::Queue(queue::Error::NoExecutor) => {
                Some("start one with `agent-executor serve`, or let this command reach Postgres")
            }
            Self::Queue(queue::Error::Refused(_) | queue::Error::Unusable { .. })
            | Self::Store(_)
            | Self::Control { .. }
            | Self::Drain(_)
            | Self::Probe(_)
            | Self::Telemetry(_)
            | Self::Session(_)
            | Self::NoModel
            | Self::Input(_)
            | Self::NothingToRun(_)
            | Self::App(_)
            | Self::File { .. }
            | Self::OneAgent
            | Self::Catalogue { .. }
            | Self::Thread(..)
            | Self::Values(_)
            | Self::Mismatch(_)
            | Self::Failed(_)
            | Self::Output(_) => None,
        }
    }
}

/// The code of the first of our errors among the causes.
fn code_within(error: &anyhow::Error) -> Option<&'static str> {
    error.chain().find_map(|cause| {
        let queue = cause.downcast_ref::<queue::Error>().map(queue::Error::code);
        let store = || cause.downcast_ref::<store::Error>().map(store::Error::code);
        queue.or_else(store)
    })
}

/// Most causes in one line; longer chains are loops or noise.
const MAX_CAUSES: usize = 8;

fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    for cause in std::iter::successors(error.source(), |&cause| cause.source()).take(MAX_CAUSES) {
        let text = cause.to_string();
        // Transparent errors show their cause as themselves.
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
    }
    line
}

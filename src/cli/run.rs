//! `run`: one job in this process, watched from the terminal, without any server.

mod ask;
mod definition;
mod screen;

use std::{io::IsTerminal, sync::Arc, time::Duration};

use bytes::Bytes;
use clap::Args;
use serde_json::Value as Json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use uuid::Uuid;

use self::{
    ask::Terminal,
    definition::{Definition, Work},
    screen::Screen,
};
use super::{
    error::{Error, Exit},
    events::Format,
};
use crate::{
    app,
    config::Config,
    embedded::{self, Brake, Done, Notice, Session},
    ids::ThreadId,
    job::Job,
    run::Outcome,
    store::sqlite::Place,
    stream::local::Local,
};

/// How long the last events may take to be written; a halted terminal takes them never.
const SHOW_LIMIT: Duration = Duration::from_secs(5);

/// What shells say of a command that Ctrl-C has ended.
const ENDED_BY_SIGINT: i32 = 130;

const EXAMPLES: &str = "\
Examples:
  agent-executor run graph-definitions/deep-agent.json --input 'Write about tides'
  agent-executor run agent.json --thread trip --input 'And in winter?'     one more turn
  agent-executor run agent.json --thread trip                              go on after a crash, or answer a question
  agent-executor run agent.json --thread trip --resume '\"approve\"'         answer it without a terminal
  agent-executor run agent.json --input - --json < state.json | jq .event_type

No server is needed. Threads are kept in threads.db below $XDG_STATE_HOME/agent-executor, or
~/.local/state/agent-executor. A job that was killed goes on from its last checkpoint when its thread is run again,
before anything new. Ctrl-C cancels the job and keeps what it did, a second one quits at once; SIGTERM stops without
ending the job.

Exit codes: 0 completed, 1 error or stopped, 2 wrong usage, 3 failed, 4 waits for an answer, 5 cancelled.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The agent definition; `-` is standard input
    #[arg(value_name = "FILE")]
    file: String,
    /// State as a JSON object, or a text, which is one message of the user; `-` is standard input
    #[arg(long, value_name = "INPUT")]
    input: Option<String>,
    /// Continue this thread; a new one when left out
    #[arg(long, value_name = "THREAD", value_parser = ThreadId::parse)]
    thread: Option<ThreadId>,
    /// Answer to the question the thread waits with: JSON or a text; or an object of answers by the id of each question
    #[arg(long, value_name = "ANSWER", conflicts_with = "input", requires = "thread")]
    resume: Option<String>,
    /// Where threads are kept; `:memory:` keeps them nowhere
    #[arg(long, value_name = "PATH")]
    db: Option<String>,
    /// Another model for every node that names one, such as openai:gpt-4o-mini
    #[arg(long, value_name = "PROVIDER:MODEL")]
    model: Option<String>,
    /// Print each event as one line of JSON, and ask nothing
    #[arg(long)]
    json: bool,
}

impl Arguments {
    fn place(&self, config: &Config) -> Result<Place, Error> {
        match self.db.as_deref() {
            Some(":memory:") => Ok(Place::Memory),
            Some(path) => Ok(Place::File(path.into())),
            None => {
                let folder = config.state_folder.as_ref().ok_or(Error::NoStateFolder)?;
                Ok(Place::File(folder.join("threads.db")))
            }
        }
    }

    /// Whether somebody is there to be asked.
    fn may_ask(&self) -> bool {
        !self.json && std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
    }

    /// How the same thread is run again.
    fn again(&self, thread_id: &ThreadId) -> String {
        let db = self.db.as_deref().map(|db| format!(" --db {}", quoted(db))).unwrap_or_default();
        format!("agent-executor run {} --thread {}{db}", quoted(&self.file), quoted(thread_id.as_str()))
    }
}

/// A word as a shell reads it back.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:~@%+,=".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

pub(super) async fn run(config: &Config, arguments: &Arguments) -> Result<Exit, Error> {
    let definition = Definition::read(config, &arguments.file, arguments.model.as_deref())?;
    let work = Work::read(arguments.input.as_deref(), arguments.resume.as_deref())?;
    let place = arguments.place(config)?;
    let is_kept = place != Place::Memory;
    let made = || ThreadId::parse(&format!("run-{}", Uuid::now_v7().simple())).expect("a short plain id");
    let thread_id = arguments.thread.clone().unwrap_or_else(made);

    let sink = Arc::new(Local::default());
    let opened = app::embedded(config, place, sink.clone(), notice).await;
    let session = opened.map_err(Error::Embedded)?;
    let format = if arguments.json { Format::Json } else { Format::Text };
    let screen = Screen::start(sink, format);
    let brake = Brake::default();
    session.ports.tracker.spawn(obey_signals(brake.clone(), Signals::new()?));
    eprintln!("thread {thread_id}");

    let person = Person { session: &session, arguments, brake: &brake };
    let ended = person.converse((&definition, &thread_id), work).await;
    screen.finish(SHOW_LIMIT).await;
    let shown = match &ended {
        Ok(done) => screen::state(&session.store, &thread_id, &done.outcome, format).await,
        Err(_) => Ok(()),
    };
    session.ports.toolbox.close().await;
    session.store.close().await;
    if is_kept {
        hint(&ended, arguments, &thread_id);
    }
    let done = ended?;
    shown?;
    Ok(Exit::of(&done.outcome))
}

/// Says how the thread goes on.
fn hint(ended: &Result<Done, Error>, arguments: &Arguments, thread_id: &ThreadId) {
    let again = arguments.again(thread_id);
    match ended {
        Ok(Done { outcome: Outcome::Interrupted(questions), .. }) => {
            eprintln!("{}", ask::how_to_answer(questions, &again));
        }
        Ok(_) => eprintln!("next turn: {again} --input '…'"),
        Err(Error::Session(embedded::Error::Left)) => eprintln!("to go on: {again}"),
        Err(_) => {}
    }
}

fn notice(notice: Notice) {
    match notice {
        Notice::Waits => {
            eprintln!(
                "another process has the thread, or died with it a moment ago; waiting (Ctrl-C gives up)"
            );
        }
        Notice::GoesOn(job_id) => eprintln!("job {job_id} has not ended; going on with it"),
    }
}

/// Who runs jobs and answers their questions.
struct Person<'a> {
    session: &'a Session,
    arguments: &'a Arguments,
    brake: &'a Brake,
}

impl Person<'_> {
    /// Runs what is unfinished, then what was asked for, then the answers to its questions.
    async fn converse(
        &self,
        (definition, thread_id): (&Definition<'_>, &ThreadId),
        work: Option<Work>,
    ) -> Result<Done, Error> {
        let (taken_up, is_asked) = self.take_up(thread_id, work.as_ref()).await?;
        let mut done = match (work, taken_up) {
            // The same command once more, after a crash: what it asked for has been done just now.
            (Some(_), Some(done)) if is_asked || self.brake.cancel.is_cancelled() => done,
            // Its answer comes first: new input would drop the question.
            (Some(Work::Input(_)), Some(done)) if matches!(done.outcome, Outcome::Interrupted(_)) => {
                eprintln!("the job that went on has a question; the new input was not run");
                return Ok(done);
            }
            (Some(work), _) => self.run(&definition.job(thread_id, &work)?).await?,
            (None, Some(done)) => done,
            (None, None) => self.found(thread_id).await?,
        };
        while let Outcome::Interrupted(questions) = &done.outcome {
            if !self.arguments.may_ask() {
                break;
            }
            self.session.ports.sink.flush(SHOW_LIMIT).await;
            let mut terminal = Terminal::new(self.brake.clone());
            let Some(answers) = ask::answers(&mut terminal, questions).await else { break };
            done = self.run(&definition.job(thread_id, &Work::Resume(answers))?).await?;
        }
        Ok(done)
    }

    async fn run(&self, job: &Job) -> Result<Done, Error> {
        Ok(self.session.run(job, self.brake).await?)
    }

    /// Brings the jobs of the thread to their end that have none; the last one, and whether one of them is what is
    /// asked for now.
    async fn take_up(
        &self,
        thread_id: &ThreadId,
        work: Option<&Work>,
    ) -> Result<(Option<Done>, bool), Error> {
        let (mut last, mut is_asked) = (None, false);
        while !self.brake.cancel.is_cancelled()
            && let Some((request, done)) = self.session.take_up(thread_id, self.brake).await?
        {
            is_asked |= work.is_some_and(|work| is_of(&request, work));
            last = Some(done);
        }
        Ok((last, is_asked))
    }

    /// Without anything to do: the questions that the thread waits with.
    async fn found(&self, thread_id: &ThreadId) -> Result<Done, Error> {
        let waiting = embedded::waiting(&self.session.store, thread_id).await;
        match waiting.map_err(embedded::Error::Store)? {
            Some(questions) => {
                let job_id =
                    crate::ids::JobId::parse(thread_id.as_str()).expect("the rules of ids are the same");
                Ok(Done { job_id, outcome: Outcome::Interrupted(questions) })
            }
            None => Err(Error::NothingToRun(thread_id.to_string())),
        }
    }
}

/// Whether a stored request asks for that work.
fn is_of(request: &Bytes, work: &Work) -> bool {
    let stored: Json = serde_json::from_slice(request).unwrap_or_default();
    match work {
        Work::Input(input) => stored["input"] == *input,
        Work::Resume(answer) => stored["command"]["resume"] == *answer,
    }
}

/// What the process is told from outside.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self, Error> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// The first Ctrl-C cancels, a second one quits as a crash would; the job then goes on with the next run.
async fn obey_signals(brake: Brake, mut signals: Signals) {
    loop {
        tokio::select! {
            _ = signals.interrupt.recv() => {
                if brake.cancel.is_cancelled() {
                    std::process::exit(ENDED_BY_SIGINT);
                }
                eprintln!("cancelling; once more quits at once");
                brake.cancel.cancel();
            }
            _ = signals.terminate.recv() => brake.leave.cancel(),
            _ = signals.hangup.recv() => brake.leave.cancel(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_typed_again_is_quoted_for_the_shell() {
        assert_eq!(quoted("graphs/a-b.json"), "graphs/a-b.json");
        assert_eq!(quoted("my file"), "'my file'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn a_repeated_command_is_known_by_what_it_asks_for() {
        let work = Work::read(Some("hi"), None).expect("a text").expect("something");
        let request = |text: &str| {
            let input = serde_json::json!({"messages": [{"role": "user", "content": text}]});
            Bytes::from(serde_json::json!({"job_id": "j", "input": input}).to_string())
        };
        assert!(is_of(&request("hi"), &work));
        assert!(!is_of(&request("ho"), &work));
        assert!(!is_of(&Bytes::new(), &work));
    }
}

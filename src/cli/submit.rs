//! `submit`: store a request in the queue, and watch its job when asked to.

use std::{io::Write, time::Duration};

use bytes::Bytes;
use clap::Args;
use futures::{StreamExt, future::OptionFuture, stream::BoxStream};
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tokio::time::{Instant, sleep_until};

use super::{
    error::{Error, Exit},
    events::{Format, Painter},
    progress::Progress,
    prompts,
    request::{self, Ids},
};
use crate::{
    config::Config,
    job::Job,
    queue::{
        self, Queue, Submission,
        nats::{Nats, Patience, Results},
    },
    stream::{
        EventType,
        dragonfly::{self, Followed, ReadEvent, Reader},
    },
};

/// How long the broker may be looked for; a person waits.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long events may lag behind the result, and the result behind the last event.
const LAG: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  agent-executor submit request.json
  agent-executor submit request.json --follow --thread-id conversation-7
  jq '.input.messages[0].content = \"hello\"' request.json | agent-executor submit - --follow --json

FILE holds a request: {\"agent_definition\": …, \"input\": …}, or a CloudEvent with one as its data. A job id is
made when there is none. With --follow the exit code tells how the job ended: 0 completed, 3 failed,
4 interrupted, 5 cancelled.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The request; `-` is standard input
    #[arg(value_name = "FILE")]
    file: String,
    /// Print the job's events as they come, then its result
    #[arg(long)]
    follow: bool,
    /// Continue this thread
    #[arg(long, value_name = "THREAD")]
    thread_id: Option<String>,
    /// The job's id; the same id never runs twice
    #[arg(long, value_name = "JOB")]
    job_id: Option<String>,
    /// Print JSON: the receipt, each event and the result, one per line
    #[arg(long)]
    json: bool,
    /// Stop waiting for the result after so many seconds
    #[arg(long, value_name = "SECONDS", requires = "follow", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: Option<u64>,
}

impl Arguments {
    fn format(&self) -> Format {
        if self.json { Format::Json } else { Format::Text }
    }
}

pub(super) async fn run(config: &Config, arguments: &Arguments) -> Result<Exit, Error> {
    let (job, payload) = read(config, arguments)?;
    let progress = Progress::show("connecting to the message broker");
    let nats = Nats::connect(config.nats.clone(), Patience::For(PATIENCE)).await?;
    drop(progress);
    // Before the request is stored, or a quick job would be over before anybody listens.
    let watch = if arguments.follow { Some(Watch::start(config, &nats, &job).await?) } else { None };
    let headers = vec![("Content-Type".to_owned(), "application/json".to_owned())];
    let submission = Submission { job_id: job.job_id.to_string(), headers, payload: payload.into() };
    let seq = nats.submit(&submission).await?;
    receipt(arguments.format(), &job, seq)?;
    let exit = match watch {
        Some(watch) => follow(watch, &job, arguments).await,
        None => Ok(Exit::Success),
    };
    nats.close().await;
    exit
}

/// The request, complete and without mistakes; otherwise all of them are written to standard error.
fn read(config: &Config, arguments: &Arguments) -> Result<(Job, Vec<u8>), Error> {
    let bytes = request::read(&arguments.file)?;
    let ids = Ids { job_id: arguments.job_id.as_deref(), thread_id: arguments.thread_id.as_deref() };
    let checked = prompts::inline(&arguments.file, bytes)
        .and_then(|bytes| request::complete(&bytes, ids))
        .and_then(|payload| request::check_request(&payload, config).map(|checked| (checked.job, payload)));
    checked.map_err(|rejected| {
        eprintln!("{}: {rejected}", arguments.file);
        for diagnostic in &rejected.details {
            eprintln!("  {diagnostic}");
        }
        Error::Request { path: arguments.file.clone() }
    })
}

fn receipt(format: Format, job: &Job, seq: u64) -> Result<(), Error> {
    let (job_id, thread_id) = (&job.job_id, &job.thread_id);
    let mut out = std::io::stdout();
    match format {
        Format::Json => {
            let receipt = json!({"job_id": job_id, "thread_id": thread_id, "seq": seq});
            writeln!(out, "{receipt}")?;
        }
        Format::Text => writeln!(out, "job_id {job_id}\nthread_id {thread_id}\nseq {seq}")?,
    }
    Ok(())
}

type Events = BoxStream<'static, Result<Followed, dragonfly::Error>>;

/// What is listened to: the events, when their server is there, and the results.
struct Watch {
    /// Ends the connection when dropped.
    _reader: Option<Reader>,
    events: Option<Events>,
    results: Results,
}

impl Watch {
    async fn start(config: &Config, nats: &Nats, job: &Job) -> Result<Self, Error> {
        let results = nats.watch_results().await?;
        let reader = match Reader::connect(config.dragonfly.clone()).await {
            Ok(reader) => Some(reader),
            Err(error) => {
                // Jobs run without live events, and so does this command.
                eprintln!("warning: [{}] {error}; waiting for the result only", error.code());
                None
            }
        };
        let events = reader.as_ref().map(|reader| reader.follow(&job.thread_id, None).boxed());
        Ok(Self { _reader: reader, events, results })
    }
}

/// The result of the job.
struct Found {
    exit: Exit,
    event: Bytes,
}

/// Prints events until the job is over, then its result.
async fn follow(mut watch: Watch, job: &Job, arguments: &Arguments) -> Result<Exit, Error> {
    let mut painter = Painter::new(std::io::stdout(), arguments.format());
    let mut progress = Progress::show("waiting for a worker");
    let limit = arguments.timeout.map(Duration::from_secs);
    let mut deadline = limit.map(|limit| Instant::now() + limit);
    let (mut ended, mut result, mut heard) = (None, None, false);
    while ended.is_none() || result.is_none() {
        let next_event = OptionFuture::from(watch.events.as_mut().map(StreamExt::next));
        let too_late = OptionFuture::from(deadline.map(sleep_until));
        tokio::select! {
            Some(event) = next_event => match event {
                // What is missing before the first event is of jobs that came before.
                Some(Ok(Followed::Notice(notice))) => if heard { painter.notice(&notice)? },
                Some(Ok(Followed::Event(event))) => {
                    (progress, heard) = (None, true);
                    if let Some(status) = paint(&mut painter, &event, job)? {
                        ended = Some(status);
                        deadline = Some(Instant::now() + LAG);
                    }
                }
                Some(Err(error)) => {
                    eprintln!("warning: [{}] {error}; waiting for the result only", error.code());
                    watch.events = None;
                }
                None => watch.events = None,
            },
            next = watch.results.next() => {
                if let Some(found) = ours(next, job)? {
                    result = Some(found);
                    deadline = Some(Instant::now() + LAG);
                }
            }
            Some(()) = too_late => break,
        }
        if result.is_some() && watch.events.is_none() {
            break;
        }
    }
    drop(progress);
    painter.end_line()?;
    finish(arguments, result, ended)
}

/// Writes an event of the job; its status when the job has ended with it.
fn paint<W: Write>(painter: &mut Painter<W>, event: &ReadEvent, job: &Job) -> Result<Option<Exit>, Error> {
    let json: Json = serde_json::from_str(&event.json).unwrap_or_default();
    if json["job_id"] != job.job_id.as_str() {
        return Ok(None);
    }
    painter.paint(event.json.as_bytes())?;
    let ended = event.event_type == EventType::End.as_str();
    Ok(ended.then(|| Exit::of_status(json["data"]["status"].as_str().unwrap_or_default())))
}

/// The next result, when it is the job's.
fn ours(next: Result<(String, Bytes), queue::Error>, job: &Job) -> Result<Option<Found>, Error> {
    /// What is looked at of a result.
    #[derive(Deserialize)]
    struct Event {
        subject: String,
    }
    let (subject, event) = match next {
        Ok(result) => result,
        Err(queue::Error::Unavailable(reason)) => {
            tracing::warn!(%reason, "results are not available for a moment");
            return Ok(None);
        }
        Err(
            error @ (queue::Error::Refused(_) | queue::Error::Unusable { .. } | queue::Error::NoExecutor),
        ) => return Err(error.into()),
    };
    let is_ours =
        serde_json::from_slice(&event).is_ok_and(|found: Event| found.subject == job.job_id.as_str());
    let status = subject.rsplit('.').next().unwrap_or_default();
    Ok(is_ours.then(|| Found { exit: Exit::of_status(status), event }))
}

/// Prints the result. Without one the last event says how the job ended: its result was there before.
fn finish(arguments: &Arguments, found: Option<Found>, ended: Option<Exit>) -> Result<Exit, Error> {
    let Some(Found { exit, event }) = found else {
        let exit = ended.ok_or(Error::NoResult(arguments.timeout.unwrap_or_default()))?;
        eprintln!("note: the job had ended before; its result is in the results stream already");
        return Ok(exit);
    };
    let mut out = std::io::stdout();
    match (arguments.format(), serde_json::from_slice::<Json>(&event)) {
        (Format::Text, Ok(json)) => writeln!(out, "{json:#}")?,
        (Format::Json, _) | (Format::Text, Err(_)) => {
            out.write_all(&event)?;
            writeln!(out)?;
        }
    }
    Ok(exit)
}

//! Sends dead letters into the queue again.
//!
//! **Invariant:** a job that has ended is not run again under its id: one `job_id` has one terminal result. Its
//! replay is a job of its own, whose id comes from the letter, so that a repeated replay is the same job.
//! **Invariant:** what cannot end differently is not sent.

use std::{io::Write, time::Duration};

use serde_json::{Map as JsonMap, json};

use super::{Replay as Arguments, open_letters};
use crate::{
    cli::{
        error::{Error, Exit},
        progress::Progress,
    },
    config::Config,
    ids::JobId,
    job::{Command, Decoded, Job, MultitaskStrategy, Request, Task, decode, encode_request},
    queue::{
        Queue, Replay,
        nats::{self, Nats, Patience, Provision},
    },
    store::{Inspect, LetterFilter, Letters, PAYLOAD_BYTES, Replayed, WholeLetter, postgres::PostgresStore},
};

/// How long the broker may be looked for; a person waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// What stands between a job's id and the number of its replay.
const MARK: &str = "~replay";

/// What becomes of a letter.
enum Plan {
    /// It is sent.
    Send { request: Request, job_id: JobId, how: &'static str },
    /// It is not, and why.
    Leave(String),
}

pub(super) async fn run(
    config: &Config,
    store: &PostgresStore,
    arguments: &Arguments,
) -> Result<Exit, Error> {
    let ids = if arguments.all {
        let filter = LetterFilter { reason: arguments.reason.clone(), ..LetterFilter::default() };
        open_letters(store, filter).await?.iter().map(|letter| letter.id).collect()
    } else {
        arguments.ids.clone()
    };
    let nats = if arguments.dry_run {
        None
    } else {
        let _progress = Progress::show("connecting to the message broker");
        let settings = nats::Config { provision: Provision::Expect, ..config.nats.clone() };
        Some(Nats::connect(settings, Patience::For(PATIENCE)).await?)
    };
    let mut exit = Exit::Success;
    for id in ids {
        let whole = store.letter(id).await?.ok_or(Error::NoLetter(id))?;
        let letter = &whole.letter;
        if arguments.all && (letter.replayed_at.is_some() || letter.discarded_at.is_some()) {
            // A further letter of a job that was replayed a moment ago.
            continue;
        }
        let plan = plan(config, store, &whole).await?;
        let seq = match (&plan, &nats) {
            (Plan::Send { request, job_id, .. }, Some(nats)) => {
                Some(send(config, (store, nats), &whole, (request, job_id)).await?)
            }
            (Plan::Leave(_), _) | (_, None) => None,
        };
        if matches!(plan, Plan::Leave(_)) {
            exit = Exit::Error;
        }
        tell(id, &plan, seq, arguments.json)?;
    }
    if let Some(nats) = nats {
        nats.close().await;
    }
    Ok(exit)
}

async fn plan(config: &Config, store: &PostgresStore, whole: &WholeLetter) -> Result<Plan, Error> {
    if whole.headers.iter().any(|(name, _)| name == PAYLOAD_BYTES) {
        let reason = "only the beginning of its payload was kept; the dead-letter stream may have all of it";
        return Ok(Plan::Leave(reason.to_owned()));
    }
    let job = match decode(&whole.headers, &whole.payload, &config.job) {
        Decoded::Job(job) => *job,
        Decoded::Unreadable { error, .. } => {
            return Ok(Plan::Leave(format!("it still cannot be read: {error}")));
        }
    };
    if let Task::Invalid(problems) = &job.task {
        return Ok(Plan::Leave(format!("it still is no valid request: {}", problems.join("; "))));
    }
    let state = store.job(&job.job_id).await?.map(|view| view.state);
    match state.as_deref() {
        Some("failed" | "dead") => again(store, whole, job).await,
        // Its row is gone by now, its result may still be in the stream.
        None if whole.detail["job"].is_object() => again(store, whole, job).await,
        None | Some("queued" | "running") => {
            let request = Request { headers: whole.headers.clone(), payload: whole.payload.clone() };
            Ok(Plan::Send { request, job_id: job.job_id, how: "as it came" })
        }
        Some(ended) => Ok(Plan::Leave(format!("its job has ended as {ended}"))),
    }
}

/// A job that has ended, as a new one.
async fn again(store: &PostgresStore, whole: &WholeLetter, mut job: Job) -> Result<Plan, Error> {
    let trail = store.trail(&job.thread_id, &job.job_id).await?;
    let name = format!("{}{MARK}{}-{}", original(job.job_id.as_str()), whole.letter.id, next_number(whole));
    let Ok(job_id) = JobId::parse(&name) else {
        return Ok(Plan::Leave("its job id is too long to get a number".to_owned()));
    };
    let how = match &trail.last {
        None => "with its input",
        Some(_) if trail.last == trail.newest => {
            // Its input is in the checkpoint; finished tasks stay finished.
            let update = Some(JsonMap::new());
            job.command = Some(Command { resume: None, update, goto: Vec::new() });
            (job.input, job.checkpoint_id) = (None, None);
            "from its last checkpoint"
        }
        Some(_) => {
            let reason = "its thread has gone on since, with a part of what the job did";
            return Ok(Plan::Leave(reason.to_owned()));
        }
    };
    job.job_id = job_id.clone();
    // Whatever it wanted of other jobs then, now it waits for its turn.
    job.multitask_strategy = MultitaskStrategy::Enqueue;
    let request = encode_request(&job).expect("the task is not invalid");
    Ok(Plan::Send { request, job_id, how })
}

/// The id without the number of an earlier replay.
fn original(job_id: &str) -> &str {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match job_id.rsplit_once(MARK) {
        Some((original, number))
            if number.split_once('-').is_some_and(|(id, nr)| is_number(id) && is_number(nr)) =>
        {
            original
        }
        _ => job_id,
    }
}

fn next_number(whole: &WholeLetter) -> u32 {
    whole.letter.replays.saturating_add(1)
}

/// Publishes first: a crash in between repeats the same message, with the same job.
async fn send(
    config: &Config,
    (store, nats): (&PostgresStore, &Nats),
    whole: &WholeLetter,
    (request, job_id): (&Request, &JobId),
) -> Result<u64, Error> {
    let (id, number) = (whole.letter.id, next_number(whole));
    let msg_id = format!("dlq:{id}:{number}");
    let subject = Some(&whole.subject).filter(|subject| !subject.is_empty());
    let message = Replay {
        subject: subject.unwrap_or(&config.nats.submit_subject).clone(),
        headers: request.headers.clone(),
        payload: request.payload.clone(),
        msg_id: msg_id.clone(),
        replay_of: format!("dlq:{id}"),
    };
    let seq = nats.resubmit(&message).await?;
    store.mark_replayed(&Replayed { id, number, msg_id, job_id: Some(job_id.to_string()) }).await?;
    Ok(seq)
}

fn tell(id: i64, plan: &Plan, seq: Option<u64>, as_json: bool) -> Result<(), Error> {
    let mut out = std::io::stdout();
    match (plan, as_json) {
        (Plan::Send { job_id, how, .. }, true) => {
            writeln!(
                out,
                "{}",
                json!({"id": id, "replayed": seq.is_some(), "job_id": job_id, "how": how, "seq": seq})
            )?;
        }
        (Plan::Leave(reason), true) => {
            writeln!(out, "{}", json!({"id": id, "replayed": false, "left": reason}))?;
        }
        (Plan::Send { job_id, how, .. }, false) => match seq {
            Some(seq) => writeln!(out, "{id} replayed {how} as job {job_id}, message {seq}")?,
            None => writeln!(out, "{id} would be replayed {how} as job {job_id}")?,
        },
        (Plan::Leave(reason), false) => {
            writeln!(out, "{id} left: {}", reason.replace(char::is_control, " "))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_an_earlier_replay_is_no_part_of_the_id() {
        for (id, expected) in [
            ("a", "a"),
            ("a~replay17-2", "a"),
            ("a~replay1-1~replay17-2", "a~replay1-1"),
            ("a~replay", "a~replay"),
            ("a~replay17", "a~replay17"),
            ("a~replayx-1", "a~replayx-1"),
        ] {
            assert_eq!(original(id), expected);
        }
    }
}

//! Dead letters for people and for scripts.

use std::io::{self, Write};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value as Json, json};

use super::Show;
use crate::{
    cli::{
        columns,
        error::{Error, Exit},
    },
    store::{Inspect, JobView, Letter, Letters, Trail, WholeLetter, postgres::PostgresStore},
};

/// Characters of an error in a list; `dlq show` has all of it.
const ERROR_CHARS: usize = 60;

const HEAD: [&str; 8] = ["ID", "TIME", "REASON", "JOB", "THREAD", "DELIVERIES", "DONE", "ERROR"];

/// Prints letters, one per line.
pub(super) fn list(letters: &[Letter], as_json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if as_json {
        for letter in letters {
            writeln!(out, "{}", listed(letter))?;
        }
        return Ok(());
    }
    let rows: Vec<[String; 8]> = letters.iter().map(row).collect();
    columns::write(&mut out, HEAD, &rows)
}

fn row(letter: &Letter) -> [String; 8] {
    let id = |id: Option<&str>| id.unwrap_or("-").to_owned();
    [
        letter.id.to_string(),
        letter.kept_at.rfc3339_millis(),
        letter.reason.clone(),
        id(letter.job_id.as_ref().map(|id| id.as_str())),
        id(letter.thread_id.as_ref().map(|id| id.as_str())),
        letter.deliveries.to_string(),
        fate(letter).to_owned(),
        cut(&letter.error),
    ]
}

fn fate(letter: &Letter) -> &'static str {
    match (letter.discarded_at, letter.replayed_at) {
        (Some(_), _) => "discarded",
        (None, Some(_)) => "replayed",
        (None, None) => "-",
    }
}

/// One line of limited length.
fn cut(text: &str) -> String {
    let line = columns::plain(text);
    if line.chars().count() <= ERROR_CHARS {
        return line;
    }
    line.chars().take(ERROR_CHARS - 1).chain(['…']).collect()
}

fn listed(letter: &Letter) -> Json {
    let time = |at: Option<crate::ids::UnixNanos>| at.map(crate::ids::UnixNanos::rfc3339_millis);
    json!({
        "id": letter.id,
        "time": letter.kept_at.rfc3339_millis(),
        "reason": letter.reason,
        "error": letter.error,
        "job_id": letter.job_id,
        "thread_id": letter.thread_id,
        "deliveries": letter.deliveries,
        "replays": letter.replays,
        "replayed_at": time(letter.replayed_at),
        "replay_job_id": letter.replay_job_id,
        "discarded_at": time(letter.discarded_at),
    })
}

/// Prints one letter and what is known of its job now.
pub(super) async fn show(store: &PostgresStore, arguments: &Show) -> Result<Exit, Error> {
    let id = arguments.id;
    let whole = store.letter(id).await?.ok_or(Error::NoLetter(id))?;
    let mut out = io::stdout();
    if arguments.payload && !arguments.json {
        out.write_all(&whole.payload)?;
        return Ok(Exit::Success);
    }
    let mut shown = described(&whole);
    if let Some(job_id) = &whole.letter.job_id {
        let view = store.job(job_id).await?;
        let thread_id = view.as_ref().map(|view| &view.thread_id).or(whole.letter.thread_id.as_ref());
        let trail = match thread_id {
            Some(thread_id) => store.trail(thread_id, job_id).await?,
            None => Trail::default(),
        };
        shown["job"] = job(view.as_ref(), &trail);
    }
    if !arguments.json {
        lines(&mut out, &shown)?;
        return Ok(Exit::Success);
    }
    if arguments.payload {
        match std::str::from_utf8(&whole.payload) {
            Ok(text) => shown["payload"] = text.into(),
            Err(_) => shown["payload_base64"] = BASE64_STANDARD.encode(&whole.payload).into(),
        }
    }
    writeln!(out, "{shown:#}")?;
    Ok(Exit::Success)
}

fn described(whole: &WholeLetter) -> Json {
    let mut shown = listed(&whole.letter);
    shown["stream"] = whole.stream.as_str().into();
    shown["stream_seq"] = whole.stream_seq.into();
    shown["subject"] = whole.subject.as_str().into();
    shown["payload_bytes"] = whole.payload.len().into();
    shown["headers"] = whole.headers.iter().map(|(name, value)| json!([name, value])).collect();
    shown["job_then"] = whole.detail["job"].clone();
    shown
}

fn job(view: Option<&JobView>, trail: &Trail) -> Json {
    let Some(view) = view else { return json!({ "state": "unknown", "checkpoint_id": trail.last }) };
    json!({
        "state": view.state,
        "attempts": view.attempts,
        "crashes": view.crashes,
        "error": view.error,
        "published": view.published,
        "checkpoint_id": trail.last,
        "thread_checkpoint_id": trail.newest,
    })
}

/// One line per member; headers and the job are indented.
fn lines(out: &mut impl Write, shown: &Json) -> io::Result<()> {
    for (name, value) in shown.as_object().into_iter().flatten() {
        match value {
            Json::Null => {}
            Json::Array(headers) => {
                writeln!(out, "{name}:")?;
                for header in headers {
                    let text =
                        |at: usize| header[at].as_str().unwrap_or_default().replace(char::is_control, " ");
                    writeln!(out, "  {}: {}", text(0), text(1))?;
                }
            }
            Json::Object(members) => {
                writeln!(out, "{name}:")?;
                for (name, value) in members.iter().filter(|(_, value)| !value.is_null()) {
                    writeln!(out, "  {name}: {}", plain(value))?;
                }
            }
            Json::String(_) | Json::Bool(_) | Json::Number(_) => writeln!(out, "{name}: {}", plain(value))?,
        }
    }
    Ok(())
}

fn plain(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), |text| text.replace(char::is_control, " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_short_line() {
        assert_eq!(cut("a\nb"), "a b");
        let long = "é".repeat(200);
        assert_eq!(cut(&long).chars().count(), ERROR_CHARS);
        assert!(cut(&long).ends_with('…'));
    }
}

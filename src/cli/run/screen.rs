//! What a person sees of a run: its events as they come, and the state at its end.

use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use serde_json::Value as Json;

use crate::{
    cli::{
        error::Error,
        events::{Format, Painter, short},
    },
    graph::is_internal,
    ids::{Namespace, ThreadId},
    run::Outcome,
    store::{Checkpoints, sqlite::SqliteStore},
    stream::{
        Sink,
        local::{Local, Read, Reader},
    },
    value::Value,
};

/// Writes events to standard output, in an operating-system thread of its own: a terminal that is halted holds up
/// nothing else.
pub(super) struct Screen {
    sink: Arc<Local>,
}

impl Screen {
    /// Starts to write what comes to `sink`.
    pub(super) fn start(sink: Arc<Local>, format: Format) -> Self {
        let reader = Reader(sink.clone());
        // Not waited for: it ends with the sink, or when nobody reads standard output any more.
        std::thread::spawn(move || {
            let mut painter = Painter::new(io::stdout(), format);
            if let Err(error) = paint(&mut painter, reader) {
                tracing::debug!(%error, "standard output cannot be written any more");
            }
        });
        Self { sink }
    }

    /// Waits until everything is written, or for so long.
    pub(super) async fn finish(&self, limit: Duration) {
        self.sink.flush(limit).await;
        self.sink.close();
    }
}

fn paint<W: Write>(painter: &mut Painter<W>, reader: Reader) -> io::Result<()> {
    for read in reader {
        match read {
            Read::Event(event) => painter.paint(&event.entry)?,
            Read::Missed(count) => painter.missed(count)?,
        }
    }
    painter.end_line()
}

/// Writes the thread's state, a line for each channel, and the output channels of a completed job.
pub(super) async fn state(
    store: &SqliteStore,
    thread_id: &ThreadId,
    outcome: &Outcome,
    format: Format,
) -> Result<(), Error> {
    if format == Format::Json {
        return Ok(());
    }
    let Some(saved) = store.load(thread_id, &Namespace::root(), None).await? else { return Ok(()) };
    let mut out = io::stdout().lock();
    let channels = saved.checkpoint.values.iter().filter(|(name, _)| !is_internal(name));
    let mut lines: Vec<_> = channels.map(|(name, value)| (name.to_string(), summary(value))).collect();
    lines.sort();
    let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
    for (name, value) in lines {
        writeln!(out, "  {:width$}  {value}", short(&name))?;
    }
    match outcome {
        // A text has been on the screen, as the model wrote it.
        Outcome::Completed(output) if !output.output.is_string() => writeln!(out, "{:#}", output.output)?,
        Outcome::Completed(_) | Outcome::Interrupted(_) | Outcome::Failed(_) | Outcome::Cancelled(_) => {}
    }
    Ok(())
}

/// A channel's value in one line.
fn summary(value: &Value) -> String {
    let messages = value.messages().count();
    if messages > 0 {
        let plural = if messages == 1 { "" } else { "s" };
        return format!("{messages} message{plural}");
    }
    match value.to_json() {
        Json::String(text) => short(&text),
        // Files are known by their paths; what is in them may be long.
        Json::Object(map) if map.keys().next().is_some_and(|key| key.starts_with('/')) => {
            short(&map.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
        }
        other @ (Json::Null | Json::Bool(_) | Json::Number(_) | Json::Array(_) | Json::Object(_)) => {
            short(&other.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_channel_is_one_short_line() {
        let line = |json: Json| summary(&Value::from(json));
        assert_eq!(line(json!("a\nb")), "a b");
        assert_eq!(line(json!({"/a.md": {"content": ["x"]}, "/b.md": {}})), "/a.md, /b.md");
        assert_eq!(line(json!({"a": [1]})), r#"{"a":[1]}"#);
        assert!(line(json!("x".repeat(1000))).chars().count() < 200);
    }
}

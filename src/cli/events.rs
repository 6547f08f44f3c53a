//! Run events for people: text as it is written, tools and supersteps as lines.
//!
//! **Invariant:** nothing that a model or a tool wrote reaches the terminal as a control sequence.

use std::io::{self, Write};

use serde_json::Value as Json;

use crate::stream::dragonfly::Notice;

/// Most characters of a tool's input or output in its line.
const MAX_SHOWN_CHARS: usize = 160;

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// For people.
    Text,
    /// Each event as it came, one per line.
    Json,
}

/// Writes events.
pub(super) struct Painter<W> {
    out: W,
    format: Format,
    /// The message whose text the cursor stands behind.
    open: Option<String>,
}

impl<W: Write> Painter<W> {
    /// Events go to `out`.
    pub(super) fn new(out: W, format: Format) -> Self {
        Self { out, format, open: None }
    }

    /// Writes one event.
    pub(super) fn paint(&mut self, event: &[u8]) -> io::Result<()> {
        if self.format == Format::Json {
            self.out.write_all(event)?;
            self.out.write_all(b"\n")?;
            return self.out.flush();
        }
        let Ok(event) = serde_json::from_slice::<Json>(event) else {
            return self.line("an event that is not JSON");
        };
        if event["event_type"] == "on_llm_stream" {
            self.text(&event)?;
        } else if let Some(line) = line(&event) {
            self.line(&line)?;
        }
        self.out.flush()
    }

    /// Says what is missing.
    pub(super) fn notice(&mut self, notice: &Notice) -> io::Result<()> {
        match self.format {
            Format::Json => writeln!(self.out, "{}", notice.json())?,
            Format::Text => self.line(&format!("⚠ {notice}"))?,
        }
        self.out.flush()
    }

    /// Says that so many events could not be kept until they were written.
    pub(super) fn missed(&mut self, count: u64) -> io::Result<()> {
        match self.format {
            Format::Json => {
                writeln!(self.out, "{}", serde_json::json!({"notice": "missed", "events": count}))?
            }
            Format::Text => self.line(&format!("⚠ {count} events were not shown"))?,
        }
        self.out.flush()
    }

    /// Ends the line the cursor stands in, if it does.
    pub(super) fn end_line(&mut self) -> io::Result<()> {
        if self.open.take().is_some() {
            writeln!(self.out)?;
        }
        Ok(())
    }

    fn text(&mut self, event: &Json) -> io::Result<()> {
        let message_id = shown(&event["data"]["message_id"]);
        if self.open.as_deref() != Some(message_id.as_str()) {
            self.end_line()?;
            write!(self.out, "{}: ", origin(event))?;
            self.open = Some(message_id);
        }
        let token = event["data"]["token"].as_str().unwrap_or_default();
        write!(self.out, "{}", printable(token))
    }

    fn line(&mut self, line: &str) -> io::Result<()> {
        self.end_line()?;
        writeln!(self.out, "{line}")
    }
}

/// An event other than text in one line.
fn line(event: &Json) -> Option<String> {
    let data = &event["data"];
    let line = match event["event_type"].as_str().unwrap_or_default() {
        "on_attempt_start" => {
            let resumed = data["resumed_from"].as_str().map(|id| format!(", from checkpoint {}", short(id)));
            let again = if data["supersedes"].is_object() { "; text after that may come again" } else { "" };
            format!("▶ attempt {}{}{again}", shown(&data["attempt"]), resumed.unwrap_or_default())
        }
        "on_llm_retry" => {
            let (reason, model) = (shown(&data["reason"]), shown(&data["model"]));
            let again = if data["had_text"] == true { "; the text above is void" } else { "" };
            format!(
                "↻ {} asks {model} again, attempt {}: {reason}{again}",
                origin(event),
                shown(&data["attempt"])
            )
        }
        "on_tool_start" => {
            format!("→ {} calls {} {}", origin(event), shown(&data["tool_name"]), shown(&data["tool_input"]))
        }
        "on_tool_end" => {
            let (name, status) = (shown(&data["tool_name"]), shown(&data["status"]));
            let (time, output) = (shown(&data["duration_ms"]), shown(&data["tool_output"]));
            format!("← {name} {status} after {time} ms: {output}")
        }
        "on_state_update" => {
            let count = |value: &Json| {
                value.as_array().map(Vec::len).or(value.as_object().map(serde_json::Map::len)).unwrap_or(0)
            };
            let (messages, files) = (count(&data["messages"]), count(&data["files"]));
            format!("· superstep {}: {messages} messages, {files} files", shown(&data["step"]))
        }
        "on_interrupt" => format!("? waits for an answer: {}", shown(&data["interrupts"])),
        "on_custom" => format!("* {} {}", origin(event), shown(data)),
        "error" => {
            let error = &data["error"];
            format!("! {}: {}", shown(&error["type"]), shown(&error["message"]))
        }
        "end" => format!("■ {}", shown(&data["status"])),
        _ => return None,
    };
    Some(line)
}

/// Who an event is about: the node, behind those it is nested in.
fn origin(event: &Json) -> String {
    let outer = event["ns"].as_str().unwrap_or_default().split('|').filter_map(|part| part.split(':').next());
    let node = event["node"].as_str().unwrap_or_default();
    let names: Vec<&str> = outer.chain([node]).filter(|name| !name.is_empty()).collect();
    if names.is_empty() { "run".to_owned() } else { short(&names.join(" › ")) }
}

/// A value in one short line.
fn shown(value: &Json) -> String {
    match value {
        Json::String(text) => short(text),
        Json::Null => "-".to_owned(),
        Json::Bool(_) | Json::Number(_) | Json::Array(_) | Json::Object(_) => short(&value.to_string()),
    }
}

/// A text without control characters, lines and tabs excepted.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

/// The beginning of a text, in one line.
pub(super) fn short(text: &str) -> String {
    let mut letters = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut start: String = letters.by_ref().take(MAX_SHOWN_CHARS).collect();
    if letters.next().is_some() {
        start.push('…');
    }
    start
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn painted(events: &[Json]) -> String {
        let mut out = Vec::new();
        let mut painter = Painter::new(&mut out, Format::Text);
        for event in events {
            painter.paint(event.to_string().as_bytes()).expect("a vector takes all bytes");
        }
        painter.end_line().expect("a vector takes all bytes");
        String::from_utf8(out).expect("text stays text")
    }

    fn event(event_type: &str, data: Json) -> Json {
        json!({"event_type": event_type, "data": data, "node": "main", "ns": ""})
    }

    #[test]
    fn a_run_reads_like_a_conversation() {
        let nested = json!({
            "event_type": "on_llm_stream", "node": "agent", "ns": "tools:0-1",
            "data": {"token": "found", "message_id": "m2"},
        });
        let text = painted(&[
            event("on_attempt_start", json!({"attempt": 1, "resumed_from": null})),
            event("on_state_update", json!({"messages": [{}], "step": -1})),
            event("on_llm_stream", json!({"token": "I wo", "message_id": "m0"})),
            event(
                "on_llm_retry",
                json!({"attempt": 2, "reason": "MODEL_UNAVAILABLE", "superseded_message_id": "m0",
                    "had_text": true, "provider": "openai", "model": "gpt-4o-mini", "wait_ms": 20}),
            ),
            event("on_llm_stream", json!({"token": "I will ", "message_id": "m1"})),
            event("on_llm_stream", json!({"token": "ask.", "message_id": "m1"})),
            event("on_tool_start", json!({"tool_name": "task", "tool_input": {"description": "look"}})),
            nested,
            event(
                "on_tool_end",
                json!({"tool_name": "task", "status": "success", "duration_ms": 12, "tool_output": "a\nb"}),
            ),
            event("error", json!({"error": {"type": "TIMEOUT", "message": "too slow"}})),
            event("end", json!({"status": "failed", "final_result": null})),
        ]);
        expect_test::expect![[r#"
            ▶ attempt 1
            · superstep -1: 1 messages, 0 files
            main: I wo
            ↻ main asks gpt-4o-mini again, attempt 2: MODEL_UNAVAILABLE; the text above is void
            main: I will ask.
            → main calls task {"description":"look"}
            tools › agent: found
            ← task success after 12 ms: a b
            ! TIMEOUT: too slow
            ■ failed
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn control_sequences_do_not_reach_the_terminal() {
        let text = painted(&[
            event("on_llm_stream", json!({"token": "a\u{1b}[2Jb\n", "message_id": "m"})),
            event("on_tool_end", json!({"tool_name": "x\u{1b}]0;y\u{7}", "tool_output": "z".repeat(500)})),
        ]);
        assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'), "{text:?}");
        assert!(text.lines().all(|line| line.chars().count() < 250), "{text:?}");
    }

    #[test]
    fn raw_events_are_written_as_they_came() {
        let mut out = Vec::new();
        Painter::new(&mut out, Format::Json).paint(b"{\"a\":1}").expect("a vector takes all bytes");
        assert_eq!(out, b"{\"a\":1}\n");
    }
}

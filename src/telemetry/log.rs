//! Log lines. For people: without what is meant for traces. As JSON: fixed keys first, then the fields of the enclosing
//! spans, then those of the event.
//!
//! **Invariant:** a line of JSON is one object; a key stands in it once, the innermost value wins.
//! **Invariant:** no line has a known secret in it, nor what stands beside a name such as `password`.

use std::{
    error::Error as StdError,
    fmt,
    io::{self, Write},
};

use serde_json::{Map as JsonMap, Value as Json};
use time::OffsetDateTime;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    Layer,
    field::{RecordFields, VisitOutput},
    fmt::{
        FormatFields, Layer as FmtLayer, MakeWriter,
        format::{Compact, DefaultVisitor, Format, Writer},
        time::FormatTime,
    },
    layer::Context,
    registry::LookupSpan,
};

use super::scrub::{REDACTED, Scrubber, is_sensitive};

/// Most causes of an error written into one field; longer chains are loops or noise.
const MAX_CAUSES: usize = 8;

/// Keys that every line has; fields cannot replace them.
const FIXED: [&str; 4] = ["timestamp", "level", "message", "component"];

/// Writes every event as one line.
pub(super) struct JsonLines<W> {
    writer: W,
}

impl<W> JsonLines<W> {
    /// Lines go to `writer`.
    pub(super) fn new(writer: W) -> Self {
        Self { writer }
    }
}

/// The fields of a span, kept in its extensions, or of an event. Names are the program's own and live as long as it
/// does; spans are made many times per job and seldom written, so nothing is looked up or copied here.
#[derive(Default)]
struct Fields {
    /// Whether fields with a dot in their name are left out: they are attributes of the trace, not of the log.
    without_dots: bool,
    /// A name may come twice; the later one wins.
    values: Vec<(&'static str, Json)>,
}

impl<S, W> Layer<S> for JsonLines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields { without_dots: true, ..Fields::default() };
        attributes.record(&mut fields);
        span.extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut own = Fields::default();
        event.record(&mut own);
        let mut line = head(event, &mut own);
        for span in context.event_scope(event).into_iter().flatten().collect::<Vec<_>>().iter().rev() {
            if let Some(fields) = span.extensions().get::<Fields>() {
                add(&mut line, &fields.values);
            }
        }
        add(&mut line, &own.values);
        scrub(&mut line);
        let mut text = serde_json::to_vec(&line).expect("a JSON map serialises");
        text.push(b'\n');
        // Nobody is left to tell when the log itself cannot be written.
        let _ = self.writer.make_writer_for(event.metadata()).write_all(&text);
    }
}

/// The fixed keys; takes out of `own` what they are made of.
fn head(event: &Event<'_>, own: &mut Fields) -> JsonMap<String, Json> {
    let target = event.metadata().target();
    // Records of the `log` crate carry their origin in fields.
    let origin = own.find("log.target").and_then(Json::as_str).unwrap_or(target);
    let component = origin.strip_prefix("agent_executor::").unwrap_or(origin).to_owned();
    let message = own.find("message").cloned().unwrap_or_else(|| Json::String(String::new()));
    own.values.retain(|(name, _)| *name != "message" && !name.starts_with("log."));
    let level = event.metadata().level().as_str().to_ascii_lowercase();
    let values = [timestamp().into(), level.into(), message, component.into()];
    FIXED.into_iter().map(str::to_owned).zip(values).collect()
}

fn add(line: &mut JsonMap<String, Json>, fields: &[(&'static str, Json)]) {
    for (name, value) in fields {
        if !FIXED.contains(name) {
            line.insert((*name).to_owned(), value.clone());
        }
    }
}

/// Takes out of a line what nobody may read.
fn scrub(line: &mut JsonMap<String, Json>) {
    let scrubber = Scrubber::process();
    for (name, value) in line {
        match value {
            Json::Bool(_) | Json::Null => {}
            _ if is_sensitive(name) => *value = REDACTED.into(),
            Json::String(text) => {
                if let std::borrow::Cow::Owned(clean) = scrubber.report(text) {
                    *text = clean;
                }
            }
            Json::Number(_) | Json::Array(_) | Json::Object(_) => {}
        }
    }
}

/// Writes lines for people without what nobody may read.
pub(super) struct Scrubbing<W>(pub(super) W);

impl<W: Write> Write for Scrubbing<W> {
    /// Takes a whole line, as the layer gives it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        self.0.write_all(Scrubber::process().report(&text).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn timestamp() -> String {
    const FORMAT: &[time::format_description::BorrowedFormatItem<'static>] = time::macros::format_description!(
        "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"
    );
    OffsetDateTime::now_utc().format(FORMAT).expect("the format has only numeric parts")
}

/// The fields of a line for people; as in JSON, a name with a dot is an attribute of the trace, not of the log.
pub(super) struct Undotted;

impl<'w> FormatFields<'w> for Undotted {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = DefaultVisitor::new(writer, true);
        fields.record(&mut WithoutDots(&mut visitor));
        visitor.finish()
    }
}

/// Lines for people.
pub(super) fn people<S, W>(writer: W) -> FmtLayer<S, Undotted, Format<Compact, Millis>, W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    tracing_subscriber::fmt::layer().with_writer(writer).with_timer(Millis).fmt_fields(Undotted).compact()
}

/// Passes on what has no dot in its name. The visitor behind it writes numbers and flags as they debug.
struct WithoutDots<'a, 'w>(&'a mut DefaultVisitor<'w>);

impl Visit for WithoutDots<'_, '_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if !field.name().contains('.') {
            self.0.record_str(field, value);
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn StdError + 'static)) {
        if !field.name().contains('.') {
            self.0.record_error(field, value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if !field.name().contains('.') {
            self.0.record_debug(field, value);
        }
    }
}

/// The same time in lines for people.
pub(super) struct Millis;

impl FormatTime for Millis {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        writer.write_str(&timestamp())
    }
}

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Json>) {
        if !self.skips(field) {
            self.values.push((field.name(), value.into()));
        }
    }

    fn skips(&self, field: &Field) -> bool {
        self.without_dots && field.name().contains('.')
    }

    fn find(&self, name: &str) -> Option<&Json> {
        self.values.iter().rfind(|(known, _)| *known == name).map(|(_, value)| value)
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    /// Of `as_millis` and its like; more than 64 bits are no duration of ours.
    fn record_u128(&mut self, field: &Field, value: u128) {
        self.put(field, u64::try_from(value).unwrap_or(u64::MAX));
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        let most = if value < 0 { i64::MIN } else { i64::MAX };
        self.put(field, i64::try_from(value).unwrap_or(most));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn StdError + 'static)) {
        let causes = std::iter::successors(Some(value), |&error| error.source()).take(MAX_CAUSES);
        let text = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        self.put(field, text);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if !self.skips(field) {
            self.put(field, format!("{value:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What `subscriber`, which writes to `lines`, makes of what `work` logs.
    fn written(subscriber: impl Subscriber + Send + Sync, lines: &Lines, work: impl FnOnce()) -> String {
        tracing::subscriber::with_default(subscriber, work);
        String::from_utf8(lines.0.lock().expect("not poisoned").clone()).expect("lines are UTF-8")
    }

    /// What `work` logs, one JSON object per line, without the timestamps.
    fn logged(work: impl FnOnce()) -> Vec<Json> {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::registry().with(JsonLines::new(move || writer.clone()));
        written(subscriber, &lines, work)
            .lines()
            .map(|line| {
                let mut json: Json = serde_json::from_str(line).expect("a line is JSON");
                let time =
                    json.as_object_mut().expect("an object").shift_remove("timestamp").expect("a timestamp");
                assert!(time.as_str().is_some_and(|t| t.ends_with('Z') && t.len() == 24), "{time}");
                json
            })
            .collect()
    }

    #[test]
    fn a_line_carries_the_fields_of_its_spans_and_the_innermost_wins() {
        let lines = logged(|| {
            let job = tracing::info_span!(
                target: "agent_executor::worker", "job", job_id = "j1", node = "outer",
                trace_id = tracing::field::Empty, otel.kind = "consumer"
            );
            job.record("trace_id", "4bf9");
            let _job = job.enter();
            let _node = tracing::info_span!("node", node = "main", attempt = 2_u32).entered();
            tracing::warn!(target: "agent_executor::queue::nats", duration_ms = 7_u64, "slow \"ack\"");
        });
        expect_test::expect![[r#"{"level":"warn","message":"slow \"ack\"","component":"queue::nats","job_id":"j1","node":"main","trace_id":"4bf9","attempt":2,"duration_ms":7}"#]]
        .assert_eq(&lines[0].to_string());
    }

    #[test]
    fn fields_cannot_replace_the_fixed_keys() {
        let lines = logged(|| tracing::info!(target: "x", level = "loud", component = "me", "hello"));
        expect_test::expect![[r#"{"level":"info","message":"hello","component":"x"}"#]]
            .assert_eq(&lines[0].to_string());
    }

    #[test]
    fn an_error_is_written_with_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("no answer")]
        struct Outer(#[source] std::io::Error);
        let lines = logged(|| {
            let error = Outer(std::io::Error::other("refused\nhere"));
            tracing::error!(target: "x", error = &error as &dyn StdError, ok = false, "gone");
        });
        expect_test::expect![[r#"{"level":"error","message":"gone","component":"x","error":"no answer: refused\nhere","ok":false}"#]]
        .assert_eq(&lines[0].to_string());
    }

    #[test]
    fn a_long_duration_is_a_number() {
        let lines = logged(|| {
            let away = std::time::Duration::from_millis(1500);
            tracing::info!(target: "x", away_ms = away.as_millis(), most = u128::MAX, least = i128::MIN, "back");
        });
        expect_test::expect![[r#"{"level":"info","message":"back","component":"x","away_ms":1500,"most":18446744073709551615,"least":-9223372036854775808}"#]].assert_eq(&lines[0].to_string());
    }

    #[test]
    fn lines_for_people_leave_out_the_attributes_of_the_trace() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::registry()
            .with(people(move || writer.clone()).without_time().with_ansi(false));
        let text = written(subscriber, &lines, || {
            let job = tracing::info_span!(
                target: "agent_executor::worker", "job", otel.name = "run", job_id = "j1", otel.kind = "consumer",
                trace_id = tracing::field::Empty
            );
            job.record("trace_id", "4bf9");
            let _job = job.enter();
            let _call = tracing::info_span!("call", gen_ai.system = "openai").entered();
            tracing::warn!(target: "agent_executor::queue", duration_ms = 7_u64, "slow");
        });
        assert_eq!(
            text.trim(),
            r#"WARN job:call: agent_executor::queue: slow duration_ms=7 job_id="j1" trace_id="4bf9""#
        );
    }
}

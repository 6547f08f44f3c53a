//! Encodes the events of one claim and numbers them.
//!
//! **Invariant:** numbering and handing over happen under one lock, so order of arrival is order of `seq`.
//! **Invariant:** no event has a known secret in it; text of models comes here without, see `tokens`.
//! **Invariant:** an event leaves here within [`MAX_EVENT_BYTES`], or is a token event that the sink drops.

use std::{
    io::Write as _,
    sync::{Arc, Mutex, PoisonError},
};

use serde::Serialize;
use serde_json::{Value as Json, json};

use super::{EntryId, Event, EventType, MAX_EVENT_BYTES, Piece, Sink, TokenConfig, escape::escape};
use crate::{
    ids::{Clock, Epoch, JobId, Namespace, ThreadId},
    telemetry::scrub::Scrubber,
    value::State,
};

/// Room for the parts of an event whose length hardly varies: field names, ids and the time.
const FIXED_BYTES: usize = 256;

/// Largest field that an event too large as a whole keeps; names, ids and statuses fit, texts and states do not.
const MAX_KEPT_FIELD_BYTES: usize = 4096;

/// Most fields it keeps, and most it names as left out; states have as many fields as their graph has channels.
const MAX_NAMED_FIELDS: usize = 200;

/// Emits the events of one claim.
pub struct Emitter {
    sink: Arc<dyn Sink>,
    clock: Arc<dyn Clock>,
    thread_id: ThreadId,
    epoch: Epoch,
    /// The part of every event that says whose it is, as JSON.
    whose: String,
    tokens: TokenConfig,
    /// The last `seq` given out.
    seq: Mutex<u64>,
}

/// Who an event is about.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The node; empty for events of the whole run.
    pub node: &'a str,
    /// The namespace of its graph.
    pub ns: &'a Namespace,
}

/// Whose events an [`Emitter`] emits.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// The thread.
    pub thread_id: ThreadId,
    /// The job.
    pub job_id: JobId,
    /// The claim.
    pub epoch: Epoch,
    /// The attempt of the job.
    pub attempt: u32,
}

impl Emitter {
    /// An emitter whose first event has `seq` 1.
    pub fn new(sink: Arc<dyn Sink>, clock: Arc<dyn Clock>, claimed: Claimed, tokens: TokenConfig) -> Self {
        let Claimed { thread_id, job_id, epoch, attempt } = claimed;
        let mut whose = String::from(",\"thread_id\":\"");
        escape(thread_id.as_str(), |part| whose.push_str(part));
        whose.push_str("\",\"job_id\":\"");
        escape(job_id.as_str(), |part| whose.push_str(part));
        whose.push_str(&format!("\",\"attempt\":{attempt}"));
        Self { sink, clock, thread_id, epoch, whose, tokens, seq: Mutex::new(0) }
    }

    /// An emitter that goes on after the event with `last` as its `seq`.
    pub fn after(self, last: u64) -> Self {
        Self { seq: Mutex::new(last), ..self }
    }

    /// Whether nothing was emitted yet.
    pub fn is_silent(&self) -> bool {
        self.id_in(0).seq == 0
    }

    /// The id of the event that is the `count`-th from now.
    pub fn id_in(&self, count: u64) -> EntryId {
        let last = *self.seq.lock().unwrap_or_else(PoisonError::into_inner);
        EntryId { epoch: self.epoch, seq: last + count }
    }

    /// How text is cut into events.
    pub fn tokens(&self) -> TokenConfig {
        self.tokens
    }

    /// Emits an event whose data is `data`. Fields that make it too large are left out and named in `omitted`.
    pub fn emit(&self, event_type: EventType, origin: Origin<'_>, data: impl Serialize) {
        let mut entry = self.opened(event_type, origin, 0);
        let data_from = entry.len();
        if let Err(error) = serde_json::to_writer(&mut entry, &data) {
            tracing::warn!(%error, event_type = event_type.as_str(), "event data is not json");
            entry.truncate(data_from);
            entry.extend_from_slice(b"{}");
        }
        if let Some(clean) = Scrubber::process().json_bytes(&entry[data_from..]) {
            entry.truncate(data_from);
            entry.extend_from_slice(&clean);
        }
        // An escaped character takes at most six bytes.
        let rest = FIXED_BYTES + self.whose.len() + 6 * (origin.node.len() + origin.ns.as_str().len());
        if entry.len() + rest > MAX_EVENT_BYTES {
            let short = shortened(&entry[data_from..]);
            entry.truncate(data_from);
            entry.extend_from_slice(&short);
        }
        self.send(event_type, origin, entry, None);
    }

    /// Emits the state after a superstep, with its step and checkpoint.
    pub fn state_update(&self, ns: &Namespace, state: &State, step: i64, checkpoint_id: &str) {
        #[derive(Serialize)]
        struct Update<'a> {
            #[serde(flatten)]
            state: &'a State,
            step: i64,
            checkpoint_id: &'a str,
        }
        let origin = Origin { node: "", ns };
        self.emit(EventType::StateUpdate, origin, Update { state, step, checkpoint_id });
    }

    /// Emits a piece of a model's text. The channel gets the text so far with every piece, the stream with the last.
    pub fn token(&self, origin: Origin<'_>, message_id: &str, piece: &Piece<'_>) {
        let event_type = EventType::LlmStream;
        let encoded = |cumulative_text: Option<&str>| {
            let texts = piece.token.len() + cumulative_text.map_or(0, str::len) + message_id.len();
            let mut out = self.opened(event_type, origin, texts);
            push_token(&mut out, message_id, piece, cumulative_text);
            out
        };
        match piece.cumulative_text {
            Some(_) if !piece.last => {
                self.send(event_type, origin, encoded(None), Some(encoded(piece.cumulative_text)));
            }
            cumulative_text => self.send(event_type, origin, encoded(cumulative_text), None),
        }
    }

    /// An event up to its data, with room for the rest and `more` bytes of data.
    fn opened(&self, event_type: EventType, origin: Origin<'_>, more: usize) -> Vec<u8> {
        let names = origin.node.len() + origin.ns.as_str().len();
        let mut out = Vec::with_capacity(FIXED_BYTES + self.whose.len() + names + more);
        push(&mut out, "{\"event_type\":\"");
        push(&mut out, event_type.as_str());
        push(&mut out, "\",\"data\":");
        out
    }

    fn send(
        &self,
        event_type: EventType,
        origin: Origin<'_>,
        mut entry: Vec<u8>,
        mut publish: Option<Vec<u8>>,
    ) {
        let mut last = self.seq.lock().unwrap_or_else(PoisonError::into_inner);
        *last += 1;
        let id = EntryId { epoch: self.epoch, seq: *last };
        let ts = self.clock.now().rfc3339_millis();
        self.close(&mut entry, origin, id, &ts);
        if let Some(publish) = &mut publish {
            self.close(publish, origin, id, &ts);
        }
        let (entry, publish) = (entry.into(), publish.map(Into::into));
        self.sink.emit(Event { thread_id: self.thread_id.clone(), id, event_type, entry, publish });
    }

    /// Writes what comes after the data.
    fn close(&self, out: &mut Vec<u8>, origin: Origin<'_>, id: EntryId, ts: &str) {
        write!(out, ",\"id\":\"{id}\",\"seq\":{}", id.seq).expect("memory takes every write");
        push(out, &self.whose);
        push(out, ",\"node\":\"");
        push_escaped(out, origin.node);
        push(out, "\",\"ns\":\"");
        push_escaped(out, origin.ns.as_str());
        push(out, "\",\"ts\":\"");
        push(out, ts);
        push(out, "\"}");
    }
}

fn push(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

fn push_escaped(out: &mut Vec<u8>, text: &str) {
    escape(text, |part| push(out, part));
}

/// Writes the data of a token event around texts that are escaped already.
fn push_token(out: &mut Vec<u8>, message_id: &str, piece: &Piece<'_>, cumulative_text: Option<&str>) {
    push(out, "{\"token\":\"");
    push(out, piece.token);
    write!(out, "\",\"offset\":{}", piece.offset).expect("memory takes every write");
    if let Some(text) = cumulative_text {
        push(out, ",\"cumulative_text\":\"");
        push(out, text);
        push(out, "\"");
    }
    push(out, ",\"message_id\":\"");
    push_escaped(out, message_id);
    push(out, "\"}");
}

/// What is left of the data of an event that is too large: its small fields, and the names of the others.
fn shortened(data: &[u8]) -> Vec<u8> {
    let mut kept = serde_json::Map::new();
    let mut omitted = Vec::new();
    if let Ok(Json::Object(fields)) = serde_json::from_slice(data) {
        for (name, value) in fields {
            let small = name.len() + value.to_string().len() <= MAX_KEPT_FIELD_BYTES;
            if small && kept.len() < MAX_NAMED_FIELDS {
                kept.insert(name, value);
            } else if omitted.len() < MAX_NAMED_FIELDS {
                omitted.push(name.chars().take(MAX_KEPT_FIELD_BYTES / 4).collect::<String>());
            }
        }
    }
    kept.insert("omitted".into(), json!(omitted));
    Json::Object(kept).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::{ids::UnixNanos, stream::memory::Memory, value::Value};

    struct Noon;

    impl Clock for Noon {
        fn now(&self) -> UnixNanos {
            UnixNanos(1_800_000_000_123_456_700)
        }
    }

    fn emitter(sink: &Arc<Memory>) -> Emitter {
        let claimed = Claimed {
            thread_id: ThreadId::parse("t \"1\"").expect("valid"),
            job_id: JobId::parse("j1").expect("valid"),
            epoch: Epoch(41),
            attempt: 2,
        };
        Emitter::new(sink.clone(), Arc::new(Noon), claimed, TokenConfig::default())
    }

    fn texts(events: &[Event]) -> String {
        let text = |bytes: &bytes::Bytes| String::from_utf8(bytes.to_vec()).expect("JSON is UTF-8");
        let lines = events.iter().map(|event| match &event.publish {
            Some(publish) => format!("{}\n  channel {}\n", text(&event.entry), text(publish)),
            None => format!("{}\n", text(&event.entry)),
        });
        lines.collect()
    }

    #[test]
    fn events_look_as_the_contract_says() {
        let sink = Arc::new(Memory::default());
        let emitter = emitter(&sink);
        let ns = Namespace::from_stored("main:\"x\"");
        let origin = Origin { node: "main", ns: &ns };
        emitter.emit(EventType::AttemptStart, origin, json!({"attempt": 2, "resumed_from": null}));
        let state = State::from_iter([("todos".into(), Value::list(vec!["a\nb".into()]))]);
        emitter.state_update(&Namespace::root(), &state, 3, "c1");
        let piece = Piece { token: "l\\n", offset: 2, cumulative_text: Some("Hel\\n"), last: false };
        emitter.token(origin, "m1", &piece);
        emitter.token(origin, "m1", &Piece { token: "", offset: 4, last: true, ..piece });
        emitter.token(origin, "m1", &Piece { cumulative_text: None, ..piece });
        expect![[r#"
            {"event_type":"on_attempt_start","data":{"attempt":2,"resumed_from":null},"id":"41-1","seq":1,"thread_id":"t \"1\"","job_id":"j1","attempt":2,"node":"main","ns":"main:\"x\"","ts":"2027-01-15T08:00:00.123Z"}
            {"event_type":"on_state_update","data":{"todos":["a\nb"],"step":3,"checkpoint_id":"c1"},"id":"41-2","seq":2,"thread_id":"t \"1\"","job_id":"j1","attempt":2,"node":"","ns":"","ts":"2027-01-15T08:00:00.123Z"}
            {"event_type":"on_llm_stream","data":{"token":"l\n","offset":2,"message_id":"m1"},"id":"41-3","seq":3,"thread_id":"t \"1\"","job_id":"j1","attempt":2,"node":"main","ns":"main:\"x\"","ts":"2027-01-15T08:00:00.123Z"}
              channel {"event_type":"on_llm_stream","data":{"token":"l\n","offset":2,"cumulative_text":"Hel\n","message_id":"m1"},"id":"41-3","seq":3,"thread_id":"t \"1\"","job_id":"j1","attempt":2,"node":"main","ns":"main:\"x\"","ts":"2027-01-15T08:00:00.123Z"}
            {"event_type":"on_llm_stream","data":{"token":"","offset":4,"cumulative_text":"Hel\n","message_id":"m1"},"id":"41-4","seq":4,"thread_id":"t \"1\"","job_id":"j1","attempt":2,"node":"main","ns":"main:\"x\"","ts":"2027-01-15T08:00:00.123Z"}
            {"event_type":"on_llm_stream","data":{"token":"l\n","offset":2,"message_id":"m1"},"id":"41-5","seq":5,"thread_id":"t \"1\"","job_id":"j1","attempt":2,"node":"main","ns":"main:\"x\"","ts":"2027-01-15T08:00:00.123Z"}
        "#]]
        .assert_eq(&texts(&sink.taken(&emitter.thread_id)));
        for event in sink.taken(&emitter.thread_id) {
            for json in [Some(event.entry), event.publish].into_iter().flatten() {
                let read: Json = serde_json::from_slice(&json).expect("valid JSON");
                assert_eq!(read["thread_id"], "t \"1\"");
                assert_eq!(read["id"], event.id.to_string());
            }
        }
    }

    #[test]
    fn an_event_too_large_keeps_its_small_fields_and_names_the_others() {
        let sink = Arc::new(Memory::default());
        let emitter = emitter(&sink);
        let origin = Origin { node: "", ns: &Namespace::root() };
        let data = json!({"status": "completed", "final_result": "x".repeat(MAX_EVENT_BYTES)});
        emitter.emit(EventType::End, origin, data);
        let events = sink.events(&emitter.thread_id);
        assert_eq!(events[0]["data"], json!({"status": "completed", "omitted": ["final_result"]}));
        assert_eq!(events[0]["seq"], 1);
    }

    #[test]
    fn an_event_just_below_the_limit_stays_whole_and_within_it() {
        let sink = Arc::new(Memory::default());
        let emitter = emitter(&sink);
        let origin = Origin { node: "", ns: &Namespace::root() };
        for spare in [0, 200, 300, 400, 500] {
            emitter.emit(EventType::Custom, origin, json!({"text": "x".repeat(MAX_EVENT_BYTES - spare)}));
        }
        let sizes = sink.taken(&emitter.thread_id).into_iter().map(|event| event.entry.len());
        let sizes: Vec<usize> = sizes.collect();
        assert!(sizes.iter().all(|size| *size <= MAX_EVENT_BYTES), "{sizes:?}");
        assert!(sizes[4] > MAX_EVENT_BYTES - 500, "it need not be shortened: {sizes:?}");
    }
}

//! The JSON columns of a checkpoint, format version 4.
//!
//! **Invariant:** `channel_values` holds null, truth values, numbers and texts only; Python loses anything else
//! at its next superstep.

use std::{collections::BTreeMap, io, sync::Arc};

use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap};
use serde_json::Value as Json;

use super::Error;
use crate::{
    ids::CheckpointId,
    pregel::{Checkpoint, Metadata, Source, Version},
    value::{Name, State, Value},
};

/// The format LangGraph 1.x writes.
const VERSION: u64 = 4;

/// The oldest format that can be read as it is once the sends of the parent are added.
const OLDEST_VERSION: u64 = 3;

/// Seen by the pseudo-node that takes a job's input; always there and always empty.
const INPUT: &str = "__input__";

/// In the metadata of threads whose lists are stored as differences, which this crate cannot replay.
const DELTA_COUNTERS: &str = "counters_since_delta_snapshot";

/// Writes floats without an exponent, because `jsonb` would turn `1e16` into an integer.
struct PlainFloats;

impl serde_json::ser::Formatter for PlainFloats {
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        if value.fract() == 0.0 { write!(writer, "{value}.0") } else { write!(writer, "{value}") }
    }
}

fn to_text(value: &impl Serialize) -> Result<String, Error> {
    // A root checkpoint with a few channels takes about this many bytes.
    let mut out = Vec::with_capacity(1024);
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, PlainFloats);
    value.serialize(&mut serializer).map_err(|error| Error::Json(error.to_string()))?;
    Ok(String::from_utf8(out).expect("JSON is UTF-8"))
}

#[derive(Serialize)]
struct Written<'a> {
    v: u64,
    id: &'a CheckpointId,
    ts: &'a str,
    channel_values: Inline<'a>,
    channel_versions: &'a BTreeMap<Name, Version>,
    versions_seen: Seen<'a>,
    updated_channels: &'a Option<Vec<Name>>,
}

/// The values that stand in the checkpoint itself.
struct Inline<'a>(&'a State);

impl Serialize for Inline<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_map(None)?;
        for (channel, value) in self.0.iter().filter(|(_, value)| value.is_inline()) {
            out.serialize_entry(&**channel, value)?;
        }
        out.end()
    }
}

/// The inline ones of `values`, as `channel_values` of the column `checkpoint`.
pub(super) fn inline_text(values: &State) -> Result<String, Error> {
    to_text(&Inline(values))
}

/// The inline values in the column `checkpoint`, whatever format the rest of it has.
pub(super) fn inline_values(text: &str) -> Result<State, Error> {
    #[derive(Deserialize)]
    struct Values {
        #[serde(default)]
        channel_values: serde_json::Map<String, Json>,
    }
    let read: Values = serde_json::from_str(text).map_err(|error| Error::Json(error.to_string()))?;
    Ok(read.channel_values.into_iter().map(|(channel, value)| (channel.into(), value.into())).collect())
}

struct Seen<'a>(&'a BTreeMap<Name, BTreeMap<Name, Version>>);

impl Serialize for Seen<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_map(None)?;
        if !self.0.contains_key(INPUT) {
            out.serialize_entry(INPUT, &BTreeMap::<&str, &str>::new())?;
        }
        for (node, versions) in self.0 {
            out.serialize_entry(&**node, versions)?;
        }
        out.end()
    }
}

/// The column `checkpoint`. Fails with the channel whose inline value Postgres would refuse.
pub(super) fn write(checkpoint: &Checkpoint) -> Result<String, (Name, Error)> {
    let refused = |channel: &Name| (channel.clone(), Error::Json("a text with the character U+0000".into()));
    for (channel, value) in &checkpoint.values {
        if value.as_str().is_some_and(has_nul) {
            return Err(refused(channel));
        }
    }
    if let Some(channel) = checkpoint.versions.keys().find(|channel| has_nul(channel)) {
        return Err(refused(channel));
    }
    let written = Written {
        v: VERSION,
        id: &checkpoint.id,
        ts: &checkpoint.ts,
        channel_values: Inline(&checkpoint.values),
        channel_versions: &checkpoint.versions,
        versions_seen: Seen(&checkpoint.seen),
        updated_channels: &checkpoint.updated,
    };
    to_text(&written).map_err(|error| (Name::from("__checkpoint__"), error))
}

fn has_nul(text: &str) -> bool {
    text.as_bytes().contains(&0)
}

#[derive(Deserialize)]
struct Read {
    v: u64,
    id: CheckpointId,
    ts: String,
    #[serde(default)]
    channel_values: serde_json::Map<String, Json>,
    #[serde(default)]
    channel_versions: BTreeMap<Name, Version>,
    #[serde(default)]
    versions_seen: BTreeMap<Name, BTreeMap<Name, Version>>,
    updated_channels: Option<Vec<Name>>,
}

/// A checkpoint with its inline values, and whether its sends are still among its parent's writes.
pub(super) fn read(text: &str) -> Result<(Checkpoint, Sends), Error> {
    let read: Read = serde_json::from_str(text).map_err(|error| Error::Json(error.to_string()))?;
    if read.v < OLDEST_VERSION {
        return Err(Error::Json(format!("format version {} is older than {OLDEST_VERSION}", read.v)));
    }
    let sends = if read.v < VERSION { Sends::WithParent } else { Sends::InPlace };
    let values = read.channel_values.into_iter().map(|(channel, value)| (channel.into(), value.into()));
    let checkpoint = Checkpoint {
        id: read.id,
        ts: read.ts,
        values: values.collect(),
        versions: read.channel_versions,
        seen: read.versions_seen,
        updated: read.updated_channels,
    };
    Ok((checkpoint, sends))
}

/// Where the tasks scheduled for the next superstep are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sends {
    /// In a channel of the checkpoint.
    InPlace,
    /// Among the writes of the parent, as formats before 4 have it.
    WithParent,
}

/// The column `metadata`; the character U+0000 is dropped from texts, as Python does.
pub(super) fn write_metadata(metadata: &Metadata) -> Result<String, Error> {
    let parents: serde_json::Map<String, Json> =
        metadata.parents.iter().map(|(ns, id)| (ns.clone(), id.as_str().into())).collect();
    let mut all = serde_json::Map::from_iter([
        ("source".to_owned(), metadata.source.as_str().into()),
        ("step".to_owned(), metadata.step.into()),
        ("parents".to_owned(), Json::Object(parents)),
    ]);
    for (key, value) in &metadata.extra {
        if !all.contains_key(key) {
            all.insert(without_nul(key), clean(value));
        }
    }
    to_text(&all)
}

fn without_nul(text: &str) -> String {
    text.replace('\0', "")
}

fn clean(value: &Json) -> Json {
    match value {
        Json::String(text) => without_nul(text).into(),
        Json::Array(items) => items.iter().map(clean).collect(),
        Json::Object(map) => {
            Json::Object(map.iter().map(|(key, value)| (without_nul(key), clean(value))).collect())
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => value.clone(),
    }
}

/// Reads the column `metadata`.
pub(super) fn read_metadata(text: &str) -> Result<Metadata, Error> {
    let wrong = |what: &str| Error::Json(format!("metadata: {what}"));
    let mut extra: serde_json::Map<String, Json> =
        serde_json::from_str(text).map_err(|error| Error::Json(error.to_string()))?;
    if extra.contains_key(DELTA_COUNTERS) {
        return Err(wrong("the thread uses a DeltaChannel, whose values are not stored in checkpoints"));
    }
    let source = match extra.shift_remove("source").as_ref().and_then(Json::as_str) {
        Some("input") => Source::Input,
        Some("update") => Source::Update,
        Some("fork") => Source::Fork,
        // LangGraph reads checkpoints without a source; only their step matters to it.
        Some("loop") | None => Source::Loop,
        Some(other) => return Err(wrong(&format!("unknown source {other:?}"))),
    };
    let step = extra.shift_remove("step").as_ref().and_then(Json::as_i64).ok_or_else(|| wrong("no step"))?;
    let parents = match extra.shift_remove("parents") {
        Some(parents) => serde_json::from_value(parents).map_err(|error| Error::Json(error.to_string()))?,
        None => BTreeMap::new(),
    };
    Ok(Metadata { source, step, parents, extra })
}

/// Adds `sends`, taken from the parent's writes, to a checkpoint of an older format.
pub(crate) fn adopt_sends(checkpoint: &mut Checkpoint, sends: Vec<Value>) {
    let Some(newest) = checkpoint.versions.values().max().cloned() else { return };
    let channel: Name = crate::pregel::SENDS.into();
    checkpoint.versions.insert(channel.clone(), newest);
    checkpoint.values.insert(channel, Value::List(Arc::new(sends)));
}

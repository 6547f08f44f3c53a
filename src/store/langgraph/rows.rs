//! A commit as rows of LangGraph's tables, and rows as what they stand for.
//!
//! **Invariant:** a blob row is made for a changed channel only, under the version the checkpoint names; a pair
//! of channel and version is never written with two values.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;

use super::{
    Error,
    checkpoint::{self, Sends},
    decode, encode,
};
use crate::{
    ids::{CheckpointId, Namespace, TaskId, ThreadId},
    pregel::{OVERWRITE, PendingWrite, Version},
    store::{self, Commit, Put, Saved, StoredEffect, TaskWrites},
    value::{Name, Value},
};

/// A row of `checkpoints`.
#[derive(Debug)]
pub(crate) struct CheckpointRow {
    pub(crate) ns: Namespace,
    pub(crate) id: CheckpointId,
    pub(crate) parent: Option<CheckpointId>,
    pub(crate) checkpoint: String,
    pub(crate) metadata: String,
}

/// A row of `checkpoint_blobs`; `blob` is a range of [`Rows::bytes`].
#[derive(Debug)]
pub(crate) struct BlobRow {
    pub(crate) ns: Namespace,
    pub(crate) channel: Name,
    pub(crate) version: Version,
    pub(crate) kind: &'static str,
    pub(crate) blob: Range<usize>,
}

/// A row of `checkpoint_writes`; `blob` is a range of [`Rows::bytes`].
#[derive(Debug)]
pub(crate) struct WriteRow {
    pub(crate) ns: Namespace,
    pub(crate) checkpoint_id: CheckpointId,
    pub(crate) task_id: TaskId,
    pub(crate) task_path: Arc<str>,
    pub(crate) idx: i32,
    pub(crate) channel: Name,
    pub(crate) kind: &'static str,
    pub(crate) blob: Range<usize>,
}

/// All rows of one commit; the values share one buffer.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    pub(crate) checkpoints: Vec<CheckpointRow>,
    pub(crate) blobs: Vec<BlobRow>,
    pub(crate) writes: Vec<WriteRow>,
    pub(crate) effects: Vec<StoredEffect>,
    bytes: Vec<u8>,
}

impl Rows {
    /// Encodes a commit, or says which channel holds what cannot be stored, or that it is larger than `limit` bytes.
    pub(crate) fn encode(commit: &Commit, limit: usize) -> Result<Self, store::Error> {
        check_advance(commit)?;
        let mut rows = Self::default();
        for put in &commit.puts {
            rows.put(put)?;
        }
        for writes in &commit.writes {
            rows.task_writes(writes)?;
        }
        for effect in &commit.effects {
            rows.effects.push(StoredEffect::encode(effect)?);
        }
        let bytes = rows.size();
        if bytes > limit {
            return Err(store::Error::TooLarge { channel: rows.largest(commit), bytes, limit });
        }
        Ok(rows)
    }

    /// The channel with the largest value.
    fn largest(&self, commit: &Commit) -> String {
        let blobs = self.blobs.iter().map(|row| (row.blob.len(), &row.channel));
        let writes = self.writes.iter().map(|row| (row.blob.len(), &row.channel));
        // Texts stand in the checkpoint itself.
        let values = commit.puts.iter().flat_map(|put| &put.checkpoint.values);
        let texts = values.filter_map(|(name, value)| Some((value.as_str()?.len(), name)));
        blobs
            .chain(writes)
            .chain(texts)
            .max_by_key(|(bytes, _)| *bytes)
            .map_or_else(String::new, |(_, channel)| channel.to_string())
    }

    /// The value of a row.
    pub(crate) fn blob(&self, range: &Range<usize>) -> &[u8] {
        &self.bytes[range.clone()]
    }

    /// About how many bytes the rows add to a statement.
    pub(crate) fn size(&self) -> usize {
        let json: usize = self.checkpoints.iter().map(|row| row.checkpoint.len() + row.metadata.len()).sum();
        // Keys and headers of a row take about this much.
        let answers: usize = self.effects.iter().map(StoredEffect::size).sum();
        let count = self.checkpoints.len() + self.blobs.len() + self.writes.len() + self.effects.len();
        json + answers + self.bytes.len() + 256 * count
    }

    fn put(&mut self, put: &Put) -> Result<(), store::Error> {
        for channel in &put.changed {
            let Some(value) = put.checkpoint.values.get(channel) else { continue };
            if value.is_inline() {
                continue;
            }
            let version = put.checkpoint.versions.get(channel).ok_or_else(|| store::Error::Unstorable {
                channel: channel.to_string(),
                reason: "it changed but has no version".into(),
            })?;
            let (kind, blob) = self.value(channel, value)?;
            let (ns, channel, version) = (put.ns.clone(), channel.clone(), version.clone());
            self.blobs.push(BlobRow { ns, channel, version, kind, blob });
        }
        let checkpoint =
            checkpoint::write(&put.checkpoint).map_err(|(channel, error)| unstorable(&channel, &error))?;
        let metadata = checkpoint::write_metadata(&put.metadata)
            .map_err(|error| store::Error::Refused(format!("metadata: {error}")))?;
        self.checkpoints.push(CheckpointRow {
            ns: put.ns.clone(),
            id: put.checkpoint.id.clone(),
            parent: put.parent.clone(),
            checkpoint,
            metadata,
        });
        Ok(())
    }

    fn task_writes(&mut self, group: &TaskWrites) -> Result<(), store::Error> {
        self.writes.reserve(group.writes.len());
        for write in &group.writes {
            let (kind, blob) = self.value(&write.channel, &write.value)?;
            self.writes.push(WriteRow {
                ns: group.ns.clone(),
                checkpoint_id: group.checkpoint_id.clone(),
                task_id: write.task_id.clone(),
                task_path: write.task_path.clone(),
                idx: write.idx,
                channel: write.channel.clone(),
                kind,
                blob,
            });
        }
        Ok(())
    }

    fn value(&mut self, channel: &Name, value: &Value) -> Result<(&'static str, Range<usize>), store::Error> {
        let start = self.bytes.len();
        let kind = match value {
            Value::Null => "null",
            Value::Bytes(bytes) => {
                self.bytes.extend_from_slice(bytes);
                "bytes"
            }
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::List(_) | Value::Map(_) => {
                self.msgpack(channel, value)?
            }
            Value::Message(_) | Value::Set(_) | Value::Send(_) | Value::Interrupt(_) | Value::Opaque(_) => {
                self.msgpack(channel, value)?
            }
        };
        Ok((kind, start..self.bytes.len()))
    }

    fn msgpack(&mut self, channel: &Name, value: &Value) -> Result<&'static str, store::Error> {
        encode::value(value, &mut self.bytes).map_err(|error| unstorable(channel, &error))?;
        Ok("msgpack")
    }
}

fn unstorable(channel: &Name, error: &Error) -> store::Error {
    store::Error::Unstorable { channel: channel.to_string(), reason: error.to_string() }
}

/// The head of a thread must be its newest root checkpoint: a root checkpoint needs an advance to it.
fn check_advance(commit: &Commit) -> Result<(), store::Error> {
    let newest_root = commit.puts.iter().rfind(|put| put.ns.is_root()).map(|put| &put.checkpoint.id);
    let target = commit.advance.as_ref().map(|advance| &advance.to);
    match newest_root {
        Some(id) if target != Some(id) => {
            Err(store::Error::Refused("a root checkpoint must become the head".into()))
        }
        None if target.is_some() => Err(store::Error::Refused("the head must be a root checkpoint".into())),
        _ => Ok(()),
    }
}

/// A checkpoint with its blobs and writes, as a query returns them.
#[derive(Debug)]
pub(crate) struct StoredRow {
    pub(crate) checkpoint: String,
    pub(crate) metadata: String,
    pub(crate) parent: Option<String>,
    pub(crate) blobs: Vec<StoredBlob>,
    /// Sorted by task path, task id and idx.
    pub(crate) writes: Vec<StoredWrite>,
}

/// A stored value of a channel.
#[derive(Debug)]
pub(crate) struct StoredBlob {
    pub(crate) channel: String,
    pub(crate) kind: String,
    pub(crate) blob: Vec<u8>,
}

/// A stored write.
#[derive(Debug)]
pub(crate) struct StoredWrite {
    pub(crate) task_id: String,
    pub(crate) task_path: String,
    pub(crate) idx: i32,
    pub(crate) channel: String,
    pub(crate) kind: String,
    pub(crate) blob: Vec<u8>,
}

impl StoredRow {
    /// The checkpoint the row stands for; a blob wins over an inline value.
    pub(crate) fn into_saved(self, thread_id: &ThreadId) -> Result<(Saved, Sends), store::Error> {
        let corrupt =
            |what, reason: String| store::Error::Corrupt { thread_id: thread_id.to_string(), what, reason };
        let (mut checkpoint, sends) =
            checkpoint::read(&self.checkpoint).map_err(|error| corrupt("checkpoint", error.to_string()))?;
        let metadata = checkpoint::read_metadata(&self.metadata)
            .map_err(|error| corrupt("checkpoint", error.to_string()))?;
        for StoredBlob { channel, kind, blob } in self.blobs {
            let value = typed(&kind, blob).map_err(|error| corrupt("blob", format!("{channel}: {error}")))?;
            checkpoint.values.insert(channel.into(), value);
        }
        let mut writes = Vec::with_capacity(self.writes.len());
        for write in self.writes {
            let value = typed(&write.kind, write.blob)
                .map(plain_overwrite)
                .map_err(|error| corrupt("write", format!("{}: {error}", write.channel)))?;
            writes.push(PendingWrite {
                task_id: TaskId::from_stored(&write.task_id),
                task_path: write.task_path.into(),
                idx: write.idx,
                channel: write.channel.into(),
                value,
            });
        }
        let parent = self.parent.as_deref().map(CheckpointId::parse).transpose();
        let parent = parent.map_err(|error| corrupt("checkpoint", format!("parent: {error}")))?;
        Ok((Saved { checkpoint, metadata, parent, writes }, sends))
    }
}

/// LangGraph's `Overwrite` in the form in which it can be written as JSON; a write is read here, and never written again.
fn plain_overwrite(value: Value) -> Value {
    let found = if let Value::Opaque(bytes) = &value { decode::overwrite(bytes) } else { None };
    found.map_or(value, |overwriting| Value::map([(OVERWRITE, overwriting)]))
}

/// The value of a row of type `kind`.
pub(crate) fn typed(kind: &str, blob: Vec<u8>) -> Result<Value, Error> {
    match kind {
        "null" => Ok(Value::Null),
        "msgpack" => decode::value(&blob),
        "bytes" | "bytearray" => Ok(Value::Bytes(Bytes::from(blob))),
        "json" => serde_json::from_slice::<serde_json::Value>(&blob)
            .map(Value::from)
            .map_err(|error| Error::Json(error.to_string())),
        other => Err(Error::UnknownType(other.into())),
    }
}

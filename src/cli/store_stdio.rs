//! `store-stdio`: LangGraph's tables behind JSON lines, one request and one reply a line, so that LangGraph's own
//! tests of checkpointers can be run against this store. Connects to the database its caller names.
//!
//! **Invariant:** every line gets exactly one reply, and none ends the process.

use std::io::{self, BufRead, Write};

use base64::{Engine, prelude::BASE64_STANDARD};
use clap::Args;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json, value::RawValue};

use super::error::{Error, Exit};
use crate::store::{
    self,
    langgraph::Typed,
    postgres::{Config, GivenCheckpoint, GivenWrites, Kept, Saver, Wanted},
};

/// Longest request in bytes: a checkpoint of the largest state that a job may have, in base64, and room for names.
const MAX_LINE_BYTES: usize = 64 << 20;

const OPS: &str = "connect, setup, put, put_writes, get_tuple, list, delete_thread";

const PROTOCOL: &str = r#"Requests, one a line; TYPED is {"type": "msgpack", "b64": "…"}:
  {"op":"connect","dsn":"postgres://…"}
  {"op":"setup"}
  {"op":"put","thread_id","checkpoint_ns","parent_checkpoint_id","checkpoint":{…},
   "channel_values":{channel: TYPED},"new_versions":{channel: version},"metadata":{…}}
  {"op":"put_writes","thread_id","checkpoint_ns","checkpoint_id","task_id","task_path","writes":[[channel, TYPED]]}
  {"op":"get_tuple","thread_id","checkpoint_ns"?,"checkpoint_id"?}
  {"op":"list","thread_id"?,"checkpoint_ns"?,"checkpoint_id"?,"filter"?,"before"?,"limit"?}
  {"op":"delete_thread","thread_id"}

Replies: {"ok":true}, {"ok":false,"error":"…"}, and for get_tuple and list {"ok":true,"tuples":[{"thread_id",
  "checkpoint_ns","checkpoint_id","parent_checkpoint_id","checkpoint","metadata","blobs":{channel: TYPED},
  "pending_writes":[[task_id, channel, TYPED]]}]}"#;

#[derive(Debug, Args)]
#[command(after_help = PROTOCOL)]
pub(super) struct Arguments {}

pub(super) async fn run(_arguments: &Arguments) -> Result<Exit, Error> {
    let mut door = Door::default();
    loop {
        // Standard input blocks, and the connections live on meanwhile.
        let reading = tokio::task::spawn_blocking(|| read_line(&mut io::stdin().lock(), MAX_LINE_BYTES));
        let reply = match reading.await.map_err(io::Error::other)?? {
            Line::End => break,
            Line::TooLong => refusal(&format!("a request has at most {MAX_LINE_BYTES} bytes")),
            Line::Whole(line) if line.trim_ascii().is_empty() => continue,
            Line::Whole(line) => door.answer(&line).await,
        };
        let mut out = io::stdout().lock();
        writeln!(out, "{reply}")?;
        out.flush()?;
    }
    if let Some(saver) = door.saver {
        saver.close().await;
    }
    Ok(Exit::Success)
}

#[derive(Debug, PartialEq, Eq)]
enum Line {
    End,
    Whole(Vec<u8>),
    /// It has been passed over.
    TooLong,
}

fn read_line(input: &mut impl BufRead, limit: usize) -> io::Result<Line> {
    let (mut line, mut is_too_long) = (Vec::new(), false);
    loop {
        let available = input.fill_buf()?;
        if available.is_empty() && line.is_empty() && !is_too_long {
            return Ok(Line::End);
        }
        let end = available.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(available.len(), |at| at + 1);
        is_too_long |= line.len() + taken > limit;
        if is_too_long {
            line = Vec::new();
        } else {
            line.extend_from_slice(&available[..taken]);
        }
        let is_over = end.is_some() || available.is_empty();
        input.consume(taken);
        if is_over {
            return Ok(if is_too_long { Line::TooLong } else { Line::Whole(line) });
        }
    }
}

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the request cannot be read: {0}")]
    Request(#[from] serde_json::Error),
    #[error("unknown op {0:?}; known: {OPS}")]
    Op(String),
    #[error("connect first")]
    Unconnected,
    #[error("channel {channel}: {reason}")]
    Value { channel: String, reason: String },
    #[error("{}: {}", .0.code(), .0)]
    Store(#[from] store::Error),
}

fn refusal(error: &str) -> String {
    json!({ "ok": false, "error": error }).to_string()
}

/// What answers requests.
#[derive(Default)]
struct Door {
    saver: Option<Saver>,
}

impl Door {
    async fn answer(&mut self, line: &[u8]) -> String {
        let reply = match self.carry_out(line).await {
            Ok(None) => Ok(json!({ "ok": true }).to_string()),
            Ok(Some(tuples)) => serde_json::to_string(&Tuples { ok: true, tuples }).map_err(Refused::Request),
            Err(refused) => Err(refused),
        };
        reply.unwrap_or_else(|refused| refusal(&refused.to_string()))
    }

    async fn carry_out(&mut self, line: &[u8]) -> Result<Option<Vec<Tuple>>, Refused> {
        let Op { op } = serde_json::from_slice(line)?;
        if op == "connect" {
            let Connect { dsn } = serde_json::from_slice(line)?;
            let config = Config { url: Some(dsn.into()), ..Config::default() };
            self.saver = Some(Saver::connect(config).await?);
            return Ok(None);
        }
        let saver = self.saver.as_ref().ok_or(Refused::Unconnected)?;
        match op.as_str() {
            "setup" => saver.set_up().await?,
            "put" => saver.put(serde_json::from_slice::<Put>(line)?.given()?).await?,
            "put_writes" => saver.put_writes(serde_json::from_slice::<PutWrites>(line)?.given()?).await?,
            "delete_thread" => {
                let OfThread { thread_id } = serde_json::from_slice(line)?;
                saver.delete_thread(&thread_id).await?;
            }
            "get_tuple" => {
                let OfThread { thread_id } = serde_json::from_slice(line)?;
                let read: Read = serde_json::from_slice(line)?;
                let wanted = Wanted {
                    thread_id: Some(thread_id),
                    checkpoint_ns: Some(read.checkpoint_ns.unwrap_or_default()),
                    checkpoint_id: read.checkpoint_id,
                    limit: Some(1),
                    ..Wanted::default()
                };
                return tuples(saver, wanted).await.map(Some);
            }
            "list" => {
                let read: Read = serde_json::from_slice(line)?;
                return tuples(saver, read.wanted()).await.map(Some);
            }
            _ => return Err(Refused::Op(op)),
        }
        Ok(None)
    }
}

async fn tuples(saver: &Saver, wanted: Wanted) -> Result<Vec<Tuple>, Refused> {
    saver.read(wanted).await?.into_iter().map(Tuple::of).collect()
}

#[derive(Deserialize)]
struct Op {
    op: String,
}

#[derive(Deserialize)]
struct Connect {
    dsn: String,
}

#[derive(Deserialize)]
struct OfThread {
    thread_id: String,
}

#[derive(Deserialize)]
struct Read {
    thread_id: Option<String>,
    checkpoint_ns: Option<String>,
    checkpoint_id: Option<String>,
    filter: Option<Box<RawValue>>,
    before: Option<String>,
    limit: Option<u32>,
}

impl Read {
    fn wanted(self) -> Wanted {
        Wanted {
            thread_id: self.thread_id,
            checkpoint_ns: self.checkpoint_ns,
            checkpoint_id: self.checkpoint_id,
            filter: self.filter.map(|filter| filter.get().to_owned()),
            before: self.before,
            limit: self.limit,
        }
    }
}

/// A value on the wire.
#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(rename = "type")]
    kind: String,
    b64: String,
}

impl Wire {
    fn typed(self, channel: &str) -> Result<Typed, Refused> {
        let wrong = |error: base64::DecodeError| Refused::Value {
            channel: channel.to_owned(),
            reason: format!("b64: {error}"),
        };
        Ok(Typed { kind: self.kind, bytes: BASE64_STANDARD.decode(self.b64).map_err(wrong)? })
    }

    fn of(typed: Typed) -> Self {
        Self { b64: BASE64_STANDARD.encode(&typed.bytes), kind: typed.kind }
    }
}

#[derive(Deserialize)]
struct Put {
    thread_id: String,
    checkpoint_ns: Option<String>,
    parent_checkpoint_id: Option<String>,
    checkpoint: Box<RawValue>,
    #[serde(default)]
    channel_values: IndexMap<String, Wire>,
    #[serde(default)]
    new_versions: IndexMap<String, Json>,
    metadata: Box<RawValue>,
}

impl Put {
    fn given(self) -> Result<GivenCheckpoint, Refused> {
        #[derive(Deserialize)]
        struct Id {
            id: String,
        }
        let Id { id } = serde_json::from_str(self.checkpoint.get())?;
        let typed = |(channel, wire): (String, Wire)| {
            let value = wire.typed(&channel)?;
            Ok::<_, Refused>((channel, value))
        };
        let version = |(channel, version): (String, Json)| match version {
            Json::String(text) => Ok((channel, text)),
            Json::Number(number) => Ok((channel, number.to_string())),
            Json::Null | Json::Bool(_) | Json::Array(_) | Json::Object(_) => {
                Err(Refused::Value { channel, reason: "a version is a text or a number".into() })
            }
        };
        Ok(GivenCheckpoint {
            thread_id: self.thread_id,
            checkpoint_ns: self.checkpoint_ns.unwrap_or_default(),
            checkpoint_id: id,
            parent_checkpoint_id: self.parent_checkpoint_id,
            checkpoint: self.checkpoint.get().to_owned(),
            metadata: self.metadata.get().to_owned(),
            channel_values: self.channel_values.into_iter().map(typed).collect::<Result<_, _>>()?,
            new_versions: self.new_versions.into_iter().map(version).collect::<Result<_, _>>()?,
        })
    }
}

#[derive(Deserialize)]
struct PutWrites {
    thread_id: String,
    checkpoint_ns: Option<String>,
    checkpoint_id: String,
    task_id: String,
    task_path: Option<String>,
    writes: Vec<(String, Wire)>,
}

impl PutWrites {
    fn given(self) -> Result<GivenWrites, Refused> {
        let typed = |(channel, wire): (String, Wire)| {
            let value = wire.typed(&channel)?;
            Ok::<_, Refused>((channel, value))
        };
        Ok(GivenWrites {
            thread_id: self.thread_id,
            checkpoint_ns: self.checkpoint_ns.unwrap_or_default(),
            checkpoint_id: self.checkpoint_id,
            task_id: self.task_id,
            task_path: self.task_path.unwrap_or_default(),
            writes: self.writes.into_iter().map(typed).collect::<Result<_, _>>()?,
        })
    }
}

#[derive(Serialize)]
struct Tuples {
    ok: bool,
    tuples: Vec<Tuple>,
}

#[derive(Serialize)]
struct Tuple {
    thread_id: String,
    checkpoint_ns: String,
    checkpoint_id: String,
    parent_checkpoint_id: Option<String>,
    checkpoint: Box<RawValue>,
    metadata: Box<RawValue>,
    blobs: IndexMap<String, Wire>,
    pending_writes: Vec<(String, String, Wire)>,
}

impl Tuple {
    fn of(kept: Kept) -> Result<Self, Refused> {
        let writes = kept.writes.into_iter();
        Ok(Self {
            thread_id: kept.thread_id,
            checkpoint_ns: kept.checkpoint_ns,
            checkpoint_id: kept.checkpoint_id,
            parent_checkpoint_id: kept.parent_checkpoint_id,
            checkpoint: RawValue::from_string(kept.checkpoint)?,
            metadata: RawValue::from_string(kept.metadata)?,
            blobs: kept.values.into_iter().map(|(channel, value)| (channel, Wire::of(value))).collect(),
            pending_writes: writes.map(|(task, channel, value)| (task, channel, Wire::of(value))).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wrong_line_gets_its_reason_and_the_next_one_is_answered() {
        let mut door = Door::default();
        for (line, reason) in [
            ("{", "the request cannot be read"),
            ("[]", "the request cannot be read"),
            (r#"{"op":"setup"}"#, "connect first"),
            (r#"{"op":"connect"}"#, "missing field `dsn`"),
            (r#"{"op":"connect","dsn":"postgres://u:hunter2@["}"#, "STORE_REFUSED"),
        ] {
            let reply: Json = serde_json::from_str(&door.answer(line.as_bytes()).await).expect("JSON");
            let error = reply["error"].as_str().expect("a reason");
            assert!(reply["ok"] == false && error.contains(reason), "{line}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_passed_over() {
        let mut input = &b"short\n0123456789\nnext\nlast"[..];
        let mut lines = Vec::new();
        loop {
            let line = read_line(&mut input, 8).expect("memory can be read");
            if line == Line::End {
                break;
            }
            lines.push(line);
        }
        let whole = |text: &str| Line::Whole(text.as_bytes().to_vec());
        assert_eq!(lines, [whole("short\n"), Line::TooLong, whole("next\n"), whole("last")]);
    }

    #[test]
    fn null_means_the_same_as_nothing() {
        let line = r#"{"thread_id":null,"checkpoint_ns":null,"checkpoint_id":null,"filter":null,"before":null,"limit":null}"#;
        for line in ["{}", line] {
            let wanted = serde_json::from_str::<Read>(line).expect("a request").wanted();
            assert_eq!(format!("{wanted:?}"), format!("{:?}", Wanted::default()));
        }
        let line = r#"{"thread_id":"t","checkpoint_ns":null,"checkpoint_id":"c","task_id":"x","task_path":null,"writes":[]}"#;
        let given = serde_json::from_str::<PutWrites>(line).expect("a request").given().expect("no values");
        assert_eq!((&*given.checkpoint_ns, &*given.task_path), ("", ""));
    }

    #[test]
    fn versions_of_a_checkpoint_are_texts_or_numbers() {
        let put = |version: &str| {
            let line = format!(
                r#"{{"thread_id":"t","checkpoint":{{"id":"c"}},"metadata":{{}},"new_versions":{{"a":{version}}}}}"#
            );
            serde_json::from_str::<Put>(&line)
                .expect("a request")
                .given()
                .map(|given| given.new_versions["a"].clone())
        };
        assert_eq!(put("1").expect("a number"), "1");
        assert_eq!(put("\"1.5\"").expect("a text"), "1.5");
        assert!(put("[1]").is_err_and(|error| error.to_string().starts_with("channel a: ")));
    }
}

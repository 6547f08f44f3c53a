//! Answers recorded from real and mock servers, to be served again.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use expect_test::ExpectFile;
use serde_json::Value as Json;

use super::server::{Server, Step, answer, cut};
use crate::model::{Error, Reply};

/// What a server says of events.
pub(in crate::model) const EVENTS: &str = "content-type: text/event-stream; charset=utf-8";
/// What a server says of JSON.
pub(in crate::model) const JSON: &str = "content-type: application/json";
/// Chunk sizes: one that cuts everything, and one that cuts nothing.
const SIZES: [usize; 2] = [11, 1 << 20];
/// Most characters of a block in a description; signatures and search results are long.
const MAX_SHOWN_CHARS: usize = 200;

/// A recorded answer.
pub(in crate::model) struct Recording {
    pub(in crate::model) name: String,
    pub(in crate::model) status: u16,
    pub(in crate::model) headers: Vec<String>,
    pub(in crate::model) body: Vec<u8>,
    pub(in crate::model) end: End,
}

/// How a recorded answer ends.
#[derive(Clone, Copy)]
pub(in crate::model) enum End {
    Whole,
    Cut,
    NoAnswer,
}

impl Recording {
    /// What the server does, in chunks of `size` bytes.
    pub(in crate::model) fn steps(&self, size: usize) -> Vec<Step> {
        let headers: Vec<&str> = self.headers.iter().map(String::as_str).collect();
        match self.end {
            End::Whole => answer(self.status, &headers, &self.body, size),
            End::Cut => cut(self.status, &headers, &self.body, size),
            End::NoAnswer => Vec::new(),
        }
    }
}

/// The folder of recordings, which is shared by all worktrees and not in the repository.
pub(in crate::model) fn transcripts() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures/llm-transcripts");
    assert!(folder.is_dir(), "the recorded model answers are missing: no folder {}", folder.display());
    folder
}

/// The files of a folder whose names end so, sorted.
pub(in crate::model) fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let folder = transcripts().join(folder);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
    files.retain(|path| path.to_string_lossy().ends_with(ending));
    files.sort();
    assert!(!files.is_empty(), "no {ending} files in {}", folder.display());
    files
}

/// The folder and the name of a file.
pub(in crate::model) fn name(path: &Path) -> String {
    let folder = path.parent().and_then(Path::file_name).expect("in a folder");
    format!("{}/{}", folder.to_string_lossy(), path.file_name().expect("a file").to_string_lossy())
}

/// A recording whose status is at the start of its file's name.
pub(in crate::model) fn recorded(path: &Path, status: u16, kind: &str) -> Recording {
    let body = fs::read(path).expect("readable");
    Recording { name: name(path), status, headers: vec![kind.to_owned()], body, end: End::Whole }
}

/// The events of a file with one JSON object per line.
pub(in crate::model) fn from_lines(path: &Path) -> Recording {
    let lines = fs::read_to_string(path).expect("readable");
    let body: String = lines.lines().map(|line| format!("data: {line}\n\n")).collect();
    Recording { body: format!("{body}data: [DONE]\n\n").into_bytes(), ..recorded(path, 200, EVENTS) }
}

/// What `curl -i` wrote of a server's answer.
pub(in crate::model) fn from_capture(path: &Path) -> Recording {
    let text = fs::read_to_string(path).expect("readable");
    let (_, answer) = text.split_once("\n<<<\n").expect("a capture");
    let (answer, end) = match answer.rsplit_once("[curl exit ").expect("curl's exit code") {
        (answer, "0]\n" | "0]") => (answer, End::Whole),
        (answer, "18]\n" | "18]") => (answer.split("curl: (18)").next().expect("one part"), End::Cut),
        (_, "52]\n" | "52]") => ("HTTP/1.1 200 OK\r\n\r\n", End::NoAnswer),
        (_, other) => panic!("{}: unknown exit code {other}", path.display()),
    };
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status line");
    let kept = ["content-type", "retry-after", "date"];
    let is_kept =
        |line: &&str| line.split(':').next().is_some_and(|name| kept.contains(&&*name.to_lowercase()));
    Recording {
        name: name(path),
        status: status.parse().expect("a number"),
        headers: lines.filter(is_kept).map(str::to_owned).collect(),
        body: body.as_bytes().to_vec(),
        end,
    }
}

/// The whole answers of a folder, whose status is at the start of their files' names.
pub(in crate::model) fn whole_answers(folder: &str) -> Vec<Recording> {
    let files = files(folder, ".json");
    let statuses = files.iter().filter(|path| !name(path).ends_with(".request.json")).map(|path| {
        let file = path.file_name().expect("a file").to_string_lossy().into_owned();
        let status = file.split('-').next().and_then(|status| status.parse().ok()).expect("a status");
        recorded(path, status, JSON)
    });
    statuses.collect()
}

/// What `curl` captured of all mock servers in one dialect.
pub(in crate::model) fn captures(dialect: &str) -> Vec<Recording> {
    let folders = ["aimock", "litellm", "litellm-over-aimock", "llmposter", "mockllm"];
    let files = folders.into_iter().flat_map(|folder| files(folder, ".http"));
    files.filter(|path| name(path).contains(dialect)).map(|path| from_capture(&path)).collect()
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}… {} bytes", &text[..at], text.len()),
    }
}

/// An answer in lines of text.
fn describe(pieces: &[String], outcome: &Result<Reply, Error>) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| writeln!(out, "  {name}: {value}").expect("a string");
    match outcome {
        Err(error) => {
            line("pieces", pieces.len().to_string());
            line("error", format!("{}: {error}", error.code()));
            if let Some(wait) = error.retry_after() {
                line("retry after", format!("{wait:?}"));
            }
        }
        Ok(reply) => {
            line("text", format!("{} pieces {:?}", pieces.len(), reply.text));
            for call in &reply.tool_calls {
                let args = serde_json::to_string(&call.args).expect("JSON");
                line("call", format!("{} {} {args}", call.id, call.name));
            }
            for call in &reply.invalid_tool_calls {
                line("invalid call", format!("{call:?}"));
            }
            for block in &reply.blocks {
                line("block", shortened(&block.to_json().to_string()));
            }
            if let Some(refusal) = &reply.refusal {
                line("refusal", format!("{refusal:?}"));
            }
            let usage = reply.usage.as_ref().map(|usage| Json::from_iter(json_pairs(usage)).to_string());
            line("usage", usage.unwrap_or_else(|| "none".into()));
            line("finish", format!("{:?} by {:?}", reply.finish_reason, reply.model));
        }
    }
    out
}

fn json_pairs(usage: &crate::value::Usage) -> Vec<(String, Json)> {
    usage.to_map().into_iter().map(|(key, value)| (key.to_string(), value.to_json())).collect()
}

/// Asks for each recorded answer twice, once in small pieces, and compares what is read with a file and with itself.
pub(in crate::model) async fn check_readings(
    recordings: &[Recording],
    expected: ExpectFile,
    ask: impl AsyncFn(&Server) -> (Vec<String>, Result<Reply, Error>),
) {
    let answers = recordings.iter().flat_map(|recording| SIZES.map(|size| recording.steps(size))).collect();
    let server = Server::start(answers);
    let mut out = String::new();
    for recording in recordings {
        let (pieces, outcome) = ask(&server).await;
        let described = describe(&pieces, &outcome);
        let (pieces, outcome) = ask(&server).await;
        assert_eq!(described, describe(&pieces, &outcome), "{}", recording.name);
        writeln!(out, "{}\n{described}", recording.name).expect("a string");
    }
    expected.assert_eq(&out);
}

//! Answers recorded from real and mock servers, served again and read.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use expect_test::expect_file;
use serde_json::Value as Json;

use super::{
    ask, ask_in_pieces,
    server::{Server, Step, answer, cut},
};
use crate::model::{Error, Reply};

const EVENTS: &str = "content-type: text/event-stream; charset=utf-8";
const JSON: &str = "content-type: application/json";
/// Chunk sizes: one that cuts everything, and one that cuts nothing.
const SIZES: [usize; 2] = [11, 1 << 20];

/// A recorded answer.
struct Recording {
    name: String,
    status: u16,
    headers: Vec<String>,
    body: Vec<u8>,
    end: End,
}

#[derive(Clone, Copy)]
enum End {
    Whole,
    Cut,
    NoAnswer,
}

impl Recording {
    fn steps(&self, size: usize) -> Vec<Step> {
        let headers: Vec<&str> = self.headers.iter().map(String::as_str).collect();
        match self.end {
            End::Whole => answer(self.status, &headers, &self.body, size),
            End::Cut => cut(self.status, &headers, &self.body, size),
            End::NoAnswer => Vec::new(),
        }
    }
}

/// The folder of recordings, which is shared by all worktrees and not in the repository.
fn transcripts() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures/llm-transcripts");
    assert!(folder.is_dir(), "the recorded model answers are missing: no folder {}", folder.display());
    folder
}

/// The files of a folder whose names end so, sorted.
fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let folder = transcripts().join(folder);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
    files.retain(|path| path.to_string_lossy().ends_with(ending));
    files.sort();
    assert!(!files.is_empty(), "no {ending} files in {}", folder.display());
    files
}

fn name(path: &Path) -> String {
    let folder = path.parent().and_then(Path::file_name).expect("in a folder");
    format!("{}/{}", folder.to_string_lossy(), path.file_name().expect("a file").to_string_lossy())
}

/// A recording whose status is at the start of its file's name.
fn recorded(path: &Path, status: u16, kind: &str) -> Recording {
    let body = fs::read(path).expect("readable");
    Recording { name: name(path), status, headers: vec![kind.to_owned()], body, end: End::Whole }
}

/// The events of a file with one JSON object per line.
fn from_lines(path: &Path) -> Recording {
    let lines = fs::read_to_string(path).expect("readable");
    let body: String = lines.lines().map(|line| format!("data: {line}\n\n")).collect();
    Recording { body: format!("{body}data: [DONE]\n\n").into_bytes(), ..recorded(path, 200, EVENTS) }
}

/// What `curl -i` wrote of a server's answer.
fn from_capture(path: &Path) -> Recording {
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

fn recordings() -> Vec<Recording> {
    let mut all = Vec::new();
    for folder in ["recorded/openai-chat-completions", "recorded/openai-sdk-fixtures"] {
        all.extend(files(folder, ".sse").iter().map(|path| recorded(path, 200, EVENTS)));
    }
    for path in files("recorded/openai-chat-completions", ".json") {
        let file = path.file_name().expect("a file").to_string_lossy().into_owned();
        if !file.ends_with(".request.json") {
            let status = file.split('-').next().and_then(|status| status.parse().ok()).expect("a status");
            all.push(recorded(&path, status, JSON));
        }
    }
    for file in ["azure-model-router.1", "openai-text", "xai-text", "xai-tool-call"] {
        let path = format!("recorded/vercel-ai-fixtures/{file}.chunks.txt");
        all.push(from_lines(&transcripts().join(path)));
    }
    let midstream =
        files("errors", ".sse").into_iter().filter(|path| name(path).contains("/openai-midstream"));
    all.extend(midstream.map(|path| recorded(&path, 200, EVENTS)));
    for folder in ["aimock", "litellm", "litellm-over-aimock", "llmposter", "mockllm"] {
        let captures = files(folder, ".http").into_iter().filter(|path| name(path).contains("/openai_chat_"));
        all.extend(captures.map(|path| from_capture(&path)));
    }
    all
}

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

#[tokio::test]
async fn recorded_answers_are_read_whatever_the_chunks() {
    let recordings = recordings();
    let answers = recordings.iter().flat_map(|recording| SIZES.map(|size| recording.steps(size))).collect();
    let server = Server::start(answers);
    let mut out = String::new();
    for recording in &recordings {
        let (pieces, outcome) = ask_in_pieces(&server).await;
        let described = describe(&pieces, &outcome);
        let (pieces, outcome) = ask_in_pieces(&server).await;
        assert_eq!(described, describe(&pieces, &outcome), "{}", recording.name);
        writeln!(out, "{}\n{described}", recording.name).expect("a string");
    }
    expect_file!["../../../../tests/fixtures/model/openai-replies.txt"].assert_eq(&out);
}

/// The text and the arguments in a recorded stream, read the plain way.
fn read_plainly(body: &[u8]) -> (String, Vec<String>) {
    let (mut text, mut arguments) = (String::new(), Vec::<String>::new());
    let body = String::from_utf8(body.to_vec()).expect("UTF-8");
    let data = body.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    for data in data {
        let chunk: Json = serde_json::from_str(data).expect("JSON");
        let choices = chunk["choices"].as_array().into_iter().flatten();
        for choice in choices.filter(|choice| choice["index"] == 0) {
            text.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
            for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
                let at = call["index"].as_u64().expect("an index") as usize;
                arguments.resize(arguments.len().max(at + 1), String::new());
                arguments[at].push_str(call["function"]["arguments"].as_str().unwrap_or_default());
            }
        }
    }
    (text, arguments)
}

#[tokio::test]
async fn nothing_of_a_recorded_stream_is_lost() {
    let recordings: Vec<_> =
        recordings().into_iter().filter(|it| it.headers[..] == [EVENTS] && it.status == 200).collect();
    let recordings: Vec<_> = recordings.into_iter().filter(|it| !it.name.starts_with("errors/")).collect();
    assert!(recordings.len() > 40, "only {} streams", recordings.len());
    let server = Server::start(recordings.iter().map(|recording| recording.steps(1000)).collect());
    for recording in &recordings {
        let reply = ask(&server).await.unwrap_or_else(|error| panic!("{}: {error}", recording.name));
        let (text, arguments) = read_plainly(&recording.body);
        assert_eq!(reply.text, text, "{}", recording.name);
        assert_eq!(reply.invalid_tool_calls, [], "{}", recording.name);
        let args = |call: &crate::value::ToolCall| serde_json::to_value(&call.args).expect("JSON");
        let expected: Vec<Json> =
            arguments.iter().map(|text| serde_json::from_str(text).expect("JSON")).collect();
        assert_eq!(reply.tool_calls.iter().map(args).collect::<Vec<_>>(), expected, "{}", recording.name);
    }
}

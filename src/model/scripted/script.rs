//! The script of a scripted model: what it says, when, and how it fails.

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use crate::model::Error;

/// Longest single wait in a script; a job's own limit is about as long.
const MAX_DELAY_MS: u64 = 3_600_000;
/// Most characters of a complaint about a script.
const MAX_COMPLAINT_CHARS: usize = 300;

/// What a model says, reply by reply.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Script {
    /// The answers, in the order of the conversation: the n-th is said when the model has answered n times.
    #[serde(default)]
    pub(super) replies: Vec<Line>,
    /// Answers to people who say certain words: the first entry whose key is in the last human message wins
    /// over `replies`, and counts from that message.
    #[serde(default)]
    pub(super) by_user_text: IndexMap<String, Vec<Line>>,
    /// Whether the model repeats the last human message when the script has no reply.
    #[serde(default)]
    pub(super) echo: bool,
}

/// One reply.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    /// What is said.
    #[serde(default)]
    pub(super) text: String,
    /// The same, cut into the pieces to stream it in; words when left out.
    #[serde(default)]
    pub(super) pieces: Option<Vec<String>>,
    /// Tools it asks for.
    #[serde(default)]
    pub(super) tool_calls: Vec<Call>,
    /// Milliseconds before the first piece.
    #[serde(default)]
    pub(super) delay_ms: u64,
    /// Milliseconds before each further piece.
    #[serde(default)]
    pub(super) token_delay_ms: u64,
    /// How the call fails before it succeeds.
    #[serde(default)]
    pub(super) fail: Option<Fail>,
    /// Tokens it takes; words are counted when left out.
    #[serde(default)]
    pub(super) usage: Option<Tokens>,
}

/// A tool call of a reply.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Call {
    /// Its id; one is made when left out.
    #[serde(default)]
    pub(super) id: Option<String>,
    /// The tool.
    pub(super) name: String,
    /// The arguments: an object, or a text as a model would write it, right or wrong.
    #[serde(default = "no_args")]
    pub(super) args: Json,
}

/// How a call fails.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fail {
    /// How many tries fail; then the reply comes.
    pub(super) times: u32,
    /// The HTTP status of the failure.
    pub(super) status: u16,
    /// The provider's message.
    #[serde(default)]
    pub(super) message: String,
    /// After how many pieces it fails; before the first when left out.
    #[serde(default)]
    pub(super) after_pieces: usize,
    /// How long the provider asks to wait.
    #[serde(default)]
    pub(super) retry_after_ms: Option<u64>,
}

/// Tokens a reply takes.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tokens {
    pub(super) input_tokens: u64,
    pub(super) output_tokens: u64,
    #[serde(default)]
    pub(super) total_tokens: Option<u64>,
}

fn no_args() -> Json {
    Json::Object(Map::new())
}

impl Script {
    /// Reads a script. Fails with [`Error::Settings`] that says where it is wrong.
    pub(super) fn parse(json: &Json) -> Result<Self, Error> {
        let script: Self = serde_path_to_error::deserialize(json)
            .map_err(|error| wrong(&error.path().to_string(), &error.inner().to_string()))?;
        let listed = script.replies.iter().enumerate();
        let listed = listed.map(|(at, line)| (format!("replies[{at}]"), line));
        let keyed = script.by_user_text.iter().flat_map(|(key, lines)| {
            let lines = lines.iter().enumerate();
            lines.map(move |(at, line)| (format!("by_user_text.{key}[{at}]"), line))
        });
        for (place, line) in listed.chain(keyed) {
            line.check().map_err(|complaint| wrong(&place, complaint))?;
        }
        Ok(script)
    }
}

impl Line {
    /// Says what serde cannot.
    fn check(&self) -> Result<(), &'static str> {
        let joined = self.pieces.as_ref().map(|pieces| pieces.concat());
        if joined.is_some_and(|joined| !self.text.is_empty() && joined != self.text) {
            return Err("`pieces` joined must be the `text`");
        }
        if self.delay_ms.max(self.token_delay_ms) > MAX_DELAY_MS {
            return Err("a delay is longer than an hour");
        }
        if self.tool_calls.iter().any(|call| !(call.args.is_object() || call.args.is_string())) {
            return Err("`args` must be an object, or a text");
        }
        match &self.fail {
            Some(fail) if !(400..600).contains(&fail.status) => Err("`fail.status` must be from 400 to 599"),
            _ => Ok(()),
        }
    }
}

fn wrong(place: &str, complaint: &str) -> Error {
    let complaint = format!("script: {place}: {complaint}");
    Error::Settings(complaint.chars().take(MAX_COMPLAINT_CHARS).collect())
}

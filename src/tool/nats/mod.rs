//! Tools that are subjects: a request to whoever subscribes to one, in any language. The broker is a port.
//!
//! **Invariant:** nothing is sent to a subject that the operator has not allowed.
//! **Invariant:** an answer that did not come in time leaves open whether the call took effect; that nobody listens
//! is known, and nothing has happened then.

mod subjects;

pub use subjects::AllowedSubjects;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Answer, Call, Error, MAX_RESULT_CHARS, Tool, cut, shorten};
use crate::{
    graph::{Effect, NatsTool as Definition},
    model::ToolSpec,
    telemetry::{Gate, Pass, traceparent_of},
    value::map_to_json,
};

/// Header that lets a worker tell a repeated call from a new one; the same on every attempt.
pub const IDEMPOTENCY_KEY: &str = "Idempotency-Key";
/// Header with the name of the tool as the model knows it: one subject may be several tools.
pub const TOOL: &str = "Executor-Tool";
/// Header with the model's id of the call.
pub const TOOL_CALL_ID: &str = "Executor-Tool-Call-Id";
/// Header of the W3C trace context.
pub const TRACEPARENT: &str = "traceparent";
/// Header by which a micro service says that it failed, with a sentence.
const SERVICE_ERROR: &str = "Nats-Service-Error";
/// Header with the number of that failure.
const SERVICE_ERROR_CODE: &str = "Nats-Service-Error-Code";

/// Largest payload of a call in bytes: brokers take 1 MiB with headers unless told otherwise.
const MAX_PAYLOAD_BYTES: usize = 1_000_000;

/// Most bytes read of an answer: all that can be characters of a result, and one more, by which the cut is seen.
const MAX_REPLY_BYTES: usize = (MAX_RESULT_CHARS + 1) * 4;

/// Characters of a failed service's text and of its body; the reason stands in the first lines.
const MAX_ERROR_CHARS: usize = 2_000;

/// Characters of a value that goes into a header: models choose ids of any length.
const MAX_HEADER_CHARS: usize = 255;

/// The operator's word on tools that are subjects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsConfig {
    /// `NATS_TOOL_SUBJECTS`: subjects that tools may be; none by default.
    pub subjects: AllowedSubjects,
    /// `NATS_TOOL_TIMEOUT_SECONDS`: longest wait for an answer; a definition may say less.
    pub timeout: Duration,
}

impl Default for NatsConfig {
    fn default() -> Self {
        Self { subjects: AllowedSubjects::default(), timeout: Duration::from_secs(60) }
    }
}

/// A request on its way to a subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Where it goes.
    pub subject: String,
    /// Its headers; values have no control characters.
    pub headers: Vec<(&'static str, String)>,
    /// Its payload.
    pub payload: Bytes,
    /// How long its answer may take.
    pub timeout: Duration,
}

/// What came back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Incoming {
    /// Its headers.
    pub headers: Vec<(String, String)>,
    /// Its payload.
    pub payload: Bytes,
}

impl Incoming {
    fn header(&self, wanted: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.as_str())
    }
}

/// Why no answer came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// Nobody listens on the subject: nothing was done.
    NoResponders,
    /// It was not sent: nothing was done.
    NotSent(String),
    /// It was sent, and its time is up.
    TimedOut,
    /// It was sent, and the connection was lost before its answer.
    Lost(String),
}

/// Carries requests to subjects.
#[async_trait]
pub trait Requester: Send + Sync {
    /// Sends a request and waits for its answer.
    async fn request(&self, request: Outgoing) -> Result<Incoming, Unanswered>;
}

/// No broker: where nobody has connected one.
pub(super) struct NoBroker;

#[async_trait]
impl Requester for NoBroker {
    async fn request(&self, _: Outgoing) -> Result<Incoming, Unanswered> {
        Err(Unanswered::NotSent("this program has no message broker".into()))
    }
}

/// Who carries requests, and what the operator allows.
#[derive(Clone)]
pub(super) struct Subjects {
    pub(super) requester: Arc<dyn Requester>,
    pub(super) config: NatsConfig,
    pub(super) calls: Gate,
}

impl fmt::Debug for Subjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subjects").field("config", &self.config).finish_non_exhaustive()
    }
}

/// A tool that answers with what a subscriber says.
pub(super) struct SubjectTool {
    spec: ToolSpec,
    effect: Effect,
    subject: String,
    subjects: Subjects,
}

impl SubjectTool {
    /// The tool of a definition.
    pub(super) fn new(spec: ToolSpec, effect: Effect, definition: &Definition, subjects: Subjects) -> Self {
        Self { spec, effect, subject: definition.subject.clone(), subjects }
    }

    fn outgoing(&self, call: &Call<'_>) -> Result<Outgoing, Error> {
        if let Some(reason) = self.subjects.config.subjects.refusal(&self.subject) {
            return Err(Error::SubjectNotAllowed { subject: self.subject.clone(), reason });
        }
        let payload = map_to_json(call.args).to_string();
        if payload.len() > MAX_PAYLOAD_BYTES {
            return Err(Error::Arguments(format!("the arguments are above {MAX_PAYLOAD_BYTES} bytes")));
        }
        let known = [
            (IDEMPOTENCY_KEY, call.idempotency_key.to_owned()),
            (TOOL, self.spec.name.to_string()),
            (TOOL_CALL_ID, one_line(call.id)),
        ];
        let trace = traceparent_of(&tracing::Span::current()).map(|trace| (TRACEPARENT, trace));
        let headers = known.into_iter().chain(trace).collect();
        let timeout = call.limit.unwrap_or(Duration::MAX).min(self.subjects.config.timeout);
        Ok(Outgoing { subject: self.subject.clone(), headers, payload: payload.into(), timeout })
    }

    async fn answer(&self, call: &Call<'_>) -> Result<Answer, Error> {
        let request = self.outgoing(call)?;
        let limit = request.timeout;
        let reply = self.subjects.requester.request(request).await;
        let reply = reply.map_err(|error| self.failure(error, limit))?;
        let text = text_of(&reply.payload);
        let (failed, code) = (reply.header(SERVICE_ERROR), reply.header(SERVICE_ERROR_CODE));
        if failed.is_none() && code.is_none() {
            return Ok(Answer::success(if text.is_empty() { "done, without content".into() } else { text }));
        }
        let said: Vec<&str> = [code, failed].into_iter().flatten().collect();
        let said = shorten(said.join(" "), MAX_ERROR_CHARS);
        let body = shorten(text, MAX_ERROR_CHARS);
        let body = if body.is_empty() { body } else { format!("\n{body}") };
        Err(Error::Failed(format!("the service answered an error: {said}{body}")))
    }

    fn failure(&self, error: Unanswered, limit: Duration) -> Error {
        match error {
            Unanswered::NoResponders => Error::NoResponders { subject: self.subject.clone() },
            Unanswered::NotSent(reason) => Error::NotSent(format!("the call was not sent: {reason}")),
            Unanswered::TimedOut => Error::Timeout(limit),
            Unanswered::Lost(reason) => {
                Error::Lost(format!("the call was sent, and its answer lost: {reason}"))
            }
        }
    }
}

#[async_trait]
impl Tool for SubjectTool {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    fn effect(&self) -> Effect {
        self.effect
    }

    async fn turn(&self) -> Option<Pass> {
        Some(self.subjects.calls.enter().await)
    }

    fn keeps_limit(&self) -> bool {
        true
    }

    async fn call(&self, call: Call<'_>) -> Answer {
        let answer = self.answer(&call).await.unwrap_or_else(Answer::from);
        tracing::debug!(tool = &*self.spec.name, status = answer.status.as_str(), "nats tool answered");
        Answer { content: cut(answer.content), ..answer }
    }
}

/// A payload as the model reads it.
fn text_of(payload: &Bytes) -> String {
    let read = &payload[..payload.len().min(MAX_REPLY_BYTES)];
    // Postgres takes no NUL in JSON, and results end up there.
    String::from_utf8_lossy(read).replace('\0', "\u{FFFD}")
}

/// A text that fits into a header.
fn one_line(text: &str) -> String {
    text.chars().take(MAX_HEADER_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests;

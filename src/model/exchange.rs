//! One answer as it arrives: bytes → events → chunks, with an eye on the clock.
//!
//! **Invariant:** the stream ends after [`Chunk::Done`] or after one error, never with neither.
//! **Invariant:** [`Chunk::Begun`] follows what the provider says of its answer: a status of 200 alone may be a gateway's.

use std::collections::VecDeque;

use bytes::Bytes;
use futures::{StreamExt, stream, stream::BoxStream};
use reqwest::{Response, header::CONTENT_TYPE};
use tokio::time::{Duration, Instant, timeout_at};

use super::{
    Chunk, Error, Timeouts,
    answer::{Assemble, Fault, Progress},
    failure::Complaint,
    remote::Caller,
    sse,
};

/// Most bytes of an answer that comes as one JSON object; the reply in it has a smaller limit of its own.
const MAX_JSON_BYTES: usize = 16 << 20;
/// How long to wait for the usage and the end once the answer is complete: servers that leave the connection
/// open must not hold a finished answer back.
const AFTER_FINISH: Duration = Duration::from_secs(5);

/// An answer that is being read.
pub(super) struct Exchange {
    caller: Caller,
    response: Response,
    timeouts: Timeouts,
    start: Instant,
    first_byte_seen: bool,
    /// Whether it was said that the answer has begun.
    is_begun: bool,
    decoder: sse::Decoder,
    assembly: Box<dyn Assemble>,
    ready: VecDeque<Chunk>,
    /// What ends the stream once the chunks before it are handed out.
    failure: Option<Error>,
}

/// What reading on brought.
enum Read {
    Bytes(Bytes),
    End,
}

impl Exchange {
    /// The answer that `response` brings, put together by `assembly`.
    pub(super) fn new(
        caller: Caller,
        (response, assembly): (Response, Box<dyn Assemble>),
        timeouts: Timeouts,
        start: Instant,
    ) -> Self {
        Self {
            caller,
            response,
            timeouts,
            start,
            first_byte_seen: false,
            is_begun: false,
            decoder: sse::Decoder::default(),
            assembly,
            ready: VecDeque::new(),
            failure: None,
        }
    }

    /// The chunks of the answer. Fails at once when it is neither events nor JSON.
    pub(super) fn stream(self) -> Result<BoxStream<'static, Result<Chunk, Error>>, Error> {
        let kind = self.response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let kind = kind.unwrap_or_default().to_ascii_lowercase();
        if kind.starts_with("text/html") {
            // A website, or the sign-in page of a proxy: no use to ask it again.
            return Err(self.caller.protocol("the answer is a web page; is the base URL right?"));
        }
        if kind.contains("json") && !kind.contains("ndjson") {
            return Ok(stream::once(self.read_json()).flat_map(stream::iter).boxed());
        }
        let chunks = stream::try_unfold(Some(self), |exchange| async move {
            match exchange {
                Some(exchange) => exchange.next().await,
                None => Ok(None),
            }
        });
        Ok(chunks.boxed())
    }

    /// The next chunk, with what is needed to go on.
    async fn next(mut self) -> Result<Option<(Chunk, Option<Self>)>, Error> {
        loop {
            if !self.is_begun && self.failure.is_none() && self.assembly.progress() != Progress::Silent {
                self.is_begun = true;
                return Ok(Some((Chunk::Begun, Some(self))));
            }
            if let Some(chunk) = self.ready.pop_front() {
                return Ok(Some((chunk, Some(self))));
            }
            if let Some(failure) = self.failure {
                return Err(failure);
            }
            if self.assembly.progress() == Progress::Closed {
                return Ok(Some((self.done(), None)));
            }
            let outcome = match self.read().await {
                Ok(Read::Bytes(bytes)) => self.decode(&bytes),
                Ok(Read::End) => self.end(),
                Err(error) => Err(error),
            };
            self.failure = outcome.err();
        }
    }

    /// Reads on. What goes wrong once the answer is complete does not matter any more.
    async fn read(&mut self) -> Result<Read, Error> {
        let finished = self.assembly.progress() == Progress::Finished;
        let (from, limit) = match (finished, self.first_byte_seen) {
            (true, _) => (Instant::now(), self.timeouts.idle.min(AFTER_FINISH)),
            (false, true) => (Instant::now(), self.timeouts.idle),
            (false, false) => (self.start, self.timeouts.first_byte),
        };
        let whole = self.start + self.timeouts.call;
        match timeout_at((from + limit).min(whole), self.response.chunk()).await {
            Ok(Ok(Some(bytes))) => {
                self.first_byte_seen = true;
                Ok(Read::Bytes(bytes))
            }
            Ok(Ok(None)) => Ok(Read::End),
            Ok(Err(_)) | Err(_) if finished => Ok(Read::End),
            Ok(Err(error)) => Err(self.caller.broken(&error)),
            Err(_) if Instant::now() >= whole => Err(self.caller.timeout(self.timeouts.call)),
            Err(_) => Err(self.caller.timeout(limit)),
        }
    }

    fn decode(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let Self { decoder, assembly, ready, .. } = self;
        let mut outcome = Ok(());
        let decoded = decoder.feed(bytes, |event| {
            if outcome.is_ok() {
                outcome = assembly.event(event.name, &event.data, ready);
            }
        });
        self.settle(outcome)?;
        decoded.map_err(|error| self.caller.protocol(&error.to_string()))
    }

    /// The server has closed the answer: it is complete, or it was cut.
    fn end(&mut self) -> Result<(), Error> {
        let Self { assembly, ready, .. } = self;
        let mut outcome = Ok(());
        let decoded = std::mem::take(&mut self.decoder).finish(|event| {
            if outcome.is_ok() {
                outcome = assembly.event(event.name, &event.data, ready);
            }
        });
        self.settle(outcome)?;
        decoded.map_err(|error| self.caller.protocol(&error.to_string()))?;
        match self.assembly.progress() {
            Progress::Silent => Err(self.caller.unavailable("the stream ended without an answer")),
            Progress::Started => {
                Err(self.caller.unavailable("the stream was cut before the answer was complete"))
            }
            Progress::Finished | Progress::Closed => {
                self.assembly.close();
                Ok(())
            }
        }
    }

    fn settle(&self, outcome: Result<(), Fault>) -> Result<(), Error> {
        outcome.map_err(|fault| match fault {
            Fault::Complaint(error) => self.caller.judge().complaint(Complaint::from_json(&error)),
            Fault::Unreadable(message) => self.caller.protocol(&message),
        })
    }

    fn done(self) -> Chunk {
        let messages = &self.caller.request.messages;
        let earlier_calls = messages.iter().map(|message| message.tool_calls().len()).sum();
        Chunk::Done(Box::new(self.assembly.finish(earlier_calls)))
    }

    /// The chunks of an answer that came as one JSON object, from servers that do not stream.
    async fn read_json(mut self) -> Vec<Result<Chunk, Error>> {
        match self.assemble_json().await {
            Ok(()) => {
                let mut chunks: Vec<_> = self.ready.drain(..).map(Ok).collect();
                chunks.push(Ok(self.done()));
                chunks
            }
            Err(error) => vec![Err(error)],
        }
    }

    async fn assemble_json(&mut self) -> Result<(), Error> {
        let mut body = Vec::new();
        while let Read::Bytes(bytes) = self.read().await? {
            if body.len() + bytes.len() > MAX_JSON_BYTES {
                return Err(self
                    .caller
                    .protocol(&format!("the answer is longer than {MAX_JSON_BYTES} bytes")));
            }
            body.extend_from_slice(&bytes);
        }
        let outcome = self.assembly.whole(&body, &mut self.ready);
        self.settle(outcome)
    }
}

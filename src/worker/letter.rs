//! Dead letters: which messages and given-up jobs become one, and what is kept of them.
//!
//! **Invariant:** what the store keeps of a message is bounded by what a request may be, whatever its sender sent.

use bytes::Bytes;
use serde_json::Value as Json;

use super::{Error, Worker, delivery::read};
use crate::{
    ids::JobId,
    job::{Decoded, Failure, Job, Request, encode_request},
    queue::{Delivery, Stored},
    run::code,
    store::{Claim, DeadLetter, PAYLOAD_BYTES},
    telemetry::{
        metric,
        scrub::{REDACTED, Scrubber, is_sensitive},
    },
};

/// The reason of a job that was given up because it killed its owners.
const GIVEN_UP: &str = "poison";

/// Bytes of headers that are kept: a publisher may fill them as well, and no sender needs more.
const MAX_HEADER_BYTES: usize = 64 * 1024;

/// Bytes that the store keeps of a payload that is larger than a request may be: enough to see what it is.
const MAX_OVERSIZED_BYTES: usize = 64 * 1024;

/// Why a message will never be run: reason and sentence.
pub(super) type Defect = (&'static str, String);

/// What a failure says about its message, when no other run of it could end differently.
pub(super) fn defect(failure: &Failure) -> Option<Defect> {
    let reason = match failure.code.as_str() {
        code::BAD_REQUEST => "bad_request",
        code::DEFINITION_INVALID | code::VARIABLES_UNSET => "definition_invalid",
        code::AGENT_NOT_FOUND => "agent_not_found",
        code::POISON => GIVEN_UP,
        code::MAX_DELIVERIES => "max_deliveries",
        _ => return None,
    };
    Some((reason, failure.message.clone()))
}

/// The same for a job that ended earlier, from its stored result.
pub(super) async fn stored_defect(worker: &Worker, job_id: &JobId) -> Result<Option<Defect>, Error> {
    let Some(event) = worker.ports.store.result(job_id).await? else { return Ok(None) };
    let event: Json = serde_json::from_slice(&event).unwrap_or_default();
    let failure: Option<Failure> = serde_json::from_value(event["data"]["error"].clone()).ok();
    Ok(failure.as_ref().and_then(defect))
}

/// A message as a letter keeps it.
pub(super) struct Message<'a> {
    pub(super) stream: &'a str,
    pub(super) stream_seq: u64,
    pub(super) subject: &'a str,
    pub(super) headers: &'a [(String, String)],
    pub(super) payload: &'a Bytes,
}

impl<'a> From<&'a Delivery> for Message<'a> {
    fn from(delivery: &'a Delivery) -> Self {
        let Delivery { stream, stream_seq, subject, headers, payload, .. } = delivery;
        Self { stream, stream_seq: *stream_seq, subject, headers, payload }
    }
}

impl<'a> From<&'a Stored> for Message<'a> {
    fn from(stored: &'a Stored) -> Self {
        let Stored { stream, stream_seq, subject, headers, payload, .. } = stored;
        Self { stream, stream_seq: *stream_seq, subject, headers, payload }
    }
}

/// The letter of a message, for the stream of dead letters: the payload is whole. How often it was delivered may be
/// unknown, which is 0.
pub(super) fn letter<'a>(
    message: impl Into<Message<'a>>,
    job: Option<&Job>,
    (reason, error): Defect,
    deliveries: u64,
) -> DeadLetter {
    let Message { stream, stream_seq, subject, headers, payload } = message.into();
    DeadLetter {
        stream: stream.to_owned(),
        stream_seq,
        subject: subject.to_owned(),
        headers: first_headers(headers),
        payload: payload.clone(),
        job_id: job.map(|job| job.job_id.clone()),
        thread_id: job.map(|job| job.thread_id.clone()),
        reason,
        error,
        deliveries,
    }
}

/// Keeps a letter in both places; repeating it changes nothing.
pub(super) async fn keep(worker: &Worker, letter: &DeadLetter) -> Result<(), Error> {
    let letter = scrubbed(letter);
    let is_new = worker.ports.store.bury(&kept(worker, &letter)).await?;
    worker.queue.bury(&letter).await?;
    if is_new {
        metrics::counter!(metric::DEAD_LETTERS, "reason" => letter.reason).increment(1);
    }
    Ok(())
}

/// The letter without secrets in what went wrong and in its headers. The payload stays as it came: it may be sent again.
fn scrubbed(letter: &DeadLetter) -> DeadLetter {
    let scrubber = Scrubber::process();
    let header = |(name, value): &(String, String)| {
        let value = if is_sensitive(name) { REDACTED.into() } else { scrubber.text(value) };
        (name.clone(), value.into_owned())
    };
    DeadLetter {
        error: scrubber.report(&letter.error).into_owned(),
        headers: letter.headers.iter().map(header).collect(),
        ..letter.clone()
    }
}

/// Keeps the letter of a claimed job that is given up. Without its message in hand, that is looked for in the
/// stream; if it is gone there too, the letter is made from the stored request.
pub(super) async fn keep_claimed(
    worker: &Worker,
    claim: &Claim,
    message: Option<&Delivery>,
    error: &str,
) -> Result<(), Error> {
    let defect = (GIVEN_UP, error.to_owned());
    let made = match message {
        Some(delivery) => letter(delivery, None, defect, delivery.deliveries),
        None => found(worker, claim, defect).await?,
    };
    let (job_id, thread_id) = (Some(claim.job_id.clone()), Some(claim.thread_id.clone()));
    keep(worker, &DeadLetter { job_id, thread_id, ..made }).await
}

async fn found(worker: &Worker, claim: &Claim, defect: Defect) -> Result<DeadLetter, Error> {
    let view = worker.ports.store.job(&claim.job_id).await?;
    let stored = match view.and_then(|view| view.stream_seq) {
        Some(seq) => worker.queue.fetch(seq).await?,
        None => None,
    };
    // A stream that was made anew has another job's message in that place.
    if let Some(stored) = stored.filter(|stored| is_of(worker, stored, &claim.job_id)) {
        return Ok(letter(&stored, None, defect, 0));
    }
    let job: Option<Job> = serde_json::from_slice(&claim.request).ok();
    let request = job.as_ref().and_then(encode_request);
    let unreadable = || Request { headers: Vec::new(), payload: claim.request.clone() };
    let Request { headers, payload } = request.unwrap_or_else(unreadable);
    // A place that no message has, and that is the job's alone.
    let (stream, stream_seq) = (&format!("job:{}", claim.job_id), 1);
    let made = Message { stream, stream_seq, subject: "", headers: &headers, payload: &payload };
    Ok(letter(made, None, defect, 0))
}

fn is_of(worker: &Worker, stored: &Stored, job_id: &JobId) -> bool {
    match read(worker, &stored.headers, &stored.payload) {
        Decoded::Job(job) => job.job_id == *job_id,
        Decoded::Unreadable { .. } => false,
    }
}

fn first_headers(headers: &[(String, String)]) -> Vec<(String, String)> {
    let mut bytes = 0;
    let fits = |header: &&(String, String)| {
        bytes += header.0.len() + header.1.len();
        bytes <= MAX_HEADER_BYTES
    };
    headers.iter().take_while(fits).cloned().collect()
}

/// The copy for the store: whole while a request may be that large, else its first bytes, with its size among
/// the headers.
pub(super) fn kept(worker: &Worker, letter: &DeadLetter) -> DeadLetter {
    within(letter, worker.codec.max_request_bytes)
}

fn within(letter: &DeadLetter, most: usize) -> DeadLetter {
    let mut kept = letter.clone();
    if letter.payload.len() > most {
        kept.payload.truncate(MAX_OVERSIZED_BYTES);
        kept.headers.push((PAYLOAD_BYTES.to_owned(), letter.payload.len().to_string()));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Receipt;

    fn delivery(headers: Vec<(String, String)>, bytes: usize) -> Delivery {
        Delivery {
            stream: "S".into(),
            stream_seq: 7,
            subject: "s".into(),
            headers,
            payload: vec![b'x'; bytes].into(),
            deliveries: 1,
            receipt: Receipt("r".into()),
        }
    }

    #[test]
    fn the_store_keeps_all_of_a_request_and_the_first_bytes_of_what_is_too_large_for_one() {
        let delivery = delivery(Vec::new(), 1 << 20);
        let letter = letter(&delivery, None, ("bad_request", "too large".into()), 1);
        assert_eq!(letter.payload.len(), 1 << 20, "the stream's copy is whole");
        assert_eq!(within(&letter, 1 << 20).payload.len(), 1 << 20);
        let cut = within(&letter, (1 << 20) - 1);
        assert_eq!(cut.payload.len(), MAX_OVERSIZED_BYTES);
        assert_eq!(cut.headers, [(PAYLOAD_BYTES.to_owned(), (1 << 20).to_string())]);
    }

    #[test]
    fn headers_beyond_the_limit_are_left_out() {
        let headers = (0..100).map(|n| (format!("h{n:02}"), "v".repeat(1021))).collect();
        let letter = letter(&delivery(headers, 1), None, ("not_json", "x".into()), 1);
        assert_eq!(letter.headers.len(), 64);
    }
}

//! The one task that sends events: takes a flush, appends and publishes it, and waits while the server is away.
//!
//! **Invariant:** events of a thread are sent in order; what may not have arrived is sent again before what follows.
//! **Invariant:** an event that the server answers with an error, or that ends the connection again and again, is given
//! up, so that it cannot hold up the others.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use fred::{
    clients::Pipeline,
    error::{Error as FredError, ErrorKind},
    interfaces::{ClientLike, LuaInterface},
    types::{ClusterHash, CustomCommand, Value},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{
    Config,
    append::{Refused, Reply, SCRIPT, Setback, read},
    key,
    link::Link,
    queue::{Most, Queue, Queued, count_dropped},
};
use crate::{
    ids::ThreadId,
    stream::{Event, EventType},
    telemetry::metric,
};

/// A flush. The server runs each thread's part of it in one go, and a call costs it as much as several events, so a
/// flush of many threads must be large. All of one thread, after an outage, it holds the server up for some 3 ms.
const FLUSH: Most = Most { events: 512, bytes: 1024 * 1024 };

/// Least time from one flush to the next, unless a whole flush waits already: nobody sees these milliseconds, and at
/// many jobs they halve the calls and with them what server and process spend on each. After a pause an event goes at
/// once.
const GATHER: Duration = Duration::from_millis(4);

/// A flush after one that broke the connection: alone, an event shows whether it is the cause.
const SINGLE: Most = Most { events: 1, bytes: 0 };

/// The slowest network a flush is given time for, beside the timeout of a small command.
const SLOWEST_BYTES_PER_SECOND: u32 = 2 * 1024 * 1024;

/// Times an event may break the connection to a server that answers otherwise.
const MAX_STRIKES: u32 = 5;

/// Pause before the server is asked again whether it is there, at first and at most: short, since readers wait.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// How long to wait for a connection before its absence counts as an error.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(1);

/// How long a link may stay silent before it is replaced: a half-open connection, or fred stuck in a write, ends here.
const LINK_PATIENCE: Duration = Duration::from_secs(5);

/// Least time between two warnings of one kind about refused events; each flush of a thread could make one.
const WARN_EVERY: Duration = Duration::from_secs(10);

pub(super) struct Writer {
    config: Config,
    queue: Arc<Queue>,
    link: Arc<Link>,
    /// The name under which the server knows [`SCRIPT`].
    script: Option<String>,
    /// Failures in a row, of flushes and of attempts to reach the server.
    failures: u32,
    /// Flushes in a row that found no answer although the server had answered just before.
    strikes: u32,
    /// When it was last said that the server takes no events of a thread.
    warned: Option<Instant>,
    /// When it was last said that a stream is ahead of its thread.
    warned_of_ahead: Option<Instant>,
}

impl Writer {
    pub(super) fn new(config: Config, queue: Arc<Queue>, link: Arc<Link>) -> Self {
        Self {
            config,
            queue,
            link,
            script: None,
            failures: 0,
            strikes: 0,
            warned: None,
            warned_of_ahead: None,
        }
    }

    /// Sends until `cancel`; what waits then is dropped.
    pub(super) async fn run(mut self, cancel: CancellationToken) {
        let mut gathered_at = Instant::now();
        loop {
            let rest = GATHER.saturating_sub(gathered_at.elapsed());
            if !rest.is_zero() && !self.queue.holds(FLUSH.events) {
                // A process that ends does not wait.
                let _ = timeout(rest, cancel.cancelled()).await;
            }
            let most = if self.strikes == 0 { FLUSH } else { SINGLE };
            let flush = tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                flush = self.queue.next(most) => flush,
            };
            gathered_at = Instant::now();
            if self.script.is_none() && !self.back_in_touch(&cancel).await {
                self.queue.put_back(flush);
                break;
            }
            let span = tracing::info_span!("stream publish", events = flush.len());
            let (left, setback) = self.send(flush).instrument(span).await;
            self.conclude(left, setback);
        }
        let dropped = self.queue.clear();
        if dropped > 0 {
            tracing::warn!(dropped, "run events were not sent before the end");
        }
    }

    /// Settles a flush, and decides what happens to what is left of it.
    fn conclude(&mut self, left: Vec<Queued>, setback: Option<Setback>) {
        let Some(setback) = setback else {
            (self.failures, self.strikes) = (0, 0);
            return self.queue.settle();
        };
        self.failures += 1;
        // The next flush first asks whether the server is there, and brings the script along.
        self.script = None;
        if setback != Setback::NoScript {
            metrics::counter!(metric::REDIS_ERRORS).increment(1);
            tracing::debug!(?setback, "run events were not sent");
        }
        if setback == Setback::Link {
            self.strikes += 1;
        }
        if self.strikes > MAX_STRIKES && left.len() == 1 {
            self.strikes = 0;
            self.give_up(&left, "the connection breaks with it");
            return self.queue.settle();
        }
        self.queue.put_back(left);
    }

    /// Waits until the server answers and knows the script; `false` when cancelled before.
    async fn back_in_touch(&mut self, cancel: &CancellationToken) -> bool {
        let since = Instant::now();
        let mut renewed = since;
        let mut away = false;
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return false,
                () = self.link.connected(pause(self.failures), CONNECTION_PATIENCE) => {}
            }
            let Err(error) = self.load_script().await else { break };
            metrics::counter!(metric::REDIS_ERRORS).increment(1);
            self.failures += 1;
            if !away {
                tracing::warn!(%error, "stream server is away, run events wait");
            }
            away = true;
            if renewed.elapsed() > LINK_PATIENCE {
                renewed = Instant::now();
                self.link.renew();
            }
        }
        if away {
            tracing::info!(away_ms = since.elapsed().as_millis(), "stream server is back");
        }
        true
    }

    async fn load_script(&mut self) -> Result<(), FredError> {
        let client = self.link.client(self.config.command_timeout);
        self.script = Some(client.script_load(SCRIPT).await?);
        Ok(())
    }

    /// Sends a flush; returns what is to be sent again, in order, and why.
    async fn send(&mut self, flush: Vec<Queued>) -> (Vec<Queued>, Option<Setback>) {
        let parts = by_thread(flush);
        let replies = self.call(&parts).await;
        let mut left = Vec::new();
        let mut setback = None;
        for (part, reply) in parts.into_iter().zip(replies) {
            match reply {
                Reply::Appended(refused) => self.count(&part, &refused),
                Reply::Refused(reason) => self.give_up(&part, &reason),
                Reply::Failed(why) => {
                    left.extend(part);
                    setback = Some(why);
                }
            }
        }
        left.sort_by_key(Queued::number);
        (left, setback)
    }

    /// One call of the script per thread, all on their way at once; a reply per part.
    async fn call(&self, parts: &[Vec<Queued>]) -> Vec<Reply> {
        let bytes: usize = parts.iter().flatten().map(Queued::bytes).sum();
        let kilobytes = u32::try_from(bytes / 1024).unwrap_or(u32::MAX);
        let transfer = Duration::from_secs(1) * kilobytes / (SLOWEST_BYTES_PER_SECOND / 1024);
        let client = self.link.client(self.config.command_timeout + transfer);
        let pipeline = Pipeline::from(client);
        for part in parts {
            let command = CustomCommand::new_static("EVALSHA", ClusterHash::Random, false);
            // Queued in the pipeline, answered with the others below.
            let _: Result<Value, _> = pipeline.custom(command, self.arguments(part)).await;
        }
        let mut answers = pipeline.try_all::<Value>().await;
        if answers.len() != parts.len() {
            // The pipeline failed as a whole.
            let error = answers.pop().and_then(Result::err);
            let error = error.unwrap_or_else(|| FredError::new(ErrorKind::Protocol, "replies are missing"));
            answers = parts.iter().map(|_| Err(error.clone())).collect();
        }
        answers.into_iter().map(read).collect()
    }

    fn arguments(&self, part: &[Queued]) -> Vec<Value> {
        let thread = part.first().map_or(String::new(), |queued| key(&queued.event.thread_id));
        let mut arguments = Vec::with_capacity(6 + 3 * part.len());
        arguments.push(self.script.as_deref().unwrap_or_default().into());
        arguments.push("1".into());
        arguments.push(thread.as_str().into());
        arguments.push(thread.into());
        arguments.push(self.config.max_len.to_string().into());
        arguments.push(self.config.ttl.as_secs().max(1).to_string().into());
        for Queued { event, .. } in part {
            arguments.push(event.id.to_string().into());
            arguments.push(event.entry.clone().into());
            arguments.push(event.publish.clone().unwrap_or_else(Bytes::new).into());
        }
        arguments
    }

    fn give_up(&mut self, part: &[Queued], reason: &str) {
        part.iter().for_each(|queued| count_dropped(queued.event.event_type));
        if !is_due(&mut self.warned) {
            return;
        }
        let thread_id = part.first().map(|queued| queued.event.thread_id.as_str());
        tracing::warn!(
            thread_id,
            events = part.len(),
            reason,
            "stream server takes no run events of a thread"
        );
    }

    /// Counts what arrived, and what readers will never see.
    fn count(&mut self, part: &[Queued], Refused { there, behind }: &Refused) {
        let is_whole = there.is_empty() && behind.is_empty();
        let (mut counts, mut lost) = ([0_u64; EventType::ALL.len()], Vec::new());
        for queued @ Queued { event, is_repeat, .. } in part {
            // One that was sent before without an answer arrived then, as far as anybody knows.
            let id = (!is_whole && !is_repeat).then(|| event.id.to_string());
            match id {
                Some(id) if behind.contains(&id) => lost.push(queued),
                Some(id) if there.contains(&id) => {}
                Some(_) | None => counts[event.event_type as usize] += 1,
            }
        }
        for (kind, count) in EventType::ALL.into_iter().zip(counts).filter(|(_, count)| *count > 0) {
            metrics::counter!(metric::REDIS_PUBLISHED, "event_type" => kind.as_str()).increment(count);
        }
        lost.iter().for_each(|queued| count_dropped(queued.event.event_type));
        if let Some(first) = lost.first()
            && is_due(&mut self.warned_of_ahead)
        {
            let Event { thread_id, id, .. } = &first.event;
            tracing::warn!(
                %thread_id,
                %id,
                events = lost.len(),
                code = "STREAM_AHEAD",
                "run events reach nobody: the stream of their thread has later ids"
            );
        }
    }
}

/// Whether a warning is due that was last given at `last`; if so, it is given now.
fn is_due(last: &mut Option<Instant>) -> bool {
    let is_due = last.is_none_or(|at| at.elapsed() >= WARN_EVERY);
    if is_due {
        *last = Some(Instant::now());
    }
    is_due
}

/// The pause before the server is asked again: twice as long after each failure.
fn pause(failures: u32) -> Duration {
    let (first, longest) = PAUSES;
    match failures {
        0 => Duration::ZERO,
        n => first.saturating_mul(1 << (n - 1).min(16)).min(longest),
    }
}

/// The events of each thread, in their order.
fn by_thread(flush: Vec<Queued>) -> Vec<Vec<Queued>> {
    let mut places: HashMap<ThreadId, usize> = HashMap::new();
    let mut parts: Vec<Vec<Queued>> = Vec::new();
    for queued in flush {
        let place = *places.entry(queued.event.thread_id.clone()).or_insert(parts.len());
        match parts.get_mut(place) {
            Some(part) => part.push(queued),
            None => parts.push(vec![queued]),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit() {
        let pauses = [0, 1, 2, 4, 5, 99].map(|failures| pause(failures).as_millis());
        assert_eq!(pauses, [0, 50, 100, 400, 500, 500]);
    }
}

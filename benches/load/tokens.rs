//! Tokens per second through our stream writer, beside a pipelined XADD and PUBLISH of the same bytes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agent_executor::{
    ids::{Epoch, JobId, Namespace, SystemClock, ThreadId},
    stream::{
        Claimed, Emitter, Event, LastEvent, Origin, Sink, TokenBuffer, TokenConfig,
        dragonfly::{Config, Dragonfly},
    },
};
use anyhow::{Result, ensure};
use async_trait::async_trait;
use fred::prelude::{Builder, ClientLike, Config as RedisConfig, StreamsInterface};
use serde_json::json;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    BARE_TURN, Servers, TURN, TURNS,
    raw_redis::{Commands, RawRedis},
    report::Report,
};

/// Messages that are written at the same time, each to a thread of its own.
const THREADS: usize = 64;
/// Tokens of a message.
const TOKENS: usize = 200;
/// Longest wait for a round's events to arrive.
const ROUND_WITHIN: Duration = Duration::from_secs(60);

/// Every token an event: the worst a model can do to the writer.
const UNMERGED: TokenConfig =
    TokenConfig { cumulative_text: true, window: Duration::ZERO, bytes_per_second: usize::MAX };

pub(crate) async fn measure(servers: &Servers, report: &mut Report) -> Result<()> {
    let mut config = Config::new(servers.redis.url().into());
    // Nothing may be dropped here: a round is handed over at once, and arrives before the next one.
    (config.max_events, config.max_bytes) = (usize::MAX, usize::MAX);
    let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
    let sink = Dragonfly::start(config, &tracker, cancel.clone())?;
    let mut redis = RawRedis::connect(servers.redis.port()).await?;
    let (mut ours, mut bare) = (Spent::default(), Spent::default());
    let mut bytes = 0;
    let mut epoch = 0;
    for _ in 0..TURNS {
        let turn = Instant::now();
        while turn.elapsed() < TURN {
            epoch += 1;
            let began = Instant::now();
            say(&(sink.clone() as Arc<dyn Sink>), "ours", epoch)?;
            sink.flush(ROUND_WITHIN).await;
            ours.add(began.elapsed());
        }
        let turn = Instant::now();
        while turn.elapsed() < BARE_TURN {
            epoch += 1;
            let recorder = Arc::new(Recorder::default());
            say(&(recorder.clone() as Arc<dyn Sink>), "bare", epoch)?;
            let (commands, size) = recorder.commands();
            bytes = size;
            let began = Instant::now();
            redis.run(&commands).await?;
            bare.add(began.elapsed());
        }
    }
    arrived(servers, epoch).await?;
    cancel.cancel();
    tracker.close();
    tracker.wait().await;
    tell((ours.per_second(), bare.per_second()), bytes, report);
    Ok(())
}

fn tell((ours, bare): (f64, f64), bytes: usize, report: &mut Report) {
    let each = bytes / (THREADS * TOKENS);
    report.line(format!(
        "\nTokens to Redis: {THREADS} messages of {TOKENS} tokens side by side, an event of {each} bytes (entry and message) per\n\
         token, encoded and sent by our writer; beside it XADD and PUBLISH of the same bytes, ready made, in one pipeline.\n\n\
         \x20tokens/s  bare pipeline/s  ratio\n{ours:>9.0} {bare:>16.0} {:>6.2}",
        ours / bare
    ));
    let figures = json!({ "tokens_per_second": ours, "bare_tokens_per_second": bare,
                          "ratio": ours / bare, "bytes_per_token": each });
    report.json("tokens", figures);
}

#[derive(Default)]
struct Spent {
    rounds: u32,
    time: Duration,
}

impl Spent {
    fn add(&mut self, time: Duration) {
        self.rounds += 1;
        self.time += time;
    }

    fn per_second(&self) -> f64 {
        f64::from(self.rounds) * (THREADS * TOKENS) as f64 / self.time.as_secs_f64()
    }
}

/// Says a message on every thread, a token of each in turn.
fn say(sink: &Arc<dyn Sink>, whose: &str, epoch: i64) -> Result<()> {
    let mut speakers = Vec::with_capacity(THREADS);
    for thread in 0..THREADS {
        let claimed = Claimed {
            thread_id: ThreadId::parse(&format!("tokens-{whose}-{thread}"))?,
            job_id: JobId::parse(&format!("tokens-{whose}-{thread}-{epoch}"))?,
            epoch: Epoch(epoch),
            attempt: 1,
        };
        let emitter = Emitter::new(sink.clone(), Arc::new(SystemClock), claimed, UNMERGED);
        speakers.push((emitter, TokenBuffer::new(UNMERGED)));
    }
    let ns = Namespace::root();
    let origin = Origin { node: "main", ns: &ns };
    for _ in 0..TOKENS {
        for (emitter, text) in &mut speakers {
            if let Some(piece) = text.push("token ", Instant::now()) {
                emitter.token(origin, "run-00000000-0000-0000-0000-000000000000", &piece);
            }
        }
    }
    Ok(())
}

/// Whether the last token of each thread can be read.
async fn arrived(servers: &Servers, newest: i64) -> Result<()> {
    let client = Builder::from_config(RedisConfig::from_url(&servers.redis.url())?).build()?;
    client.init().await?;
    for (whose, thread) in ["ours", "bare"].iter().flat_map(|whose| (0..THREADS).map(move |n| (whose, n))) {
        let key = format!("langgraph:stream:tokens-{whose}-{thread}");
        let last: Vec<(String, std::collections::HashMap<String, String>)> =
            client.xrevrange_values(&key, "+", "-", Some(1)).await?;
        let id = last.first().map_or("", |(id, _)| id);
        let (epoch, seq) = id.split_once('-').unwrap_or_default();
        let epoch: i64 = epoch.parse().unwrap_or_default();
        ensure!(seq == TOKENS.to_string() && epoch <= newest, "the last entry of {key} is {id:?}");
    }
    client.quit().await?;
    Ok(())
}

/// Keeps events instead of sending them.
#[derive(Default)]
struct Recorder(Mutex<Vec<Event>>);

impl Recorder {
    /// The commands that send them, and how many bytes the events have.
    fn commands(&self) -> (Commands, usize) {
        let mut commands = Commands::default();
        let mut bytes = 0;
        for event in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let message = event.publish.as_ref().unwrap_or(&event.entry);
            bytes += event.entry.len() + message.len();
            let key = format!("langgraph:stream:{}", event.thread_id);
            commands.push_event(&key, &event.id.to_string(), &event.entry, message);
        }
        (commands, bytes)
    }
}

#[async_trait]
impl Sink for Recorder {
    fn emit(&self, event: Event) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    async fn flush(&self, _limit: Duration) {}

    async fn last(&self, _thread_id: &ThreadId) -> Option<LastEvent> {
        None
    }

    async fn ping(&self) -> bool {
        true
    }
}

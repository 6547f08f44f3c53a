//! Reads what a run left behind: from the streams, from Postgres, from Redis, from the members' metrics.

use std::collections::HashMap;
use std::time::Duration;

use agent_executor::{encoding::hex, stream::EntryId};
use anyhow::{Context, Result, anyhow};
use async_nats::jetstream::{self, consumer::PullConsumer};
use fred::prelude::{Builder, ClientLike, Config as RedisConfig, StreamsInterface};
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::history::{
    Backlog, BuriedRow, CheckpointRow, Event, JobRow, Left, Letter, Published, PythonThread, ThreadRow,
};
use super::site::Site;
use crate::live::interop;

/// How long the client waits before it connects again.
const RECONNECT: Duration = Duration::from_millis(100);
/// How long one command of the Redis server may take.
const COMMAND: Duration = Duration::from_secs(20);

/// A publisher, a consumer of results and an operator: they reach every server without a proxy.
pub(super) struct Observer {
    client: async_nats::Client,
    jetstream: jetstream::Context,
}

impl Observer {
    pub(super) async fn connect(site: &Site) -> Result<Self> {
        let client = async_nats::ConnectOptions::new()
            .max_reconnects(None)
            .reconnect_delay_callback(|_| RECONNECT)
            .retry_on_initial_connect()
            .connect(site.nats.url())
            .await?;
        Ok(Self { jetstream: jetstream::new(client.clone()), client })
    }

    /// Publishes a request until the stream has it.
    pub(super) async fn publish(&self, id: &str, payload: String) -> Result<()> {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", id);
        let sent =
            self.jetstream.publish_with_headers("agent.execute.chaos", headers, payload.into()).await?;
        sent.await?;
        Ok(())
    }

    /// Asks the members to cancel a job; fails unless one of them has noted it.
    pub(super) async fn cancel(&self, job_id: &str) -> Result<()> {
        let subject = format!("agent.control.{job_id}");
        let answer = self.client.request(subject, r#"{"action":"cancel","by":"chaos"}"#.into()).await?;
        let answer: Json = serde_json::from_slice(&answer.payload)?;
        anyhow::ensure!(answer["error"].is_null(), "{answer}");
        Ok(())
    }

    /// Messages of a stream from `from` on, with the number behind the last.
    async fn messages(
        &self,
        stream: &str,
        from: u64,
    ) -> Result<(Vec<jetstream::message::StreamMessage>, u64)> {
        let mut stream = self.jetstream.get_stream(stream).await?;
        let state = stream.info().await?.state.clone();
        let mut messages = Vec::new();
        for number in from.max(state.first_sequence)..=state.last_sequence {
            messages.push(stream.get_raw_message(number).await?);
        }
        Ok((messages, state.last_sequence + 1))
    }

    /// Results from message `from` on, and where to go on.
    pub(super) async fn results(&self, from: u64) -> Result<(Vec<Published>, u64)> {
        let (messages, next) = self.messages("AGENT_RESULTS", from).await?;
        let published = messages.into_iter().map(|message| Published {
            stream_seq: message.sequence,
            subject: message.subject.to_string(),
            message_id: message.headers.get("Nats-Msg-Id").map(ToString::to_string).unwrap_or_default(),
            digest: hex(Sha256::digest(&message.payload)),
            event: serde_json::from_slice(&message.payload).unwrap_or_default(),
        });
        Ok((published.collect(), next))
    }

    pub(super) async fn letters(&self) -> Result<Vec<Letter>> {
        let (messages, _) = self.messages("AGENT_DLQ", 0).await?;
        let letters = messages.into_iter().map(|message| Letter {
            reason: message.headers.get("Executor-Reason").map(ToString::to_string).unwrap_or_default(),
            payload: String::from_utf8_lossy(&message.payload).into_owned(),
        });
        Ok(letters.collect())
    }

    pub(super) async fn backlog(&self) -> Result<Backlog> {
        let mut stream = self.jetstream.get_stream("AGENT_EXECUTION").await?;
        let stored = stream.info().await?.state.messages;
        let consumer = stream.get_consumer("agent-executor-workers").await;
        let mut consumer: PullConsumer = consumer.map_err(|error| anyhow!("{error}"))?;
        let info = consumer.info().await?;
        let (pending, ack_pending) = (info.num_pending, info.num_ack_pending as u64);
        let left = if stored > 0 { self.left().await? } else { Vec::new() };
        Ok(Backlog { stored, pending, ack_pending, left, waited: false })
    }

    async fn left(&self) -> Result<Vec<Left>> {
        let mut stream = self.jetstream.get_stream("AGENT_EXECUTION").await?;
        let state = stream.info().await?.state.clone();
        let mut left = Vec::new();
        for number in state.first_sequence..=state.last_sequence {
            // The stream has holes where messages were settled.
            let Ok(message) = stream.get_raw_message(number).await else { continue };
            let json: Json = serde_json::from_slice(&message.payload).unwrap_or_default();
            left.push(Left { stream_seq: number, job_id: json["job_id"].as_str().map(str::to_owned) });
        }
        Ok(left)
    }
}

/// Rows of a query whose column is one JSON object each.
async fn rows<T: DeserializeOwned>(site: &Site, query: &str) -> Result<Vec<T>> {
    let all = format!("select coalesce(json_agg(q.row), '[]') from ({query}) q (row)");
    let printed = site.postgres.sql("postgres", &all).await?;
    serde_json::from_str(&printed).with_context(|| format!("psql printed {printed:.200}"))
}

pub(super) async fn jobs(site: &Site) -> Result<Vec<JobRow>> {
    rows(
        site,
        "select json_build_object('job_id', job_id, 'thread_id', thread_id, 'stream_seq', stream_seq, 'state', state, \
         'attempt', attempt, 'accepted_ms', extract(epoch from accepted_at) * 1000, \
         'finished_ms', extract(epoch from finished_at) * 1000, 'event_id', result_event_id, \
         'subject', result_subject, 'digest', encode(sha256(result), 'hex'), \
         'published', published_at is not null) from executor_job order by stream_seq",
    )
    .await
}

pub(super) async fn threads(site: &Site) -> Result<Vec<ThreadRow>> {
    let query = "select json_build_object('thread_id', thread_id, 'owner', owner, 'job_id', job_id, 'head', head) \
                 from executor_thread";
    rows(site, query).await
}

pub(super) async fn checkpoints(site: &Site) -> Result<Vec<CheckpointRow>> {
    rows(
        site,
        "select json_build_object('thread_id', thread_id, 'ns', checkpoint_ns, 'id', checkpoint_id, \
         'parent', parent_checkpoint_id, 'step', (metadata->>'step')::int, 'job_id', metadata->>'job_id', \
         'epoch', (metadata->>'executor_epoch')::bigint, 'attempt', (metadata->>'attempt')::int) \
         from checkpoints order by thread_id, checkpoint_ns, checkpoint_id",
    )
    .await
}

pub(super) async fn buried(site: &Site) -> Result<Vec<BuriedRow>> {
    let query = "select json_build_object('stream_seq', stream_seq, 'job_id', job_id, 'reason', reason, \
                 'payload', convert_from(payload, 'UTF8')) from executor_dead_letter";
    rows(site, query).await
}

/// How many jobs are open, results unpublished and threads owned.
pub(super) async fn unfinished(site: &Site) -> Result<(u64, u64, u64)> {
    let query = "select json_build_object('open', count(*) filter (where finished_at is null), \
                 'unpublished', count(*) filter (where finished_at is not null and published_at is null), \
                 'owned', (select count(*) from executor_thread where owner is not null)) from executor_job";
    let counts: Vec<Json> = rows(site, query).await?;
    let count = |name: &str| counts.first().and_then(|row| row[name].as_u64()).context("a count");
    Ok((count("open")?, count("unpublished")?, count("owned")?))
}

/// All events of these threads.
pub(super) async fn events(site: &Site, threads: &[String], started_ms: f64) -> Result<Vec<Event>> {
    let config = RedisConfig::from_url(&site.redis.url())?;
    let client = Builder::from_config(config)
        .with_performance_config(|performance| performance.default_command_timeout = COMMAND)
        .build()?;
    client.init().await?;
    let mut events = Vec::new();
    for thread_id in threads {
        let key = format!("langgraph:stream:{thread_id}");
        let entries: Vec<(String, HashMap<String, String>)> =
            client.xrange_values(key, "-", "+", None).await?;
        for (id, fields) in entries {
            let text = fields.get("event").context("entries have the field event")?;
            events.push(event(thread_id, &id, &serde_json::from_str(text)?, started_ms)?);
        }
    }
    client.quit().await?;
    Ok(events)
}

fn event(thread_id: &str, id: &str, json: &Json, started_ms: f64) -> Result<Event> {
    let entry: EntryId = id.parse().map_err(|_| anyhow!("entry id {id}"))?;
    let text = |json: &Json| json.as_str().unwrap_or_default().to_owned();
    let at = OffsetDateTime::parse(&text(&json["ts"]), &Rfc3339)?;
    let milliseconds = at.unix_timestamp_nanos() / 1_000_000;
    Ok(Event {
        thread_id: thread_id.to_owned(),
        epoch: u64::try_from(entry.epoch.0)?,
        seq: entry.seq,
        job_id: text(&json["job_id"]),
        attempt: json["attempt"].as_u64().unwrap_or_default(),
        event_type: text(&json["event_type"]),
        status: json["data"]["status"].as_str().map(str::to_owned),
        at_ms: milliseconds as f64 - started_ms,
    })
}

/// What LangGraph's own reader finds, in one process for all threads.
pub(super) async fn python(site: &Site) -> Result<Vec<PythonThread>> {
    let found = interop::check_threads(&site.postgres.url()).await?;
    Ok(serde_json::from_value(found)?)
}

/// A metric of each member, summed over its labels.
pub(super) async fn metric(site: &Site, name: &str) -> Vec<(String, f64)> {
    let mut values = Vec::new();
    for member in &site.members {
        let Some(process) = member.process() else { continue };
        let Ok((200, text)) = process.get("/metrics").await else { continue };
        let lines = text.lines().filter(|line| line.starts_with(name));
        let value = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
        values.push((member.name.clone(), value));
    }
    values
}

//! The neighbours of one executor under test, and what publishers, live UIs and operators do with them.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use async_nats::{
    HeaderMap,
    jetstream::{self, consumer::PullConsumer},
};
use fred::{
    prelude::{
        Builder, ClientLike, Config as RedisConfig, EventInterface, PubsubInterface, StreamsInterface,
    },
    types::{ClusterHash, CustomCommand},
};
use serde_json::{Value as Json, json};

use crate::{
    executor::{Executor, command},
    servers::{self, Nats, Postgres, Redis},
};

/// How long a job may take on a busy machine before a test gives it up.
pub(crate) const WITHIN: Duration = Duration::from_secs(60);

/// The program under test.
pub(crate) fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_agent-executor"))
}

/// PostgreSQL, NATS and Redis for one test.
pub(crate) struct World {
    /// A server of one's own when the test stops it, else the shared one.
    own_postgres: Option<Postgres>,
    pub(crate) database_url: String,
    pub(crate) nats: Nats,
    pub(crate) redis: Redis,
    jetstream: jetstream::Context,
}

impl World {
    /// NATS and Redis of its own, a database of its own on the shared PostgreSQL.
    pub(crate) async fn start() -> Result<Self> {
        let database_url = Postgres::shared().await?.fresh_database().await?;
        Self::around(None, database_url, Nats::start().await?).await
    }

    /// The same with lines in the broker's configuration.
    pub(crate) async fn start_with_nats(configuration: &str) -> Result<Self> {
        let database_url = Postgres::shared().await?.fresh_database().await?;
        Self::around(None, database_url, Nats::start_with(configuration).await?).await
    }

    /// The same with a PostgreSQL that the test may stop.
    pub(crate) async fn start_with_own_postgres() -> Result<Self> {
        let postgres = Postgres::start().await?;
        let database_url = postgres.url();
        Self::around(Some(postgres), database_url, Nats::start().await?).await
    }

    async fn around(own_postgres: Option<Postgres>, database_url: String, nats: Nats) -> Result<Self> {
        let redis = Redis::start().await?;
        let client = async_nats::ConnectOptions::new()
            .max_reconnects(None)
            .reconnect_delay_callback(|_| Duration::from_millis(100))
            .connect(nats.url())
            .await?;
        Ok(Self { own_postgres, database_url, nats, redis, jetstream: jetstream::new(client) })
    }

    /// The PostgreSQL the test may stop.
    pub(crate) fn postgres(&self) -> &Postgres {
        self.own_postgres.as_ref().expect("the test asked for a PostgreSQL of its own")
    }

    /// Settings that lead to this world. Messages of a killed executor come back within seconds.
    fn settings(&self) -> Vec<(String, String)> {
        let settings = [
            ("DATABASE_URL", self.database_url.clone()),
            ("NATS_URL", self.nats.url()),
            ("DRAGONFLY_URL", self.redis.url()),
            ("NATS_ACK_WAIT_SECONDS", "6".to_owned()),
            ("SHUTDOWN_GRACE_SECONDS", "10".to_owned()),
        ];
        settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// A ready executor.
    pub(crate) async fn executor(&self) -> Result<Executor> {
        self.executor_with(&[]).await
    }

    /// A ready executor with more settings.
    pub(crate) async fn executor_with(&self, more: &[(&str, &str)]) -> Result<Executor> {
        let settings = self.settings();
        let own = settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let all: Vec<_> = own.chain(more.iter().copied()).collect();
        Executor::start(program(), &all).await
    }

    /// What a command of the program prints, and its exit code.
    pub(crate) async fn run_command(&self, arguments: &[&str]) -> Result<(Option<i32>, String, String)> {
        let settings = self.settings();
        let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut command = tokio::process::Command::from(command(program(), &settings));
        let done =
            tokio::time::timeout(WITHIN, command.args(arguments).kill_on_drop(true).output()).await??;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((done.status.code(), text(&done.stdout), text(&done.stderr)))
    }

    /// Publishes bare data.
    pub(crate) async fn publish(&self, request: &Json) -> Result<u64> {
        self.publish_raw(&[], request.to_string().into_bytes()).await
    }

    /// Publishes any message; its place in the stream.
    pub(crate) async fn publish_raw(&self, headers: &[(&str, &str)], payload: Vec<u8>) -> Result<u64> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, *value);
        }
        let subject = "agent.execute.test".to_owned();
        let published = self.jetstream.publish_with_headers(subject, map, payload.into()).await?;
        Ok(published.await?.sequence)
    }

    /// Removes every request from its stream, as a broker that loses its data would.
    pub(crate) async fn lose_requests(&self) -> Result<()> {
        self.jetstream.get_stream("AGENT_EXECUTION").await?.purge().await?;
        Ok(())
    }

    /// Removes a request from its stream, as a broker that loses it.
    pub(crate) async fn delete_message(&self, seq: u64) -> Result<()> {
        let stream = self.jetstream.get_stream("AGENT_EXECUTION").await?;
        stream.delete_message(seq).await?;
        Ok(())
    }

    /// Everything in a stream: subject, headers and JSON, oldest first.
    pub(crate) async fn stream(&self, name: &str) -> Result<Vec<Stored>> {
        let mut stream = self.jetstream.get_stream(name).await?;
        let state = stream.info().await?.state.clone();
        let mut stored = Vec::new();
        for sequence in state.first_sequence..=state.last_sequence {
            let Ok(message) = stream.get_raw_message(sequence).await else { continue };
            let json = serde_json::from_slice(&message.payload).unwrap_or(Json::Null);
            stored.push(Stored { subject: message.subject.to_string(), headers: message.headers, json });
        }
        Ok(stored)
    }

    /// Results of a job, oldest first.
    pub(crate) async fn results_of(&self, job_id: &str) -> Result<Vec<Stored>> {
        let mut results = self.stream("AGENT_RESULTS").await?;
        results.retain(|result| result.json["subject"] == job_id);
        Ok(results)
    }

    /// Waits for the result of a job; its CloudEvent.
    pub(crate) async fn result_of(&self, job_id: &str) -> Result<Json> {
        let there = || async { self.results_of(job_id).await.is_ok_and(|results| !results.is_empty()) };
        servers::until(&format!("a result of {job_id}"), WITHIN, there).await?;
        Ok(self.results_of(job_id).await?.remove(0).json)
    }

    /// Publishes a request and waits for its result.
    pub(crate) async fn run(&self, request: &Json) -> Result<Json> {
        self.publish(request).await?;
        let job_id = request["job_id"].as_str().context("the request has a job id")?;
        self.result_of(job_id).await
    }

    /// Messages that are neither settled nor waiting to be delivered, and those that wait.
    pub(crate) async fn unsettled(&self) -> Result<(usize, u64)> {
        let stream = self.jetstream.get_stream("AGENT_EXECUTION").await?;
        let mut consumer: PullConsumer = stream
            .get_consumer("agent-executor-workers")
            .await
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        let info = consumer.info().await?;
        Ok((info.num_ack_pending, info.num_pending))
    }

    /// Waits until no message is left.
    pub(crate) async fn all_settled(&self) -> Result<()> {
        let settled = || async { self.unsettled().await.is_ok_and(|left| left == (0, 0)) };
        servers::until("every message is settled", WITHIN, settled).await
    }

    async fn redis(&self) -> Result<fred::clients::SubscriberClient> {
        let config = RedisConfig::from_url(&self.redis.url())?;
        let client = Builder::from_config(config).build_subscriber_client()?;
        client.init().await?;
        Ok(client)
    }

    /// The kept answers of models as they are stored, by their keys.
    pub(crate) async fn kept_answers(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let client = self.redis().await?;
        let command = |name: &'static str| CustomCommand::new_static(name, ClusterHash::Random, false);
        let keys: Vec<String> = client.custom(command("KEYS"), vec!["agent-executor:answer:*"]).await?;
        let mut kept = Vec::new();
        for key in keys {
            let value: Vec<u8> = client.custom(command("GET"), vec![key.as_str()]).await?;
            kept.push((key, value));
        }
        client.quit().await?;
        Ok(kept)
    }

    /// All events in the stream of a thread, as a late reader finds them: entry id and JSON.
    pub(crate) async fn events(&self, thread_id: &str) -> Result<Vec<(String, Json)>> {
        let client = self.redis().await?;
        let key = format!("langgraph:stream:{thread_id}");
        let entries: Vec<(String, std::collections::HashMap<String, String>)> =
            client.xrange_values(key, "-", "+", None).await?;
        client.quit().await?;
        let event = |(id, fields): (String, std::collections::HashMap<String, String>)| {
            let text = fields.get("event").context("entries have the field event")?;
            Ok((id, serde_json::from_str(text)?))
        };
        entries.into_iter().map(event).collect()
    }

    /// How often a stream was read from its middle on since the server started.
    pub(crate) async fn looks_into_streams(&self) -> Result<u64> {
        let client = self.redis().await?;
        let statistics: String = client.info(Some(fred::types::InfoKind::CommandStats)).await?;
        client.quit().await?;
        let calls = statistics.split("cmdstat_xrange:calls=").nth(1).and_then(|rest| rest.split(',').next());
        Ok(calls.map_or(Ok(0), str::parse)?)
    }

    /// Waits for the last event of a thread's last job; all events.
    pub(crate) async fn events_to_the_end(&self, thread_id: &str) -> Result<Vec<Json>> {
        let ended = || async {
            let events = self.events(thread_id).await.unwrap_or_default();
            events.last().is_some_and(|(_, event)| event["event_type"] == "end")
        };
        servers::until(&format!("an end in the stream of {thread_id}"), WITHIN, ended).await?;
        Ok(self.events(thread_id).await?.into_iter().map(|(_, event)| event).collect())
    }

    /// Listens to the channel of a thread.
    pub(crate) async fn listen(&self, thread_id: &str) -> Result<Listener> {
        let client = self.redis().await?;
        let messages = client.message_rx();
        client.subscribe(format!("langgraph:stream:{thread_id}")).await?;
        Ok(Listener { _client: client, messages })
    }

    /// Runs SQL on the executor's database; rows by line, columns separated by `|`.
    pub(crate) async fn sql(&self, statement: &str) -> Result<String> {
        let name = self.database_url.rsplit('/').next().context("the URL ends with the database")?;
        match &self.own_postgres {
            Some(postgres) => postgres.sql(name, statement).await,
            None => Postgres::shared().await?.sql(name, statement).await,
        }
    }
}

/// A message in a stream.
pub(crate) struct Stored {
    pub(crate) subject: String,
    pub(crate) headers: HeaderMap,
    pub(crate) json: Json,
}

/// A live UI.
pub(crate) struct Listener {
    _client: fred::clients::SubscriberClient,
    messages: tokio::sync::broadcast::Receiver<fred::types::Message>,
}

impl Listener {
    /// Events up to and with the first that satisfies `last`.
    pub(crate) async fn until(&mut self, last: impl Fn(&Json) -> bool) -> Result<Vec<Json>> {
        let mut events = Vec::new();
        loop {
            let message =
                tokio::time::timeout(WITHIN, self.messages.recv()).await.context("no event in time")??;
            let text: String = message.value.convert()?;
            events.push(serde_json::from_str(&text)?);
            if events.last().is_some_and(&last) {
                return Ok(events);
            }
        }
    }
}

/// A definition of one orchestrator without tools that answers with these replies.
pub(crate) fn orchestrator(replies: Json) -> Json {
    json!({
        "nodes": [{ "type": "orchestrator", "name": "main", "system_prompt": "Answer.", "tools": [], "model": scripted(replies) }],
        "edges": []
    })
}

/// A scripted model.
pub(crate) fn scripted(replies: Json) -> Json {
    json!({ "provider": "scripted", "model": "test", "script": { "replies": replies } })
}

/// A request for `definition` with one user message.
pub(crate) fn request(job_id: &str, definition: &Json, text: &str) -> Json {
    json!({
        "job_id": job_id,
        "agent_definition": definition,
        "input": { "messages": [{ "role": "user", "content": text }] }
    })
}

/// The events of one type.
pub(crate) fn of_type<'a>(events: &'a [Json], event_type: &str) -> Vec<&'a Json> {
    events.iter().filter(|event| event["event_type"] == event_type).collect()
}

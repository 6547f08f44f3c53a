//! How the broker is, for an operator: nothing is created or changed.

use std::time::Duration;

use async_nats::jetstream::{
    consumer,
    context::ContextBuilder,
    stream::{self, Info},
};
use serde::Serialize;
use time::OffsetDateTime;

use super::{ApiError, Config, Nats, Nothing, api, check, connect, provision};
use crate::queue::Error;

/// How long an answer of the server may take; in a cluster it asks its peers.
const API_TIMEOUT: Duration = Duration::from_secs(5);

/// A setting that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Doubt {
    /// The stream, the consumer or the server.
    pub object: String,
    /// Which setting is wrong, what it is and what it must be.
    pub reason: String,
    /// Whether jobs can be run as it is.
    pub works: bool,
}

/// What is said about load; scalers see the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Numbers {
    /// Requests that were not delivered yet.
    pub pending: u64,
    /// Requests that are being worked on, or are held for a busy thread.
    pub ack_pending: u64,
    /// Those of them that were delivered before.
    pub redelivered: u64,
    /// Pulls that wait for requests: executors with free slots.
    pub waiting_pulls: u64,
    /// Requests in the stream.
    pub messages: u64,
    /// The place of the first of them, or the next place when there is none.
    pub first_seq: u64,
    /// Age of the first of them in seconds.
    pub oldest_seconds: u64,
    /// Results in their stream.
    pub results: u64,
    /// Dead letters in their stream.
    pub dead_letters: u64,
}

/// How the broker is.
#[derive(Clone, Debug)]
pub struct Examined {
    /// The version of the server.
    pub version: String,
    /// What is missing or not as it should be.
    pub doubts: Vec<Doubt>,
    /// What is there.
    pub numbers: Numbers,
}

impl Nats {
    /// Looks at the server, its streams and the consumer. Fails only when the server does not answer.
    pub async fn examine(config: &Config) -> Result<Examined, Error> {
        let client = connect::open(config).await?;
        let server = client.server_info();
        let jetstream = ContextBuilder::new().timeout(API_TIMEOUT).build(client.clone());
        let (mut doubts, mut numbers) = (Vec::new(), Numbers::default());
        if let Err(Error::Unusable { object, reason }) = connect::check_payload(server.max_payload) {
            doubts.push(Doubt { object, reason, works: false });
        }
        if check::loses_redeliveries(&server.version) {
            let reason = format!(
                "version is {}, should be 2.10.26 or later: messages in flight may never be delivered again \
                 after a kill",
                server.version
            );
            doubts.push(Doubt { object: "the server".into(), reason, works: true });
        }
        let streams = [&config.execution_stream, &config.results_stream, &config.dlq_stream];
        for name in streams {
            let object = format!("stream {name}");
            let info: Result<Info, ApiError> =
                api(&jetstream, &format!("STREAM.INFO.{name}"), &Nothing {}).await;
            let Some(info) = there(info, object, &mut doubts)? else { continue };
            let findings = if *name == config.execution_stream {
                fill(&mut numbers, &info.state);
                check::execution_stream(&info.config, config)
            } else if *name == config.results_stream {
                numbers.results = info.state.messages;
                check::results_stream(&info.config)
            } else {
                numbers.dead_letters = info.state.messages;
                check::dlq_stream(&info.config)
            };
            findings.tell(&mut doubts);
        }
        let info = provision::consumer_info(&jetstream, config).await;
        if let Some(info) = there(info, format!("consumer {}", config.consumer), &mut doubts)? {
            count(&mut numbers, &info);
            check::workers(&info.config, config).tell(&mut doubts);
        }
        Ok(Examined { version: server.version, doubts, numbers })
    }
}

/// What exists; what does not is a doubt.
fn there<T>(found: Result<T, ApiError>, object: String, doubts: &mut Vec<Doubt>) -> Result<Option<T>, Error> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(ApiError::NotFound) => {
            doubts.push(Doubt { object, reason: "it does not exist".into(), works: false });
            Ok(None)
        }
        Err(ApiError::Other(error)) => Err(error),
    }
}

fn fill(numbers: &mut Numbers, state: &stream::State) {
    numbers.messages = state.messages;
    numbers.first_seq = state.first_sequence;
    if state.messages > 0 {
        let age = OffsetDateTime::now_utc() - state.first_timestamp;
        numbers.oldest_seconds = u64::try_from(age.whole_seconds()).unwrap_or_default();
    }
}

fn count(numbers: &mut Numbers, info: &consumer::Info) {
    let wide = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    numbers.pending = info.num_pending;
    numbers.ack_pending = wide(info.num_ack_pending);
    numbers.redelivered = wide(info.num_redelivered);
    numbers.waiting_pulls = wide(info.num_waiting);
}

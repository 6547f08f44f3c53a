//! Creates streams and the consumer when they are missing, and checks those that exist.
//!
//! **Invariant:** nothing that exists is changed; it belongs to the operator.

use std::time::Duration;

use async_nats::jetstream::{
    self, Context,
    consumer::{self, AckPolicy, Consumer, FromConsumer, PullConsumer, pull},
    stream::{self, DiscardPolicy, RetentionPolicy, StorageType},
};
use serde_json::json;

use super::{ApiError, Config, Nothing, Provision, api, check};
use crate::queue::Error;

/// How long advisories wait for somebody to read them, and how much room they take: 300 bytes each.
const ADVISORIES_MAX: (Duration, i64) = (check::RESULTS_MAX_AGE, 64 << 20);
/// Silence after which an advisory is handed out again: whoever took it asks the store and moves a message.
const ADVISORIES_ACK_WAIT: Duration = Duration::from_secs(30);

/// Makes sure that all streams and the consumer exist and can work; returns the consumer.
pub(super) async fn ensure(jetstream: &Context, config: &Config) -> Result<PullConsumer, Error> {
    let execution = ensure_stream(jetstream, config, execution_stream(config)).await?;
    check::execution_stream(&execution, config).verdict()?;
    let results = ensure_stream(jetstream, config, results_stream(config)).await?;
    check::results_stream(&results).verdict()?;
    let dlq = ensure_stream(jetstream, config, dlq_stream(config)).await?;
    check::dlq_stream(&dlq).verdict()?;
    let info = ensure_consumer(jetstream, config, &config.execution_stream, &workers(config)).await?;
    check::workers(&info.config, config).verdict()?;
    pulled(jetstream, config, info)
}

/// Makes sure that advisories are kept; returns their consumer. `None`, with a warning, when they cannot be: jobs
/// run without them.
pub(super) async fn ensure_advisories(
    jetstream: &Context,
    config: &Config,
) -> Result<Option<PullConsumer>, Error> {
    let ensured = async {
        let stream = ensure_stream(jetstream, config, advisories_stream(config)).await?;
        let reader = advisories_reader(config);
        let info = ensure_consumer(jetstream, config, &stream.name, &reader).await?;
        check::advisories(&info.config)
            .map_err(|reason| unusable(format!("stream {}", stream.name), reason))?;
        pulled(jetstream, config, info)
    };
    match ensured.await {
        Ok(consumer) => Ok(Some(consumer)),
        Err(error @ Error::Unavailable(_)) => Err(error),
        Err(error) => {
            tracing::warn!(%error, "messages that the broker gives up are found by their age only");
            Ok(None)
        }
    }
}

fn pulled(jetstream: &Context, config: &Config, info: consumer::Info) -> Result<PullConsumer, Error> {
    let pull = pull::Config::try_from_consumer_config(info.config.clone())
        .map_err(|error| unusable(format!("consumer {}", config.consumer), &error.to_string()))?;
    Ok(Consumer::new(pull, info, jetstream.clone()))
}

/// What the server says about the consumer; `NotFound` when it is gone.
pub(super) async fn consumer_info(jetstream: &Context, config: &Config) -> Result<consumer::Info, ApiError> {
    info_in(jetstream, &config.execution_stream, &config.consumer).await
}

async fn info_in(jetstream: &Context, stream: &str, consumer: &str) -> Result<consumer::Info, ApiError> {
    api(jetstream, &format!("CONSUMER.INFO.{stream}.{consumer}"), &Nothing {}).await
}

async fn ensure_stream(
    jetstream: &Context,
    config: &Config,
    wanted: stream::Config,
) -> Result<stream::Config, Error> {
    let object = || format!("stream {}", wanted.name);
    let info_subject = format!("STREAM.INFO.{}", wanted.name);
    let info = || api::<stream::Info>(jetstream, &info_subject, &Nothing {});
    match info().await {
        Ok(info) => return Ok(info.config),
        Err(ApiError::Other(error)) => return Err(error),
        Err(ApiError::NotFound) => {}
    }
    if config.provision == Provision::Expect {
        return Err(unusable(object(), "it does not exist, and provisioning is off"));
    }
    let subject = format!("STREAM.CREATE.{}", wanted.name);
    match api::<stream::Info>(jetstream, &subject, &wanted).await {
        Ok(info) => {
            tracing::info!(stream = %wanted.name, "created a stream");
            check::echo(object(), &wanted, &info.config).verdict()?;
            Ok(info.config)
        }
        Err(ApiError::Other(Error::Refused(reason))) => {
            // Another process may have created it at the same time, in a way of its own.
            match info().await {
                Ok(info) => Ok(info.config),
                Err(_) => Err(unusable(object(), &reason)),
            }
        }
        Err(error) => Err(error.into()),
    }
}

async fn ensure_consumer(
    jetstream: &Context,
    config: &Config,
    stream: &str,
    wanted: &consumer::Config,
) -> Result<consumer::Info, Error> {
    let object = || format!("consumer {}", config.consumer);
    match info_in(jetstream, stream, &config.consumer).await {
        Ok(info) => return Ok(info),
        Err(ApiError::Other(error)) => return Err(error),
        Err(ApiError::NotFound) => {}
    }
    if config.provision == Provision::Expect {
        return Err(unusable(object(), "it does not exist, and provisioning is off"));
    }
    // The same request from another process at the same time changes nothing.
    let subject = format!("CONSUMER.DURABLE.CREATE.{stream}.{}", config.consumer);
    let body = json!({"stream_name": stream, "config": wanted});
    match api::<consumer::Info>(jetstream, &subject, &body).await {
        Ok(info) => {
            tracing::info!(%stream, consumer = %config.consumer, "created a consumer");
            check::echo(object(), wanted, &info.config).verdict()?;
            Ok(info)
        }
        Err(ApiError::Other(Error::Refused(reason))) => Err(unusable(object(), &reason)),
        Err(error) => Err(error.into()),
    }
}

fn unusable(object: String, reason: &str) -> Error {
    Error::Unusable { object, reason: reason.into() }
}

fn execution_stream(config: &Config) -> stream::Config {
    stream::Config {
        // No max_age: a message would vanish even while a worker reports progress on it.
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::New,
        ..file_stream(&config.execution_stream, &config.execution_subjects, config)
    }
}

fn results_stream(config: &Config) -> stream::Config {
    stream::Config {
        max_age: check::RESULTS_MAX_AGE,
        ..file_stream(&config.results_stream, "agent.status.>", config)
    }
}

fn dlq_stream(config: &Config) -> stream::Config {
    file_stream(&config.dlq_stream, "agent.dlq.>", config)
}

fn advisories_stream(config: &Config) -> stream::Config {
    let subjects = ["MAX_DELIVERIES", "MSG_TERMINATED"].map(|event| advisory_subject(config, event));
    stream::Config {
        subjects: subjects.into(),
        // What has been looked at is gone; what nobody looks at makes room.
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::Old,
        max_age: ADVISORIES_MAX.0,
        max_bytes: ADVISORIES_MAX.1,
        ..file_stream(&config.advisories_stream, "", config)
    }
}

fn advisory_subject(config: &Config, event: &str) -> String {
    format!("$JS.EVENT.ADVISORY.CONSUMER.{event}.{}.{}", config.execution_stream, config.consumer)
}

fn file_stream(name: &str, subjects: &str, config: &Config) -> stream::Config {
    stream::Config {
        name: name.into(),
        subjects: vec![subjects.into()],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        num_replicas: config.replicas,
        duplicate_window: check::DUPLICATE_WINDOW,
        max_message_size: i32::try_from(check::MAX_MESSAGE_BYTES).expect("31 MiB fit"),
        max_messages: -1,
        max_bytes: -1,
        max_messages_per_subject: -1,
        max_consumers: -1,
        ..stream::Config::default()
    }
}

fn workers(config: &Config) -> jetstream::consumer::Config {
    jetstream::consumer::Config {
        durable_name: Some(config.consumer.clone()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: config.ack_wait,
        max_deliver: check::MAX_DELIVER,
        max_ack_pending: check::MAX_ACK_PENDING,
        // No backoff: the server would compare the delay of a nak with it and stretch it.
        ..jetstream::consumer::Config::default()
    }
}

fn advisories_reader(config: &Config) -> consumer::Config {
    consumer::Config {
        durable_name: Some(config.consumer.clone()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ADVISORIES_ACK_WAIT,
        // The stream may be an operator's, with more in it.
        filter_subject: advisory_subject(config, "*"),
        ..consumer::Config::default()
    }
}

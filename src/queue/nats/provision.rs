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

/// How long results are kept: longer than anybody looks back for one.
const RESULTS_MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Makes sure that all streams and the consumer exist and can work; returns the consumer.
pub(super) async fn ensure(jetstream: &Context, config: &Config) -> Result<PullConsumer, Error> {
    let execution = ensure_stream(jetstream, config, execution_stream(config)).await?;
    check::execution_stream(&execution, config).verdict()?;
    let results = ensure_stream(jetstream, config, results_stream(config)).await?;
    check::results_stream(&results).verdict()?;
    let dlq = ensure_stream(jetstream, config, dlq_stream(config)).await?;
    check::dlq_stream(&dlq).verdict()?;
    let info = ensure_consumer(jetstream, config).await?;
    check::workers(&info.config, config).verdict()?;
    let pull = pull::Config::try_from_consumer_config(info.config.clone())
        .map_err(|error| unusable(format!("consumer {}", config.consumer), &error.to_string()))?;
    Ok(Consumer::new(pull, info, jetstream.clone()))
}

/// What the server says about the consumer; `NotFound` when it is gone.
pub(super) async fn consumer_info(jetstream: &Context, config: &Config) -> Result<consumer::Info, ApiError> {
    api(jetstream, &format!("CONSUMER.INFO.{}.{}", config.execution_stream, config.consumer), &Nothing {})
        .await
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

async fn ensure_consumer(jetstream: &Context, config: &Config) -> Result<consumer::Info, Error> {
    let object = || format!("consumer {}", config.consumer);
    match consumer_info(jetstream, config).await {
        Ok(info) => return Ok(info),
        Err(ApiError::Other(error)) => return Err(error),
        Err(ApiError::NotFound) => {}
    }
    if config.provision == Provision::Expect {
        return Err(unusable(object(), "it does not exist, and provisioning is off"));
    }
    // The same request from another process at the same time changes nothing.
    let subject = format!("CONSUMER.DURABLE.CREATE.{}.{}", config.execution_stream, config.consumer);
    let body = json!({"stream_name": config.execution_stream, "config": workers(config)});
    match api::<consumer::Info>(jetstream, &subject, &body).await {
        Ok(info) => {
            tracing::info!(consumer = %config.consumer, "created a consumer");
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
        max_age: RESULTS_MAX_AGE,
        ..file_stream(&config.results_stream, "agent.status.>", config)
    }
}

fn dlq_stream(config: &Config) -> stream::Config {
    file_stream(&config.dlq_stream, "agent.dlq.>", config)
}

fn file_stream(name: &str, subjects: &str, config: &Config) -> stream::Config {
    stream::Config {
        name: name.into(),
        subjects: vec![subjects.into()],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        num_replicas: config.replicas,
        duplicate_window: check::DUPLICATE_WINDOW,
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

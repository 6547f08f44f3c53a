//! Posts results to the HTTP address in `K_SINK`, as Knative's SinkBinding asks for.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use reqwest::{Client, StatusCode, header::CONTENT_TYPE, redirect::Policy};
use url::Url;

use super::{Error, ResultSink};

/// Tries to deliver one result: with the pauses below about half a minute of trouble at the sink.
const TRIES: u32 = 6;

/// First pause between two tries; doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// A sink that takes longer than this to answer counts as failed.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The sink. The results stream stays the durable copy: a sink that is away for long misses results.
#[derive(Debug)]
pub struct KSink {
    client: Client,
    url: Url,
}

impl KSink {
    /// A sink at `url`.
    pub fn new(url: Url) -> Result<Self, Error> {
        let client = Client::builder().timeout(TIMEOUT).redirect(Policy::none()).build();
        let client = client.map_err(|error| Error::Refused(format!("no HTTP client for K_SINK: {error}")))?;
        Ok(Self { client, url })
    }

    async fn post(&self, event: Bytes) -> Result<(), Refusal> {
        let request = self.client.post(self.url.clone()).header(CONTENT_TYPE, "application/cloudevents+json");
        let response = request.body(event).send().await.map_err(|_| Refusal::Passing("no answer".into()))?;
        match response.status() {
            status if status.is_success() => Ok(()),
            status @ (StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS) => {
                Err(Refusal::Passing(status.to_string()))
            }
            status if status.is_server_error() => Err(Refusal::Passing(status.to_string())),
            status => Err(Refusal::Final(status.to_string())),
        }
    }
}

/// Why the sink did not take a result.
enum Refusal {
    Passing(String),
    Final(String),
}

#[async_trait]
impl ResultSink for KSink {
    async fn deliver(&self, event: Bytes) {
        let mut pause = FIRST_PAUSE;
        for tries_left in (0..TRIES).rev() {
            match self.post(event.clone()).await {
                Ok(()) => return,
                Err(Refusal::Passing(reason)) if tries_left > 0 => {
                    tracing::debug!(%reason, "the sink did not take a result, trying again");
                }
                Err(Refusal::Passing(reason) | Refusal::Final(reason)) => {
                    tracing::error!(%reason, "the sink did not take a result; it is in the results stream");
                    return;
                }
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }
}

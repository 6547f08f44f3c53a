//! Follows the stream of results from a place in it.
//!
//! It asks for the next message again and again instead of having a consumer: nothing is left behind at the
//! server, nothing has to be set up again after its restart (the client's ordered consumer did not come back
//! within a minute), and a person who waits for a job does not notice a tenth of a second.

use std::time::Duration;

use async_nats::jetstream::{
    Context,
    stream::{self, RawMessageErrorKind},
};
use bytes::Bytes;
use tokio::time::sleep;

use super::{Nats, Nothing, api};
use crate::queue::Error;

/// Pause between two looks at the stream.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Results in the order of the stream.
#[derive(Debug)]
pub struct Results {
    jetstream: Context,
    stream: String,
    next_seq: u64,
    just_looked: bool,
}

impl Nats {
    /// The results that are stored from now on. Call it before the request is submitted, or its result may
    /// be missed.
    pub async fn watch_results(&self) -> Result<Results, Error> {
        let stream = &self.config.results_stream;
        let info: stream::Info = api(&self.jetstream, &format!("STREAM.INFO.{stream}"), &Nothing {}).await?;
        Ok(Results {
            jetstream: self.jetstream.clone(),
            stream: stream.clone(),
            next_seq: info.state.last_sequence + 1,
            just_looked: false,
        })
    }
}

impl Results {
    /// The subject and the CloudEvent of the next result; waits for it. After an error the next call goes on
    /// where this one was; a dropped future loses nothing.
    pub async fn next(&mut self) -> Result<(String, Bytes), Error> {
        let stream = self.jetstream.get_stream_no_info(&self.stream).await;
        let stream = stream.map_err(|error| Error::Refused(error.to_string()))?;
        loop {
            if self.just_looked {
                sleep(LOOK_EVERY).await;
            }
            self.just_looked = true;
            let look = stream.raw_message_builder().sequence(self.next_seq).next_by_subject("agent.status.>");
            match look.send().await {
                Ok(message) => {
                    self.next_seq = message.sequence + 1;
                    self.just_looked = false;
                    return Ok((message.subject.to_string(), message.payload));
                }
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {}
                Err(error) => return Err(Error::Unavailable(error.to_string())),
            }
        }
    }
}

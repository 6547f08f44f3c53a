//! Looks at single messages of the execution stream, for repairs.
//!
//! **Invariant:** a message that cannot be read whole is still found, so that it stands in nobody's way: its
//! headers are read as far as they go.

use std::time::Duration;

use async_nats::jetstream::{
    consumer,
    stream::{self, RetentionPolicy},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::Instant;

use super::{ApiError, Nats, Nothing, api, provision};
use crate::queue::{Error, Stored};

/// Payload bytes of one look at the stream: sixteen messages of the largest size.
const MAX_BYTES: usize = 16 << 20;
/// How long one look may take; the rest is for the next one.
const MAX_TIME: Duration = Duration::from_secs(8);

/// A message as the server's API shows it.
#[derive(Deserialize)]
struct Raw {
    subject: String,
    seq: u64,
    /// In base64.
    #[serde(default)]
    data: String,
    /// In base64: `NATS/1.0`, then one header a line.
    #[serde(default)]
    hdrs: String,
    /// RFC 3339.
    time: String,
}

#[derive(Deserialize)]
struct Answer {
    message: Raw,
}

impl Nats {
    pub(super) async fn find_lingering(
        &self,
        after_seq: u64,
        older_than: Duration,
        limit: usize,
    ) -> Result<Vec<Stored>, Error> {
        self.connected().await?;
        let info = format!("STREAM.INFO.{}", self.config.execution_stream);
        let stream: stream::Info = api(&self.jetstream, &info, &Nothing {}).await?;
        if stream.config.retention == RetentionPolicy::Limits {
            return Ok(Vec::new());
        }
        let consumer = provision::consumer_info(&self.jetstream, &self.config).await?;
        let delivered = consumer.delivered.stream_sequence;
        let subjects = subjects(&consumer.config);
        let deadline = Instant::now() + MAX_TIME;
        let (mut found, mut bytes, mut next) = (Vec::new(), 0, after_seq + 1);
        while found.len() < limit && bytes < MAX_BYTES && next <= delivered && Instant::now() < deadline {
            let Some(message) = self.next_of(&subjects, next).await? else { break };
            // Those behind it are younger still.
            if message.stream_seq > delivered || message.age <= older_than {
                break;
            }
            next = message.stream_seq + 1;
            bytes += message.payload.len();
            found.push(message);
        }
        Ok(found)
    }

    pub(super) async fn stored_at(&self, stream_seq: u64) -> Result<Option<Stored>, Error> {
        self.connected().await?;
        self.message(&json!({"seq": stream_seq})).await
    }

    pub(super) async fn delete(&self, stream_seq: u64) -> Result<(), Error> {
        self.connected().await?;
        let subject = format!("STREAM.MSG.DELETE.{}", self.config.execution_stream);
        // Overwriting its bytes would cost the server a rewrite of the block.
        let body = json!({"seq": stream_seq, "no_erase": true});
        match api::<IgnoredAny>(&self.jetstream, &subject, &body).await {
            Ok(_) | Err(ApiError::NotFound) => Ok(()),
            // Versions differ in how they say that it is gone.
            Err(ApiError::Other(error @ Error::Refused(_))) => match self.stored_at(stream_seq).await? {
                None => Ok(()),
                Some(_) => Err(error),
            },
            Err(ApiError::Other(error)) => Err(error),
        }
    }

    /// The first message from `seq` on that has one of `subjects`.
    async fn next_of(&self, subjects: &[String], seq: u64) -> Result<Option<Stored>, Error> {
        let mut first: Option<Stored> = None;
        for subject in subjects {
            let message = self.message(&json!({"seq": seq, "next_by_subj": subject})).await?;
            first = first.into_iter().chain(message).min_by_key(|message| message.stream_seq);
        }
        Ok(first)
    }

    async fn message(&self, body: &serde_json::Value) -> Result<Option<Stored>, Error> {
        let subject = format!("STREAM.MSG.GET.{}", self.config.execution_stream);
        match api::<Answer>(&self.jetstream, &subject, body).await {
            Ok(answer) => Ok(Some(stored(&self.config.execution_stream, answer.message)?)),
            Err(ApiError::NotFound) => Ok(None),
            Err(ApiError::Other(error)) => Err(error),
        }
    }
}

/// What the consumer delivers: messages of other consumers are not even looked at.
fn subjects(consumer: &consumer::Config) -> Vec<String> {
    let filters = consumer.filter_subjects.iter().chain([&consumer.filter_subject]);
    let filters: Vec<_> = filters.filter(|filter| !filter.is_empty()).cloned().collect();
    if filters.is_empty() { vec![">".to_owned()] } else { filters }
}

fn stored(stream: &str, raw: Raw) -> Result<Stored, Error> {
    let unreadable = |what: &str| Error::Refused(format!("the {what} of message {} cannot be read", raw.seq));
    let payload = BASE64_STANDARD.decode(raw.data).map_err(|_| unreadable("payload"))?;
    let headers = BASE64_STANDARD.decode(raw.hdrs).map_err(|_| unreadable("headers"))?;
    let time = OffsetDateTime::parse(&raw.time, &Rfc3339).map_err(|_| unreadable("time"))?;
    Ok(Stored {
        stream: stream.to_owned(),
        stream_seq: raw.seq,
        subject: raw.subject,
        headers: read_headers(&headers),
        payload: payload.into(),
        // None when the broker's clock is ahead of ours.
        age: Duration::try_from(OffsetDateTime::now_utc() - time).unwrap_or_default(),
    })
}

/// Reads a block of headers; lines that are none are left out. The client's own reader keeps only the last of
/// repeated ones and gives up at the first odd line.
fn read_headers(block: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(block);
    let lines = text.lines().skip(1).filter_map(|line| line.split_once(':'));
    let mut headers: Vec<_> = lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
    headers.sort_by(|one, two| one.0.cmp(&two.0));
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_far_as_they_go() {
        let block = b"NATS/1.0\r\nx-b: 2\r\nodd line\r\nX-A:1\r\nx-b:  3: 4 \r\nx-c:\xff\r\n\r\n";
        let expected = [("X-A", "1"), ("x-b", "2"), ("x-b", "3: 4"), ("x-c", "\u{fffd}")];
        assert_eq!(read_headers(block), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert!(read_headers(b"").is_empty());
    }

    #[test]
    fn messages_are_asked_for_by_what_the_consumer_delivers() {
        let all = consumer::Config::default();
        let one = consumer::Config { filter_subject: "agent.execute.*".into(), ..all.clone() };
        let two = consumer::Config { filter_subjects: vec!["a.*".into(), "b".into()], ..all.clone() };
        assert_eq!(subjects(&all), [">"]);
        assert_eq!(subjects(&one), ["agent.execute.*"]);
        assert_eq!(subjects(&two), ["a.*", "b"]);
    }
}

//! Dead letters.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value as Json;
use sqlx::{Row, postgres::PgRow};

use super::{
    PostgresStore,
    jobs::stream_seq,
    statement::{millis, plain},
};
use crate::{
    ids::{JobId, ThreadId, UnixNanos},
    store::{DeadLetter, Error, Letter, LetterFilter, Letters, Replayed, WholeLetter},
};

/// What is known of the job goes with it: its row does not live as long.
const BURY: &str = "INSERT INTO executor_dead_letter \
    (stream, stream_seq, subject, headers, payload, job_id, thread_id, reason, detail, deliveries) \
    SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9::jsonb || coalesce((SELECT jsonb_build_object('job', jsonb_build_object( \
        'state', j.state, 'attempts', j.attempt, 'crashes', cardinality(j.charged), 'error', j.error, \
        'checkpoint_id', (SELECT max(c.checkpoint_id COLLATE \"C\") FROM checkpoints c \
            WHERE c.thread_id = j.thread_id AND c.checkpoint_ns = '' AND c.metadata ->> 'job_id' = j.job_id))) \
        FROM executor_job j WHERE j.job_id = $6), '{}'), $10 \
    ON CONFLICT (stream, stream_seq) DO NOTHING RETURNING id";

/// Columns of a listed letter. Times are microseconds.
macro_rules! listed {
    () => {
        "SELECT id, (extract(epoch FROM created_at) * 1000000)::bigint AS kept, reason, detail ->> 'error' AS error, \
         job_id, thread_id, deliveries, replays, (extract(epoch FROM replayed_at) * 1000000)::bigint AS replayed, \
         replay_job_id, (extract(epoch FROM discarded_at) * 1000000)::bigint AS discarded"
    };
}

const LETTERS: &str = concat!(
    listed!(),
    " FROM executor_dead_letter WHERE ($1::text IS NULL OR reason = $1) AND ($2::text IS NULL OR job_id = $2) \
      AND ($3::text IS NULL OR thread_id = $3) \
      AND ($4::bigint IS NULL OR created_at >= clock_timestamp() - $4 * interval '1 millisecond') \
      AND ($5::bigint IS NULL OR created_at <= clock_timestamp() - $5 * interval '1 millisecond') \
      AND ($6::bigint IS NULL OR id < $6) AND ($7 OR (replayed_at IS NULL AND discarded_at IS NULL)) \
      ORDER BY id DESC LIMIT $8"
);

const LETTER: &str = concat!(
    listed!(),
    ", stream, stream_seq, subject, headers, payload, detail FROM executor_dead_letter WHERE id = $1"
);

/// Open letters of the same job are further messages of it: one replay is enough for all.
const REPLAYED: &str = "WITH this AS ( \
        UPDATE executor_dead_letter SET replays = $2, replayed_at = clock_timestamp(), replay_msg_id = $3, \
            replay_job_id = $4 \
        WHERE id = $1 AND replays = $2 - 1 RETURNING id, job_id), others AS ( \
        UPDATE executor_dead_letter d SET replayed_at = clock_timestamp(), replay_msg_id = $3, replay_job_id = $4 \
        FROM this WHERE d.job_id = this.job_id AND d.id <> this.id AND d.replayed_at IS NULL \
            AND d.discarded_at IS NULL) \
    SELECT id FROM this";

const DISCARD: &str = "UPDATE executor_dead_letter SET discarded_at = clock_timestamp() \
    WHERE id = ANY ($1) AND replayed_at IS NULL AND discarded_at IS NULL RETURNING id";

#[async_trait]
impl Letters for PostgresStore {
    async fn bury(&self, letter: &DeadLetter) -> Result<bool, Error> {
        let seq = stream_seq(letter.stream_seq)?;
        let letter = letter.clone();
        let rows = self.link.rows(move || {
            let headers: Vec<[String; 2]> =
                letter.headers.iter().map(|(name, value)| [plain(name), plain(value)]).collect();
            sqlx::query(BURY)
                .bind(plain(&letter.stream))
                .bind(seq)
                .bind(plain(&letter.subject))
                .bind(sqlx::types::Json(headers))
                .bind(letter.payload.to_vec())
                .bind(letter.job_id.as_ref().map(ToString::to_string))
                .bind(letter.thread_id.as_ref().map(ToString::to_string))
                .bind(letter.reason)
                .bind(sqlx::types::Json(serde_json::json!({ "error": plain(&letter.error) })))
                .bind(i64::try_from(letter.deliveries).unwrap_or(i64::MAX))
        });
        Ok(!rows.await?.is_empty())
    }

    async fn letters(&self, filter: &LetterFilter, limit: u32) -> Result<Vec<Letter>, Error> {
        let filter = filter.clone();
        let rows = self.link.rows(move || {
            sqlx::query(LETTERS)
                .bind(filter.reason.as_deref().map(plain))
                .bind(filter.job_id.as_ref().map(ToString::to_string))
                .bind(filter.thread_id.as_ref().map(ToString::to_string))
                .bind(filter.newer_than.map(millis))
                .bind(filter.older_than.map(millis))
                .bind(filter.below)
                .bind(filter.dealt_with)
                .bind(i64::from(limit))
        });
        rows.await?.iter().map(|row| listed(row).map_err(unread)).collect()
    }

    async fn letter(&self, id: i64) -> Result<Option<WholeLetter>, Error> {
        let rows = self.link.rows(move || sqlx::query(LETTER).bind(id)).await?;
        rows.first().map(|row| whole(row).map_err(unread)).transpose()
    }

    async fn mark_replayed(&self, replayed: &Replayed) -> Result<bool, Error> {
        let replayed = replayed.clone();
        let rows = self.link.rows(move || {
            sqlx::query(REPLAYED)
                .bind(replayed.id)
                .bind(i32::try_from(replayed.number).unwrap_or(i32::MAX))
                .bind(replayed.msg_id.clone())
                .bind(replayed.job_id.clone())
        });
        Ok(!rows.await?.is_empty())
    }

    async fn discard(&self, ids: &[i64]) -> Result<u64, Error> {
        let ids = ids.to_vec();
        let rows = self.link.rows(move || sqlx::query(DISCARD).bind(ids.clone())).await?;
        Ok(u64::try_from(rows.len()).expect("a count fits 64 bits"))
    }
}

fn unread(error: sqlx::Error) -> Error {
    Error::Corrupt { thread_id: String::new(), what: "dead letter", reason: error.to_string() }
}

fn listed(row: &PgRow) -> Result<Letter, sqlx::Error> {
    let time = |micros: i64| {
        let micros = u64::try_from(micros).unwrap_or_default();
        UnixNanos(u64::try_from(Duration::from_micros(micros).as_nanos()).unwrap_or(u64::MAX))
    };
    let job_id: Option<&str> = row.try_get("job_id")?;
    let thread_id: Option<&str> = row.try_get("thread_id")?;
    let deliveries: Option<i64> = row.try_get("deliveries")?;
    let replays: i32 = row.try_get("replays")?;
    Ok(Letter {
        id: row.try_get("id")?,
        kept_at: time(row.try_get("kept")?),
        reason: row.try_get("reason")?,
        error: row.try_get::<Option<String>, _>("error")?.unwrap_or_default(),
        // Whoever wrote it had parsed them.
        job_id: job_id.and_then(|id| JobId::parse(id).ok()),
        thread_id: thread_id.and_then(|id| ThreadId::parse(id).ok()),
        deliveries: deliveries.and_then(|count| u64::try_from(count).ok()).unwrap_or_default(),
        replays: u32::try_from(replays).unwrap_or_default(),
        replayed_at: row.try_get::<Option<i64>, _>("replayed")?.map(time),
        replay_job_id: row.try_get("replay_job_id")?,
        discarded_at: row.try_get::<Option<i64>, _>("discarded")?.map(time),
    })
}

fn whole(row: &PgRow) -> Result<WholeLetter, sqlx::Error> {
    let headers: Option<sqlx::types::Json<Vec<[String; 2]>>> = row.try_get("headers")?;
    let seq: i64 = row.try_get("stream_seq")?;
    let headers = headers.map(|headers| headers.0).unwrap_or_default().into_iter();
    Ok(WholeLetter {
        letter: listed(row)?,
        stream: row.try_get("stream")?,
        stream_seq: u64::try_from(seq).unwrap_or_default(),
        subject: row.try_get::<Option<String>, _>("subject")?.unwrap_or_default(),
        headers: headers.map(|[name, value]| (name, value)).collect(),
        payload: Bytes::from(row.try_get::<Option<Vec<u8>>, _>("payload")?.unwrap_or_default()),
        detail: row.try_get::<Option<Json>, _>("detail")?.unwrap_or_default(),
    })
}

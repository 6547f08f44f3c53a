//! Dead letters.

use async_trait::async_trait;
use serde_json::{Value as Json, json};
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{
    SqliteStore,
    claims::Claimant,
    failure::Failure,
    inspect,
    rows::{self, stored_seq, stored_time, text, time},
};
use crate::{
    ids::{JobId, ThreadId},
    store::{DeadLetter, Error, Letter, LetterFilter, Letters, Replayed, WholeLetter},
};

const BURY: &str = "INSERT INTO executor_dead_letter (stream, stream_seq, subject, headers, payload, job_id, \
        thread_id, reason, error, detail, deliveries, created_at) \
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING";

/// Columns of a listed letter.
macro_rules! listed {
    ($rest:literal) => {
        concat!(
            "SELECT id, created_at, reason, error, job_id, thread_id, deliveries, replays, replayed_at, \
             replay_job_id, discarded_at",
            $rest
        )
    };
}

const LETTERS: &str = listed!(
    " FROM executor_dead_letter WHERE (?1 IS NULL OR reason = ?1) AND (?2 IS NULL OR job_id = ?2) \
        AND (?3 IS NULL OR thread_id = ?3) AND (?4 IS NULL OR created_at >= ?4) \
        AND (?5 IS NULL OR created_at <= ?5) AND (?6 IS NULL OR id < ?6) \
        AND (?7 OR (replayed_at IS NULL AND discarded_at IS NULL)) ORDER BY id DESC LIMIT ?8"
);

const LETTER: &str =
    listed!(", stream, stream_seq, subject, headers, payload, detail FROM executor_dead_letter WHERE id = ?");

const REPLAYED: &str = "UPDATE executor_dead_letter SET replays = ?2, replayed_at = ?3, replay_msg_id = ?4, \
    replay_job_id = ?5 WHERE id = ?1 AND replays = ?2 - 1";

/// Open letters of the same job are further messages of it: one replay is enough for all.
const OTHERS: &str = "UPDATE executor_dead_letter SET replayed_at = ?2, replay_msg_id = ?3, replay_job_id = ?4 \
    WHERE id <> ?1 AND job_id = (SELECT job_id FROM executor_dead_letter WHERE id = ?1) \
      AND replayed_at IS NULL AND discarded_at IS NULL";

const DISCARD: &str = "UPDATE executor_dead_letter SET discarded_at = ?2 \
    WHERE id = ?1 AND replayed_at IS NULL AND discarded_at IS NULL";

#[async_trait]
impl Letters for SqliteStore {
    async fn bury(&self, letter: &DeadLetter) -> Result<bool, Error> {
        let (letter, by) = (letter.clone(), self.claimant());
        self.link.write(move |db| Box::pin(async move { bury(db, &letter, &by).await })).await
    }

    async fn letters(&self, filter: &LetterFilter, limit: u32) -> Result<Vec<Letter>, Error> {
        let (filter, by) = (filter.clone(), self.claimant());
        self.link.read(move |db| Box::pin(async move { letters(db, &filter, limit, &by).await })).await
    }

    async fn letter(&self, id: i64) -> Result<Option<WholeLetter>, Error> {
        self.link.read(move |db| Box::pin(async move { letter(db, id).await })).await
    }

    async fn mark_replayed(&self, replayed: &Replayed) -> Result<bool, Error> {
        let (replayed, by) = (replayed.clone(), self.claimant());
        self.link.write(move |db| Box::pin(async move { mark_replayed(db, &replayed, &by).await })).await
    }

    async fn discard(&self, ids: &[i64]) -> Result<u64, Error> {
        let (ids, by) = (ids.to_vec(), self.claimant());
        self.link.write(move |db| Box::pin(async move { discard(db, &ids, &by).await })).await
    }
}

async fn bury(db: &mut SqliteConnection, letter: &DeadLetter, by: &Claimant) -> Result<bool, Failure> {
    let mut detail = json!({ "error": letter.error });
    // What is known of the job goes with it: its row does not live as long.
    if let Some(job_id) = &letter.job_id
        && let Some(job) = rows::job(db, job_id).await?
    {
        let last = inspect::trail(db, &job.thread_id, job_id).await?.last;
        detail["job"] = json!({
            "state": job.state, "attempts": job.attempt, "crashes": job.charged.len(), "error": job.error,
            "checkpoint_id": last,
        });
    }
    let buried = sqlx::query(BURY)
        .bind(&letter.stream)
        .bind(stored_seq(letter.stream_seq)?)
        .bind(&letter.subject)
        .bind(text(&letter.headers))
        .bind(&*letter.payload)
        .bind(letter.job_id.as_ref().map(JobId::as_str))
        .bind(letter.thread_id.as_ref().map(ThreadId::as_str))
        .bind(letter.reason)
        .bind(&letter.error)
        .bind(detail.to_string())
        .bind(i64::try_from(letter.deliveries).unwrap_or(i64::MAX))
        .bind(stored_time(by.now))
        .execute(db)
        .await?;
    Ok(buried.rows_affected() > 0)
}

async fn letters(
    db: &mut SqliteConnection,
    filter: &LetterFilter,
    limit: u32,
    by: &Claimant,
) -> Result<Vec<Letter>, Failure> {
    let rows = sqlx::query(LETTERS)
        .bind(&filter.reason)
        .bind(filter.job_id.as_ref().map(JobId::as_str))
        .bind(filter.thread_id.as_ref().map(ThreadId::as_str))
        .bind(filter.newer_than.map(|age| by.before(age)))
        .bind(filter.older_than.map(|age| by.before(age)))
        .bind(filter.below)
        .bind(filter.dealt_with)
        .bind(limit)
        .fetch_all(db)
        .await?;
    rows.iter().map(listed).collect()
}

async fn letter(db: &mut SqliteConnection, id: i64) -> Result<Option<WholeLetter>, Failure> {
    let row = sqlx::query(LETTER).bind(id).fetch_optional(db).await?;
    row.as_ref().map(whole).transpose()
}

async fn mark_replayed(
    db: &mut SqliteConnection,
    replayed: &Replayed,
    by: &Claimant,
) -> Result<bool, Failure> {
    let marked = sqlx::query(REPLAYED)
        .bind(replayed.id)
        .bind(replayed.number)
        .bind(stored_time(by.now))
        .bind(&replayed.msg_id)
        .bind(&replayed.job_id)
        .execute(&mut *db)
        .await?;
    if marked.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query(OTHERS)
        .bind(replayed.id)
        .bind(stored_time(by.now))
        .bind(&replayed.msg_id)
        .bind(&replayed.job_id)
        .execute(db)
        .await?;
    Ok(true)
}

async fn discard(db: &mut SqliteConnection, ids: &[i64], by: &Claimant) -> Result<u64, Failure> {
    let mut discarded = 0;
    for id in ids {
        let done = sqlx::query(DISCARD).bind(id).bind(stored_time(by.now)).execute(&mut *db).await?;
        discarded += done.rows_affected();
    }
    Ok(discarded)
}

fn listed(row: &SqliteRow) -> Result<Letter, Failure> {
    let when = |column: &str| Ok::<_, Failure>(row.try_get::<Option<i64>, _>(column)?.map(time));
    let job_id: Option<&str> = row.try_get("job_id")?;
    let thread_id: Option<&str> = row.try_get("thread_id")?;
    Ok(Letter {
        id: row.try_get("id")?,
        kept_at: time(row.try_get("created_at")?),
        reason: row.try_get("reason")?,
        error: row.try_get("error")?,
        // Whoever wrote it had parsed them.
        job_id: job_id.and_then(|id| JobId::parse(id).ok()),
        thread_id: thread_id.and_then(|id| ThreadId::parse(id).ok()),
        deliveries: u64::try_from(row.try_get::<i64, _>("deliveries")?).unwrap_or_default(),
        replays: row.try_get("replays")?,
        replayed_at: when("replayed_at")?,
        replay_job_id: row.try_get("replay_job_id")?,
        discarded_at: when("discarded_at")?,
    })
}

fn whole(row: &SqliteRow) -> Result<WholeLetter, Failure> {
    Ok(WholeLetter {
        letter: listed(row)?,
        stream: row.try_get("stream")?,
        stream_seq: u64::try_from(row.try_get::<i64, _>("stream_seq")?).unwrap_or_default(),
        subject: row.try_get("subject")?,
        headers: rows::json(row, "headers")?.unwrap_or_default(),
        payload: row.try_get::<Vec<u8>, _>("payload")?.into(),
        detail: rows::json::<Json>(row, "detail")?.unwrap_or_default(),
    })
}

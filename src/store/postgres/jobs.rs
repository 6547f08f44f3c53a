//! Jobs, claims, results and dead letters: each call is one statement.

use std::time::Duration;

use bytes::Bytes;
use sqlx::{Row, postgres::PgRow, types::Json};
use uuid::Uuid;

use super::{PostgresStore, statement::millis};
use crate::{
    ids::{CheckpointId, Epoch, JobId, ThreadId},
    store::{Claim, DeadLetter, Error, Finish, NextJob, Offer, StoredResult, Verdict},
};

const ACCEPT: &str = "SELECT verdict, job_id, epoch, attempt, head, request, time_ms, event_id, subject, event \
    FROM executor_accept($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, true)";

const FINISH: &str = "SELECT status, job_id, epoch, attempt, head, request, time_ms \
    FROM executor_finish($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";

const RELEASE: &str = "SELECT executor_release($1, $2, $3)";

const REFUND: &str = "SELECT executor_refund($1, $2)";

const RENEW: &str = "SELECT thread_id, epoch FROM executor_heartbeat($1, $2, $3, $4)";

const PUBLISHED: &str =
    "UPDATE executor_job SET published_at = clock_timestamp() WHERE job_id = $1 AND published_at IS NULL";

const RESULT: &str =
    "SELECT coalesce(result_body, result) FROM executor_job WHERE job_id = $1 AND finished_at IS NOT NULL";

const BURY: &str = "INSERT INTO executor_dead_letter \
    (stream, stream_seq, subject, headers, payload, job_id, thread_id, reason, detail, deliveries) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (stream, stream_seq) DO NOTHING";

/// Columns of a claim; the same names in both functions.
struct Columns<'a> {
    row: &'a PgRow,
    thread_id: &'a ThreadId,
}

impl Columns<'_> {
    fn get<'r, T>(&'r self, column: &'static str) -> Result<T, Error>
    where
        T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        self.row.try_get(column).map_err(|error| self.corrupt(error.to_string()))
    }

    fn corrupt(&self, reason: String) -> Error {
        Error::Corrupt { thread_id: self.thread_id.to_string(), what: "request", reason }
    }

    fn job_id(&self) -> Result<JobId, Error> {
        JobId::parse(self.get("job_id")?).map_err(|error| self.corrupt(format!("job id: {error}")))
    }

    fn claim(&self) -> Result<Claim, Error> {
        let head: Option<&str> = self.get("head")?;
        let head = head.map(CheckpointId::parse).transpose();
        let attempt: i32 = self.get("attempt")?;
        Ok(Claim {
            thread_id: self.thread_id.clone(),
            epoch: Epoch(self.get("epoch")?),
            job_id: self.job_id()?,
            attempt: u32::try_from(attempt).map_err(|error| self.corrupt(error.to_string()))?,
            head: head.map_err(|error| self.corrupt(format!("head: {error}")))?,
            request: Bytes::from(self.get::<Option<Vec<u8>>>("request")?.unwrap_or_default()),
            time_left: self.time()?,
        })
    }

    fn result(&self) -> Result<StoredResult, Error> {
        Ok(StoredResult {
            job_id: self.job_id()?,
            event_id: self.get::<Option<String>>("event_id")?.unwrap_or_default(),
            subject: self.get::<Option<String>>("subject")?.unwrap_or_default(),
            event: Bytes::from(self.get::<Option<Vec<u8>>>("event")?.unwrap_or_default()),
        })
    }

    fn time(&self) -> Result<Duration, Error> {
        let millis: Option<i64> = self.get("time_ms")?;
        Ok(Duration::from_millis(millis.and_then(|millis| u64::try_from(millis).ok()).unwrap_or(0)))
    }

    fn verdict(&self) -> Result<Verdict, Error> {
        Ok(match self.get("verdict")? {
            "run" => Verdict::Run(self.claim()?),
            "poison" => Verdict::Poison(self.claim()?),
            "parked" => Verdict::Parked { retry_in: self.time()? },
            "running_elsewhere" => Verdict::RunningElsewhere { retry_in: self.time()? },
            "done" => Verdict::Done,
            "done_unpublished" => Verdict::DoneUnpublished { result: self.result()?, ended: self.time()? },
            other => return Err(self.corrupt(format!("unknown verdict {other:?}"))),
        })
    }
}

impl PostgresStore {
    pub(super) async fn accept_job(&self, offer: &Offer) -> Result<Verdict, Error> {
        let (offered, owner) = (offer.clone(), self.owner.clone());
        let (lease, max_crashes) = (millis(self.lease), self.max_crashes);
        // One per call, not per try: the same call may repeat its claim, another call may not.
        let nonce = Uuid::new_v4().to_string();
        let seq = stream_seq(offer.stream_seq)?;
        let rows = self.link.rows(move || {
            sqlx::query(ACCEPT)
                .bind(offered.job_id.as_str())
                .bind(offered.thread_id.as_str())
                .bind(seq)
                .bind(offered.multitask_strategy)
                .bind(&*offered.request)
                .bind(millis(offered.timeout))
                .bind(&*owner)
                .bind(&*nonce)
                .bind(offered.running.map(|epoch| epoch.0))
                .bind(lease)
                .bind(max_crashes)
        });
        let rows = rows.await?;
        let row = rows.first().ok_or_else(|| Error::Refused("executor_accept returned no row".into()))?;
        Columns { row, thread_id: &offer.thread_id }.verdict()
    }

    pub(super) async fn finish_job(&self, finish: &Finish) -> Result<Option<Claim>, Error> {
        let (end, owner, lease) = (finish.clone(), self.owner.clone(), millis(self.lease));
        let rows = self.link.rows(move || {
            sqlx::query(FINISH)
                .bind(end.claim.thread_id.as_str())
                .bind(end.claim.epoch.0)
                .bind(&*owner)
                .bind(end.claim.job_id.as_str())
                .bind(end.state.as_str())
                .bind(end.result.event_id.as_str())
                .bind(end.result.subject.as_str())
                .bind(&*end.result.event)
                .bind(end.body.as_deref())
                .bind(end.error.as_ref().map(|error| Json(without_nul(error))))
                .bind(end.next == NextJob::Take)
                .bind(lease)
        });
        let rows = rows.await?;
        let row = rows.first().ok_or_else(|| Error::Refused("executor_finish returned no row".into()))?;
        let columns = Columns { row, thread_id: &finish.claim.thread_id };
        if columns.get::<&str>("status")? == "fenced" {
            return Err(fenced(&finish.claim));
        }
        let next: Option<&str> = columns.get("job_id")?;
        next.map(|_| columns.claim()).transpose()
    }

    pub(super) async fn release_thread(&self, claim: &Claim) -> Result<(), Error> {
        let (released, owner) = (claim.clone(), self.owner.clone());
        let rows = self.link.rows(move || {
            sqlx::query(RELEASE).bind(released.thread_id.as_str()).bind(released.epoch.0).bind(&*owner)
        });
        let ours = rows.await?.first().is_some_and(|row| row.try_get(0).unwrap_or(false));
        if ours { Ok(()) } else { Err(fenced(claim)) }
    }

    pub(super) async fn refund_epoch(&self, claim: &Claim) -> Result<(), Error> {
        let claim = claim.clone();
        let statement = move || sqlx::query(REFUND).bind(claim.job_id.as_str()).bind(claim.epoch.0);
        self.link.rows(statement).await.map(drop)
    }

    pub(super) async fn renew_leases(
        &self,
        claims: &[(ThreadId, Epoch)],
    ) -> Result<Vec<(ThreadId, Epoch)>, Error> {
        let (claims, owner, lease) = (claims.to_vec(), self.owner.clone(), millis(self.lease));
        let rows = self.link.rows(move || {
            let threads: Vec<&str> = claims.iter().map(|(thread, _)| thread.as_str()).collect();
            let epochs: Vec<i64> = claims.iter().map(|(_, epoch)| epoch.0).collect();
            sqlx::query(RENEW).bind(threads).bind(epochs).bind(&*owner).bind(lease)
        });
        let corrupt = |reason: String| Error::Corrupt { thread_id: String::new(), what: "request", reason };
        let renewed = |row: &PgRow| {
            let thread: &str = row.try_get(0).map_err(|error| corrupt(error.to_string()))?;
            let epoch: i64 = row.try_get(1).map_err(|error| corrupt(error.to_string()))?;
            Ok((ThreadId::parse(thread).map_err(|error| corrupt(error.to_string()))?, Epoch(epoch)))
        };
        rows.await?.iter().map(renewed).collect()
    }

    pub(super) async fn note_published(&self, job_id: &JobId) -> Result<(), Error> {
        let job_id = job_id.clone();
        self.link.rows(move || sqlx::query(PUBLISHED).bind(job_id.as_str())).await.map(drop)
    }

    pub(super) async fn full_result(&self, job_id: &JobId) -> Result<Option<Bytes>, Error> {
        let job_id = job_id.clone();
        let rows = self.link.rows(move || sqlx::query(RESULT).bind(job_id.as_str())).await?;
        let body = rows.first().map(|row| row.try_get::<Option<Vec<u8>>, _>(0)).transpose();
        let body = body.map_err(|error| Error::Refused(error.to_string()))?;
        Ok(body.flatten().map(Bytes::from))
    }

    pub(super) async fn keep_letter(&self, letter: &DeadLetter) -> Result<(), Error> {
        let seq = stream_seq(letter.stream_seq)?;
        let letter = letter.clone();
        let statement = move || {
            let headers: Vec<[String; 2]> =
                letter.headers.iter().map(|(name, value)| [plain(name), plain(value)]).collect();
            sqlx::query(BURY)
                .bind(plain(&letter.stream))
                .bind(seq)
                .bind(plain(&letter.subject))
                .bind(Json(headers))
                .bind(&*letter.payload)
                .bind(letter.job_id.as_ref().map(JobId::as_str))
                .bind(letter.thread_id.as_ref().map(ThreadId::as_str))
                .bind(letter.reason)
                .bind(Json(serde_json::json!({ "error": plain(&letter.error) })))
                .bind(i64::try_from(letter.deliveries).unwrap_or(i64::MAX))
        };
        self.link.rows(statement).await.map(drop)
    }
}

fn fenced(claim: &Claim) -> Error {
    metrics::counter!(crate::telemetry::metric::FENCED_WRITES).increment(1);
    Error::Fenced { thread_id: claim.thread_id.clone(), epoch: claim.epoch }
}

fn stream_seq(seq: u64) -> Result<i64, Error> {
    i64::try_from(seq).map_err(|_| Error::Refused("a stream sequence beyond 63 bits".into()))
}

/// Postgres has no text with the character U+0000; a dead letter may well contain one.
fn plain(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// The same for the texts of an error.
fn without_nul(json: &serde_json::Value) -> serde_json::Value {
    match json {
        serde_json::Value::String(text) => plain(text).into(),
        serde_json::Value::Array(items) => items.iter().map(without_nul).collect(),
        serde_json::Value::Object(map) => {
            map.iter().map(|(key, value)| (plain(key), without_nul(value))).collect()
        }
        serde_json::Value::Null | serde_json::Value::Bool(_) | serde_json::Value::Number(_) => json.clone(),
    }
}

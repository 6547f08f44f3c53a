//! Jobs, claims and results: each call is one statement, most of them for many jobs at once.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::{Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    PostgresStore,
    commit::{Entry, LONGEST_PAUSE},
    failure::Failure,
    gather::again,
    link::Link,
    statement::{millis, without_nul},
};
use crate::{
    ids::{CheckpointId, Epoch, JobId, ThreadId},
    store::{
        Cancel, CancelKind, Claim, Ending, Error, Finish, Jobs, Offer, Renewed, StoredResult, Verdict,
        langgraph::Rows,
    },
};

const ACCEPT: &str = "SELECT nr, verdict, job_id, epoch, attempt, head, request, time_ms, cancel, suspect, event_id, \
    subject, event FROM executor_accept($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ORDER BY nr";

/// What was too large to travel under locks.
const LARGE: &str = "SELECT job_id, request, result FROM executor_job WHERE job_id = ANY ($1)";

const END: &str = "SELECT executor_end($1, $2, $3, $4, $5, $6, $7)";

const RELEASE: &str = "SELECT executor_release($1, $2, $3)";

const REFUND: &str = "SELECT executor_refund($1, $2)";

const RENEW: &str = "SELECT thread_id, epoch, cancel FROM executor_heartbeat($1, $2, $3, $4)";

const PUBLISHED: &str = "SELECT executor_published($1)";

const RESULT: &str =
    "SELECT coalesce(result_body, result) FROM executor_job WHERE job_id = $1 AND finished_at IS NOT NULL";

/// Stands for the id of a checkpoint that cannot be read; no checkpoint has it.
const UNREADABLE: &str = "00000000-0000-0000-0000-000000000000";

#[async_trait]
impl Jobs for PostgresStore {
    async fn accept(&self, offer: &Offer) -> Result<Verdict, Error> {
        // One nonce per call, not per try: the same call may repeat its claim, another call may not.
        self.accepts.call((offer.clone(), Uuid::new_v4().to_string())).await
    }

    async fn finish(&self, finish: &Finish) -> Result<Option<Claim>, Error> {
        let rows = finish
            .last
            .as_ref()
            .map(|last| Rows::encode(last, self.max_state_bytes))
            .transpose()?
            .unwrap_or_default();
        let (entry, answered) = Entry::ending(finish, rows);
        let mut next = self.hand_in(entry, answered).await?;
        if let Some(claim) = &mut next {
            self.complete(claim).await?;
        }
        Ok(next)
    }

    async fn end(&self, ending: &Ending) -> Result<bool, Error> {
        let ending = ending.clone();
        let rows = self.link.rows(move || {
            sqlx::query(END)
                .bind(ending.result.job_id.to_string())
                .bind(ending.state.as_str())
                .bind(ending.result.event_id.clone())
                .bind(ending.result.subject.clone())
                .bind(ending.result.event.to_vec())
                .bind(ending.body.as_deref().map(<[u8]>::to_vec))
                .bind(ending.error.as_ref().map(|error| without_nul(error).to_string()))
        });
        Ok(rows.await?.first().is_some_and(|row| row.try_get(0).unwrap_or(false)))
    }

    async fn release(&self, claim: &Claim) -> Result<(), Error> {
        let (released, owner) = (claim.clone(), self.owner.clone());
        let rows = self.link.rows(move || {
            sqlx::query(RELEASE).bind(released.thread_id.as_str()).bind(released.epoch.0).bind(&*owner)
        });
        let ours = rows.await?.first().is_some_and(|row| row.try_get(0).unwrap_or(false));
        if ours { Ok(()) } else { Err(fenced(claim)) }
    }

    async fn refund(&self, claim: &Claim) -> Result<(), Error> {
        let claim = claim.clone();
        let statement = move || sqlx::query(REFUND).bind(claim.job_id.as_str()).bind(claim.epoch.0);
        self.link.rows(statement).await.map(drop)
    }

    async fn renew(&self, claims: &[(ThreadId, Epoch)]) -> Result<Vec<Renewed>, Error> {
        if claims.is_empty() {
            return Ok(Vec::new());
        }
        let (claims, owner, lease) = (claims.to_vec(), self.owner.clone(), millis(self.claimant.lease));
        let rows = self.link.rows(move || {
            let threads: Vec<&str> = claims.iter().map(|(thread, _)| thread.as_str()).collect();
            let epochs: Vec<i64> = claims.iter().map(|(_, epoch)| epoch.0).collect();
            sqlx::query(RENEW).bind(threads).bind(epochs).bind(&*owner).bind(lease)
        });
        let corrupt = |reason: String| Error::Corrupt { thread_id: String::new(), what: "request", reason };
        let renewed = |row: &PgRow| {
            let unread = |error: sqlx::Error| corrupt(error.to_string());
            let thread_id = ThreadId::parse(row.try_get(0).map_err(unread)?);
            Ok(Renewed {
                thread_id: thread_id.map_err(|error| corrupt(error.to_string()))?,
                epoch: Epoch(row.try_get(1).map_err(unread)?),
                cancel: cancel(row.try_get(2).map_err(unread)?),
            })
        };
        rows.await?.iter().map(renewed).collect()
    }

    async fn mark_published(&self, job_id: &JobId) -> Result<(), Error> {
        self.marks.call(job_id.clone()).await
    }

    async fn result(&self, job_id: &JobId) -> Result<Option<Bytes>, Error> {
        let job_id = job_id.clone();
        let rows = self.link.rows(move || sqlx::query(RESULT).bind(job_id.as_str())).await?;
        let body = rows.first().map(|row| row.try_get::<Option<Vec<u8>>, _>(0)).transpose();
        let body = body.map_err(|error| Error::Refused(error.to_string()))?;
        Ok(body.flatten().map(Bytes::from))
    }

    async fn ping(&self) -> Result<(), Error> {
        self.link.ping().await
    }
}

impl PostgresStore {
    /// Gives the claim that came with an end its request, whenever the database can be asked: the end is durable, and
    /// an error would look as if it were not.
    async fn complete(&self, claim: &mut Claim) -> Result<(), Error> {
        while let Err(error) = complete(&self.link, claim).await {
            tracing::warn!(thread_id = %claim.thread_id, %error, "the next job's request is asked for again");
            let pause = tokio::time::sleep(LONGEST_PAUSE);
            if !matches!(error, Error::Unavailable(_))
                || self.closing.run_until_cancelled(pause).await.is_none()
            {
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Who claims, and on what terms.
#[derive(Clone, Debug)]
pub(super) struct Claimant {
    pub(super) owner: String,
    pub(super) lease: Duration,
    pub(super) max_crashes: i32,
}

/// Columns of a claim; the same names in every function that makes one.
pub(super) struct Columns<'a> {
    pub(super) row: &'a PgRow,
    pub(super) thread_id: &'a ThreadId,
}

impl Columns<'_> {
    pub(super) fn get<'r, T>(&'r self, column: &'static str) -> Result<T, Error>
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

    pub(super) fn claim(&self) -> Result<Claim, Error> {
        let attempt: i32 = self.get("attempt")?;
        Ok(Claim {
            thread_id: self.thread_id.clone(),
            epoch: Epoch(self.get("epoch")?),
            job_id: self.job_id()?,
            attempt: u32::try_from(attempt).map_err(|error| self.corrupt(error.to_string()))?,
            head: self.get::<Option<&str>>("head")?.map(|text| self.head(text)),
            request: Bytes::from(self.get::<Option<Vec<u8>>>("request")?.unwrap_or_default()),
            time_left: self.time()?,
            cancel: self.cancel()?,
            suspect: self.get("suspect")?,
        })
    }

    /// The head of the thread. The claim stands whatever a foreign writer called its checkpoint: the run loads the
    /// newest checkpoint, cannot read it either, and ends its job with that error.
    fn head(&self, text: &str) -> CheckpointId {
        CheckpointId::parse(text).unwrap_or_else(|error| {
            tracing::warn!(thread_id = %self.thread_id, %error, "the thread's newest checkpoint has a foreign id");
            CheckpointId::parse(UNREADABLE).expect("a UUID")
        })
    }

    fn cancel(&self) -> Result<Option<Cancel>, Error> {
        Ok(cancel(self.get("cancel")?))
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

    pub(super) fn verdict(&self) -> Result<Verdict, Error> {
        Ok(match self.get("verdict")? {
            "run" => Verdict::Run(self.claim()?),
            "poison" => Verdict::Poison(self.claim()?),
            "need_lane" => Verdict::NeedLane,
            "rejected" => {
                let cancel =
                    self.cancel()?.ok_or_else(|| self.corrupt("a rejection without a reason".into()))?;
                Verdict::Rejected(cancel)
            }
            "parked" => Verdict::Parked { retry_in: self.time()? },
            "running_elsewhere" => Verdict::RunningElsewhere { retry_in: self.time()? },
            "done" => Verdict::Done,
            "done_unpublished" => Verdict::DoneUnpublished { result: self.result()?, ended: self.time()? },
            other => return Err(self.corrupt(format!("unknown verdict {other:?}"))),
        })
    }
}

/// A wish to cancel as it is stored. One that cannot be read is a wish all the same, so that its job ends and the
/// rows beside it are read.
pub(super) fn cancel(stored: Option<&str>) -> Option<Cancel> {
    stored.map(|text| {
        serde_json::from_str(text).unwrap_or_else(|error| {
            tracing::warn!(%error, "a stored wish to cancel cannot be read");
            Cancel { kind: CancelKind::Cancel, by: "unknown".into(), reason: None }
        })
    })
}

/// Offers many jobs, each with the nonce of its call, in one statement. A row that cannot be read is an error for
/// its own caller only: the others' claims are granted.
pub(super) async fn accept(
    link: &Link,
    claimant: &Claimant,
    offers: Vec<(Offer, String)>,
) -> Result<Vec<Result<Verdict, Error>>, Failure> {
    let seqs = offers.iter().map(|(offer, _)| offer.record.stream_seq.map(stream_seq).transpose());
    let seqs = seqs.collect::<Result<Vec<_>, _>>().map_err(|error| Failure::Refused(error.to_string()))?;
    let (offers, by) = (Arc::new(offers), claimant.clone());
    let offered = offers.clone();
    let rows = link.rows_or_failure(move || {
        let all = || offered.iter().map(|(offer, _)| offer);
        let records = || all().map(|offer| &offer.record);
        sqlx::query(ACCEPT)
            .bind(records().map(|record| record.job_id.as_str()).collect::<Vec<_>>())
            .bind(records().map(|record| record.thread_id.as_str()).collect::<Vec<_>>())
            .bind(seqs.clone())
            .bind(records().map(|record| record.multitask_strategy.as_str()).collect::<Vec<_>>())
            .bind(records().map(|record| &*record.request).collect::<Vec<_>>())
            .bind(records().map(|record| millis(record.timeout)).collect::<Vec<_>>())
            .bind(offered.iter().map(|(_, nonce)| nonce.as_str()).collect::<Vec<_>>())
            .bind(all().map(|offer| offer.running.map(|epoch| epoch.0)).collect::<Vec<_>>())
            .bind(all().map(|offer| offer.lane).collect::<Vec<_>>())
            .bind(by.owner.as_str())
            .bind(millis(by.lease))
            .bind(by.max_crashes)
    });
    let rows = rows.await?;
    if rows.len() != offers.len() {
        return Err(Failure::Refused("executor_accept did not answer every offer".into()));
    }
    let large = Large::read(link, rows.iter().filter_map(left_out).map(str::to_owned).collect()).await;
    Ok(rows.iter().zip(&*offers).map(|(row, (offer, _))| answer(row, offer, &large)).collect())
}

/// The job of a row whose request or event was too large to come with it.
fn left_out(row: &PgRow) -> Option<&str> {
    let column = match row.try_get("verdict").ok()? {
        "run" | "poison" => "request",
        "done_unpublished" => "event",
        _ => return None,
    };
    let missing = row.try_get::<Option<&[u8]>, _>(column).ok()?.is_none();
    missing.then(|| row.try_get("job_id").ok()).flatten()
}

/// The verdict on `offer`. The request of its own job does not travel back.
fn answer(row: &PgRow, offer: &Offer, large: &Result<Large, Error>) -> Result<Verdict, Error> {
    let large = || large.as_ref().map_err(again);
    let mut verdict = Columns { row, thread_id: &offer.record.thread_id }.verdict()?;
    match &mut verdict {
        Verdict::Run(claim) | Verdict::Poison(claim) if left_out(row).is_some() => {
            large()?.complete(claim)?
        }
        Verdict::Run(claim) | Verdict::Poison(claim) if claim.request.is_empty() => {
            claim.request = offer.record.request.clone();
        }
        Verdict::DoneUnpublished { result, .. } if left_out(row).is_some() => {
            result.event = large()?.find(&result.job_id, &offer.record.thread_id)?.1.clone();
        }
        Verdict::Run(_)
        | Verdict::Poison(_)
        | Verdict::NeedLane
        | Verdict::Rejected(_)
        | Verdict::Parked { .. }
        | Verdict::RunningElsewhere { .. }
        | Verdict::Done
        | Verdict::DoneUnpublished { .. } => {}
    }
    Ok(verdict)
}

/// Requests and events that were too large to travel under locks, by job.
#[derive(Default)]
struct Large(HashMap<String, (Bytes, Bytes)>);

impl Large {
    /// Reads those of `jobs`, without a lock.
    async fn read(link: &Link, jobs: Vec<String>) -> Result<Self, Error> {
        if jobs.is_empty() {
            return Ok(Self::default());
        }
        let rows = link.rows(move || sqlx::query(LARGE).bind(jobs.clone())).await?;
        let bytes = |row: &PgRow, column| {
            row.try_get::<Option<Vec<u8>>, _>(column).map(|bytes| Bytes::from(bytes.unwrap_or_default()))
        };
        let job = |row: &PgRow| Ok((row.try_get(0)?, (bytes(row, 1)?, bytes(row, 2)?)));
        let all = rows.iter().map(job).collect::<Result<_, sqlx::Error>>();
        all.map(Self).map_err(|error| Error::Refused(error.to_string()))
    }

    /// Gives a claim its request.
    fn complete(&self, claim: &mut Claim) -> Result<(), Error> {
        claim.request = self.find(&claim.job_id, &claim.thread_id)?.0.clone();
        Ok(())
    }

    fn find(&self, job_id: &JobId, thread_id: &ThreadId) -> Result<&(Bytes, Bytes), Error> {
        self.0.get(job_id.as_str()).ok_or_else(|| Error::Corrupt {
            thread_id: thread_id.to_string(),
            what: "request",
            reason: "its job is gone".into(),
        })
    }
}

/// Gives a claim its request, when that was too large to come with it.
pub(super) async fn complete(link: &Link, claim: &mut Claim) -> Result<(), Error> {
    if claim.request.is_empty() {
        Large::read(link, vec![claim.job_id.to_string()]).await?.complete(claim)?;
    }
    Ok(())
}

/// Marks results as published in one statement.
pub(super) async fn mark_published(
    link: &Link,
    job_ids: Vec<JobId>,
) -> Result<Vec<Result<(), Error>>, Failure> {
    let count = job_ids.len();
    let ids: Vec<String> = job_ids.iter().map(ToString::to_string).collect();
    link.rows_or_failure(move || sqlx::query(PUBLISHED).bind(ids.clone())).await?;
    Ok((0..count).map(|_| Ok(())).collect())
}

fn fenced(claim: &Claim) -> Error {
    metrics::counter!(crate::telemetry::metric::FENCED_WRITES).increment(1);
    Error::Fenced { thread_id: claim.thread_id.clone(), epoch: claim.epoch }
}

/// A place in a stream as the tables keep it.
pub(super) fn stream_seq(seq: u64) -> Result<i64, Error> {
    i64::try_from(seq).map_err(|_| Error::Refused("a stream sequence beyond 63 bits".into()))
}

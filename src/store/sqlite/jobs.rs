//! Jobs: offered, ended, published. The rules of `migrations/` of the Postgres store.

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::SqliteConnection;

use super::{
    SqliteStore, checkpoints,
    claims::{self, Claimant, chained, claim_next, fenced, free, next_job, start},
    failure::Failure,
    rows::{self, Job, Thread, stored_seq, stored_time, text},
};
use crate::{
    ids::{Epoch, JobId, ThreadId},
    job::MultitaskStrategy,
    store::{
        Cancel, CancelKind, Claim, Ending, Error, Finish, Jobs, NextJob, Offer, Record, Renewed,
        StoredResult, Verdict, langgraph::Rows,
    },
};

/// Gives one that was recorded before it was published its place.
const RECORD: &str = "INSERT INTO executor_job \
        (job_id, thread_id, stream_seq, state, policy, request, accepted_at, deadline_at, cancel) \
    VALUES (?1, ?2, ?3, 'queued', ?4, ?5, ?6, ?7, (SELECT cancel FROM executor_cancel WHERE job_id = ?1)) \
    ON CONFLICT (job_id) DO UPDATE SET stream_seq = coalesce(executor_job.stream_seq, excluded.stream_seq)";

/// Open jobs of the same thread that run, or stand before the job in the stream.
const BEFORE: &str = rows::select_job!(
    "WHERE thread_id = ?1 AND job_id <> ?2 AND finished_at IS NULL AND (state = 'running' OR stream_seq < ?3) \
     ORDER BY state = 'running' DESC, stream_seq"
);

const END: &str = "UPDATE executor_job SET state = ?2, finished_at = ?3, finished_epoch = ?4, result_event_id = ?5, \
    result_subject = ?6, result = ?7, result_body = ?8, error = ?9 WHERE job_id = ?1";

const PUBLISHED: &str = "UPDATE executor_job SET published_at = ?2 WHERE job_id = ?1 AND published_at IS NULL \
    AND finished_at IS NOT NULL";

const RESULT: &str =
    "SELECT coalesce(result_body, result) FROM executor_job WHERE job_id = ? AND finished_at IS NOT NULL";

#[async_trait]
impl Jobs for SqliteStore {
    async fn accept(&self, offer: &Offer) -> Result<Verdict, Error> {
        let (offer, by) = (offer.clone(), self.claimant());
        self.link.write(move |db| Box::pin(async move { accept(db, &offer, &by).await })).await
    }

    async fn finish(&self, finish: &Finish) -> Result<Option<Claim>, Error> {
        let last = finish.last.as_ref().map(|last| Rows::encode(last, self.config.max_state_bytes));
        let last = last.transpose()?.unwrap_or_default();
        let (finish, clock, by) = (finish.clone(), self.clock.clone(), self.claimant());
        self.link
            .insist(move |db| {
                Box::pin(async move {
                    let by = Claimant { now: clock.now(), ..by };
                    self::finish(db, &finish, &last, &by).await
                })
            })
            .await
    }

    async fn end(&self, ending: &Ending) -> Result<bool, Error> {
        let (ending, by) = (ending.clone(), self.claimant());
        self.link.write(move |db| Box::pin(async move { end(db, &ending, &by).await })).await
    }

    async fn release(&self, claim: &Claim) -> Result<(), Error> {
        let (claim, by) = (claim.clone(), self.claimant());
        self.link.write(move |db| Box::pin(async move { claims::release(db, &claim, &by).await })).await
    }

    async fn refund(&self, claim: &Claim) -> Result<(), Error> {
        let claim = claim.clone();
        self.link.write(move |db| Box::pin(async move { claims::refund(db, &claim).await })).await
    }

    async fn renew(&self, claims: &[(ThreadId, Epoch)]) -> Result<Vec<Renewed>, Error> {
        if claims.is_empty() {
            return Ok(Vec::new());
        }
        let (claims, by) = (claims.to_vec(), self.claimant());
        self.link.write(move |db| Box::pin(async move { claims::renew(db, &claims, &by).await })).await
    }

    async fn mark_published(&self, job_id: &JobId) -> Result<(), Error> {
        let (job_id, by) = (job_id.clone(), self.claimant());
        self.link.write(move |db| Box::pin(async move { mark_published(db, &job_id, &by).await })).await
    }

    async fn result(&self, job_id: &JobId) -> Result<Option<Bytes>, Error> {
        let job_id = job_id.clone();
        self.link.read(move |db| Box::pin(async move { result(db, &job_id).await })).await
    }

    async fn ping(&self) -> Result<(), Error> {
        self.link
            .read(|db| {
                Box::pin(async move {
                    sqlx::query("SELECT 1").execute(db).await?;
                    Ok(())
                })
            })
            .await
    }
}

/// Records a job that is new, or gives one that was recorded before its place in the stream.
pub(super) async fn met(db: &mut SqliteConnection, record: &Record, by: &Claimant) -> Result<(), Failure> {
    rows::thread(db, &record.thread_id).await?;
    sqlx::query(RECORD)
        .bind(record.job_id.as_str())
        .bind(record.thread_id.as_str())
        .bind(record.stream_seq.map(stored_seq).transpose()?)
        .bind(record.multitask_strategy.as_str())
        .bind(&*record.request)
        .bind(stored_time(by.now))
        .bind(by.after(record.timeout))
        .execute(db)
        .await?;
    Ok(())
}

async fn accept(db: &mut SqliteConnection, offer: &Offer, by: &Claimant) -> Result<Verdict, Failure> {
    let Offer { record, running, lane } = offer;
    let Record { job_id, thread_id, .. } = record;
    met(db, record, by).await?;
    let mut job = open_or_ended(db, job_id).await?;
    if let Some(finished) = job.finished {
        if job.published {
            return Ok(Verdict::Done);
        }
        let result = rows::result(db, job_id).await?;
        return Ok(Verdict::DoneUnpublished { result, ended: by.now.since(finished) });
    }
    if !job.decided && !job.is_running() && job.cancel.is_none() {
        decide_for(db, &job).await?;
        job = open_or_ended(db, job_id).await?;
    }
    if let Some(cancel) = job.cancel.as_ref().filter(|_| job.is_turned_away() && !job.is_running()) {
        return Ok(Verdict::Rejected(cancel.clone()));
    }
    let thread = rows::thread(db, thread_id).await?;
    // The lease stands, or lapsed while its owner could not reach the database, and the owner asks.
    let is_ours = by.is(thread.owner.as_ref()) && *running == Some(thread.epoch);
    if thread.owner.is_some() && (thread.lease_until > by.now || is_ours) {
        let retry_in = thread.lease_until.since(by.now);
        let is_itself = thread.job_id.as_ref() == Some(job_id);
        return Ok(match is_itself {
            true => Verdict::RunningElsewhere { retry_in },
            false => Verdict::Parked { retry_in },
        });
    }
    // Without one, the job was first offered under another thread and is still open there.
    let elsewhere = Verdict::RunningElsewhere { retry_in: by.lease };
    Ok(claim_next(db, (thread_id, thread), *lane, by).await?.unwrap_or(elsewhere))
}

async fn open_or_ended(db: &mut SqliteConnection, job_id: &JobId) -> Result<Job, Failure> {
    let job = rows::job(db, job_id).await?;
    job.ok_or_else(|| Error::Refused(format!("job {job_id} is gone")).into())
}

/// What a new job wants of those before it, by its policy. One without a place comes later.
async fn decide_for(db: &mut SqliteConnection, job: &Job) -> Result<(), Failure> {
    sqlx::query("UPDATE executor_job SET decided = 1 WHERE job_id = ?")
        .bind(job.job_id.as_str())
        .execute(&mut *db)
        .await?;
    let kind = match job.policy {
        MultitaskStrategy::Enqueue => return Ok(()),
        MultitaskStrategy::Reject => CancelKind::Reject,
        MultitaskStrategy::Interrupt => CancelKind::Interrupt,
        MultitaskStrategy::Rollback => CancelKind::Rollback,
    };
    let seq = job.stream_seq.map(stored_seq).transpose()?;
    let found = sqlx::query(BEFORE).bind(job.thread_id.as_str()).bind(job.job_id.as_str()).bind(seq);
    let found = found.fetch_all(&mut *db).await?;
    let before = found.iter().map(rows::read_job).collect::<Result<Vec<_>, _>>()?;
    if kind == CancelKind::Reject {
        // One that is turned away holds nobody up.
        let Some(first) = before.iter().find(|other| !other.is_turned_away()) else { return Ok(()) };
        let cancel = Cancel { kind, by: first.job_id.to_string(), reason: None };
        return cancel_job(db, &job.job_id, &cancel).await;
    }
    let cancel = Cancel { kind, by: job.job_id.to_string(), reason: None };
    for other in before {
        cancel_job(db, &other.job_id, &cancel).await?;
    }
    Ok(())
}

/// Notes that a job is to end, unless somebody has said so before.
pub(super) async fn cancel_job(
    db: &mut SqliteConnection,
    job_id: &JobId,
    cancel: &Cancel,
) -> Result<(), Failure> {
    sqlx::query("UPDATE executor_job SET cancel = ?2 WHERE job_id = ?1 AND cancel IS NULL")
        .bind(job_id.as_str())
        .bind(text(cancel))
        .execute(db)
        .await?;
    Ok(())
}

async fn finish(
    db: &mut SqliteConnection,
    finish: &Finish,
    last: &Rows,
    by: &Claimant,
) -> Result<Option<Claim>, Failure> {
    let Claim { thread_id, epoch, job_id, .. } = &finish.claim;
    let thread = rows::thread(db, thread_id).await?;
    let job = rows::job(db, job_id).await?.ok_or_else(|| fenced(thread_id, *epoch))?;
    if job.finished_epoch == Some(*epoch) {
        return chained(db, (thread_id, &thread), *epoch, by).await;
    }
    let holds = thread.epoch == *epoch && by.is(thread.owner.as_ref());
    if !holds || thread.job_id.as_ref() != Some(job_id) {
        return Err(fenced(thread_id, *epoch));
    }
    if let Some(commit) = &finish.last {
        checkpoints::commit(db, commit, last, by).await?;
    }
    sqlx::query(END)
        .bind(job_id.as_str())
        .bind(finish.state.as_str())
        .bind(stored_time(by.now))
        .bind(epoch.0)
        .bind(&finish.result.event_id)
        .bind(&finish.result.subject)
        .bind(&*finish.result.event)
        .bind(finish.body.as_deref())
        .bind(finish.error.as_ref().map(ToString::to_string))
        .execute(&mut *db)
        .await?;
    if finish.undo {
        checkpoints::undo(db, thread_id, job_id).await?;
    }
    let next = match finish.next {
        NextJob::Take => next_job(db, thread_id, by).await?,
        NextJob::Leave => None,
    };
    let Some(next) = next else {
        free(db, thread_id).await?;
        sqlx::query("UPDATE executor_thread SET job_id = NULL WHERE thread_id = ?")
            .bind(thread_id.as_str())
            .execute(db)
            .await?;
        return Ok(None);
    };
    let thread = Thread { chained_from: Some(*epoch), ..rows::thread(db, thread_id).await? };
    start(db, (thread_id, thread), next, by).await.map(Some)
}

async fn end(db: &mut SqliteConnection, ending: &Ending, by: &Claimant) -> Result<bool, Failure> {
    let job_id = &ending.result.job_id;
    let job = rows::job(db, job_id).await?;
    if job.is_none_or(|job| job.state != "queued") {
        return Ok(false);
    }
    sqlx::query(END)
        .bind(job_id.as_str())
        .bind(ending.state.as_str())
        .bind(stored_time(by.now))
        .bind(None::<i64>)
        .bind(&ending.result.event_id)
        .bind(&ending.result.subject)
        .bind(&*ending.result.event)
        .bind(ending.body.as_deref())
        .bind(ending.error.as_ref().map(ToString::to_string))
        .execute(db)
        .await?;
    Ok(true)
}

async fn mark_published(db: &mut SqliteConnection, job_id: &JobId, by: &Claimant) -> Result<(), Failure> {
    sqlx::query(PUBLISHED).bind(job_id.as_str()).bind(stored_time(by.now)).execute(db).await?;
    Ok(())
}

async fn result(db: &mut SqliteConnection, job_id: &JobId) -> Result<Option<Bytes>, Failure> {
    let event: Option<Option<Vec<u8>>> =
        sqlx::query_scalar(RESULT).bind(job_id.as_str()).fetch_optional(db).await?;
    Ok(event.flatten().map(Bytes::from))
}

/// Results of jobs that are known to have ended, in the order of `job_ids`.
pub(super) async fn results(
    db: &mut SqliteConnection,
    job_ids: Vec<JobId>,
) -> Result<Vec<StoredResult>, Failure> {
    let mut found = Vec::with_capacity(job_ids.len());
    for job_id in job_ids {
        found.push(rows::result(db, &job_id).await?);
    }
    Ok(found)
}

//! Jobs: offered, claimed, ended. The rules of `migrations/` of the Postgres store.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sqlx::SqliteConnection;

use super::{
    checkpoints,
    failure::Failure,
    rows::{self, Job, Thread, stored_seq, stored_time},
};
use crate::{
    ids::{Epoch, JobId, ThreadId, UnixNanos},
    store::{
        Cancel, CancelKind, Claim, Ending, Error, Finish, NextJob, Offer, Record, Renewed, StoredResult,
        Verdict, langgraph::Rows,
    },
};

/// Charges from which on a job is a suspect.
pub(super) const SUSPECT: usize = 2;

/// How long a message that is held or under way may take to make itself heard.
pub(super) const UNHEARD: Duration = Duration::from_secs(10);

/// Gives one that was recorded before it was published its place.
const RECORD: &str = "INSERT INTO executor_job \
        (job_id, thread_id, stream_seq, state, policy, request, accepted_at, deadline_at, cancel) \
    VALUES (?1, ?2, ?3, 'queued', ?4, ?5, ?6, ?7, (SELECT cancel FROM executor_cancel WHERE job_id = ?1)) \
    ON CONFLICT (job_id) DO UPDATE SET stream_seq = coalesce(executor_job.stream_seq, excluded.stream_seq)";

/// A started job first, then the order of the stream; those without a place in it last. A queued one without a place
/// waits a moment: when publishing fails, it is taken back.
const NEXT: &str = rows::select_job!(
    "WHERE thread_id = ?1 AND finished_at IS NULL \
       AND (state = 'running' OR stream_seq IS NOT NULL OR accepted_at < ?2) \
     ORDER BY state = 'running' DESC, stream_seq IS NULL, stream_seq, accepted_at, job_id LIMIT 1"
);

/// Open jobs of the same thread that run, or stand before the job in the stream.
const BEFORE: &str = rows::select_job!(
    "WHERE thread_id = ?1 AND job_id <> ?2 AND finished_at IS NULL AND (state = 'running' OR stream_seq < ?3) \
     ORDER BY state = 'running' DESC, stream_seq"
);

const START: &str = "UPDATE executor_job SET state = 'running', attempt = attempt + 1, decided = 1, \
    base_head = CASE WHEN attempt = 0 THEN ?2 ELSE base_head END, head_at_claim = ?2, charged = ?3 WHERE job_id = ?1";

const END: &str = "UPDATE executor_job SET state = ?2, finished_at = ?3, finished_epoch = ?4, result_event_id = ?5, \
    result_subject = ?6, result = ?7, result_body = ?8, error = ?9 WHERE job_id = ?1";

const RENEW: &str =
    "UPDATE executor_thread SET lease_until = ?4 WHERE thread_id = ?1 AND epoch = ?2 AND owner = ?3";

const PUBLISHED: &str = "UPDATE executor_job SET published_at = ?2 WHERE job_id = ?1 AND published_at IS NULL \
    AND finished_at IS NOT NULL";

const RESULT: &str =
    "SELECT coalesce(result_body, result) FROM executor_job WHERE job_id = ? AND finished_at IS NOT NULL";

const REFUND: &str = "UPDATE executor_job SET charged = (SELECT json_group_array(value) FROM json_each(charged) \
    WHERE value <> ?2) WHERE job_id = ?1";

/// Who asks, and when.
#[derive(Clone, Debug)]
pub(super) struct Claimant {
    pub(super) owner: Arc<str>,
    pub(super) now: UnixNanos,
    pub(super) lease: Duration,
    pub(super) max_crashes: usize,
}

impl Claimant {
    pub(super) fn after(&self, time: Duration) -> i64 {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        stored_time(UnixNanos(self.now.0.saturating_add(nanos)))
    }

    pub(super) fn before(&self, time: Duration) -> i64 {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        stored_time(UnixNanos(self.now.0.saturating_sub(nanos)))
    }

    pub(super) fn lease_until(&self) -> i64 {
        self.after(self.lease)
    }

    fn is(&self, owner: Option<&String>) -> bool {
        owner.is_some_and(|owner| **owner == *self.owner)
    }
}

pub(super) fn fenced(thread_id: &ThreadId, epoch: Epoch) -> Failure {
    Error::Fenced { thread_id: thread_id.clone(), epoch }.into()
}

/// Records a job that is new, or gives one that was recorded before its place in the stream.
pub(super) async fn met(db: &mut SqliteConnection, record: &Record, by: &Claimant) -> Result<(), Failure> {
    rows::thread(db, &record.thread_id).await?;
    sqlx::query(RECORD)
        .bind(record.job_id.as_str())
        .bind(record.thread_id.as_str())
        .bind(record.stream_seq.map(stored_seq).transpose()?)
        .bind(record.multitask_strategy)
        .bind(&*record.request)
        .bind(stored_time(by.now))
        .bind(by.after(record.timeout))
        .execute(db)
        .await?;
    Ok(())
}

pub(super) async fn accept(
    db: &mut SqliteConnection,
    offer: &Offer,
    by: &Claimant,
) -> Result<Verdict, Failure> {
    let record = Record {
        job_id: offer.job_id.clone(),
        thread_id: offer.thread_id.clone(),
        stream_seq: Some(offer.stream_seq),
        multitask_strategy: offer.multitask_strategy,
        request: offer.request.clone(),
        timeout: offer.timeout,
    };
    met(db, &record, by).await?;
    let mut job = open_or_ended(db, &offer.job_id).await?;
    if let Some(finished) = job.finished {
        if job.published {
            return Ok(Verdict::Done);
        }
        let result = rows::result(db, &offer.job_id).await?;
        return Ok(Verdict::DoneUnpublished { result, ended: by.now.since(finished) });
    }
    if !job.decided && !job.is_running() && job.cancel.is_none() {
        decide_for(db, &job).await?;
        job = open_or_ended(db, &offer.job_id).await?;
    }
    if let Some(cancel) = job.cancel.as_ref().filter(|_| job.is_turned_away() && !job.is_running()) {
        return Ok(Verdict::Rejected(cancel.clone()));
    }
    let thread = rows::thread(db, &offer.thread_id).await?;
    // The lease stands, or lapsed while its owner could not reach the database, and the owner asks.
    let is_ours = by.is(thread.owner.as_ref()) && offer.running == Some(thread.epoch);
    if thread.owner.is_some() && (thread.lease_until > by.now || is_ours) {
        let retry_in = thread.lease_until.since(by.now);
        let is_itself = thread.job_id.as_ref() == Some(&offer.job_id);
        return Ok(match is_itself {
            true => Verdict::RunningElsewhere { retry_in },
            false => Verdict::Parked { retry_in },
        });
    }
    // Without one, the job was first offered under another thread and is still open there.
    let elsewhere = Verdict::RunningElsewhere { retry_in: by.lease };
    Ok(claim_next(db, (&offer.thread_id, thread), offer.lane, by).await?.unwrap_or(elsewhere))
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
    let kind = match job.policy.as_str() {
        "reject" => CancelKind::Reject,
        "interrupt" => CancelKind::Interrupt,
        "rollback" => CancelKind::Rollback,
        _ => return Ok(()),
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

/// A value of ours as JSON text.
pub(super) fn text(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("names, numbers and texts serialise")
}

/// Claims the next open job of a thread that is free.
pub(super) async fn claim_next(
    db: &mut SqliteConnection,
    (thread_id, mut thread): (&ThreadId, Thread),
    lane: bool,
    by: &Claimant,
) -> Result<Option<Verdict>, Failure> {
    let Some(job) = next_job(db, thread_id, by).await? else { return Ok(None) };
    let head = rows::newest(db, thread_id).await?;
    let mut charged = job.charged.clone();
    if job.attempt > 0 && job.head_at_claim != head {
        charged.clear();
    } else if job.is_running()
        && thread.owner.is_some()
        && !by.is(thread.owner.as_ref())
        && !charged.contains(&thread.epoch.0)
    {
        charged.push(thread.epoch.0);
    }
    let danger = if job.cancel.is_some() { 0 } else { charged.len() };
    if danger >= SUSPECT && !lane {
        return Ok(Some(Verdict::NeedLane));
    }
    thread.chained_from = None;
    thread.head = head;
    let claim = start(db, (thread_id, thread), Job { charged, ..job }, by).await?;
    Ok(Some(if danger >= by.max_crashes { Verdict::Poison(claim) } else { Verdict::Run(claim) }))
}

async fn next_job(
    db: &mut SqliteConnection,
    thread_id: &ThreadId,
    by: &Claimant,
) -> Result<Option<Job>, Failure> {
    let next = sqlx::query(NEXT).bind(thread_id.as_str()).bind(by.before(UNHEARD));
    next.fetch_optional(db).await?.as_ref().map(rows::read_job).transpose()
}

/// Gives `thread` a new epoch and starts the job under it.
async fn start(
    db: &mut SqliteConnection,
    (thread_id, thread): (&ThreadId, Thread),
    job: Job,
    by: &Claimant,
) -> Result<Claim, Failure> {
    let epoch = rows::next_epoch(db).await?;
    let head = thread.head.as_ref().map(ToString::to_string);
    sqlx::query(START)
        .bind(job.job_id.as_str())
        .bind(&head)
        .bind(text(&job.charged))
        .execute(&mut *db)
        .await?;
    sqlx::query(
        "UPDATE executor_thread SET epoch = ?2, owner = ?3, chained_from = ?4, job_id = ?5, lease_until = ?6, \
         head = ?7 WHERE thread_id = ?1",
    )
    .bind(thread_id.as_str())
    .bind(epoch.0)
    .bind(&*by.owner)
    .bind(thread.chained_from.map(|epoch| epoch.0))
    .bind(job.job_id.as_str())
    .bind(by.lease_until())
    .bind(&head)
    .execute(&mut *db)
    .await?;
    let thread = Thread { epoch, ..thread };
    claim(db, (thread_id, &thread), Job { attempt: job.attempt + 1, ..job }, by).await
}

async fn claim(
    db: &mut SqliteConnection,
    (thread_id, thread): (&ThreadId, &Thread),
    job: Job,
    by: &Claimant,
) -> Result<Claim, Failure> {
    Ok(Claim {
        thread_id: thread_id.clone(),
        epoch: thread.epoch,
        request: rows::request(db, &job.job_id).await?,
        job_id: job.job_id,
        attempt: job.attempt,
        head: thread.head.clone(),
        time_left: job.deadline.since(by.now),
        cancel: job.cancel,
        suspect: job.charged.len() >= SUSPECT,
    })
}

pub(super) async fn finish(
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

/// The claim that the finish of `epoch` handed on, as long as it stands.
async fn chained(
    db: &mut SqliteConnection,
    (thread_id, thread): (&ThreadId, &Thread),
    epoch: Epoch,
    by: &Claimant,
) -> Result<Option<Claim>, Failure> {
    let Some(job_id) = thread.job_id.as_ref().filter(|_| thread.chained_from == Some(epoch)) else {
        return Ok(None);
    };
    match rows::job(db, job_id).await? {
        Some(job) if by.is(thread.owner.as_ref()) => claim(db, (thread_id, thread), job, by).await.map(Some),
        Some(_) | None => Ok(None),
    }
}

/// Frees a thread. Its job stays as it is.
pub(super) async fn free(db: &mut SqliteConnection, thread_id: &ThreadId) -> Result<(), Failure> {
    sqlx::query(
        "UPDATE executor_thread SET owner = NULL, chained_from = NULL, lease_until = 0 WHERE thread_id = ?",
    )
    .bind(thread_id.as_str())
    .execute(db)
    .await?;
    Ok(())
}

pub(super) async fn end(db: &mut SqliteConnection, ending: &Ending, by: &Claimant) -> Result<bool, Failure> {
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

pub(super) async fn release(db: &mut SqliteConnection, claim: &Claim, by: &Claimant) -> Result<(), Failure> {
    let thread = rows::thread(db, &claim.thread_id).await?;
    let is_ours = thread.owner.is_none() || by.is(thread.owner.as_ref());
    if thread.epoch != claim.epoch || !is_ours {
        return Err(fenced(&claim.thread_id, claim.epoch));
    }
    free(db, &claim.thread_id).await
}

pub(super) async fn refund(db: &mut SqliteConnection, claim: &Claim) -> Result<(), Failure> {
    sqlx::query(REFUND).bind(claim.job_id.as_str()).bind(claim.epoch.0).execute(db).await?;
    Ok(())
}

pub(super) async fn renew(
    db: &mut SqliteConnection,
    claims: &[(ThreadId, Epoch)],
    by: &Claimant,
) -> Result<Vec<Renewed>, Failure> {
    let mut renewed = Vec::new();
    for (thread_id, epoch) in claims {
        let renewal = sqlx::query(RENEW)
            .bind(thread_id.as_str())
            .bind(epoch.0)
            .bind(&*by.owner)
            .bind(by.lease_until())
            .execute(&mut *db)
            .await?;
        if renewal.rows_affected() == 0 {
            continue;
        }
        let thread = rows::thread(db, thread_id).await?;
        let cancel = match &thread.job_id {
            Some(job_id) => rows::job(db, job_id).await?.and_then(|job| job.cancel),
            None => None,
        };
        renewed.push(Renewed { thread_id: thread_id.clone(), epoch: *epoch, cancel });
    }
    Ok(renewed)
}

pub(super) async fn mark_published(
    db: &mut SqliteConnection,
    job_id: &JobId,
    by: &Claimant,
) -> Result<(), Failure> {
    sqlx::query(PUBLISHED).bind(job_id.as_str()).bind(stored_time(by.now)).execute(db).await?;
    Ok(())
}

pub(super) async fn result(db: &mut SqliteConnection, job_id: &JobId) -> Result<Option<Bytes>, Failure> {
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

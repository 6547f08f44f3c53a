//! Claims: who works on a thread, for how long, and which job comes next. The rules of `migrations/` of the Postgres
//! store.

use std::sync::Arc;
use std::time::Duration;

use sqlx::SqliteConnection;

use super::{
    failure::Failure,
    rows::{self, Job, Thread, stored_time, text},
};
use crate::{
    ids::{Epoch, ThreadId, UnixNanos},
    store::{Claim, Error, Renewed, Verdict},
};

/// Charges from which on a job is a suspect.
pub(super) const SUSPECT: usize = 2;

/// How long a message that is held or under way may take to make itself heard.
pub(super) const UNHEARD: Duration = Duration::from_secs(10);

/// A started job first, then the order of the stream; those without a place in it last. A queued one without a place
/// waits a moment: when publishing fails, it is taken back.
const NEXT: &str = rows::select_job!(
    "WHERE thread_id = ?1 AND finished_at IS NULL \
       AND (state = 'running' OR stream_seq IS NOT NULL OR accepted_at < ?2) \
     ORDER BY state = 'running' DESC, stream_seq IS NULL, stream_seq, accepted_at, job_id LIMIT 1"
);

const START: &str = "UPDATE executor_job SET state = 'running', attempt = attempt + 1, decided = 1, \
    base_head = CASE WHEN attempt = 0 THEN ?2 ELSE base_head END, head_at_claim = ?2, charged = ?3 WHERE job_id = ?1";

const RENEW: &str =
    "UPDATE executor_thread SET lease_until = ?4 WHERE thread_id = ?1 AND epoch = ?2 AND owner = ?3";

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

    pub(super) fn is(&self, owner: Option<&String>) -> bool {
        owner.is_some_and(|owner| **owner == *self.owner)
    }
}

pub(super) fn fenced(thread_id: &ThreadId, epoch: Epoch) -> Failure {
    Error::Fenced { thread_id: thread_id.clone(), epoch }.into()
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

pub(super) async fn next_job(
    db: &mut SqliteConnection,
    thread_id: &ThreadId,
    by: &Claimant,
) -> Result<Option<Job>, Failure> {
    let next = sqlx::query(NEXT).bind(thread_id.as_str()).bind(by.before(UNHEARD));
    next.fetch_optional(db).await?.as_ref().map(rows::read_job).transpose()
}

/// Gives `thread` a new epoch and starts the job under it.
pub(super) async fn start(
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

/// The claim that the finish of `epoch` handed on, as long as it stands.
pub(super) async fn chained(
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

//! Background duties: what is left of processes that died, wishes to cancel, results that wait.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{Row, SqliteConnection};

use super::{
    SqliteStore,
    claims::{Claimant, SUSPECT, UNHEARD, claim_next},
    failure::Failure,
    jobs::{self, cancel_job},
    rows::{self, Job, stored_time, text},
};
use crate::{
    ids::{JobId, ThreadId},
    store::{Cancel, Doomed, Error, Known, Met, Record, StoredResult, Target, Upkeep, Verdict, Wished},
};

/// Open jobs whose thread nobody owns any more. A running one, or with ?2 a queued one that nobody has taken up since
/// ?3 while none of its thread runs. Without ?4 those are left out that are suspected to kill their owners.
const ORPHANS: &str = "SELECT DISTINCT j.thread_id FROM executor_job j JOIN executor_thread t USING (thread_id) \
    WHERE j.finished_at IS NULL AND (t.owner IS NULL OR t.lease_until <= ?1) AND ( \
        (j.state = 'running' AND (?4 OR j.cancel IS NOT NULL \
            OR json_array_length(j.charged) + (t.owner IS NOT NULL) < ?5)) \
        OR (?2 AND j.state = 'queued' AND j.accepted_at < ?3 AND NOT EXISTS ( \
            SELECT 1 FROM executor_job r WHERE r.thread_id = j.thread_id AND r.state = 'running'))) \
    ORDER BY j.thread_id LIMIT ?6";

/// Wishes that came before their job are joined with it.
const JOIN_WISHES: &str = "UPDATE executor_job SET cancel = (SELECT w.cancel FROM executor_cancel w \
        WHERE w.job_id = executor_job.job_id) \
    WHERE finished_at IS NULL AND cancel IS NULL AND job_id IN (SELECT job_id FROM executor_cancel)";

const DOOMED: &str = rows::select_job!(
    "WHERE state = 'queued' AND (cancel IS NOT NULL OR deadline_at < ?1) ORDER BY job_id LIMIT ?2"
);

const UNPUBLISHED: &str = "SELECT job_id FROM executor_job \
    WHERE published_at IS NULL AND finished_at < ?1 AND (?2 IS NULL OR (finished_at, job_id) > ( \
        SELECT finished_at, job_id FROM executor_job WHERE job_id = ?2)) \
    ORDER BY finished_at, job_id LIMIT ?3";

const FORGET: &str =
    "DELETE FROM executor_job WHERE job_id = ? AND state = 'queued' AND stream_seq IS NULL AND attempt = 0";

const OPEN: &str = rows::select_job!("WHERE thread_id = ? AND finished_at IS NULL ORDER BY job_id");

const DUTY: &str = "INSERT INTO executor_duty (name, taken_at) VALUES (?1, ?2) \
    ON CONFLICT (name) DO UPDATE SET taken_at = excluded.taken_at WHERE executor_duty.taken_at <= ?3";

/// What a sweep looks for.
#[derive(Clone, Copy, Debug)]
struct Sweep {
    limit: u32,
    queued: bool,
    lane: bool,
}

#[async_trait]
impl Upkeep for SqliteStore {
    async fn orphans(&self, limit: u32, queued: bool, lane: bool) -> Result<Vec<ThreadId>, Error> {
        let (sweep, by) = (Sweep { limit, queued, lane }, self.claimant());
        self.link.read(move |db| Box::pin(async move { orphans(db, sweep, &by).await })).await
    }

    async fn adopt(&self, thread_id: &ThreadId, lane: bool) -> Result<Option<Verdict>, Error> {
        let (thread_id, by) = (thread_id.clone(), self.claimant());
        self.link.write(move |db| Box::pin(async move { adopt(db, &thread_id, lane, &by).await })).await
    }

    async fn doomed(&self, limit: u32) -> Result<Vec<Doomed>, Error> {
        let by = self.claimant();
        self.link.write(move |db| Box::pin(async move { doomed(db, limit, &by).await })).await
    }

    async fn unpublished(
        &self,
        age: Duration,
        after: Option<&JobId>,
        limit: u32,
    ) -> Result<Vec<StoredResult>, Error> {
        let (after, by) = (after.cloned(), self.claimant());
        self.link
            .read(move |db| Box::pin(async move { unpublished(db, (age, limit), after.as_ref(), &by).await }))
            .await
    }

    async fn record(&self, record: &Record) -> Result<bool, Error> {
        let (record, by) = (record.clone(), self.claimant());
        self.link.write(move |db| Box::pin(async move { self::record(db, &record, &by).await })).await
    }

    async fn forget(&self, job_id: &JobId) -> Result<(), Error> {
        let job_id = job_id.clone();
        self.link.write(move |db| Box::pin(async move { forget(db, &job_id).await })).await
    }

    async fn known(&self, job_ids: &[JobId]) -> Result<Vec<Known>, Error> {
        let job_ids = job_ids.to_vec();
        self.link.read(move |db| Box::pin(async move { known(db, &job_ids).await })).await
    }

    async fn wish(&self, id: &str, target: Target, cancel: &Cancel) -> Result<Met, Error> {
        let (id, cancel, by) = (id.to_owned(), cancel.clone(), self.claimant());
        self.link.write(move |db| Box::pin(async move { wish(db, (&id, target), &cancel, &by).await })).await
    }

    async fn take_duty(&self, name: &'static str, every: Duration) -> Result<bool, Error> {
        let by = self.claimant();
        self.link.write(move |db| Box::pin(async move { take_duty(db, name, every, &by).await })).await
    }
}

async fn orphans(db: &mut SqliteConnection, sweep: Sweep, by: &Claimant) -> Result<Vec<ThreadId>, Failure> {
    let rows = sqlx::query(ORPHANS)
        .bind(stored_time(by.now))
        .bind(sweep.queued)
        .bind(by.before(UNHEARD))
        .bind(sweep.lane)
        .bind(i64::try_from(SUSPECT).expect("a small number"))
        .bind(sweep.limit)
        .fetch_all(db)
        .await?;
    let mut threads = Vec::with_capacity(rows.len());
    for row in &rows {
        let thread_id: &str = row.try_get(0)?;
        threads.extend(ThreadId::parse(thread_id).ok());
    }
    Ok(threads)
}

async fn adopt(
    db: &mut SqliteConnection,
    thread_id: &ThreadId,
    lane: bool,
    by: &Claimant,
) -> Result<Option<Verdict>, Failure> {
    match rows::known_thread(db, thread_id).await? {
        Some(thread) if thread.owner.is_none() || thread.lease_until <= by.now => {
            claim_next(db, (thread_id, thread), lane, by).await
        }
        Some(_) | None => Ok(None),
    }
}

async fn doomed(db: &mut SqliteConnection, limit: u32, by: &Claimant) -> Result<Vec<Doomed>, Failure> {
    sqlx::query(JOIN_WISHES).execute(&mut *db).await?;
    let found = sqlx::query(DOOMED).bind(stored_time(by.now)).bind(limit).fetch_all(&mut *db).await?;
    let mut doomed = Vec::with_capacity(found.len());
    for row in &found {
        let Job { job_id, thread_id, cancel, .. } = rows::read_job(row)?;
        let request = rows::request(db, &job_id).await?;
        doomed.push(Doomed { job_id, thread_id, request, cancel });
    }
    Ok(doomed)
}

async fn unpublished(
    db: &mut SqliteConnection,
    (age, limit): (Duration, u32),
    after: Option<&JobId>,
    by: &Claimant,
) -> Result<Vec<StoredResult>, Failure> {
    let rows = sqlx::query(UNPUBLISHED)
        .bind(by.before(age))
        .bind(after.map(JobId::as_str))
        .bind(limit)
        .fetch_all(&mut *db)
        .await?;
    let mut job_ids = Vec::with_capacity(rows.len());
    for row in &rows {
        let job_id: &str = row.try_get(0)?;
        job_ids.extend(JobId::parse(job_id).ok());
    }
    jobs::results(db, job_ids).await
}

async fn record(db: &mut SqliteConnection, record: &Record, by: &Claimant) -> Result<bool, Failure> {
    if rows::job(db, &record.job_id).await?.is_some() {
        return Ok(false);
    }
    jobs::met(db, record, by).await?;
    Ok(true)
}

async fn forget(db: &mut SqliteConnection, job_id: &JobId) -> Result<(), Failure> {
    sqlx::query(FORGET).bind(job_id.as_str()).execute(db).await?;
    Ok(())
}

async fn known(db: &mut SqliteConnection, job_ids: &[JobId]) -> Result<Vec<Known>, Failure> {
    let mut known = Vec::new();
    for job_id in job_ids {
        if let Some(job) = rows::job(db, job_id).await? {
            known.push(Known { job_id: job_id.clone(), published: job.published });
        }
    }
    Ok(known)
}

/// A job wins over a thread of the same name.
async fn wish(
    db: &mut SqliteConnection,
    (id, target): (&str, Target),
    cancel: &Cancel,
    by: &Claimant,
) -> Result<Met, Failure> {
    let job_id = JobId::parse(id).ok().filter(|_| target != Target::Thread);
    if let Some(job_id) = &job_id
        && let Some(job) = rows::job(db, job_id).await?
    {
        if job.finished.is_none() {
            cancel_job(db, job_id, cancel).await?;
        }
        return Ok(Met { jobs: vec![wished(job)], waits: false });
    }
    if let Some(thread_id) = ThreadId::parse(id).ok().filter(|_| target != Target::Job) {
        let open = sqlx::query(OPEN).bind(thread_id.as_str()).fetch_all(&mut *db).await?;
        let open = open.iter().map(rows::read_job).collect::<Result<Vec<_>, _>>()?;
        for job in &open {
            cancel_job(db, &job.job_id, cancel).await?;
        }
        if !open.is_empty() || rows::known_thread(db, &thread_id).await?.is_some() {
            return Ok(Met { jobs: open.into_iter().map(wished).collect(), waits: false });
        }
    }
    let Some(job_id) = job_id else { return Ok(Met::default()) };
    sqlx::query(
        "INSERT INTO executor_cancel (job_id, cancel, created_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
    )
    .bind(job_id.as_str())
    .bind(text(cancel))
    .bind(stored_time(by.now))
    .execute(db)
    .await?;
    Ok(Met { jobs: Vec::new(), waits: true })
}

fn wished(job: Job) -> Wished {
    Wished { job_id: job.job_id, thread_id: job.thread_id, state: job.state }
}

async fn take_duty(
    db: &mut SqliteConnection,
    name: &str,
    every: Duration,
    by: &Claimant,
) -> Result<bool, Failure> {
    let taken = sqlx::query(DUTY).bind(name).bind(stored_time(by.now)).bind(by.before(every));
    Ok(taken.execute(db).await?.rows_affected() > 0)
}

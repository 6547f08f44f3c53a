//! Looks and repairs by hand, and the removal of what is old.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;

use super::{
    MemoryStore, claims, count,
    tables::{Claimant, Job, Tables},
};
use crate::{
    ids::{CheckpointId, JobId, Namespace, ThreadId, UnixNanos},
    store::{Error, Expired, FIRST, Found, Grace, Inspect, JobView, Overview, Retention, Trail, Waiting},
};

/// Removals count as no write: how often they happen depends on time.
#[async_trait]
impl Inspect for MemoryStore {
    async fn job(&self, job_id: &JobId) -> Result<Option<JobView>, Error> {
        Ok(self.tables()?.view(job_id))
    }

    async fn trail(&self, thread_id: &ThreadId, job_id: &JobId) -> Result<Trail, Error> {
        Ok(self.tables()?.trail(thread_id, job_id))
    }

    async fn overview(&self, grace: &Grace) -> Result<Overview, Error> {
        Ok(self.tables()?.overview(grace, &self.claimant()))
    }

    async fn waiting(&self, age: Duration, limit: u32) -> Result<Vec<Waiting>, Error> {
        Ok(self.tables()?.waiting(age, count(limit), &self.claimant()))
    }

    async fn copied(&self, job_id: &JobId, stream_seq: u64) -> Result<(), Error> {
        self.write(|tables| {
            tables.copied(job_id, stream_seq);
            Ok(())
        })
    }

    async fn free_dead(&self, grace: Duration, limit: u32) -> Result<Vec<ThreadId>, Error> {
        self.write(|tables| Ok(tables.free_dead(grace, count(limit), &self.claimant())))
    }

    async fn expire(&self, retention: &Retention, limit: u32) -> Result<Expired, Error> {
        Ok(self.tables()?.expire(retention, count(limit), &self.claimant()))
    }
}

/// Ids with the time since which they are so, oldest first.
fn found(mut rows: Vec<(UnixNanos, String)>, now: UnixNanos) -> Found {
    rows.sort();
    let oldest = rows.first().map(|(since, _)| now.since(*since)).unwrap_or_default();
    Found {
        count: u64::try_from(rows.len()).expect("a count fits 64 bits"),
        oldest_seconds: oldest.as_secs_f64(),
        first: rows.into_iter().map(|(_, id)| id).take(FIRST).collect(),
    }
}

/// Whether one more is removed.
fn take_one(left: &mut usize, old: bool) -> bool {
    let taken = old && *left > 0;
    *left -= usize::from(taken);
    taken
}

impl Tables {
    pub(super) fn view(&self, job_id: &JobId) -> Option<JobView> {
        let job = self.jobs.get(job_id)?;
        Some(JobView {
            thread_id: job.thread_id.clone(),
            state: job.state().to_owned(),
            stream_seq: job.stream_seq,
            attempts: job.attempt,
            crashes: u32::try_from(job.charged.len()).unwrap_or(u32::MAX),
            request: job.request.clone(),
            error: job.end.as_ref().and_then(|end| end.error.clone()),
            published: job.end.as_ref().is_some_and(|end| end.published),
        })
    }

    pub(super) fn trail(&self, thread_id: &ThreadId, job_id: &JobId) -> Trail {
        let rows = self.checkpoints.get(&(thread_id.clone(), Namespace::root()));
        let is_own = |metadata: &str| {
            let metadata: serde_json::Value = serde_json::from_str(metadata).unwrap_or_default();
            metadata["job_id"] == job_id.as_str()
        };
        let last: Option<CheckpointId> = rows
            .and_then(|rows| rows.iter().rev().find(|(_, row)| is_own(&row.metadata)))
            .map(|(id, _)| id.clone());
        Trail { last, newest: self.newest(thread_id) }
    }

    /// Open jobs whose thread nobody owns, with the time they were accepted.
    fn unowned(&self) -> impl Iterator<Item = (&JobId, &Job)> {
        let is_free =
            |thread_id: &ThreadId| self.threads.get(thread_id).is_none_or(|thread| thread.owner.is_none());
        self.jobs.iter().filter(move |(_, job)| job.end.is_none() && is_free(&job.thread_id))
    }

    fn overview(&self, grace: &Grace, by: &Claimant<'_>) -> Overview {
        let passed = |since: UnixNanos, limit: Duration| by.now.since(since) > limit;
        let owned = || self.threads.iter().filter(|(_, thread)| thread.owner.is_some());
        let is_dead = |since: UnixNanos| passed(since, grace.lease);
        let open = || self.jobs.iter().filter(|(_, job)| job.end.is_none());
        let count = |wanted: &dyn Fn(&Job) -> bool| {
            u64::try_from(open().filter(|(_, job)| wanted(job)).count()).expect("a count fits 64 bits")
        };
        let late = |job: &Job| Some(job.deadline).filter(|at| !job.running && passed(*at, grace.waiting));
        let ended = |job: &Job| job.end.as_ref().filter(|end| !end.published).map(|end| end.at);
        let mut stuck: BTreeMap<&ThreadId, UnixNanos> = BTreeMap::new();
        for (_, job) in self.unowned().filter(|(_, job)| passed(job.accepted, grace.waiting)) {
            let since = stuck.entry(&job.thread_id).or_insert(job.accepted);
            *since = (*since).min(job.accepted);
        }
        let mut dead_letters = BTreeMap::new();
        for kept in self.letters.values().filter(|kept| kept.is_open()) {
            *dead_letters.entry(kept.reason().to_owned()).or_insert(0) += 1;
        }
        let dead = owned().filter(|(_, thread)| is_dead(thread.lease_until));
        let unpublished = self.jobs.iter().filter_map(|(id, job)| Some((ended(job)?, id.to_string())));
        let unpublished = unpublished.filter(|(at, _)| passed(*at, grace.unpublished));
        let suspects = open().filter(|(_, job)| !job.charged.is_empty());
        let overdue = open().filter_map(|(id, job)| Some((late(job)?, id.to_string())));
        Overview {
            version: "memory".to_owned(),
            threads_owned: u64::try_from(owned().filter(|(_, t)| !is_dead(t.lease_until)).count())
                .expect("a count fits 64 bits"),
            jobs_queued: count(&|job| !job.running),
            jobs_running: count(&|job| job.running),
            jobs_to_cancel: count(&|job| job.cancel.is_some()),
            wishes: u64::try_from(self.wishes.len()).expect("a count fits 64 bits"),
            dead_leases: found(dead.map(|(id, t)| (t.lease_until, id.to_string())).collect(), by.now),
            stuck_threads: found(stuck.into_iter().map(|(id, at)| (at, id.to_string())).collect(), by.now),
            overdue_jobs: found(overdue.collect(), by.now),
            suspects: found(suspects.map(|(id, job)| (job.accepted, id.to_string())).collect(), by.now),
            unpublished: found(unpublished.collect(), by.now),
            dead_letters,
            tables: BTreeMap::new(),
        }
    }

    fn waiting(&self, age: Duration, limit: usize, by: &Claimant<'_>) -> Vec<Waiting> {
        let mut jobs: Vec<_> = self.unowned().filter(|(_, job)| by.now.since(job.accepted) > age).collect();
        jobs.sort_by_key(|(job_id, job)| (job.accepted, (*job_id).clone()));
        let waiting = |(job_id, job): (&JobId, &Job)| Waiting {
            job_id: job_id.clone(),
            message_seq: job.copy_seq.or(job.stream_seq),
            is_copied: job.copy_seq.is_some(),
            request: job.request.clone(),
        };
        jobs.into_iter().map(waiting).take(limit).collect()
    }

    fn copied(&mut self, job_id: &JobId, stream_seq: u64) {
        if let Some(job) = self.jobs.get_mut(job_id).filter(|job| job.end.is_none()) {
            job.copy_seq = Some(stream_seq);
        }
    }

    fn free_dead(&mut self, grace: Duration, limit: usize, by: &Claimant<'_>) -> Vec<ThreadId> {
        let mut freed = Vec::new();
        for (thread_id, thread) in &mut self.threads {
            let dead = thread.owner.is_some() && by.now.since(thread.lease_until) > grace;
            if !dead || freed.len() == limit {
                continue;
            }
            let job = thread.job_id.as_ref().and_then(|job_id| self.jobs.get_mut(job_id));
            if let Some(job) = job.filter(|job| job.running && !job.charged.contains(&thread.epoch)) {
                job.charged.push(thread.epoch);
            }
            *thread = claims::freed(thread.clone());
            freed.push(thread_id.clone());
        }
        freed
    }

    fn expire(&mut self, retention: &Retention, limit: usize, by: &Claimant<'_>) -> Expired {
        let is_old = |at: UnixNanos, age: Option<Duration>| age.is_some_and(|age| by.now.since(at) > age);
        let (jobs, letters) = (self.jobs.len(), self.letters.len());
        let mut left = limit;
        self.jobs.retain(|_, job| {
            let old = job.end.as_ref().is_some_and(|end| end.published && is_old(end.at, retention.jobs));
            !take_one(&mut left, old)
        });
        left = limit;
        self.letters.retain(|_, kept| !take_one(&mut left, is_old(kept.at(), retention.dead_letters)));
        let removed = |before: usize, now: usize| u64::try_from(before - now).expect("a count fits 64 bits");
        Expired {
            jobs: removed(jobs, self.jobs.len()),
            dead_letters: removed(letters, self.letters.len()),
            // When they came is not kept here.
            wishes: 0,
            effects: 0,
        }
    }
}

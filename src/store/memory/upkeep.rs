//! Background duties.

use std::time::Duration;

use async_trait::async_trait;

use super::{
    MemoryStore,
    claims::{SUSPECT, UNHEARD},
    count, lock,
    tables::{Claimant, Job, Tables},
};
use crate::{
    ids::{JobId, ThreadId, UnixNanos},
    store::{Cancel, Doomed, Error, Known, Met, Record, StoredResult, Target, Upkeep, Verdict, Wished},
};

/// Looks count as no write, like renewals: how often they happen depends on time.
#[async_trait]
impl Upkeep for MemoryStore {
    async fn orphans(&self, limit: u32, queued: bool, lane: bool) -> Result<Vec<ThreadId>, Error> {
        Ok(self.tables()?.orphans(count(limit), queued, lane, &self.claimant()))
    }

    async fn adopt(&self, thread_id: &ThreadId, lane: bool) -> Result<Option<Verdict>, Error> {
        let adopted = self.write(|tables| Ok(tables.adopt(thread_id, lane, &self.claimant())));
        let late = lock(&self.faults).late;
        if let Some(late) = late {
            tokio::time::sleep(late).await;
        }
        adopted
    }

    async fn doomed(&self, limit: u32) -> Result<Vec<Doomed>, Error> {
        Ok(self.tables()?.doomed(count(limit), &self.claimant()))
    }

    async fn unpublished(
        &self,
        age: Duration,
        after: Option<&JobId>,
        limit: u32,
    ) -> Result<Vec<StoredResult>, Error> {
        Ok(self.tables()?.unpublished(age, after, count(limit), &self.claimant()))
    }

    async fn record(&self, record: &Record) -> Result<bool, Error> {
        self.write(|tables| Ok(tables.record(record, &self.claimant())))
    }

    async fn forget(&self, job_id: &JobId) -> Result<(), Error> {
        self.write(|tables| {
            tables.forget(job_id);
            Ok(())
        })
    }

    async fn known(&self, job_ids: &[JobId]) -> Result<Vec<Known>, Error> {
        Ok(self.tables()?.known(job_ids))
    }

    async fn wish(&self, id: &str, target: Target, cancel: &Cancel) -> Result<Met, Error> {
        self.write(|tables| Ok(tables.wish(id, target, cancel)))
    }

    async fn take_duty(&self, name: &'static str, every: Duration) -> Result<bool, Error> {
        Ok(self.tables()?.take_duty(name, every, &self.claimant()))
    }
}

impl Tables {
    fn orphans(&self, limit: usize, queued: bool, lane: bool, by: &Claimant<'_>) -> Vec<ThreadId> {
        let is_free = |thread_id: &ThreadId| {
            self.threads.get(thread_id).is_none_or(|t| t.owner.is_none() || t.lease_until <= by.now)
        };
        let has_owner = |job: &Job| self.threads.get(&job.thread_id).is_some_and(|t| t.owner.is_some());
        let is_suspect = |job: &Job| job.charged.len() + usize::from(has_owner(job)) >= SUSPECT;
        let waits = |job: &Job| match job.running {
            true => lane || job.cancel.is_some() || !is_suspect(job),
            false => {
                let runs = |(_, other): (&JobId, &Job)| other.running;
                queued && by.now.since(job.accepted) > UNHEARD && !self.open(&job.thread_id).any(runs)
            }
        };
        let orphaned = self.jobs.values().filter(|job| job.end.is_none() && waits(job));
        let mut threads: Vec<_> =
            orphaned.map(|job| job.thread_id.clone()).filter(|thread_id| is_free(thread_id)).collect();
        threads.sort();
        threads.dedup();
        threads.truncate(limit);
        threads
    }

    fn adopt(&mut self, thread_id: &ThreadId, lane: bool, by: &Claimant<'_>) -> Option<Verdict> {
        let thread = self.thread(thread_id);
        if thread.owner.is_some() && thread.lease_until > by.now {
            return None;
        }
        self.claim_next(thread_id, lane, by)
    }

    fn doomed(&mut self, limit: usize, by: &Claimant<'_>) -> Vec<Doomed> {
        for (job_id, job) in &mut self.jobs {
            if job.end.is_none() && job.cancel.is_none() {
                job.cancel = self.wishes.get(job_id).cloned();
            }
        }
        let queued = self.jobs.iter().filter(|(_, job)| job.end.is_none() && !job.running);
        let over = queued.filter(|(_, job)| job.cancel.is_some() || job.deadline < by.now);
        let doomed = over.map(|(job_id, job)| Doomed {
            job_id: job_id.clone(),
            thread_id: job.thread_id.clone(),
            request: job.request.clone(),
            cancel: job.cancel.clone(),
        });
        doomed.take(limit).collect()
    }

    fn unpublished(
        &self,
        age: Duration,
        after: Option<&JobId>,
        limit: usize,
        by: &Claimant<'_>,
    ) -> Vec<StoredResult> {
        let age = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
        let since = UnixNanos(by.now.0.saturating_sub(age));
        let place = |job_id: &JobId| Some((self.jobs.get(job_id)?.end.as_ref()?.at, job_id.clone()));
        let is_behind = |at: UnixNanos, result: &StoredResult| {
            after.is_none_or(|after| place(after).is_some_and(|after| (at, result.job_id.clone()) > after))
        };
        let waiting = self.waiting_results(since).into_iter();
        let behind = waiting.filter_map(|(at, result)| is_behind(at, &result).then_some(result));
        behind.take(limit).collect()
    }

    fn record(&mut self, record: &Record, by: &Claimant<'_>) -> bool {
        let is_new = !self.jobs.contains_key(&record.job_id);
        if is_new {
            self.met(record, by);
        }
        is_new
    }

    fn forget(&mut self, job_id: &JobId) {
        self.jobs.retain(|id, job| {
            id != job_id || job.end.is_some() || job.stream_seq.is_some() || job.attempt > 0
        });
    }

    fn known(&self, job_ids: &[JobId]) -> Vec<Known> {
        let known = |job_id: &JobId| {
            let published = self.jobs.get(job_id)?.end.as_ref().is_some_and(|end| end.published);
            Some(Known { job_id: job_id.clone(), published })
        };
        job_ids.iter().filter_map(known).collect()
    }

    fn wish(&mut self, id: &str, target: Target, cancel: &Cancel) -> Met {
        let matches = |job_id: &JobId| target != Target::Thread && job_id.as_str() == id;
        if let Some((job_id, job)) = self.jobs.iter_mut().find(|(job_id, _)| matches(job_id)) {
            if job.end.is_none() && job.cancel.is_none() {
                job.cancel = Some(cancel.clone());
            }
            return Met { jobs: vec![wished(job_id, job)], waits: false };
        }
        if target != Target::Job {
            let of_thread = |job: &Job| job.thread_id.as_str() == id && job.end.is_none();
            let mut jobs = Vec::new();
            for (job_id, job) in self.jobs.iter_mut().filter(|(_, job)| of_thread(job)) {
                job.cancel.get_or_insert_with(|| cancel.clone());
                jobs.push(wished(job_id, job));
            }
            if !jobs.is_empty() || self.threads.keys().any(|thread_id| thread_id.as_str() == id) {
                return Met { jobs, waits: false };
            }
        }
        let Some(job_id) = JobId::parse(id).ok().filter(|_| target != Target::Thread) else {
            return Met::default();
        };
        self.wishes.entry(job_id).or_insert_with(|| cancel.clone());
        Met { jobs: Vec::new(), waits: true }
    }

    fn take_duty(&mut self, name: &'static str, every: Duration, by: &Claimant<'_>) -> bool {
        let is_taken = self.duties.get(name).is_some_and(|taken| by.now.since(*taken) < every);
        if !is_taken {
            self.duties.insert(name, by.now);
        }
        !is_taken
    }
}

fn wished(job_id: &JobId, job: &Job) -> Wished {
    Wished { job_id: job_id.clone(), thread_id: job.thread_id.clone(), state: job.state().to_owned() }
}

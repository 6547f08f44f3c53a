//! Background duties.

use std::time::Duration;

use super::{Claimant, Job, Tables, jobs::SUSPECT};
use crate::{
    ids::{JobId, ThreadId, UnixNanos},
    store::{Cancel, Doomed, Known, Met, Record, StoredResult, Target, Verdict, Wished},
};

/// How long a message that is held or under way may take to make itself heard.
const UNHEARD: Duration = Duration::from_secs(10);

impl Job {
    /// Whether a queued job may be taken up: one without a place waits a moment.
    pub(super) fn is_ready(&self, now: UnixNanos) -> bool {
        self.stream_seq.is_some() || now.since(self.accepted) > UNHEARD
    }

    pub(super) fn state(&self) -> &'static str {
        match &self.end {
            Some(end) => end.state.as_str(),
            None if self.running => "running",
            None => "queued",
        }
    }
}

impl Tables {
    pub(in crate::store::memory) fn orphans(
        &self,
        limit: usize,
        queued: bool,
        lane: bool,
        by: &Claimant<'_>,
    ) -> Vec<ThreadId> {
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

    pub(in crate::store::memory) fn adopt(
        &mut self,
        thread_id: &ThreadId,
        lane: bool,
        by: &Claimant<'_>,
    ) -> Option<Verdict> {
        let thread = self.thread(thread_id);
        if thread.owner.is_some() && thread.lease_until > by.now {
            return None;
        }
        self.claim_next(thread_id, lane, by)
    }

    pub(in crate::store::memory) fn doomed(&mut self, limit: usize, by: &Claimant<'_>) -> Vec<Doomed> {
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

    pub(in crate::store::memory) fn unpublished(
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

    pub(in crate::store::memory) fn record(&mut self, record: &Record, by: &Claimant<'_>) -> bool {
        let is_new = !self.jobs.contains_key(&record.job_id);
        if is_new {
            self.met(record, by);
        }
        is_new
    }

    pub(in crate::store::memory) fn forget(&mut self, job_id: &JobId) {
        self.jobs.retain(|id, job| {
            id != job_id || job.end.is_some() || job.stream_seq.is_some() || job.attempt > 0
        });
    }

    pub(in crate::store::memory) fn known(&self, job_ids: &[JobId]) -> Vec<Known> {
        let known = |job_id: &JobId| {
            let published = self.jobs.get(job_id)?.end.as_ref().is_some_and(|end| end.published);
            Some(Known { job_id: job_id.clone(), published })
        };
        job_ids.iter().filter_map(known).collect()
    }

    pub(in crate::store::memory) fn wish(&mut self, id: &str, target: Target, cancel: &Cancel) -> Met {
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

    pub(in crate::store::memory) fn take_duty(
        &mut self,
        name: &'static str,
        every: Duration,
        by: &Claimant<'_>,
    ) -> bool {
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

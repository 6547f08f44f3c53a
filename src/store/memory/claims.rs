//! Claims: who works on a thread, for how long, and which job comes next.

use std::{sync::Arc, time::Duration};

use super::tables::{Claimant, Job, Tables, Thread, fenced};
use crate::{
    ids::{Epoch, JobId, ThreadId, UnixNanos},
    store::{Claim, Error, Renewed, Verdict},
};

/// Charges from which on a job is a suspect.
pub(super) const SUSPECT: usize = 2;

/// How long a message that is held or under way may take to make itself heard.
pub(super) const UNHEARD: Duration = Duration::from_secs(10);

impl Tables {
    /// Claims the next open job of a thread that is free: a started one first, then the order of the stream.
    pub(super) fn claim_next(
        &mut self,
        thread_id: &ThreadId,
        lane: bool,
        by: &Claimant<'_>,
    ) -> Option<Verdict> {
        let next = self.open(thread_id).filter(|(_, job)| job.running || job.is_ready(by.now));
        let job_id = next.min_by_key(|(_, job)| job.order()).map(|(id, _)| id.clone())?;
        let head = self.newest(thread_id);
        let thread = self.thread(thread_id).clone();
        let job = self.jobs.get_mut(&job_id).expect("it was found above");
        let mut charged = job.charged.clone();
        if job.attempt > 0 && job.head_at_claim != head {
            charged.clear();
        } else if job.running
            && thread.owner.as_ref().is_some_and(|owner| owner != by.owner)
            && !charged.contains(&thread.epoch)
        {
            charged.push(thread.epoch);
        }
        let danger = if job.cancel.is_some() { 0 } else { charged.len() };
        if danger >= SUSPECT && !lane {
            return Some(Verdict::NeedLane);
        }
        job.charged = charged;
        let owner = Some(by.owner.clone());
        let thread = Thread { owner, chained_from: None, lease_until: by.lease_until(), head, ..thread };
        let claim = self.start(thread_id, job_id, (thread, by.now));
        Some(if danger >= by.config.max_crashes { Verdict::Poison(claim) } else { Verdict::Run(claim) })
    }

    /// Gives `thread` a new epoch and starts the job under it.
    pub(super) fn start(
        &mut self,
        thread_id: &ThreadId,
        job_id: JobId,
        (mut thread, now): (Thread, UnixNanos),
    ) -> Claim {
        self.last_epoch += 1;
        thread.epoch = Epoch(self.last_epoch);
        thread.job_id = Some(job_id.clone());
        let job = self.jobs.get_mut(&job_id).expect("the caller found it");
        if job.attempt == 0 {
            job.base_head.clone_from(&thread.head);
        }
        job.running = true;
        job.decided = true;
        job.attempt += 1;
        job.head_at_claim.clone_from(&thread.head);
        let claim = claim(thread_id, (job_id, job), &thread, now);
        self.threads.insert(thread_id.clone(), thread);
        claim
    }

    /// The claim that the finish of `epoch` handed on, as long as it stands.
    pub(super) fn chained(
        &self,
        thread_id: &ThreadId,
        thread: &Thread,
        by: &Claimant<'_>,
        epoch: Epoch,
    ) -> Option<Claim> {
        if thread.owner.as_ref() != Some(by.owner) || thread.chained_from != Some(epoch) {
            return None;
        }
        let job_id = thread.job_id.clone()?;
        let job = self.jobs.get(&job_id)?;
        Some(claim(thread_id, (job_id, job), thread, by.now))
    }

    pub(super) fn release(&mut self, claim: &Claim, by: &Claimant<'_>) -> Result<(), Error> {
        let thread = self.thread(&claim.thread_id);
        let ours = thread.owner.as_ref().is_none_or(|owner| owner == by.owner);
        if thread.epoch != claim.epoch || !ours {
            return Err(fenced(&claim.thread_id, claim.epoch));
        }
        *thread = freed(thread.clone());
        Ok(())
    }

    pub(super) fn refund(&mut self, claim: &Claim) {
        if let Some(job) = self.jobs.get_mut(&claim.job_id) {
            job.charged.retain(|epoch| *epoch != claim.epoch);
        }
    }

    pub(super) fn renew(&mut self, claims: &[(ThreadId, Epoch)], by: &Claimant<'_>) -> Vec<Renewed> {
        let mut renewed = Vec::new();
        for (thread_id, epoch) in claims {
            let thread = self.thread(thread_id);
            if thread.epoch == *epoch && thread.owner.as_ref() == Some(by.owner) {
                thread.lease_until = by.lease_until();
                let job_id = thread.job_id.clone();
                let cancel = job_id.and_then(|id| self.jobs.get(&id)?.cancel.clone());
                renewed.push(Renewed { thread_id: thread_id.clone(), epoch: *epoch, cancel });
            }
        }
        renewed
    }
}

impl Job {
    /// Whether a queued job may be taken up: one without a place waits a moment.
    pub(super) fn is_ready(&self, now: UnixNanos) -> bool {
        self.stream_seq.is_some() || now.since(self.accepted) > UNHEARD
    }

    /// A started job first, then the order of the stream; one without a place comes last.
    pub(super) fn order(&self) -> (bool, u64, UnixNanos) {
        (!self.running, self.stream_seq.unwrap_or(u64::MAX), self.accepted)
    }
}

fn claim(thread_id: &ThreadId, (job_id, job): (JobId, &Job), thread: &Thread, now: UnixNanos) -> Claim {
    Claim {
        thread_id: thread_id.clone(),
        epoch: thread.epoch,
        job_id,
        attempt: job.attempt,
        head: thread.head.clone(),
        request: job.request.clone(),
        time_left: job.deadline.since(now),
        cancel: job.cancel.clone(),
        suspect: job.charged.len() >= SUSPECT,
    }
}

pub(super) fn freed(thread: Thread) -> Thread {
    Thread { owner: None::<Arc<str>>, chained_from: None, lease_until: UnixNanos(0), ..thread }
}

//! Jobs: offered, claimed, ended.

use std::sync::Arc;

use bytes::Bytes;

use super::{Claimant, End, Job, Tables, Thread, fenced};
use crate::{
    ids::{CheckpointId, Epoch, JobId, ThreadId, UnixNanos},
    store::{
        Cancel, CancelKind, Claim, Ending, Error, Finish, NextJob, Offer, Record, Renewed, StoredResult,
        Verdict, langgraph::Rows,
    },
};

/// Charges from which on a job is a suspect.
pub(super) const SUSPECT: usize = 2;

impl Tables {
    /// Records a job that is new, or gives one that was recorded before its place in the stream.
    pub(super) fn met(&mut self, record: &Record, by: &Claimant<'_>) {
        if let Some(job) = self.jobs.get_mut(&record.job_id) {
            job.stream_seq = job.stream_seq.or(record.stream_seq);
            return;
        }
        let job = Job {
            thread_id: record.thread_id.clone(),
            stream_seq: record.stream_seq,
            copy_seq: None,
            policy: record.multitask_strategy,
            attempt: 0,
            charged: Vec::new(),
            head_at_claim: None,
            base_head: None,
            request: record.request.clone(),
            accepted: by.now,
            deadline: by.after(record.timeout),
            cancel: self.wishes.get(&record.job_id).cloned(),
            running: false,
            decided: false,
            end: None,
        };
        self.jobs.insert(record.job_id.clone(), job);
    }

    pub(in crate::store::memory) fn accept(&mut self, offer: &Offer, by: &Claimant<'_>) -> Verdict {
        let thread = self.thread(&offer.thread_id).clone();
        let record = Record {
            job_id: offer.job_id.clone(),
            thread_id: offer.thread_id.clone(),
            stream_seq: Some(offer.stream_seq),
            multitask_strategy: offer.multitask_strategy,
            request: offer.request.clone(),
            timeout: offer.timeout,
        };
        self.met(&record, by);
        let job = &self.jobs[&offer.job_id];
        if let Some(end) = &job.end {
            if end.published {
                return Verdict::Done;
            }
            return Verdict::DoneUnpublished { result: end.result.clone(), ended: by.now.since(end.at) };
        }
        if !job.decided && !job.running && job.cancel.is_none() {
            self.decide_for(&offer.job_id);
        }
        let job = &self.jobs[&offer.job_id];
        match &job.cancel {
            Some(cancel) if cancel.kind == CancelKind::Reject && !job.running => {
                return Verdict::Rejected(cancel.clone());
            }
            Some(_) | None => {}
        }
        let is_ours = thread.owner.as_ref() == Some(by.owner) && offer.running == Some(thread.epoch);
        if thread.owner.is_some() && (thread.lease_until > by.now || is_ours) {
            let retry_in = thread.lease_until.since(by.now);
            let itself = thread.job_id.as_ref() == Some(&offer.job_id);
            return if itself {
                Verdict::RunningElsewhere { retry_in }
            } else {
                Verdict::Parked { retry_in }
            };
        }
        // Without one, the job was first offered under another thread and is still open there.
        let elsewhere = Verdict::RunningElsewhere { retry_in: by.config.lease };
        self.claim_next(&offer.thread_id, offer.lane, by).unwrap_or(elsewhere)
    }

    /// What a new job wants of those before it, by its policy.
    fn decide_for(&mut self, job_id: &JobId) {
        self.jobs.get_mut(job_id).expect("the caller has just met it").decided = true;
        let kind = match self.jobs[job_id].policy {
            "reject" => {
                let others = self.before(job_id).filter(|(_, job)| !job.is_turned_away());
                let first = others.min_by_key(|(_, job)| job.order()).map(|(id, _)| id.to_string());
                let job = self.jobs.get_mut(job_id).expect("the caller has just met it");
                job.cancel = first.map(|by| Cancel { kind: CancelKind::Reject, by, reason: None });
                return;
            }
            "interrupt" => CancelKind::Interrupt,
            "rollback" => CancelKind::Rollback,
            _ => return,
        };
        let cancel = Cancel { kind, by: job_id.to_string(), reason: None };
        let unwanted: Vec<JobId> = self.before(job_id).map(|(id, _)| id.clone()).collect();
        for id in unwanted {
            let job = self.jobs.get_mut(&id).expect("it was found above");
            job.cancel.get_or_insert_with(|| cancel.clone());
        }
    }

    /// Open jobs of the same thread that run, or stand before `job_id` in the stream. One without a place comes later.
    fn before(&self, job_id: &JobId) -> impl Iterator<Item = (&JobId, &Job)> {
        let job = &self.jobs[job_id];
        let stands_before =
            |other: &Job| matches!((other.stream_seq, job.stream_seq), (Some(a), Some(b)) if a < b);
        self.open(&job.thread_id)
            .filter(move |(id, other)| *id != job_id && (other.running || stands_before(other)))
    }

    /// Jobs of the thread that have not ended.
    pub(super) fn open(&self, thread_id: &ThreadId) -> impl Iterator<Item = (&JobId, &Job)> {
        self.jobs.iter().filter(move |(_, job)| job.thread_id == *thread_id && job.end.is_none())
    }

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
    fn start(
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

    pub(in crate::store::memory) fn finish(
        &mut self,
        finish: &Finish,
        rows: &Rows,
        by: &Claimant<'_>,
    ) -> Result<Option<Claim>, Error> {
        let (thread_id, epoch) = (&finish.claim.thread_id, finish.claim.epoch);
        let thread = self.thread(thread_id).clone();
        let job = self.jobs.get(&finish.claim.job_id).ok_or_else(|| fenced(thread_id, epoch))?;
        if job.end.as_ref().is_some_and(|end| end.epoch == Some(epoch)) {
            return Ok(self.chained(thread_id, &thread, by, epoch));
        }
        let held = thread.epoch == epoch && thread.owner.as_ref() == Some(by.owner);
        if !held || thread.job_id.as_ref() != Some(&finish.claim.job_id) {
            return Err(fenced(thread_id, epoch));
        }
        if let Some(last) = &finish.last {
            self.commit(last, rows, by)?;
        }
        let job = self.jobs.get_mut(&finish.claim.job_id).expect("it was found above");
        job.running = false;
        job.end = Some(End {
            state: finish.state,
            epoch: Some(epoch),
            result: finish.result.clone(),
            body: finish.body.clone(),
            error: finish.error.clone(),
            published: false,
            at: by.now,
        });
        if finish.undo {
            self.undo(thread_id, &finish.claim.job_id);
        }
        let thread = self.thread(thread_id).clone();
        let ready = self.open(thread_id).filter(|(_, job)| job.is_ready(by.now));
        let next = ready.min_by_key(|(_, job)| job.order()).map(|(id, _)| id.clone());
        match next.filter(|_| finish.next == NextJob::Take) {
            Some(job_id) => {
                let thread = Thread { chained_from: Some(epoch), lease_until: by.lease_until(), ..thread };
                Ok(Some(self.start(thread_id, job_id, (thread, by.now))))
            }
            None => {
                *self.thread(thread_id) = Thread { job_id: None, ..freed(thread) };
                Ok(None)
            }
        }
    }

    /// Takes back what a job stored.
    fn undo(&mut self, thread_id: &ThreadId, job_id: &JobId) {
        let own = |metadata: &str| {
            let metadata: serde_json::Value = serde_json::from_str(metadata).unwrap_or_default();
            metadata["job_id"] == job_id.as_str()
        };
        for ((thread, ns), of_graph) in &mut self.checkpoints {
            if thread != thread_id {
                continue;
            }
            let gone: Vec<CheckpointId> =
                of_graph.iter().filter(|(_, row)| own(&row.metadata)).map(|(id, _)| id.clone()).collect();
            for id in gone {
                of_graph.remove(&id);
                self.writes.remove(&((thread.clone(), ns.clone()), id));
            }
        }
        self.checkpoints.retain(|_, of_graph| !of_graph.is_empty());
        let base = self.jobs[job_id].base_head.clone();
        self.thread(thread_id).head = base;
    }

    /// The claim that the finish of `epoch` handed on, as long as it stands.
    fn chained(
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

    pub(in crate::store::memory) fn end(&mut self, ending: &Ending, by: &Claimant<'_>) -> bool {
        let Some(job) = self.jobs.get_mut(&ending.result.job_id) else { return false };
        if job.running || job.end.is_some() {
            return false;
        }
        job.end = Some(End {
            state: ending.state,
            epoch: None,
            result: ending.result.clone(),
            body: ending.body.clone(),
            error: ending.error.clone(),
            published: false,
            at: by.now,
        });
        true
    }

    pub(in crate::store::memory) fn release(
        &mut self,
        claim: &Claim,
        by: &Claimant<'_>,
    ) -> Result<(), Error> {
        let thread = self.thread(&claim.thread_id);
        let ours = thread.owner.as_ref().is_none_or(|owner| owner == by.owner);
        if thread.epoch != claim.epoch || !ours {
            return Err(fenced(&claim.thread_id, claim.epoch));
        }
        *thread = freed(thread.clone());
        Ok(())
    }

    pub(in crate::store::memory) fn refund(&mut self, claim: &Claim) {
        if let Some(job) = self.jobs.get_mut(&claim.job_id) {
            job.charged.retain(|epoch| *epoch != claim.epoch);
        }
    }

    pub(in crate::store::memory) fn renew(
        &mut self,
        claims: &[(ThreadId, Epoch)],
        by: &Claimant<'_>,
    ) -> Vec<Renewed> {
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

    pub(in crate::store::memory) fn mark_published(&mut self, job_id: &JobId) {
        if let Some(end) = self.jobs.get_mut(job_id).and_then(|job| job.end.as_mut()) {
            end.published = true;
        }
    }

    pub(in crate::store::memory) fn result(&self, job_id: &JobId) -> Option<Bytes> {
        let end = self.jobs.get(job_id)?.end.as_ref()?;
        Some(end.body.as_ref().unwrap_or(&end.result.event).clone())
    }

    /// Results that wait since before `since`, oldest first.
    pub(super) fn waiting_results(&self, since: UnixNanos) -> Vec<(UnixNanos, StoredResult)> {
        let ends = self.jobs.values().filter_map(|job| job.end.as_ref());
        let late = ends.filter(|end| !end.published && end.at < since);
        let mut waiting: Vec<_> = late.map(|end| (end.at, end.result.clone())).collect();
        waiting.sort_by(|(at, a), (bt, b)| (at, &a.job_id).cmp(&(bt, &b.job_id)));
        waiting
    }
}

impl Job {
    fn is_turned_away(&self) -> bool {
        self.cancel.as_ref().is_some_and(|cancel| cancel.kind == CancelKind::Reject)
    }

    /// A started job first, then the order of the stream; one without a place comes last.
    fn order(&self) -> (bool, u64, UnixNanos) {
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

//! Jobs: offered, claimed, ended.

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    MemoryStore,
    claims::freed,
    tables::{Claimant, End, Job, Tables, Thread, fenced},
};
use crate::{
    ids::{CheckpointId, Epoch, JobId, ThreadId, UnixNanos},
    job::MultitaskStrategy,
    store::{
        Cancel, CancelKind, Claim, Ending, Error, Finish, Jobs, MAX_STATE_BYTES, NextJob, Offer, Record,
        Renewed, StoredResult, Verdict, langgraph::Rows,
    },
};

#[async_trait]
impl Jobs for MemoryStore {
    async fn accept(&self, offer: &Offer) -> Result<Verdict, Error> {
        self.write(|tables| Ok(tables.accept(offer, &self.claimant())))
    }

    async fn finish(&self, finish: &Finish) -> Result<Option<Claim>, Error> {
        let rows = finish
            .last
            .as_ref()
            .map(|last| Rows::encode(last, MAX_STATE_BYTES))
            .transpose()?
            .unwrap_or_default();
        self.write(|tables| tables.finish(finish, &rows, &self.claimant()))
    }

    async fn end(&self, ending: &Ending) -> Result<bool, Error> {
        self.write(|tables| Ok(tables.end(ending, &self.claimant())))
    }

    async fn release(&self, claim: &Claim) -> Result<(), Error> {
        self.write(|tables| tables.release(claim, &self.claimant()))
    }

    async fn refund(&self, claim: &Claim) -> Result<(), Error> {
        self.write(|tables| {
            tables.refund(claim);
            Ok(())
        })
    }

    async fn renew(&self, claims: &[(ThreadId, Epoch)]) -> Result<Vec<Renewed>, Error> {
        Ok(self.tables()?.renew(claims, &self.claimant()))
    }

    async fn mark_published(&self, job_id: &JobId) -> Result<(), Error> {
        self.write(|tables| {
            tables.mark_published(job_id);
            Ok(())
        })
    }

    async fn result(&self, job_id: &JobId) -> Result<Option<Bytes>, Error> {
        Ok(self.tables()?.result(job_id))
    }

    async fn ping(&self) -> Result<(), Error> {
        self.tables().map(drop)
    }
}

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

    fn accept(&mut self, offer: &Offer, by: &Claimant<'_>) -> Verdict {
        let Offer { record, running, lane } = offer;
        let Record { job_id, thread_id, .. } = record;
        let thread = self.thread(thread_id).clone();
        self.met(record, by);
        let job = &self.jobs[job_id];
        if let Some(end) = &job.end {
            if end.published {
                return Verdict::Done;
            }
            return Verdict::DoneUnpublished { result: end.result.clone(), ended: by.now.since(end.at) };
        }
        if !job.decided && !job.running && job.cancel.is_none() {
            self.decide_for(job_id);
        }
        let job = &self.jobs[job_id];
        match &job.cancel {
            Some(cancel) if cancel.kind == CancelKind::Reject && !job.running => {
                return Verdict::Rejected(cancel.clone());
            }
            Some(_) | None => {}
        }
        let is_ours = thread.owner.as_ref() == Some(by.owner) && *running == Some(thread.epoch);
        if thread.owner.is_some() && (thread.lease_until > by.now || is_ours) {
            let retry_in = thread.lease_until.since(by.now);
            let itself = thread.job_id.as_ref() == Some(job_id);
            return if itself {
                Verdict::RunningElsewhere { retry_in }
            } else {
                Verdict::Parked { retry_in }
            };
        }
        // Without one, the job was first offered under another thread and is still open there.
        let elsewhere = Verdict::RunningElsewhere { retry_in: by.config.lease };
        self.claim_next(thread_id, *lane, by).unwrap_or(elsewhere)
    }

    /// What a new job wants of those before it, by its policy.
    fn decide_for(&mut self, job_id: &JobId) {
        self.jobs.get_mut(job_id).expect("the caller has just met it").decided = true;
        let kind = match self.jobs[job_id].policy {
            MultitaskStrategy::Enqueue => return,
            MultitaskStrategy::Reject => {
                let others = self.before(job_id).filter(|(_, job)| !job.is_turned_away());
                let first = others.min_by_key(|(_, job)| job.order()).map(|(id, _)| id.to_string());
                let job = self.jobs.get_mut(job_id).expect("the caller has just met it");
                job.cancel = first.map(|by| Cancel { kind: CancelKind::Reject, by, reason: None });
                return;
            }
            MultitaskStrategy::Interrupt => CancelKind::Interrupt,
            MultitaskStrategy::Rollback => CancelKind::Rollback,
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

    fn finish(&mut self, finish: &Finish, rows: &Rows, by: &Claimant<'_>) -> Result<Option<Claim>, Error> {
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

    fn end(&mut self, ending: &Ending, by: &Claimant<'_>) -> bool {
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

    fn mark_published(&mut self, job_id: &JobId) {
        if let Some(end) = self.jobs.get_mut(job_id).and_then(|job| job.end.as_mut()) {
            end.published = true;
        }
    }

    fn result(&self, job_id: &JobId) -> Option<Bytes> {
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
    pub(super) fn state(&self) -> &'static str {
        match &self.end {
            Some(end) => end.state.as_str(),
            None if self.running => "running",
            None => "queued",
        }
    }

    fn is_turned_away(&self) -> bool {
        self.cancel.as_ref().is_some_and(|cancel| cancel.kind == CancelKind::Reject)
    }
}

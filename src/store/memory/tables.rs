//! The tables in memory and the rules of their functions, as `migrations/0002_executor.sql` has them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use super::Config;
use crate::{
    ids::{CheckpointId, Epoch, JobId, Namespace, TaskId, ThreadId, UnixNanos},
    pregel::Version,
    store::{
        Claim, Commit, DeadLetter, Error, Finish, JobState, NextJob, Offer, StoredResult, Verdict,
        langgraph::{Rows, StoredBlob, StoredRow, StoredWrite, WriteRow},
    },
    value::Name,
};

/// Who asks, and when.
pub(super) struct Claimant<'a> {
    pub(super) owner: &'a Arc<str>,
    pub(super) now: UnixNanos,
    pub(super) config: Config,
}

impl Claimant<'_> {
    fn lease_until(&self) -> UnixNanos {
        self.after(self.config.lease)
    }

    fn after(&self, time: Duration) -> UnixNanos {
        UnixNanos(self.now.0.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
    }
}

type Graph = (ThreadId, Namespace);

#[derive(Default)]
pub(super) struct Tables {
    last_epoch: i64,
    threads: BTreeMap<ThreadId, Thread>,
    jobs: BTreeMap<JobId, Job>,
    checkpoints: BTreeMap<Graph, BTreeMap<CheckpointId, Row>>,
    blobs: HashMap<(Graph, Name, Version), Typed>,
    writes: BTreeMap<(Graph, CheckpointId), BTreeMap<(TaskId, i32), Written>>,
    letters: BTreeMap<(String, u64), DeadLetter>,
}

#[derive(Clone)]
struct Thread {
    epoch: Epoch,
    owner: Option<Arc<str>>,
    /// The epoch whose finish handed the thread on to this claim.
    chained_from: Option<Epoch>,
    job_id: Option<JobId>,
    lease_until: UnixNanos,
    head: Option<CheckpointId>,
}

struct Job {
    thread_id: ThreadId,
    stream_seq: u64,
    attempt: u32,
    charged: Vec<Epoch>,
    head_at_claim: Option<CheckpointId>,
    request: Bytes,
    deadline: UnixNanos,
    running: bool,
    end: Option<End>,
}

struct End {
    #[expect(dead_code, reason = "kept as the table keeps it; nothing in memory asks for it yet")]
    state: JobState,
    epoch: Epoch,
    result: StoredResult,
    body: Option<Bytes>,
    published: bool,
    at: UnixNanos,
}

struct Row {
    parent: Option<CheckpointId>,
    checkpoint: String,
    metadata: String,
}

struct Typed {
    kind: &'static str,
    blob: Vec<u8>,
}

struct Written {
    task_path: Arc<str>,
    channel: Name,
    value: Typed,
}

impl Tables {
    pub(super) fn expire_leases(&mut self, now: UnixNanos) {
        for thread in self.threads.values_mut() {
            thread.lease_until = thread.lease_until.min(now);
        }
    }

    fn thread(&mut self, id: &ThreadId) -> &mut Thread {
        self.threads.entry(id.clone()).or_insert(Thread {
            epoch: Epoch(0),
            owner: None,
            chained_from: None,
            job_id: None,
            lease_until: UnixNanos(0),
            head: None,
        })
    }

    fn newest(&self, thread_id: &ThreadId) -> Option<CheckpointId> {
        let rows = self.checkpoints.get(&(thread_id.clone(), Namespace::root()))?;
        rows.last_key_value().map(|(id, _)| id.clone())
    }

    pub(super) fn accept(&mut self, offer: &Offer, by: &Claimant<'_>) -> Verdict {
        let thread = self.thread(&offer.thread_id).clone();
        let job = self.jobs.entry(offer.job_id.clone()).or_insert_with(|| Job {
            thread_id: offer.thread_id.clone(),
            stream_seq: offer.stream_seq,
            attempt: 0,
            charged: Vec::new(),
            head_at_claim: None,
            request: offer.request.clone(),
            deadline: by.after(offer.timeout),
            running: false,
            end: None,
        });
        if let Some(end) = &job.end {
            if end.published {
                return Verdict::Done;
            }
            return Verdict::DoneUnpublished { result: end.result.clone(), ended: by.now.since(end.at) };
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
        // A started job first, then the order of the stream.
        let open = self.jobs.iter().filter(|(_, job)| job.thread_id == offer.thread_id && job.end.is_none());
        let next = open.min_by_key(|(_, job)| (!job.running, job.stream_seq)).map(|(id, _)| id.clone());
        match next {
            Some(job_id) => self.claim(&offer.thread_id, job_id, by),
            // The job was first offered under another thread and is still open there.
            None => Verdict::RunningElsewhere { retry_in: by.config.lease },
        }
    }

    fn claim(&mut self, thread_id: &ThreadId, job_id: JobId, by: &Claimant<'_>) -> Verdict {
        let head = self.newest(thread_id);
        let thread = self.thread(thread_id).clone();
        let job = self.jobs.get_mut(&job_id).expect("the caller found it");
        if job.attempt > 0 && job.head_at_claim != head {
            job.charged.clear();
        } else if job.running && thread.owner.is_some() && !job.charged.contains(&thread.epoch) {
            job.charged.push(thread.epoch);
        }
        let suspected = job.charged.len() >= by.config.max_crashes;
        let thread = Thread {
            owner: Some(by.owner.clone()),
            chained_from: None,
            lease_until: by.lease_until(),
            head,
            ..thread
        };
        let claim = self.start(thread_id, job_id, (thread, by.now));
        if suspected { Verdict::Poison(claim) } else { Verdict::Run(claim) }
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
        job.running = true;
        job.attempt += 1;
        job.head_at_claim.clone_from(&thread.head);
        let claim = Claim {
            thread_id: thread_id.clone(),
            epoch: thread.epoch,
            job_id,
            attempt: job.attempt,
            head: thread.head.clone(),
            request: job.request.clone(),
            time_left: job.deadline.since(now),
        };
        self.threads.insert(thread_id.clone(), thread);
        claim
    }

    pub(super) fn finish(&mut self, finish: &Finish, by: &Claimant<'_>) -> Result<Option<Claim>, Error> {
        let claim = &finish.claim;
        let thread = self.thread(&claim.thread_id).clone();
        let job = self.jobs.get_mut(&claim.job_id).ok_or_else(|| fenced(&claim.thread_id, claim.epoch))?;
        if job.end.as_ref().is_some_and(|end| end.epoch == claim.epoch) {
            return Ok(self.chained(&claim.thread_id, &thread, by, claim.epoch));
        }
        let held = thread.epoch == claim.epoch && thread.owner.as_ref() == Some(by.owner);
        if !held || thread.job_id.as_ref() != Some(&claim.job_id) {
            return Err(fenced(&claim.thread_id, claim.epoch));
        }
        job.running = false;
        job.end = Some(End {
            state: finish.state,
            epoch: claim.epoch,
            result: finish.result.clone(),
            body: finish.body.clone(),
            published: false,
            at: by.now,
        });
        let queued =
            self.jobs.iter().filter(|(_, job)| job.thread_id == claim.thread_id && job.end.is_none());
        let next = queued.min_by_key(|(_, job)| job.stream_seq).map(|(id, _)| id.clone());
        match next.filter(|_| finish.next == NextJob::Take) {
            Some(job_id) => {
                let chained_from = Some(claim.epoch);
                let thread = Thread { chained_from, lease_until: by.lease_until(), ..thread };
                Ok(Some(self.start(&claim.thread_id, job_id, (thread, by.now))))
            }
            None => {
                *self.thread(&claim.thread_id) = Thread { job_id: None, ..freed(thread) };
                Ok(None)
            }
        }
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
        Some(Claim {
            thread_id: thread_id.clone(),
            epoch: thread.epoch,
            job_id,
            attempt: job.attempt,
            head: thread.head.clone(),
            request: job.request.clone(),
            time_left: job.deadline.since(by.now),
        })
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

    pub(super) fn renew(
        &mut self,
        claims: &[(ThreadId, Epoch)],
        by: &Claimant<'_>,
    ) -> Vec<(ThreadId, Epoch)> {
        let mut renewed = Vec::new();
        for (thread_id, epoch) in claims {
            let thread = self.thread(thread_id);
            if thread.epoch == *epoch && thread.owner.as_ref() == Some(by.owner) {
                thread.lease_until = by.lease_until();
                renewed.push((thread_id.clone(), *epoch));
            }
        }
        renewed
    }

    pub(super) fn mark_published(&mut self, job_id: &JobId) {
        if let Some(end) = self.jobs.get_mut(job_id).and_then(|job| job.end.as_mut()) {
            end.published = true;
        }
    }

    pub(super) fn result(&self, job_id: &JobId) -> Option<Bytes> {
        let end = self.jobs.get(job_id)?.end.as_ref()?;
        Some(end.body.as_ref().unwrap_or(&end.result.event).clone())
    }

    pub(super) fn bury(&mut self, letter: &DeadLetter) {
        self.letters.entry((letter.stream.clone(), letter.stream_seq)).or_insert_with(|| letter.clone());
    }

    pub(super) fn namespaces(&self, thread_id: &ThreadId) -> Vec<Namespace> {
        self.checkpoints.keys().filter(|(thread, _)| thread == thread_id).map(|(_, ns)| ns.clone()).collect()
    }

    pub(super) fn letters(&self) -> Vec<DeadLetter> {
        self.letters.values().cloned().collect()
    }

    pub(super) fn commit(&mut self, commit: &Commit, rows: &Rows, by: &Claimant<'_>) -> Result<(), Error> {
        let thread = self.thread(&commit.thread_id);
        let held = thread.epoch == commit.epoch && thread.owner.as_ref() == Some(by.owner);
        let moves = commit.advance.as_ref().is_none_or(|advance| {
            let repeated = thread.head.as_ref() == Some(&advance.to);
            let grows = advance.from.as_ref().is_none_or(|from| advance.to > *from);
            repeated || (thread.head == advance.from && grows)
        });
        if !held || !moves {
            return Err(fenced(&commit.thread_id, commit.epoch));
        }
        if let Some(advance) = &commit.advance {
            thread.head = Some(advance.to.clone());
        }
        thread.lease_until = by.lease_until();
        self.insert(&commit.thread_id, rows);
        Ok(())
    }

    fn insert(&mut self, thread_id: &ThreadId, rows: &Rows) {
        let graph = |ns: &Namespace| (thread_id.clone(), ns.clone());
        let typed = |kind, range: &_| Typed { kind, blob: rows.blob(range).to_vec() };
        for row in &rows.blobs {
            let key = (graph(&row.ns), row.channel.clone(), row.version.clone());
            self.blobs.entry(key).or_insert_with(|| typed(row.kind, &row.blob));
        }
        for row in &rows.writes {
            let WriteRow { task_id, task_path, idx, channel, kind, blob, .. } = row;
            let of_checkpoint = self.writes.entry((graph(&row.ns), row.checkpoint_id.clone())).or_default();
            let written = || Written {
                task_path: task_path.clone(),
                channel: channel.clone(),
                value: typed(kind, blob),
            };
            let place = of_checkpoint.entry((task_id.clone(), *idx));
            // Ordinary writes are immutable; errors, questions and answers are replaced.
            if *idx < 0 {
                place.insert_entry(written());
            } else {
                place.or_insert_with(written);
            }
        }
        for row in &rows.checkpoints {
            let of_graph = self.checkpoints.entry(graph(&row.ns)).or_default();
            of_graph.entry(row.id.clone()).or_insert_with(|| Row {
                parent: row.parent.clone(),
                checkpoint: row.checkpoint.clone(),
                metadata: row.metadata.clone(),
            });
        }
    }

    /// The newest `limit` checkpoints of a graph, or the one called `id`.
    pub(super) fn checkpoints(
        &self,
        thread_id: &ThreadId,
        ns: &Namespace,
        id: Option<&CheckpointId>,
        limit: usize,
    ) -> Vec<StoredRow> {
        let graph = (thread_id.clone(), ns.clone());
        let rows = self.checkpoints.get(&graph).into_iter().flatten().rev();
        let chosen = rows.filter(|(row, _)| id.is_none_or(|id| *row == id)).take(limit);
        chosen.map(|(id, row)| self.stored(&graph, id, row)).collect()
    }

    fn stored(&self, graph: &Graph, id: &CheckpointId, row: &Row) -> StoredRow {
        let checkpoint: serde_json::Value =
            serde_json::from_str(&row.checkpoint).expect("it was written by the codec");
        let versions = checkpoint["channel_versions"].as_object().into_iter().flatten();
        let blobs = versions.filter_map(|(channel, version)| {
            let key = (graph.clone(), Name::from(&**channel), Version::from(version.as_str()?));
            let Typed { kind, blob } = self.blobs.get(&key)?;
            Some(StoredBlob { channel: channel.clone(), kind: (*kind).to_owned(), blob: blob.clone() })
        });
        let written = self.writes.get(&(graph.clone(), id.clone())).into_iter().flatten();
        let mut writes: Vec<StoredWrite> = written
            .map(|((task_id, idx), Written { task_path, channel, value })| StoredWrite {
                task_id: task_id.to_string(),
                task_path: task_path.to_string(),
                idx: *idx,
                channel: channel.to_string(),
                kind: value.kind.to_owned(),
                blob: value.blob.clone(),
            })
            .collect();
        // Stable: task id and idx are in order already.
        writes.sort_by(|a, b| a.task_path.cmp(&b.task_path));
        StoredRow {
            checkpoint: row.checkpoint.clone(),
            metadata: row.metadata.clone(),
            parent: row.parent.as_ref().map(ToString::to_string),
            blobs: blobs.collect(),
            writes,
        }
    }
}

fn freed(thread: Thread) -> Thread {
    Thread { owner: None, chained_from: None, lease_until: UnixNanos(0), ..thread }
}

fn fenced(thread_id: &ThreadId, epoch: Epoch) -> Error {
    Error::Fenced { thread_id: thread_id.clone(), epoch }
}

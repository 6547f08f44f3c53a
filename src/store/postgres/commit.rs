//! The commit task: gathers commits of many threads into one statement after the other.
//!
//! **Invariant:** a statement holds one fence per thread; commits of one thread keep their order.
//! **Invariant:** a commit is answered exactly once: stored, fenced, refused, or unavailable at the end of the
//! process. Until then it is tried again, and repeating one that had landed changes nothing.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use sqlx::{Row, postgres::PgRow};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    failure::Failure,
    jobs::Columns,
    late::{self, Late, Tried},
    link::{Dedicated, Link, count_error},
    statement,
};
use crate::{
    ids::{Epoch, ThreadId},
    store::{Advance, Claim, Commit, Error, Finish, JobState, NextJob, StoredResult, langgraph::Rows},
    telemetry::metric,
};

/// Commits in one statement. Past 64 the gain is small (6 700 → 8 300 per second at 128 in the prototype) and
/// one slow statement holds up more threads.
const MAX_BATCH: usize = 64;

/// Commits the task holds: a batch, and another one behind it. Those of threads that wait for a lock count too.
const MAX_BACKLOG: usize = 2 * MAX_BATCH;

/// Bytes in one statement, so that a batch of large states neither waits long nor takes much memory twice.
const MAX_BATCH_BYTES: usize = 4 << 20;

/// Commits that wait for the task; callers beyond it wait to hand theirs in.
pub(super) const QUEUE: usize = 256;

/// First pause after a failure, doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Longest pause: a database that came back is found again within this time.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The end of a job, as it is committed.
pub(super) struct End {
    pub(super) claim: Claim,
    pub(super) state: JobState,
    pub(super) result: StoredResult,
    pub(super) body: Option<Bytes>,
    pub(super) error: Option<serde_json::Value>,
    pub(super) next: NextJob,
    pub(super) undo: bool,
}

/// What a commit is answered: the thread's next job, when one was handed over.
pub(super) type Answer = Result<Option<Claim>, Error>;

/// A commit on its way.
pub(super) struct Entry {
    thread_id: ThreadId,
    epoch: Epoch,
    advance: Option<Advance>,
    rows: Rows,
    end: Option<Box<End>>,
    since: Instant,
    answer: oneshot::Sender<Answer>,
}

impl Entry {
    pub(super) fn new(commit: Commit, rows: Rows) -> (Self, oneshot::Receiver<Answer>) {
        let (answer, answered) = oneshot::channel();
        let Commit { thread_id, epoch, advance, .. } = commit;
        (Self { thread_id, epoch, advance, rows, end: None, since: Instant::now(), answer }, answered)
    }

    /// The end of a job, with `rows` of its last commit: what that holds is in them and not copied once more.
    pub(super) fn ending(finish: &Finish, rows: Rows) -> (Self, oneshot::Receiver<Answer>) {
        let Finish { claim, state, result, body, error, next, last, undo } = finish;
        let advance = last.as_ref().and_then(|last| last.advance.clone());
        let fenced = Commit { advance, ..Commit::empty(claim.thread_id.clone(), claim.epoch) };
        let (entry, answered) = Self::new(fenced, rows);
        let end = End {
            claim: claim.clone(),
            state: *state,
            result: result.clone(),
            body: body.clone(),
            error: error.clone(),
            next: *next,
            undo: *undo,
        };
        (Self { end: Some(Box::new(end)), ..entry }, answered)
    }

    pub(super) fn thread_id(&self) -> &ThreadId {
        &self.thread_id
    }

    /// Bytes it adds to a statement.
    fn size(&self) -> usize {
        let body = |end: &End| end.result.event.len() + end.body.as_ref().map_or(0, Bytes::len);
        self.rows.size() + self.end.as_deref().map_or(0, body)
    }

    fn settle(self, result: Answer) {
        metrics::histogram!(metric::COMMIT_SECONDS).record(self.since.elapsed().as_secs_f64());
        if matches!(result, Err(Error::Fenced { .. })) {
            metrics::counter!(metric::FENCED_WRITES).increment(1);
        }
        // Nobody listens when the caller went away; the write counts all the same.
        let _ = self.answer.send(result);
    }

    fn fail(self, failure: Failure) {
        let error = failure.into_error();
        tracing::warn!(thread_id = %self.thread_id, %error, "commit failed");
        self.settle(Err(error));
    }
}

/// Commits of one thread under one fence. More than one only when none of them moves the head or ends a job.
pub(super) struct Group {
    entries: Vec<Entry>,
}

impl Group {
    pub(super) fn thread_id(&self) -> &ThreadId {
        &self.first().thread_id
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.first().epoch
    }

    pub(super) fn advance(&self) -> Option<&Advance> {
        self.first().advance.as_ref()
    }

    pub(super) fn end(&self) -> Option<&End> {
        self.first().end.as_deref()
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = &Rows> {
        self.entries.iter().map(|entry| &entry.rows)
    }

    fn first(&self) -> &Entry {
        self.entries.first().expect("a group is made of its first entry")
    }

    fn takes(&self, entry: &Entry) -> bool {
        let stays = |entry: &Entry| entry.advance.is_none() && entry.end.is_none();
        stays(self.first()) && stays(entry) && self.epoch() == entry.epoch
    }
}

/// The next batch: as many threads as fit, from the front of `backlog`, which keeps the rest in order. Threads with
/// a commit in `late` have to wait.
fn next_batch(backlog: &mut VecDeque<Entry>, late: &Late) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    // Where a thread's group is; `None` once a commit of the thread had to wait.
    let mut places: HashMap<ThreadId, Option<usize>> = HashMap::new();
    let mut waiting = VecDeque::new();
    let (mut taken, mut bytes) = (0, 0);
    while let Some(entry) = backlog.pop_front() {
        if taken == MAX_BATCH || (taken > 0 && bytes + entry.size() > MAX_BATCH_BYTES) {
            backlog.push_front(entry);
            break;
        }
        let size = entry.size();
        match places.get_mut(&entry.thread_id) {
            None if late.holds(&entry.thread_id) => {
                waiting.push_back(entry);
                continue;
            }
            None => {
                places.insert(entry.thread_id.clone(), Some(groups.len()));
                groups.push(Group { entries: vec![entry] });
            }
            Some(Some(place)) if groups[*place].takes(&entry) => groups[*place].entries.push(entry),
            Some(place) => {
                *place = None;
                waiting.push_back(entry);
                continue;
            }
        }
        taken += 1;
        bytes += size;
    }
    waiting.append(backlog);
    *backlog = waiting;
    groups
}

/// What the commit task works with.
pub(super) struct Committer {
    pub(super) link: Link,
    pub(super) owner: String,
    pub(super) lease: Duration,
    /// Ends the endless tries at the end of the process.
    pub(super) closing: CancellationToken,
}

impl Committer {
    /// Serves `inbox` until it is closed and empty.
    pub(super) async fn run(self, mut inbox: mpsc::Receiver<Entry>) {
        let committer = Arc::new(self);
        let (mut connection, mut late) = (None, Late::default());
        let mut backlog = VecDeque::new();
        let mut arrived = Vec::with_capacity(MAX_BATCH);
        let mut open = true;
        loop {
            late.start(&committer);
            while backlog.len() < MAX_BACKLOG
                && let Ok(entry) = inbox.try_recv()
            {
                backlog.push_back(entry);
            }
            let groups = next_batch(&mut backlog, &late);
            if !groups.is_empty() {
                let held = committer.settle(&mut connection, groups, &mut late).await;
                held.into_iter().rev().for_each(|entry| backlog.push_front(entry));
                late.collect();
                continue;
            }
            if !open && backlog.is_empty() && late.is_empty() {
                return;
            }
            tokio::select! {
                count = inbox.recv_many(&mut arrived, MAX_BATCH), if open && backlog.len() < MAX_BACKLOG => {
                    open = count > 0;
                    backlog.extend(arrived.drain(..));
                }
                () = late.tried(), if !late.is_empty() => {}
                // What was handed in before is still served.
                () = committer.closing.cancelled(), if !inbox.is_closed() => inbox.close(),
            }
        }
    }

    /// Writes a batch and answers everyone in it but those that move to `late`, and those behind them on the same
    /// thread, which come back in their order.
    async fn settle(
        &self,
        connection: &mut Option<Dedicated>,
        groups: Vec<Group>,
        late: &mut Late,
    ) -> Vec<Entry> {
        metrics::histogram!(metric::COMMIT_BATCH).record(precise(commits_in(&groups)));
        let mut batches = VecDeque::from([groups]);
        let mut held = Vec::new();
        while let Some(mut groups) = batches.pop_front() {
            if groups.iter().any(|group| late.holds(group.thread_id())) {
                held.extend(groups.into_iter().flat_map(|group| group.entries));
                continue;
            }
            match self.write(connection, &groups).await {
                Ok(rows) => answer(groups, &rows),
                // One entry's fault must not become its neighbours': each alone.
                Err(_) if commits_in(&groups) > 1 => {
                    let entries = groups.into_iter().flat_map(|group| group.entries);
                    batches.extend(entries.map(|entry| vec![Group { entries: vec![entry] }]));
                }
                Err(failure) => {
                    let entry = groups.pop().and_then(|mut group| group.entries.pop());
                    let entry = entry.expect("it holds one commit");
                    if matches!(failure, Failure::TooSlow(_)) && !self.closing.is_cancelled() {
                        late.add(entry);
                    } else {
                        entry.fail(failure);
                    }
                }
            }
        }
        held
    }

    /// Tries a commit once, on a connection of its own.
    pub(super) async fn try_alone(&self, entry: Entry) -> Tried {
        let thread_id = entry.thread_id.clone();
        let mut group = Group { entries: vec![entry] };
        let statement = statement::commit(std::slice::from_ref(&group), &self.owner, self.lease);
        let failure = match self.link.rows_on(&mut None, statement).await {
            Ok(rows) => {
                answer(vec![group], &rows);
                return Ok(thread_id);
            }
            Err(failure) => failure,
        };
        let entry = group.entries.pop().expect("it holds one commit");
        match &failure {
            Failure::Away(error) | Failure::TooSlow(error) if !self.closing.is_cancelled() => {
                count_error();
                tracing::warn!(%thread_id, %error, "commit waits beside the others");
                self.closing.run_until_cancelled(tokio::time::sleep(late::PAUSE)).await;
                Err(Box::new(entry))
            }
            Failure::Away(_) | Failure::TooSlow(_) | Failure::Refused(_) => {
                entry.fail(failure);
                Ok(thread_id)
            }
        }
    }

    /// One row per thread. Tries again while the database is away.
    async fn write(
        &self,
        connection: &mut Option<Dedicated>,
        groups: &[Group],
    ) -> Result<Vec<PgRow>, Failure> {
        let commits = commits_in(groups);
        let mut pause = FIRST_PAUSE;
        loop {
            let statement = statement::commit(groups, &self.owner, self.lease);
            let failure = match self.link.rows_on(connection, statement).await {
                Ok(rows) => return Ok(rows),
                Err(failure) => failure,
            };
            match &failure {
                Failure::Refused(_) | Failure::TooSlow(_) => return Err(failure),
                Failure::Away(error) => {
                    count_error();
                    tracing::warn!(%error, commits, "commit is tried again");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)) => {}
                () = self.closing.cancelled() => return Err(failure),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Tells every caller what became of its commit.
fn answer(groups: Vec<Group>, rows: &[PgRow]) {
    let of_thread: HashMap<&str, &PgRow> =
        rows.iter().filter_map(|row| Some((row.try_get::<&str, _>(0).ok()?, row))).collect();
    for group in groups {
        let row = of_thread.get(group.thread_id().as_str()).copied();
        for entry in group.entries {
            let result = match row {
                Some(row) if row.try_get::<bool, _>(1).unwrap_or(false) => {
                    next_claim(&Columns { row, thread_id: &entry.thread_id })
                }
                _ => Err(Error::Fenced { thread_id: entry.thread_id.clone(), epoch: entry.epoch }),
            };
            entry.settle(result);
        }
    }
}

/// The claim of the thread's next job, when it was handed over.
fn next_claim(columns: &Columns<'_>) -> Answer {
    let next: Option<&str> = columns.get("job_id")?;
    next.map(|_| columns.claim()).transpose()
}

fn commits_in(groups: &[Group]) -> usize {
    groups.iter().map(|group| group.entries.len()).sum()
}

fn precise(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{CheckpointId, UnixNanos};

    fn entry(thread: &str, epoch: i64, moves: bool) -> Entry {
        let to = CheckpointId::next(None, UnixNanos(0), 0, 0);
        let commit = Commit {
            thread_id: ThreadId::parse(thread).expect("valid"),
            epoch: Epoch(epoch),
            advance: moves.then_some(Advance { from: None, to }),
            puts: vec![],
            writes: vec![],
            effects: vec![],
        };
        Entry::new(commit, Rows::default()).0
    }

    /// The batches in which `entries` leave: threads with the number of their commits, `*` when the head moves.
    fn batches(entries: Vec<Entry>) -> Vec<String> {
        let mut backlog = VecDeque::from(entries);
        let mut all = Vec::new();
        while !backlog.is_empty() {
            let groups = next_batch(&mut backlog, &Late::default());
            let text = |group: &Group| {
                let moves = if group.advance().is_some() { "*" } else { "" };
                format!("{}{}{moves}", group.thread_id(), group.entries.len())
            };
            all.push(groups.iter().map(text).collect::<Vec<_>>().join(" "));
        }
        all
    }

    #[test]
    fn threads_share_a_batch_and_a_thread_keeps_its_order() {
        let (a, b) = (|moves| entry("a", 1, moves), |moves| entry("b", 1, moves));
        assert_eq!(batches(vec![a(true), b(true), a(true), b(false)]), ["a1* b1*", "a1* b1"]);
        assert_eq!(batches(vec![a(false), a(false), b(true), a(false)]), ["a3 b1*"]);
        // The last one must not overtake the one that had to wait.
        assert_eq!(batches(vec![a(false), a(true), a(false)]), ["a1", "a1*", "a1"]);
        assert_eq!(batches(vec![a(false), entry("a", 2, false), a(false)]), ["a1", "a1", "a1"]);
    }

    #[test]
    fn a_batch_has_its_limit() {
        let crowd = (0..MAX_BATCH + 6).map(|number| entry(&format!("t{number}"), 1, true)).collect();
        let sizes: Vec<_> = batches(crowd).iter().map(|batch| batch.split(' ').count()).collect();
        assert_eq!(sizes, [MAX_BATCH, 6]);
    }
}

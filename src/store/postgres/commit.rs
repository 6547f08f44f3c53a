//! The commit task: gathers commits of many threads into one statement after the other.
//!
//! **Invariant:** a statement holds one fence per thread; commits of one thread keep their order.
//! **Invariant:** a commit is answered exactly once: stored, fenced, refused, or unavailable at the end of the
//! process. Until then it is tried again, and repeating one that had landed changes nothing.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use sqlx::Row;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    failure::Failure,
    link::{Dedicated, Link, count_error},
    statement,
};
use crate::{
    ids::{Epoch, ThreadId},
    store::{Advance, Commit, Error, langgraph::Rows},
    telemetry::metric,
};

/// Commits in one statement. Past 64 the gain is small (6 700 → 8 300 per second at 128 in the prototype) and
/// one slow statement holds up more threads.
const MAX_BATCH: usize = 64;

/// Bytes in one statement, so that a batch of large states neither waits long nor takes much memory twice.
const MAX_BATCH_BYTES: usize = 4 << 20;

/// Commits that wait for the task; callers beyond it wait to hand theirs in.
pub(super) const QUEUE: usize = 256;

/// First pause after a failure, doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Longest pause: a database that came back is found again within this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A commit on its way.
pub(super) struct Entry {
    thread_id: ThreadId,
    epoch: Epoch,
    advance: Option<Advance>,
    rows: Rows,
    since: Instant,
    answer: oneshot::Sender<Result<(), Error>>,
}

impl Entry {
    pub(super) fn new(commit: Commit, rows: Rows) -> (Self, oneshot::Receiver<Result<(), Error>>) {
        let (answer, answered) = oneshot::channel();
        let Commit { thread_id, epoch, advance, .. } = commit;
        (Self { thread_id, epoch, advance, rows, since: Instant::now(), answer }, answered)
    }

    fn end(self, result: Result<(), Error>) {
        metrics::histogram!(metric::COMMIT_SECONDS).record(self.since.elapsed().as_secs_f64());
        if matches!(result, Err(Error::Fenced { .. })) {
            metrics::counter!(metric::FENCED_WRITES).increment(1);
        }
        // Nobody listens when the caller went away; the write counts all the same.
        let _ = self.answer.send(result);
    }
}

/// Commits of one thread under one fence. More than one only when none of them moves the head.
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

    pub(super) fn rows(&self) -> impl Iterator<Item = &Rows> {
        self.entries.iter().map(|entry| &entry.rows)
    }

    fn first(&self) -> &Entry {
        self.entries.first().expect("a group is made of its first entry")
    }

    fn takes(&self, entry: &Entry) -> bool {
        self.advance().is_none() && entry.advance.is_none() && self.epoch() == entry.epoch
    }
}

/// The next batch: as many threads as fit, from the front of `backlog`, which keeps the rest in order.
fn next_batch(backlog: &mut VecDeque<Entry>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    // Where a thread's group is; `None` once a commit of the thread had to wait.
    let mut places: HashMap<ThreadId, Option<usize>> = HashMap::new();
    let mut waiting = VecDeque::new();
    let (mut taken, mut bytes) = (0, 0);
    while let Some(entry) = backlog.pop_front() {
        if taken == MAX_BATCH || (taken > 0 && bytes + entry.rows.size() > MAX_BATCH_BYTES) {
            backlog.push_front(entry);
            break;
        }
        let size = entry.rows.size();
        match places.get_mut(&entry.thread_id) {
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
        let mut connection = None;
        let mut backlog = VecDeque::new();
        let mut arrived = Vec::with_capacity(MAX_BATCH);
        loop {
            if backlog.is_empty() {
                tokio::select! {
                    count = inbox.recv_many(&mut arrived, MAX_BATCH) => if count == 0 { return },
                    // What was handed in before is still served.
                    () = self.closing.cancelled(), if !inbox.is_closed() => inbox.close(),
                }
            } else {
                while backlog.len() + arrived.len() < 2 * MAX_BATCH {
                    let Ok(entry) = inbox.try_recv() else { break };
                    arrived.push(entry);
                }
            }
            backlog.extend(arrived.drain(..));
            let groups = next_batch(&mut backlog);
            if groups.is_empty() {
                continue;
            }
            self.settle(&mut connection, groups).await;
        }
    }

    /// Writes a batch and answers everyone in it.
    async fn settle(&self, connection: &mut Option<Dedicated>, groups: Vec<Group>) {
        metrics::histogram!(metric::COMMIT_BATCH).record(precise(commits_in(&groups)));
        let mut batches = VecDeque::from([groups]);
        while let Some(mut groups) = batches.pop_front() {
            match self.write(connection, &groups).await {
                Ok(stored) => answer(groups, &stored),
                // One entry's fault must not become its neighbours': each alone.
                Err(_) if commits_in(&groups) > 1 => {
                    let entries = groups.into_iter().flat_map(|group| group.entries);
                    batches.extend(entries.map(|entry| vec![Group { entries: vec![entry] }]));
                }
                Err(failure) => {
                    let entry = groups.pop().and_then(|mut group| group.entries.pop());
                    let (entry, error) = (entry.expect("it holds one commit"), failure.into_error());
                    tracing::warn!(thread_id = %entry.thread_id, %error, "commit failed");
                    entry.end(Err(error));
                }
            }
        }
    }

    /// The threads whose fence held. Tries until the database answers one way or the other.
    async fn write(
        &self,
        connection: &mut Option<Dedicated>,
        groups: &[Group],
    ) -> Result<HashMap<String, bool>, Failure> {
        let commits = commits_in(groups);
        let mut pause = FIRST_PAUSE;
        loop {
            let statement = statement::commit(groups, &self.owner, self.lease);
            let failure = match self.link.rows_on(connection, statement).await {
                Ok(rows) => return rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect(),
                Err(failure) => failure,
            };
            match &failure {
                Failure::Refused(_) => return Err(failure),
                Failure::TooSlow(_) if commits > 1 => return Err(failure),
                Failure::Away(error) | Failure::TooSlow(error) => {
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

fn answer(groups: Vec<Group>, stored: &HashMap<String, bool>) {
    for group in groups {
        let holds = stored.get(group.thread_id().as_str()).copied().unwrap_or(false);
        for entry in group.entries {
            let fenced = || Error::Fenced { thread_id: entry.thread_id.clone(), epoch: entry.epoch };
            let result = if holds { Ok(()) } else { Err(fenced()) };
            entry.end(result);
        }
    }
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
        };
        Entry::new(commit, Rows::default()).0
    }

    /// The batches in which `entries` leave: threads with the number of their commits, `*` when the head moves.
    fn batches(entries: Vec<Entry>) -> Vec<String> {
        let mut backlog = VecDeque::from(entries);
        let mut all = Vec::new();
        while !backlog.is_empty() {
            let groups = next_batch(&mut backlog);
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

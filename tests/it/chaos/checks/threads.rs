//! The histories of threads.

use std::collections::{BTreeMap, BTreeSet};

use super::{Complaints, Violation, grouped};
use crate::chaos::history::{CheckpointRow, History};

/// Checkpoints of the root graph of each thread, by id.
fn root_lines(history: &History) -> BTreeMap<&str, Vec<&CheckpointRow>> {
    let mut lines = grouped(&history.checkpoints, |checkpoint| checkpoint.thread_id.as_str());
    for line in lines.values_mut() {
        line.retain(|checkpoint| checkpoint.ns.is_empty());
        line.sort_by(|a, b| a.id.cmp(&b.id));
    }
    lines.retain(|_, line| !line.is_empty());
    lines
}

/// Each checkpoint's parent is the one before it, and the thread's head is the last.
pub(super) fn root_history_is_one_line(history: &History) -> Vec<Violation> {
    let mut complaints = Complaints::about("a thread's history is one line");
    for (thread_id, line) in root_lines(history) {
        let mut before = None;
        for checkpoint in &line {
            complaints.unless(checkpoint.parent.as_deref() == before, thread_id, || {
                format!("the parent of {} is {:?}, should be {before:?}", checkpoint.id, checkpoint.parent)
            });
            before = Some(checkpoint.id.as_str());
        }
        let head = history.threads.iter().find(|thread| thread.thread_id == thread_id);
        let head = head.and_then(|thread| thread.head.as_deref());
        complaints
            .unless(head == before, thread_id, || format!("its head is {head:?}, should be {before:?}"));
    }
    complaints.found
}

/// A later checkpoint was never written under an earlier claim, and a claim is about one job.
pub(super) fn epochs_never_fall(history: &History) -> Vec<Violation> {
    let mut complaints = Complaints::about("nothing is written under a fenced epoch");
    for (thread_id, line) in root_lines(history) {
        for pair in line.windows(2) {
            complaints.unless(pair[0].epoch <= pair[1].epoch, thread_id, || {
                format!("{} of epoch {:?} follows epoch {:?}", pair[1].id, pair[1].epoch, pair[0].epoch)
            });
            let one_job = pair[0].epoch != pair[1].epoch || pair[0].job_id == pair[1].job_id;
            complaints.unless(one_job, thread_id, || {
                format!("epoch {:?} wrote for {:?} and {:?}", pair[0].epoch, pair[0].job_id, pair[1].job_id)
            });
        }
    }
    for checkpoint in &history.checkpoints {
        complaints.unless(
            checkpoint.epoch.is_some() && checkpoint.job_id.is_some(),
            &checkpoint.thread_id,
            || format!("checkpoint {} does not say whose it is", checkpoint.id),
        );
    }
    complaints.found
}

/// A superstep of a graph is stored once, whoever got how far.
pub(super) fn no_step_is_committed_twice(history: &History) -> Vec<Violation> {
    let mut complaints = Complaints::about("no superstep is committed twice");
    let place = |row: &CheckpointRow| (row.thread_id.clone(), row.ns.clone(), row.step);
    for ((thread_id, ns, step), rows) in grouped(&history.checkpoints, place) {
        let epochs: Vec<_> = rows.iter().map(|row| (&row.job_id, row.epoch)).collect();
        complaints.unless(rows.len() == 1, &thread_id, || {
            format!("step {step} of graph {ns:?} is there {} times: {epochs:?}", rows.len())
        });
    }
    complaints.found
}

/// The jobs of a line in the order in which they begin, each as often as it begins.
fn blocks<'a>(line: &[&'a CheckpointRow]) -> Vec<&'a str> {
    let mut blocks: Vec<&str> = line.iter().filter_map(|row| row.job_id.as_deref()).collect();
    blocks.dedup();
    blocks
}

/// A job that was started is finished before another one starts.
pub(super) fn jobs_do_not_interleave(history: &History) -> Vec<Violation> {
    let mut complaints = Complaints::about("jobs of a thread do not interleave");
    for (thread_id, line) in root_lines(history) {
        let blocks = blocks(&line);
        let jobs: BTreeSet<&str> = blocks.iter().copied().collect();
        complaints
            .unless(blocks.len() == jobs.len(), thread_id, || format!("jobs came and went: {blocks:?}"));
    }
    complaints.found
}

/// How much later a job must have been accepted to count as later: the time of an acceptance is taken before its wait
/// for the thread's row.
const TOGETHER_MS: f64 = 1000.0;

/// A job starts before another one that is behind it in the stream and was accepted later. On threads whose publisher
/// waits, order is exact. A job that came over HTTP is recorded before its place is known, so it may be overtaken.
pub(super) fn jobs_keep_their_order(history: &History) -> Vec<Violation> {
    let mut complaints = Complaints::about("jobs of a thread keep their order");
    let place = |job_id: &str| history.asked.iter().position(|asked| asked.job_id == job_id);
    let asked = |job_id: &str| history.asked.iter().find(|asked| asked.job_id == job_id);
    for (thread_id, line) in root_lines(history) {
        let jobs: Vec<_> = blocks(&line).into_iter().filter_map(|job_id| history.job(job_id)).collect();
        for (at, first) in jobs.iter().enumerate() {
            for second in &jobs[at + 1..] {
                let had_its_place = asked(&second.job_id).is_some_and(|asked| !asked.by_http);
                let overtaken = had_its_place
                    && second.stream_seq < first.stream_seq
                    && second.accepted_ms + TOGETHER_MS < first.accepted_ms;
                let polite = asked(&second.job_id).is_some_and(|asked| asked.polite);
                let disobeyed = polite && place(&second.job_id) < place(&first.job_id);
                complaints.unless(!overtaken && !disobeyed, thread_id, || {
                    format!("{} ran before {}", first.job_id, second.job_id)
                });
            }
        }
    }
    complaints.found
}

/// LangGraph's own reader decodes every thread that has a checkpoint.
pub(super) fn python_reads_every_thread(history: &History) -> Vec<Violation> {
    let mut complaints = Complaints::about("Python reads every thread");
    for thread in &history.python {
        complaints.unless(thread.error.is_none(), &thread.thread_id, || {
            format!("PostgresSaver: {}", thread.error.as_deref().unwrap_or_default())
        });
    }
    for thread_id in root_lines(history).into_keys() {
        let read = history.python.iter().any(|thread| thread.thread_id == thread_id);
        complaints.unless(read, thread_id, || "PostgresSaver did not see it".into());
    }
    complaints.found
}

/// In a conversation each turn is there once, with its answer right behind it.
pub(super) fn conversations_are_whole(history: &History) -> Vec<Violation> {
    let mut complaints = Complaints::about("conversations are whole");
    for thread in history.python.iter().filter(|thread| thread.thread_id.starts_with("talk-")) {
        let said = |class: &str, text: &str| (class.to_owned(), text.to_owned());
        let asked = history.asked.iter().filter(|asked| asked.thread_id == thread.thread_id);
        for job_id in asked.map(|asked| &asked.job_id) {
            let turn = said("HumanMessage", &format!("turn {job_id}"));
            let answer = said("AIMessage", &format!("heard {job_id}"));
            let turns = thread.messages.iter().filter(|message| **message == turn).count();
            let pairs =
                thread.messages.windows(2).filter(|pair| pair[0] == turn && pair[1] == answer).count();
            complaints.unless(turns == 1 && pairs == 1, job_id, || {
                format!("{turns} times in {}, {pairs} times with its answer", thread.thread_id)
            });
        }
        let wanted = 2 * history.asked.iter().filter(|asked| asked.thread_id == thread.thread_id).count();
        complaints.unless(thread.messages.len() == wanted, &thread.thread_id, || {
            format!("{} messages, should be {wanted}", thread.messages.len())
        });
    }
    complaints.found
}

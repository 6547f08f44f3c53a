//! The promises, each as a function from what a run left behind to what breaks the promise. Pure, so that each can be
//! shown to notice what it is for (`mutants.rs`).

mod calls;
mod ends;
mod events;
#[cfg(test)]
mod mutants;
mod rest;
mod threads;

use std::collections::BTreeMap;

use super::history::History;

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    /// Which promise, in a few words.
    pub(super) promise: &'static str,
    /// The job or thread, to look for in the logs.
    pub(super) about: String,
    pub(super) text: String,
}

/// Collects the violations of one promise.
struct Complaints {
    promise: &'static str,
    found: Vec<Violation>,
}

impl Complaints {
    fn about(promise: &'static str) -> Self {
        Self { promise, found: Vec::new() }
    }

    fn unless(&mut self, holds: bool, about: &str, text: impl FnOnce() -> String) {
        if !holds {
            self.found.push(Violation { promise: self.promise, about: about.to_owned(), text: text() });
        }
    }
}

/// Every check there is.
const ALL: &[fn(&History) -> Vec<Violation>] = &[
    ends::one_result_per_job,
    ends::results_are_those_of_postgres,
    ends::every_job_ends_as_it_must,
    ends::only_what_must_is_a_dead_letter,
    threads::root_history_is_one_line,
    threads::epochs_never_fall,
    threads::no_step_is_committed_twice,
    threads::jobs_do_not_interleave,
    threads::jobs_keep_their_order,
    threads::python_reads_every_thread,
    threads::conversations_are_whole,
    calls::model_calls_repeat_only_what_was_under_way,
    calls::effects_are_there_and_keep_their_keys,
    events::a_job_ends_once_and_last,
    events::every_job_ends_in_its_stream,
    events::holes_have_a_reason,
    rest::nothing_is_left,
    rest::nobody_misbehaved,
];

/// All broken promises.
pub(super) fn all(history: &History) -> Vec<Violation> {
    ALL.iter().flat_map(|check| check(history)).collect()
}

/// Values by key, in the order in which they came.
fn grouped<'a, T, K: Ord>(items: &'a [T], key: impl Fn(&'a T) -> K) -> BTreeMap<K, Vec<&'a T>> {
    let mut groups: BTreeMap<K, Vec<&T>> = BTreeMap::new();
    for item in items {
        groups.entry(key(item)).or_default().push(item);
    }
    groups
}

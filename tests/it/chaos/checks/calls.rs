//! What was asked of the outside world, and how often.

use std::collections::BTreeSet;

use super::{Complaints, Violation, grouped};
use crate::chaos::counter::Call;
use crate::chaos::history::History;
use crate::chaos::jobs::{Asked, Durability};

/// Supersteps that a crash may undo beside the one under way: with `async` the commit of the last one.
fn undone(asked: &Asked) -> u64 {
    match asked.durability {
        Durability::Sync => 1,
        Durability::Async => 2,
        // Nothing is stored before the end.
        Durability::Exit => u64::MAX,
    }
}

/// A model call whose answer was committed is not made again: each attempt repeats at most what the one before it had
/// under way.
pub(super) fn model_calls_repeat_only_what_was_under_way(history: &History) -> Vec<Violation> {
    let mut complaints = Complaints::about("finished model calls are not repeated");
    let is_model = |call: &&Call| call.key.is_none();
    for (asked, attempts, calls) in by_job(history) {
        let models: Vec<&Call> = calls.into_iter().filter(is_model).collect();
        let mut repeats = 0;
        for (label, times) in counted(&models) {
            repeats += times - 1;
            complaints.unless(times <= attempts, &asked.job_id, || {
                format!("{label:?} was asked {times} times in {attempts} attempts")
            });
        }
        let allowed = (attempts - 1).saturating_mul(asked.width()).saturating_mul(undone(asked));
        complaints.unless(repeats <= allowed, &asked.job_id, || {
            format!(
                "{repeats} repeats in {attempts} attempts of a {:?} job, should be at most {allowed}",
                asked.durability
            )
        });
    }
    complaints.found
}

/// Every effect of a job that completed was had, at most once per attempt, and always under the same key; one that must
/// not happen twice happened once more only when a person said that it had not.
pub(super) fn effects_are_there_and_keep_their_keys(history: &History) -> Vec<Violation> {
    let mut complaints = Complaints::about("effects are there and keep their keys");
    for (asked, attempts, calls) in by_job(history) {
        let effects: Vec<&Call> = calls.into_iter().filter(|call| call.key.is_some()).collect();
        for wanted in &asked.effects {
            let there = effects.iter().any(|call| call.label == *wanted);
            complaints.unless(there, &asked.job_id, || format!("{wanted:?} never happened"));
        }
        for (label, times) in counted(&effects) {
            let keys: BTreeSet<&str> = effects
                .iter()
                .filter(|call| call.label == label)
                .filter_map(|call| call.key.as_deref())
                .collect();
            complaints.unless(keys.len() == 1, &asked.job_id, || format!("{label:?} had the keys {keys:?}"));
            let denied = history.denied.iter().filter(|key| keys.contains(key.as_str())).count() as u64;
            let allowed = if asked.irreversible { 1 + denied } else { attempts };
            complaints.unless(times <= allowed, &asked.job_id, || {
                format!(
                    "{label:?} happened {times} times, should be at most {allowed} in {attempts} attempts"
                )
            });
        }
    }
    let bare = history.calls.iter().filter(|call| call.key.as_deref() == Some(""));
    for call in bare {
        complaints.unless(false, &call.job_id, || format!("{:?} came without a key", call.label));
    }
    let by_key = grouped(&history.calls, |call| call.key.as_deref());
    for (key, calls) in by_key.into_iter().filter_map(|(key, calls)| Some((key?, calls))) {
        let meant: BTreeSet<_> = calls.iter().map(|call| (&call.job_id, &call.label)).collect();
        complaints.unless(meant.len() == 1, &calls[0].job_id, || format!("one key {key} for {meant:?}"));
    }
    complaints.found
}

/// Every job that was asked for with its attempts, those of its answers included, and its calls.
fn by_job(history: &History) -> Vec<(&Asked, u64, Vec<&Call>)> {
    let mut calls = grouped(&history.calls, |call| call.job_id.as_str());
    let of = |asked: &Asked| {
        let family = history.asked.iter().filter(|other| other.family == asked.family);
        family
            .filter_map(|asked| history.job(&asked.job_id))
            .map(|job| job.attempt.max(1))
            .sum::<u64>()
            .max(1)
    };
    let first = history.asked.iter().filter(|asked| asked.family == asked.job_id);
    first.map(|asked| (asked, of(asked), calls.remove(asked.job_id.as_str()).unwrap_or_default())).collect()
}

/// How often each call was made.
fn counted<'a>(calls: &[&'a Call]) -> Vec<(&'a str, u64)> {
    let labels: BTreeSet<&str> = calls.iter().map(|call| call.label.as_str()).collect();
    let times = |label: &str| calls.iter().filter(|call| call.label == label).count() as u64;
    labels.into_iter().map(|label| (label, times(label))).collect()
}

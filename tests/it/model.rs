//! The crash protocol as a small machine whose every reachable state is looked at.
//!
//! Two or three jobs of one thread, two supersteps each, two processes and one that is paused; any wait may end at
//! any time, and faults strike anywhere, as many as a test allows. `model/tables.rs` mirrors the functions of
//! `src/store/migrations/`, `model/steps.rs` and `model/work.rs` what `src/worker/` does with their answers. None of
//! it is the program's own code; `model/likeness.rs` holds the tables against the real ones. Not in the model:
//! poison, deadlines, cancellation, writes of single tasks, and batches, whose threads do not meet.
//!
//! A mutant leaves one rule out, and its test names the promise that breaks then.

mod explorer;
mod invariants;
mod likeness;
mod rules;
mod state;
mod steps;
mod tables;
mod work;

use explorer::{Violation, explore};
use invariants::{ALL, Invariant};
use rules::{Mutant, Rules};
use state::Fault::{self, Crash, Drain, Forgetting, Lapse, LostAnswer, LostMessage, Pause, Redelivery};

/// What the protocol withstands. Only the results stream's memory is assumed to last.
const EVERYTHING: &[Fault] = &[Crash, Pause, Lapse, Redelivery, LostAnswer, Drain, LostMessage];

/// Every promise holds with up to `count` of `faults`. A model that lost its steps would hold them too: it must
/// have `at_least` so many states.
fn holds(jobs: usize, (count, faults): (u8, &'static [Fault]), at_least: usize) {
    match explore(Rules { mutant: None, jobs, faults, count }, &ALL) {
        Ok(states) => assert!(states >= at_least, "only {states} states are reached"),
        Err(violation) => panic!("{violation}"),
    }
}

#[test]
fn promises_hold_without_faults() {
    holds(2, (0, &[]), 200);
    holds(3, (0, &[]), 2_000);
}

#[test]
fn promises_hold_with_any_fault() {
    holds(2, (1, EVERYTHING), 10_000);
}

#[test]
fn promises_hold_for_three_jobs_with_any_fault_but_a_pause() {
    holds(3, (1, &[Crash, Lapse, Redelivery, LostAnswer, Drain, LostMessage]), 90_000);
}

#[test]
fn promises_hold_with_any_two_faults_but_a_pause() {
    holds(2, (2, &[Crash, Lapse, Redelivery, LostAnswer, Drain, LostMessage]), 50_000);
}

#[test]
fn promises_hold_with_three_crashes() {
    holds(2, (3, &[Crash]), 100_000);
}

#[test]
fn promises_hold_with_three_thefts() {
    holds(2, (3, &[Lapse, Redelivery]), 50_000);
}

#[test]
fn promises_hold_when_one_is_paused_and_another_dies() {
    holds(2, (2, &[Pause, Crash]), 100_000);
}

#[test]
fn promises_hold_when_one_is_paused_and_another_is_robbed() {
    holds(2, (2, &[Pause, Lapse, Redelivery]), 100_000);
}

#[test]
fn promises_hold_when_one_is_paused_and_another_drains() {
    holds(2, (2, &[Pause, Drain]), 100_000);
}

#[test]
fn promises_hold_when_one_is_paused_and_answers_or_messages_are_lost() {
    holds(2, (2, &[Pause, LostAnswer, LostMessage]), 50_000);
}

/// A rule is left out, and one thing may go wrong.
fn without(mutant: Mutant) -> Rules {
    Rules { mutant: Some(mutant), jobs: 2, faults: EVERYTHING, count: 1 }
}

/// The first promise that breaks.
fn broken_by(mutant: Mutant) -> Box<Violation> {
    broken(without(mutant), &ALL)
}

/// The first of these promises that breaks.
fn broken(rules: Rules, checked: &[Invariant]) -> Box<Violation> {
    match explore(rules, checked) {
        Ok(states) => panic!("{rules:?} break none of {checked:?} in {states} states"),
        Err(violation) => violation,
    }
}

/// What breaks, after how many steps, and the last of them.
fn told(violation: &Violation) -> (Invariant, usize, &str) {
    (violation.invariant, violation.steps.len(), violation.steps.last().map_or("", String::as_str))
}

#[test]
fn a_way_to_a_broken_promise_is_told_in_words() {
    let violation = broken_by(Mutant::FencedWorkerAcks);
    let steps = [
        "worker A pulls the message of job 1",
        "worker A offers job 1: it is to run job 1",
        "the lease runs out",
        "worker B sweeps up the thread of job 1: it is to run job 1",
        "worker A commits a superstep of job 1: it is fenced",
        "worker A acks the message of job 1",
    ];
    assert_eq!(violation.steps, steps);
    let text = violation.to_string();
    assert!(text.starts_with("AckedIsPublished is broken in 6 steps"), "{text}");
    assert!(text.contains("  5. worker A commits a superstep of job 1: it is fenced\n"), "{text}");
}

#[test]
fn without_the_fence_a_robbed_worker_writes_on() {
    let violation = broken_by(Mutant::NoFence);
    assert_eq!(told(&violation), (Invariant::NoFencedWrite, 5, "worker A commits a superstep of job 1"));
}

#[test]
fn without_the_fence_and_the_comparison_of_heads_the_history_forks() {
    let violation = broken(without(Mutant::NoFenceNoCompare), &[Invariant::OneLine]);
    assert_eq!(told(&violation), (Invariant::OneLine, 6, "worker A commits a superstep of job 1"));
    let violation = broken(without(Mutant::NoFenceNoCompare), &[Invariant::EpochsRise]);
    assert_eq!(told(&violation), (Invariant::EpochsRise, 6, "worker A commits a superstep of job 1"));
}

#[test]
fn with_the_epoch_of_the_owner_before_two_own_the_thread() {
    let violation = broken_by(Mutant::SameEpoch);
    let last = "worker B sweeps up the thread of job 1: it is to run job 1";
    assert_eq!(told(&violation), (Invariant::OneOwner, 4, last));
}

#[test]
fn an_ack_at_the_first_checkpoint_comes_before_the_result() {
    let violation = broken_by(Mutant::AckAtFirstCheckpoint);
    let last = "worker A commits a superstep of job 1: and acks";
    assert_eq!(told(&violation), (Invariant::AckedIsPublished, 3, last));
}

#[test]
fn a_result_published_before_it_is_committed_is_nobodys() {
    let violation = broken_by(Mutant::PublishBeforeFinish);
    assert_eq!(
        told(&violation),
        (Invariant::PublishedIsCommitted, 5, "worker A publishes the result of job 1")
    );
}

#[test]
fn with_event_ids_made_at_random_a_job_has_two_results() {
    let violation = broken_by(Mutant::RandomEventId);
    assert_eq!(told(&violation), (Invariant::OneResult, 7, "worker A publishes the result of job 1"));
}

#[test]
fn a_fenced_worker_that_acks_takes_the_message_from_its_successor() {
    let violation = broken_by(Mutant::FencedWorkerAcks);
    assert_eq!(told(&violation), (Invariant::AckedIsPublished, 6, "worker A acks the message of job 1"));
}

#[test]
fn a_finished_job_that_is_just_acked_has_no_result() {
    let violation = broken_by(Mutant::FinishedIsJustAcked);
    assert_eq!(told(&violation), (Invariant::AckedIsPublished, 9, "worker A acks the message of job 1"));
}

#[test]
fn the_lowest_job_must_not_go_before_the_started_one() {
    let violation = broken_by(Mutant::LowestFirst);
    let last = "worker A offers job 1: it is to run job 1";
    assert_eq!(told(&violation), (Invariant::OneStarted, 5, last));
}

#[test]
fn nor_must_the_job_that_is_offered() {
    let violation = broken_by(Mutant::OwnJobFirst);
    let last = "worker B offers job 2: it is to run job 2";
    assert_eq!(told(&violation), (Invariant::OneStarted, 5, last));
    // Of two jobs, one that waits waits for the other; it takes three to be overtaken.
    let violation = broken(Rules { jobs: 3, ..without(Mutant::OwnJobFirst) }, &[Invariant::InOrder]);
    let last = "worker A offers job 3: it is to run job 3";
    assert_eq!(told(&violation), (Invariant::InOrder, 8, last));
}

#[test]
fn without_the_outbox_a_crash_before_the_publication_is_never_repaired() {
    let violation = broken_by(Mutant::NoOutbox);
    assert_eq!(told(&violation), (Invariant::BecomesQuiet, 6, "worker A dies"));
}

#[test]
fn an_attempt_that_starts_anew_repeats_what_is_committed() {
    let violation = broken_by(Mutant::NoResume);
    assert_eq!(told(&violation), (Invariant::NothingTwice, 6, "worker B commits a superstep of job 1"));
}

#[test]
fn without_the_sweep_a_job_whose_message_is_lost_waits_for_ever() {
    // Whoever holds the message has a copy, so its process has to die too; a younger job's message would help.
    let rules = Rules { faults: &[LostMessage, Crash], count: 2, ..without(Mutant::NoSweep) };
    let violation = broken(rules, &ALL);
    assert_eq!(told(&violation), (Invariant::BecomesQuiet, 9, "the broker loses the message of job 2"));
}

#[test]
fn without_the_relay_an_unmarked_result_waits_for_ever() {
    let violation = broken_by(Mutant::NoRelay);
    let last = "worker A fails to mark job 1 as published";
    assert_eq!(told(&violation), (Invariant::BecomesQuiet, 7, last));
}

/// The risk that stays: consumers drop the second event by its id.
#[test]
fn past_the_deduplication_window_a_result_comes_twice_under_one_id() {
    let faults = &[Crash, LostAnswer, Forgetting];
    let rules = Rules { mutant: None, jobs: 2, faults, count: 1 };
    let violation = broken(rules, &ALL);
    assert_eq!(told(&violation), (Invariant::OneResult, 8, "worker A publishes the result of job 1"));
    let [first, second] = violation.state.results[..] else { panic!("{violation}") };
    assert_eq!(first, second);

    let others: Vec<_> = ALL.into_iter().filter(|invariant| *invariant != Invariant::OneResult).collect();
    assert!(others.contains(&Invariant::OneEvent));
    if let Err(violation) = explore(Rules { count: 2, ..rules }, &others) {
        panic!("{violation}");
    }
}

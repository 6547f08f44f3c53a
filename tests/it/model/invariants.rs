//! What holds in every state that can be reached.

use super::state::{Checkpoint, Message, State};

/// The promises of the crash protocol, as far as the model has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Invariant {
    /// A message is acked only after its job's result is committed and in the results stream.
    AckedIsPublished,
    /// What is published are the committed bytes.
    PublishedIsCommitted,
    /// A job has at most one result in the results stream.
    OneResult,
    /// Whatever is published of a job is the same event, by id and bytes.
    OneEvent,
    /// Each checkpoint's parent is the one before it.
    OneLine,
    /// Nor do epochs fall along that line.
    EpochsRise,
    /// Nothing is written under an epoch that is no longer the thread's.
    NoFencedWrite,
    /// At most one process works under the thread's lease.
    OneOwner,
    /// A started job is finished before another one starts.
    OneStarted,
    /// Jobs that are accepted start in the order of the stream.
    InOrder,
    /// A committed superstep is not made again.
    NothingTwice,
    /// There is a way to a state in which nothing is left to do. Checked over all states together.
    BecomesQuiet,
}

/// All of them that one state can break.
pub(super) const ALL: [Invariant; 11] = [
    Invariant::AckedIsPublished,
    Invariant::PublishedIsCommitted,
    Invariant::OneResult,
    Invariant::OneEvent,
    Invariant::OneLine,
    Invariant::EpochsRise,
    Invariant::NoFencedWrite,
    Invariant::OneOwner,
    Invariant::OneStarted,
    Invariant::InOrder,
    Invariant::NothingTwice,
];

impl Invariant {
    /// Whether the state keeps the promise.
    pub(super) fn holds(self, state: &State) -> bool {
        let State { history, results, rows, thread, .. } = state;
        let of = |job| results.iter().filter(move |event| event.job == job);
        match self {
            Self::AckedIsPublished => state.messages.iter().enumerate().all(|(job, message)| {
                *message != Message::Acked || (rows[job].end.is_some() && of(job).next().is_some())
            }),
            Self::PublishedIsCommitted => {
                results.iter().all(|event| rows[event.job].end.is_some_and(|end| end.epoch == event.bytes))
            }
            Self::OneResult => (0..rows.len()).all(|job| of(job).count() <= 1),
            Self::OneEvent => results.iter().all(|event| of(event.job).all(|other| other == event)),
            Self::OneLine => {
                history.iter().enumerate().all(|(before, checkpoint)| checkpoint.parent == before)
            }
            Self::EpochsRise => history.is_sorted_by_key(|checkpoint| checkpoint.epoch),
            Self::NoFencedWrite => !state.seen.fenced_write,
            Self::OneOwner => {
                let claims = state.processes.iter().filter_map(|process| process.claim());
                !thread.owned || claims.filter(|claim| claim.epoch == thread.epoch).count() <= 1
            }
            Self::OneStarted => rows.iter().filter(|row| row.started && row.end.is_none()).count() <= 1,
            Self::InOrder => !state.seen.overtaking,
            Self::NothingTwice => history.iter().enumerate().all(|(place, checkpoint)| {
                let done = |before: &Checkpoint| (before.job, before.superstep);
                history[..place].iter().all(|before| done(before) != done(checkpoint))
            }),
            Self::BecomesQuiet => true,
        }
    }
}

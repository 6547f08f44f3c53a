//! The protocol and its mutants: each leaves one rule out.

use super::state::Fault;

/// A rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutant {
    /// Commit and finish do not look at the epoch.
    NoFence,
    /// Nor at the head.
    NoFenceNoCompare,
    /// A claim of a thread whose owner is gone keeps the epoch.
    SameEpoch,
    /// The message is acked with the job's first checkpoint.
    AckAtFirstCheckpoint,
    /// The result is published, then committed.
    PublishBeforeFinish,
    /// Each publish makes an event id of its own.
    RandomEventId,
    /// A worker that lost its claim settles its delivery all the same.
    FencedWorkerAcks,
    /// A finished job that is delivered again is acked, published or not.
    FinishedIsJustAcked,
    /// A free thread goes to its lowest open job, started or not.
    LowestFirst,
    /// A free thread goes to the job that is offered.
    OwnJobFirst,
    /// The result is not stored with the end of the job.
    NoOutbox,
    /// An attempt starts with the first superstep.
    NoResume,
    /// Nobody claims a job without its message.
    NoSweep,
    /// Nobody publishes a stored result without its message.
    NoRelay,
}

/// The protocol, perhaps without one of its rules, and what it has to stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) mutant: Option<Mutant>,
    /// Jobs of the one thread.
    pub(super) jobs: usize,
    /// What can go wrong.
    pub(super) faults: &'static [Fault],
    /// How often, whatever it is.
    pub(super) count: u8,
}

impl Rules {
    /// Whether this rule is left out.
    pub(super) fn without(self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }
}

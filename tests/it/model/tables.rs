//! What a call does to the tables: the functions of `src/store/migrations/`, one call after the other, since each locks
//! the row of its thread first. The last checkpoint, which comes with the end of a job there, is a commit of its own
//! here, which allows more. Not here: charges and poison, deadlines, cancellation, writes of single tasks.

use super::{
    rules::{Mutant, Rules},
    state::{Checkpoint, Claim, End, Epoch, Event, Job, State, Thread},
};

/// The answer to an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Run(Claim),
    /// Parked, or it runs elsewhere.
    Busy,
    /// The stored bytes, when there are any.
    Unpublished(Option<Epoch>),
    Done,
}

/// The epoch is no longer the thread's.
#[derive(Debug)]
pub(super) struct Fenced;

impl State {
    /// `executor_accept`. `granted`: what a lost answer to the same call said.
    pub(super) fn accept(&mut self, rules: Rules, job: Job, granted: Option<Epoch>) -> Verdict {
        self.rows[job].accepted = true;
        if let Some(end) = self.rows[job].end {
            let stored = (!rules.without(Mutant::NoOutbox)).then_some(end.epoch);
            return if end.published { Verdict::Done } else { Verdict::Unpublished(stored) };
        }
        if self.thread.owned && granted == Some(self.thread.epoch) {
            self.thread.lapsed = false;
            let job = self.thread.job.expect("an owned thread has a job");
            return Verdict::Run(Claim { job, epoch: self.thread.epoch });
        }
        if self.is_busy() {
            return Verdict::Busy;
        }
        // A started job first, then the order of the stream.
        let open = (0..self.rows.len()).filter(|job| self.rows[*job].is_open());
        let next = if rules.without(Mutant::OwnJobFirst) {
            Some(job)
        } else if rules.without(Mutant::LowestFirst) {
            open.min()
        } else {
            open.min_by_key(|job| (!self.rows[*job].started, *job))
        };
        Verdict::Run(self.claim(rules, next.expect("the offered job is open"), None))
    }

    /// Whether the thread's lease stands.
    pub(super) fn is_busy(&self) -> bool {
        self.thread.owned && !self.thread.lapsed
    }

    fn claim(&mut self, rules: Rules, job: Job, chained_from: Option<Epoch>) -> Claim {
        let older_waits = self.rows[..job].iter().any(|row| row.is_open() && !row.started);
        self.seen.overtaking |= older_waits && !self.rows[job].started;
        self.rows[job].started = true;
        let keeps = rules.without(Mutant::SameEpoch) && self.thread.owned;
        let epoch = if keeps { self.thread.epoch } else { self.thread.epoch + 1 };
        let head = self.history.len();
        self.thread = Thread { epoch, owned: true, lapsed: false, chained_from, job: Some(job), head };
        Claim { job, epoch }
    }

    /// The fence: whether a write under this claim may land.
    fn passes(&self, rules: Rules, claim: Claim) -> bool {
        let unfenced = rules.without(Mutant::NoFence) || rules.without(Mutant::NoFenceNoCompare);
        unfenced || self.is_of(claim)
    }

    fn is_of(&self, claim: Claim) -> bool {
        self.thread.owned && self.thread.epoch == claim.epoch
    }

    /// One entry of the group commit: fence, compare-and-set of the head, renewal.
    pub(super) fn commit(
        &mut self,
        rules: Rules,
        claim: Claim,
        (superstep, parent): (u8, usize),
    ) -> Result<(), Fenced> {
        let checkpoint = Checkpoint { job: claim.job, superstep, epoch: claim.epoch, parent };
        let head = self.thread.head.checked_sub(1).map(|place| self.history[place]);
        let repeated = head == Some(checkpoint);
        let moves = repeated || self.thread.head == parent || rules.without(Mutant::NoFenceNoCompare);
        if !moves || !self.passes(rules, claim) {
            return Err(Fenced);
        }
        self.seen.fenced_write |= !self.is_of(claim);
        if !repeated {
            self.history.push(checkpoint);
        }
        self.thread.head = self.history.len();
        self.thread.lapsed = false;
        Ok(())
    }

    /// `executor_finish`: the end and the outbox, and the thread goes to its next job or is freed.
    pub(super) fn finish(
        &mut self,
        rules: Rules,
        claim: Claim,
        take_next: bool,
    ) -> Result<Option<Claim>, Fenced> {
        if self.rows[claim.job].end.is_some_and(|end| end.epoch == claim.epoch) {
            // The answer of the same finish was lost.
            let chained = self.thread.owned && self.thread.chained_from == Some(claim.epoch);
            let next = self.thread.job.filter(|_| chained);
            return Ok(next.map(|job| Claim { job, epoch: self.thread.epoch }));
        }
        if !self.passes(rules, claim) {
            return Err(Fenced);
        }
        self.seen.fenced_write |= !self.is_of(claim);
        self.rows[claim.job].end = Some(End { epoch: claim.epoch, published: false });
        let queued = (0..self.rows.len()).find(|job| self.rows[*job].is_open());
        match queued.filter(|_| take_next) {
            Some(job) => Ok(Some(self.claim(rules, job, Some(claim.epoch)))),
            None => {
                self.free();
                Ok(None)
            }
        }
    }

    /// `executor_release`.
    pub(super) fn release(&mut self, claim: Claim) -> Result<(), Fenced> {
        if self.thread.epoch != claim.epoch {
            return Err(Fenced);
        }
        self.free();
        Ok(())
    }

    fn free(&mut self) {
        let Thread { epoch, head, .. } = self.thread;
        self.thread = Thread { epoch, head, ..Thread::default() };
    }

    /// Notes that the result is in the results stream.
    pub(super) fn mark(&mut self, job: Job) {
        if let Some(end) = &mut self.rows[job].end {
            end.published = true;
        }
    }

    /// The broker's side: an event whose id it remembers is dropped.
    pub(super) fn publish(&mut self, rules: Rules, job: Job, bytes: Epoch) {
        if rules.without(Mutant::RandomEventId) {
            // Ids of the jobs themselves come before.
            let id = self.rows.len() + self.results.len();
            return self.results.push(Event { job, id, bytes });
        }
        if !std::mem::replace(&mut self.remembered[job], true) {
            self.results.push(Event { job, id: job, bytes });
        }
    }
}

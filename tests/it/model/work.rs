//! What a process does next after an answer, as `src/worker/delivery.rs` and `src/worker/job.rs` have it.

use super::{
    rules::{Mutant, Rules},
    state::{Claim, Doing, Job, Process, Settlement, State},
};

pub(super) const ACK: Doing = Doing::Settling { how: Settlement::Ack, next: None };
pub(super) const NAK: Doing = Doing::Settling { how: Settlement::Nak, next: None };

impl State {
    /// The process loads the newest checkpoint and goes on from there.
    pub(super) fn run(&mut self, rules: Rules, who: usize, claim: Claim) {
        let own = self.history.last().filter(|newest| newest.job == claim.job);
        let superstep = own.map_or(0, |newest| newest.superstep + 1);
        let superstep = if rules.without(Mutant::NoResume) { 0 } else { superstep };
        self.processes[who].doing = Doing::Running { claim, superstep, parent: self.history.len() };
    }

    /// What follows the publication of a job's result: its own message is acked; older jobs go first.
    pub(super) fn published(&mut self, rules: Rules, who: usize, job: Job, next: Option<Claim>) {
        let own = self.processes[who].message;
        match (own, next) {
            (Some(own), _) if own == job => {
                self.processes[who].doing = Doing::Settling { how: Settlement::Ack, next };
            }
            (_, Some(claim)) => self.run(rules, who, claim),
            (Some(_), None) => self.processes[who].doing = Doing::Offering { granted: None },
            (None, None) => self.processes[who] = Process::IDLE,
        }
    }

    /// Silence: the delivery is left to who has the thread now. An older job's fate does not decide about it.
    pub(super) fn fenced(&mut self, rules: Rules, who: usize, job: Job) -> &'static str {
        let process = &mut self.processes[who];
        if process.message.is_some_and(|own| own != job) {
            process.doing = Doing::Offering { granted: None };
        } else if rules.without(Mutant::FencedWorkerAcks) && process.message.is_some() {
            process.doing = ACK;
        } else {
            *process = Process::IDLE;
        }
        "it is fenced"
    }

    /// The delivery goes back to the broker, if there is one.
    pub(super) fn hand_back(&mut self, who: usize) {
        let process = &mut self.processes[who];
        process.doing = if process.message.is_some() { NAK } else { Doing::Nothing };
    }
}

//! What can happen next: each process goes on with what it does, as `src/worker/` has it, and anything goes wrong
//! that still may. Every wait may end at any time, so no step waits.

use std::fmt;

use super::{
    rules::{Mutant, Rules},
    state::{Claim, Doing, Epoch, Fault, Job, Message, PAUSED, Process, SUPERSTEPS, Settlement, State},
    tables::{Fenced, Verdict},
    work::{ACK, NAK},
};

/// One step, to be told in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    who: Option<usize>,
    /// A sentence without its subject; `#` stands for the job, if it is about one.
    what: &'static str,
    job: Job,
    note: &'static str,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.who {
            None => "",
            Some(PAUSED) => "the paused worker ",
            Some(0) => "worker A ",
            Some(_) => "worker B ",
        })?;
        let job = format!("job {}", self.job + 1);
        f.write_str(&self.what.replace('#', &job))?;
        if self.note.is_empty() { Ok(()) } else { write!(f, ": {}", self.note) }
    }
}

/// Every step that can be taken from `state`, and where it leads.
pub(super) fn steps(rules: Rules, state: &State) -> Vec<(Step, State)> {
    let mut steps = Steps { rules, state, found: Vec::new() };
    for who in 0..state.processes.len() {
        steps.of_process(who);
        steps.faults_of_process(who);
    }
    steps.around();
    steps.found
}

struct Steps<'a> {
    rules: Rules,
    state: &'a State,
    found: Vec<(Step, State)>,
}

impl Steps<'_> {
    fn add(
        &mut self,
        who: Option<usize>,
        (what, job): (&'static str, Job),
        change: impl FnOnce(&mut State) -> &'static str,
    ) {
        let mut after = self.state.clone();
        let note = change(&mut after);
        if who == Some(PAUSED) && after.processes[PAUSED].is_idle() {
            after.processes[PAUSED].doing = Doing::Gone;
        }
        for job in 0..after.messages.len() {
            // Nobody keeps it alive, so it is due by the time that anybody pulls.
            if after.messages[job] == Message::Delivered && !after.is_held(job) {
                after.messages[job] = Message::Due;
            }
        }
        self.found.push((Step { who, what, job, note }, after));
    }

    /// A step that is, or comes with, a fault.
    fn fault(
        &mut self,
        fault: Fault,
        who: Option<usize>,
        what: (&'static str, Job),
        change: impl FnOnce(&mut State) -> &'static str,
    ) {
        if self.state.faults_left > 0 && self.rules.faults.contains(&fault) {
            self.add(who, what, |after| {
                after.faults_left -= 1;
                change(after)
            });
        }
    }

    fn of_process(&mut self, who: usize) {
        let Process { message, doing } = self.state.processes[who];
        match doing {
            Doing::Nothing if who == PAUSED => {}
            Doing::Nothing => self.idle(who),
            Doing::Gone => {}
            Doing::Offering { granted } => {
                self.offer(who, message.expect("an offer comes from a message"), granted);
            }
            Doing::Running { claim, superstep, parent } if superstep < SUPERSTEPS => {
                self.commit(who, claim, (superstep, parent));
            }
            Doing::Running { claim, superstep, .. } => self.finish(who, claim, superstep),
            Doing::Publishing { job, bytes, next } => {
                let rules = self.rules;
                let what = ("publishes the result of #", job);
                self.add(Some(who), what, |after| {
                    after.publish(rules, job, bytes);
                    after.processes[who].doing = Doing::Marking { job, next };
                    ""
                });
                self.fault(Fault::LostAnswer, Some(who), what, |after| {
                    after.publish(rules, job, bytes);
                    "the answer is lost"
                });
            }
            Doing::Marking { job, next } => {
                let rules = self.rules;
                self.add(Some(who), ("marks # as published", job), |after| {
                    after.mark(job);
                    after.published(rules, who, job, next);
                    ""
                });
                self.fault(Fault::LostAnswer, Some(who), ("fails to mark # as published", job), |after| {
                    after.published(rules, who, job, next);
                    ""
                });
            }
            Doing::Settling { how, next } => self.settle(who, message, how, next),
        }
    }

    fn idle(&mut self, who: usize) {
        let rules = self.rules;
        let relays = !rules.without(Mutant::NoRelay) && !rules.without(Mutant::NoOutbox);
        for job in 0..self.state.rows.len() {
            if self.state.messages[job] == Message::Due {
                self.add(Some(who), ("pulls the message of #", job), |after| {
                    after.messages[job] = Message::Delivered;
                    let doing = Doing::Offering { granted: None };
                    after.processes[who] = Process { message: Some(job), doing };
                    ""
                });
            }
            let row = self.state.rows[job];
            if row.is_open() && !self.state.is_busy() && !rules.without(Mutant::NoSweep) {
                self.add(Some(who), ("sweeps up the thread of #", job), |after| {
                    let Verdict::Run(claim) = after.accept(rules, job, None) else {
                        unreachable!("the thread is free and the job is open")
                    };
                    after.run(rules, who, claim);
                    claimed(claim)
                });
            }
            if let Some(end) = row.end.filter(|end| !end.published && relays) {
                // Read and published in one step: stored bytes do not change.
                self.add(Some(who), ("relays the stored result of #", job), |after| {
                    after.publish(rules, job, end.epoch);
                    after.processes[who].doing = Doing::Marking { job, next: None };
                    ""
                });
            }
        }
    }

    fn offer(&mut self, who: usize, job: Job, granted: Option<Epoch>) {
        let rules = self.rules;
        let what = ("offers #", job);
        self.add(Some(who), what, |after| {
            let verdict = after.accept(rules, job, granted);
            let (doing, note) = match verdict {
                Verdict::Run(claim) => {
                    after.run(rules, who, claim);
                    return claimed(claim);
                }
                Verdict::Unpublished(_) if rules.without(Mutant::FinishedIsJustAcked) => {
                    (ACK, "it has ended")
                }
                Verdict::Unpublished(Some(bytes)) => {
                    (Doing::Publishing { job, bytes, next: None }, "it has ended, unpublished")
                }
                Verdict::Unpublished(None) => {
                    (Doing::Offering { granted: None }, "it has ended, its result is gone")
                }
                Verdict::Busy => (Doing::Offering { granted: None }, "it is parked"),
                Verdict::Done => (ACK, "it is done"),
            };
            after.processes[who].doing = doing;
            note
        });
        self.fault(Fault::LostAnswer, Some(who), what, |after| {
            let verdict = after.accept(rules, job, granted);
            let granted = if let Verdict::Run(claim) = verdict { Some(claim.epoch) } else { None };
            after.processes[who].doing = Doing::Offering { granted };
            "the answer is lost"
        });
        self.fault(Fault::Drain, Some(who), ("drains with the message of #", job), |after| {
            after.processes[who].doing = NAK;
            ""
        });
    }

    fn commit(&mut self, who: usize, claim: Claim, (superstep, parent): (u8, usize)) {
        let rules = self.rules;
        let what = ("commits a superstep of #", claim.job);
        self.add(Some(who), what, |after| match after.commit(rules, claim, (superstep, parent)) {
            Err(Fenced) => after.fenced(rules, who, claim.job),
            Ok(()) => {
                let parent = after.thread.head;
                after.processes[who].doing = Doing::Running { claim, superstep: superstep + 1, parent };
                let own = after.processes[who].message == Some(claim.job);
                if rules.without(Mutant::AckAtFirstCheckpoint) && own {
                    after.processes[who].message = None;
                    after.messages[claim.job] = Message::Acked;
                    return "and acks";
                }
                ""
            }
        });
        self.fault(Fault::LostAnswer, Some(who), what, |after| {
            // A refusal that is lost is asked for again.
            let _ = after.commit(rules, claim, (superstep, parent));
            "the answer is lost"
        });
        self.release(who, claim);
    }

    fn finish(&mut self, who: usize, claim: Claim, superstep: u8) {
        let rules = self.rules;
        let Claim { job, epoch } = claim;
        if rules.without(Mutant::PublishBeforeFinish) && superstep == SUPERSTEPS {
            return self.add(Some(who), ("publishes the result of #", job), |after| {
                after.publish(rules, job, epoch);
                let parent = after.thread.head;
                after.processes[who].doing = Doing::Running { claim, superstep: superstep + 1, parent };
                ""
            });
        }
        let finish = |after: &mut State, take_next: bool| match after.finish(rules, claim, take_next) {
            Err(Fenced) => after.fenced(rules, who, job),
            Ok(next) => {
                after.processes[who].doing = Doing::Publishing { job, bytes: epoch, next };
                if next.is_some() { "and is given the next job" } else { "" }
            }
        };
        let what = ("finishes #", job);
        self.add(Some(who), what, |after| finish(after, true));
        self.fault(Fault::Drain, Some(who), ("drains and finishes #", job), |after| finish(after, false));
        self.fault(Fault::LostAnswer, Some(who), what, |after| {
            let _ = after.finish(rules, claim, true);
            "the answer is lost"
        });
        self.release(who, claim);
    }

    /// A drain: the claim is freed, then the message goes back.
    fn release(&mut self, who: usize, claim: Claim) {
        let rules = self.rules;
        self.fault(Fault::Drain, Some(who), ("drains and releases #", claim.job), |after| {
            match after.release(claim) {
                Err(Fenced) => after.fenced(rules, who, claim.job),
                Ok(()) => {
                    after.hand_back(who);
                    ""
                }
            }
        });
    }

    fn settle(&mut self, who: usize, message: Option<Job>, how: Settlement, next: Option<Claim>) {
        let rules = self.rules;
        let job = message.expect("a settlement is of a message");
        let what = match how {
            Settlement::Ack => ("acks the message of #", job),
            Settlement::Nak => ("naks the message of #", job),
        };
        let go_on = move |after: &mut State| {
            after.processes[who] = Process::IDLE;
            if let Some(claim) = next {
                after.run(rules, who, claim);
            }
        };
        self.add(Some(who), what, |after| {
            let message = &mut after.messages[job];
            // The broker goes by the message, not by the delivery.
            *message = match (how, *message) {
                (_, gone @ (Message::Acked | Message::Lost)) => gone,
                (Settlement::Ack, _) => Message::Acked,
                (Settlement::Nak, _) => Message::Due,
            };
            go_on(after);
            ""
        });
        self.fault(Fault::LostAnswer, Some(who), what, |after| {
            go_on(after);
            "it is lost on its way"
        });
    }

    fn faults_of_process(&mut self, who: usize) {
        let process = self.state.processes[who];
        if process.is_idle() {
            return;
        }
        let is_owner = !matches!(process.doing, Doing::Offering { .. });
        if who != PAUSED {
            self.fault(Fault::Crash, Some(who), ("dies", 0), |after| {
                after.processes[who] = Process::IDLE;
                ""
            });
        }
        if who != PAUSED && is_owner && self.state.processes[PAUSED] == Process::IDLE {
            self.fault(Fault::Pause, Some(who), ("is paused, another takes its place", 0), |after| {
                after.processes[PAUSED] = process;
                after.processes[who] = Process::IDLE;
                ""
            });
        }
        if let Doing::Publishing { job, next, .. } = process.doing {
            let rules = self.rules;
            self.fault(Fault::Drain, Some(who), ("drains, the broker is away", job), |after| {
                match next.map(|claim| after.release(claim)) {
                    Some(Err(Fenced)) => after.fenced(rules, who, job),
                    None | Some(Ok(())) => {
                        after.hand_back(who);
                        ""
                    }
                }
            });
        }
    }

    /// What happens outside of processes.
    fn around(&mut self) {
        let State { thread, .. } = self.state;
        if thread.owned && !thread.lapsed {
            let what = ("the lease runs out", 0);
            let lapse = |after: &mut State| {
                after.thread.lapsed = true;
                ""
            };
            if self.state.is_renewed() {
                self.fault(Fault::Lapse, None, what, lapse);
            } else {
                self.add(None, what, lapse);
            }
        }
        for job in 0..self.state.rows.len() {
            let due = |after: &mut State| {
                after.messages[job] = Message::Due;
                ""
            };
            let what = ("the message of # is due again", job);
            match self.state.messages[job] {
                Message::Delivered => self.fault(Fault::Redelivery, None, what, due),
                Message::Due | Message::Acked | Message::Lost => {}
            }
            let unsettled = matches!(self.state.messages[job], Message::Due | Message::Delivered);
            if unsettled && self.state.rows[job].accepted {
                self.fault(Fault::LostMessage, None, ("the broker loses the message of #", job), |after| {
                    after.messages[job] = Message::Lost;
                    ""
                });
            }
        }
        if self.state.remembered.contains(&true) {
            self.fault(Fault::Forgetting, None, ("the results stream forgets its event ids", 0), |after| {
                after.remembered.fill(false);
                ""
            });
        }
    }
}

fn claimed(claim: Claim) -> &'static str {
    match claim.job {
        0 => "it is to run job 1",
        1 => "it is to run job 2",
        _ => "it is to run job 3",
    }
}

//! What there is in the world of the model: the messages, the rows of one thread, the results, three processes.

/// Most jobs of the thread. A job's number is also its message's place in the stream.
const JOBS: usize = 3;

/// Supersteps of each job.
pub(super) const SUPERSTEPS: u8 = 2;

/// The place of a process that was paused; the others are those that take work.
pub(super) const PAUSED: usize = 2;

/// Processes: two that take work, and one that was paused and may wake at any time.
const PROCESSES: usize = PAUSED + 1;

pub(super) type Job = usize;

/// Grows with each claim of the thread. It also stands for the bytes of a result: no two attempts make the same.
pub(super) type Epoch = u8;

/// One state of the world.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) messages: [Message; JOBS],
    pub(super) thread: Thread,
    pub(super) rows: [Row; JOBS],
    /// Root checkpoints in the order of their ids.
    pub(super) history: Vec<Checkpoint>,
    /// The results stream.
    pub(super) results: Vec<Event>,
    /// Whose event ids the results stream still knows.
    pub(super) remembered: [bool; JOBS],
    pub(super) processes: [Process; PROCESSES],
    /// Faults that may still happen, so that there is an end to the states.
    pub(super) faults_left: u8,
    pub(super) seen: Seen,
}

/// A request in its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Message {
    /// Will be given to the next who pulls.
    Due,
    /// Given to somebody, not settled.
    Delivered,
    Acked,
    /// The broker lost it.
    Lost,
}

/// The row of `executor_thread`. The owner is not kept: an epoch is granted once, so it names its owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Thread {
    pub(super) epoch: Epoch,
    pub(super) owned: bool,
    /// Whether the lease ran out.
    pub(super) lapsed: bool,
    /// The epoch whose finish handed the thread on to this claim.
    pub(super) chained_from: Option<Epoch>,
    pub(super) job: Option<Job>,
    /// The newest checkpoint's place in the history, counted from 1; 0 for none.
    pub(super) head: usize,
}

/// A row of `executor_job`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Row {
    pub(super) accepted: bool,
    /// Claimed at least once.
    pub(super) started: bool,
    pub(super) end: Option<End>,
}

impl Row {
    pub(super) fn is_open(self) -> bool {
        self.accepted && self.end.is_none()
    }
}

/// Terminal state and outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct End {
    pub(super) epoch: Epoch,
    pub(super) published: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Checkpoint {
    pub(super) job: Job,
    pub(super) superstep: u8,
    pub(super) epoch: Epoch,
    /// As [`Thread::head`].
    pub(super) parent: usize,
}

/// A published result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Event {
    pub(super) job: Job,
    pub(super) id: usize,
    pub(super) bytes: Epoch,
}

/// A process with the one thing it does. A real one does many at once; here each has a process of its own,
/// which allows more: they may also die one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Process {
    /// The delivery it holds.
    pub(super) message: Option<Job>,
    pub(super) doing: Doing,
}

impl Process {
    pub(super) const IDLE: Self = Self { message: None, doing: Doing::Nothing };

    /// Whether it has nothing to do.
    pub(super) fn is_idle(self) -> bool {
        matches!(self.doing, Doing::Nothing | Doing::Gone)
    }

    /// The claim it knows it has, and renews.
    pub(super) fn claim(self) -> Option<Claim> {
        match self.doing {
            Doing::Running { claim, .. } => Some(claim),
            Doing::Publishing { next, .. } | Doing::Marking { next, .. } | Doing::Settling { next, .. } => {
                next
            }
            Doing::Nothing | Doing::Gone | Doing::Offering { .. } => None,
        }
    }
}

/// What a process is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Doing {
    Nothing,
    /// It has ended, and nobody takes its place.
    Gone,
    /// Offer its message's job to the store. A parked message is offered again and again.
    Offering {
        /// Granted by a call whose answer was lost, and which is made again.
        granted: Option<Epoch>,
    },
    /// Commit this superstep, or finish after the last one.
    Running {
        claim: Claim,
        superstep: u8,
        parent: usize,
    },
    Publishing {
        job: Job,
        bytes: Epoch,
        next: Option<Claim>,
    },
    Marking {
        job: Job,
        next: Option<Claim>,
    },
    Settling {
        how: Settlement,
        next: Option<Claim>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Settlement {
    Ack,
    Nak,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Claim {
    pub(super) job: Job,
    pub(super) epoch: Epoch,
}

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A process dies.
    Crash,
    /// A process stands still while others go on; it may wake at any time.
    Pause,
    /// A lease runs out although its owner lives.
    Lapse,
    /// A message is delivered again although its holder lives.
    Redelivery,
    /// A call does its work, but its answer is lost.
    LostAnswer,
    /// A process is told to end.
    Drain,
    /// The broker loses a message of a job that Postgres knows.
    LostMessage,
    /// The results stream forgets the event ids it has seen.
    Forgetting,
}

/// What an onlooker has seen that the tables do not keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Seen {
    /// A write under an epoch that was no longer the thread's.
    pub(super) fenced_write: bool,
    /// A job started while an older one was accepted and had not.
    pub(super) overtaking: bool,
}

impl State {
    /// The messages of `jobs` jobs are in the stream, and nothing has happened to them. Jobs beyond them have
    /// left long ago.
    pub(super) fn start(jobs: usize, faults_left: u8) -> Self {
        let left = Row { accepted: true, started: true, end: Some(End { epoch: 0, published: true }) };
        Self {
            messages: std::array::from_fn(|job| if job < jobs { Message::Due } else { Message::Lost }),
            thread: Thread::default(),
            rows: std::array::from_fn(|job| if job < jobs { Row::default() } else { left }),
            history: Vec::new(),
            results: Vec::new(),
            remembered: [false; JOBS],
            processes: [Process::IDLE; PROCESSES],
            faults_left,
            seen: Seen::default(),
        }
    }

    /// Whether nothing is left to do for anybody.
    pub(super) fn is_quiet(&self) -> bool {
        let settled = |message: &Message| matches!(message, Message::Acked | Message::Lost);
        let told = |row: &Row| row.end.is_some_and(|end| end.published);
        self.messages.iter().all(settled)
            && self.rows.iter().all(told)
            && !self.thread.owned
            && self.processes.iter().all(|process| process.is_idle())
    }

    /// The same for any naming of the two processes that take work: they do not differ.
    pub(super) fn unnamed(mut self) -> Self {
        self.processes[..PAUSED].sort_unstable();
        self
    }

    /// Whether somebody who is not paused holds the message.
    pub(super) fn is_held(&self, job: Job) -> bool {
        self.processes[..PAUSED].iter().any(|process| process.message == Some(job))
    }

    /// Whether somebody who is not paused renews the lease.
    pub(super) fn is_renewed(&self) -> bool {
        let holds = |process: &Process| process.claim().is_some_and(|claim| claim.epoch == self.thread.epoch);
        self.processes[..PAUSED].iter().any(holds)
    }
}

//! Makes faults happen, several at a time but never two in one place, and undoes each when its time is over.
//!
//! **Invariant:** at most one fault at a place; what it did is undone before another one comes there.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio_util::task::TaskTracker;

use super::plan::{Blow, Fault, Line, Place, Server, Trouble, What, fault};
use super::site::Site;
use crate::proxy::Mode;

/// Longest wait for a process to obey SIGTERM; its grace is two seconds, and its servers may be away.
const OBEY_WITHIN: Duration = Duration::from_secs(60);
/// How far a drain gets before it is killed.
const INTO_THE_DRAIN: Duration = Duration::from_millis(150);

/// Draws until a fault is skipped because everything is occupied.
const DRAWS: u64 = 16;

/// A fault that happened.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Happened {
    pub(super) number: Option<u64>,
    pub(super) what: What,
    pub(super) text: String,
    /// Since the start of the run.
    pub(super) from: Duration,
    /// Unset while it lasts.
    pub(super) to: Option<Duration>,
}

/// Makes faults happen.
pub(super) struct Nemesis {
    site: Arc<Site>,
    seed: u64,
    started: Instant,
    busy: Mutex<HashSet<Place>>,
    happened: Mutex<Vec<Happened>>,
    trouble: Mutex<Vec<String>>,
    tracker: TaskTracker,
}

impl Nemesis {
    pub(super) fn new(site: Arc<Site>, seed: u64, started: Instant) -> Arc<Self> {
        let (busy, happened, trouble) = (Mutex::default(), Mutex::default(), Mutex::default());
        Arc::new(Self { site, seed, started, busy, happened, trouble, tracker: TaskTracker::new() })
    }

    /// Starts the `number`-th fault; the next draw when its place is occupied. It does not move to another member:
    /// those that are left would get it all.
    pub(super) fn strike(self: &Arc<Self>, number: u64) {
        let mut draws =
            (0..DRAWS).map(|draw| fault(self.seed, number * DRAWS + draw, self.site.members.len()));
        let free = draws.find(|fault| lock(&self.busy).insert(fault.what.place()));
        if let Some(fault) = free {
            self.carry_out(Some(number), fault);
        }
    }

    /// Kills the member that runs a poison job.
    pub(super) fn poisoned(self: &Arc<Self>, member: usize) {
        let what = What::Member(member, Blow::Kill);
        if lock(&self.busy).insert(what.place()) {
            self.carry_out(None, Fault { what, lasts: Duration::from_millis(100) });
        } else if let Some(process) = self.site.members[member].process() {
            // Whatever happens to it already, it dies of this; that fault's end starts it again.
            let _ = process.kill();
        }
    }

    fn carry_out(self: &Arc<Self>, number: Option<u64>, fault: Fault) {
        let nemesis = self.clone();
        let place = {
            let mut happened = lock(&self.happened);
            let poison = if number.is_none() { " by a poison job" } else { "" };
            happened.push(Happened {
                number,
                what: fault.what,
                text: format!("{fault}{poison}"),
                from: self.started.elapsed(),
                to: None,
            });
            happened.len() - 1
        };
        self.tracker.spawn(async move {
            if let Err(error) = nemesis.happen(fault).await {
                lock(&nemesis.trouble).push(format!("{fault}: {error:#}"));
            }
            lock(&nemesis.happened)[place].to = Some(nemesis.started.elapsed());
            lock(&nemesis.busy).remove(&fault.what.place());
        });
    }

    async fn happen(&self, fault: Fault) -> Result<()> {
        let Fault { what, lasts } = fault;
        match what {
            What::Member(member, blow) => {
                let member = &self.site.members[member];
                let beaten = self.beat(member, blow, lasts).await;
                beaten.and(member.ensure_running())
            }
            What::Line(member, line, trouble) => {
                let link = self.site.members[member].link(line);
                link.set(match trouble {
                    Trouble::Cut => Mode::Cut,
                    Trouble::BlackHole => Mode::BlackHole,
                    Trouble::Delay(up, down) => Mode::Delay { up, down },
                });
                tokio::time::sleep(lasts).await;
                link.set(Mode::Pass);
                Ok(())
            }
            What::Crash(server) => self.restart(server, true, lasts).await,
            What::Restart(server) => self.restart(server, false, lasts).await,
        }
    }

    async fn beat(&self, member: &super::site::Member, blow: Blow, lasts: Duration) -> Result<()> {
        let Some(process) = member.process().filter(|process| process.is_running()) else { return Ok(()) };
        // A poison job may kill it at any moment: that it is gone already is no error.
        let gone = |error: anyhow::Error| if process.is_running() { Err(error) } else { Ok(()) };
        match blow {
            Blow::Kill => process.kill().or_else(gone)?,
            Blow::Stop => {
                process.signal("STOP").or_else(gone)?;
                tokio::time::sleep(lasts).await;
                return process.signal("CONT").or_else(gone);
            }
            Blow::Term => {
                process.signal("TERM").or_else(gone)?;
                self.obeys(member, &process).await?;
            }
            Blow::TermAndKill => {
                process.signal("TERM").or_else(gone)?;
                tokio::time::sleep(INTO_THE_DRAIN).await;
                process.kill().or_else(gone)?;
            }
        }
        tokio::time::sleep(lasts).await;
        Ok(())
    }

    /// A process that is told to stop ends, whatever happens to its servers meanwhile.
    async fn obeys(&self, member: &super::site::Member, process: &crate::executor::Executor) -> Result<()> {
        let ended = || async { !process.is_running() };
        let waited = crate::servers::until("it ends after SIGTERM", OBEY_WITHIN, ended).await;
        if waited.is_err() {
            lock(&self.trouble)
                .push(format!("{} did not end within {OBEY_WITHIN:?} of SIGTERM", member.name));
            let _ = process.kill();
        }
        Ok(())
    }

    async fn restart(&self, server: Server, crash: bool, lasts: Duration) -> Result<()> {
        let site = &self.site;
        match (server, crash) {
            (Server::Postgres, true) => site.postgres.stop_immediate().await?,
            (Server::Postgres, false) => site.postgres.stop().await?,
            (Server::Nats, true) => site.nats.kill()?,
            (Server::Nats, false) => site.nats.stop().await?,
            (Server::Redis, true) => site.redis.kill()?,
            (Server::Redis, false) => site.redis.stop().await?,
        }
        tokio::time::sleep(lasts).await;
        match server {
            Server::Postgres => site.postgres.start_again().await,
            Server::Nats => site.nats.start_again().await,
            Server::Redis => site.redis.start_again().await,
        }
    }

    /// Starts members that ended although nobody told them to; that they did is noted.
    pub(super) fn look_after(&self) {
        for (number, member) in self.site.members.iter().enumerate() {
            if lock(&self.busy).contains(&Place::Member(number)) || member.is_running() {
                continue;
            }
            let last = member.process().map(|process| process.log_tail()).unwrap_or_default();
            lock(&self.trouble).push(format!("{} ended by itself; its last words:\n{last}", member.name));
            if let Err(error) = member.ensure_running() {
                lock(&self.trouble).push(format!("{} does not start: {error:#}", member.name));
            }
        }
    }

    /// Waits until every fault is over.
    pub(super) async fn calm(&self) {
        self.tracker.close();
        self.tracker.wait().await;
        self.tracker.reopen();
    }

    /// Everything that happened, in order.
    pub(super) fn happened(&self) -> Vec<Happened> {
        lock(&self.happened).clone()
    }

    /// What went wrong that no fault explains.
    pub(super) fn trouble(&self) -> Vec<String> {
        lock(&self.trouble).clone()
    }

    /// How many faults of each kind there were.
    pub(super) fn by_kind(&self) -> BTreeMap<String, usize> {
        let mut kinds = BTreeMap::new();
        for happened in self.happened() {
            let poison = if happened.number.is_none() { " (poison)" } else { "" };
            *kinds.entry(format!("{}{poison}", happened.what.kind())).or_default() += 1;
        }
        kinds
    }
}

/// Whether a fault touches what members and readers know of the Redis server.
pub(super) fn touches_redis(what: What) -> bool {
    match what {
        What::Crash(server) | What::Restart(server) => server == Server::Redis,
        What::Line(_, line, _) => line == Line::Redis,
        What::Member(..) => false,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

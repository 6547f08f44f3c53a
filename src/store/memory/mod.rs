//! Durable state in memory, with the rules of the Postgres store and crash points for tests.
//!
//! **Invariant:** everything goes through the same codec as in Postgres, so what a test reads back has been
//! encoded and decoded.
//! **Invariant:** several handles over one database are several processes: only what is stored passes between
//! them.

mod agents;
mod cache;
mod checkpoints;
mod claims;
mod deadlines;
mod inspect;
mod jobs;
mod letters;
mod tables;
mod thread_changes;
mod threads;
mod upkeep;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use self::tables::Tables;
use super::{DeadLetter, Error};
use crate::ids::{Clock, Namespace, ThreadId};

/// Lease and crash limit of a store in memory; as the defaults of the Postgres store.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How long a claim lasts unless it is renewed.
    pub lease: Duration,
    /// After how many owners that vanished without progress a job is given up.
    pub max_crashes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { lease: Duration::from_secs(5), max_crashes: 5 }
    }
}

/// On which side of a write a crash falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashPoint {
    /// The write does not happen.
    Before,
    /// The write happens, and the caller never learns of it.
    After,
}

/// One process's view of a database in memory.
pub struct MemoryStore {
    database: Arc<Database>,
    owner: Arc<str>,
    faults: Mutex<Faults>,
}

struct Database {
    clock: Arc<dyn Clock>,
    config: Config,
    tables: Mutex<Tables>,
}

#[derive(Default)]
struct Faults {
    /// Counted writes so far.
    writes: u64,
    planned: Option<Planned>,
    dead: bool,
    /// How late adoptions are answered.
    late: Option<Duration>,
}

#[derive(Clone, Copy)]
struct Planned {
    /// The first write that fails, and how many in a row.
    write: u64,
    count: u64,
    point: CrashPoint,
    after: Afterwards,
}

/// What becomes of the process after a planned fault.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Afterwards {
    Lives,
    Dies,
}

impl MemoryStore {
    /// An empty database with one process, `owner`, looking at it.
    pub fn new(clock: Arc<dyn Clock>, config: Config, owner: &str) -> Self {
        let tables = Mutex::new(Tables::default());
        Self::over(Arc::new(Database { clock, config, tables }), owner)
    }

    /// Another process over the same database; its writes are counted from 0 and none is planned to fail.
    pub fn process(&self, owner: &str) -> Self {
        Self::over(self.database.clone(), owner)
    }

    fn over(database: Arc<Database>, owner: &str) -> Self {
        Self { database, owner: owner.into(), faults: Mutex::default() }
    }

    /// How many writes this process has asked for. Renewals do not count: their number depends on time.
    pub fn writes(&self) -> u64 {
        lock(&self.faults).writes
    }

    /// The `n`-th write from the start of the process (from 1) fails as unavailable; all others go through.
    pub fn fail_write(&self, n: u64, point: CrashPoint) {
        lock(&self.faults).planned = Some(Planned { write: n, count: 1, point, after: Afterwards::Lives });
    }

    /// As [`MemoryStore::fail_write`] for `count` writes from the `n`-th on, none of which is done.
    pub fn fail_writes(&self, n: u64, count: u64) {
        let planned = Planned { write: n, count, point: CrashPoint::Before, after: Afterwards::Lives };
        lock(&self.faults).planned = Some(planned);
    }

    /// As [`MemoryStore::fail_write`], and everything this process asks for later fails too: it has died.
    pub fn die_at_write(&self, n: u64, point: CrashPoint) {
        lock(&self.faults).planned = Some(Planned { write: n, count: 1, point, after: Afterwards::Dies });
    }

    /// Answers this process's adoptions only after `late`; they are done before.
    pub fn adopt_late(&self, late: Duration) {
        lock(&self.faults).late = Some(late);
    }

    /// The graphs of a thread that have checkpoints, the root graph first.
    pub fn namespaces(&self, thread_id: &ThreadId) -> Vec<Namespace> {
        lock(&self.database.tables).namespaces(thread_id)
    }

    /// The kept dead letters, in the order of stream and sequence.
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        lock(&self.database.tables).letters()
    }

    /// Ends all leases at once, as if their time had passed.
    pub fn expire_leases(&self) {
        lock(&self.database.tables).expire_leases(self.database.clock.now());
    }

    fn tables(&self) -> Result<MutexGuard<'_, Tables>, Error> {
        if lock(&self.faults).dead { Err(unavailable()) } else { Ok(lock(&self.database.tables)) }
    }

    fn write<T>(&self, change: impl FnOnce(&mut Tables) -> Result<T, Error>) -> Result<T, Error> {
        let mut tables = self.tables()?;
        let planned = {
            let mut faults = lock(&self.faults);
            faults.writes += 1;
            let planned = faults
                .planned
                .filter(|planned| (planned.write..planned.write + planned.count).contains(&faults.writes));
            faults.dead = planned.is_some_and(|planned| planned.after == Afterwards::Dies);
            planned.map(|planned| planned.point)
        };
        match planned {
            None => change(&mut tables),
            Some(CrashPoint::Before) => Err(unavailable()),
            Some(CrashPoint::After) => {
                // Whatever it says, the caller does not hear it.
                let _ = change(&mut tables);
                Err(unavailable())
            }
        }
    }

    fn claimant(&self) -> tables::Claimant<'_> {
        let Database { clock, config, .. } = &*self.database;
        tables::Claimant { owner: &self.owner, now: clock.now(), config: *config }
    }
}

fn unavailable() -> Error {
    Error::Unavailable("a planned crash point".into())
}

/// A panic in one test thread says nothing about the tables: every change is complete or has not begun.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count(limit: u32) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{JobId, UnixNanos},
        job::Job,
        store::{Jobs, Offer, Verdict},
    };

    /// A clock that a test moves.
    struct Hand(Mutex<u64>);

    impl Clock for Hand {
        fn now(&self) -> UnixNanos {
            UnixNanos(*lock(&self.0))
        }
    }

    fn store() -> (Arc<Hand>, MemoryStore) {
        let clock = Arc::new(Hand(Mutex::new(1)));
        (clock.clone(), MemoryStore::new(clock, Config::default(), "a"))
    }

    async fn accept(store: &MemoryStore) -> Result<Verdict, Error> {
        let job = Job::nameless(JobId::parse("j").expect("valid"), ThreadId::parse("t").expect("valid"));
        store.accept(&Offer::of(&job, 1, Duration::from_secs(60))).await
    }

    #[tokio::test]
    async fn a_planned_write_fails_on_the_planned_side_and_no_other_does() {
        for (point, happened) in [(CrashPoint::Before, false), (CrashPoint::After, true)] {
            let (_, store) = store();
            store.fail_write(1, point);
            assert!(matches!(accept(&store).await, Err(Error::Unavailable(_))));
            let elsewhere = matches!(accept(&store).await, Ok(Verdict::RunningElsewhere { .. }));
            assert_eq!((elsewhere, store.writes()), (happened, 2));
        }
    }

    #[tokio::test]
    async fn a_dead_process_does_nothing_more_and_another_finds_what_it_stored() {
        let (_, store) = store();
        store.die_at_write(2, CrashPoint::Before);
        let Ok(Verdict::Run(claim)) = accept(&store).await else { panic!("a new job runs") };
        assert!(store.release(&claim).await.is_err());
        assert!(store.ping().await.is_err() && store.renew(&[]).await.is_err());
        let other = store.process("b");
        assert!(matches!(accept(&other).await, Ok(Verdict::RunningElsewhere { .. })));
        assert_eq!(other.writes(), 1);
    }

    #[tokio::test]
    async fn a_lease_ends_when_its_time_has_passed() {
        let (clock, store) = store();
        let Ok(Verdict::Run(claim)) = accept(&store).await else { panic!("a new job runs") };
        *lock(&clock.0) += 4_000_000_000;
        store.renew(&[(claim.thread_id.clone(), claim.epoch)]).await.expect("alive");
        *lock(&clock.0) += 4_999_999_999;
        let verdict = accept(&store).await.expect("alive");
        let Verdict::RunningElsewhere { retry_in } = verdict else { panic!("{verdict:?}") };
        assert_eq!(retry_in, Duration::from_nanos(1));
        *lock(&clock.0) += 1;
        let verdict = accept(&store).await.expect("alive");
        let Verdict::Run(second) = &verdict else { panic!("{verdict:?}") };
        assert!(second.epoch > claim.epoch && second.attempt == 2);
    }
}

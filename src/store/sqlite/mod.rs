//! Durable state in one SQLite file: for runs without any server.
//!
//! **Invariant:** every call is one transaction; one that writes holds the only write lock from its beginning.
//! **Invariant:** values go through LangGraph's codec as in Postgres; several processes may share the file.

mod agents;
mod cache;
mod checkpoints;
mod claims;
mod deadlines;
mod failure;
mod inspect;
mod jobs;
mod letters;
mod link;
mod rows;
mod thread_changes;
mod threads;
mod unfinished;
mod upkeep;

use std::{sync::Arc, time::Duration};

pub use link::Place;
pub use unfinished::Unfinished;

use self::{claims::Claimant, link::Link};
use super::{Error, MAX_STATE_BYTES};
use crate::ids::Clock;

/// Where the file is, and on what terms threads are claimed.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the database is.
    pub place: Place,
    /// How long a claim lasts unless it is renewed.
    pub lease: Duration,
    /// After how many owners that vanished without progress a job is given up.
    pub max_crashes: usize,
    /// Most bytes of one commit.
    pub max_state_bytes: usize,
}

impl Config {
    /// As the defaults of the Postgres store.
    pub fn at(place: Place) -> Self {
        let lease = Duration::from_secs(5);
        Self { place, lease, max_crashes: 5, max_state_bytes: MAX_STATE_BYTES }
    }
}

/// One process's view of a database file.
pub struct SqliteStore {
    link: Link,
    clock: Arc<dyn Clock>,
    owner: Arc<str>,
    config: Config,
}

impl SqliteStore {
    /// Opens the database for `owner`, which names one incarnation of a process, and brings its schema up to date.
    ///
    /// Fails with [`Error::Unavailable`] when the file cannot be opened and with [`Error::Migration`] when it is
    /// something else.
    pub async fn open(config: Config, clock: Arc<dyn Clock>, owner: &str) -> Result<Self, Error> {
        let link = Link::open(&config.place).await?;
        Ok(Self { link, clock, owner: owner.into(), config })
    }

    /// Waits for every call that was made, then closes the file.
    pub async fn close(&self) {
        self.link.close().await;
    }

    fn claimant(&self) -> Claimant {
        Claimant {
            owner: self.owner.clone(),
            now: self.clock.now(),
            lease: self.config.lease,
            max_crashes: self.config.max_crashes,
        }
    }
}

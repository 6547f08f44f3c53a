//! How many jobs a process runs, and for how long.

use std::time::Duration;

use url::Url;

use crate::store::{Leave, Retention};

/// Settings of the worker.
#[derive(Clone, Debug)]
pub struct Config {
    /// Most jobs at once in this process.
    pub max_concurrent_jobs: usize,
    /// Bytes of held messages from which on no more are taken.
    pub max_bytes_in_flight: usize,
    /// How long a job may take unless it asks for another limit.
    pub job_timeout: Duration,
    /// How long running jobs may go on after a request to stop.
    pub shutdown_grace: Duration,
    /// Time between two signs of life for held messages; at most a third of the queue's ack wait.
    pub progress_every: Duration,
    /// Time between two renewals of all leases; at most a third of the lease.
    pub renew_every: Duration,
    /// Time between two looks for messages that the broker has forgotten.
    pub reconcile_every: Duration,
    /// From which age on a message that was delivered and not settled is looked at.
    pub lingering: Duration,
    /// Where results are also posted.
    pub k_sink: Option<Url>,
    /// How long ended jobs and dead letters are kept.
    pub retention: Retention,
    /// What becomes of threads that have been silent for long.
    pub threads: ThreadRetention,
    /// The name of this process, shown as the owner of its threads.
    pub pod: String,
}

/// What becomes of threads that have been silent for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadRetention {
    /// How long; `None` keeps them for ever.
    pub after: Option<Duration>,
    /// What is left of them.
    pub leave: Leave,
    /// Whether that goes also for those that wait for somebody.
    pub waiting: bool,
}

/// The unit of retention.
pub const DAY: Duration = Duration::from_secs(24 * 3600);

impl Default for Config {
    fn default() -> Self {
        Self {
            max_concurrent_jobs: 100,
            max_bytes_in_flight: 256 << 20,
            job_timeout: Duration::from_secs(1800),
            shutdown_grace: Duration::from_secs(25),
            progress_every: Duration::from_secs(10),
            renew_every: Duration::from_millis(1500),
            reconcile_every: Duration::from_secs(30),
            lingering: Duration::from_secs(180),
            k_sink: None,
            retention: Retention { jobs: Some(7 * DAY), dead_letters: Some(30 * DAY) },
            threads: ThreadRetention { after: None, leave: Leave::Latest, waiting: false },
            pod: "agent-executor".to_owned(),
        }
    }
}

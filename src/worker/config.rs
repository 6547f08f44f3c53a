//! How many jobs a process runs, and for how long.

use std::time::Duration;

use url::Url;

/// Settings of the worker.
#[derive(Clone, Debug)]
pub struct Config {
    /// Most jobs at once in this process.
    pub max_concurrent_jobs: usize,
    /// How long a job may take unless it asks for another limit.
    pub job_timeout: Duration,
    /// How long running jobs may go on after a request to stop.
    pub shutdown_grace: Duration,
    /// Time between two signs of life for held messages; at most a third of the queue's ack wait.
    pub progress_every: Duration,
    /// Time between two renewals of all leases; at most a third of the lease.
    pub renew_every: Duration,
    /// Where results are also posted.
    pub k_sink: Option<Url>,
    /// The name of this process, shown as the owner of its threads.
    pub pod: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_concurrent_jobs: 100,
            job_timeout: Duration::from_secs(1800),
            shutdown_grace: Duration::from_secs(25),
            progress_every: Duration::from_secs(10),
            renew_every: Duration::from_millis(1500),
            k_sink: None,
            pod: "agent-executor".to_owned(),
        }
    }
}

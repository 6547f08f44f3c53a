//! The promise of the crash protocol, kept under fire: real executors and servers, jobs of all kinds, and everything
//! that can go wrong going wrong every 0.8 s. Afterwards every promise is checked (`checks/`).
//!
//! One seed gives the faults (`plan.rs`) and the jobs (`jobs.rs`); when exactly they meet depends on the machine. A run
//! that breaks a promise prints its faults, what the logs say, and how to run the same seed again.

mod checks;
mod collect;
mod counter;
mod history;
mod jobs;
mod load;
mod nemesis;
mod plan;
mod report;
mod runner;
mod site;

use std::time::Duration;

use anyhow::{Context, Result};

use runner::{Plan, run};

/// The seed of the run that is part of every test run.
const SEED: u64 = 1;
/// How long faults happen in it; start, quiet and checks take about as long again.
const LASTS: Duration = Duration::from_secs(60);
/// Executors.
const MEMBERS: usize = 4;

/// A number from the environment.
fn number(name: &str) -> Result<Option<u64>> {
    let Some(text) = std::env::var_os(name).filter(|text| !text.is_empty()) else { return Ok(None) };
    let parsed = text.to_str().and_then(|text| text.parse().ok());
    parsed.with_context(|| format!("{name} must be a number, not {text:?}")).map(Some)
}

/// `make chaos` sets CHAOS_MINUTES (or CHAOS_SECONDS) and CHAOS_SEED; without them it is the run of every test run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_or_stuck_whatever_dies() -> Result<()> {
    let seconds = match number("CHAOS_SECONDS")? {
        Some(seconds) => Some(seconds),
        None => number("CHAOS_MINUTES")?.map(|minutes| 60 * minutes),
    };
    let seed = match (number("CHAOS_SEED")?, seconds) {
        (Some(seed), _) => seed,
        (None, Some(_)) => u64::from(fastrand::u32(..)),
        (None, None) => SEED,
    };
    let members = number("CHAOS_MEMBERS")?.map_or(Ok(MEMBERS), usize::try_from)?;
    run(Plan { seed, members, lasts: seconds.map_or(LASTS, Duration::from_secs) }).await
}

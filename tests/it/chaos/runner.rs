//! One run: faults under load, then quiet, then the checks, then a report that says how to see it again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_executor::ids::{Clock as _, SystemClock};
use anyhow::{Context, Result, ensure};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::checks::{self, Violation};
use super::collect::{self, Observer};
use super::counter::{Counter, Victim};
use super::history::{Backlog, History};
use super::load::Load;
use super::nemesis::Nemesis;
use super::report;
use super::site::Site;
use crate::servers::until;

/// One fault begins so often.
const FAULT_EVERY: Duration = Duration::from_millis(800);
/// How often members that ended by themselves are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long everything may take to become quiet once nothing fails any more. Waits between deliveries grow to 30 s.
const QUIET_WITHIN: Duration = Duration::from_secs(180);
/// Runs of this length also wait until the messages are gone that a killed broker has forgotten; members look for those
/// that are some minutes old.
const LONG: Duration = Duration::from_secs(180);
const FOUND_WITHIN: Duration = Duration::from_secs(480);
/// How long the last events may take to reach their streams, and metrics to fall.
const LAST_WORDS: Duration = Duration::from_secs(20);
/// Log lines shown of a member for a violation.
const LINES: usize = 12;
/// Violations of one promise that are shown, and those of them with their log lines.
const SHOWN: usize = 20;
const WITH_LOGS: usize = 3;

/// How much of what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) members: usize,
    pub(super) lasts: Duration,
}

/// A run that is going on.
struct Run {
    plan: Plan,
    started: Instant,
    started_ms: f64,
    site: Arc<Site>,
    nemesis: Arc<Nemesis>,
    load: Arc<Load>,
    observer: Arc<Observer>,
}

/// Runs `plan`; the error is a report of everything that broke a promise.
pub(super) async fn run(plan: Plan) -> Result<()> {
    let started = Instant::now();
    let started_ms = SystemClock.now().0 as f64 / 1e6;
    let (counter, victims) = Counter::new(started);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{}", plan.seed));
    let site = Arc::new(Site::start(plan.members, counter, folder).await?);
    for member in &site.members {
        member.ensure_running()?;
    }
    for member in &site.members {
        let ready = || async {
            let Some(process) = member.process() else { return false };
            matches!(process.get("/ready").await, Ok((200, _)))
        };
        until("every member is ready", QUIET_WITHIN, ready).await?;
    }
    let observer = Arc::new(Observer::connect(&site).await?);
    let nemesis = Nemesis::new(site.clone(), plan.seed, started);
    let load = Load::new(site.clone(), observer.clone(), plan.seed);
    let run = Run { plan, started, started_ms, site, nemesis, load, observer };
    println!("chaos: seed {}, {} members, {:?} of faults", plan.seed, plan.members, plan.lasts);
    run.to_the_end(victims).await
}

impl Run {
    async fn to_the_end(&self, victims: mpsc::UnboundedReceiver<Victim>) -> Result<()> {
        let over = CancellationToken::new();
        let tasks = TaskTracker::new();
        let keeper = watch(self.nemesis.clone(), victims);
        tasks.spawn(over.clone().run_until_cancelled_owned(keeper));
        self.storm().await?;
        let calm_at = self.started.elapsed();
        let quiet = self.quiet().await;
        let (history, violations) = self.judge().await?;
        over.cancel();
        let told =
            report::summary(self.plan.seed, &history, (calm_at, self.started.elapsed()), &self.nemesis);
        println!("{told}");
        if let Err(error) = &quiet {
            println!("chaos: {error:#}");
        }
        if violations.is_empty() {
            return quiet;
        }
        self.explain(&history, &violations)
    }

    /// Faults under load.
    async fn storm(&self) -> Result<()> {
        let over = CancellationToken::new();
        let load = self.load.clone();
        let asking = over.clone();
        let tasks = TaskTracker::new();
        let asking = tasks.spawn(async move { load.run(|| !asking.is_cancelled()).await });
        let mut due = tokio::time::interval(FAULT_EVERY);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut number = 0;
        while self.started.elapsed() < self.plan.lasts {
            due.tick().await;
            self.nemesis.strike(number);
            number += 1;
        }
        over.cancel();
        // A request that is being sent when the faults end is still sent; that needs its server back.
        self.nemesis.calm().await;
        asking.await.context("the load panicked")?
    }

    /// Waits until nothing is left to do.
    async fn quiet(&self) -> Result<()> {
        let since = Instant::now();
        let within = if self.is_patient() { FOUND_WITHIN } else { QUIET_WITHIN };
        while !self.is_quiet().await.unwrap_or(false) {
            ensure!(since.elapsed() < within, "waited {within:?} in vain until nothing is left to do");
            self.load.look().await;
            // A question that cannot be answered now is answered at the next look.
            let _ = self.load.send_answers().await;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.nemesis.calm().await;
        Ok(())
    }

    /// Whether the run waits until members have found the messages that a killed broker forgot.
    fn is_patient(&self) -> bool {
        self.plan.lasts >= LONG
    }

    async fn is_quiet(&self) -> Result<bool> {
        if self.load.missing() > 0 || collect::unfinished(&self.site).await? != (0, 0, 0) {
            return Ok(false);
        }
        let backlog = self.observer.backlog().await?;
        if backlog.stored == 0 || self.is_patient() {
            return Ok((backlog.stored, backlog.pending, backlog.ack_pending) == (0, 0, 0));
        }
        let (jobs, buried) = (collect::jobs(&self.site).await?, collect::buried(&self.site).await?);
        let known = History { jobs, buried, ..History::default() };
        Ok(backlog.left.iter().all(|left| known.is_done(left)))
    }

    /// Reads everything and checks it; what may be late is given a moment.
    async fn judge(&self) -> Result<(History, Vec<Violation>)> {
        let started = Instant::now();
        let python = collect::python(&self.site).await.context("LangGraph's reader")?;
        loop {
            let mut history = self.history().await?;
            history.python.clone_from(&python);
            let violations = checks::all(&history);
            if violations.is_empty() || started.elapsed() > LAST_WORDS {
                return Ok((history, violations));
            }
            tokio::time::sleep(LOOK_EVERY * 4).await;
        }
    }

    async fn history(&self) -> Result<History> {
        let site = &self.site;
        let threads = collect::threads(site).await?;
        let backlog = Backlog { waited: self.is_patient(), ..self.observer.backlog().await? };
        let names: Vec<String> = threads.iter().map(|thread| thread.thread_id.clone()).collect();
        Ok(History {
            asked: self.load.accepted(),
            results: self.observer.results(0).await?.0,
            letters: self.observer.letters().await?,
            jobs: collect::jobs(site).await?,
            threads,
            checkpoints: collect::checkpoints(site).await?,
            buried: collect::buried(site).await?,
            calls: site.counter.calls(),
            denied: self.load.denied(),
            events: collect::events(site, &names, self.started_ms).await?,
            backlog,
            happened: self.nemesis.happened(),
            trouble: self.nemesis.trouble(),
            python: Vec::new(),
            in_flight: collect::metric(site, "agent_executor_jobs_in_flight").await,
            started_ms: self.started_ms,
        })
    }

    /// Everything somebody needs who wants to know why.
    fn explain(&self, history: &History, violations: &[Violation]) -> Result<()> {
        println!("{}", report::fault_log(history));
        for member in &self.site.members {
            member.last_log();
        }
        let mut shown: BTreeMap<&str, usize> = BTreeMap::new();
        for violation in violations {
            let seen = shown.entry(violation.promise).or_default();
            *seen += 1;
            if *seen <= SHOWN {
                println!("VIOLATION: {}: {}: {}", violation.promise, violation.about, violation.text);
            }
            if *seen <= WITH_LOGS && !violation.about.is_empty() {
                print!("{}", self.site.lines_about(&violation.about, LINES));
            }
        }
        for (promise, count) in shown {
            println!("chaos: {count} x broken: {promise}");
        }
        let folder = self.site.folder.display();
        ensure!(
            violations.is_empty(),
            "{} violations; logs are in {folder}; again with\n    {}",
            violations.len(),
            report::replay(self.plan.seed, self.plan.lasts)
        );
        Ok(())
    }
}

/// Kills members that poison jobs have reached, and starts those that ended by themselves.
async fn watch(nemesis: Arc<Nemesis>, mut victims: mpsc::UnboundedReceiver<Victim>) {
    let mut due = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            Some(member) = victims.recv() => nemesis.poisoned(member),
            _ = due.tick() => nemesis.look_after(),
        }
    }
}

//! Asks for jobs as long as the run lasts, as many at a time as are worked off, and watches their results come in.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value as Json, json};
use tokio_util::task::TaskTracker;

use super::collect::Observer;
use super::jobs::{Asked, Expected, job};
use super::site::Site;

/// Jobs that may be on their way at a time: enough for every member, few enough for two cores.
const ON_THEIR_WAY: usize = 24;
/// How often results are looked for, and the load is filled up.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often a request is sent until somebody confirms it: longer than any outage lasts.
const TRIES: u32 = 600;
/// Pause between two of them.
const PAUSE: Duration = Duration::from_millis(100);

/// The load of one run.
pub(super) struct Load {
    site: Arc<Site>,
    observer: Arc<Observer>,
    seed: u64,
    state: Mutex<State>,
    tracker: TaskTracker,
}

#[derive(Default)]
struct State {
    /// Accepted requests, in the order in which they were asked for.
    accepted: Vec<Asked>,
    /// Jobs whose result has come.
    ended: BTreeSet<String>,
    /// Polite jobs whose thread waits for a result.
    held: VecDeque<Asked>,
    /// Jobs that answer questions.
    answers: VecDeque<Asked>,
    /// Keys of effects of which somebody said that they did not happen.
    denied: Vec<String>,
    next: u64,
    next_result: u64,
}

impl Load {
    pub(super) fn new(site: Arc<Site>, observer: Arc<Observer>, seed: u64) -> Arc<Self> {
        Arc::new(Self { site, observer, seed, state: Mutex::default(), tracker: TaskTracker::new() })
    }

    /// Asks until `more` says no; what was asked for is then accepted.
    pub(super) async fn run(&self, more: impl Fn() -> bool) -> Result<()> {
        while more() {
            self.look().await;
            self.send_answers().await?;
            match self.due() {
                Some(asked) => self.ask(asked).await?,
                None => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
        Ok(())
    }

    /// Notes results that have come since the last look. An outage of the broker only makes it late.
    pub(super) async fn look(&self) {
        let from = self.lock().next_result;
        let Ok((results, next)) = self.observer.results(from).await else { return };
        let mut state = self.lock();
        state.next_result = next;
        let seen = self.site.counter.calls();
        for result in results {
            let job_id = result.event["subject"].as_str().unwrap_or_default();
            if !state.ended.insert(job_id.to_owned()) || result.subject != "agent.status.interrupted" {
                continue;
            }
            let happened = |key: &str| seen.iter().any(|call| call.key.as_deref() == Some(key));
            state.answer(job_id, &result.event["data"]["interrupts"], happened);
        }
    }

    /// Sends the answers that are due.
    pub(super) async fn send_answers(&self) -> Result<()> {
        loop {
            let Some(asked) = self.lock().answers.pop_front() else { return Ok(()) };
            self.ask(asked).await?;
        }
    }

    /// The next request, when there is room for one.
    fn due(&self) -> Option<Asked> {
        let mut state = self.lock();
        let on_their_way = state.accepted.iter().filter(|asked| !state.has_ended(asked)).count();
        if on_their_way + state.held.len() >= ON_THEIR_WAY {
            let free = state.held.iter().position(|held| !state.is_busy(held))?;
            return state.held.remove(free);
        }
        if let Some(free) = state.held.iter().position(|held| !state.is_busy(held)) {
            return state.held.remove(free);
        }
        let asked = job(self.seed, state.next, self.site.places);
        state.next += 1;
        if asked.polite && (state.is_busy(&asked) || state.is_held(&asked)) {
            state.held.push_back(asked);
            return None;
        }
        Some(asked)
    }

    /// Sends a request until somebody says that it is stored.
    async fn ask(&self, asked: Asked) -> Result<()> {
        let mut last = String::new();
        for turn in 0..TRIES {
            let sent = if asked.by_http { self.post(&asked, turn).await } else { self.publish(&asked).await };
            match sent {
                Ok(()) => {
                    if let Some(after) = asked.cancel_after {
                        self.cancel_later(asked.job_id.clone(), after);
                    }
                    self.lock().accepted.push(asked);
                    return Ok(());
                }
                Err(error) => last = format!("{error:#}"),
            }
            tokio::time::sleep(PAUSE).await;
        }
        anyhow::bail!("nobody takes {}: {last}", asked.job_id)
    }

    async fn publish(&self, asked: &Asked) -> Result<()> {
        self.observer.publish(&asked.job_id, asked.payload.clone()).await
    }

    /// At one member after the other; the job id makes repeats harmless.
    async fn post(&self, asked: &Asked, turn: u32) -> Result<()> {
        let members = &self.site.members;
        let member = &members[turn as usize % members.len()];
        let Some(process) = member.process() else { anyhow::bail!("{} is down", member.name) };
        let (status, body) = process.post("/", "application/json", &asked.payload).await?;
        anyhow::ensure!(status == 202, "{} answers {status}: {body}", member.name);
        Ok(())
    }

    /// Wants the job cancelled in a while, and says so until somebody has noted it.
    fn cancel_later(&self, job_id: String, after: Duration) {
        let observer = self.observer.clone();
        self.tracker.spawn(async move {
            tokio::time::sleep(after).await;
            for _ in 0..TRIES {
                if observer.cancel(&job_id).await.is_ok() {
                    return;
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
    }

    /// Keys of effects that were denied.
    pub(super) fn denied(&self) -> Vec<String> {
        self.lock().denied.clone()
    }

    /// Everything that was accepted.
    pub(super) fn accepted(&self) -> Vec<Asked> {
        self.lock().accepted.clone()
    }

    /// Accepted jobs whose result has not come.
    pub(super) fn missing(&self) -> usize {
        let state = self.lock();
        state.answers.len() + state.accepted.iter().filter(|asked| !state.has_ended(asked)).count()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Answers the questions of a job as a person would who looks at what really happened.
    fn answer(&mut self, job_id: &str, interrupts: &Json, happened: impl Fn(&str) -> bool) {
        let Some(asked) = self.accepted.iter().find(|asked| asked.job_id == job_id).cloned() else { return };
        let mut resume = json!({});
        for interrupt in interrupts.as_array().into_iter().flatten() {
            let key = interrupt["value"]["idempotency_key"].as_str().unwrap_or_default();
            let answer = if happened(key) {
                json!({ "result": "charged" })
            } else {
                self.denied.push(key.to_owned());
                json!("did_not_happen")
            };
            resume[interrupt["id"].as_str().unwrap_or_default()] = answer;
        }
        let number = self.accepted.iter().filter(|other| other.family == asked.family).count();
        self.answers.push_back(asked.answered(number, &resume));
    }

    fn has_ended(&self, asked: &Asked) -> bool {
        matches!(asked.expected, Expected::Letter(_)) || self.ended.contains(&asked.job_id)
    }

    /// Whether a job of the thread is on its way.
    fn is_busy(&self, asked: &Asked) -> bool {
        let same = |other: &&Asked| other.thread_id == asked.thread_id;
        self.accepted.iter().filter(same).any(|other| !self.has_ended(other))
    }

    fn is_held(&self, asked: &Asked) -> bool {
        self.held.iter().any(|held| held.thread_id == asked.thread_id)
    }
}

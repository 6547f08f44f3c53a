//! Who may call now: the lanes of this process, the places they share, and what is known of other processes.
//!
//! **Invariant:** a place is taken under the lock that also tells its call, and given back once, whoever is dropped when.

use std::{
    collections::{HashMap, VecDeque},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Limits, Pool,
    bucket::{Bucket, Rates},
    clerk,
    line::Line,
};
use crate::{
    ids::ThreadId,
    model::breaker::{self, Breaker, Entry, Verdict},
    telemetry::{InUse, Limited, metric},
};

/// Addresses of one provider that have a breaker of their own; definitions choose them, among few allowed ones.
const MAX_DOORS: usize = 64;

/// A provider under its key, as the desk is told of it.
pub(in crate::model) struct Lane {
    /// The provider's name.
    pub(in crate::model) provider: String,
    /// Its name in the pool; none when processes do not share it.
    pub(in crate::model) shared_as: Option<String>,
    /// What it allows.
    pub(in crate::model) limits: Limits,
    /// Processes that its limits are divided among until the pool has told how many there are.
    pub(in crate::model) parts: u32,
    /// When it is not asked any more.
    pub(in crate::model) breaker: breaker::Config,
}

/// All lanes of this process.
pub(in crate::model) struct Desk {
    state: Mutex<State>,
    pub(super) posts: Vec<Post>,
    pub(super) pool: OnceLock<Arc<dyn Pool>>,
    origin: Instant,
    tracker: TaskTracker,
    closing: CancellationToken,
}

/// What never changes of a lane.
pub(super) struct Post {
    pub(super) lane: Lane,
    /// All that processes may use together.
    pub(super) rates: Rates,
    /// Wakes the clerk.
    pub(super) bell: Notify,
    /// Tells those in line that the provider is not asked any more at some address.
    refusing: Notify,
}

pub(super) struct State {
    /// Calls under way in this process, and those asked of a pool.
    pub(super) taken: usize,
    pub(super) most: usize,
    pub(super) in_use: InUse,
    pub(super) lanes: Vec<LaneState>,
    /// Lanes whose calls wait for a place in this process, in their turn.
    pub(super) starved: VecDeque<usize>,
}

#[derive(Default)]
pub(super) struct LaneState {
    pub(super) line: Line,
    /// Calls under way.
    pub(super) held: usize,
    /// What this process has used of its share.
    pub(super) own: Bucket,
    /// Processes that the pool last saw, and before its first answer those that the operator expects.
    pub(super) pods: u32,
    pub(super) paused_until: Option<Instant>,
    /// A pause the pool has not heard of.
    pub(super) has_news: bool,
    pub(super) settled: i64,
    /// Since when the pool does not know how many calls are under way.
    pub(super) changed: Option<Instant>,
    pub(super) drawn: Option<Instant>,
    pub(super) away_until: Option<Instant>,
    /// When waiting calls may be drawn for again.
    pub(super) rest_until: Option<Instant>,
    has_clerk: bool,
    breakers: HashMap<Option<String>, Breaker>,
}

/// A place for one call, until it is dropped.
pub(in crate::model) struct Place {
    desk: Arc<Desk>,
    lane: usize,
}

impl Place {
    /// The desk and the lane it belongs to.
    pub(in crate::model) fn whose(&self) -> (&Arc<Desk>, usize) {
        (&self.desk, self.lane)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.desk.locked();
        self.desk.give_back(&mut state, self.lane);
    }
}

/// A call in line; leaves it when dropped, with the place it may just have been given.
struct InLine<'a> {
    desk: &'a Arc<Desk>,
    lane: usize,
    thread: &'a ThreadId,
    number: u64,
    told: oneshot::Receiver<()>,
    is_served: bool,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        if self.is_served {
            return;
        }
        let mut state = self.desk.locked();
        state.lanes[self.lane].line.leave(self.thread, self.number);
        if self.told.try_recv().is_ok() {
            self.desk.give_back(&mut state, self.lane);
        }
        self.desk.show_waiting(&state, self.lane);
    }
}

impl Desk {
    /// A desk for `lanes`, with `most` places for all of them together.
    pub(in crate::model) fn new(lanes: Vec<Lane>, most: usize, closing: CancellationToken) -> Self {
        let state = State {
            taken: 0,
            most,
            in_use: InUse::new(Limited::ModelCalls, most),
            lanes: lanes.iter().map(|lane| LaneState { pods: lane.parts, ..LaneState::default() }).collect(),
            starved: VecDeque::new(),
        };
        let post = |lane: Lane| {
            let rates = Rates::of(&lane.limits, 1);
            Post { rates, lane, bell: Notify::new(), refusing: Notify::new() }
        };
        let desk = Self {
            state: Mutex::new(state),
            posts: lanes.into_iter().map(post).collect(),
            pool: OnceLock::new(),
            origin: Instant::now(),
            tracker: TaskTracker::new(),
            closing,
        };
        // Panels and alerts find what has not happened yet at zero.
        for lane in 0..desk.posts.len() {
            desk.gauge(lane, metric::LLM_WAITING, 0);
            desk.gauge(lane, metric::LLM_BREAKER_OPEN, 0);
        }
        desk
    }

    /// Shares the limits with other processes from now on. Must be called inside a tokio runtime, once.
    pub(in crate::model) fn share(self: &Arc<Self>, pool: Arc<dyn Pool>) {
        if self.pool.set(pool).is_ok() {
            // Those that limit something are known to the others before their first call.
            let limited = |(_, post): &(usize, &Post)| post.lane.limits.are_any();
            for (lane, _) in self.posts.iter().enumerate().filter(limited) {
                self.ring(&mut self.locked(), lane);
            }
        }
    }

    /// Whether calls of this lane are limited by tokens.
    pub(in crate::model) fn counts_tokens(&self, lane: usize) -> bool {
        self.posts[lane].lane.limits.tokens_per_minute.is_some()
    }

    /// The lane's provider.
    pub(in crate::model) fn provider(&self, lane: usize) -> &str {
        &self.posts[lane].lane.provider
    }

    /// Waits until `thread` may make a call of about `tokens` tokens. Whoever stops waiting leaves the line.
    pub(in crate::model) async fn place(
        self: &Arc<Self>,
        lane: usize,
        thread: &ThreadId,
        tokens: u64,
    ) -> Place {
        let place = || Place { desk: self.clone(), lane };
        let (number, told) = {
            let mut state = self.locked();
            if self.is_shared(lane) {
                self.ring_first(&mut state, lane);
            }
            if self.goes_at_once(&mut state, lane, tokens) {
                return place();
            }
            let joined = state.lanes[lane].line.join(thread, tokens);
            self.show_waiting(&state, lane);
            self.ring(&mut state, lane);
            joined
        };
        let mut in_line = InLine { desk: self, lane, thread, number, told, is_served: false };
        // The other end is dropped only with a call that is told, or by the one that waits here.
        in_line.is_served = (&mut in_line.told).await.is_ok();
        drop(in_line);
        place()
    }

    /// The provider asks everybody to wait.
    pub(in crate::model) fn pause(self: &Arc<Self>, lane: usize, asked: Duration) {
        let mut state = self.locked();
        let known = &mut state.lanes[lane];
        known.paused_until = known.paused_until.max(Some(Instant::now() + asked));
        known.has_news = self.is_shared(lane);
        self.ring(&mut state, lane);
    }

    /// A call took this many tokens more than were counted, or, below zero, fewer.
    pub(in crate::model) fn settle(&self, lane: usize, tokens: i64) {
        let now = self.now();
        let mut state = self.locked();
        let known = &mut state.lanes[lane];
        known.own.settle(now, tokens, &self.posts[lane].rates);
        if self.is_shared(lane) {
            known.settled = known.settled.saturating_add(tokens);
        }
    }

    /// Whether the provider is asked at all at this address: how, or in what time it may be.
    pub(in crate::model) fn enter(&self, lane: usize, door: &Option<String>) -> Result<Entry, Duration> {
        let now = self.origin.elapsed();
        let mut state = self.locked();
        let Some(breaker) = state.lanes[lane].breakers.get_mut(door) else { return Ok(Entry::Call) };
        breaker.enter(now)
    }

    /// In what time the provider may be asked at this address, if not now.
    pub(in crate::model) fn refuses(&self, lane: usize, door: &Option<String>) -> Option<Duration> {
        let now = self.origin.elapsed();
        self.locked().lanes[lane].breakers.get(door)?.refuses(now)
    }

    /// Waits until the provider is not asked at this address; in what time it may be.
    pub(in crate::model) async fn refused(&self, lane: usize, door: &Option<String>) -> Duration {
        loop {
            let mut refusing = pin!(self.posts[lane].refusing.notified());
            // From now on nothing is missed.
            refusing.as_mut().enable();
            if let Some(retry_in) = self.refuses(lane, door) {
                return retry_in;
            }
            refusing.await;
        }
    }

    /// What came of a call that entered at this address.
    pub(in crate::model) fn left(
        &self,
        lane: usize,
        door: &Option<String>,
        (entry, verdict): (Entry, Verdict),
    ) {
        let now = self.origin.elapsed();
        let config = self.posts[lane].lane.breaker;
        let mut state = self.locked();
        let breakers = &mut state.lanes[lane].breakers;
        if !breakers.contains_key(door) {
            if verdict != Verdict::Failed || config.failures == 0 || breakers.len() == MAX_DOORS {
                return;
            }
            breakers.insert(door.clone(), Breaker::new(config, now));
        }
        let Some(breaker) = breakers.get_mut(door) else { return };
        let was_open = breaker.is_open();
        breaker.left(now, entry, verdict);
        if was_open != breaker.is_open() {
            let provider = self.provider(lane);
            match was_open {
                false => tracing::warn!(provider, "the provider fails; it is not asked for a while"),
                true => tracing::info!(provider, "the provider answers again"),
            }
        }
        if verdict == Verdict::Failed && breaker.refuses(now).is_some() {
            self.posts[lane].refusing.notify_waiters();
        }
        let open = breakers.values().filter(|breaker| breaker.is_open()).count();
        self.gauge(lane, metric::LLM_BREAKER_OPEN, open);
    }

    fn goes_at_once(&self, state: &mut State, lane: usize, tokens: u64) -> bool {
        let post = &self.posts[lane];
        let is_limited = post.lane.limits.are_any();
        if state.taken >= state.most || !state.starved.is_empty() || (is_limited && self.is_shared(lane)) {
            return false;
        }
        let (now, at) = (Instant::now(), self.now());
        let known = &mut state.lanes[lane];
        let is_held_up = known.line.len() > 0
            || known.paused_until.is_some_and(|until| until > now)
            || post.rates.is_full(known.held);
        if is_held_up || known.own.take(at, tokens, &post.rates).is_err() {
            return false;
        }
        known.held += 1;
        state.taken += 1;
        state.in_use.set(state.taken);
        true
    }

    fn give_back(self: &Arc<Self>, state: &mut State, lane: usize) {
        let post = &self.posts[lane];
        state.taken -= 1;
        state.in_use.set(state.taken);
        let known = &mut state.lanes[lane];
        known.held -= 1;
        let is_news = self.is_shared(lane) && post.rates.concurrent > 0;
        if is_news {
            known.changed = known.changed.or(Some(Instant::now()));
            // A place of this process's own is free, whatever the others do.
            known.rest_until = None;
        }
        let has_waiting = known.line.len() > 0;
        if has_waiting && !state.starved.is_empty() {
            // Others are before it.
            starve(state, lane);
        }
        if is_news || (has_waiting && state.starved.is_empty()) {
            self.ring(state, lane);
        }
        self.wake_starved(state);
    }

    /// Lets the next lane that waits for a place look, if there is one.
    pub(super) fn wake_starved(&self, state: &mut State) {
        if state.taken < state.most
            && let Some(lane) = state.starved.pop_front()
        {
            self.posts[lane].bell.notify_one();
        }
    }

    fn ring(self: &Arc<Self>, state: &mut State, lane: usize) {
        self.ring_first(state, lane);
        self.posts[lane].bell.notify_one();
    }

    /// Starts the lane's clerk if there is none.
    fn ring_first(self: &Arc<Self>, state: &mut State, lane: usize) {
        if !std::mem::replace(&mut state.lanes[lane].has_clerk, true) {
            self.tracker.spawn(clerk::run(self.clone(), lane, self.closing.clone()));
        }
    }

    pub(super) fn is_shared(&self, lane: usize) -> bool {
        self.pool.get().is_some() && self.posts[lane].lane.shared_as.is_some()
    }

    pub(super) fn show_waiting(&self, state: &State, lane: usize) {
        self.gauge(lane, metric::LLM_WAITING, state.lanes[lane].line.len());
    }

    pub(super) fn gauge(&self, lane: usize, name: &'static str, amount: usize) {
        let amount = u32::try_from(amount).unwrap_or(u32::MAX);
        metrics::gauge!(name, "provider" => self.provider(lane).to_owned()).set(f64::from(amount));
    }

    /// Milliseconds since the desk was opened.
    pub(super) fn now(&self) -> f64 {
        self.origin.elapsed().as_secs_f64() * 1000.0
    }

    pub(super) fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn starve(state: &mut State, lane: usize) {
    if !state.starved.contains(&lane) {
        state.starved.push_back(lane);
    }
}

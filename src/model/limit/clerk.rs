//! The one task of a lane: draws from the pool for those who wait, tells it that the process is there, and rests.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Away, Draw, Drawn, Pool,
    bucket::Rates,
    desk::{Desk, State, starve},
    line::Next,
};
use crate::telemetry::metric;

/// Calls that one draw asks for: as many as one round trip should decide, and a bound for the script.
const MAX_DRAW: usize = 64;
/// A process tells the pool this often that it is there, and learns of pauses. A fifth of what [`super::server`] takes for gone.
const SIGN_OF_LIFE: Duration = Duration::from_secs(3);
/// How long to do without a pool that did not answer, before it is asked again whether it is there.
const AWAY: Duration = Duration::from_secs(5);
/// How long ends of calls are gathered before the pool hears of them, when nobody waits here.
const GATHER: Duration = Duration::from_millis(20);
/// Longest time from one draw for waiting calls to the next: other processes end calls without telling this one.
const LONGEST_REST: Duration = Duration::from_millis(500);
/// Shortest such time: a pool that says "now" and grants nothing must not be asked in a circle.
const SHORTEST_REST: Duration = Duration::from_millis(2);

/// What a clerk does next.
enum Step {
    /// Draws from the pool for these calls.
    Draw(Arc<dyn Pool>, Draw, Vec<Next>),
    /// Waits for its bell, or so long.
    Rest(Option<Duration>),
}

/// Works until `closing`.
pub(super) async fn run(desk: Arc<Desk>, lane: usize, closing: CancellationToken) {
    loop {
        let rest = match desk.step(lane) {
            Step::Rest(rest) => rest,
            Step::Draw(pool, draw, calls) => {
                let name = desk.posts[lane].lane.shared_as.as_deref().unwrap_or_default();
                let mut drawing = pin!(pool.draw(name, &draw));
                let drawn = loop {
                    let rest = desk.meanwhile(lane);
                    tokio::select! {
                        biased;
                        () = closing.cancelled() => return,
                        drawn = &mut drawing => break drawn,
                        () = desk.posts[lane].bell.notified() => {}
                        () = rested(rest) => {}
                    }
                };
                desk.conclude(lane, (&draw, calls), drawn);
                continue;
            }
        };
        tokio::select! {
            biased;
            () = closing.cancelled() => return,
            () = desk.posts[lane].bell.notified() => {}
            () = rested(rest) => {}
        }
    }
}

async fn rested(rest: Option<Duration>) {
    match rest {
        Some(rest) => tokio::time::sleep(rest).await,
        None => std::future::pending().await,
    }
}

impl Desk {
    /// What the clerk of `lane` does next; calls that need no pool are told on the way.
    fn step(&self, lane: usize) -> Step {
        let now = Instant::now();
        let mut state = self.locked();
        let pool = self.pool.get().filter(|_| self.is_shared(lane));
        let Some(pool) = pool else { return Step::Rest(self.admit(&mut state, lane)) };
        let away = state.lanes[lane].away_until;
        let is_away = away.is_some_and(|until| until > now);
        // Nobody waits for a pool that may still be away: the next draw only finds out.
        let draws = self.posts[lane].lane.limits.are_any() && away.is_none();
        let wait = if draws { None } else { self.admit(&mut state, lane) };
        if !is_away && self.is_due(&mut state, lane, now) {
            let (draw, calls) = self.draw(&mut state, lane, draws);
            return Step::Draw(pool.clone(), draw, calls);
        }
        self.wake_starved(&mut state);
        let known = &state.lanes[lane];
        let waits = draws && known.line.len() > 0 && state.taken < state.most;
        let times = [
            known.away_until.filter(|_| is_away),
            known.drawn.map(|at| at + SIGN_OF_LIFE),
            known.changed.map(|at| at + GATHER),
            known.rest_until.filter(|_| waits),
        ];
        let next = times.into_iter().flatten().filter(|at| !is_away || Some(*at) == known.away_until).min();
        let rest = next.map(|at| at.saturating_duration_since(now));
        Step::Rest(wait.into_iter().chain(rest).min())
    }

    /// Tells calls that need no pool while it is asked; when to look again.
    fn meanwhile(&self, lane: usize) -> Option<Duration> {
        let mut state = self.locked();
        let draws = self.posts[lane].lane.limits.are_any() && state.lanes[lane].away_until.is_none();
        if draws { None } else { self.admit(&mut state, lane) }
    }

    /// Notes what came of a draw for `calls`, and tells those that may be made.
    fn conclude(&self, lane: usize, (draw, calls): (&Draw, Vec<Next>), drawn: Result<Drawn, Away>) {
        let now = Instant::now();
        let mut state = self.locked();
        state.taken -= calls.len();
        let was_away = state.lanes[lane].away_until.is_some();
        match drawn {
            Ok(drawn) => self.hand_out(&mut state, lane, (calls, drawn)),
            Err(error) => {
                let known = &mut state.lanes[lane];
                known.away_until = Some(now + AWAY);
                known.settled = known.settled.saturating_add(draw.settled);
                known.has_news |= !draw.pause.is_zero();
                if !was_away && self.posts[lane].lane.limits.are_any() {
                    let (provider, pods) = (self.provider(lane), known.pods);
                    tracing::warn!(provider, pods, %error, "model limits are not shared for now; this process keeps to its share");
                }
            }
        }
        let is_away = state.lanes[lane].away_until.is_some();
        if self.posts[lane].lane.limits.are_any() {
            if was_away && !is_away {
                tracing::info!(provider = self.provider(lane), "model limits are shared again");
            }
            self.gauge(lane, metric::LLM_LIMITS_SHARED, usize::from(!is_away));
        }
        self.show_waiting(&state, lane);
        self.wake_starved(&mut state);
    }

    fn hand_out(&self, state: &mut State, lane: usize, (calls, drawn): (Vec<Next>, Drawn)) {
        let (now, at) = (Instant::now(), self.now());
        let known = &mut state.lanes[lane];
        (known.away_until, known.pods) = (None, drawn.pods);
        if !known.has_news {
            known.paused_until = (!drawn.pause.is_zero()).then(|| now + drawn.pause);
        }
        let share = Rates::of(&self.posts[lane].lane.limits, drawn.pods);
        known.rest_until =
            (drawn.granted < calls.len()).then(|| now + drawn.wait.clamp(SHORTEST_REST, LONGEST_REST));
        for call in calls.iter().take(drawn.granted) {
            if known.line.call(call) {
                known.own.charge(at, call.tokens, &share);
                known.held += 1;
                state.taken += 1;
            } else {
                known.settled = known.settled.saturating_sub_unsigned(call.tokens);
            }
        }
        known.own.forgive(at, &share);
        state.in_use.set(state.taken);
    }

    /// Tells calls that this process may make by itself; when to look again.
    fn admit(&self, state: &mut State, lane: usize) -> Option<Duration> {
        let (now, at) = (Instant::now(), self.now());
        let pods = if self.is_shared(lane) { state.lanes[lane].pods } else { 1 };
        let share = Rates::of(&self.posts[lane].lane.limits, pods);
        let mut wait = None;
        while let Some(call) = state.lanes[lane].line.next(1).pop() {
            if state.taken >= state.most {
                starve(state, lane);
                break;
            }
            let known = &mut state.lanes[lane];
            if let Some(until) = known.paused_until.filter(|until| *until > now) {
                wait = Some(until - now);
                break;
            }
            // The end of one of them rings.
            if share.is_full(known.held) {
                break;
            }
            if let Err(millis) = known.own.take(at, call.tokens, &share) {
                wait = Some(Duration::from_secs_f64(millis / 1000.0).max(SHORTEST_REST));
                break;
            }
            if known.line.call(&call) {
                known.held += 1;
                state.taken += 1;
            }
        }
        state.in_use.set(state.taken);
        self.show_waiting(state, lane);
        self.wake_starved(state);
        wait
    }

    /// Whether there is something to tell the pool or to ask of it.
    fn is_due(&self, state: &mut State, lane: usize, now: Instant) -> bool {
        let is_limited = self.posts[lane].lane.limits.are_any();
        let known = &state.lanes[lane];
        let waits = is_limited && known.line.len() > 0;
        if waits && state.taken >= state.most {
            starve(state, lane);
        }
        let known = &state.lanes[lane];
        known.has_news
            || known.away_until.is_some_and(|until| until <= now)
            || known.drawn.is_none_or(|at| at + SIGN_OF_LIFE <= now)
            || known.changed.is_some_and(|at| at + GATHER <= now)
            || (waits && state.taken < state.most && known.rest_until.is_none_or(|until| until <= now))
    }

    fn draw(&self, state: &mut State, lane: usize, draws: bool) -> (Draw, Vec<Next>) {
        let now = Instant::now();
        let places = state.most.saturating_sub(state.taken).min(MAX_DRAW);
        let known = &mut state.lanes[lane];
        let calls = if draws { known.line.next(places) } else { Vec::new() };
        (known.drawn, known.changed) = (Some(now), None);
        let paused = known.paused_until.filter(|_| std::mem::take(&mut known.has_news));
        state.taken += calls.len();
        let draw = Draw {
            held: known.held,
            pause: paused.map_or(Duration::ZERO, |until| until.saturating_duration_since(now)),
            settled: std::mem::take(&mut known.settled),
            rates: self.posts[lane].rates,
            calls: calls.iter().map(|call| call.tokens).collect(),
        };
        (draw, calls)
    }
}

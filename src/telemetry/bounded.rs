//! What a process has a limited amount of, and how much of it is in use.
//!
//! **Invariant:** `agent_executor_in_use{kind}` never passes `agent_executor_limit{kind}` by more than its kind says.

use std::sync::Arc;

use metrics::{Counter, Gauge, counter, gauge};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::metric;

/// What there is a limited amount of; the label `kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limited {
    /// Jobs that run.
    Slots,
    /// Jobs that run although they are suspected to kill their process.
    Suspects,
    /// Bytes of held messages; the last message taken may pass the limit.
    MessageBytes,
    /// Messages held for busy threads.
    Parked,
    /// Bytes of those.
    ParkedBytes,
    /// Messages held for one busy thread; what is in use is the number of the thread that has most.
    ParkedPerThread,
    /// Live events that wait for their server; only pieces of text are turned away at the limit.
    StreamEvents,
    /// Bytes of those.
    StreamBytes,
    /// Calls of models.
    ModelCalls,
    /// Calls of tools outside of the process.
    ToolCalls,
    /// Scripts that run.
    Scripts,
}

impl Limited {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Slots => "slots",
            Self::Suspects => "suspects",
            Self::MessageBytes => "message_bytes",
            Self::Parked => "parked_messages",
            Self::ParkedBytes => "parked_bytes",
            Self::ParkedPerThread => "parked_messages_of_one_thread",
            Self::StreamEvents => "stream_events",
            Self::StreamBytes => "stream_bytes",
            Self::ModelCalls => "model_calls",
            Self::ToolCalls => "tool_calls",
            Self::Scripts => "scripts",
        }
    }
}

/// How much of a limit is in use, as `/metrics` shows it.
pub struct InUse {
    in_use: Gauge,
    turned_away: Counter,
}

impl InUse {
    /// Nothing is in use of `limit`.
    pub fn new(kind: Limited, limit: usize) -> Self {
        let kind = kind.as_str();
        gauge!(metric::LIMIT, "kind" => kind).set(precise(limit));
        let in_use = gauge!(metric::IN_USE, "kind" => kind);
        in_use.set(0.0);
        let turned_away = counter!(metric::TURNED_AWAY, "kind" => kind);
        turned_away.absolute(0);
        Self { in_use, turned_away }
    }

    /// This much is in use now.
    pub fn set(&self, in_use: usize) {
        self.in_use.set(precise(in_use));
    }

    /// Somebody was turned away because of the limit.
    pub fn turn_away(&self) {
        self.turned_away.increment(1);
    }
}

impl std::fmt::Debug for InUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InUse").finish_non_exhaustive()
    }
}

/// Lets in as many as there are places; the others wait in the order in which they came.
#[derive(Clone, Debug)]
pub struct Gate {
    places: Arc<Semaphore>,
    in_use: Arc<InUse>,
}

/// A place kept free for somebody who may come; nobody else gets it, and it does not count as in use.
#[derive(Debug)]
pub struct Reserved {
    place: OwnedSemaphorePermit,
    in_use: Arc<InUse>,
}

/// A place in use, until it is dropped.
#[derive(Debug)]
pub struct Pass {
    _place: OwnedSemaphorePermit,
    in_use: Arc<InUse>,
}

impl Gate {
    /// A gate with `places` places.
    pub fn new(kind: Limited, places: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), in_use: Arc::new(InUse::new(kind, places)) }
    }

    /// A gate that no metric shows: one of several alike, as many as there are servers.
    pub fn unmetered(places: usize) -> Self {
        let in_use = InUse { in_use: Gauge::noop(), turned_away: Counter::noop() };
        Self { places: Arc::new(Semaphore::new(places)), in_use: Arc::new(in_use) }
    }

    /// A place, as soon as one is free. Whoever stops waiting leaves the line.
    pub async fn enter(&self) -> Pass {
        self.reserve().await.take()
    }

    /// As [`Gate::enter`], for somebody who may come.
    pub async fn reserve(&self) -> Reserved {
        let place = self.places.clone().acquire_owned().await;
        Reserved { place: place.expect("nobody closes the semaphore"), in_use: self.in_use.clone() }
    }

    /// Whether somebody could enter now.
    pub fn is_free(&self) -> bool {
        self.places.available_permits() > 0
    }

    /// The same, if a place is free now.
    pub fn try_reserve(&self) -> Option<Reserved> {
        let place = self.places.clone().try_acquire_owned().ok()?;
        Some(Reserved { place, in_use: self.in_use.clone() })
    }

    /// The same, if another one is free then.
    pub fn try_reserve_but_last(&self) -> Option<Reserved> {
        if self.places.available_permits() > 1 { self.try_reserve() } else { None }
    }
}

impl Reserved {
    /// Somebody has come.
    pub fn take(self) -> Pass {
        self.in_use.in_use.increment(1.0);
        Pass { _place: self.place, in_use: self.in_use }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.in_use.in_use.decrement(1.0);
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float; amounts stay far below 2^53")]
fn precise(amount: usize) -> f64 {
    amount as f64
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn a_gate_lets_in_as_many_as_it_has_places_and_shows_them() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let shown = |name: &str| {
            let text = recorder.handle().render();
            let line = text.lines().find(|line| line.starts_with(&format!("{name}{{"))).map(str::to_owned);
            line.unwrap_or_default()
        };
        metrics::with_local_recorder(&recorder, || {
            let gate = Gate::new(Limited::ModelCalls, 2);
            let first = gate.enter().now_or_never().expect("there is a place");
            let second = gate.try_reserve().expect("there is another");
            assert!(gate.try_reserve().is_none());
            assert_eq!(shown(metric::IN_USE), "agent_executor_in_use{kind=\"model_calls\"} 1");
            let second = second.take();
            assert_eq!(shown(metric::IN_USE), "agent_executor_in_use{kind=\"model_calls\"} 2");
            assert_eq!(shown(metric::LIMIT), "agent_executor_limit{kind=\"model_calls\"} 2");

            // Whoever gives up waiting neither keeps a place nor takes one away from the next in line.
            let mut gone = Box::pin(gate.enter());
            assert!((&mut gone).now_or_never().is_none());
            let mut next = Box::pin(gate.enter());
            assert!((&mut next).now_or_never().is_none());
            drop(gone);
            drop(first);
            let next = next.now_or_never().expect("the place is free");
            drop((second, next));
            assert_eq!(shown(metric::IN_USE), "agent_executor_in_use{kind=\"model_calls\"} 0");
        });
    }

    #[test]
    fn those_turned_away_are_counted_from_zero() {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            let in_use = InUse::new(Limited::Parked, 7);
            let line =
                |count| format!("agent_executor_turned_away_total{{kind=\"parked_messages\"}} {count}");
            assert!(recorder.handle().render().contains(&line(0)));
            in_use.turn_away();
            assert!(recorder.handle().render().contains(&line(1)));
        });
    }
}

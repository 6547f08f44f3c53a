//! Whether a provider that fails is asked at all. Pure: times are spans since some moment, and calls are made elsewhere.
//!
//! A breaker opens when many of the calls of a window failed. Open, it lets nobody through; then one call, the probe, whose
//! answer closes it, and whose failure keeps it open as long again. A probe of which nothing is heard is not waited for
//! for ever: another one follows it.

use std::time::Duration;

/// The time over which calls are counted: long enough that a moment's trouble is not the whole picture.
const WINDOW: Duration = Duration::from_secs(30);
/// Of the calls in a window, at least one of so many must fail: with half of them answered a provider is still of use.
const ONE_IN: u32 = 2;
/// When to ask again while the probe is on its way.
const PROBE_TAKES: Duration = Duration::from_secs(5);
/// How long nobody but the probe gets through, whatever it does: many models take no longer to begin, and a call that waits
/// for the provider has its chance within its patience of two minutes.
const PROBE_ALONE: Duration = Duration::from_secs(30);

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// `MODEL_BREAKER_FAILURES`: failures within the window; 0 never opens.
    pub failures: u32,
    /// `MODEL_BREAKER_SECONDS`: from opening to the probe.
    pub open: Duration,
}

impl Default for Config {
    /// 10 failures, which is two calls with all their tries, and 30 s, as long as the longest wait between two tries.
    fn default() -> Self {
        Self { failures: 10, open: Duration::from_secs(30) }
    }
}

/// How a call came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// As any other.
    Call,
    /// To find out whether the provider answers again.
    Probe,
}

/// What a call says about its provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It answers, be it with a refusal.
    Answered,
    /// It does not.
    Failed,
    /// The call was given up before that was known.
    Unknown,
}

/// The breaker of one provider.
#[derive(Debug)]
pub(super) struct Breaker {
    config: Config,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Closed { since: Duration, calls: u32, failures: u32 },
    Open { until: Duration },
    Probing { until: Duration },
}

impl Breaker {
    /// A closed breaker.
    pub(super) fn new(config: Config, now: Duration) -> Self {
        Self { config, state: closed(now) }
    }

    /// Whether nobody but a probe gets through.
    pub(super) fn is_open(&self) -> bool {
        match self.state {
            State::Closed { .. } => false,
            State::Open { .. } | State::Probing { .. } => true,
        }
    }

    /// In what time it may let the next one through, if not now.
    pub(super) fn refuses(&self, now: Duration) -> Option<Duration> {
        match self.state {
            State::Open { until } if until > now => Some(until - now),
            State::Probing { until } if until > now => Some(PROBE_TAKES.min(until - now)),
            State::Closed { .. } | State::Open { .. } | State::Probing { .. } => None,
        }
    }

    /// Lets a call through, or says when to come again.
    pub(super) fn enter(&mut self, now: Duration) -> Result<Entry, Duration> {
        if let Some(wait) = self.refuses(now) {
            return Err(wait);
        }
        match self.state {
            State::Closed { .. } => Ok(Entry::Call),
            State::Open { .. } | State::Probing { .. } => {
                self.state = State::Probing { until: now + PROBE_ALONE };
                Ok(Entry::Probe)
            }
        }
    }

    /// Notes what came of a call that was let through.
    pub(super) fn left(&mut self, now: Duration, entry: Entry, verdict: Verdict) {
        let open = State::Open { until: now + self.config.open };
        match (&mut self.state, entry, verdict) {
            (State::Probing { .. }, Entry::Probe, Verdict::Answered) => self.state = closed(now),
            (State::Probing { .. }, Entry::Probe, Verdict::Failed) => self.state = open,
            // The next one is the probe.
            (State::Probing { .. }, Entry::Probe, Verdict::Unknown) => {
                self.state = State::Open { until: now };
            }
            // Calls that were on their way when it opened say nothing new.
            (State::Open { .. }, _, _) | (State::Probing { .. }, Entry::Call, _) => {}
            (State::Closed { .. }, _, Verdict::Unknown) => {}
            (State::Closed { since, calls, failures }, _, Verdict::Answered | Verdict::Failed) => {
                if now.saturating_sub(*since) > WINDOW {
                    (*since, *calls, *failures) = (now, 0, 0);
                }
                *calls = calls.saturating_add(1);
                if verdict == Verdict::Failed {
                    *failures = failures.saturating_add(1);
                }
                if *failures >= self.config.failures && failures.saturating_mul(ONE_IN) >= *calls {
                    self.state = open;
                }
            }
        }
    }
}

fn closed(now: Duration) -> State {
    State::Closed { since: now, calls: 0, failures: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: Config = Config { failures: 3, open: Duration::from_secs(30) };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn after(verdicts: &[(u64, Verdict)]) -> Breaker {
        let mut breaker = Breaker::new(CONFIG, at(0));
        for (seconds, verdict) in verdicts {
            breaker.left(at(*seconds), Entry::Call, *verdict);
        }
        breaker
    }

    #[test]
    fn it_opens_when_many_calls_of_a_window_fail() {
        use Verdict::{Answered, Failed, Unknown};
        let failures = [(1, Failed), (2, Failed), (3, Failed)];
        assert!(after(&failures).is_open());
        assert!(!after(&failures[..2]).is_open(), "too few");
        assert!(!after(&[(1, Failed), (2, Failed), (32, Failed)]).is_open(), "too far apart");
        assert!(!after(&[(1, Failed), (2, Failed), (3, Unknown)]).is_open(), "one was given up");
        let mut mixed = vec![(1, Answered); 4];
        mixed.extend(failures);
        assert!(!after(&mixed).is_open(), "most calls are answered");
        mixed.push((4, Failed));
        assert!(after(&mixed).is_open(), "half of them are not");
    }

    #[test]
    fn open_it_lets_nobody_through_and_then_one_probe() {
        let mut breaker = after(&[(1, Verdict::Failed); 3]);
        assert_eq!(breaker.enter(at(11)), Err(at(20)));
        assert_eq!(breaker.enter(at(31)), Ok(Entry::Probe));
        assert_eq!((breaker.enter(at(31)), breaker.refuses(at(31))), (Err(PROBE_TAKES), Some(PROBE_TAKES)));
        breaker.left(at(32), Entry::Call, Verdict::Answered);
        assert!(breaker.is_open(), "only the probe tells");

        breaker.left(at(33), Entry::Probe, Verdict::Failed);
        assert_eq!(breaker.enter(at(34)), Err(at(29)), "as long again");
        assert_eq!(breaker.enter(at(63)), Ok(Entry::Probe));
        breaker.left(at(64), Entry::Probe, Verdict::Answered);
        assert_eq!((breaker.is_open(), breaker.enter(at(64))), (false, Ok(Entry::Call)));
    }

    #[test]
    fn a_probe_of_which_nothing_is_heard_is_followed_by_another() {
        let mut breaker = after(&[(1, Verdict::Failed); 3]);
        assert_eq!(breaker.enter(at(40)), Ok(Entry::Probe));
        assert_eq!((breaker.enter(at(60)), breaker.enter(at(68))), (Err(PROBE_TAKES), Err(at(2))));
        assert_eq!((breaker.enter(at(70)), breaker.enter(at(70))), (Ok(Entry::Probe), Err(PROBE_TAKES)));
        breaker.left(at(71), Entry::Probe, Verdict::Answered);
        assert!(!breaker.is_open(), "either of them closes it");
        breaker.left(at(72), Entry::Probe, Verdict::Failed);
        assert!(!breaker.is_open(), "the other one counts like any call");
    }

    #[test]
    fn a_probe_that_is_given_up_leaves_its_task_to_the_next() {
        let mut breaker = after(&[(1, Verdict::Failed); 3]);
        assert_eq!(breaker.enter(at(40)), Ok(Entry::Probe));
        breaker.left(at(41), Entry::Probe, Verdict::Unknown);
        assert_eq!(breaker.enter(at(41)), Ok(Entry::Probe));
    }
}

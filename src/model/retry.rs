//! How long to wait before a model is asked again. Pure: the caller sleeps, and brings the randomness.

use std::time::Duration;

use super::Error;

/// When to ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The longest wait before the first retry; doubles with each.
    pub base: Duration,
    /// The longest wait of our own choice.
    pub cap: Duration,
    /// The longest wait a provider can ask for; a longer one is shortened to this.
    pub longest_asked: Duration,
    /// Calls in all, the first one included.
    pub tries: u32,
}

impl Default for Policy {
    /// 500 ms doubling to 30 s, 5 tries: about 15 s of trouble on average, and a rate-limit window when the
    /// provider names one.
    fn default() -> Self {
        Self {
            base: Duration::from_millis(500),
            cap: Duration::from_secs(30),
            longest_asked: Duration::from_secs(30),
            tries: 5,
        }
    }
}

impl Policy {
    /// How long to wait after try number `retry` (from 0) failed; `None` when asking again is no use.
    ///
    /// `random` is any number, evenly spread. The wait is drawn from the whole span up to the back-off (full
    /// jitter), so that callers that failed together do not come back together. A wait the provider asked
    /// for is kept, with up to `base` on top for the same reason.
    pub fn delay(&self, retry: u32, error: &Error, random: u64) -> Option<Duration> {
        if !error.is_retryable() || retry.saturating_add(1) >= self.tries {
            return None;
        }
        if let Some(asked) = error.retry_after() {
            return Some(asked.min(self.longest_asked) + fraction(self.base, random));
        }
        let doubled = self.base.saturating_mul(1u32.checked_shl(retry).unwrap_or(u32::MAX));
        Some(fraction(doubled.min(self.cap), random))
    }
}

/// The part of `span` that `random` is of all numbers.
fn fraction(span: Duration, random: u64) -> Duration {
    let nanos = (span.as_nanos().min(u128::from(u64::MAX)) * u128::from(random)) >> 64;
    Duration::from_nanos(u64::try_from(nanos).expect("below a span that fits"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unavailable() -> Error {
        Error::Unavailable { provider: "p".into(), message: "down".into() }
    }

    fn throttled(retry_after: Option<Duration>) -> Error {
        Error::Throttled { provider: "p".into(), status: 429, message: "slow down".into(), retry_after }
    }

    #[test]
    fn waits_double_up_to_the_cap_and_end() {
        let policy = Policy { tries: 40, ..Policy::default() };
        let longest = |retry| policy.delay(retry, &unavailable(), u64::MAX).expect("retried").as_millis();
        assert_eq!([0, 1, 2, 5, 6, 38].map(longest), [499, 999, 1999, 15_999, 29_999, 29_999]);
        assert_eq!(policy.delay(39, &unavailable(), 0), None);
        assert_eq!(Policy::default().delay(3, &unavailable(), 0), Some(Duration::ZERO));
        assert_eq!(Policy::default().delay(4, &unavailable(), 0), None);
    }

    #[test]
    fn a_wait_the_provider_asks_for_is_kept_within_reason() {
        let asked = |seconds| Policy::default().delay(0, &throttled(Some(Duration::from_secs(seconds))), 0);
        assert_eq!(asked(7), Some(Duration::from_secs(7)));
        assert_eq!(asked(3600), Some(Duration::from_secs(30)));
        assert_eq!(Policy::default().delay(0, &throttled(None), 0), Some(Duration::ZERO));
    }

    #[test]
    fn what_will_not_pass_is_not_retried() {
        let rejected = Error::Rejected { provider: "p".into(), status: 400, message: "no".into() };
        assert_eq!(Policy::default().delay(0, &rejected, 0), None);
        assert_eq!(Policy::default().delay(0, &Error::Settings("wrong".into()), 0), None);
    }

    proptest! {
        #[test]
        fn no_wait_is_longer_than_the_limits(retry: u32, random: u64, asked in 0u64..100_000) {
            let policy = Policy { tries: u32::MAX, ..Policy::default() };
            if let Some(wait) = policy.delay(retry, &unavailable(), random) {
                prop_assert!(wait < policy.cap);
            }
            let error = throttled(Some(Duration::from_millis(asked)));
            if let Some(wait) = policy.delay(retry, &error, random) {
                prop_assert!(wait >= Duration::from_millis(asked).min(policy.longest_asked));
                prop_assert!(wait < policy.longest_asked + policy.base);
            }
        }
    }
}

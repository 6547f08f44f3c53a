//! The arithmetic of rates, in milliseconds: each call moves a mark ahead, and who finds it too far ahead waits. Pure.
//!
//! The script of [`super::server`] does the same sums for all processes together; whoever changes one changes the other.

use super::Limits;

const MINUTE: f64 = 60_000.0;
/// Calls that may be made at once are those of one second: providers count calls of a minute by the second.
const BURSTS_PER_MINUTE: f64 = 60.0;
/// Tokens that may be taken at once are those of half a minute: providers refill them steadily and let a whole minute's
/// worth go at once; half of it leaves room for estimates that were too low.
const TOKEN_BURST: f64 = MINUTE / 2.0;
/// Less than this is no wait: sums of fractions are never exact.
const NO_WAIT: f64 = 0.001;

/// Limits as times: what each call and token costs. All in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Of one call; 0 without a limit.
    pub request: f64,
    /// How far ahead of now the mark of calls may be when one more is made.
    pub request_burst: f64,
    /// Of one token; 0 without a limit.
    pub token: f64,
    /// How far ahead of now the mark of tokens may be after a call; a call that is larger alone waits until nothing is owed.
    pub token_burst: f64,
    /// Calls at the same time; 0 without a limit.
    pub concurrent: u64,
}

impl Rates {
    /// The rates of one of `parts` equal shares of `limits`, each at least one call.
    ///
    /// In any minute no more calls are made than the limit says, the burst included.
    pub fn of(limits: &Limits, parts: u32) -> Self {
        let part = |limit: Option<u64>| limit.map(|limit| (exact(limit) / f64::from(parts.max(1))).max(1.0));
        let calls = part(limits.requests_per_minute);
        let burst = |calls: f64| (calls / BURSTS_PER_MINUTE).floor().max(1.0);
        let request = calls.map_or(0.0, |calls| MINUTE / (calls - burst(calls) + 1.0));
        Self {
            request,
            request_burst: calls.map_or(0.0, |calls| (burst(calls) - 1.0) * request),
            token: part(limits.tokens_per_minute).map_or(0.0, |tokens| MINUTE / tokens),
            token_burst: TOKEN_BURST,
            concurrent: limits.concurrent.map_or(0, |most| (most / u64::from(parts.max(1))).max(1)),
        }
    }

    /// Whether `held` calls at the same time leave no room for another.
    pub(super) fn is_full(&self, held: usize) -> bool {
        self.concurrent > 0 && u64::try_from(held).is_ok_and(|held| held >= self.concurrent)
    }
}

/// How far ahead of now a lane has used what it may, in milliseconds since some moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bucket {
    requests: f64,
    tokens: f64,
}

impl Bucket {
    /// Takes one call of `tokens` tokens, or says how long to wait before asking again.
    pub(super) fn take(&mut self, now: f64, tokens: u64, rates: &Rates) -> Result<(), f64> {
        let cost = exact(tokens) * rates.token;
        let owed = (self.tokens - now).max(0.0);
        let for_tokens = match owed + cost > rates.token_burst {
            true if cost > rates.token_burst => owed,
            true => owed + cost - rates.token_burst,
            false => 0.0,
        };
        let wait = (self.requests - now - rates.request_burst).max(for_tokens);
        if wait > NO_WAIT {
            return Err(wait);
        }
        self.charge(now, tokens, rates);
        Ok(())
    }

    /// Counts one call that somebody else has allowed.
    pub(super) fn charge(&mut self, now: f64, tokens: u64, rates: &Rates) {
        self.requests = self.requests.max(now) + rates.request;
        self.tokens = self.tokens.max(now) + exact(tokens) * rates.token;
    }

    /// Owes no more than a burst: what others left unused, this process has not taken from its share.
    pub(super) fn forgive(&mut self, now: f64, rates: &Rates) {
        self.requests = self.requests.min(now + rates.request_burst + rates.request);
        self.tokens = self.tokens.min(now + rates.token_burst);
    }

    /// Corrects estimates: `settled` tokens more, or, below zero, fewer.
    pub(super) fn settle(&mut self, now: f64, settled: i64, rates: &Rates) {
        let cost = exact(settled.unsigned_abs()) * rates.token;
        self.tokens = self.tokens.max(now) + if settled < 0 { -cost } else { cost };
    }
}

#[expect(clippy::cast_precision_loss, reason = "limits and tokens stay far below 2^53")]
fn exact(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn requests(requests_per_minute: u64) -> Limits {
        Limits { requests_per_minute: Some(requests_per_minute), ..Limits::default() }
    }

    fn tokens(tokens_per_minute: u64) -> Limits {
        Limits { tokens_per_minute: Some(tokens_per_minute), ..Limits::default() }
    }

    /// When `count` calls are made that are all asked for at once.
    fn times(limits: &Limits, count: usize, tokens: u64) -> Vec<f64> {
        let rates = Rates::of(limits, 1);
        let (mut bucket, mut now, mut times) = (Bucket::default(), 1e9, Vec::new());
        while times.len() < count {
            match bucket.take(now, tokens, &rates) {
                Ok(()) => times.push(now - 1e9),
                Err(wait) => now += wait,
            }
        }
        times
    }

    #[test]
    fn calls_of_a_second_may_be_made_at_once_and_the_others_follow_evenly() {
        assert_eq!(times(&requests(60), 3, 0), [0.0, 1000.0, 2000.0]);
        assert_eq!(times(&requests(1), 2, 0), [0.0, 60_000.0]);
        let many = times(&requests(600), 12, 0);
        assert!(many[..10].iter().all(|time| *time == 0.0) && many[10] > 100.0, "{many:?}");
        assert_eq!(times(&Limits::default(), 1000, 1 << 40)[999], 0.0);
    }

    #[test]
    fn tokens_are_paid_off_before_more_are_taken() {
        // 1,000 a second: half a minute's worth goes at once.
        assert_eq!(times(&tokens(60_000), 4, 10_000), [0.0, 0.0, 0.0, 10_000.0]);
        // A call that is larger than that is made once nothing is owed.
        assert_eq!(times(&tokens(60_000), 3, 120_000), [0.0, 120_000.0, 240_000.0]);
    }

    #[test]
    fn estimates_are_corrected_either_way() {
        let rates = Rates::of(&tokens(60_000), 1);
        let mut bucket = Bucket::default();
        bucket.take(1e9, 30_000, &rates).expect("the first");
        assert_eq!(bucket.take(1e9, 1_000, &rates), Err(1_000.0));
        bucket.settle(1e9, -5_000, &rates);
        bucket.take(1e9, 1_000, &rates).expect("less was used");
        bucket.settle(1e9, 10_000, &rates);
        assert_eq!(bucket.take(1e9, 1_000, &rates), Err(7_000.0));
    }

    #[test]
    fn a_share_is_its_part_and_never_nothing() {
        let limits =
            Limits { requests_per_minute: Some(120), tokens_per_minute: Some(60_000), concurrent: Some(10) };
        let half = Rates::of(&limits, 2);
        assert_eq!((half.request, half.token, half.concurrent), (1000.0, 2.0, 5));
        let least = Rates::of(&limits, 1_000_000);
        assert_eq!((least.request, least.token, least.concurrent), (MINUTE, MINUTE, 1));
    }

    proptest! {
        #[test]
        fn no_minute_has_more_calls_than_the_limit(limit in 1u64..500) {
            let times = times(&requests(limit), 2 * usize::try_from(limit).expect("small"), 0);
            for (first, from) in times.iter().enumerate() {
                let within = times[first..].partition_point(|time| *time < from + MINUTE - 1.0);
                prop_assert!(within <= usize::try_from(limit).expect("small"), "{} from {}", within, from);
            }
        }
    }
}

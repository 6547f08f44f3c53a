//! What a failure means for a delivery: the one place that decides it.

use std::time::Duration;

use super::Error;
use crate::{queue::Settlement, store};

/// First wait before a message is delivered again; doubles with each delivery.
const BASE: Duration = Duration::from_secs(1);

/// Longest such wait: an outage that lasts longer is looked at twice a minute.
const LONGEST: Duration = Duration::from_secs(30);

/// First and longest wait of a message that found no place: its job is known to the store and runs in its turn
/// whether the message is here or not. So long that the deliveries a message has (100) last for hours.
const CROWDED: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));

/// What becomes of a delivery after `result`. `deliveries` counts from 1.
pub(super) fn settle(result: &Result<(), Error>, deliveries: u64) -> Settlement {
    match result {
        Ok(()) => Settlement::Ack,
        Err(Error::DeadLetter { .. }) => Settlement::Term,
        Err(Error::Store(store::Error::Fenced { .. })) => Settlement::Abandon,
        Err(Error::Drained) => Settlement::Nak(Duration::ZERO),
        Err(Error::Store(
            store::Error::Unavailable(_)
            | store::Error::Refused(_)
            | store::Error::Corrupt { .. }
            | store::Error::Unstorable { .. }
            | store::Error::TooLarge { .. }
            | store::Error::Migration(_),
        ))
        | Err(Error::Queue(_)) => Settlement::Nak(backoff((BASE, LONGEST), deliveries)),
        Err(Error::Crowded) => Settlement::Nak(backoff(CROWDED, deliveries)),
    }
}

fn backoff((first, longest): (Duration, Duration), deliveries: u64) -> Duration {
    let doublings = u32::try_from(deliveries.saturating_sub(1)).unwrap_or(u32::MAX).min(10);
    first.saturating_mul(2_u32.saturating_pow(doublings)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, ThreadId};

    #[test]
    fn every_end_of_a_delivery_has_its_settlement() {
        let fenced =
            store::Error::Fenced { thread_id: ThreadId::parse("t").expect("valid"), epoch: Epoch(1) };
        let away = || Error::Store(store::Error::Unavailable("away".into()));
        assert_eq!(settle(&Ok(()), 1), Settlement::Ack);
        assert_eq!(settle(&Err(Error::DeadLetter { reason: "not_json" }), 1), Settlement::Term);
        assert_eq!(settle(&Err(fenced.into()), 1), Settlement::Abandon);
        assert_eq!(settle(&Err(Error::Drained), 1), Settlement::Nak(Duration::ZERO));
        assert_eq!(settle(&Err(away()), 1), Settlement::Nak(Duration::from_secs(1)));
        assert_eq!(settle(&Err(away()), 4), Settlement::Nak(Duration::from_secs(8)));
        assert_eq!(settle(&Err(away()), u64::MAX), Settlement::Nak(LONGEST));
        assert_eq!(settle(&Err(Error::Crowded), 3), Settlement::Nak(Duration::from_secs(8)));
        assert_eq!(settle(&Err(Error::Crowded), 99), Settlement::Nak(Duration::from_secs(300)));
    }
}

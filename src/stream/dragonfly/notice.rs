//! What a reader did not get, and is told instead.

use std::fmt;

use serde_json::{Value as Json, json};

use crate::{ids::Epoch, stream::EntryId};

/// What a reader did not get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Events of a claim that the stream never had: pieces of text are dropped under pressure.
    Hole {
        /// The claim.
        epoch: Epoch,
        /// The first missing `seq`.
        from: u64,
        /// The last missing `seq`.
        to: u64,
    },
    /// Events the stream has no longer: they were trimmed, it expired, or the server lost it.
    Gone {
        /// The last event the reader has; `None` when it began with the oldest there is.
        after: Option<EntryId>,
        /// The next one there is; `None` when there is none yet.
        oldest: Option<EntryId>,
    },
}

impl Notice {
    /// What is missing between `last` and the event `next`, both of one stream that has all it was given.
    pub(super) fn between(last: Option<EntryId>, next: EntryId) -> Option<Self> {
        let expected = match last {
            None if next.seq > 1 => return Some(Self::Gone { after: None, oldest: Some(next) }),
            None => return None,
            Some(last) if last.epoch == next.epoch => last.seq.saturating_add(1),
            // Each claim begins with 1. Whether something is missing at the end of the one before, nothing tells.
            Some(_) => 1,
        };
        (next.seq > expected).then(|| Self::Hole { epoch: next.epoch, from: expected, to: next.seq - 1 })
    }

    /// One JSON object; its `notice` tells it from an event, which has an `event_type`.
    pub fn json(&self) -> Json {
        match self {
            Self::Hole { epoch, from, to } => json!({
                "notice": "hole",
                "from": EntryId { epoch: *epoch, seq: *from }.to_string(),
                "to": EntryId { epoch: *epoch, seq: *to }.to_string(),
            }),
            Self::Gone { after, oldest } => json!({
                "notice": "gone",
                "after": after.map(|id| id.to_string()),
                "oldest": oldest.map(|id| id.to_string()),
            }),
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hole { epoch, from, to } if from == to => write!(f, "event {epoch}-{from} was lost"),
            Self::Hole { epoch, from, to } => {
                let count = to - from + 1;
                write!(f, "{count} events were lost: {epoch}-{from} to {epoch}-{to}")
            }
            Self::Gone { after: None, oldest: Some(oldest) } => {
                write!(f, "the stream begins with {oldest}; what came before is gone")
            }
            Self::Gone { after: Some(after), oldest: Some(oldest) } => {
                write!(f, "the stream begins with {oldest}; what came between {after} and it is gone")
            }
            Self::Gone { after: Some(after), oldest: None } => {
                write!(f, "the stream is gone; what came after {after} may be missing")
            }
            Self::Gone { after: None, oldest: None } => f.write_str("the stream is gone"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> EntryId {
        text.parse().expect("valid")
    }

    #[test]
    fn what_is_missing_follows_from_two_ids() {
        for (last, next, expected) in [
            (None, "4-1", ""),
            (None, "4-7", "the stream begins with 4-7; what came before is gone"),
            (Some("4-7"), "4-8", ""),
            (Some("4-7"), "4-9", "event 4-8 was lost"),
            (Some("4-7"), "4-20", "12 events were lost: 4-8 to 4-19"),
            (Some("4-7"), "9-1", ""),
            (Some("4-7"), "9-3", "2 events were lost: 9-1 to 9-2"),
        ] {
            let notice = Notice::between(last.map(id), id(next));
            assert_eq!(
                notice.map_or_else(String::new, |notice| notice.to_string()),
                expected,
                "{last:?} {next}"
            );
        }
    }

    #[test]
    fn a_notice_is_told_from_an_event_by_its_first_word() {
        let hole = Notice::Hole { epoch: Epoch(4), from: 8, to: 19 };
        assert_eq!(hole.json(), json!({"notice": "hole", "from": "4-8", "to": "4-19"}));
        let gone = Notice::Gone { after: Some(id("4-7")), oldest: None };
        assert_eq!(gone.json(), json!({"notice": "gone", "after": "4-7", "oldest": null}));
    }
}

//! Ids, names and epochs as newtypes, and the clock they are made from.
//!
//! **Invariant:** a value of these types has passed its limits; inside the crate nobody checks again.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

/// Longest job or thread id in characters; both are keys in Postgres, NATS headers and Redis keys.
pub const MAX_ID_CHARS: usize = 255;

/// Distance between the UUID epoch (1582-10-15) and the Unix epoch, in 100 ns units.
const UUID_EPOCH_OFFSET: u64 = 0x01B2_1DD2_1381_4000;

/// Why a text is not an id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Nothing is left after trimming.
    #[error("must not be empty")]
    Empty,
    /// More than [`MAX_ID_CHARS`] characters.
    #[error("must have at most {MAX_ID_CHARS} characters, has {0}")]
    TooLong(usize),
    /// Control characters break keys and log lines.
    #[error("must not contain control characters")]
    Control,
    /// A checkpoint id that is not 32 hexadecimal digits with dashes.
    #[error("must be a lower-case UUID with dashes")]
    NotUuid,
}

fn checked(text: &str) -> Result<Arc<str>, Error> {
    let trimmed = text.trim();
    let chars = trimmed.chars().count();
    match chars {
        0 => Err(Error::Empty),
        n if n > MAX_ID_CHARS => Err(Error::TooLong(n)),
        _ if trimmed.chars().any(char::is_control) => Err(Error::Control),
        _ => Ok(trimmed.into()),
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Trims and checks `text`: 1 to 255 characters, none of them a control character.
            pub fn parse(text: &str) -> Result<Self, Error> {
                checked(text).map(Self)
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

text_id! {
    /// The unique id of one execution, chosen by the publisher; also its idempotency key.
    JobId
}
text_id! {
    /// The id of a line of durable state that many jobs may continue.
    ThreadId
}

/// Fencing token of one claim of a thread; grows with every claim, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Epoch(pub i64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Checkpoint namespace: empty for the root graph, `node:task_id` (joined by `|`) for nested graphs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Namespace(Arc<str>);

impl Namespace {
    /// The namespace of the root graph.
    pub fn root() -> Self {
        Self("".into())
    }

    /// A namespace read from storage.
    pub fn from_stored(text: &str) -> Self {
        Self(text.into())
    }

    /// The namespace of the graph that task `task_id` of `node` runs inside this one.
    pub fn child(&self, node: &str, task_id: &TaskId) -> Self {
        if self.is_root() {
            Self(format!("{node}:{task_id}").into())
        } else {
            Self(format!("{}|{node}:{task_id}", self.0).into())
        }
    }

    /// Whether this is the root graph's namespace.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The namespace as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Deterministic id of one task of one superstep (32 hex digits, dashed), as LangGraph computes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(Arc<str>);

impl TaskId {
    /// A task id from its 128-bit digest.
    pub fn from_digest(digest: u128) -> Self {
        Self(dashed(digest).into())
    }

    /// The task id under which LangGraph stores what a command wrote.
    pub fn null() -> Self {
        Self::from_digest(0)
    }

    /// A task id read from storage.
    pub fn from_stored(text: &str) -> Self {
        Self(text.into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Id of a checkpoint: a version 6 UUID, so that text order is time order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct CheckpointId(Arc<str>);

impl CheckpointId {
    /// The id of a checkpoint of `step` made at `now` that sorts above `floor`, whatever the clocks say.
    ///
    /// The step is visible in the fourth group (`bfff` for -1, `8000` for 0), as LangGraph writes it.
    pub fn next(floor: Option<&Self>, now: UnixNanos, step: i64, random: u64) -> Self {
        let wanted = now.0 / 100 + UUID_EPOCH_OFFSET;
        let ticks = floor.map_or(wanted, |id| wanted.max(id.ticks() + 1));
        let clock_seq = u128::from(step.rem_euclid(0x4000).unsigned_abs());
        let digest = (u128::from(ticks >> 12) << 80)
            | (0x6 << 76)
            | (u128::from(ticks & 0xFFF) << 64)
            | (0b10 << 62)
            | (clock_seq << 48)
            | u128::from(random & 0xFFFF_FFFF_FFFF);
        Self(dashed(digest).into())
    }

    /// Checks that `text` is a lower-case dashed UUID.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let shape_holds = text.len() == 36
            && text.bytes().enumerate().all(|(i, b)| match i {
                8 | 13 | 18 | 23 => b == b'-',
                _ => b.is_ascii_digit() || (b'a'..=b'f').contains(&b),
            });
        if shape_holds { Ok(Self(text.into())) } else { Err(Error::NotUuid) }
    }

    /// The 16 bytes of the UUID; part of every task id.
    pub fn bytes(&self) -> [u8; 16] {
        let hex = self.0.bytes().filter(u8::is_ascii_hexdigit).map(|b| match b {
            b'0'..=b'9' => b - b'0',
            other => other - b'a' + 10,
        });
        let mut bytes = [0; 16];
        for (i, digit) in hex.enumerate().take(32) {
            bytes[i / 2] = bytes[i / 2] << 4 | digit;
        }
        bytes
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn ticks(&self) -> u64 {
        let digest = u128::from_be_bytes(self.bytes());
        let high = u64::try_from(digest >> 80).expect("48 bits remain after the shift");
        let low = u64::try_from((digest >> 64) & 0xFFF).expect("12 bits fit");
        high << 12 | low
    }
}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for CheckpointId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// The xxh3 digest of `parts` joined without separators, as LangGraph makes task and interrupt ids.
pub fn digest(parts: &[&[u8]]) -> u128 {
    let mut hasher = xxhash_rust::xxh3::Xxh3Default::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.digest128()
}

/// A 128-bit digest in UUID spelling (8-4-4-4-12 hex digits).
pub fn dashed(digest: u128) -> String {
    let hex = format!("{digest:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// A point in time: nanoseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixNanos(pub u64);

impl UnixNanos {
    /// RFC 3339 with milliseconds and `Z`, as run events and CloudEvents carry it.
    pub fn rfc3339_millis(self) -> String {
        const FORMAT: &[time::format_description::BorrowedFormatItem<'static>] = time::macros::format_description!(
            "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"
        );
        self.datetime().format(FORMAT).expect("the format has only numeric parts")
    }

    /// ISO 8601 with microseconds and `+00:00`, as Python's `isoformat` writes checkpoint times.
    pub fn isoformat(self) -> String {
        const FORMAT: &[time::format_description::BorrowedFormatItem<'static>] = time::macros::format_description!(
            "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]+00:00"
        );
        self.datetime().format(FORMAT).expect("the format has only numeric parts")
    }

    /// The time elapsed since `earlier`; zero when the clock went backwards.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    fn datetime(self) -> time::OffsetDateTime {
        time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0))
            .expect("64 bits of nanoseconds end in the year 2554")
    }
}

/// Wall-clock time; a port, so that tests decide what time it is.
pub trait Clock: Send + Sync {
    /// The time now.
    fn now(&self) -> UnixNanos;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> UnixNanos {
        #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
        let now = std::time::SystemTime::now();
        let elapsed = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        UnixNanos(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: UnixNanos = UnixNanos(1_800_000_000_123_456_700);

    #[test]
    fn ids_are_trimmed_and_limited() {
        assert_eq!(JobId::parse("  a ").expect("valid").as_str(), "a");
        assert_eq!(JobId::parse("  "), Err(Error::Empty));
        assert_eq!(JobId::parse(&"x".repeat(256)), Err(Error::TooLong(256)));
        assert_eq!(JobId::parse("a\nb"), Err(Error::Control));
    }

    #[test]
    fn checkpoint_ids_show_their_step_and_sort_above_their_floor() {
        let input = CheckpointId::next(None, NOON, -1, 7);
        assert_eq!(&input.as_str()[19..23], "bfff");
        let first = CheckpointId::next(Some(&input), UnixNanos(0), 0, 7);
        assert_eq!(&first.as_str()[19..23], "8000");
        assert!(first > input, "a slow clock must not make an id that sorts below its parent");
        assert_eq!(CheckpointId::parse(first.as_str()), Ok(first));
    }

    #[test]
    fn known_checkpoint_id_has_the_bytes_of_its_uuid() {
        let id = CheckpointId::parse("1f1e533b-1e75-67ed-bfff-4b5d0ac8932d").expect("valid");
        assert_eq!(id.bytes()[..4], [0x1f, 0x1e, 0x53, 0x3b]);
        assert_eq!(id.bytes()[15], 0x2d);
    }

    #[test]
    fn nested_namespaces_are_joined_by_a_bar() {
        let task = TaskId::from_digest(1);
        let outer = Namespace::root().child("main.tools", &task);
        assert_eq!(outer.as_str(), "main.tools:00000000-0000-0000-0000-000000000001");
        assert_eq!(outer.child("x", &task).as_str(), format!("{outer}|x:{task}"));
    }

    #[test]
    fn times_are_written_as_each_side_expects() {
        assert_eq!(NOON.rfc3339_millis(), "2027-01-15T08:00:00.123Z");
        assert_eq!(NOON.isoformat(), "2027-01-15T08:00:00.123456+00:00");
    }
}

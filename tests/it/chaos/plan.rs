//! What goes wrong, drawn from a seed: the n-th draw is the same in every run with that seed.
//!
//! **Invariant:** nothing here looks at a clock or at the servers; only when a fault comes, and whether it finds its place
//! free, depends on the run.

use std::fmt;
use std::time::Duration;

/// Which connection of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Line {
    Postgres,
    Nats,
    Redis,
}

impl Line {
    pub(super) const ALL: [Self; 3] = [Self::Postgres, Self::Nats, Self::Redis];
}

/// A server all members share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Server {
    Postgres,
    Nats,
    Redis,
}

/// What happens to a member's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blow {
    /// `kill -9`.
    Kill,
    /// SIGSTOP, and SIGCONT at the end of the fault: a zombie when that is later than the lease.
    Stop,
    /// SIGTERM: a scale-down, and a scale-up at the end of the fault.
    Term,
    /// SIGTERM, and `kill -9` in the middle of the drain.
    TermAndKill,
}

/// What happens to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Closed, and refused.
    Cut,
    /// Everything is swallowed.
    BlackHole,
    /// Everything takes this long, towards the server and back.
    Delay(Duration, Duration),
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// To the process of a member.
    Member(usize, Blow),
    /// To one connection of a member.
    Line(usize, Line, Trouble),
    /// The server dies without a word (`-m immediate` for Postgres).
    Crash(Server),
    /// The server is restarted by an administrator.
    Restart(Server),
}

/// A fault: what, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) what: What,
    pub(super) lasts: Duration,
}

/// What a fault occupies: two at a time would hide each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Member(usize),
    Line(usize, Line),
    Server(Server),
}

impl What {
    pub(super) fn place(self) -> Place {
        match self {
            Self::Member(member, _) => Place::Member(member),
            Self::Line(member, line, _) => Place::Line(member, line),
            Self::Crash(server) | Self::Restart(server) => Place::Server(server),
        }
    }

    /// One word or two for the summary.
    pub(super) fn kind(self) -> String {
        match self {
            Self::Member(_, blow) => format!("{blow:?}").to_lowercase(),
            Self::Line(_, line, Trouble::Delay(..)) => format!("delay {line:?}").to_lowercase(),
            Self::Line(_, line, trouble) => format!("{trouble:?} {line:?}").to_lowercase(),
            Self::Crash(server) => format!("crash {server:?}").to_lowercase(),
            Self::Restart(server) => format!("restart {server:?}").to_lowercase(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            What::Member(member, _) | What::Line(member, _, _) => {
                write!(f, "{} of pod-{member}", self.what.kind())?;
            }
            What::Crash(_) | What::Restart(_) => write!(f, "{}", self.what.kind())?,
        }
        if let What::Line(_, _, Trouble::Delay(up, down)) = self.what {
            write!(f, " by {up:?} and {down:?}")?;
        }
        write!(f, " for {:?}", self.lasts)
    }
}

/// Lease of the members; a pause must be longer to make a zombie.
const LEASE_MS: u64 = 5000;

/// The `number`-th draw of `seed` among `members`.
pub(super) fn fault(seed: u64, number: u64, members: usize) -> Fault {
    let mut rng = rng(seed, number, 1);
    let member = rng.usize(0..members);
    let line = Line::ALL[rng.usize(0..Line::ALL.len())];
    let server = [Server::Postgres, Server::Nats, Server::Redis][rng.usize(0..3)];
    let mut ms = |from: u64, to: u64| Duration::from_millis(rng.u64(from..=to));
    let (short, long) = (ms(200, 1500), ms(LEASE_MS / 5, 2 * LEASE_MS));
    let (up, down) = (ms(20, 1500), ms(20, 1500));
    let (what, lasts) = match rng.u32(0..100) {
        0..24 => (What::Member(member, Blow::Kill), short),
        24..38 => (What::Member(member, Blow::Stop), long),
        38..48 => (What::Member(member, Blow::Term), short),
        48..52 => (What::Member(member, Blow::TermAndKill), short),
        52..64 => (What::Line(member, line, Trouble::Cut), short * 2),
        64..74 => (What::Line(member, line, Trouble::BlackHole), long),
        74..84 => (What::Line(member, line, Trouble::Delay(up, down)), long),
        84..96 => (What::Crash(server), short),
        _ => (What::Restart(server), short),
    };
    Fault { what, lasts }
}

/// A stream of randomness of its own for each thing that is drawn.
pub(super) fn rng(seed: u64, number: u64, purpose: u64) -> fastrand::Rng {
    // Neighbouring seeds must not give neighbouring streams; the constants are those of splitmix64.
    let mixed =
        seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ purpose.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mut rng = fastrand::Rng::with_seed(mixed);
    fastrand::Rng::with_seed(rng.u64(..))
}

#[test]
fn a_seed_gives_the_same_faults_again_and_every_kind_comes_up() {
    let drawn = |seed: u64| (0..300).map(|number| fault(seed, number, 4)).collect::<Vec<_>>();
    assert_eq!(drawn(7), drawn(7));
    assert_ne!(drawn(7), drawn(8));
    let kinds: std::collections::BTreeSet<String> =
        drawn(7).into_iter().map(|fault| fault.what.kind()).collect();
    assert_eq!(kinds.len(), 4 + 3 * 3 + 2 * 3, "{kinds:?}");
    let zombies = drawn(7)
        .iter()
        .filter(|fault| matches!(fault.what, What::Member(_, Blow::Stop)) && fault.lasts.as_millis() > 5000)
        .count();
    assert!(zombies > 5, "some pauses are longer than the lease: {zombies}");
}

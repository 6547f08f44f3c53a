//! Processor time of processes, from /proc: who works while jobs run.

use std::fs;

use serde_json::{Value as Json, json};

use crate::{Servers, executor::Executor};

/// What `/proc` counts processor time in, on every Linux that runs here.
const TICKS_PER_SECOND: f64 = 100.0;

/// Seconds of processor time so far, by who took them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cpu {
    pub(crate) executor: f64,
    pub(crate) postgres: f64,
    pub(crate) nats: f64,
    pub(crate) redis: f64,
    pub(crate) driver: f64,
}

impl Cpu {
    /// What all of them have taken so far.
    pub(crate) fn now(servers: &Servers, executor: &Executor) -> Self {
        let taken = |pid: Option<u32>| pid.map_or(0.0, |pid| ticks(pid, false) / TICKS_PER_SECOND);
        Self {
            executor: taken(executor.pid().ok()),
            postgres: servers.postgres.pid().map_or(0.0, of_family),
            nats: taken(servers.nats.pid()),
            redis: taken(servers.redis.pid()),
            driver: taken(Some(std::process::id())),
        }
    }

    fn each(self, other: Self, f: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            executor: f(self.executor, other.executor),
            postgres: f(self.postgres, other.postgres),
            nats: f(self.nats, other.nats),
            redis: f(self.redis, other.redis),
            driver: f(self.driver, other.driver),
        }
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        self.each(earlier, |now, then| now - then)
    }

    pub(crate) fn and(self, other: Self) -> Self {
        self.each(other, |one, two| one + two)
    }

    /// Milliseconds per one of `count`.
    pub(crate) fn millis_per(self, count: f64) -> Self {
        self.each(self, |seconds, _| seconds * 1e3 / count)
    }

    pub(crate) fn total(self) -> f64 {
        self.executor + self.postgres + self.nats + self.redis + self.driver
    }

    pub(crate) fn json(self) -> Json {
        json!({ "executor": self.executor, "postgres": self.postgres, "nats": self.nats,
                "redis": self.redis, "driver": self.driver })
    }
}

/// PostgreSQL serves each connection with a process of its own; those that have ended count at their parent.
fn of_family(parent: u32) -> f64 {
    let living: f64 = crate::servers::children_of(parent).into_iter().map(|pid| ticks(pid, false)).sum();
    (ticks(parent, true) + living) / TICKS_PER_SECOND
}

/// User and system time of a process, and of its ended children if asked for.
fn ticks(pid: u32, with_ended_children: bool) -> f64 {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold anything; the state is the third field.
    let fields = line.rsplit_once(')').map_or("", |(_, fields)| fields);
    let number =
        |nth: usize| fields.split_whitespace().nth(nth - 3).and_then(|n| n.parse().ok()).unwrap_or(0.0);
    let own: f64 = number(14) + number(15);
    if with_ended_children { own + number(16) + number(17) } else { own }
}

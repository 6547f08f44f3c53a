//! `drain`: end another process of this program as the platform would, and wait until it has ended.
//!
//! It is for images without a shell: the hook before a pod's end can run it.
//!
//! **Invariant:** a process that is not this program gets no signal: as pid 1 of a machine it would be its init.

use std::{fs, time::Duration};

use clap::Args;
use rustix::{
    io::Errno,
    process::{Pid, Signal, getpid, kill_process, test_kill_process},
};
use tokio::time::{Instant, sleep};

use super::error::Exit;

/// Pause between two looks at the process; it has no other sign for somebody who is not its parent.
const LOOK_EVERY: Duration = Duration::from_millis(50);

const EXAMPLES: &str = "\
Examples:
  agent-executor drain                        in a pod: end the service and wait for it
  agent-executor drain --pid 4711 --timeout 30

As the hook of a pod:
  lifecycle: {preStop: {exec: {command: [agent-executor, drain]}}}

Exit codes:
  0 the process has ended    1 it has not, or there is none";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The process of `agent-executor serve`
    #[arg(long, value_name = "PID", default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..))]
    pid: i32,
    /// Longest wait for its end; it goes on ending afterwards
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

/// Why a process was not ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Nothing runs under that number.
    #[error("there is no process {0}")]
    Absent(i32),
    /// The system does not let us.
    #[error("process {0} belongs to another user")]
    Forbidden(i32),
    /// It is something else.
    #[error("process {pid} is {name}, not {own}; --pid names another")]
    Other {
        /// Its number.
        pid: i32,
        /// What it calls itself.
        name: String,
        /// What we are called.
        own: String,
    },
    /// It is we.
    #[error("process {0} is this command itself; run it beside the service, in its container")]
    Itself(i32),
    /// It runs on.
    #[error("process {pid} has not ended within {seconds} s; it goes on handing its jobs back")]
    Timeout {
        /// Its number.
        pid: i32,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A refusal of the system that should not be.
    #[error("process {pid} cannot be signalled: {reason}")]
    System {
        /// Its number.
        pid: i32,
        /// The system's word.
        reason: Errno,
    },
}

pub(super) async fn run(arguments: &Arguments) -> Result<Exit, Error> {
    let &Arguments { pid, timeout } = arguments;
    let process = Pid::from_raw(pid).ok_or(Error::Absent(pid))?;
    let deadline = Instant::now() + Duration::from_secs(timeout);
    if process == getpid() {
        return Err(Error::Itself(pid));
    }
    let found = look(pid);
    if let (Some(found), Some(own)) = (&found, look(getpid().as_raw_pid()))
        && found.name != own.name
    {
        return Err(Error::Other { pid, name: found.name.clone(), own: own.name });
    }
    kill_process(process, Signal::TERM).map_err(|reason| match reason {
        Errno::SRCH => Error::Absent(pid),
        Errno::PERM => Error::Forbidden(pid),
        reason => Error::System { pid, reason },
    })?;
    while runs(process, found.as_ref()) {
        if Instant::now() >= deadline {
            return Err(Error::Timeout { pid, seconds: timeout });
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(Exit::Success)
}

/// Whether the process still runs: not gone, not a body that its parent has not buried, not a successor under the
/// same number.
fn runs(process: Pid, found: Option<&Seen>) -> bool {
    test_kill_process(process).is_ok()
        && match (look(process.as_raw_pid()), found) {
            (Some(now), Some(found)) => !now.dead && now.started == found.started,
            // It ended between the two looks.
            (None, Some(_)) => false,
            // A system without /proc.
            (_, None) => true,
        }
}

/// What the system shows of a process.
struct Seen {
    name: String,
    /// Ticks since the machine started.
    started: String,
    dead: bool,
}

/// Reads `/proc/<pid>/stat`: number, name in parentheses, state, and in the 22nd field the start.
fn look(pid: i32) -> Option<Seen> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse(&stat)
}

fn parse(stat: &str) -> Option<Seen> {
    // The name may hold parentheses and spaces itself.
    let (head, tail) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let mut fields = tail.split_whitespace();
    let dead = matches!(fields.next()?, "Z" | "X" | "x");
    Some(Seen { name, started: fields.nth(18)?.to_owned(), dead })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let stat = |name: &str, state: &str| {
            format!("7 ({name}) {state} 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 123456 1000 50 99")
        };
        let seen = parse(&stat("a) (b c", "S")).expect("readable");
        assert_eq!((seen.name.as_str(), seen.started.as_str(), seen.dead), ("a) (b c", "123456", false));
        assert!(parse(&stat("x", "Z")).expect("readable").dead);
        assert!(parse("").is_none());
    }

    #[tokio::test]
    async fn a_process_that_is_not_ours_gets_no_signal() {
        let arguments = |pid| Arguments { pid, timeout: 1 };
        let error = run(&arguments(1)).await.expect_err("the machine's own");
        assert!(matches!(error, Error::Other { .. }), "{error}");
        let error = run(&arguments(getpid().as_raw_pid())).await.expect_err("this very process");
        assert!(matches!(error, Error::Itself(_)), "{error}");
        let error = run(&arguments(i32::MAX)).await.expect_err("no such process");
        assert!(matches!(error, Error::Absent(i32::MAX)), "{error}");
    }
}

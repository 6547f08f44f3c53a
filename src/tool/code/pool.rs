//! Processes that wait for a script: each is started ahead of its call, serves one request and is ended.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout},
    time::timeout,
};

use super::{
    CodeRunner, Error, Reply, Request, ScriptConfig,
    sandbox::{self, Allowance},
};
use crate::telemetry::{Gate, Limited, Pass};

/// Processes that are started ahead: one hides the start of a Python from calls that come one by one. With LangChain
/// imported it holds about 50 MB.
const SPARES: usize = 1;

/// What a process says once it can take a request.
const READY: &[u8] = b"ready\n";

/// Longest start of a process, importing LangChain on a busy machine included.
const START_LIMIT: Duration = Duration::from_secs(60);

/// What a process may take beyond the time of its script, to say itself that the time is over.
const GRACE: Duration = Duration::from_secs(1);

/// Longest wait for the end of a process that was killed; the kernel needs a moment to free its memory.
const END_LIMIT: Duration = Duration::from_secs(5);

/// Bytes that are read of what programs say when a process cannot be started.
const COMPLAINT_BYTES: u64 = 2_000;

/// Users that rest before they serve again, so that the limit of processes does not count those that are dying.
const RESTING_USERS: usize = 16;

/// The program that runs scripts of one language.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub(super) program: OsString,
    pub(super) arguments: Vec<OsString>,
    /// Processes and threads it may have; none leaves them alone.
    pub(super) processes: Option<u64>,
    /// Address space in bytes.
    pub(super) address_space: u64,
}

/// Runs scripts in processes of one [`Host`].
pub(super) struct Pool {
    config: ScriptConfig,
    host: Host,
    spares: Mutex<Vec<Worker>>,
    shared: Shared,
}

/// What the pools of all languages share.
#[derive(Clone)]
pub(super) struct Shared {
    users: Arc<Users>,
    calls: Arc<Gate>,
}

impl Shared {
    pub(super) fn new(config: &ScriptConfig) -> Self {
        let calls = Arc::new(Gate::new(Limited::Scripts, config.max_concurrent));
        Self { users: Arc::new(Users::from(config.first_user)), calls }
    }
}

impl Pool {
    pub(super) fn new(config: ScriptConfig, host: Host, shared: &Shared) -> Self {
        Self { config, host, spares: Mutex::default(), shared: shared.clone() }
    }

    fn start(&self) -> Result<Worker, Error> {
        let user = sandbox::is_root().then(|| User::take(&self.shared.users));
        let allowance = Allowance {
            user: user.as_ref().map(|user| user.id),
            processes: self.host.processes,
            address_space: self.host.address_space,
        };
        let mut command = sandbox::command(&self.config, allowance, &self.host.program, &self.host.arguments);
        let program = command.as_std().get_program().to_string_lossy().into_owned();
        let failed = |error: io::Error| {
            Error::Sandbox(format!("'{program}' cannot be started: {error}; it comes with util-linux"))
        };
        let mut child = command.spawn().map_err(failed)?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(requests), Some(replies)) => {
                Ok(Worker { child, requests, replies: BufReader::new(replies), _user: user })
            }
            _ => Err(Error::Sandbox(format!("'{program}' has no standard input or output"))),
        }
    }

    /// A process that nothing has been asked of.
    fn take(&self) -> Result<Worker, Error> {
        loop {
            let spare = self.spares.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut worker) = spare else { return self.start() };
            if worker.is_alive() {
                return Ok(worker);
            }
        }
    }

    /// Starts what the next call will use.
    fn refill(&self) {
        let mut spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner);
        while spares.len() < SPARES {
            match self.start() {
                Ok(worker) => spares.push(worker),
                // The next call tries again, and tells it.
                Err(_) => return,
            }
        }
    }
}

#[async_trait]
impl CodeRunner for Pool {
    async fn turn(&self) -> Pass {
        self.shared.calls.enter().await
    }

    async fn run(&self, request: &Request<'_>) -> Result<Reply, Error> {
        let mut worker = self.take()?;
        worker.ready().await?;
        let mut line = serde_json::to_vec(request).expect("a request is made of texts and JSON");
        line.push(b'\n');
        let exchange = worker.exchange(&line, self.config.max_output_bytes);
        let reply = timeout(self.config.timeout + GRACE, exchange).await;
        worker.end().await;
        self.refill();
        let reply = reply.map_err(|_| Error::Timeout(self.config.timeout))??;
        serde_json::from_slice(&reply)
            .map_err(|error| Error::Script(format!("the answer of its process cannot be read: {error}")))
    }
}

/// A process; dropping it ends it and all that it has started.
struct Worker {
    child: Child,
    requests: ChildStdin,
    replies: BufReader<ChildStdout>,
    _user: Option<User>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Worker {
    fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills its group. The namespace ends with its first process, and with it whoever has left the group.
    fn kill(&self) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It has ended already, then.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }

    async fn end(&mut self) {
        self.kill();
        let _ = timeout(END_LIMIT, self.child.wait()).await;
    }

    /// Waits until it can take a request.
    async fn ready(&mut self) -> Result<(), Error> {
        let mut said = Vec::new();
        let limit = READY.len() as u64;
        let mut replies = (&mut self.replies).take(limit);
        match timeout(START_LIMIT, replies.read_until(b'\n', &mut said)).await {
            Ok(Ok(_)) if said == READY => Ok(()),
            Ok(_) => Err(Error::Sandbox(self.complaint().await)),
            Err(_) => {
                let limit = START_LIMIT.as_secs();
                Err(Error::Sandbox(format!("its process was not ready within {limit} seconds")))
            }
        }
    }

    async fn complaint(&mut self) -> String {
        let mut said = Vec::new();
        if let Some(errors) = self.child.stderr.take() {
            let _ = timeout(END_LIMIT, errors.take(COMPLAINT_BYTES).read_to_end(&mut said)).await;
        }
        let said = String::from_utf8_lossy(&said);
        match said.trim() {
            "" => "its process ended before it could take a request".to_owned(),
            said => said.to_owned(),
        }
    }

    /// The line that answers `line`.
    async fn exchange(&mut self, line: &[u8], limit: u64) -> Result<Vec<u8>, Error> {
        // A process that does not listen any more may still have said why.
        let _ = self.requests.write_all(line).await;
        let mut reply = Vec::new();
        let mut replies = (&mut self.replies).take(limit.saturating_add(1));
        let reading = replies.read_until(b'\n', &mut reply);
        reading.await.map_err(|error| Error::Limit(format!("its answer broke off: {error}")))?;
        match reply.last() {
            Some(b'\n') => Ok(reply),
            _ if reply.len() as u64 > limit => {
                Err(Error::Limit(format!("its answer is larger than {limit} bytes")))
            }
            _ => Err(Error::Limit(
                "its process ended without an answer; it had used up its memory or processor time, or was killed"
                    .into(),
            )),
        }
    }
}

/// User ids that scripts run under.
#[derive(Debug)]
struct Users {
    first: u32,
    ids: Mutex<Ids>,
}

#[derive(Debug, Default)]
struct Ids {
    used: u32,
    free: VecDeque<u32>,
}

impl Users {
    /// Those from `first` on.
    fn from(first: u32) -> Self {
        Self { first, ids: Mutex::default() }
    }
}

/// A user id that nobody else has meanwhile.
struct User {
    id: u32,
    users: Arc<Users>,
}

impl User {
    fn take(users: &Arc<Users>) -> Self {
        let mut ids = users.ids.lock().unwrap_or_else(PoisonError::into_inner);
        let rested = if ids.free.len() > RESTING_USERS { ids.free.pop_front() } else { None };
        let id = rested.unwrap_or_else(|| {
            ids.used += 1;
            users.first + ids.used - 1
        });
        drop(ids);
        Self { id, users: users.clone() }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.users.ids.lock().unwrap_or_else(PoisonError::into_inner).free.push_back(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_rests_before_it_serves_again_and_there_are_few() {
        let users = Arc::new(Users::from(100));
        let first = User::take(&users);
        assert_ne!(first.id, User::take(&users).id);
        drop(first);
        let ids: Vec<u32> = (0..1_000).map(|_| User::take(&users).id).collect();
        assert!(ids.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(ids.iter().all(|id| (100..100 + 2 + RESTING_USERS as u32).contains(id)), "{ids:?}");
    }
}

//! The program itself as a child process, `agent-executor serve`, for those who look at it from outside: live tests,
//! the demo, the load driver. Needs `servers` (dev/servers.rs) beside it in the crate's root.
//!
//! **Invariant:** it sees only the settings it is given, never those of the shell it was started from.
//! **Invariant:** like the servers, it never outlives the process that started it.
#![allow(dead_code, reason = "every user of this shared file needs a different part of it")]

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::servers;

/// How long a start may take, migrations included, on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Longer than the program's own grace after SIGTERM (25 s).
const END_WITHIN: Duration = Duration::from_secs(40);
/// One answer of a probe.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Largest answer read; `/metrics` is some tens of KiB.
const ANSWER_BYTES: u64 = 4 * 1024 * 1024;
/// How much of the log an error shows.
const LOG_TAIL_LINES: usize = 30;

/// A running `agent-executor serve`.
pub(crate) struct Executor {
    folder: PathBuf,
    port: u16,
    child: Mutex<Option<Child>>,
}

impl Executor {
    /// Starts `program serve` with these settings in its environment (`PORT` and `LISTEN_ADDRESS` are added) and waits
    /// until it says that it is ready.
    pub(crate) async fn start(program: &Path, settings: &[(&str, &str)]) -> Result<Self> {
        let executor = Self::launch(program, settings)?;
        let ready =
            || async { !executor.is_running() || matches!(executor.get("/ready").await, Ok((200, _))) };
        let waited = servers::until("GET /ready answers 200", READY_WITHIN, ready).await;
        waited.with_context(|| executor.log_tail())?;
        ensure!(executor.is_running(), "agent-executor ended at once; its log:\n{}", executor.log_tail());
        Ok(executor)
    }

    /// As [`Executor::start`], without waiting for anything: for starts that must fail or take their time.
    pub(crate) fn launch(program: &Path, settings: &[(&str, &str)]) -> Result<Self> {
        let folder = servers::scratch("executor")?;
        let port = servers::free_port()?;
        let log = File::create(folder.join("log"))?;
        let mut command = command(program, settings);
        command.arg("serve").env("PORT", port.to_string()).env("LISTEN_ADDRESS", "127.0.0.1");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        fs::write(folder.join("pid"), format!("KILL {}\n", child.id()))?;
        Ok(Self { folder, port, child: Mutex::new(Some(child)) })
    }

    /// The port of its probes, metrics and intake.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Everything it has written to stdout and stderr so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.join("log")).unwrap_or_default()).into_owned()
    }

    /// Status and body of `GET path`.
    pub(crate) async fn get(&self, path: &str) -> Result<(u16, String)> {
        self.request(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).await
    }

    /// Status and body of `POST path` with a body of this content type.
    pub(crate) async fn post(&self, path: &str, content_type: &str, body: &str) -> Result<(u16, String)> {
        let length = body.len();
        self.request(&format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {content_type}\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        ))
        .await
    }

    async fn request(&self, request: &str) -> Result<(u16, String)> {
        let ask = async {
            let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            stream.take(ANSWER_BYTES).read_to_end(&mut answer).await?;
            Ok::<_, anyhow::Error>(String::from_utf8_lossy(&answer).into_owned())
        };
        let answer = tokio::time::timeout(ANSWER_WITHIN, ask).await.context("no answer in time")??;
        let (head, body) = answer.split_once("\r\n\r\n").context("no end of the head")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        Ok((status, if chunked { unchunk(body)? } else { body.to_owned() }))
    }

    /// Kills it, as a machine that dies would.
    pub(crate) fn kill(&self) -> Result<()> {
        let mut held = self.held();
        let child = held.as_mut().ok_or_else(|| anyhow!("agent-executor is not running"))?;
        child.kill()?;
        child.wait()?;
        *held = None;
        Ok(())
    }

    /// Its number, while it runs or has not been waited for.
    pub(crate) fn pid(&self) -> Result<u32> {
        self.held().as_ref().map(Child::id).ok_or_else(|| anyhow!("agent-executor is not running"))
    }

    /// Sends SIGTERM and waits for the end.
    pub(crate) async fn terminate(&self) -> Result<ExitStatus> {
        self.signal("TERM")?;
        self.ended(END_WITHIN).await
    }

    /// Sends a signal, e.g. `STOP` and `CONT`.
    pub(crate) fn signal(&self, signal: &str) -> Result<()> {
        servers::signal_to(signal, &[self.pid()?])
    }

    /// Memory it has in use.
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    /// The most memory it ever had in use.
    pub(crate) fn peak_bytes(&self) -> Result<u64> {
        self.memory("VmHWM:")
    }

    fn memory(&self, field: &str) -> Result<u64> {
        let pid =
            self.held().as_ref().map(Child::id).ok_or_else(|| anyhow!("agent-executor is not running"))?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line =
            status.lines().find_map(|line| line.strip_prefix(field)).context("the kernel counts memory")?;
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kilobytes * 1024)
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn ended(&self, within: Duration) -> Result<ExitStatus> {
        servers::until("agent-executor ends", within, || async { !self.is_running() })
            .await
            .with_context(|| self.log_tail())?;
        let mut child = self.held().take().ok_or_else(|| anyhow!("agent-executor was already gone"))?;
        Ok(child.wait()?)
    }

    pub(crate) fn is_running(&self) -> bool {
        self.held().as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// The last lines of its log.
    pub(crate) fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }

    fn held(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        if let Some(mut child) = self.held().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The program with these settings and nothing else of our environment that it could read as one.
pub(crate) fn command(program: &Path, settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs(settings.iter().copied());
    for kept in ["PATH", "HOME", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "RUST_BACKTRACE"] {
        if let Some(value) = std::env::var_os(kept) {
            command.env(kept, value);
        }
    }
    command
}

/// The body behind `Transfer-Encoding: chunked`.
fn unchunk(mut body: &str) -> Result<String> {
    let mut whole = String::new();
    loop {
        let (length, rest) = body.split_once("\r\n").context("a chunk without its length")?;
        let length = usize::from_str_radix(length.trim(), 16).context("a chunk's length")?;
        if length == 0 {
            return Ok(whole);
        }
        let Some(chunk) = rest.get(..length) else { bail!("a chunk that ends early") };
        whole.push_str(chunk);
        body = rest.get(length + 2..).unwrap_or_default();
    }
}

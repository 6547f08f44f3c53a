//! A server that is a program of the operator's: started with its own environment, ended with all it has started.

use std::{
    collections::VecDeque,
    io,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use indexmap::IndexMap;
use rustix::process::{Pid, Signal, kill_process_group};
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    io::{AsyncReadExt, BufReader},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    time::timeout,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

/// Longest wait for the end of a program that was told to go by the end of its input, and of what it leaves to do.
pub(super) const END_LIMIT: Duration = Duration::from_secs(2);

/// Bytes of a program's last words that are kept.
const LAST_WORDS_BYTES: usize = 4 << 10;

/// A running program; dropping it ends it and all that it has started.
pub(super) struct Process {
    child: Child,
    /// Its process group, until that was killed. Nobody else gets the number before the child was waited for.
    group: Option<Pid>,
    last_words: Arc<Mutex<VecDeque<u8>>>,
    /// Nothing more comes of them.
    is_silent: CancellationToken,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Process {
    /// Starts `command` with nothing but `environment`, in a process group of its own.
    pub(super) fn start(
        (command, arguments): (&str, &[String]),
        environment: &IndexMap<String, SecretString>,
        tracker: &TaskTracker,
    ) -> io::Result<(Self, ChildStdout, ChildStdin)> {
        let mut child = Command::new(command)
            .args(arguments)
            .env_clear()
            .envs(environment.iter().map(|(name, value)| (name, value.expose_secret())))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let (output, input) = (child.stdout.take(), child.stdin.take());
        let (Some(output), Some(input)) = (output, input) else {
            return Err(io::Error::other("it has no standard input or output"));
        };
        let (last_words, is_silent) = (Arc::default(), CancellationToken::new());
        let silence = is_silent.clone().drop_guard();
        if let Some(errors) = child.stderr.take() {
            tracker.spawn(listen(errors, Arc::clone(&last_words), silence));
        }
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Ok((Self { child, group, last_words, is_silent }, output, input))
    }

    /// What it has said that may explain why it did not begin: the first line that tells of an error, or else its last
    /// one.
    pub(super) async fn complaint(&self) -> Option<String> {
        let said = self.last_words().await;
        let mut lines = lines(&said);
        let of_error = lines.clone().find(|line| tells_of_error(line));
        of_error.or_else(|| lines.next_back()).map(str::to_owned)
    }

    /// The same of the end of one that has worked: the last line that tells of an error; with earlier ones it lived.
    pub(super) async fn last_complaint(&self) -> Option<String> {
        let said = self.last_words().await;
        let mut lines = lines(&said);
        let of_error = lines.clone().rfind(|line| tells_of_error(line));
        of_error.or_else(|| lines.next_back()).map(str::to_owned)
    }

    async fn last_words(&self) -> String {
        // What a dead program has said may still be on its way here.
        let _ = timeout(END_LIMIT, self.is_silent.cancelled()).await;
        let last_words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&last_words.iter().copied().collect::<Vec<u8>>()).into_owned()
    }

    /// Waits until it has ended, which the end of its input tells it to, and ends it otherwise.
    pub(super) async fn end(&mut self) {
        let _ = timeout(END_LIMIT, self.child.wait()).await;
        self.kill();
        let _ = timeout(END_LIMIT, self.child.wait()).await;
    }

    /// Kills its group, also when it has ended itself: what it has started may not have.
    fn kill(&mut self) {
        if let Some(group) = self.group.take() {
            // Nobody is left in it, then.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

fn lines(said: &str) -> impl DoubleEndedIterator<Item = &str> + Clone {
    said.lines().map(str::trim).filter(|line| !line.is_empty())
}

fn tells_of_error(line: &str) -> bool {
    line.contains("rror")
}

/// Reads what a program reports, so that it never waits for a reader, and keeps the end of it.
async fn listen(errors: ChildStderr, last_words: Arc<Mutex<VecDeque<u8>>>, _silence: DropGuard) {
    let (mut errors, mut chunk) = (BufReader::new(errors), [0; 1024]);
    while let Ok(count @ 1..) = errors.read(&mut chunk).await {
        let mut last_words = last_words.lock().unwrap_or_else(PoisonError::into_inner);
        last_words.extend(&chunk[..count]);
        let excess = last_words.len().saturating_sub(LAST_WORDS_BYTES);
        last_words.drain(..excess);
    }
}

//! The servers and the members of one run: executors that reach each server through a proxy of their own.
//!
//! **Invariant:** every log line of every process of a member is kept until the run is judged.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};

use super::counter::Counter;
use super::jobs::Places;
use super::plan::Line;
use crate::doors::Served;
use crate::executor::Executor;
use crate::live::world::program;
use crate::proxy::Proxy;
use crate::servers::{Nats, Postgres, Redis};

/// How often a job may lose its process. A fault every 0.8 s kills the owners of an innocent long call more often in a
/// row than the default of five allows.
const MAX_CRASHES: u32 = 8;

/// Everything a run needs.
pub(super) struct Site {
    pub(super) postgres: Postgres,
    pub(super) nats: Nats,
    pub(super) redis: Redis,
    pub(super) members: Vec<Member>,
    pub(super) counter: Counter,
    pub(super) places: Places,
    _effects: Served,
    /// Where logs are kept.
    pub(super) folder: PathBuf,
}

/// One executor, in as many incarnations as the faults make of it.
pub(super) struct Member {
    pub(super) name: String,
    links: [Proxy; 3],
    _model: Served,
    settings: Vec<(String, String)>,
    process: Mutex<Option<Arc<Executor>>>,
    starts: AtomicU32,
    log: PathBuf,
}

impl Site {
    /// Starts the servers, and members that are not running yet. `folder` is emptied.
    pub(super) async fn start(members: usize, counter: Counter, folder: PathBuf) -> Result<Self> {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let (postgres, nats, redis) = tokio::try_join!(Postgres::start(), Nats::start(), Redis::start())?;
        let effects = counter.open(usize::MAX).await?;
        let places = Places { effects_port: effects.port };
        let mut site =
            Self { postgres, nats, redis, members: Vec::new(), counter, places, _effects: effects, folder };
        for number in 0..members {
            let member = site.member(number).await?;
            site.members.push(member);
        }
        Ok(site)
    }

    async fn member(&self, number: usize) -> Result<Member> {
        let postgres = Proxy::start(self.postgres.port()).await?;
        let nats = Proxy::start(self.nats.port()).await?;
        let redis = Proxy::start(self.redis.port()).await?;
        let model = self.counter.open(number).await?;
        let name = format!("pod-{number}");
        let settings = [
            ("DATABASE_URL", format!("postgres://postgres@127.0.0.1:{}/postgres", postgres.port())),
            ("NATS_URL", format!("nats://127.0.0.1:{}", nats.port())),
            ("DRAGONFLY_URL", format!("redis://127.0.0.1:{}", redis.port())),
            ("POD_NAME", name.clone()),
            ("MODEL_PROVIDERS", "counted".to_owned()),
            ("MODEL_PROVIDER_COUNTED_BASE_URL", format!("{}/v1", model.url)),
            ("HTTP_TOOL_ALLOWED_HOSTS", "127.0.0.1".to_owned()),
            ("HTTP_TOOL_ALLOW_PRIVATE", "true".to_owned()),
            ("NATS_ACK_WAIT_SECONDS", "6".to_owned()),
            ("SHUTDOWN_GRACE_SECONDS", "2".to_owned()),
            ("MAX_CRASHES", MAX_CRASHES.to_string()),
        ];
        Ok(Member {
            log: self.folder.join(format!("{name}.log")),
            name,
            links: [postgres, nats, redis],
            _model: model,
            settings: settings.map(|(name, value)| (name.to_owned(), value)).to_vec(),
            process: Mutex::default(),
            starts: AtomicU32::new(0),
        })
    }

    /// Every kept log line that has `word` in it, member by member.
    pub(super) fn lines_about(&self, word: &str, most: usize) -> String {
        let mut found = String::new();
        for member in &self.members {
            member.keep_log();
            let log = fs::read_to_string(&member.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().filter(|line| line.contains(word)).collect();
            for line in &lines[lines.len().saturating_sub(most)..] {
                found.push_str(&format!("    {}: {line}\n", member.name));
            }
        }
        found
    }
}

impl Member {
    pub(super) fn link(&self, line: Line) -> &Proxy {
        match line {
            Line::Postgres => &self.links[0],
            Line::Nats => &self.links[1],
            Line::Redis => &self.links[2],
        }
    }

    /// Its process, when there is one.
    pub(super) fn process(&self) -> Option<Arc<Executor>> {
        self.held().clone()
    }

    pub(super) fn is_running(&self) -> bool {
        self.process().is_some_and(|process| process.is_running())
    }

    /// Starts it unless it runs; does not wait until it is ready, since its servers may be away.
    pub(super) fn ensure_running(&self) -> Result<()> {
        if self.is_running() {
            return Ok(());
        }
        self.keep_log();
        let settings: Vec<_> =
            self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let process = Executor::launch(program(), &settings)?;
        self.starts.fetch_add(1, Ordering::Relaxed);
        *self.held() = Some(Arc::new(process));
        Ok(())
    }

    /// Moves what its process has logged so far behind what earlier ones have.
    fn keep_log(&self) {
        let Some(process) = self.process() else { return };
        if process.is_running() {
            return;
        }
        *self.held() = None;
        let start = self.starts.load(Ordering::Relaxed);
        append(&self.log, &format!("--- {} start {start}\n{}", self.name, process.log()));
    }

    /// The same for a process that still runs, at the end of everything.
    pub(super) fn last_log(&self) {
        if let Some(process) = self.process() {
            append(&self.log, &format!("--- {} still running\n{}", self.name, process.log()));
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<Arc<Executor>>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn append(path: &Path, text: &str) {
    let file = OpenOptions::new().create(true).append(true).open(path);
    // A log that cannot be kept must not hide what the run found.
    let _ = file.and_then(|mut file| file.write_all(text.as_bytes()));
}

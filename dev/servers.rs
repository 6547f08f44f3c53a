//! Real servers to throw away: PostgreSQL, NATS with JetStream and Redis, each on a free port of 127.0.0.1 with its
//! data in a folder of its own. Shared through `#[path]` by `tests/it`, `examples/demo.rs` and `benches/load/`.
//!
//! **Invariant:** a server that is missing is an error that says `make setup`; nothing is ever skipped.
//! **Invariant:** nothing outlives the process that started it. `Drop` stops a server and removes its folder; a janitor
//! (a small shell that waits for our end of a pipe to close) does the same when we die without dropping.
//! **Invariant:** a server is ready only when *ours* answers: the answer must carry our process id or name, because
//! somebody else's server may have taken the port.
#![allow(dead_code, reason = "every user of this shared file needs a different part of it")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

/// How long a server may take to become ready: 30 times what a quiet machine needs, since tests share two cores.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a server may take to end after a polite signal.
const END_WITHIN: Duration = Duration::from_secs(30);
/// How often a condition is looked at while waiting for it.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long one probe of a server may take before it counts as "not yet".
const PROBE_WITHIN: Duration = Duration::from_secs(2);
/// How many ports are tried before giving up; each try loses only to a process that took the port in the same moment.
const PORT_TRIES: u32 = 10;
/// Ports are taken from here: below Linux's ephemeral range (32768..), so that a client that keeps reconnecting while
/// its server is down can neither occupy the port nor connect to itself.
const PORTS: std::ops::Range<u16> = 15_000..32_000;
/// How much of a server's log an error shows.
const LOG_TAIL_LINES: usize = 15;

/// A server that was started; what can be done to each kind of them.
pub(crate) struct Running(Arc<Server>);

impl Running {
    fn new(server: Server) -> Self {
        Self(Arc::new(server))
    }

    pub(crate) fn port(&self) -> u16 {
        self.0.port
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.0.pid().ok()
    }

    /// Ends the server as an administrator would: sessions are cut, everything is written out.
    pub(crate) async fn stop(&self) -> Result<()> {
        self.0.clone().end(self.0.kind.polite_signal()).await
    }

    /// Kills every process of the server, as a machine that dies would.
    pub(crate) fn kill(&self) -> Result<()> {
        self.0.kill()
    }

    /// Starts a stopped or killed server on the same port with the same data.
    pub(crate) async fn start_again(&self) -> Result<()> {
        self.0.clone().again().await
    }

    /// Freezes every process of the server: connections stay open, nothing answers.
    pub(crate) fn pause(&self) -> Result<()> {
        self.0.signal_all("STOP")
    }

    /// Lets a paused server go on.
    pub(crate) fn resume(&self) -> Result<()> {
        self.0.signal_all("CONT")
    }
}

/// A PostgreSQL server.
pub(crate) struct Postgres(Running);

impl Postgres {
    /// Starts a server of one's own, to be killed and started again at will.
    pub(crate) async fn start() -> Result<Self> {
        blocking(|| Server::start(Kind::Postgres)).await.map(|server| Self(Running::new(server)))
    }

    /// The one server that all tests of this process share, since starting one takes seconds. Take a
    /// [`Postgres::fresh_database`] of it; never stop, kill or pause it.
    pub(crate) async fn shared() -> Result<&'static Self> {
        static SHARED: OnceLock<Result<Postgres, String>> = OnceLock::new();
        let made = blocking(|| {
            Ok(SHARED.get_or_init(|| {
                Server::start(Kind::Postgres)
                    .map(|server| Self(Running::new(server)))
                    .map_err(|error| format!("{error:#}"))
            }))
        });
        made.await?.as_ref().map_err(|error| anyhow!("the shared PostgreSQL did not start: {error}"))
    }

    /// The URL of the database `postgres`.
    pub(crate) fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// The URL of the database `name`, which may not exist yet.
    pub(crate) fn url_of(&self, name: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{name}", self.port())
    }

    /// Creates the database `name` (lower-case letters, digits and `_`) and returns its URL.
    pub(crate) async fn database(&self, name: &str) -> Result<String> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        ensure!(!name.is_empty() && name.chars().all(plain), "not a plain database name: {name:?}");
        self.sql("postgres", &format!("create database {name} template template0")).await?;
        Ok(self.url_of(name))
    }

    /// Creates a database that nobody else in this process has, and returns its URL.
    pub(crate) async fn fresh_database(&self) -> Result<String> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        self.database(&format!("fresh_{}", NEXT.fetch_add(1, Ordering::Relaxed))).await
    }

    /// Runs SQL through `psql` and returns its output: a row per line, columns separated by `|`.
    pub(crate) async fn sql(&self, database: &str, statement: &str) -> Result<String> {
        let (url, statement) = (self.url_of(database), statement.to_owned());
        blocking(move || psql(&url, &statement)).await
    }

    /// The same as a table to look at.
    pub(crate) async fn table(&self, database: &str, statement: &str) -> Result<String> {
        let (url, statement) = (self.url_of(database), statement.to_owned());
        let psql = move || {
            let mut command = Command::new(postgres_binary("psql")?);
            run(command.args(["-X", "-q", "-P", "footer=off", "-d", &url, "-c", &statement]))
        };
        blocking(psql).await
    }

    /// Runs a transaction script with `pgbench`, on as many connections; transactions per second.
    pub(crate) async fn pgbench(
        &self,
        database: &str,
        script: &str,
        clients: usize,
        seconds: u32,
    ) -> Result<f64> {
        let (url, script) = (self.url_of(database), script.to_owned());
        let bench = move || {
            let file = new_folder("pgbench")?.join("script.sql");
            fs::write(&file, script)?;
            let mut command = Command::new(postgres_binary("pgbench")?);
            command.args(["-n", "-j", "1", "-c", &clients.to_string(), "-T", &seconds.to_string(), "-f"]);
            let told = run(command.arg(&file).arg(&url))?;
            let line = told.lines().find_map(|line| line.strip_prefix("tps = ")).context("no tps")?;
            Ok(line.split(' ').next().context("no number")?.parse()?)
        };
        blocking(bench).await
    }

    /// Ends the server at once without writing out; the next start recovers from the log.
    pub(crate) async fn stop_immediate(&self) -> Result<()> {
        self.0.0.clone().end("QUIT").await
    }
}

/// A NATS server with JetStream.
pub(crate) struct Nats(Running);

impl Nats {
    /// Starts a server of one's own.
    pub(crate) async fn start() -> Result<Self> {
        Self::start_with("").await
    }

    /// Starts a server with extra lines in its configuration file, e.g. `max_payload: 4MB`.
    pub(crate) async fn start_with(configuration: &str) -> Result<Self> {
        let kind = Kind::Nats { configuration: configuration.to_owned() };
        blocking(move || Server::start(kind)).await.map(|server| Self(Running::new(server)))
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port())
    }
}

/// A Redis-protocol server (`redis-server`, else `valkey-server`).
pub(crate) struct Redis(Running);

impl Redis {
    /// Starts a server of one's own.
    pub(crate) async fn start() -> Result<Self> {
        blocking(|| Server::start(Kind::Redis)).await.map(|server| Self(Running::new(server)))
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port())
    }
}

impl Deref for Postgres {
    type Target = Running;

    fn deref(&self) -> &Running {
        &self.0
    }
}

impl Deref for Nats {
    type Target = Running;

    fn deref(&self) -> &Running {
        &self.0
    }
}

impl Deref for Redis {
    type Target = Running;

    fn deref(&self) -> &Running {
        &self.0
    }
}

/// A folder of one's own under the throw-away root: gone when this process ends, however it ends.
pub(crate) fn scratch(label: &str) -> Result<PathBuf> {
    new_folder(label)
}

/// Waits for a condition of the outside world; the error names what was waited for.
pub(crate) async fn until<F, W>(what: &str, within: Duration, mut condition: F) -> Result<()>
where
    F: FnMut() -> W,
    W: Future<Output = bool>,
{
    let started = Instant::now();
    while !condition().await {
        ensure!(started.elapsed() < within, "waited {within:?} in vain: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

#[derive(Clone)]
enum Kind {
    Postgres,
    Nats { configuration: String },
    Redis,
}

impl Kind {
    fn label(&self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Nats { .. } => "nats",
            Self::Redis => "redis",
        }
    }

    /// The signal with which the server cuts its sessions and writes everything out.
    fn polite_signal(&self) -> &'static str {
        match self {
            Self::Postgres => "INT",
            Self::Nats { .. } | Self::Redis => "TERM",
        }
    }

    /// The signal with which the server ends fast and leaves nothing behind in the kernel.
    fn last_signal(&self) -> &'static str {
        match self {
            // A killed postmaster would leak its shared-memory segment; an immediate shutdown frees it.
            Self::Postgres => "QUIT",
            Self::Nats { .. } | Self::Redis => "KILL",
        }
    }
}

struct Server {
    kind: Kind,
    folder: PathBuf,
    port: u16,
    child: Mutex<Option<Child>>,
}

impl Server {
    fn start(kind: Kind) -> Result<Self> {
        let mut tries = 0;
        loop {
            tries += 1;
            let folder = new_folder(kind.label())?;
            prepare(&kind, &folder)?;
            let server = Self { kind: kind.clone(), folder, port: free_port()?, child: Mutex::new(None) };
            match server.launch() {
                Ok(()) => return Ok(server),
                Err(_) if tries < PORT_TRIES && server.port_was_taken() => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn launch(&self) -> Result<()> {
        ensure!(self.held().is_none(), "{} is already running", self.kind.label());
        let log = File::create(self.log_path()).context("cannot create the server's log")?;
        let mut command = command(&self.kind, &self.folder, self.port)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // A process group of its own: Ctrl-C is for us, and we decide the order in which things end.
        command.process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {}", self.kind.label()))?;
        let pid = child.id();
        *self.held() = Some(child);
        fs::write(self.folder.join("pid"), format!("{} {pid}\n", self.kind.last_signal()))?;
        self.wait_until_ready(pid)
    }

    fn wait_until_ready(&self, pid: u32) -> Result<()> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                self.forget_child();
                bail!("{} ended at once ({status}); its log:\n{}", self.kind.label(), self.log_tail());
            }
            if is_ready(&self.kind, &self.folder, self.port, pid) {
                return Ok(());
            }
            if started.elapsed() > READY_WITHIN {
                self.put_down();
                bail!(
                    "{} is not ready after {READY_WITHIN:?}; its log:\n{}",
                    self.kind.label(),
                    self.log_tail()
                );
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    async fn end(self: Arc<Self>, signal: &'static str) -> Result<()> {
        blocking(move || {
            signal_to(signal, &[self.pid()?])?;
            if self.wait_for_end(END_WITHIN)? {
                return Ok(());
            }
            bail!("{} did not end within {END_WITHIN:?}; its log:\n{}", self.kind.label(), self.log_tail())
        })
        .await
    }

    async fn again(self: Arc<Self>) -> Result<()> {
        blocking(move || {
            let mut tries = 0;
            loop {
                tries += 1;
                match self.launch() {
                    Ok(()) => return Ok(()),
                    // The old sockets may need a moment to go.
                    Err(_) if tries < PORT_TRIES && self.port_was_taken() => {
                        std::thread::sleep(Duration::from_millis(200));
                    }
                    Err(error) => return Err(error),
                }
            }
        })
        .await
    }

    fn kill(&self) -> Result<()> {
        let pid = self.pid()?;
        let mut all = vec![pid];
        all.extend(children_of(pid)); // PostgreSQL's sessions are processes, and outside our group
        signal_to("KILL", &all)?;
        ensure!(self.wait_for_end(END_WITHIN)?, "{} survived SIGKILL", self.kind.label());
        let started = Instant::now();
        while all.iter().any(|pid| is_alive(*pid)) {
            ensure!(started.elapsed() < END_WITHIN, "a session of {} survived SIGKILL", self.kind.label());
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    fn signal_all(&self, signal: &str) -> Result<()> {
        let pid = self.pid()?;
        let mut all = vec![pid];
        all.extend(children_of(pid));
        signal_to(signal, &all)
    }

    fn put_down(&self) {
        let Ok(pid) = self.pid() else { return };
        // A paused process sees no signal but KILL until it goes on.
        let _ = self.signal_all("CONT");
        let _ = signal_to(self.kind.last_signal(), &[pid]);
        if !matches!(self.wait_for_end(Duration::from_secs(5)), Ok(true)) {
            let _ = self.kill();
        }
    }

    fn wait_for_end(&self, within: Duration) -> Result<bool> {
        let started = Instant::now();
        while self.ended()?.is_none() {
            if started.elapsed() > within {
                return Ok(false);
            }
            std::thread::sleep(LOOK_EVERY);
        }
        self.forget_child();
        Ok(true)
    }

    fn ended(&self) -> Result<Option<ExitStatus>> {
        let mut held = self.held();
        let child = held.as_mut().ok_or_else(|| anyhow!("{} is not running", self.kind.label()))?;
        Ok(child.try_wait()?)
    }

    fn forget_child(&self) {
        *self.held() = None;
        let _ = fs::remove_file(self.folder.join("pid"));
    }

    fn pid(&self) -> Result<u32> {
        self.held().as_ref().map(Child::id).ok_or_else(|| anyhow!("{} is not running", self.kind.label()))
    }

    fn held(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn log_tail(&self) -> String {
        let log = fs::read(self.log_path()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }

    fn port_was_taken(&self) -> bool {
        let log = self.log_tail().to_lowercase();
        // PostgreSQL and NATS; Redis and Valkey.
        log.contains("address already in use") || log.contains("could not create server tcp listening socket")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.put_down();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// What must exist before the first start.
fn prepare(kind: &Kind, folder: &Path) -> Result<()> {
    let data = folder.join("data");
    match kind {
        Kind::Postgres => {
            run(Command::new("cp").arg("-a").arg(postgres_template()?).arg(&data))?;
        }
        Kind::Nats { configuration } => {
            fs::create_dir(&data)?;
            fs::write(folder.join("nats.conf"), configuration)?;
        }
        Kind::Redis => fs::create_dir(&data)?,
    }
    Ok(())
}

fn command(kind: &Kind, folder: &Path, port: u16) -> Result<Command> {
    let data = folder.join("data");
    let port = port.to_string();
    Ok(match kind {
        Kind::Postgres => {
            let mut command = as_postgres_user(&postgres_binary("postgres")?)?;
            command.arg("-D").arg(&data).args(["-p", &port, "-h", "127.0.0.1", "-k", ""]);
            // Without fsync a crash of the *machine* may lose data; a killed process loses nothing, and only
            // processes die here. Commits still wait for their log record (`synchronous_commit` stays on).
            for setting in [
                "fsync=off",
                "full_page_writes=off",
                "max_connections=400",
                "shared_buffers=64MB",
                "max_wal_size=512MB",
                "log_min_messages=warning",
            ] {
                command.args(["-c", setting]);
            }
            command
        }
        Kind::Nats { .. } => {
            let mut command = Command::new(binary(&["nats-server"])?);
            command.args(["-a", "127.0.0.1", "-p", &port, "-n", &nats_name(folder), "-js", "-sd"]).arg(&data);
            command.arg("-c").arg(folder.join("nats.conf"));
            command
        }
        Kind::Redis => {
            let mut command = Command::new(binary(&["redis-server", "valkey-server"])?);
            command.args([
                "--port",
                &port,
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "yes",
                // By default a write waits while the disk is busy with an earlier one, and a kill loses what was confirmed.
                "--appendfsync",
                "no",
                "--dir",
            ]);
            command.arg(&data);
            command
        }
    })
}

fn is_ready(kind: &Kind, folder: &Path, port: u16, pid: u32) -> bool {
    match kind {
        // The last line of this file is the server's own word for its state; the first is its process id.
        Kind::Postgres => {
            let state = fs::read_to_string(folder.join("data/postmaster.pid")).unwrap_or_default();
            let lines: Vec<&str> = state.lines().map(str::trim).collect();
            lines.first() == Some(&pid.to_string().as_str()) && lines.get(7) == Some(&"ready")
        }
        Kind::Nats { .. } => {
            let greeting = first_line(port).unwrap_or_default();
            greeting.starts_with("INFO ")
                && greeting.contains("\"jetstream\":true")
                && greeting.contains(&format!("\"server_name\":\"{}\"", nats_name(folder)))
        }
        Kind::Redis => {
            let told = redis_server_section(port).unwrap_or_default();
            told.contains(&format!("process_id:{pid}\r\n"))
        }
    }
}

fn nats_name(folder: &Path) -> String {
    folder.display().to_string().replace('/', "_")
}

fn connect(port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), PROBE_WITHIN)?;
    stream.set_read_timeout(Some(PROBE_WITHIN))?;
    Ok(stream)
}

fn first_line(port: u16) -> std::io::Result<String> {
    let mut line = String::new();
    BufReader::new(connect(port)?.take(64 * 1024)).read_line(&mut line)?;
    Ok(line)
}

/// `INFO server` of Redis, which answers an error while it still loads its data.
fn redis_server_section(port: u16) -> std::io::Result<String> {
    let mut stream = connect(port)?;
    stream.write_all(b"PING\r\nINFO server\r\nQUIT\r\n")?;
    let mut told = String::new();
    stream.take(64 * 1024).read_to_string(&mut told)?;
    Ok(if told.starts_with("+PONG") { told } else { String::new() })
}

/// A cluster that `initdb` made once for this process; every server starts from a copy, which is far quicker.
fn postgres_template() -> Result<&'static Path> {
    static TEMPLATE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let made = TEMPLATE.get_or_init(|| init_database().map_err(|error| format!("{error:#}")));
    made.as_deref().map_err(|error| anyhow!("cannot make a PostgreSQL cluster: {error}"))
}

fn init_database() -> Result<PathBuf> {
    let folder = new_folder("postgres-template")?;
    if is_root() {
        run(Command::new("chown").arg("postgres").arg(&folder))?;
    }
    let data = folder.join("data");
    let mut initdb = as_postgres_user(&postgres_binary("initdb")?)?;
    initdb.arg("-D").arg(&data).args([
        "-U",
        "postgres",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--no-locale",
        "--no-sync",
    ]);
    run(&mut initdb)?;
    Ok(data)
}

/// PostgreSQL refuses to run as root; then it runs as its own user. `setpriv` replaces itself by the program, so
/// the process id stays the one we know.
fn as_postgres_user(program: &Path) -> Result<Command> {
    if !is_root() {
        return Ok(Command::new(program));
    }
    let mut command = Command::new(binary(&["setpriv"])?);
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"]).arg(program);
    command.current_dir("/");
    Ok(command)
}

/// `psql` on one statement; its whole output, or its error.
fn psql(url: &str, statement: &str) -> Result<String> {
    let mut command = Command::new(postgres_binary("psql")?);
    command.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", statement]);
    run(&mut command)
}

/// A program of the newest PostgreSQL under /usr/lib/postgresql, where Debian keeps it; else of the PATH.
fn postgres_binary(name: &str) -> Result<PathBuf> {
    let version = |path: &PathBuf| -> Option<u32> { path.file_name()?.to_str()?.parse().ok() };
    let installed =
        fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path());
    let newest = installed
        .filter(|path| path.join("bin/postgres").is_file() && path.join("bin").join(name).is_file())
        .max_by_key(version);
    newest.map_or_else(|| binary(&[name]), |path| Ok(path.join("bin").join(name)))
}

/// The first of these programs that is installed. An ordinary user's PATH lacks the sbin folders on Debian.
fn binary(names: &[&str]) -> Result<PathBuf> {
    for name in names {
        let script = format!("PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin; command -v {name}");
        let found = Command::new("sh").args(["-c", &script]).output().context("cannot run sh")?;
        if found.status.success() {
            return Ok(PathBuf::from(String::from_utf8_lossy(&found.stdout).trim()));
        }
    }
    bail!("{} is not installed; run `make setup`", names.join(" or "))
}

fn is_root() -> bool {
    static ROOT: OnceLock<bool> = OnceLock::new();
    *ROOT.get_or_init(|| run(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0"))
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed ({}): {}", output.status, told.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// std cannot send signals without `unsafe`; the shell can.
pub(crate) fn signal_to(signal: &str, pids: &[u32]) -> Result<()> {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    // A session that ended a moment ago is no failure; the first process is ours and not yet reaped, so it exists.
    let script = r#"signal=$1; kill -s "$signal" "$2" || exit 1; shift 2
        for pid in "$@"; do kill -s "$signal" "$pid" 2>/dev/null; done; exit 0"#;
    run(Command::new("sh").args(["-c", script, "sh", signal]).args(pids)).map(drop)
}

/// The direct children of a process, from /proc (elsewhere than Linux: none).
pub(crate) fn children_of(parent: u32) -> Vec<u32> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let ids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|pid| stat(*pid).is_some_and(|(_, of)| of == parent)).collect()
}

fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z')
}

/// State and parent of a process. Its name, in parentheses before them, may hold anything.
fn stat(pid: u32) -> Option<(char, u32)> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = line[line.rfind(')')? + 1..].split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// A port of 127.0.0.1 on which nobody listens at this moment.
pub(crate) fn free_port() -> Result<u16> {
    static NEXT: OnceLock<AtomicU32> = OnceLock::new();
    // Processes start at different places, so that they rarely ask for the same port at the same time.
    let next = NEXT.get_or_init(|| AtomicU32::new(std::process::id().wrapping_mul(2_654_435_761) >> 8));
    let width = u32::from(PORTS.end - PORTS.start);
    for _ in 0..width {
        let offset = next.fetch_add(1, Ordering::Relaxed) % width;
        let port = PORTS.start + u16::try_from(offset).expect("the width of a u16 range");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port in {PORTS:?}")
}

/// Where this process keeps everything it throws away, and who sweeps it when we are gone.
struct Root {
    folder: PathBuf,
    /// Never read: its stdin is the pipe whose closing wakes the janitor.
    _janitor: Child,
}

/// Waits until our end of the pipe closes (we ended, or were killed), then ends what still runs and removes all.
/// Bounded: five seconds for the servers, then SIGKILL.
const JANITOR: &str = r#"
cat >/dev/null
pids=""
for file in "$1"/*/pid; do
  [ -f "$file" ] || continue
  read -r signal pid <"$file" || continue
  kill -s CONT "$pid" && kill -s "$signal" "$pid" && pids="$pids $pid"
done
tries=0
while [ "$tries" -lt 50 ]; do
  left=""
  for pid in $pids; do kill -0 "$pid" && left="$left $pid"; done
  [ -n "$left" ] || break
  sleep 0.1; tries=$((tries + 1))
done
for pid in $pids; do kill -s KILL "$pid"; done
for again in 1 2 3 4 5; do rm -rf "$1" && break; sleep 0.2; done
"#;

fn root() -> Result<&'static Root> {
    static ROOT: OnceLock<Result<Root, String>> = OnceLock::new();
    ROOT.get_or_init(|| make_root().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow!("cannot make a throw-away folder: {error}"))
}

fn make_root() -> Result<Root> {
    // A TMPDIR of root's own is often closed to PostgreSQL's user.
    let parent = if is_root() { PathBuf::from("/tmp") } else { std::env::temp_dir() };
    let pattern = parent.join("agent-executor-XXXXXXXX");
    let folder = PathBuf::from(run(Command::new("mktemp").arg("-d").arg(pattern))?);
    passable(&folder)?;
    let mut janitor = Command::new("sh");
    janitor.args(["-c", JANITOR, "janitor"]).arg(&folder).process_group(0).current_dir("/");
    janitor.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let janitor = janitor.spawn().context("cannot start the janitor")?;
    Ok(Root { folder, _janitor: janitor })
}

fn new_folder(label: &str) -> Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let folder = root()?.folder.join(format!("{label}-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    passable(&folder)?;
    Ok(folder)
}

/// Whatever the umask says: PostgreSQL's own user must be able to pass through.
fn passable(folder: &Path) -> Result<()> {
    Ok(fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?)
}

/// Off the runtime's threads: also keeps a paused clock from running ahead of the real servers.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context("a server's start or stop panicked")?
}

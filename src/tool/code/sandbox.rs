//! The command line that a script's process is started with: namespaces, user and limits, set by the programs of
//! util-linux before anything of the script is read.
//!
//! **Invariant:** the process inherits no environment and no open file but the three standard ones.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    process::Stdio,
};

use tokio::process::Command;

use super::{Sandboxing, ScriptConfig};

/// Where programs are looked for; the only variable of a script besides its home and its encoding.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Open files of a process: a script reads modules, and opens little else.
const OPEN_FILES: u64 = 128;

/// Largest file a process may write, and all of its `/tmp`, in bytes.
const FILE_BYTES: u64 = 64 << 20;

/// Folders whose files other users can often read, and that are no business of a script: tokens and homes.
const HIDDEN: &[&str] =
    &["/root", "/home", "/run/secrets", "/var/run/secrets", "/etc/secrets", "/vault/secrets"];

/// Makes the file system of the process, runs the rest of the arguments in it and waits for them. It stays their
/// parent, the first process of its namespace and root's: when it dies, all die, whoever they have become.
const PREPARE: &str = r#"
set -e
bytes=$1; shift
while [ "$1" != -- ]; do
  if [ -d "$1" ]; then mount -t tmpfs -o ro,size=4k,mode=0 none "$1"; fi
  shift
done
shift
mount -t tmpfs -o "size=$bytes,mode=1777,nosuid,nodev" none /tmp
if [ -d /dev/shm ]; then mount -t tmpfs -o "size=$bytes,mode=1777,nosuid,nodev" none /dev/shm; fi
cd /tmp
"$@"
exit $?
"#;

/// What a process of a runner may use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    /// The user it runs under; none leaves it with this process's own.
    pub(super) user: Option<u32>,
    /// Processes and threads; none leaves them alone.
    pub(super) processes: Option<u64>,
    /// Address space in bytes.
    pub(super) address_space: u64,
}

/// Whether this process may give another user to its children.
pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// `program` with `arguments`, to be started with all limits.
pub(super) fn command(
    config: &ScriptConfig,
    allowance: Allowance,
    program: &OsStr,
    arguments: &[OsString],
) -> Command {
    let mut line: Vec<OsString> = Vec::new();
    if config.sandbox == Sandboxing::Strict {
        line.extend(namespaces(config, program));
    }
    line.extend(user(config, allowance).map(OsString::from));
    line.extend(limits(config, allowance).map(OsString::from));
    line.push(program.to_owned());
    line.extend_from_slice(arguments);
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]).env_clear();
    command.envs([("PATH", PATH), ("HOME", "/tmp"), ("LANG", "C.UTF-8")]);
    // Libraries that would start a thread for each processor run into the limit of processes.
    command.envs([("OMP_NUM_THREADS", "1"), ("OPENBLAS_NUM_THREADS", "1"), ("TOKIO_WORKER_THREADS", "1")]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.current_dir("/").process_group(0).kill_on_drop(true);
    command
}

fn namespaces(config: &ScriptConfig, program: &OsStr) -> Vec<OsString> {
    let mut line = vec!["unshare"];
    if !is_root() {
        line.extend(["--user", "--map-root-user"]);
    }
    if !config.network {
        line.push("--net");
    }
    line.extend(["--mount", "--ipc", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    line.extend(["--", "sh", "-c", PREPARE, "sh"]);
    let mut line: Vec<OsString> = line.into_iter().map(OsString::from).collect();
    line.push(FILE_BYTES.to_string().into());
    // A program that is installed in a home stays in sight.
    let program = std::fs::canonicalize(program).unwrap_or_else(|_| program.into());
    line.extend(HIDDEN.iter().filter(|folder| !program.starts_with(Path::new(folder))).map(OsString::from));
    line.push("--".into());
    line
}

fn user(config: &ScriptConfig, allowance: Allowance) -> impl Iterator<Item = String> {
    let mut line = vec!["setpriv".to_owned(), "--no-new-privs".into()];
    match (allowance.user, config.sandbox) {
        (Some(user), Sandboxing::Strict | Sandboxing::Limits) => {
            line.extend([format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".into()]);
        }
        // Root of its own namespace only, and even there without its privileges.
        (None, Sandboxing::Strict) => {
            line.extend(["--bounding-set=-all", "--inh-caps=-all"].map(str::to_owned))
        }
        (None, Sandboxing::Limits) => {}
    }
    line.into_iter()
}

fn limits(config: &ScriptConfig, allowance: Allowance) -> impl Iterator<Item = String> {
    // The time that counts is that on the clock; this one ends what nobody waits for any more.
    let cpu = config.timeout.as_secs() + 2;
    let mut line = vec![
        "prlimit".to_owned(),
        format!("--as={}", allowance.address_space),
        format!("--cpu={cpu}"),
        format!("--nofile={OPEN_FILES}"),
        format!("--fsize={FILE_BYTES}"),
        "--core=0".into(),
        "--memlock=0".into(),
    ];
    line.extend(allowance.processes.map(|most| format!("--nproc={most}")));
    line.into_iter()
}

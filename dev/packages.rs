//! Programs that tests get from registries: in the build folder, installed once for all tests that run at the same time.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

/// How often an installation is tried: registries have bad moments.
const TRIES: u32 = 3;

/// The build folder, which runs share.
pub(crate) fn build_folder() -> PathBuf {
    let shared = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    shared.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"))
}

/// Runs the installation into the folder `name`, unless that is done, and says where the folder is. A lock file keeps
/// test processes from installing at the same time.
pub(crate) fn installed(name: &str, install: impl Fn(&Path) -> Command) -> PathBuf {
    let all = build_folder().join("packages");
    fs::create_dir_all(&all).expect("the build folder can be written");
    let lock = File::create(all.join(format!("{name}.lock"))).expect("the build folder can be written");
    lock.lock().expect("files can be locked");
    let folder = all.join(name);
    let ready = folder.join("ready");
    let mut tried = 0;
    while !ready.exists() {
        tried += 1;
        let mut command = install(&folder);
        let output = command.output().unwrap_or_else(|error| {
            panic!("{name} cannot be installed: {command:?} does not start: {error}; run scripts/setup.sh")
        });
        if output.status.success() {
            File::create(&ready).expect("the build folder can be written");
        } else if tried == TRIES {
            let said = String::from_utf8_lossy(&output.stderr);
            panic!(
                "{name} cannot be installed; this needs its registry or a mirror of it: {command:?}\n{said}"
            );
        }
    }
    folder
}

/// Packages from npm, as `name@version`; says where their `node_modules` are.
pub(crate) fn from_npm(packages: &[&str]) -> PathBuf {
    let name = packages.join("_").replace(['@', '/'], "-");
    let folder = installed(name.trim_start_matches('-'), |folder| {
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--no-save", "--prefix"]).arg(folder).args(packages);
        npm
    });
    folder.join("node_modules")
}

/// The reference servers of MCP, pinned.
const MCP_SERVERS: [&str; 2] = [
    "@modelcontextprotocol/server-everything@2026.8.31",
    "@modelcontextprotocol/server-filesystem@2026.8.31",
];

/// The script of one of them, for node.
pub(crate) fn mcp_server(name: &str) -> String {
    let script = from_npm(&MCP_SERVERS).join("@modelcontextprotocol").join(name).join("dist/index.js");
    script.display().to_string()
}

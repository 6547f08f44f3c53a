"""Builds the image without a Docker daemon and runs it as a cluster would: as its user, read-only, without capabilities."""
import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time
import uuid

import checks

MEGABYTE = 1_000_000
# Of the program as the image has it (profile `dist`); one that was built for tests is more than twice as large.
LARGEST = {"dist": 40 * MEGABYTE, "debug": 100 * MEGABYTE}


def binary():
    return pathlib.Path(os.environ["AGENT_EXECUTOR"])


def profile():
    return "dist" if binary().parent.name == "dist" else "debug"


def size_of(folder):
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def content_problems(folder, largest):
    """What must not be in an image, or is missing."""
    problems = []
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    problems += [f"the image holds {name}" for name in sorted(names & {"sh", "bash", "busybox", "dash", "apt", "perl", "python3"})]
    wanted = ("usr/local/bin/agent-executor", "etc/ssl/certs/ca-certificates.crt", "etc/passwd", "etc/nsswitch.conf")
    problems += [f"the image has no /{name}" for name in wanted if not (folder / name).is_file()]
    problems += [f"/{path.relative_to(folder)} runs as another user" for path in folder.rglob("*")
                 if path.is_file() and path.stat().st_mode & 0o6000]
    if size_of(folder) > largest:
        problems.append(f"the image has {size_of(folder) / MEGABYTE:.1f} MB, more than {largest / MEGABYTE:.0f}")
    return problems


def config_problems(config):
    """What the configuration of the image must say."""
    wanted = {"User": "65532:65532", "Entrypoint": ["/usr/local/bin/agent-executor"], "Cmd": ["serve"]}
    problems = [f"{key} is {config.get(key)}, not {value}" for key, value in wanted.items() if config.get(key) != value]
    test = (config.get("Healthcheck") or {}).get("Test") or []
    if test[:1] != ["CMD"] or test[-1:] != ["probe"]:
        problems.append(f"the health check is {test}, not the program's own")
    labels = config.get("Labels") or {}
    names = ("title", "source", "licenses", "version", "revision", "documentation")
    return problems + [f"label {name} is missing" for name in names if not labels.get(f"org.opencontainers.image.{name}")]


def layer_problems(dockerfile, folder):
    """Whether Cargo can read what the layer of the dependencies makes: program and library need a stand-in."""
    text = re.sub(r"\\\n\s*", "", dockerfile)
    run = re.search(r"^RUN (mkdir -p src .*?) && cargo build", text, re.M)
    if not run:
        return ["no layer for the dependencies"]
    for name in ("Cargo.toml", "Cargo.lock"):
        shutil.copy(checks.ROOT / name, folder / name)
    subprocess.run(["sh", "-euc", run[1]], cwd=folder, check=True, timeout=60)
    command = ["cargo", "metadata", "--locked", "--offline", "--no-deps", "--format-version", "1"]
    return checks.complaint(checks.run(*command, folder=folder))


def version_problems(dockerfile, chart, cargo):
    """Versions that must be the same in several files: of the program, of Rust, of the Debian that both bases are."""
    version = re.search(r'^version = "(.+)"', cargo, re.M)[1]
    problems = [f"the Dockerfile labels version {found}, Cargo.toml says {version}"
                for found in re.findall(r"^ARG VERSION=(.+)$", dockerfile, re.M) if found != version]
    problems += [f"the chart's {field} is {found}, Cargo.toml says {version}"
                 for field, found in re.findall(r"^(version|appVersion): (.+)$", chart, re.M) if found != version]
    bases = dict(re.findall(r"^ARG (RUST_IMAGE|PYTHON_IMAGE)=(.+)$", dockerfile, re.M))
    rust = re.search(r'^rust-version = "(.+)"', cargo, re.M)[1]
    if f":{rust}-" not in bases["RUST_IMAGE"]:
        problems.append(f"RUST_IMAGE is {bases['RUST_IMAGE']}, Cargo.toml wants {rust}")
    if len({base.rpartition("-")[2] for base in bases.values()}) != 1:
        problems.append(f"the bases are of different Debians, and the program names its C library: {bases}")
    return problems


def outside_problems(dockerfile):
    """Files that the sources compile in, and the image's build does not have."""
    copied = set(re.findall(r"^COPY (?!--from)(?:.* )?(\S+) \S+$", dockerfile, re.M))
    problems = []
    for path in (checks.ROOT / "src").rglob("*.rs"):
        for name in re.findall(r'include_(?:str|bytes)!\(\s*"([^"]+)"', path.read_text()):
            inside = (path.parent / name).resolve().relative_to(checks.ROOT)
            if inside.parts[0] not in copied:
                problems.append(f"{path.relative_to(checks.ROOT)} needs {inside}")
    return problems


class Builder:
    """buildah with a store of its own, removed at the end."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.flags = ["--root", f"{folder}/store", "--runroot", f"{folder}/run", "--storage-driver", "vfs"]

    def buildah(self, *arguments):
        done = subprocess.run(["buildah", *self.flags, *map(str, arguments)], capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise RuntimeError(f"buildah {arguments[0]}: {done.stderr}")
        return done.stdout.strip()

    def rootfs(self):
        """What the stage `rootfs` would make, of the program that is built already."""
        made = self.folder / "context"
        made.mkdir(exist_ok=True)
        subprocess.run([checks.ROOT / "scripts/image-rootfs.sh", binary(), made / "rootfs"], check=True, timeout=120)
        return made

    def build(self, dockerfile=checks.ROOT / "Dockerfile", *flags):
        """The image's id. The stages that compile are replaced by their result, so no base is pulled."""
        return self.buildah("bud", "--isolation", "chroot", "--format", "docker", "--timestamp", "0", "--quiet",
                            "--build-context", f"rootfs={self.rootfs()}", "--build-arg", "GIT_COMMIT=test", *flags,
                            "--file", dockerfile, checks.ROOT).splitlines()[-1]

    def build_with_scripts(self):
        """The image with Python, on this machine's own in place of the base that only a registry has."""
        base = self.folder / "python"
        python_base(base / "root")
        (base / "Dockerfile").write_text("FROM scratch\nCOPY root/ /\nENV PATH=/usr/local/bin:/usr/bin:/bin\n")
        name = "localhost/python-stand-in"
        self.buildah("bud", "--isolation", "chroot", "--quiet", "--tag", name, base)
        return self.build(checks.ROOT / "Dockerfile", "--target", "with-scripts", "--pull-never",
                          "--build-arg", f"PYTHON_IMAGE={name}")

    def config(self, image):
        return json.loads(self.buildah("inspect", "--type", "image", image))["Docker"]["config"]

    def layers(self, image):
        """Digests of what is in it; the configuration of Docker's format names the container that built it."""
        return json.loads(self.buildah("inspect", "--type", "image", image))["Docker"]["rootfs"]["diff_ids"]

    def unpack(self, image, name="bundle"):
        container = self.buildah("from", "--pull-never", image)
        target = self.folder / name / "rootfs"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.buildah("mount", container), target, symlinks=True)
        return target


# What Debian's slim image of Python has of what scripts are run with.
PROGRAMS = ("python3", "sh", "unshare", "setpriv", "prlimit", "mount")


def python_base(folder):
    """Fills a folder with this machine's Python, its library, and the programs that a sandbox is made with."""
    programs = {name: pathlib.Path(shutil.which(name, path="/usr/bin:/bin")).resolve() for name in PROGRAMS}
    library = pathlib.Path("/usr/lib") / programs["python3"].name
    shutil.copytree(library, folder / "usr/lib" / library.name, ignore_dangling_symlinks=True,
                    ignore=shutil.ignore_patterns("__pycache__", "test", "idlelib", "tkinter", "ensurepip"))
    for name in ("lib", "lib64", "bin"):
        (folder / "usr" / name).mkdir(exist_ok=True)
        (folder / name).symlink_to(f"usr/{name}")
    for name in ("proc", "dev", "sys", "tmp"):
        (folder / name).mkdir()
    for name, program in programs.items():
        shutil.copy(program, folder / "usr/bin" / name)
    # Debian's C library brings libgcc, which the program names as well.
    _, output = checks.run("ldd", binary(), *programs.values(), *(library / "lib-dynload").glob("*.so"))
    for path in sorted(set(re.findall(r"(/\S+) \(0x", output))):
        target = folder / path.lstrip("/")
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)


# What Kubernetes hides of /proc; without it, it is mounted with `procMount: Unmasked`.
MASKED = {"maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"]}


def bundle(folder, arguments, environment, proc=MASKED):
    """The configuration of a container such as the chart asks for; the network is the host's."""
    nothing = {kind: [] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")}
    config = {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 65532, "gid": 65532}, "args": arguments, "cwd": "/", "capabilities": nothing,
            "env": ["PATH=/usr/local/bin", *(f"{key}={value}" for key, value in environment.items())],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777", "size=1m"]},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")], **proc},
    }
    (folder / "config.json").write_text(json.dumps(config))


@contextlib.contextmanager
def running(folder, environment):
    """`serve` under runc; gives a function that runs a further command in the container."""
    state, name = folder / "state", f"agent-executor-{uuid.uuid4()}"
    bundle(folder, ["/usr/local/bin/agent-executor", "serve"], environment)
    runc = ["runc", "--root", str(state)]
    log = open(folder / "log", "w")
    process = subprocess.Popen([*runc, "run", "--bundle", str(folder), name], stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def inside(*arguments):
        command = [*runc, "exec", "--user", "65532:65532", name, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr
    try:
        yield inside, process
    finally:
        subprocess.run([*runc, "delete", "--force", name], capture_output=True, timeout=60)
        process.wait(timeout=60)
        log.close()


def once(folder, arguments, environment, proc=MASKED):
    """Exit code, standard output and errors of one command in a container."""
    bundle(folder, ["/usr/local/bin/agent-executor", *arguments], environment, proc)
    command = ["runc", "--root", str(folder / "state"), "run", "--bundle", str(folder), f"agent-executor-{uuid.uuid4()}"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
    return done.returncode, done.stdout, done.stderr


def until(what, seconds, look):
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        if seen[0] == 0:
            return seen
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: {seen}")
        time.sleep(0.2)


def scratch():
    folder = tempfile.mkdtemp(prefix="agent-executor-image-")
    pathlib.Path(folder).chmod(0o755)
    return folder

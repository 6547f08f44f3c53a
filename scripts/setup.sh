#!/bin/sh
# Gets what the tests and the demo need beyond a Rust toolchain: nats-server, redis-server, PostgreSQL, a Python that
# can make virtual environments, jq, a C compiler and npm. Does nothing when all is there, starts no service, and may be
# run again at any time. Where apt or the right to use it is missing, it says what to install and exits with 1.
set -eu

# An ordinary user's PATH lacks the folders where Debian keeps servers.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

has() { command -v "$1" >/dev/null 2>&1; }
has_postgres() { ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || has initdb; }
has_venv() { has python3 && python3 -c 'import venv, ensurepip' >/dev/null 2>&1; }

missing() {
    has nats-server || echo nats-server
    has redis-server || has valkey-server || echo redis-server
    { has_postgres && has psql; } || echo postgresql
    has_venv || echo python3-venv
    has jq || echo jq
    has cc || echo build-essential
    has node || echo nodejs
    has npm || echo npm
}

if ! has cargo; then
    echo "setup: no Rust toolchain; install one from https://rustup.rs" >&2
    exit 1
fi

packages=$(missing | tr '\n' ' ')
[ -n "$packages" ] || exit 0
echo "setup: missing: $packages"

give_up() {
    echo "setup: $1" >&2
    echo "setup: install these yourself, then run make again: $packages" >&2
    echo "setup: (the names are Debian's; elsewhere: the NATS server with JetStream, Redis or Valkey, PostgreSQL 14 or" >&2
    echo "setup: newer with its client programs, Python 3.10 or newer with venv and pip, jq, a C compiler, Node.js with npm)" >&2
    exit 1
}

has apt-get || give_up "this machine has no apt-get"
if [ "$(id -u)" = 0 ]; then
    as_root=""
elif has sudo; then
    as_root="sudo"
else
    give_up "installing needs root or sudo"
fi

# Debian starts a server when its package is installed. A policy file forbids it for the while, since the tests start
# their own servers; a policy that is already there stays as it is.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '$as_root rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
fi

$as_root apt-get update -qq || give_up "apt-get update failed"
# shellcheck disable=SC2086  # the list is meant to be split
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages ||
    give_up "apt-get install failed"

packages=$(missing | tr '\n' ' ')
[ -z "$packages" ] || give_up "still missing after the installation"
echo "setup: done"

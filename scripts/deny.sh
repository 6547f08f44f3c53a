#!/bin/sh
# Known security advisories against our dependencies: asked where cargo-deny and a copy of its database are at hand,
# never fetched, since the check must also run on machines without that network.
set -eu
databases="${CARGO_HOME:-$HOME/.cargo}"
if ! command -v cargo-deny >/dev/null 2>&1; then
    echo "deny: not asked, cargo-deny is not installed"
elif ! ls -d "$databases"/advisory-db* >/dev/null 2>&1; then
    echo "deny: not asked, there is no advisory database under $databases"
else
    cargo deny --offline check advisories
fi

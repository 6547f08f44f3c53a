# Bare `make` lists the targets. Everything a person or CI does with this repository starts here.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# In CI the lock file must already be right; at a desk cargo may update it.
LOCKED := $(if $(CI),--locked,)
# A real model for the demo, e.g. MODEL=openai:gpt-4o-mini (needs OPENAI_API_KEY). Empty: the scripted one.
export MODEL
# Less of `make bench`: at most so many jobs per turn, only these of jobs,supersteps,tokens,memory,recovery.
export JOBS
export ROWS
# How long `make chaos` makes trouble, and which: the same seed makes the same faults and jobs.
MINUTES ?= 5
export CHAOS_SECONDS ?=
export CHAOS_SEED ?= $(SEED)

.PHONY: help setup demo test check check-deploy image lint fmt bench chaos

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## get what is missing (apt): nats-server, redis-server, PostgreSQL, python3-venv, jq
	@scripts/setup.sh

demo: setup ## run one deep-agent job on real throw-away servers (MODEL=openai:gpt-4o-mini for a real model)
	@cargo build $(LOCKED) --quiet --bin agent-executor --example demo
	@cargo run $(LOCKED) --quiet --example demo

test: setup ## run every test, the live ones with real servers included
	cargo test $(LOCKED) --no-fail-fast

check: setup lint ## everything CI asks for: lint, docs, graph definitions, tests, check-deploy
	RUSTDOCFLAGS="-D warnings" cargo doc $(LOCKED) --no-deps --document-private-items --quiet
	cargo run $(LOCKED) --quiet --bin agent-executor -- validate graph-definitions/*.json
	@scripts/deny.sh
	cargo test $(LOCKED) --no-fail-fast
	@scripts/check-deploy.sh

check-deploy: setup ## chart, KEDA, Crossplane, image, alerts, dashboards, documents: each check, and that it finds mistakes
	@scripts/check-deploy.sh

image: ## the image of the optimized program, checked as check-deploy does (at most 40 MB)
	cargo rustc $(LOCKED) --profile dist --bin agent-executor -- -C link-arg=-Wl,-z,pack-relative-relocs
	@AGENT_EXECUTOR=$(abspath $(or $(CARGO_TARGET_DIR),target))/dist/agent-executor scripts/check-deploy.sh -p 'test_image.py'

lint: ## formatting and clippy, warnings are errors
	cargo fmt --all -- --check
	cargo clippy $(LOCKED) --all-targets -- -D warnings

fmt: ## format the code
	cargo fmt --all

bench: setup ## speed, memory, recovery on real servers beside raw limits (ROWS=jobs,tokens JOBS=n for less)
	cargo bench $(LOCKED) --bench load

chaos: setup ## kill, pause, cut off and restart everything under load, then check every promise (MINUTES=n, SEED=n)
	@CHAOS_MINUTES=$(MINUTES) RUST_BACKTRACE=0 cargo test $(LOCKED) --test it chaos::nothing -- --nocapture

# Two commands matter: `make demo` and `make test`. `make` alone lists the rest.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# rustup's folder is not in the PATH of every shell.
export PATH := $(PATH):$(HOME)/.cargo/bin

target := $(abspath $(or $(CARGO_TARGET_DIR),target))
venv := $(target)/venv
# Where the integration tests find a Python with the OpenAI and Anthropic SDKs.
export MILLRACE_TEST_PYTHON = $(venv)/bin/python
# Where the comparison's report goes.
BENCH_OUT ?= $(target)/bench

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The demo runs what the dev profile gives: all of it is 4 minutes of CPU, half of that on two cores, and `make test` uses
# most of it too. The release profile, which optimises each program as a whole when it links, took 11 minutes on two cores.
.PHONY: demo
demo: ## a mock model, a master and an edge, one answer streamed through it; Ctrl-C ends it (DEMO_ONCE=1: ends by itself)
	@echo 'make demo, 1 of 3: the system packages that are needed'
	@make/packages demo
	@echo 'make demo, 2 of 3: building its four programs, the first time two to five minutes on two cores'
	@make/programs
	@echo 'make demo, 3 of 3: starting them'
	@demo/run '$(target)/debug'

.PHONY: units
units: ## as root: the three systemd units, installed as the READMEs say, in a throw-away copy of this host
	@make/packages units
	@$(MAKE) --no-print-directory build
	@demo/units '$(target)/release'

.PHONY: build
build: ## release builds of the data plane, the agent, the master and the bench tool
	cargo build --locked --release -p dataplane -p control-agent -p master-lite -p bench

.PHONY: test
test: ## everything that must pass: format, lints, all tests, docs, scripts
	@make/packages test
	@make/python '$(venv)'
	cargo fmt --all --check
	make/shell
	@$(MAKE) --no-print-directory lint
	# Tests of one package run the programs of another: build them all first.
	cargo build --locked --workspace
	cargo test --locked --workspace
	@$(MAKE) --no-print-directory doc

.PHONY: bench
bench: ## beside nginx, HAProxy and Caddy: all rows, 15 to 25 minutes; report in target/bench (BENCH_ARGS='--rows 1,4')
	@$(MAKE) --no-print-directory compare

.PHONY: bench-quick
bench-quick: ## the same in two minutes: fewer rows, too few rounds for a verdict
	@$(MAKE) --no-print-directory compare BENCH_ARGS='--quick $(BENCH_ARGS)'

.PHONY: compare
compare:
	@make/packages bench
	@$(MAKE) --no-print-directory build
	'$(target)/release/millrace-bench' compare --out '$(BENCH_OUT)' $(BENCH_ARGS)

.PHONY: fmt
fmt: ## format the code
	cargo fmt --all

.PHONY: lint
lint: ## clippy, warnings denied
	cargo clippy --locked --workspace --all-targets -- -D warnings

.PHONY: doc
doc: ## API documentation, warnings denied
	RUSTDOCFLAGS=-Dwarnings cargo doc --locked --workspace --no-deps

.PHONY: deny
deny: ## licences, advisories and sources of all dependencies (needs cargo-deny)
	@command -v cargo-deny >/dev/null || { echo 'cargo-deny is missing: cargo install --locked cargo-deny'; exit 1; }
	cargo deny check

.PHONY: clean
clean: ## remove what was built
	cargo clean

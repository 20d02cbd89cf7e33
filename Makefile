# Two commands to begin with: `make run` (the tour, Ctrl-C ends it; ONCE=1 ends by itself) and `make test`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
BINARY := target/release/streamgate

.PHONY: help deps build run test soak fuzz fuzz-smoke lint doc bench bench-smoke bench-instructions compose-check clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

deps: ## install what the build, the tests and the benches need (protoc, etcd, openssl, dnsmasq, mosquitto, prometheus, rsyslogd, valgrind)
	@scripts/deps.sh

build: deps ## target/release/streamgate
	cargo build --release --locked

run: build ## the tour: etcd, two upstreams, a gateway, routes that change
	cargo build --release --locked -p streamgate-conformance
	@target/release/tour $(BINARY)

test: deps ## every test
	@if cargo nextest --version >/dev/null 2>&1; then \
	  cargo nextest run --workspace --locked --test-threads $$((2 * $$(nproc))); \
	else \
	  cargo test --workspace --locked; \
	fi

soak: deps ## long versions of the relay's tests: 10 GB through changing flows, 100,000 connections
	SOAK_CYCLES=5000 cargo test --release --locked --test relay changes_between -- --nocapture
	SOAK_CYCLES=1000 cargo test --release --locked --test whole_process leave_no_descriptors -- --nocapture

fuzz: ## fuzz what reads strangers' first bytes, FUZZ_SECONDS=600 a target (installs cargo-fuzz)
	scripts/fuzz.sh long

fuzz-smoke: deps ## that for FUZZ_SECONDS=5 a target, on stable and without cargo-fuzz
	@scripts/fuzz.sh smoke

lint: deps ## formatting, lints, documentation
	cargo fmt --all -- --check
	cargo fmt --manifest-path fuzz/Cargo.toml -- --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

bench: build ## the numbers of docs/performance.md, beside nginx, HAProxy and Envoy (ARGS: see benches/run.sh)
	cargo build --release --locked -p streamgate-conformance
	benches/run.sh $(ARGS)

bench-smoke: build ## that comparison in half a minute, without limits: does it still measure?
	cargo build --release --locked -p streamgate-conformance
	BENCH=smoke benches/run.sh $(ARGS)

bench-instructions: build ## user-space instructions a connection, request, datagram, megabyte, handshake, against benches/instructions.txt
	cargo build --release --locked -p streamgate-conformance --bin instructions
	target/release/instructions $(BINARY) benches/instructions.txt $(if $(UPDATE),--update)

compose-check: ## docker-compose.yml reads as it should
	docker-compose config -q

clean: ## remove what was built
	cargo clean

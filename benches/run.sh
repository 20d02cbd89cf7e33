#!/usr/bin/env bash
# `make bench`: the figures of docs/performance.md. Machines are noisy: compare medians.
set -euo pipefail
cd "$(dirname "$0")/.."
target/release/bench_config target/release/streamgate \
  latency 1000 latency 100000 load 100000 start 10000
cargo bench --locked --quiet

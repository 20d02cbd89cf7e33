#!/usr/bin/env bash
# `make bench`: the figures of docs/performance.md with their limits; fails where a median misses its own.
# Machines are noisy: run it on a quiet one, and compare medians.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo bench --locked --quiet --bench '*'
target/release/bench target/release/streamgate \
  latency 1000 latency 100000 load 100000 start 10000 scrape 10000 flat 100000 criterion target/criterion

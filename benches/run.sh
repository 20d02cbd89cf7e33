#!/usr/bin/env bash
# `make bench`: the figures of docs/performance.md with their limits; fails where a median misses its
# own. Machines are noisy: run it on a quiet one, and compare medians. Arguments go to `compare`, whose
# options target/release/compare tells.
#
# BENCH=compare: the comparison of the data path alone.
# BENCH=smoke: the same in half a minute, with the peers that are installed and without limits; fails
# where a figure is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
gateway=target/release/streamgate results=target/bench
export PATH="$PWD/target/peers/bin:$PATH:/usr/sbin"

if [ "${BENCH:-}" = smoke ]; then
  exec target/release/compare "$gateway" --json $results/smoke.json --installed --report \
    --rounds 1 --turns 1 --seconds 0.2 --idle 450 "$@"
fi

scripts/peers.sh
failed=0
if [ "${BENCH:-}" != compare ]; then
  cargo bench --locked --quiet --bench '*'
  target/release/bench "$gateway" latency 1000 latency 100000 load 100000 start 10000 scrape 10000 flat 100000 \
    certificates 10000 \
    criterion target/criterion json $results/configuration.json || failed=1
  target/release/disturbance "$gateway" || failed=1
fi
target/release/compare "$gateway" --json $results/compare.json --write docs/performance.md "$@" || failed=1
exit $failed

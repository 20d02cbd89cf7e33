#!/usr/bin/env bash
# Fuzzes what reads the first bytes of strangers, FUZZ_SECONDS for each target of fuzz/ or for those named
# after the mode.
#
#   fuzz.sh long   600 s each; built by cargo-fuzz with AddressSanitizer, which stable builds when it is told
#                  that it may (RUSTC_BOOTSTRAP). Installs cargo-fuzz where it is missing.
#   fuzz.sh smoke  5 s each; built by cargo with the coverage flags that cargo-fuzz passes and no sanitizer
#                  (there is no unsafe code to watch), so that it needs nothing but a C++ compiler.
#   fuzz.sh keep   takes what `long` found into fuzz/corpus, as far as it reaches code nothing there does.
#
# A failure leaves its input in fuzz/artifacts; put it into fuzz/corpus under a name that says what it is,
# and tests/fuzz_corpus.rs fails too until it is mended.
set -euo pipefail
cd "$(dirname "$0")/.."
targets=("${@:2}")
[ $# -gt 1 ] || targets=(client_hello mqtt_connect proxy_header)
host=$(rustc -vV | sed -n 's/^host: //p')
plain=fuzz/target/plain

# So that the limits of the readers, 16 KiB and 4 KiB, can be passed; that of a CONNECT is its own length.
max_len() { [ "$1" = client_hello ] && echo 17000 || echo 4200; }

build_plain() {
  # With --target, or build scripts would be compiled with these flags too.
  RUSTFLAGS="--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares" \
    cargo build --quiet --release --locked --manifest-path fuzz/Cargo.toml --target "$host" --target-dir $plain
}

for target in "${targets[@]}"; do
  mkdir -p "fuzz/target/found/$target" "fuzz/artifacts/$target"
done

case "${1:-}" in
  long)
    cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked
    for target in "${targets[@]}"; do
      RUSTC_BOOTSTRAP=1 cargo fuzz run "$target" "fuzz/target/found/$target" "fuzz/corpus/$target" -- \
        -max_total_time="${FUZZ_SECONDS:-600}" -max_len="$(max_len "$target")" -timeout=10 -print_final_stats=1
    done
    ;;
  smoke)
    build_plain
    for target in "${targets[@]}"; do
      # What is found goes nowhere: each run begins at the corpus.
      work=$(mktemp -d)
      mkdir "$work/found"
      "$plain/$host/release/$target" -max_total_time="${FUZZ_SECONDS:-5}" -max_len="$(max_len "$target")" \
        -timeout=10 -artifact_prefix="fuzz/artifacts/$target/" "$work/found" "fuzz/corpus/$target" \
        >"$work/log" 2>&1 || { tail -n 50 "$work/log" >&2; echo "$target fails; work in $work" >&2; exit 1; }
      echo "ok    $target: $(sed -n 's/^Done //p' "$work/log")"
      rm -rf "$work"
    done
    ;;
  keep)
    build_plain
    for target in "${targets[@]}"; do
      "$plain/$host/release/$target" -set_cover_merge=1 -use_counters=0 \
        "fuzz/corpus/$target" "fuzz/target/found/$target" 2>&1 | tail -1
    done
    ;;
  *)
    echo "usage: fuzz.sh long|smoke|keep [target...]" >&2
    exit 64
    ;;
esac

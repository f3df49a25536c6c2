#!/usr/bin/env bash
# Without an AWS account: a run between two encrypted buckets of a double of S3 and KMS. First its role lacks a right and
# preflight says which; then the right is there, and the run publishes.
# usage: scripts/demo-s3.sh   (RUNSEAL and AWS_DOUBLE name other binaries than those built here)
# promise: T-30
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$(id -u)" != 0 ] && ! unshare -Ur true 2>/dev/null; then
    echo "SKIP: demo-s3: needs root or user namespaces"
    exit 0
fi
[ -r /dev/fuse ] && [ -w /dev/fuse ] || { echo "SKIP: demo-s3: /dev/fuse cannot be opened"; exit 0; }
if [ -z "${RUNSEAL:-}" ] || [ -z "${AWS_DOUBLE:-}" ]; then
    cargo build --bin runseal --example aws_double
fi
target=${CARGO_TARGET_DIR:-target}/debug
runseal=$(realpath "${RUNSEAL:-$target/runseal}")
aws_double=$(realpath "${AWS_DOUBLE:-$target/examples/aws_double}")

tmp=$(mktemp -d /var/tmp/runseal-s3-XXXXXX)
double=
trap '[ -z "$double" ] || kill "$double"; rm -rf "$tmp"' EXIT
say() { printf '\n== %s\n' "$*"; }
fail() { echo "demo-s3: $*" >&2; exit 1; }
# Requests to the admin port of the double: no client but the shell is needed.
admin() { # method, path, [body]
    local url=${admin_url#http://} body=${3:-} answer
    exec 3<>"/dev/tcp/${url%:*}/${url#*:}"
    printf '%s %s HTTP/1.0\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s' \
        "$1" "$2" "$url" "${#body}" "$body" >&3
    answer=$(cat <&3)
    exec 3>&-
    [[ $answer == HTTP/1.?\ 200* ]] || fail "$1 $2: ${answer%%$'\r'*}"
    printf '%s\n' "${answer#*$'\r\n\r\n'}"
}

say "a double of S3, KMS and STS, on this machine only"
"$aws_double" --ready "$tmp/ready" >"$tmp/double.log" 2>&1 &
double=$!
for _ in $(seq 100); do
    if [ -e "$tmp/ready" ]; then break; fi
    kill -0 "$double" 2>/dev/null || fail "the double ended: $(cat "$tmp/double.log")"
    sleep 0.1
done
cat "$tmp/ready"
admin_url=$(sed 's/.*"admin":"\([^"]*\)".*/\1/' "$tmp/ready")
eval "$(admin GET /environment/runner)"

say "reads go into the bucket inputs, which encrypts under a KMS key of its own"
admin PUT /objects/inputs/reads/sample.fq $'@r1\nGATTACA\n+\nFFFFFFF' >/dev/null
admin GET /objects/inputs

run() {
    "$runseal" run --input s3://inputs/reads/ --output s3://outputs/run-1/ --audit "$tmp/audit.jsonl" --report "$tmp/report.json" \
        -- sh -euc 'grep -c GATTACA "$RUNSEAL_INPUT"/reads/sample.fq >"$RUNSEAL_OUTPUT/count"; env | grep AWS_SECRET && exit 9; true'
}

say "the role of the run may write to the output, but not use its key to decrypt: multipart uploads would fail at the end"
key=arn:aws:kms:eu-central-1:111122223333:key/0a1b2c3d-0000-4000-8000-000000000002
admin PATCH /world '{"personas": {"runner": {"denials": [{"action": "kms:Decrypt", "resource": "'$key'"}]}}}' >/dev/null
status=0
run || status=$?
[ "$status" = 77 ] || fail "the denied run ended with $status instead of 77"

say "the right is given, and the same run works"
admin PATCH /world '{"personas": {"runner": {"denials": []}}}' >/dev/null
run

say "results, the manifest last"
admin GET /objects/outputs
[ "$(admin GET /objects/outputs/run-1/count)" = 1 ] || fail "the result is wrong"
admin GET /objects/outputs/run-1/runseal-manifest.json
[ "$(admin GET /uploads)" = "[]" ] || fail "uploads were left behind"

say "the audit trail, checked"
sed 's/.*"eventSource":"\([^"]*\)".*"eventName":"\([^"]*\)".*/\1 \2/' "$tmp/audit.jsonl" | cut -c1-100
"$runseal" audit verify "$tmp/audit.jsonl"

kill "$double"
wait "$double" || fail "the double did not end well"
double=
echo
echo "demo-s3: denied with status 77 before anything was started, then published"

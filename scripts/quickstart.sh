#!/usr/bin/env bash
# Builds runseal and runs the example: a small analysis of the phage lambda genome in a sealed scratch.
# usage: scripts/quickstart.sh [OUTPUT]      (default: results/lambda, replaced if it exists; RUNSEAL names another binary)
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:-results/lambda}

runseal=${RUNSEAL:-target/release/runseal}

set -x
[ -n "${RUNSEAL:-}" ] || cargo build --release
mkdir -p "$(dirname "$output")"
"$runseal" run --input examples/lambda --output "$output" --overwrite -- \
    sh -c 'sh "$RUNSEAL_INPUT/lambda/pipeline.sh"'
{ set +x; } 2>/dev/null

echo
echo "Published to $output:"
ls -l "$output"
echo
echo "EcoRI cuts phage lambda into:"
grep EcoRI "$output/fragments.tsv"

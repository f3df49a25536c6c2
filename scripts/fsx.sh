#!/usr/bin/env bash
# Contents under long random mixes of operations: fsx with several seeds, two at once, and one with aligned requests.
# usage: scripts/fsx.sh [OPERATIONS]; RUNSEAL_ENGINE=portable|aws-lc chooses the cipher engine.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x target/tools/bin/fsx ] || cargo install --quiet --locked --root target/tools fsx@0.3.2
export RUNSEAL_FSX_OPERATIONS=${1:-20000}
exec cargo test --quiet --test mounted -- --exact suites::fsx_finds_no_difference --show-output

#!/usr/bin/env bash
# POSIX conformance: pjdfstest on a fresh mount with suid and dev, as root. 0 failures; tests/posix/skips.md says what is
# skipped and why. RUNSEAL_ENGINE=portable|aws-lc chooses the cipher engine.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x target/tools/bin/pjdfstest ] || cargo install --quiet --locked --root target/tools pjdfstest@0.2.2
exec cargo test --quiet --test mounted -- --exact suites::pjdfstest_passes --show-output

#!/usr/bin/env bash
# A real pipeline, sealed and in the open, byte for byte the same: Debian's bowtie2 and samtools over the phage lambda reads of
# bowtie2-examples. usage: scripts/demo-genomics.sh   (RUNSEAL names another binary than target/release/runseal)
# promise: S-50, S-51
set -euo pipefail
cd "$(dirname "$0")/.."
runseal=$(realpath "${RUNSEAL:-target/release/runseal}")
for tool in bowtie2 samtools; do
    command -v $tool >/dev/null || { echo "SKIP: demo-genomics: $tool is not installed (scripts/install-deps.sh)"; exit 0; }
done
[ -x "$runseal" ] || { echo "demo-genomics: $runseal is not built (cargo build --release)" >&2; exit 1; }

tmp=$(mktemp -d /var/tmp/runseal-genomics-XXXXXX)
trap 'rm -rf "$tmp"' EXIT
data=/usr/share/doc/bowtie2/examples
if [ ! -d $data/reads ]; then # not installed, or left out because it counts as documentation
    (cd "$tmp" && apt-get download -qq bowtie2-examples && dpkg-deb -x bowtie2-examples_*.deb deb) ||
        { echo "SKIP: demo-genomics: Debian package bowtie2-examples cannot be had"; exit 0; }
    data=$tmp/deb$data
fi
mkdir -p "$tmp/genomics" "$tmp/plain/work" "$tmp/plain/out"
zcat -f $data/reference/lambda_virus.fa* >"$tmp/genomics/lambda_virus.fa"
for n in 1 2; do zcat -f "$data/reads/reads_$n.fq"* >"$tmp/genomics/reads_$n.fq"; done
cp examples/genomics/align.sh "$tmp/genomics/"

echo "== in the open"
(cd "$tmp/plain/work" && RUNSEAL_INPUT=$tmp RUNSEAL_OUTPUT=$tmp/plain/out sh "$tmp/genomics/align.sh")
echo "== sealed"
"$runseal" run --input "$tmp/genomics" --output "$tmp/sealed" -- sh -c 'sh "$RUNSEAL_INPUT/genomics/align.sh"'

[ -s "$tmp/sealed/runseal-manifest.json" ] || { echo "demo-genomics: no manifest was published" >&2; exit 1; }
cp "$tmp/sealed/runseal-manifest.json" "$tmp/plain/out/"
diff -r "$tmp/plain/out" "$tmp/sealed"
cat "$tmp/sealed/flagstat.txt"
echo "demo-genomics: $(find "$tmp/sealed" -type f | wc -l) files, byte for byte the same sealed and in the open"

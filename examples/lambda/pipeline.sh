#!/bin/sh
# A small real analysis of the phage lambda genome with tools every machine has: base composition, restriction maps,
# open reading frames and an 8-mer spectrum. Runs inside `runseal run`, and outside it when the two directories are named:
#   RUNSEAL_INPUT=examples RUNSEAL_OUTPUT=/tmp/plain sh examples/lambda/pipeline.sh
set -eu
export LC_ALL=C
genome=${RUNSEAL_INPUT:?name the directory that holds lambda/}/lambda/lambda.fa
out=${RUNSEAL_OUTPUT:?name the directory for results}
work=$(mktemp -d) # below TMPDIR: inside the scratch
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"

# 1. One line of sequence, and its checks: a wrong or short genome must not give results.
grep -v '^>' "$genome" | tr -d '\n' | tr 'acgt' 'ACGT' >"$work/plus"
bases=$(wc -c <"$work/plus")
[ "$bases" -eq 48502 ] || { echo "pipeline: $genome has $bases bases, NC_001416.1 has 48502" >&2; exit 1; }
tr 'ACGT' 'TGCA' <"$work/plus" | awk '{ n = length($0); for (i = n; i > 0; i--) printf "%s", substr($0, i, 1) }' >"$work/minus"

# 2. Composition in windows of 500 bases.
awk -v width=500 '{
	print "start\tbases\tgc"
	for (i = 1; i <= length($0); i += width) {
		w = substr($0, i, width); bases = length(w); gc = gsub(/[GC]/, "", w)
		printf "%d\t%d\t%.4f\n", i, bases, gc / bases
	}
}' "$work/plus" >"$out/gc.tsv"

# 3. Restriction fragments, longest first: the ladders on every gel.
digest() { # name, site, bases before the cut
	awk -v name="$1" -v site="$2" -v cut="$3" '{
		last = 0; from = 1
		while ((at = index(substr($0, from), site)) > 0) {
			here = from + at - 2 + cut; print name "\t" here - last; last = here; from += at
		}
		print name "\t" length($0) - last
	}' "$work/plus" | sort -k2,2nr
}
{ digest BamHI GGATCC 1; digest EcoRI GAATTC 1; digest HindIII AAGCTT 1; } >"$out/fragments.tsv"

# 4. Open reading frames of at least 100 codons, both strands.
orfs() { # strand, file
	awk -v strand="$1" -v least=100 '{
		n = length($0)
		for (frame = 1; frame <= 3; frame++) {
			start = 0
			for (i = frame; i + 2 <= n; i += 3) {
				codon = substr($0, i, 3)
				if (!start && codon == "ATG") start = i
				else if (start && (codon == "TAA" || codon == "TAG" || codon == "TGA")) {
					if ((i - start) / 3 >= least) {
						a = start; b = i + 2
						if (strand == "-") { a = n - i - 1; b = n - start + 1 }
						print a "\t" b "\t" strand "\t" (i - start) / 3
					}
					start = 0
				}
			}
		}
	}' "$2"
}
{ orfs + "$work/plus"; orfs - "$work/minus"; } | sort -k1,1n -k2,2n -k3,3 >"$out/orfs.tsv"

# 5. Every 8-mer of both strands, most frequent first.
awk '{ for (i = 1; i + 7 <= length($0); i++) print substr($0, i, 8) }' "$work/plus" >"$work/kmers"
printf '\n' >>"$work/minus"
awk '{ for (i = 1; i + 7 <= length($0); i++) print substr($0, i, 8) }' "$work/minus" >>"$work/kmers"
sort "$work/kmers" | uniq -c | awk '{ print $2 "\t" $1 }' | sort -k2,2nr -k1,1 | gzip -9n >"$out/kmers.tsv.gz"

# 6. What was made.
cd "$out"
sha256sum fragments.tsv gc.tsv kmers.tsv.gz orfs.tsv >SHA256SUMS
echo "pipeline: $bases bases, $(wc -l <orfs.tsv) open reading frames, $(($(wc -l <fragments.tsv))) restriction fragments"

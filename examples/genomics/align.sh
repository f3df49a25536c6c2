#!/bin/sh
# Index, align, sort, index, count: bowtie2 and samtools over the reads in $RUNSEAL_INPUT/genomics, results below
# $RUNSEAL_OUTPUT. Relative names only, so that the command lines which the tools note in their output are the same anywhere.
set -eu
ln -sfn "${RUNSEAL_INPUT:?}/genomics" in
ln -sfn "${RUNSEAL_OUTPUT:?}" out

bowtie2-build --quiet --threads 2 in/lambda_virus.fa lambda
bowtie2 --threads 2 --reorder -x lambda -1 in/reads_1.fq -2 in/reads_2.fq -S aligned.sam 2>out/bowtie2.log
samtools sort --threads 2 -o out/aligned.bam aligned.sam
samtools index out/aligned.bam
samtools flagstat out/aligned.bam >out/flagstat.txt

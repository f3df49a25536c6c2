#!/usr/bin/env bash
# Installs what building and testing need: Debian packages as root where apt exists, test programs of the crate registry
# below target/tools. Otherwise says what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

# command or file that must be there, and the Debian package that brings it
needs=(
    cc:gcc setfacl:acl setfattr:attr sqlite3:sqlite3 git:git unshare:util-linux setpriv:util-linux findmnt:util-linux
    mount:mount losetup:mount mkfs.ext4:e2fsprogs ps:procps perl:perl bowtie2:bowtie2 samtools:samtools
)
missing=()
for need in "${needs[@]}"; do
    command -v "${need%%:*}" >/dev/null || missing+=("${need#*:}")
done
[ -e /usr/include/stdlib.h ] || missing+=(libc6-dev)

if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        echo "installing: ${missing[*]}"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    else
        echo "missing: ${missing[*]} (Debian package names); tests that need them will say SKIP" >&2
    fi
fi

tool() { # crate, version
    [ -x "target/tools/bin/$1" ] || cargo install --quiet --locked --root target/tools "$1@$2"
}
tool pjdfstest 0.2.2
tool fsx 0.3.2

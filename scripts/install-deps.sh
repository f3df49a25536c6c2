#!/usr/bin/env bash
# Installs what building and testing need: Debian packages as root where apt exists, test programs of the crate registry
# below target/tools. Otherwise says what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

# command or file that must be there, and the Debian package that brings it
needs=(
    cc:gcc c++:g++ setfacl:acl setfattr:attr sqlite3:sqlite3 git:git unshare:util-linux setpriv:util-linux findmnt:util-linux
    mount:mount losetup:mount mkfs.ext4:e2fsprogs chattr:e2fsprogs flock:util-linux ps:procps perl:perl bowtie2:bowtie2 samtools:samtools
    rsync:rsync busybox:busybox-static debootstrap:debootstrap openssl:openssl curl:curl
)
missing=()
for need in "${needs[@]}"; do
    command -v "${need%%:*}" >/dev/null || missing+=("${need#*:}")
done
[ -e /usr/include/stdlib.h ] || missing+=(libc6-dev)
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)

if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        echo "installing: ${missing[*]}"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    else
        echo "missing: ${missing[*]} (Debian package names); tests that need them will say SKIP" >&2
    fi
fi

tool() { # crate, version, flags of cargo install
    [ -x "target/tools/bin/$1" ] || cargo install --quiet --locked --root target/tools "$1@$2" "${@:3}"
}
tool pjdfstest 0.2.2
tool fsx 0.3.2
tool cargo-deny 0.18.9 --debug

from_pypi() { # name, packages: into a virtual environment of their own
    local folder=target/tools/$1
    [ -e "$folder/complete" ] && return
    rm -rf "$folder"
    if python3 -m venv "$folder" && "$folder/bin/pip" install --quiet "${@:2}"; then
        touch "$folder/complete"
    else
        echo "no $1 from PyPI" >&2
    fi
}
# Workflow engines, for tests/deploy. Without PyPI those tests say SKIP.
from_pypi engines cwltool==3.3.20260925135507 snakemake==9.27.1
# A second opinion on IAM and S3 beside the double of tests/support/aws_double. Without PyPI tests/aws/ministack.rs says SKIP.
from_pypi ministack ministack==1.5.33
# Requests made up from docs/openapi.json. Without PyPI tests/serve/fuzz.rs says SKIP.
from_pypi schemathesis schemathesis==4.32.5

# A root file system with systemd, for tests/deploy. Without debootstrap or Docker those tests say SKIP.
rootfs=target/tools/systemd.tar
if ! [ -e $rootfs ] && [ "$(id -u)" -eq 0 ] && command -v debootstrap >/dev/null && command -v docker >/dev/null; then
    suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-bookworm}")
    tree=$(mktemp -d -p target/tools)
    if debootstrap --variant=minbase --include=systemd,dbus "$suite" "$tree" >"$tree.log" 2>&1; then
        rm -rf "$tree"/var/cache/apt/* "$tree"/var/lib/apt/lists/* "$tree"/usr/share/{doc,locale,man}
        tar -C "$tree" -cf $rootfs.new . && mv $rootfs.new $rootfs
    else
        tail -n 3 "$tree.log" >&2
        echo "no system from debootstrap" >&2
    fi
    rm -rf "$tree" "$tree.log"
fi

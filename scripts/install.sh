#!/usr/bin/env bash
# Installs runseal: the program, its manual pages, completions for bash, zsh and fish, the systemd units, the mount helper
# and a sample configuration. Tells each file it writes; run again, it changes nothing that is right already.
#
# usage: scripts/install.sh [--prefix DIR] [--destdir DIR] [--binary FILE] [--uninstall]
#   --prefix DIR    where programs and their data go [default: /usr/local]
#   --destdir DIR   put before every path, to build a package; nothing on this machine is told
#   --binary FILE   the program [default: target/release/runseal, built if absent]
#   --uninstall     remove what was installed; a configuration that was changed stays
set -euo pipefail
# Whatever the caller's is: what is installed is for everybody to read and for root to write.
umask 022
here=$(cd "$(dirname "$0")/.." && pwd)
prefix=/usr/local destdir='' binary='' uninstall=no

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case $1 in
    --prefix | --destdir | --binary)
        [ $# -ge 2 ] || fail "$1 needs a value"
        printf -v "${1#--}" %s "$2"
        shift 2
        ;;
    --uninstall) uninstall=yes && shift ;;
    -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;;
    *) fail "unknown argument $1; see --help" ;;
    esac
done
case $prefix in /*) ;; *) fail "--prefix must be an absolute path" ;; esac
prefix=${prefix%/}

# systemd and mount(8) look in places of their own.
case $prefix in
'' | /usr | /usr/local) units=${prefix:-/usr}/lib/systemd/system ;;
*) units=/etc/systemd/system ;;
esac
helper=/sbin/mount.fuse.runseal
[ ! -L /sbin ] || helper=/usr/sbin/mount.fuse.runseal
config=/etc/runseal/serve.toml
root=/mnt/runseal
man=$prefix/share/man
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT

# Everything that is installed, below $stage.
build() {
    if [ -z "$binary" ]; then
        binary=$here/target/release/runseal
        [ -x "$binary" ] || (cd "$here" && cargo build --release --locked)
    fi
    [ -x "$binary" ] || fail "$binary is not a program; build it with: cargo build --release"
    place 755 "$binary" "$prefix/bin/runseal"
    mkdir -p "$stage$man/man1" "$stage$man/man8"
    "$binary" man "$stage$man/man1"
    [ ! -e "$stage$man/man1/mount.fuse.runseal.8" ] || mv "$stage$man/man1/mount.fuse.runseal.8" "$stage$man/man8/"
    chmod 644 "$stage$man"/man*/*
    generate bash "$prefix/share/bash-completion/completions/runseal"
    generate zsh "$prefix/share/zsh/site-functions/_runseal"
    generate fish "$prefix/share/fish/vendor_completions.d/runseal.fish"
    local unit
    for unit in runseal.service runseal.socket runseal@.service; do
        place 644 "$here/deploy/systemd/$unit" "$units/$unit"
        sed -i "s#/usr/local/bin/#$prefix/bin/#; s#/usr/share/doc/#$prefix/share/doc/#" "$stage$units/$unit"
    done
    [ ! -e "$here/docs/operations.md" ] || place 644 "$here/docs/operations.md" "$prefix/share/doc/runseal/operations.md"
    mkdir -p "$stage${helper%/*}"
    ln -s "$prefix/bin/runseal" "$stage$helper"
    place 644 "$here/deploy/systemd/serve.toml" "$config"
}

place() { # mode, file, destination
    mkdir -p "$stage${3%/*}"
    cp "$2" "$stage$3"
    chmod "$1" "$stage$3"
}

generate() { # shell, destination
    mkdir -p "$stage${2%/*}"
    "$binary" completions "$1" >"$stage$2"
    chmod 644 "$stage$2"
}

staged() {
    (cd "$stage" && find . -type f -o -type l) | sed 's/^\.//' | sort
}

is_same() { # of two paths
    if [ -L "$1" ] || [ -L "$2" ]; then
        [ "$(readlink "$1")" = "$(readlink "$2" 2>/dev/null)" ]
    else
        cmp -s "$1" "$2" && [ "$(stat -c %a "$1")" = "$(stat -c %a "$2")" ]
    fi
}

install_all() {
    local path target
    # Where the sample configuration lets the daemon mount.
    mkdir -p "$destdir$root"
    for path in $(staged); do
        target=$destdir$path
        if [ "$path" = $config ] && [ -e "$target" ]; then
            is_same "$stage$path" "$target" || echo "kept       $target (yours; a sample is deploy/systemd/serve.toml)"
        elif ! is_same "$stage$path" "$target"; then
            # By renaming: a program that runs is not disturbed, and nobody sees half a file.
            mkdir -p "${target%/*}"
            cp -P --preserve=mode "$stage$path" "$target.new"
            mv -fT "$target.new" "$target"
            echo "installed  $target"
        fi
    done
}

remove_all() {
    local path target
    for path in $(staged); do
        target=$destdir$path
        if [ "$path" = $config ] && [ -e "$target" ] && ! is_same "$stage$path" "$target"; then
            echo "kept       $target (yours)"
        elif [ -e "$target" ] || [ -L "$target" ]; then
            rm -f "$target"
            echo "removed    $target"
        fi
    done
    rmdir "$destdir/etc/runseal" "$destdir$prefix/share/doc/runseal" "$destdir$root" 2>/dev/null || true
}

# Live runs end before their program goes: nothing else could end them in good order.
refuse_live_runs() {
    local runs
    runs=$("$binary" status 2>/dev/null) || return 0
    [ -z "$runs" ] || fail "there are live runs; end them first (runseal end RUN):"$'\n'"$runs"
}

has_systemd() {
    [ -z "$destdir" ] && [ -d /run/systemd/system ]
}

if [ "$uninstall" = yes ]; then
    # What is installed knows best which pages it had.
    binary=$destdir$prefix/bin/runseal
    [ -x "$binary" ] || fail "$binary is not there; was it installed with another --prefix or --destdir?"
    [ -n "$destdir" ] || refuse_live_runs
    build
    if has_systemd; then systemctl disable --now --quiet runseal.socket runseal.service || true; fi
    remove_all
    if has_systemd; then systemctl daemon-reload; fi
else
    build
    install_all
    if has_systemd; then
        systemctl daemon-reload
        echo "next       edit $config, then: systemctl enable --now runseal.socket runseal.service"
    fi
fi

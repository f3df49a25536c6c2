"""What is measured: file systems that come and go, each below a directory of its own on the same disk."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import host

PASSWORD = "benchmark"


class Target:
    """A file system under test. `point` is where it shows; `kind` is what the mount table must say about it."""

    name = kind = ""

    def __init__(self, base):
        self.base = base / self.name
        self.store = self.base / "store"
        self.point = self.base / "mnt"
        self.daemon = None
        self.mount_seconds = None

    def up(self):
        """Makes it appear, or raises."""
        self.store.mkdir(parents=True)
        self.point.mkdir()
        self.prepare()
        begin = time.monotonic()
        self.mount()
        host.wait_until(lambda: host.is_mountpoint(self.point) or self.died(), f"{self.name} mounted")
        os.listdir(self.point)  # answers
        self.mount_seconds = time.monotonic() - begin
        self.verify()

    def prepare(self):
        """What comes once, before the mount."""

    def mount(self):
        raise NotImplementedError

    def died(self):
        if self.daemon and self.daemon.poll() is not None:
            raise RuntimeError(f"{self.name}: the daemon ended with status {self.daemon.returncode}")
        return False

    def verify(self):
        """Refuses to count what is not really there."""
        found = host.mount_of(self.point)
        if found["point"] != os.path.realpath(self.point) or found["type"] != self.kind:
            raise RuntimeError(f"{self.name}: {self.point} is on {found['type']} at {found['point']}, not {self.kind}")

    def pids(self):
        return host.family(self.daemon.pid) if self.daemon else []

    def leave(self):
        """Unmounts and waits for the daemon."""
        for command in (["umount"], ["umount", "--lazy"]):
            if not host.is_mountpoint(self.point):
                break
            subprocess.run([*command, str(self.point)], check=False, stderr=subprocess.DEVNULL)
        if self.daemon:
            host.end(self.daemon)
            self.daemon = None

    def down(self):
        """Leaves, whatever state this is in, and removes everything."""
        self.leave()
        if host.is_mountpoint(self.point):
            print(f"bench: {self.point} is still mounted; left alone", file=sys.stderr)
            return
        shutil.rmtree(self.base, ignore_errors=True)

    def spawn(self, *command):
        log = open(self.base / "log", "wb")
        self.daemon = host.start([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log)


class Runseal(Target):
    name, kind = "runseal", "fuse.runseal"
    binary = os.environ.get("RUNSEAL", "target/release/runseal")
    flags = ()

    def mount(self):
        self.spawn(self.binary, "mount", "--foreground", *self.flags, "--backing", self.store, self.point)

    def version(self):
        return host.output(self.binary, "--version")


class RunsealAsleep(Runseal):
    """As without root: idle processors sleep as they like."""

    name = "runseal-leave"
    flags = ("--cpu-latency=leave",)


class Gocryptfs(Target):
    name, kind = "gocryptfs", "fuse.gocryptfs"

    def prepare(self):
        self.password = self.base / "password"
        self.password.write_text(PASSWORD)
        host.run(["gocryptfs", "-q", "-init", "-scryptn", "10", "-passfile", str(self.password), str(self.store)])

    def mount(self):
        self.spawn("gocryptfs", "-q", "-fg", "-passfile", self.password, self.store, self.point)

    def version(self):
        return host.output("gocryptfs", "-version")


class Securefs(Target):
    name, kind = "securefs", "fuse.securefs"
    PASS = ("--pass", PASSWORD)

    def prepare(self):
        host.run(["securefs", "create", "-r", "1", *self.PASS, str(self.store)])

    def mount(self):
        self.spawn("securefs", "mount", *self.PASS, "--fssubtype", "securefs", self.store, self.point)

    def version(self):
        return "securefs " + host.output("dpkg-query", "--show", "--showformat=${Version}", "securefs")


class Encfs(Target):
    name, kind = "encfs", "fuse.encfs"

    def mount(self):
        self.spawn("encfs", "-f", "--standard", f"--extpass=echo {PASSWORD}", self.store, self.point)

    def version(self):
        return host.output("encfs", "--version")


class Plain(Target):
    """No encryption: a directory on the disk that holds the ciphertext of the others."""

    name = "plain"

    def up(self):
        self.point.mkdir(parents=True)
        self.mount_seconds = 0
        self.verify()

    def verify(self):
        self.kind = host.mount_of(self.point)["type"]
        if self.kind.startswith("fuse") or self.kind in ("tmpfs", "ramfs", "overlay"):
            raise RuntimeError(f"plain: {self.point} is on {self.kind}, not on a disk; name another --backing")

    def version(self):
        return host.output("uname", "-sr")


class Tmpfs(Target):
    name, kind = "tmpfs", "tmpfs"

    def mount(self):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80%", "bench", str(self.point)], check=True)

    version = Plain.version


ALL = {target.name: target for target in (Runseal, RunsealAsleep, Gocryptfs, Securefs, Encfs, Plain, Tmpfs)}

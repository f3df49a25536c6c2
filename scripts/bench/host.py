"""The machine: facts, caches, mounts, CPU time, and processes that must not outlive the harness."""

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
running = []  # every child not yet waited for


def facts(backing):
    memory = next(line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "host": platform.node(),
        "kernel": platform.release(),
        "cpu": cpu.group(1) if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory) / 2**20, 1),
        "backing": {"path": str(backing), **{key: mount_of(backing)[key] for key in ("type", "source", "options")}},
        "commit": output("git", "rev-parse", "HEAD"),
        "dirty": bool(output("git", "status", "--porcelain", "--untracked-files=no", "--", "src", "Cargo.toml")),
        "load_before": os.getloadavg()[0],
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def output(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip()


def mounts():
    """All mounts, as proc_pid_mountinfo(5) lists them."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ", 1)
        fields, (kind, source, *_) = left.split(), right.split()
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code.group(1), 8)), fields[4])
        yield {"point": point, "options": fields[5], "type": kind, "source": source}


def mount_of(path):
    """The mount that holds `path`: the longest mountpoint in front of it, the last one made of several."""
    path = os.path.realpath(path)
    holding = [m for m in mounts() if path == m["point"] or path.startswith(m["point"].rstrip("/") + "/")]
    return max(reversed(holding), key=lambda m: len(m["point"]))


def is_mountpoint(path):
    """Asks the mount table, not the mount, which may hang."""
    return any(m["point"] == os.path.realpath(path) for m in mounts())


class Caches:
    """The kernel's caches, as far as this process may empty them."""

    def __init__(self):
        self.may_drop = self._drop(0)

    def dentries(self):
        return self._drop(2)

    def all(self):
        return self._drop(3)

    def _drop(self, what):
        try:
            if what:
                Path("/proc/sys/vm/drop_caches").write_text(str(what))
            return os.access("/proc/sys/vm/drop_caches", os.W_OK)
        except OSError:
            return False


def settle(directory):
    """Writes everything of this file system back, so that one target's dirty data does not burden the next."""
    subprocess.run(["sync", "-f", str(directory)], check=True)


def warm(size):
    """Touches `size` bytes of free memory. A virtual machine may have given free pages back to its host: then the first
    to use one waits for the host, and that would be charged to whichever target comes first."""
    with open(os.memfd_create("warm"), "wb", buffering=0) as memory:
        piece = bytes(1 << 20)
        for _ in range(size // len(piece)):
            memory.write(piece)


def cpu_seconds(pids):
    """User and system time of processes that may have ended."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def resident_kib(pids):
    total = 0
    for pid in pids:
        status = Path(f"/proc/{pid}/status")
        match = re.search(r"VmRSS:\s+(\d+)", status.read_text()) if status.exists() else None
        total += int(match.group(1)) if match else 0
    return total


def family(pid):
    """A process and all its descendants."""
    pids = [pid]
    for parent in pids:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            pids += [int(child) for child in task.read_text().split()]
    return pids


def start(command, **options):
    """A child that `end_all_but` ends. Of its own group, so that Ctrl-C reaches the harness alone."""
    child = subprocess.Popen(command, start_new_session=True, **options)
    running.append(child)
    return child


def run(command, **options):
    """Runs a program to its end; returns what it printed, and fails loudly."""
    child = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    out, err = child.communicate()
    running.remove(child)
    if child.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit status {child.returncode}\n{err.strip()[-2000:]}")
    return out


def end(child, patience=20):
    """Waits for a child that should be ending; kills it by its id if it does not."""
    try:
        child.wait(patience)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if child in running:
        running.remove(child)


def end_all_but(kept):
    """Ends every child that still runs, except `kept`."""
    for child in [child for child in running if child not in kept]:
        child.terminate()
        end(child, 5)


def remove(directory):
    """Removes a directory, unless something is still mounted in it."""
    inside = os.path.realpath(directory) + "/"
    left = [m["point"] for m in mounts() if m["point"].startswith(inside)]
    if left:
        print(f"bench: still mounted, so {directory} stays: {', '.join(left)}", file=sys.stderr)
    else:
        shutil.rmtree(directory, ignore_errors=True)


def wait_until(condition, what, patience=20):
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"never happened: {what}")
        time.sleep(0.0005)

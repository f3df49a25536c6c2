"""The workloads: what is done, in which state of the caches, and what is counted.

The time of a write includes close(2) and nothing more, unless the row says fsync. Between two measurements the disk is
synchronised. "Past the page cache" means that the pages of the file were dropped from the file system under test
(posix_fadvise) while what lies below it may be cached; "from disk" that every cache of the kernel was dropped.
"""

import json
import os
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import host
import inputs

HERE = Path(__file__).parent
MIB = 1 << 20
HIGHER, LOWER = "higher", "lower"


@dataclass
class Sizes:
    stream: int = 1024 * MIB  # bytes of one sequential file
    streams: int = 512 * MIB  # bytes of each of four
    random: int = 65536  # random reads, and writes, of 4 KiB each
    fsyncs: int = 20_000
    appends: int = 100_000
    files: int = 10_000
    tree: int = 11_000
    transactions: int = 500
    reads: int = 300_000
    modules: int = 40

    @classmethod
    def quick(cls):
        return cls(256 * MIB, 64 * MIB, 8192, 500, 20_000, 2000, 2000, 100, 50_000, 10)


# Row: workload, what it says in the table, unit, which is better.
ROWS = {
    "seq-write-1": ("stream", "sequential write + close, 1 MiB, 1 job", "MB/s", HIGHER),
    "seq-read-1": ("stream", "sequential read past the page cache, 1 job", "MB/s", HIGHER),
    "seq-read-warm-1": ("stream", "sequential read, warm, 1 job", "MB/s", HIGHER),
    "seq-read-disk-1": ("stream", "sequential read from disk, 1 job", "MB/s", HIGHER),
    "seq-write-fsync": ("stream-fsync", "sequential write + fsync, 1 MiB, 1 job", "MB/s", HIGHER),
    "seq-write-4": ("streams", "sequential write + close, 1 MiB, 4 jobs", "MB/s", HIGHER),
    "seq-read-4": ("streams", "sequential read past the page cache, 4 jobs", "MB/s", HIGHER),
    "seq-read-warm-4": ("streams", "sequential read, warm, 4 jobs", "MB/s", HIGHER),
    "rand-read-1": ("random", "random 4 KiB read past the page cache, 1 job", "kIOPS", HIGHER),
    "rand-read-4": ("random", "random 4 KiB read past the page cache, 4 jobs", "kIOPS", HIGHER),
    "rand-write": ("random", "random 4 KiB write + close", "kIOPS", HIGHER),
    "write-fsync": ("random", "random 4 KiB write + fsync each", "kIOPS", HIGHER),
    "append": ("append", "200-byte appends + close", "k/s", HIGHER),
    "create": ("files", "create 4 KiB files", "k/s", HIGHER),
    "stat": ("files", "stat, dentries dropped", "k/s", HIGHER),
    "open-read": ("files", "open + read + close, dentries dropped", "k/s", HIGHER),
    "rename": ("files", "rename, dentries dropped", "k/s", HIGHER),
    "unlink": ("files", "unlink, dentries dropped", "k/s", HIGHER),
    "untar": ("tree", "untar a source tree", "s", LOWER),
    "grep": ("tree", "grep it", "s", LOWER),
    "rm-rf": ("tree", "rm -rf it", "s", LOWER),
    "cp": ("copy", "cp of a file inside the mount", "MB/s", HIGHER),
    "dd": ("copy", "the same through dd, 1 MiB", "MB/s", HIGHER),
    "sqlite": ("sqlite", "SQLite, one insert a transaction", "/s", HIGHER),
    "samtools": ("samtools", "samtools sort", "s", LOWER),
    "cargo": ("cargo", "cargo build, target directory on the mount", "s", LOWER),
    "mount": ("lifecycle", "mounted and answering", "ms", LOWER),
    "end": ("lifecycle", "gone, with data written before", "ms", LOWER),
}


@dataclass
class Spent:
    """One measurement: wall time, and CPU time of the file system's daemon and of whoever used it."""

    seconds: float
    daemon: float
    client: float
    count: int = 0


class Place:
    """An empty directory of one target for one workload, and the ways to time something in it."""

    def __init__(self, target, sizes, caches, data):
        self.target, self.sizes, self.caches, self.inputs = target, sizes, caches, data
        self.results = []

    def __enter__(self):
        self.target.verify()
        self.dir = self.target.point / "bench"
        self.dir.mkdir()
        self.warm()
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.dir, ignore_errors=True)
        self.settle()

    def settle(self):
        """On the mount first: its dirty pages become ciphertext; then on the disk that takes that."""
        host.settle(self.target.point)
        host.settle(self.target.base.parent)
        self.warm()

    def warm(self):
        """For the pages of a file and of what lies below it."""
        host.warm(3 * self.sizes.stream)

    def timed(self, *command, **options):
        pids, before = self.target.pids(), usage()
        daemon, begin = host.cpu_seconds(pids), time.monotonic()
        printed = host.run([str(word) for word in command], **options)
        seconds = time.monotonic() - begin
        return Spent(seconds, host.cpu_seconds(pids) - daemon, usage() - before), printed

    def worker(self, work, *numbers):
        spent, printed = self.timed(sys.executable, HERE / "worker.py", work, self.dir, *numbers)
        spent.seconds, spent.count = json.loads(printed).values()
        return spent

    def fio(self, job, **variables):
        env = {**os.environ, "DIR": str(self.dir), **{key: str(value) for key, value in variables.items()}}
        spent, printed = self.timed("fio", "--output-format=json", HERE / f"fio/{job}.fio", env=env)
        done = json.loads(printed[printed.index("{") :])["jobs"][0]
        side = max((done["read"], done["write"]), key=lambda side: side["io_bytes"])
        # With group_reporting: all bytes of all jobs over the longest of their times.
        spent.seconds, spent.count = side["io_bytes"] / side["bw_bytes"], side["io_bytes"]
        return spent

    def put(self, row, value, spent=None, gib=None):
        found = {"row": row, "target": self.target.name, "value": value}
        if spent:
            found |= {"seconds": spent.seconds, "cpu_daemon": spent.daemon, "cpu_client": spent.client}
        if gib:
            found["gib"] = gib
        self.results.append(found)

    def put_bytes(self, row, spent):
        self.put(row, spent.count / spent.seconds / 1e6, spent, spent.count / 2**30)


def usage():
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def stream(place):
    size = place.sizes.stream
    place.put_bytes("seq-write-1", place.worker("seq-write", size, 1, 0))
    place.settle()
    place.put_bytes("seq-read-1", place.fio("seq-read", SIZE=size, JOBS=1, LOOPS=1, INVALIDATE=1))
    place.put_bytes("seq-read-warm-1", place.fio("seq-read", SIZE=size, JOBS=1, LOOPS=2, INVALIDATE=0))
    if place.caches.all():
        place.put_bytes("seq-read-disk-1", place.fio("seq-read", SIZE=size, JOBS=1, LOOPS=1, INVALIDATE=1))


def stream_fsync(place):
    place.put_bytes("seq-write-fsync", place.worker("seq-write", place.sizes.stream, 1, 1))


def streams(place):
    size = place.sizes.streams
    place.put_bytes("seq-write-4", place.worker("seq-write", size, 4, 0))
    place.settle()
    place.put_bytes("seq-read-4", place.fio("seq-read", SIZE=size, JOBS=4, LOOPS=1, INVALIDATE=1))
    place.put_bytes("seq-read-warm-4", place.fio("seq-read", SIZE=size, JOBS=4, LOOPS=2, INVALIDATE=0))


def random_access(place):
    size, count = place.sizes.stream, place.sizes.random
    place.worker("seq-write", size, 1, 0)
    place.settle()
    for jobs in (1, 4):
        spent = place.fio("rand-read", SIZE=size, IO=4096 * count, JOBS=jobs, INVALIDATE=1)
        place.put(f"rand-read-{jobs}", spent.count / 4096 / spent.seconds / 1e3, spent)
    spent = place.worker("rand-write", size, count)
    place.put("rand-write", spent.count / spent.seconds / 1e3, spent)
    place.settle()
    spent = place.fio("write-fsync", SIZE=size, IO=4096 * place.sizes.fsyncs)
    place.put("write-fsync", spent.count / 4096 / spent.seconds / 1e3, spent)


def append(place):
    spent = place.worker("append", place.sizes.appends)
    place.put("append", spent.count / spent.seconds / 1e3, spent)


def files(place):
    for work in ("create", "stat", "open-read", "rename", "unlink"):
        spent = place.worker(work, place.sizes.files)
        place.put(work, spent.count / spent.seconds / 1e3, spent)
        place.settle()
        place.caches.dentries()


def tree(place):
    tar = inputs.source_tree(place.inputs, place.sizes.tree)
    for row, command in (
        ("untar", ("tar", "-xf", tar, "-C", place.dir)),
        ("grep", ("grep", "-rc", inputs.NEEDLE, place.dir / "tree")),
        ("rm-rf", ("rm", "-rf", place.dir / "tree")),
    ):
        spent, _ = place.timed(*command)
        place.put(row, spent.seconds, spent)


def copy(place):
    size = place.sizes.stream
    place.worker("seq-write", size, 1, 0)
    for row, command in (("cp", 'cp "$1" "$2"'), ("dd", 'dd if="$1" of="$2" bs=1M status=none')):
        place.settle()
        spent, _ = place.timed("sh", "-c", command, "sh", place.dir / "seq.0", place.dir / "copy")
        place.put(row, size / spent.seconds / 1e6, spent)
        (place.dir / "copy").unlink()


def sqlite(place):
    spent = place.worker("sqlite", place.sizes.transactions)
    place.put("sqlite", spent.count / spent.seconds, spent)


def samtools(place):
    bam = shutil.copy(inputs.alignments(place.inputs, place.sizes.reads), place.dir / "in.bam")
    place.settle()
    sort = ("samtools", "sort", "-@", "2", "-m", "16M", "-l", "1")
    spent, _ = place.timed(*sort, "-T", place.dir / "part", "-o", place.dir / "out.bam", bam)
    place.put("samtools", spent.seconds, spent)


def cargo(place):
    crate = inputs.crate(place.inputs, place.sizes.modules)
    build = ("cargo", "build", "--offline", "--quiet")
    with tempfile.TemporaryDirectory(dir=place.inputs) as elsewhere:
        # Whoever comes first after the caches were dropped would read the compiler from disk.
        host.run(build, cwd=crate, env={**os.environ, "CARGO_TARGET_DIR": elsewhere})
    spent, _ = place.timed(*build, cwd=crate, env={**os.environ, "CARGO_TARGET_DIR": str(place.dir / "target")})
    place.put("cargo", spent.seconds, spent)


def lifecycle(place):
    """A mount of its own: how long it takes to come, and, with data in it, to go."""
    if place.target.name == "plain":
        return
    target = type(place.target)(place.target.base.parent / "lifecycle")
    try:
        target.up()
        place.put("mount", target.mount_seconds * 1e3)
        host.run([sys.executable, str(HERE / "worker.py"), "seq-write", str(target.point), str(place.sizes.stream), "1", "0"])
        begin = time.monotonic()
        target.leave()
        place.put("end", (time.monotonic() - begin) * 1e3)
    finally:
        target.down()


ALL = {
    "stream": stream,
    "stream-fsync": stream_fsync,
    "streams": streams,
    "random": random_access,
    "append": append,
    "files": files,
    "tree": tree,
    "copy": copy,
    "sqlite": sqlite,
    "samtools": samtools,
    "cargo": cargo,
    "lifecycle": lifecycle,
}

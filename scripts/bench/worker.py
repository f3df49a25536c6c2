"""The timed loops that fio cannot time as wanted (to the end of close), one process per measurement.

usage: worker.py WORK DIR NUMBER...; prints one JSON object with `seconds` and `count`.
"""

import json
import os
import random
import sqlite3
import sys
import time

MIB = 1 << 20
PER_DIRECTORY = 1000


def seq_write(directory, size, jobs, fsync):
    """`jobs` processes write `size` bytes each in pieces of 1 MiB and close."""
    data = os.urandom(MIB)
    gate, start = os.pipe()
    children = [fork(lambda n=n: write_file(f"{directory}/seq.{n}", data, size, fsync, gate)) for n in range(jobs)]
    time.sleep(0.05)  # until all of them wait at the gate
    begin = time.monotonic()
    os.write(start, b"g" * jobs)
    failed = [status for status in (os.waitpid(child, 0)[1] for child in children) if status]
    if failed:
        sys.exit("a writer failed")
    return time.monotonic() - begin, size * jobs


def write_file(path, data, size, fsync, gate):
    os.read(gate, 1)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for _ in range(size // len(data)):
        if os.write(file, data) != len(data):
            raise OSError("short write")
    if fsync:
        os.fsync(file)
    os.close(file)


def fork(work):
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException as error:
        print(error, file=sys.stderr)
        os._exit(1)
    os._exit(0)


def rand_write(directory, size, count):
    """`count` 4 KiB writes, each to another block of an existing file, and close."""
    data = os.urandom(4096)
    offsets = [block * 4096 for block in random.Random(1).sample(range(size // 4096), count)]
    begin = time.monotonic()
    file = os.open(f"{directory}/seq.0", os.O_WRONLY)
    for offset in offsets:
        os.pwrite(file, data, offset)
    os.close(file)
    return time.monotonic() - begin, count


def append(directory, count):
    """`count` appends of 200 bytes, and close."""
    data = os.urandom(100).hex().encode()
    begin = time.monotonic()
    file = os.open(f"{directory}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for _ in range(count):
        os.write(file, data)
    os.close(file)
    return time.monotonic() - begin, count


def paths(directory, count, prefix="f"):
    return [f"{directory}/{n // PER_DIRECTORY}/{prefix}{n}" for n in range(count)]


def create(directory, count):
    data = os.urandom(4096)
    for n in range(-(-count // PER_DIRECTORY)):
        os.mkdir(f"{directory}/{n}")
    begin = time.monotonic()
    for path in paths(directory, count):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(file, data)
        os.close(file)
    return time.monotonic() - begin, count


def each(directory, count, work, prefix="f"):
    names = paths(directory, count, prefix)
    random.Random(1).shuffle(names)
    begin = time.monotonic()
    for path in names:
        work(path)
    return time.monotonic() - begin, count


def stat(directory, count):
    return each(directory, count, os.stat)


def open_read(directory, count):
    def work(path):
        file = os.open(path, os.O_RDONLY)
        if len(os.read(file, 8192)) != 4096:
            raise OSError("short read")
        os.close(file)

    return each(directory, count, work)


def rename(directory, count):
    return each(directory, count, lambda path: os.rename(path, path.replace("/f", "/g")))


def unlink(directory, count):
    return each(directory, count, os.unlink, "g")


def sqlite(directory, count):
    """`count` transactions of one insert each, with the defaults of SQLite (rollback journal, synchronous=FULL)."""
    base = sqlite3.connect(f"{directory}/base.sqlite", isolation_level=None)
    base.execute("create table t (id integer primary key, a text, b blob)")
    rows = [(f"{n:040}", os.urandom(100)) for n in range(count)]
    begin = time.monotonic()
    for row in rows:
        base.execute("insert into t (a, b) values (?, ?)", row)
    base.close()
    return time.monotonic() - begin, count


WORK = {
    work.__name__.replace("_", "-"): work
    for work in (seq_write, rand_write, append, create, stat, open_read, rename, unlink, sqlite)
}

if __name__ == "__main__":
    seconds, count = WORK[sys.argv[1]](sys.argv[2], *(int(number) for number in sys.argv[3:]))
    print(json.dumps({"seconds": seconds, "count": count}))

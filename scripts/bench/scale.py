"""How the cost grows: one thing at a time becomes larger, everything else stays. runseal beside the plain directory."""

import json
import os
import sys
import time
from statistics import median

import host
import targets
import workloads
from render import COLOURS, commit, dot, legend, line, machine, number, svg, text
from workloads import MIB

NAMES = ("runseal", "plain")


class Step:
    """A fresh target, and what was measured on it."""

    def __init__(self, base, name, sizes, caches, data, cores=None):
        self.target = targets.ALL[name](base)
        self.sizes, self.caches, self.data, self.cores = sizes, caches, data, cores

    def __enter__(self):
        if self.cores:
            os.sched_setaffinity(0, range(self.cores))  # inherited by the daemon and by every worker
        self.target.up()
        self.place = workloads.Place(self.target, self.sizes, self.caches, self.data)
        return self.place.__enter__()

    def __exit__(self, *_):
        self.place.__exit__()
        self.target.leave()
        self.target.down()
        os.sched_setaffinity(0, range(os.cpu_count()))


def writers(place, count):
    """`count` processes, 256 MiB each, to the end of fsync; then as many readers past the page cache."""
    size = place.sizes.streams // 2
    spent = place.worker("seq-write", size, count, 1)
    place.settle()
    read = place.fio("seq-read", SIZE=size, JOBS=count, LOOPS=1, INVALIDATE=1)
    return {"write MB/s": mb(spent), "read MB/s": mb(read), **memory(place)}


def files(place, count):
    """`count` files of 4 KiB, created and looked up again."""
    created = place.worker("create", count)
    memory_now = memory(place)
    place.settle()
    place.caches.dentries()
    found = place.worker("stat", count)
    return {"create k/s": created.count / created.seconds / 1e3, "stat k/s": found.count / found.seconds / 1e3, **memory_now}


def gibibytes(place, count):
    """One file of `count` GiB, written to the end of fsync, then random 4 KiB reads in it."""
    size = count << 30
    spent = place.worker("seq-write", size, 1, 1)
    place.settle()
    read = place.fio("rand-read", SIZE=size, IO=4096 * place.sizes.random // 4, JOBS=1, INVALIDATE=1)
    return {"write MB/s": mb(spent), "random read k/s": read.count / 4096 / read.seconds / 1e3, **memory(place)}


def cores(place, count):
    """The same work while daemon and program may use only `count` processors."""
    spent = place.worker("seq-write", place.sizes.streams // 2, 4, 1)
    place.settle()
    read = place.fio("seq-read", SIZE=place.sizes.streams // 2, JOBS=4, LOOPS=1, INVALIDATE=1)
    created = place.worker("create", place.sizes.files)
    return {"write MB/s": mb(spent), "read MB/s": mb(read), "create k/s": created.count / created.seconds / 1e3}


def mb(spent):
    return spent.count / spent.seconds / 1e6


def memory(place):
    pids = place.target.pids()
    return {"memory MiB": host.resident_kib(pids) / 1024} if pids else {}


def series(quick, free_gib):
    most = max(power for power in (1, 2, 4, 8, 16, 32, 64) if power == 1 or power * 2.5 < free_gib)
    gib = [power for power in (1, 4, 16, 64) if power <= most]
    number_of_cores = [count for count in (1, 2, 4, 8) if count <= os.cpu_count()]
    if quick:
        return {"writers": (writers, [1, 2]), "files": (files, [1000, 4000]), "GiB": (gibibytes, [1]), "cores": (cores, [1, 2])}
    return {
        "writers": (writers, [1, 2, 4, 8]),
        "files": (files, [1000, 10_000, 100_000, 1_000_000]),
        "GiB": (gibibytes, gib),
        "cores": (cores, number_of_cores),
    }


def run(options, base, out):
    sizes = workloads.Sizes.quick() if options.quick else workloads.Sizes()
    chosen = [name for name in NAMES if name in options.targets.split(",")]
    caches = host.Caches()
    free = os.statvfs(base).f_bavail * os.statvfs(base).f_frsize >> 30
    results = {"facts": host.facts(base), "rounds": options.rounds, "quick": options.quick, "results": []}
    for name, (measure, steps) in series(options.quick, free).items():
        for step in steps:
            # The largest steps take minutes and are steady enough once.
            for turn in range(1 if step in steps[2:] and name in ("files", "GiB") else options.rounds):
                for target in chosen if turn % 2 == 0 else reversed(chosen):
                    with Step(base, target, sizes, caches, out / "inputs", step if name == "cores" else None) as place:
                        found = measure(place, step)
                    results["results"].append({"series": name, "step": step, "target": target, "round": turn, **found})
                    shown = ", ".join(f"{key} {number(value)}" for key, value in found.items())
                    print(f"{name} {step} {target}: {shown}", file=sys.stderr)
    results["facts"]["ended"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    (out / "scale.json").write_text(json.dumps(results, indent=1))
    (out / "scale.md").write_text(markdown(results))
    (out / "scale.svg").write_text(plot(results))
    print((out / "scale.md").read_text())


def cells(results, name):
    """Measures by step: {measure: {step: {target: median}}}."""
    table = {}
    for found in (found for found in results["results"] if found["series"] == name):
        for measure in (key for key in found if key not in ("series", "step", "target", "round")):
            table.setdefault(measure, {}).setdefault(found["step"], {}).setdefault(found["target"], []).append(found[measure])
    return {m: {s: {t: median(v) for t, v in targets_.items()} for s, targets_ in steps.items()} for m, steps in table.items()}


def measured(results):
    return [name for name in NAMES if any(found["target"] == name for found in results["results"])]


def names(results):
    return list(dict.fromkeys(found["series"] for found in results["results"]))


def markdown(results):
    facts, lines = results["facts"], []
    kind = "Smoke test, not a measurement. " if results["quick"] else ""
    lines.append(f"{kind}{machine(facts)}; commit {commit(facts)}; {facts['started']} to {facts['ended']}. Each cell: {' / '.join(measured(results))}.")
    for name in names(results):
        table = cells(results, name)
        lines += ["", f"| {name} | " + " | ".join(table) + " |", "|---:|" + "---:|" * len(table)]
        for step in next(iter(table.values())):
            row = [" / ".join(number(table[m].get(step, {})[t]) for t in NAMES if t in table[m].get(step, {})) for m in table]
            lines.append(f"| {step} | " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def plot(results):
    """One small chart a series and measure: runseal and plain over the steps."""
    charts = [(name, measure, steps) for name in names(results) for measure, steps in cells(results, name).items()]
    width, height, columns = 300, 190, 3
    parts = [text(16, 24, "How the cost grows", size=16, weight="bold"), *legend(measured(results), 16, 46)]
    for index, (name, measure, steps) in enumerate(charts):
        parts += chart(30 + index % columns * width, 64 + index // columns * height, width - 60, height - 70, f"{measure} by {name}", steps)
    return svg(columns * width + 30, 64 + -(-len(charts) // columns) * height, parts)


def chart(x, y, width, height, title, steps):
    most = max(value for found in steps.values() for value in found.values())
    parts = [text(x, y + 10, title, size=12), line(x, y + height, x + width, y + height, "#9ca3af", 1), line(x, y + 16, x, y + height, "#9ca3af", 1)]
    place = {step: x + (width * index / max(1, len(steps) - 1)) for index, step in enumerate(steps)}
    level = lambda value: y + height - value / most * (height - 20)
    parts += [text(place[step], y + height + 14, f"{step:,}", anchor="middle", size=10) for step in steps]
    parts.append(text(x + width, y + 10, f"top {number(most)}", anchor="end", size=10))
    for target in NAMES:
        points = [(place[step], level(found[target])) for step, found in steps.items() if target in found]
        parts += [line(*a, *b, COLOURS[target], 2) for a, b in zip(points, points[1:])]
        parts += [dot(*point, 3, COLOURS[target]) for point in points]
    return parts

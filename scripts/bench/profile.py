"""Where the time of a workload goes: samples of all processors (perf) while it runs on runseal, by what they were doing."""

import json
import re
import sys
from collections import Counter

import host
import targets
import workloads

WORKLOADS = ("stream", "streams", "random", "files")
# What the daemon was doing, by the name of the function; the first that matches.
DOING = {
    "waking, sleeping": r"raw_spin_unlock_irq|finish_task_switch|schedul|try_to_wake|ttwu|queued_spin|switch_",
    "copying": r"_to_iter|from_iter|memcpy|memmove|memset",
    "locks and pins of FUSE": r"raw_spin_lock|gup|fuse_copy|pin_|pfn",
    "XTS": r"aes|xts",
    "keys": r"sha2|sha512|hkdf|hmac",
    "cache of the disk": r"folio|page|filemap|xas_|xarray|ext4|block_|iomap|blk|bio|lru|mem_cgroup|memcg|rmqueue|zone",
}
COLUMNS = ("idle", "program", "daemon", *DOING, "else")


class Profiled(workloads.Place):
    """A place where every measurement is sampled."""

    def __init__(self, *arguments, file):
        super().__init__(*arguments)
        self.file, self.shares = file, {}

    def timed(self, *command, **options):
        return super().timed("perf", "record", "-qa", "-e", "cpu-clock", "-F", "1999", "-o", self.file, "--", *command, **options)

    def put(self, row, *rest, **more):
        super().put(row, *rest, **more)
        self.shares[row] = shares(self.file)


def shares(file):
    """Percent of all processors; of the daemon's, percent of its own."""
    of_all, of_daemon = Counter(), Counter()
    for line in host.output("perf", "report", "-q", "-i", str(file), "--sort", "comm,sym").splitlines():
        found = re.match(r"\s*([\d.]+)%\s+(.*?)\s+\[.\]\s+(.*)", line)
        if not found:
            continue
        percent, program, function = float(found[1]), found[2], found[3]
        if program == "swapper":
            of_all["idle"] += percent
        elif program.startswith(("fuser-", "fuse-session", "runseal")):
            of_all["daemon"] += percent
            of_daemon[next((doing for doing, names in DOING.items() if re.search(names, function)), "else")] += percent
        else:
            of_all["program"] += percent
    total = of_all["daemon"] or 1
    return {**of_all, **{doing: 100 * percent / total for doing, percent in of_daemon.items()}}


def run(options, base, out):
    sizes = workloads.Sizes.quick() if options.quick else workloads.Sizes()
    results = {"facts": host.facts(base), "rows": {}}
    target = targets.Runseal(base)
    try:
        target.up()
        for name in WORKLOADS:
            with Profiled(target, sizes, host.Caches(), out / "inputs", file=out / "perf.data") as place:
                workloads.ALL[name](place)
            results["rows"] |= place.shares
            print(f"{name}: {len(place.shares)} rows", file=sys.stderr)
    finally:
        target.down()
    (out / "profile.json").write_text(json.dumps(results, indent=1))
    (out / "profile.md").write_text(markdown(results["rows"]))
    print((out / "profile.md").read_text())


def markdown(rows):
    lines = ["| workload | " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
    for row, found in rows.items():
        lines.append(f"| {workloads.ROWS[row][1]} | " + " | ".join(f"{found.get(column, 0):.0f}" for column in COLUMNS) + " |")
    return "\n".join(lines) + "\n"

"""The criterion benches as one table: time, speed, and ratios to a plain copy and to the portable engine."""

import json
import re
from pathlib import Path

import host
from render import number

BENCHES = ("xts", "store", "fs_ops")
PORTABLE = re.compile(r"xts-mode|portable", re.IGNORECASE)


def run(root, out):
    command = ["cargo", "bench", "--quiet"]
    for bench in BENCHES:
        command += ["--bench", bench]
    host.run([*command, "--", "--quiet"], cwd=root)
    rows = measured(root / "target/criterion")
    (out / "micro.md").write_text(markdown(rows))
    print((out / "micro.md").read_text())


def measured(directory):
    """{(group, function, bytes): (nanoseconds, low, high)}, as criterion left them."""
    rows = {}
    for path in sorted(directory.glob("**/new/benchmark.json")):
        about, estimates = (json.loads((path.parent / name).read_text()) for name in ("benchmark.json", "estimates.json"))
        median = estimates["median"]
        size = (about["throughput"] or {}).get("Bytes")
        interval = median["confidence_interval"]
        key = about["group_id"], about["function_id"], size
        rows[key] = median["point_estimate"], interval["lower_bound"], interval["upper_bound"]
    return rows


def markdown(rows):
    lines = ["| bench | bytes | time (95 % interval) | GB/s | of memcpy | of the portable engine |", "|---|---:|---:|---:|---:|---:|"]
    for (group, function, size), (median, low, high) in sorted(rows.items(), key=lambda row: (row[0][0], row[0][1], row[0][2] or 0)):
        speed = number(size / median) if size else "–"
        copy = rows.get((group, "memcpy", size))
        portable = counterpart(rows, group, function, size)
        cells = [f"{group}: {function}", str(size or "–"), f"{time(median)} ({time(low)}–{time(high)})", speed]
        cells += [number(other[0] / median) if other else "–" for other in (copy, portable)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def counterpart(rows, group, function, size):
    """The same work by the portable engine."""
    work = function.rpartition(" ")[2]
    same = [key for key in rows if key[0] == group and key[2] == size and PORTABLE.search(key[1]) and key[1].endswith(work)]
    return rows[same[0]] if same and function != "memcpy" else None


def time(nanoseconds):
    for unit, scale in (("ns", 1), ("us", 1e3), ("ms", 1e6)):
        if nanoseconds < 1000 * scale or unit == "ms":
            return f"{number(nanoseconds / scale)} {unit}"

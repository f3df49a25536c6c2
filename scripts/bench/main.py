"""Measures runseal beside its peers; see scripts/bench.sh and docs/benchmarks.md."""

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

import host
import micro
import profile
import render
import s3
import scale
import serve
import targets
import workloads

NEEDED_GIB = 8
ROOT = Path(__file__).resolve().parents[2]


def main():
    options = arguments()
    if os.geteuid() != 0:
        sys.exit("bench: must be root, to mount and to drop caches; without root nothing would be comparable")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out = options.output
    (out / "inputs").mkdir(parents=True, exist_ok=True)
    if options.micro:
        return micro.run(ROOT, out)
    base = Path(tempfile.mkdtemp(prefix="runseal-bench-", dir=options.backing))
    base.chmod(0o755)
    up = []
    try:
        check_room(base)
        for mode in (scale, s3, serve, profile):
            if getattr(options, mode.__name__):
                return mode.run(options, base, out)
        results = {"facts": host.facts(base), "quick": options.quick, "rounds": options.rounds, "versions": {}}
        results["facts"]["caches_dropped"] = host.Caches().may_drop
        raise_all(options.targets, base, up, results)
        measure(options, up, results)
        results["memory_end_kib"] = memory(up)
    finally:
        # A second Ctrl-C must not leave mounts behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        host.end_all_but([target.daemon for target in up])
        for target in up:
            target.down()
        host.end_all_but([])
        host.remove(base)
    results["facts"]["load_after"] = os.getloadavg()[0]
    results["facts"]["ended"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    (out / "results.json").write_text(json.dumps(results, indent=1))
    render.all_of(results, out)
    print((out / "table.md").read_text())
    print(f"bench: raw numbers, table and plots are in {out}", file=sys.stderr)


def arguments():
    parser = argparse.ArgumentParser(prog="bench.sh", description="Measure runseal beside its peers, in turns.")
    parser.add_argument("--quick", action="store_true", help="small and once: a smoke test, not a measurement")
    parser.add_argument("--micro", action="store_true", help="the criterion benches, without a kernel, as ratios")
    parser.add_argument("--scale", action="store_true", help="how the cost grows with writers, files, bytes and cores")
    parser.add_argument("--s3", action="store_true", help="staging from and to S3 beside s5cmd and rclone")
    parser.add_argument("--serve", action="store_true", help="what runs cost that are made through the node daemon")
    parser.add_argument("--profile", action="store_true", help="where the time goes, by samples of all processors (perf)")
    parser.add_argument("--s3-sizes", metavar="NxMIB,...", help="objects for --s3 [1x4096,1000x1; 1x256,100x1 with --quick]")
    parser.add_argument("--only", metavar="PATTERN", default="", help="workloads or rows that match (regular expression)")
    parser.add_argument(
        "--targets",
        default="runseal,gocryptfs,securefs|encfs,plain,tmpfs",
        help="comma separated; of a|b the first that mounts [%(default)s]",
    )
    parser.add_argument("--rounds", type=int, help="[3; 1 with --quick]")
    parser.add_argument("--backing", type=Path, default=Path("/var/tmp"), help="directory on the disk to use [%(default)s]")
    parser.add_argument("--output", type=Path, default=ROOT / "target/bench", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


def check_room(base):
    free = os.statvfs(base).f_bavail * os.statvfs(base).f_frsize >> 30
    if free < NEEDED_GIB:
        raise SystemExit(f"bench: {base} has {free} GiB free, and {NEEDED_GIB} are needed; name another --backing")


def raise_all(names, base, up, results):
    """Mounts what can be mounted; a target that cannot is named and left out."""
    for alternatives in names.split(","):
        for name in alternatives.split("|"):
            if name not in targets.ALL:
                raise SystemExit(f"bench: no target {name}; there are {', '.join(targets.ALL)}")
            target = targets.ALL[name](base)
            try:
                target.up()
            except Exception as error:
                print(f"bench: {name} is not counted: {error}", file=sys.stderr)
                target.down()
                continue
            up.append(target)
            results["versions"][name] = target.version().splitlines()[0]
            break
    if not up:
        raise SystemExit("bench: nothing to measure")
    time.sleep(1)
    results["memory_rest_kib"] = memory(up)


def memory(up):
    return {target.name: host.resident_kib(target.pids()) for target in up if target.daemon}


def measure(options, up, results):
    """Round by round, and in each round workload by workload over all targets, each time another one first."""
    sizes = workloads.Sizes.quick() if options.quick else workloads.Sizes()
    results["sizes"], results["results"] = vars(sizes), []
    caches = host.Caches()
    chosen = select(options.only)
    for turn in range(options.rounds):
        for index, name in enumerate(chosen):
            first = (turn + index) % len(up)
            for target in up[first:] + up[:first]:
                with workloads.Place(target, sizes, caches, options.output / "inputs") as place:
                    workloads.ALL[name](place)
                for found in place.results:
                    found["round"] = turn
                    print(f"{turn + 1}/{options.rounds} {target.name:10} {found['row']:16} {found['value']:.4g}", file=sys.stderr)
                results["results"] += place.results


def select(pattern):
    def wanted(name):
        rows = [row for row, (workload, *_) in workloads.ROWS.items() if workload == name]
        return any(re.search(pattern, text) for text in [name, *rows])

    chosen = [name for name in workloads.ALL if wanted(name)]
    if not chosen:
        raise SystemExit(f"bench: nothing matches {pattern}; workloads are {', '.join(workloads.ALL)}")
    return chosen


if __name__ == "__main__":
    main()

"""Staging beside s5cmd and rclone: the same objects, the same server on this machine, in turns.

runseal encrypts what it fetches and reads what it publishes from the ciphertext; the others copy to and from a plain
directory on the same disk. Its times are those of the phases `fetch` and `publish` in the report of a run whose command
only moves its inputs to its results; theirs are the times of the whole program.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import host
from render import commit, machine, number, span, when
from workloads import MIB

TOOLS = Path(__file__).resolve().parents[2] / "target/tools"
KEYS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "benchbench"}
BUCKET = "bench"
# Against s5cmd and rclone: as fast, and half as fast again.
GOALS = {"s5cmd": 1.0, "rclone": 1.5}


class Server:
    """s3s-fs on a free port of this machine, over a directory of its own."""

    def __init__(self, base):
        self.root, self.port = base / "server", free_port()
        (self.root / BUCKET).mkdir(parents=True)
        self.url = f"http://127.0.0.1:{self.port}"
        access = ["--access-key", KEYS["AWS_ACCESS_KEY_ID"], "--secret-key", KEYS["AWS_SECRET_ACCESS_KEY"]]
        command = [str(TOOLS / "bin/s3s-fs"), "--host", "127.0.0.1", "--port", str(self.port), *access, str(self.root)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
        self.process = host.start(command, env={**os.environ, "RUST_LOG": "error"}, **quiet)
        host.wait_until(self.answers, "the S3 server answers")

    def answers(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"the S3 server ended with status {self.process.returncode}")
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def environment(self):
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "RCLONE_"))}
        return {**kept, **KEYS, "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": self.url, "AWS_EC2_METADATA_DISABLED": "true"}

    def down(self):
        self.process.terminate()
        host.end(self.process)


class S5cmd:
    name = "s5cmd"
    binary = TOOLS / "s5cmd/s5cmd/bin/s5cmd"

    def __init__(self, server):
        self.server, self.env = server, server.environment()

    def version(self):
        return "s5cmd " + host.output(str(self.binary), "version")

    def copy(self, *arguments):
        host.run([str(self.binary), "--endpoint-url", self.server.url, "--log", "error", "cp", *map(str, arguments)], env=self.env)

    def fetch(self, prefix, directory):
        return timed(lambda: self.copy(f"s3://{BUCKET}/{prefix}/*", f"{directory}/"))

    def publish(self, directory, prefix):
        return timed(lambda: self.copy(f"{directory}/", f"s3://{BUCKET}/{prefix}/"))


class Rclone:
    name = "rclone"

    def __init__(self, server):
        remote = {"type": "s3", "provider": "Other", "env_auth": "true", "endpoint": server.url, "no_check_bucket": "true"}
        variables = {f"RCLONE_CONFIG_BENCH_{key.upper()}": value for key, value in remote.items()}
        self.env = {**server.environment(), **variables, "RCLONE_CONFIG": "/dev/null"}

    def version(self):
        return host.output("rclone", "version").splitlines()[0]

    def copy(self, source, target):
        host.run(["rclone", "copy", "--transfers", "16", "--multi-thread-streams", "16", str(source), str(target)], env=self.env)

    def fetch(self, prefix, directory):
        return timed(lambda: self.copy(f"bench:{BUCKET}/{prefix}", directory))

    def publish(self, directory, prefix):
        return timed(lambda: self.copy(directory, f"bench:{BUCKET}/{prefix}"))


class Runseal:
    name = "runseal"
    binary = os.environ.get("RUNSEAL", "target/release/runseal")

    def __init__(self, server):
        self.env = server.environment()

    def version(self):
        return host.output(self.binary, "--version")

    def round_trip(self, prefix, base):
        """Seconds of both phases, of one run."""
        report = base / "report.json"
        move = 'mv "$RUNSEAL_INPUT"/in/* "$RUNSEAL_OUTPUT"/'
        options = ["--input", f"s3://{BUCKET}/{prefix}/=in", "--output", f"s3://{BUCKET}/out/", "--backing", base, "--report", report]
        host.run([str(word) for word in (self.binary, "run", *options, "--", "sh", "-c", move)], env=self.env)
        phases = {phase["phase"]: phase["seconds"] for phase in json.loads(report.read_text())["phases"]}
        return phases["preflight"], phases["fetch"], phases["publish"]


def timed(work):
    begin = time.monotonic()
    work()
    return time.monotonic() - begin


def free_port():
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return any_port.getsockname()[1]


def sets(options):
    """Objects by prefix: how many, and bytes of each."""
    if options.s3_sizes:
        pairs = (pair.split("x") for pair in options.s3_sizes.split(","))
        found = [(int(count), int(mib)) for count, mib in pairs]
    else:
        found = [(1, 256), (100, 1)] if options.quick else [(1, 4096), (1000, 1)]
    return {f"{count} x {mib} MiB": (count, mib * MIB) for count, mib in found}


def make(directory, count, size):
    """Contents that nothing on the way could compress."""
    directory.mkdir()
    for index in range(count):
        with open(directory / f"object-{index:05}", "wb") as file:
            for at in range(0, size, 16 * MIB):
                file.write(os.urandom(min(16 * MIB, size - at)))


def run(options, base, out):
    server = Server(base)
    peers = {peer.name: peer(server) for peer in (Runseal, S5cmd, Rclone)}
    results = {"facts": host.facts(base), "rounds": options.rounds, "quick": options.quick, "results": []}
    results["versions"] = {name: peer.version().splitlines()[0] for name, peer in peers.items()}
    try:
        for title, (count, size) in sets(options).items():
            make(base / "source", count, size)
            peers["s5cmd"].publish(base / "source", "in")
            for turn in range(options.rounds):
                order = list(peers)
                for name in order[turn % 3 :] + order[: turn % 3]:
                    # It waits for the server most of the time, and is steady enough once.
                    if name == "rclone" and turn > 0:
                        continue
                    for row, seconds in measure(peers[name], server, base):
                        found = {"row": f"{title}, {row}", "target": name, "round": turn, "seconds": seconds, "bytes": count * size}
                        results["results"].append(found)
                        print(f"{turn + 1}/{options.rounds} {name:8} {title}, {row}: {seconds:.3f} s", file=sys.stderr)
            shutil.rmtree(base / "source")
            clear(server.root / BUCKET)
    finally:
        server.down()
    results["facts"]["load_after"] = os.getloadavg()[0]
    results["facts"]["ended"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    (out / "s3.json").write_text(json.dumps(results, indent=1))
    (out / "s3.md").write_text(markdown(results))
    print((out / "s3.md").read_text())


def measure(peer, server, base):
    """Fetches and publishes once, from and to nothing; the disk is quiet before."""
    host.settle(base)
    if peer.name == "runseal":
        rows = list(zip(("preflight", "fetch", "publish"), peer.round_trip("in", base)))
    else:
        (base / "plain").mkdir()
        rows = [("fetch", peer.fetch("in", base / "plain"))]
        host.settle(base)
        rows.append(("publish", peer.publish(base / "plain", "out")))
        shutil.rmtree(base / "plain")
    came = sum(1 for path in (server.root / BUCKET / "out").rglob("object-*"))
    wanted = sum(1 for path in (base / "source").iterdir())
    if came != wanted:
        raise RuntimeError(f"{peer.name} published {came} of {wanted} objects")
    clear(server.root / BUCKET / "out")
    return rows


def clear(directory):
    shutil.rmtree(directory)
    directory.mkdir()
    for left in directory.parent.glob(".*out*" if directory.name == "out" else ".*"):
        left.unlink() if left.is_file() else shutil.rmtree(left)


def markdown(results):
    cells = {}
    for found in results["results"]:
        cells.setdefault(found["row"], {}).setdefault(found["target"], []).append(found["seconds"])
    names = list(results["versions"])
    facts = results["facts"]
    kind = "Smoke test, not a measurement. " if results["quick"] else ""
    lines = [
        f"{kind}Seconds, median of {results['rounds']} rounds, of rclone one (least–most). \"vs\" says how many times as fast runseal is; above 1 it wins.",
        f"{machine(facts)}; server s3s-fs on the same machine; commit {commit(facts)}; "
        f"{when(facts)}. {'; '.join(results['versions'].values())}.",
        "",
        "| objects | " + " | ".join(names) + " | " + " | ".join(f"vs {peer} (goal {goal:g})" for peer, goal in GOALS.items()) + " |",
        "|---|" + "---:|" * (len(names) + len(GOALS)),
    ]
    for row, found in cells.items():
        ratios = [number(median(found[peer]) / median(found["runseal"])) if peer in found else "–" for peer in GOALS]
        lines.append(f"| {row} | " + " | ".join(span(found.get(name)) for name in names) + " | " + " | ".join(ratios) + " |")
    return "\n".join(lines) + "\n"

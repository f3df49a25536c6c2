"""The node daemon: what a run costs that is made through its API, does nothing, and is ended.

One service of its own, one client, one request after the other. The time of a request is that of the whole exchange as the
client sees it; a run is ready when its answer is there, and that is checked by writing a file into it.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median, quantiles

import host
from render import commit, machine, number, when

BINARY = os.environ.get("RUNSEAL", "target/release/runseal")
# Seconds after which the last worker thread without work has ended.
SETTLED = 12
# Milliseconds but for memory (GiB) and CPU (per cent of one core).
GOALS = {"create": 150, "list": 5, "end": 250, "memory": 5, "cpu": 0.5}
ROWS = {
    "create": "`POST /v1/runs`, to ready",
    "show": "`GET /v1/runs/ID`",
    "list": "`GET /v1/runs`",
    "metrics": "`GET /metrics`",
    "end": "`DELETE /v1/runs/ID`, to wiped",
    "adopt": "restart, to all runs taken over",
}


class Service:
    """`runseal serve` with a configuration, a socket and mountpoints of its own."""

    def __init__(self, base, runs):
        self.base, self.socket, self.process = base, base / "serve.sock", None
        for name in ("mounts", "backing"):
            (base / name).mkdir()
        lines = [
            f'[api]\nsocket = "{self.socket}"\nmode = "0600"',
            f'[mounts]\nroots = ["{base}/mounts"]\nbacking = ["{base}/backing"]',
            f"[limits]\nruns = {runs}",
        ]
        (base / "serve.toml").write_text("\n".join(lines))

    def up(self):
        with open(self.base / "log", "a") as log:
            command = [BINARY, "serve", "--config", str(self.base / "serve.toml")]
            self.process = host.start(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        host.wait_until(self.answers, "the service answers")

    def answers(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"the service ended: {(self.base / 'log').read_text()[-2000:]}")
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self.socket)) == 0

    def kill(self):
        self.process.kill()
        host.end(self.process)

    def down(self):
        """Ends what a failure has left, the service last."""
        if self.process is None or self.process.poll() is not None:
            self.up()
        client = Client(self.socket)
        for run in client.runs():
            client.ask("DELETE", f"/v1/runs/{run['id']}?discard")
        self.process.terminate()
        host.end(self.process)


class Client:
    """One connection that stays open; as little work around a request as Python allows."""

    def __init__(self, path):
        self.stream = socket.socket(socket.AF_UNIX)
        self.stream.connect(str(path))

    def ask(self, method, path, body=b""):
        """Status, body, and seconds from the first byte sent to the last one received."""
        request = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        begin = time.perf_counter()
        self.stream.sendall(request)
        answer = bytearray()
        length = None
        while length is None or len(answer) < length:
            part = self.stream.recv(1 << 20)
            if not part:
                raise RuntimeError(f"{method} {path}: the service hung up")
            answer += part
            if length is None and (head := answer.find(b"\r\n\r\n")) >= 0:
                fields = dict(line.lower().split(b": ", 1) for line in bytes(answer[:head]).split(b"\r\n")[1:])
                length = head + 4 + int(fields[b"content-length"])
        seconds = time.perf_counter() - begin
        status = int(answer[9:12])
        if status >= 300:
            raise RuntimeError(f"{method} {path}: {bytes(answer[head + 4:]).decode()}")
        return bytes(answer[head + 4 :]), seconds

    def runs(self):
        return json.loads(self.ask("GET", "/v1/runs")[0])["runs"]


def run(options, base, out):
    runs, lists, idle = (20, 200, 2) if options.quick else (200, 2000, 20)
    results = {"facts": host.facts(base), "quick": options.quick, "runs": runs, "lists": lists, "idle_seconds": idle}
    results["version"] = host.output(BINARY, "--version")
    results["milliseconds"], results["idle"] = {row: [] for row in ROWS}, []
    service = Service(base, runs)
    try:
        for turn in range(options.rounds):
            service.up()
            measure(service, results, f"bench-{os.getpid()}-{turn}")
            service.process.terminate()
            host.end(service.process)
            print(f"{turn + 1}/{options.rounds} serve: {runs} runs made, listed, left idle and ended", file=sys.stderr)
    finally:
        service.down()
    results["facts"]["load_after"] = os.getloadavg()[0]
    results["facts"]["ended"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    (out / "serve.json").write_text(json.dumps(results, indent=1))
    (out / "serve.md").write_text(markdown(results))
    print((out / "serve.md").read_text())


def measure(service, results, prefix):
    client, took = Client(service.socket), results["milliseconds"]
    names = [f"{prefix}-{index:03}" for index in range(results["runs"])]
    for name in names:
        body = json.dumps({"id": name, "size": "1G"}).encode()
        took["create"].append(1e3 * client.ask("POST", "/v1/runs", body)[1])
        (service.base / "mounts" / name / "file").write_bytes(b"\0" * 4096)
    made = client.runs()
    mounted = {mount["point"] for mount in host.mounts() if mount["type"] == "fuse.runseal"}
    if [run["id"] for run in made] != names or not mounted.issuperset(run["mountpoint"] for run in made):
        raise RuntimeError(f"{len(made)} of {len(names)} runs are there")
    results["list_bytes"] = len(client.ask("GET", "/v1/runs")[0])
    results["idle"].append(at_rest(service, made, results["idle_seconds"]))
    client = Client(service.socket)  # the service hangs up on who says nothing
    for index in range(results["lists"]):
        took["list"].append(1e3 * client.ask("GET", "/v1/runs")[1])
        took["show"].append(1e3 * client.ask("GET", f"/v1/runs/{names[index % len(names)]}")[1])
    for _ in range(results["lists"] // 20):
        took["metrics"].append(1e3 * client.ask("GET", "/metrics")[1])
    service.kill()
    begin = time.perf_counter()
    service.up()
    client = Client(service.socket)
    again = client.runs()
    took["adopt"].append(1e3 * (time.perf_counter() - begin))
    if again != made:
        raise RuntimeError("not all runs were taken over as they were")
    for name in names:
        took["end"].append(1e3 * client.ask("DELETE", f"/v1/runs/{name}")[1])
    left = [mount["point"] for mount in host.mounts() if mount["point"].startswith(f"{service.base}/")]
    if left or client.runs():
        raise RuntimeError(f"not all is gone: {left}")


def at_rest(service, runs, seconds):
    """Memory of everybody, and CPU time while nobody asks for anything."""
    families = [run[process] for run in runs for process in ("supervisor", "sealed")]
    time.sleep(SETTLED)
    begin, before = time.monotonic(), cpu([*families, service.process.pid])
    time.sleep(seconds)
    passed = time.monotonic() - begin
    of_families, of_service = (spent(processes, before) for processes in (families, [service.process.pid]))
    return {
        "processes": len(families),
        "pss_mib": sum(map(pss_kib, families)) / 1024,
        "rss_mib": host.resident_kib(families) / 1024,
        "service_mib": host.resident_kib([service.process.pid]) / 1024,
        "cpu_percent": 100 * of_families / passed,
        "service_cpu_percent": 100 * of_service / passed,
    }


def cpu(processes):
    """Seconds of CPU by thread, to the nanosecond (schedstat)."""
    tasks = [task for process in processes for task in Path(f"/proc/{process}/task").iterdir()]
    return {task: int((task / "schedstat").read_text().split()[0]) / 1e9 for task in tasks}


def spent(processes, before):
    """Seconds of CPU since `before`; no thread has ended since then, and a new one counts whole."""
    now = cpu(processes)
    if gone := [task for task in before if not task.exists()]:
        raise RuntimeError(f"threads ended while nobody asked for anything: {gone}")
    return sum(seconds - before.get(task, 0) for task, seconds in now.items())


def pss_kib(process):
    """Proportional set size: pages that processes share count once in the sum."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def markdown(results):
    facts, idle, runs = results["facts"], results["idle"], results["runs"]
    disk = facts["backing"]
    kind = "Smoke test, not a measurement. " if results["quick"] else ""

    def spread(key, factor=1):
        found = [factor * turn[key] for turn in idle]
        return f"{number(median(found))} ({number(min(found))}–{number(max(found))})"

    lines = [
        f"{kind}{runs} runs, one after the other, {len(idle)} times; milliseconds as one client sees them. The list has {results['list_bytes'] >> 10} KiB.",
        f"{machine(facts)}; backing {disk['type']}; {results['version']}, commit {commit(facts)}; "
        f"{when(facts)}.",
        "",
        "| request | count | median | p99 | least–most | goal |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row, title in ROWS.items():
        found = results["milliseconds"][row]
        p99 = number(quantiles(found, n=100, method="inclusive")[98]) if len(found) >= 100 else "–"
        goal = f"{GOALS[row]}" if row in GOALS else "–"
        lines.append(f"| {title} | {len(found)} | {number(median(found))} | {p99} | {number(min(found))}–{number(max(found))} | {goal} |")
    lines += [
        "",
        f"| {runs} idle runs, {idle[0]['processes']} processes | median (least–most) | goal |",
        "|---|---:|---:|",
        f"| memory in all, GiB (proportional set size) | {spread('pss_mib', 1 / 1024)} | {GOALS['memory']} |",
        f"| memory of one, MiB | {spread('pss_mib', 1 / runs)} | – |",
        f"| CPU of all, per cent of one core over {results['idle_seconds']} s | {spread('cpu_percent')} | {GOALS['cpu']} |",
        f"| memory of the service itself, MiB resident | {spread('service_mib')} | – |",
        f"| CPU of the service itself, per cent of one core | {spread('service_cpu_percent')} | – |",
    ]
    return "\n".join(lines) + "\n"

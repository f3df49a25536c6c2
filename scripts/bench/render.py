"""Results as a Markdown table and as SVG plots, with nothing but the standard library."""

import math
from html import escape
from statistics import median

from workloads import HIGHER, ROWS

COLOURS = {"runseal": "#c2410c", "runseal-leave": "#fb923c", "gocryptfs": "#2563eb", "securefs": "#7c3aed", "encfs": "#7c3aed", "plain": "#374151", "tmpfs": "#9ca3af"}
CPU_ROWS = ("seq-write-1", "seq-write-4", "seq-read-1", "seq-read-4")


def all_of(results, out):
    table = Table(results)
    (out / "table.md").write_text(table.markdown())
    (out / "speed.svg").write_text(speed_plot(table))
    (out / "cpu.svg").write_text(cpu_plot(table))


def machine(facts):
    return f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, Linux {facts['kernel']}"


def commit(facts):
    return facts["commit"][:12] + (" with changes" if facts["dirty"] else "")


def when(facts):
    return f"load {facts['load_before']:.1f} before and {facts['load_after']:.1f} after; {facts['started']} to {facts['ended']}"


class Table:
    """Medians and ranges of every row and target."""

    def __init__(self, results):
        self.results = results
        self.names = list(results["versions"])
        self.cells, self.cpu = {}, {}
        for found in results["results"]:
            key = found["row"], found["target"]
            self.cells.setdefault(key, []).append(found["value"])
            if found.get("gib"):
                self.cpu.setdefault(key, []).append((found["cpu_daemon"] + found["cpu_client"]) / found["gib"])
        self.rows = [row for row in ROWS if any((row, name) in self.cells for name in self.names)]

    def ratio(self, row, other, name="runseal"):
        """How many times as fast `name` is as `other`."""
        if (row, name) not in self.cells or (row, other) not in self.cells:
            return None
        ours, theirs = median(self.cells[row, name]), median(self.cells[row, other])
        return ours / theirs if ROWS[row][3] == HIGHER else theirs / ours

    def mean_ratio(self, other, name="runseal"):
        """Geometric mean, without what is no work: coming and going, and a copy that only shares extents."""
        counted = [row for row in self.rows if ROWS[row][0] != "lifecycle" and row != "cp"]
        ratios = [self.ratio(row, other, name) for row in counted]
        ratios = [ratio for ratio in ratios if ratio]
        return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None

    def markdown(self):
        peers = [name for name in self.names if name != "runseal"] if "runseal" in self.names else []
        lines = [
            "| workload | unit | " + " | ".join(self.names + [f"vs {peer}" for peer in peers]) + " |",
            "|---|---|" + "---:|" * (len(self.names) + len(peers)),
        ]
        for row in self.rows:
            cells = [span(self.cells.get((row, name))) for name in self.names]
            cells += [times(self.ratio(row, peer)) for peer in peers]
            lines.append(f"| {ROWS[row][1]} | {ROWS[row][2]} | " + " | ".join(cells) + " |")
        if peers:
            means = [f"**{times(self.mean_ratio(peer))}**" for peer in peers]
            lines.append("| **geometric mean** (without cp and the last two rows) | | " + " | ".join([""] * len(self.names) + means) + " |")
        return "\n".join([*self.heading(), "", *lines, "", *self.cpu_lines(), "", *self.memory_lines(), ""])

    def heading(self):
        facts, rounds = self.results["facts"], self.results["rounds"]
        disk, versions = facts["backing"], "; ".join(self.results["versions"].values())
        kind = "Smoke test, not a measurement. " if self.results["quick"] else ""
        return [
            f"{kind}Median of {rounds} rounds (least–most). \"vs\" says how many times as fast runseal is; above 1 it wins.",
            "",
            f"{facts['host']}: {machine(facts)}; "
            f"backing {disk['type']} on {disk['source']} ({disk['options']}); caches {'' if facts['caches_dropped'] else 'not '}"
            f"dropped where a row says so; commit {commit(facts)}; {when(facts)}. {versions}.",
        ]

    def cpu_lines(self):
        names = [name for name in self.names if any((row, name) in self.cpu for row in CPU_ROWS)]
        rows = [row for row in CPU_ROWS if any((row, name) in self.cpu for name in names)]
        if not rows:
            return []
        lines = ["| CPU seconds per GiB, daemon and client | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
        lines += [f"| {ROWS[row][1]} | " + " | ".join(span(self.cpu.get((row, name))) for name in names) + " |" for row in rows]
        return lines

    def memory_lines(self):
        rest, end = self.results["memory_rest_kib"], self.results["memory_end_kib"]
        if not rest:
            return []
        return [
            "| daemon memory, MiB resident | " + " | ".join(rest) + " |",
            "|---|" + "---:|" * len(rest),
            "| at rest, just mounted | " + " | ".join(f"{kib / 1024:.1f}" for kib in rest.values()) + " |",
            "| after all workloads | " + " | ".join(f"{kib / 1024:.1f}" for kib in end.values()) + " |",
        ]


def span(values):
    if not values:
        return "–"
    if len(values) == 1:
        return number(values[0])
    return f"{number(median(values))} ({number(min(values))}–{number(max(values))})"


def number(value):
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{round(value, 2 - math.floor(math.log10(abs(value)))):.{digits}f}"


def times(ratio):
    return "–" if ratio is None else number(ratio)


def speed_plot(table):
    """One line a row: how fast every target is against the plain directory, on a logarithmic axis."""
    base = "plain" if "plain" in table.names else table.names[0]
    rows = [row for row in table.rows if (row, base) in table.cells]
    shown = [name for name in table.names if name != base]
    ratios = {(row, name): table.ratio(row, base, name) for row in rows for name in shown}
    found = [ratio for ratio in ratios.values() if ratio]
    if not found:
        return svg(200, 40, [])
    low, high = math.floor(math.log2(min(found))), math.ceil(math.log2(max(found)))
    low, high = min(low, -1), max(high, 1)
    left, width, step, top = 330, 560, 22, 64

    def x(ratio):
        return left + (math.log2(ratio) - low) / (high - low) * width

    bottom = top + step * len(rows)
    parts = [text(16, 24, f"Speed against {base} (right is faster)", size=16, weight="bold"), *legend(shown, 16, 46)]
    for power in range(low, high + 1, 1 if high - low <= 12 else 2):
        label = f"{2**power}x" if power >= 0 else f"1/{2**-power}"
        main = power == 0
        parts.append(line(x(2**power), top - 4, x(2**power), bottom, "#111827" if main else "#e5e7eb", 1.5 if main else 1))
        parts.append(text(x(2**power), bottom + 18, label, anchor="middle", size=11))
    for index, row in enumerate(rows):
        y = top + step * (index + 0.5)
        parts.append(text(left - 12, y + 4, ROWS[row][1], anchor="end", size=12))
        parts.append(line(left, y, left + width, y, "#f3f4f6", 1))
        for name in sorted(shown, key=lambda name: name == "runseal"):
            if ratios[row, name]:
                parts.append(dot(x(ratios[row, name]), y, 6 if name == "runseal" else 4.5, COLOURS[name]))
    return svg(left + width + 40, bottom + 34, parts)


def cpu_plot(table):
    """Bars: CPU seconds per GiB."""
    names = [name for name in table.names if any((row, name) in table.cpu for row in CPU_ROWS)]
    rows = [row for row in CPU_ROWS if any((row, name) in table.cpu for name in names)]
    most = max((median(values) for (row, _), values in table.cpu.items() if row in rows), default=0)
    if not most:
        return svg(200, 40, [])
    left, width, bar = 330, 480, 12
    parts = [text(16, 24, "CPU seconds per GiB, daemon and client (left is better)", size=16, weight="bold"), *legend(names, 16, 46)]
    y = 64
    for row in rows:
        parts.append(text(left - 12, y + bar * len(names) / 2 + 4, ROWS[row][1], anchor="end", size=12))
        for name in names:
            if (row, name) in table.cpu:
                value = median(table.cpu[row, name])
                parts.append(f'<rect x="{left}" y="{y}" width="{value / most * width:.1f}" height="{bar - 2}" fill="{COLOURS[name]}"/>')
                parts.append(text(left + value / most * width + 6, y + bar - 3, number(value), size=11))
            y += bar
        y += 12
    return svg(left + width + 80, y + 8, parts)


def legend(names, x, y):
    parts = []
    for name in names:
        parts += [dot(x + 5, y - 4, 5, COLOURS[name]), text(x + 15, y, name, size=12)]
        x += 30 + 8 * len(name)
    return parts


def svg(width, height, parts):
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="#ffffff"/>', *parts, "</svg>\n"])


def text(x, y, words, anchor="start", size=12, weight="normal"):
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="#111827">{escape(words)}</text>'


def line(x1, y1, x2, y2, colour, width):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def dot(x, y, radius, colour):
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"/>'

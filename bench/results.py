"""What was measured and whether it is enough: printed as it comes, and kept in bench/results for the page."""

import json
import os
import platform
import statistics
import time
from pathlib import Path

from tests.bed.nginx import version

from .bed import ROOT

RESULTS = ROOT / "bench/results"
median = statistics.median


class Result:
    """Of one part. `figures` is what tables and plots are made of."""

    def __init__(self, part, title):
        self.part, self.title = part, title
        self.checks, self.figures = [], {}
        self.start = time.monotonic()
        self.load = [os.getloadavg()[0]]
        print(f"==> {part}: {title}", flush=True)

    def check(self, required, measured, passed):
        """One line of "Must reach"."""
        self.checks.append({"required": required, "measured": measured, "passed": bool(passed)})
        print(f"    {'PASS' if passed else 'FAIL'}  required: {required} | measured: {measured}", flush=True)

    def figure(self, name, **values):
        """One row."""
        self.figures.setdefault(name, {}).update(values)
        print(f"    {name}: " + ", ".join(f"{key} {shown(value)}" for key, value in values.items()), flush=True)

    @property
    def passed(self):
        return all(check["passed"] for check in self.checks)

    def save(self):
        RESULTS.mkdir(parents=True, exist_ok=True)
        self.load.append(os.getloadavg()[0])
        record = {"part": self.part, "title": self.title, "nginx": version(), "machine": machine(), "figures": self.figures,
                  "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), "seconds": round(time.monotonic() - self.start),
                  "load": [round(load, 1) for load in self.load], "checks": self.checks}
        (RESULTS / f"{self.part}.json").write_text(json.dumps(record, indent=1))


def in_turns(rounds, cases, measure):
    """What `measure(*case)` gives, so many times for each case. The cases take turns, so that noise that comes and goes is the
    same for all."""
    runs = {case: [] for case in cases}
    for _ in range(rounds):
        for case in cases:
            runs[case].append(measure(*case))
    return runs


def load(part):
    path = RESULTS / f"{part}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def shown(value):
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def machine():
    model = [line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return f"{model[0] if model else platform.machine()}, {len(os.sched_getaffinity(0))} processors, Linux {platform.release()}"


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))]

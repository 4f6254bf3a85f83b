"""Figures: what is required, what was measured, and whether that is enough.

Each campaign fills a `Report`. It is printed line by line, and kept: of a run at full length in campaign/results, from where
`scripts/campaign --table` takes it into docs/behaviour.md, of a short one in build/campaign. Where time is measured on a
busy machine, `Noise` says how late a process that only sleeps was woken meanwhile: what is above the bound by less than
that is the machine's.
"""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from tests.bed.processes import ROOT

from .bed import WORK

RESULTS = Path(os.environ.get("CAMPAIGN_RESULTS") or ROOT / "campaign/results")


class Report:
    def __init__(self, name, short):
        self.name, self.short = name, short
        self.rows = []
        self.load = os.getloadavg()[0]

    def check(self, required, measured, passed, key=True):
        """`key`: whether it stands in the table, or only has to hold."""
        self.rows.append({"required": required, "measured": str(measured), "passed": bool(passed), "key": key})
        print(f"  {'PASS' if passed else 'FAIL'}  required: {required} | measured: {measured}", flush=True)

    def equal(self, what, required, measured, key=True):
        self.check(f"{what}: {required:,}" if isinstance(required, int) else f"{what}: {required}",
                   f"{measured:,}" if isinstance(measured, int) else measured, measured == required, key)

    def at_most(self, what, most, measured, unit="", slack=0.0, key=True):
        extra = f" (+ {slack:.0f}{unit} noise of the machine)" if slack else ""
        self.check(f"{what} ≤ {most:,g}{unit}{extra}", number(measured) + unit, measured <= most + slack, key)

    def at_least(self, what, least, measured, unit="", key=True):
        self.check(f"{what} ≥ {least:,g}{unit}", number(measured) + unit, measured >= least, key)

    def note(self, text, key=False):
        """A figure without a bound."""
        self.rows.append({"required": "–", "measured": text, "passed": True, "key": key})
        print(f"        {text}", flush=True)

    @property
    def passed(self):
        return all(row["passed"] for row in self.rows)

    def save(self, seconds, title):
        results = WORK / "results" if self.short else RESULTS
        results.mkdir(parents=True, exist_ok=True)
        # What makes a run another than the usual one is told with it.
        setting = f"CAMPAIGN_OUTAGE={os.environ['CAMPAIGN_OUTAGE']} " if "CAMPAIGN_OUTAGE" in os.environ else ""
        record = {"name": self.name, "title": title, "command": f"{setting}scripts/campaign {self.name}", "short": self.short,
                  "seconds": round(seconds), "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), "commit": commit(),
                  "machine": machine(), "load": round(self.load, 1), "nice": os.nice(0), "rows": self.rows}
        text = json.dumps(record, indent=1, ensure_ascii=False)
        (results / f"{self.name}.json").write_text(text + "\n")


def number(value):
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def machine():
    """What a reader needs to judge a figure by."""
    cpu = memory = "?"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal"):
            memory = f"{int(line.split()[1]) / (1 << 20):.0f} GiB"
    return f"{os.cpu_count()} cores ({cpu}), {memory}, Linux {platform.release().partition('-')[0]}"


def commit():
    """The last one that changed the module; + if something of it has been edited since."""
    def git(*arguments):
        return subprocess.run(["git", *arguments, "--", "src", "core"], cwd=ROOT, text=True, capture_output=True,
                              check=False).stdout.strip()

    return git("log", "-1", "--format=%h") + ("+" if git("status", "--porcelain") else "")


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))] if values else 0.0


def spread(values, unit="ms", factor=1000):
    """p50, p99 and the most, for a reader."""
    return " ".join(f"{name} {percentile(values, share) * factor:.1f}" for name, share in
                    (("p50", 0.5), ("p99", 0.99), ("max", 1.0))) + f" {unit}"


class Noise:
    """How late a sleeper is woken while the context lasts: `worst`, in milliseconds."""

    SLEEPER = """
import select, sys, time
worst = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    before = time.monotonic(); time.sleep(0.002); worst = max(worst, time.monotonic() - before - 0.002)
print(worst * 1000)
"""

    def __enter__(self):
        self.worst = 0.0
        self.process = subprocess.Popen([sys.executable, "-c", self.SLEEPER], cwd=ROOT, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(self, *_):
        out, _ = self.process.communicate("stop\n")
        self.worst = float(out)

"""Figures: what is required, what was measured, and whether that is enough.

Each campaign fills a `Report`. It is printed line by line, and kept in build/campaign/results for the table of
docs/behaviour.md (`scripts/campaign --table`). Where time is measured on a busy machine, `Noise` says how late a process that only
sleeps was woken meanwhile: what is above the bound by less than that is the machine's.
"""

import json
import subprocess
import sys
import time

from .bed import ROOT, WORK


class Report:
    def __init__(self, name, short):
        self.name, self.short = name, short
        self.rows = []

    def check(self, required, measured, passed):
        self.rows.append({"required": required, "measured": str(measured), "passed": bool(passed)})
        print(f"  {'PASS' if passed else 'FAIL'}  required: {required} | measured: {measured}", flush=True)

    def equal(self, what, required, measured):
        self.check(f"{what}: {required:,}" if isinstance(required, int) else f"{what}: {required}",
                   f"{measured:,}" if isinstance(measured, int) else measured, measured == required)

    def at_most(self, what, most, measured, unit="", slack=0.0):
        extra = f" (+ {slack:.0f}{unit} noise of the machine)" if slack else ""
        self.check(f"{what} ≤ {most:,g}{unit}{extra}", f"{measured:,.5g}{unit}", measured <= most + slack)

    def at_least(self, what, least, measured, unit=""):
        self.check(f"{what} ≥ {least:,g}{unit}", f"{measured:,.5g}{unit}", measured >= least)

    def note(self, text):
        """A figure without a bound."""
        self.rows.append({"required": "–", "measured": text, "passed": True})
        print(f"        {text}", flush=True)

    @property
    def passed(self):
        return all(row["passed"] for row in self.rows)

    def save(self, seconds):
        results = WORK / "results"
        results.mkdir(parents=True, exist_ok=True)
        record = {"name": self.name, "short": self.short, "seconds": round(seconds), "rows": self.rows,
                  "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
                  "command": f"scripts/campaign {self.name}{' --short' if self.short else ''}"}
        (results / f"{self.name}{'-short' if self.short else ''}.json").write_text(json.dumps(record, indent=1))


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

"""Figures: what is required, what was measured, and whether that is enough.

Each campaign fills a `Report`. It is printed line by line, and kept: of a run at full length in campaign/results, from where
`scripts/campaign --table` takes it into docs/behaviour.md, of a short one in build/campaign. Where time is measured on a
busy machine, `Noise` says how late a process that only sleeps was woken meanwhile: what is above the bound by less than
that is the machine's.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.bed.processes import ROOT
from tests.bed.report import Figures, percentile

from .bed import WORK

RESULTS = Path(os.environ.get("CAMPAIGN_RESULTS") or ROOT / "campaign/results")


class Report(Figures):
    def __init__(self, name, short):
        super().__init__(name)
        self.short = short

    def check(self, required, measured, passed, key=True):
        """`key`: whether it stands in the table, or only has to hold."""
        super().check(required, measured, passed, key=key)

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

    def save(self, title):
        # What makes a run another than the usual one is told with it.
        setting = f"CAMPAIGN_OUTAGE={os.environ['CAMPAIGN_OUTAGE']} " if "CAMPAIGN_OUTAGE" in os.environ else ""
        self.keep(WORK / "results" if self.short else RESULTS, title=title, command=f"{setting}scripts/campaign {self.name}",
                  short=self.short, commit=commit(), nice=os.nice(0))


def number(value):
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def commit():
    """The last one that changed the module; + if something of it has been edited since."""
    def git(*arguments):
        return subprocess.run(["git", *arguments, "--", "src", "core"], cwd=ROOT, text=True, capture_output=True,
                              check=False).stdout.strip()

    return git("log", "-1", "--format=%h") + ("+" if git("status", "--porcelain") else "")


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

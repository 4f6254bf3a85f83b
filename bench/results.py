"""What was measured and whether it is enough: printed as it comes, and kept in bench/results for the page."""

import json
import os
import statistics

from tests.bed.nginx import version
from tests.bed.report import Figures

from .bed import ROOT

RESULTS = ROOT / "bench/results"
median = statistics.median
# What counts of the same thing differ by: the fewest of three runs, or the medians of five.
SAME = 1.002


class Result(Figures):
    """Of one part. `figures` is what tables and plots are made of."""

    def __init__(self, part, title):
        super().__init__(part)
        self.title, self.figures = title, {}
        print(f"==> {part}: {title}", flush=True)

    def figure(self, name, **values):
        """One row."""
        self.figures.setdefault(name, {}).update(values)
        print(f"    {name}: " + ", ".join(f"{key} {shown(value)}" for key, value in values.items()), flush=True)

    def save(self):
        self.keep(RESULTS, title=self.title, nginx=version(), figures=self.figures, load_at_end=round(os.getloadavg()[0], 1))


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

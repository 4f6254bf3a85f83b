"""What was checked, and how it came out: a line for each check, and a closing line that counts them.

`Report` is for checks that hold or do not. `Figures` is for what is measured beside what is required of it.
"""

import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path


def say(passed: bool, text: str) -> None:
    """The line of one check, wherever it is."""
    print(f"{'ok  ' if passed else 'FAIL'} {text}", flush=True)


def closing_line(name: str, passed: int, failed: int) -> str:
    """The last line of a run."""
    return f"{name}: {passed} passed, {failed} failed"


@dataclass(frozen=True)
class Result:
    """One check. `group` is what it is about, where a suite has groups."""

    title: str
    problem: str  # empty if the check passed
    group: object = None


class Report:
    """Collects results, and prints each as soon as it is known."""

    def __init__(self, name: str):
        self.name = name
        self.results: list[Result] = []

    def check(self, title: str, problem: object = None, *, group: object = None, note: str = "") -> bool:
        """Records that `title` holds unless `problem` is something: it then says what was seen instead."""
        text = str(problem) if problem else ""
        self.results.append(Result(title, text, group))
        say(not text, f"{title}{f': {note}' if note else ''}" + (f"\n       {text}" if text else ""))
        return not text

    def of(self, group: object) -> list[Result]:
        """The results of one group."""
        return [result for result in self.results if result.group is group]

    @property
    def failed(self) -> list[Result]:
        """The results that have a problem."""
        return [result for result in self.results if result.problem]

    def closing_line(self) -> str:
        """The last line of a run."""
        return closing_line(self.name, len(self.results) - len(self.failed), len(self.failed))


class Figures:
    """What was measured, each beside what is required of it; kept as a file, of which a page is made."""

    def __init__(self, name: str):
        self.name = name
        self.rows: list[dict] = []
        self.start = time.monotonic()
        self.load = os.getloadavg()[0]

    def check(self, required: str, measured: object, passed: bool, **more) -> None:
        """Records one figure; `more` is what the page needs besides."""
        self.rows.append({"required": required, "measured": str(measured), "passed": bool(passed), **more})
        say(passed, f"required: {required} | measured: {measured}")

    @property
    def passed(self) -> bool:
        """Whether each is as required."""
        return all(row["passed"] for row in self.rows)

    def keep(self, folder: Path, **more) -> None:
        """Writes them into the folder, with what a reader needs to judge them by."""
        folder.mkdir(parents=True, exist_ok=True)
        record = {"name": self.name, **more, "seconds": round(time.monotonic() - self.start),
                  "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), "machine": machine(), "load": round(self.load, 1),
                  "rows": self.rows}
        (folder / f"{self.name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def machine() -> str:
    """Processors, memory, kernel."""
    cpu = memory = "?"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal"):
            memory = f"{int(line.split()[1]) / (1 << 20):.0f} GiB"
    return f"{len(os.sched_getaffinity(0))} cores ({cpu}), {memory}, Linux {platform.release().partition('-')[0]}"


def percentile(values: list, share: float) -> float:
    """The value below which that share of them is; 0 of none."""
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))] if values else 0.0


def step(text: str) -> None:
    """Prints what happens next."""
    print(f"== {text}", flush=True)


def some(problems: list, most: int = 3) -> str:
    """The first few of many problems, and how many there were."""
    shown = "; ".join(str(problem) for problem in problems[:most])
    return shown + (f"; and {len(problems) - most} more" if len(problems) > most else "")

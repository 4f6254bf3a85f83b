"""Runs every check that needs nginx, and Synapse's own list of endpoints where a Synapse is installed.

    scripts/companion-test [NAME ...]

A check is a function whose name begins with `check_`; its doc string is its title. The last line counts them.
"""

import importlib
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import bed  # noqa: E402 - it stands beside this file

from tests.bed.report import Report  # noqa: E402 - bed adds the repository's root to the path

MODULES = ["goldens", "hashes", "endpoints", "edge", "limits", "moving", "rollout", "insight", "live", "privileges", "real"]


def main():
    wanted = sys.argv[1:]
    report = Report("companion")
    for module in MODULES:
        checks = importlib.import_module(module)
        for name, check in list(vars(checks).items()):
            if not name.startswith("check_") or (wanted and not any(part in f"{module}.{name}" for part in wanted)):
                continue
            title = (check.__doc__ or name).strip().splitlines()[0]
            started = time.monotonic()
            problem = note = None
            try:
                note = check()
            except Exception:  # a check that broke is a check that failed
                problem = traceback.format_exc()
            took = f"{time.monotonic() - started:.1f} s"
            report.check(title, problem, note=f"{took}, {note}" if note else took)
        bed.end_shared()
    print(report.closing_line())
    return 1 if report.failed or not report.results else 0


if __name__ == "__main__":
    sys.exit(main())

"""scripts/e2e: starts a bed, asks, asserts, stops it. See --help."""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from tests.bed.nginx import module
from tests.bed.processes import ROOT, BedError
from tests.bed.report import step

from .deployed import layouts
from .layouts import LAYOUTS
from .mas import delegated
from .native import native
from .nginx import Variant
from .report import Group, Report

EXPLANATION = """\
Environment: NGINX_BINARY and MODULE name the nginx and the module under test (default: build/nginx and
build/ngx_http_matrix_user_hash_module.so, which scripts/build makes); E2E_PORT is the first of the 700 ports on
127.0.0.1 that the run uses (default 18000). Logs and configurations stay in build/e2e/run until the next run.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/e2e", description=__doc__, epilog=EXPLANATION,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without-directive", action="store_true",
                        help="the same without the module: workers are chosen by token. The assertions must fail")
    parser.add_argument("--show-it-can-fail", action="store_true",
                        help="run the controls, and succeed only if they fail for the right reason")
    parser.add_argument("--no-mas", action="store_true", help="leave out the part with delegated authentication")
    parser.add_argument("--layouts", nargs="*", metavar="NAME", choices=[layout.name for layout in LAYOUTS],
                        help="every endpoint, in three layouts behind the companion's configuration; or in those named")
    arguments = parser.parse_args()
    # A signal unwinds like an error, so that everything that was started is stopped.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell started us with it ignored
    base = int(os.environ.get("E2E_PORT", "18000"))
    directory = ROOT / "build/e2e/run"
    started = time.monotonic()
    try:
        if arguments.show_it_can_fail:
            return show_it_can_fail(directory, base)
        if arguments.layouts is not None:
            report = Report()
            layouts(report, directory.with_name("layouts"), base + 200, arguments.layouts)
            return closing(report, started)
        variant = Variant.STOCK if arguments.without_directive else Variant.MODULE
        report = Report()
        native(report, directory / "native", base, variant)
        if not arguments.no_mas:
            delegated(report, directory / "mas", base + 100, variant)
        return closing(report, started)
    except BedError as error:
        print(f"scripts/e2e: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("scripts/e2e: interrupted; everything it started is stopped", file=sys.stderr)
        return 130


def closing(report: Report, started: float) -> int:
    """The last lines, and the exit status."""
    print(f"== {time.monotonic() - started:.0f} s; logs are in build/e2e")
    print(report.closing_line())
    return 1 if report.failed else 0


def show_it_can_fail(directory: Path, base: int) -> int:
    """The controls: the same requests and assertions, but nothing that chooses a worker by user."""
    try:
        module()
        variants = [Variant.STOCK, Variant.OFF]
    except BedError:
        variants = [Variant.STOCK]
    verdicts = Report()
    for variant in variants:
        step("control: users must be scattered now, so lines that say FAIL are what this run has to show")
        report = Report()
        native(report, directory / variant.name.lower(), base, variant)
        judge(verdicts, variant, report)
    print(verdicts.closing_line())
    return 1 if verdicts.failed else 0


def judge(verdicts: Report, variant: Variant, report: Report) -> None:
    """The users must be scattered, and nothing else may be wrong: else the control failed for another reason."""
    step(f"verdict on the control: {variant.value}")
    together = [result.title for result in report.of(Group.ONE_WORKER) if not result.problem]
    scattered = len(report.of(Group.ONE_WORKER)) - len(together)
    # Chance keeps a user with few requests on one worker now and then, but never most of them.
    verdicts.about(Group.ONE_WORKER, f"{scattered} users are scattered over several workers, as they must be",
                   scattered <= len(together) and f"{len(together)} users still reach one worker each")
    for group in (Group.ANSWERS, Group.SESSIONS, Group.SPREAD):
        others = [result.title for result in report.of(group) if result.problem]
        verdicts.about(group, f"and that is all that is wrong: {group.value}", "; ".join(others))


if __name__ == "__main__":
    sys.exit(main())

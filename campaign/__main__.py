"""`scripts/campaign`: runs campaigns by name, prints their figures, and says what passed."""

import argparse
import resource
import sys
import time
import traceback

from tests.bed.processes import BedError
from tests.bed.report import closing_line

from . import catalogue, table
from .report import Report


def main():
    parser = argparse.ArgumentParser(prog="scripts/campaign", description="Figures of the cache under pressure.")
    parser.add_argument("name", nargs="*", help="a campaign, several, or \"all\"")
    parser.add_argument("--short", action="store_true", help="some seconds each, with smaller numbers")
    parser.add_argument("--list", action="store_true", help="names the campaigns")
    parser.add_argument("--table", action="store_true", help="writes the results into docs/behaviour.md")
    parser.add_argument("--check-table", action="store_true", help="says whether they are there, of every campaign, and passed")
    arguments = parser.parse_args()
    campaigns = catalogue.campaigns()
    if arguments.list:
        for name, campaign in campaigns.items():
            print(f"{name:<18}{campaign.__doc__.strip().splitlines()[0]}")
        return 0
    if arguments.table or arguments.check_table:
        return table.write() if arguments.table else table.check()
    names = list(campaigns) if "all" in arguments.name else arguments.name
    unknown = [name for name in names if name not in campaigns]
    if unknown or not names:
        parser.error(f"no campaign {' '.join(unknown) or 'named'}; there are: {' '.join(campaigns)}")
    # Thousands of connections from one process.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    failed = [name for name in names if not run(campaigns[name], name, arguments.short)]
    if failed:
        print(f"failed: {' '.join(failed)}")
    print(closing_line("campaign", len(names) - len(failed), len(failed)))
    return 1 if failed else 0


def run(campaign, name, short):
    print(f"{name}: {campaign.__doc__.strip().splitlines()[0]}", flush=True)
    report = Report(name, short)
    try:
        campaign(report)
    except BedError as error:
        report.check("the campaign runs", error, False)
    except Exception:
        report.check("the campaign runs", traceback.format_exc(), False)
    report.save(campaign.__doc__.strip().splitlines()[0])
    print(f"{name}: {'passed' if report.passed else 'FAILED'} in {time.monotonic() - report.start:.0f} s", flush=True)
    return report.passed


if __name__ == "__main__":
    sys.exit(main())

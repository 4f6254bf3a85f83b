"""docs/behaviour.md: the results of the campaigns at full length, between two marks, as campaign/results has them."""

import json

from tests.bed.processes import ROOT

from . import catalogue
from .report import RESULTS

PAGE = ROOT / "docs/behaviour.md"
BEGIN, END = "<!-- scripts/campaign --table -->", "<!-- end of table -->"


def results():
    """Of every campaign its last run at full length, in the catalogue's order; those that are missing."""
    found, missing = [], []
    for name in catalogue.campaigns():
        path = RESULTS / f"{name}.json"
        if path.is_file():
            found.append(json.loads(path.read_text()))
        else:
            missing.append(name)
    return found, missing


def render(found):
    parts = []
    machines = sorted({result["machine"] for result in found})
    parts.append(f"Measured on {'; '.join(machines)}.\n")
    for result in found:
        anchor = result["name"]
        parts.append(f"### {anchor}\n\n{result['title']}.\n\n`{result['command']}`: {result['seconds']:,} s, {result['date']} "
                     f"UTC, the module of commit {result['commit']}, load average at the start {result['load']}, "
                     f"nice {result['nice']}.\n")
        parts.append("| required | measured | |\n|---|---|---|")
        parts += [row_of(row) for row in result["rows"] if row["key"] or not row["passed"]]
        aside = [row for row in result["rows"] if not row["key"] and row["required"] != "–"]
        if aside:
            parts.append(f"| {len(aside)} more checks, that the campaign did what it says | | "
                         f"{verdict(all(row['passed'] for row in aside))} |")
        parts.append("")
    return "\n".join(parts)


def row_of(row):
    bound = row["required"] != "–"
    return f"| {cell(row['required'])} | {cell(row['measured'])} | {verdict(row['passed']) if bound else ''} |"


def verdict(passed):
    return "pass" if passed else "**FAIL**"


def cell(text):
    return text.replace("|", "\\|").replace("\n", " ").replace("_", "\\_").replace("<", "&lt;")


def page():
    """The page as it is, and as it should be."""
    text = PAGE.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"error: {PAGE} lacks its marks\n  fix: put {BEGIN} and {END} where the table goes")
    found, missing = results()
    return text, f"{before}{BEGIN}\n\n{render(found)}\n{END}{after}", found, missing


def write():
    text, new, found, missing = page()
    if text != new:
        PAGE.write_text(new)
    print(f"{PAGE.relative_to(ROOT)}: {len(found)} campaigns" + (f"; not run yet: {' '.join(missing)}" if missing else ""))
    return 0


def check():
    """The table is what was measured, of every campaign, and nothing failed."""
    text, new, found, missing = page()
    wrong = [f"{name}: never run at full length" for name in missing]
    wrong += [f"{result['name']}: {row['required']}: {row['measured']}" for result in found for row in result["rows"]
              if not row["passed"]]
    if text != new:
        wrong.append("docs/behaviour.md is not what campaign/results say; scripts/campaign --table writes it")
    print("\n".join([*wrong, f"behaviour: {len(found)} campaigns, {len(wrong)} wrong"]))
    return 1 if wrong else 0

"""The results of campaigns as a table in Markdown: one row a figure, with what was required and the command."""

import json

from .bed import WORK


def render():
    lines = ["| campaign | required | measured | |", "|---|---|---|---|"]
    for path in sorted((WORK / "results").glob("*.json")):
        result = json.loads(path.read_text())
        title = f"`{result['command']}` ({result['seconds']} s, {result['date']})"
        for row in result["rows"]:
            verdict = "" if row["required"] == "–" else "pass" if row["passed"] else "**FAIL**"
            lines.append(f"| {title} | {cell(row['required'])} | {cell(row['measured'])} | {verdict} |")
            title = ""
    return "\n".join(lines)


def cell(text):
    return text.replace("|", "\\|").replace("\n", " ")

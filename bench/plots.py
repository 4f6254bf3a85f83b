"""Plots as SVG, by gnuplot, beside docs/performance.md."""

import subprocess

from .bed import ROOT, tool
from .results import load

PLOTS = ROOT / "docs/performance"
SETTINGS = """\
set terminal svg size 680,360 font "sans-serif,13" background "#ffffff"
set output "{path}"
set border 3 lc rgb "#666666"
set tics nomirror out textcolor rgb "#333333"
set grid ytics lc rgb "#dddddd"
set title "{title}"
set yrange [0:*]
set format y "%'.0f"
"""
BLUE, GREY, ORANGE = "#1f6fb4", "#8a8a8a", "#d9762b"


# The table of README.md under "Why": the middle of what was measured by user, and by token.
BY_USER = (("initial sync", 1090, 1815), ("its CPU in workers", 362, 477), ("its CPU in PostgreSQL", 216.5, 377.5),
           ("cache entries", 85, 118.5), ("incremental sync", 48.5, 57))
BASELINE_AND_OURS = (("baseline_us", GREY), ("ours_us", BLUE))


def draw():
    PLOTS.mkdir(parents=True, exist_ok=True)
    by_user()
    bars("hit", "added", "Instructions that a hit adds to the baseline", without=("baseline",))
    bars("memory", "kB_hit", "kB that a request in a long poll holds")
    bars("load", "us", "Processor time of a request at saturation, µs")
    lines("length", "Instructions of a hit, by the token's length in bytes", (("baseline", GREY), ("ours", BLUE)))
    lines("population", "Processor time of a hit, µs, by the number of known tokens", BASELINE_AND_OURS, log=True)
    lines("workers", "Processor time of a hit, µs, by the number of workers", BASELINE_AND_OURS)
    lines("micro", "Digest alone and with the look, ns, by the number of known tokens",
          (("digest", GREY), ("hit", BLUE), ("miss", ORANGE)), log=True)
    lines("waiters", "Processor time of a waiting request, µs, by their number",
          (("one token: us", BLUE), ("own tokens: us", ORANGE)), log=True)


def by_user():
    """What a sync costs when the worker is chosen by user, in percent of what it costs by token."""
    rows = "\n".join(f'"{name}" {100 * user / token:.0f}' for name, user, token in BY_USER)
    plot("by-user", "By user, in percent of the same by token (100)", f"""\
set boxwidth 0.6
set style fill solid
set xtics scale 0 font ",11"
set yrange [0:120]
$data << EOD
{rows}
EOD
plot $data using 0:2:xtic(1) with boxes lc rgb "{BLUE}" notitle, \\
     $data using 0:2:(sprintf("%.0f%%", $2)) with labels offset 0,0.7 notitle, \\
     100 with lines lw 2 lc rgb "{GREY}" title "by token"
""")


def bars(part, value, title, without=()):
    found = load(part)
    if not found:
        return
    rows = [(variant, row[value]) for variant, row in found["figures"].items() if variant not in without]
    data = "\n".join(f'{at} "{variant}" {number} {number:.1f}' for at, (variant, number) in enumerate(rows))
    label = "%'.0f" if max(number for _, number in rows) >= 1000 else "%.1f"
    plot(part, title, f"""\
set boxwidth 0.6
set style fill solid
set xtics scale 0
set xrange [-0.6:{len(rows) - 0.4}]
set offsets 0, 0, graph 0.1, 0
$data << EOD
{data}
EOD
plot $data using 1:3:xtic(2) with boxes lc rgb "{BLUE}" notitle, \\
     $data using 1:3:(sprintf("{label}", $3)) with labels offset 0,0.7 notitle
""")


def lines(part, title, columns, log=False):
    found = load(part)
    if not found:
        return
    rows = found["figures"].items()
    data = "\n".join(" ".join([size, *(str(row[column]) for column, _ in columns)]) for size, row in rows)
    curves = ", \\\n     ".join(
        f'$data using 1:{at} with linespoints lw 2 pt 7 ps 0.6 lc rgb "{colour}" title "{label(column)}"'
        for at, (column, colour) in enumerate(columns, 2))
    scale = 'set logscale x\nset format x "10^{%L}"' if log else ""
    plot(part, title, f"""\
{scale}
set key outside bottom center horizontal
$data << EOD
{data}
EOD
plot {curves}
""")


def label(column):
    return column.removesuffix("_us").removesuffix(": us")


def plot(name, title, body):
    script = SETTINGS.format(path=PLOTS / f"{name}.svg", title=title) + body
    subprocess.run([tool("gnuplot", "gnuplot-nox")], input=script, text=True, check=True)

"""Puts the last results into docs/performance.md, as tables between its markers, and plots beside it.

`<!-- bench: NAME -->` begins a place and `<!-- end -->` ends it; NAME is a function of TABLES below. What stands around the
places is written by hand.
"""

import re

from . import plots
from .bed import ROOT, BenchError
from .results import load

PAGE = ROOT / "docs/performance.md"
PARTS = ("hit", "shift", "micro", "memory", "million", "tokens", "miss", "calls", "length", "workers", "population", "waiters",
         "load")
VARIANTS = ("baseline", "ours", "njs-subrequest", "njs-access", "lua")


def write():
    text = PAGE.read_text()
    for name in re.findall(r"<!-- bench: (\w+) -->", text):
        if name not in TABLES:
            raise BenchError(f"{PAGE} asks for a table {name}. Fix: bench/page.py")
        place = re.compile(rf"(<!-- bench: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = place.sub(lambda found, name=name: f"{found[1]}{TABLES[name]()}\n{found[2]}", text)
    PAGE.write_text(text)
    plots.draw()
    print(f"==> {PAGE}")


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figures(part):
    found = load(part)
    return found["figures"] if found else {}


def number(value, digits=0):
    return "–" if value is None else f"{value:,.{digits}f}"


def verdicts():
    rows = []
    for part in PARTS:
        found = load(part)
        for check in found["rows"] if found else ():
            rows.append((check["required"], check["measured"], "reached" if check["passed"] else "**not reached**", f"`{part}`"))
    return table(("must reach", "measured", "", "part"), rows)


def conditions():
    rows = []
    for part in PARTS:
        found = load(part)
        if found:
            rows.append((f"`{part}`", found["title"], found["machine"], found["nginx"].removeprefix("nginx/"), found["date"],
                         f"{found['seconds']} s", f"{found['load']} → {found['load_at_end']}"))
    return table(("part", "what", "machine", "nginx of Debian sid", "when (UTC)", "took", "load average"), rows)


def variants():
    hit, memory, held, asked, loaded = map(figures, ("hit", "memory", "tokens", "calls", "load"))
    rows = []
    for name in VARIANTS:
        if name not in hit:
            continue
        rows.append((
            name, number(hit[name]["instructions"]), number(hit[name]["added"]) if name != "baseline" else "–",
            number(memory.get(name, {}).get("kB_hit"), 1), number(memory.get(name, {}).get("kB_miss"), 1),
            number(held.get(name, {}).get("tokens")), number(asked.get(name, {}).get("calls")),
            spread(loaded.get(name)), number(loaded.get(name, {}).get("rps"))))
    return table(("variant", "instructions of a hit", "added to the baseline", "kB for each long poll", "the same after a miss",
                  "tokens in 1 MiB", "whoami calls for 10,000 tokens", "processor µs (least, most)", "requests/s"), rows)


def spread(row):
    return f"{row['us']:.1f} ({row['us_least']:.1f}, {row['us_most']:.1f})" if row else "–"


def half_load():
    loaded = figures("load")
    rows = [(name, *(number(loaded[name][key], 2) for key in ("p50", "p99", "p999"))) for name in VARIANTS if name in loaded]
    rate = next(iter(loaded.values()))["rate"] if loaded else 0
    return table((f"at {rate:,.0f} requests/s, ms", "p50", "p99", "p99.9"), rows)


def misses():
    rows = [(name, *(number(row[key], 3) for key in ("whoami_ms", "hit_ms", "miss_ms", "beyond_whoami_ms")),
             number(row["connections"])) for name, row in figures("miss").items()]
    return table(("variant", "whoami alone, ms", "hit", "miss", "added beyond whoami", "connections to whoami"), rows)


def micro():
    rows = [(f"{int(entries):,}", *(number(row[key], 1) for key in ("digest", "hit", "miss")), number(row["ratio"], 2),
             number(row["look_instructions"]), number(row["look_lines"], 1))
            for entries, row in figures("micro").items()]
    return table(("tokens", "digest, ns", "and hit", "and miss", "hit / digest", "instructions of the look that hits",
                  "lines that it waits for"), rows)


def growth(part, unit):
    def render():
        rows = []
        for size, row in figures(part).items():
            times = (number(row["baseline_us"], 1), number(row["ours_us"], 1)) if "ours_us" in row else ()
            rows.append((f"{int(size):,}", number(row["baseline"]), number(row["ours"]), number(row["added"]), *times))
        head = (unit, "instructions, baseline", "ours", "added")
        return table(head + (("processor µs, baseline", "ours") if rows and len(rows[0]) > 4 else ()), rows)
    return render


def waiters():
    rows = [(f"{int(count):,}", *(number(row[f"{kind}: {value}"], digits) for kind in ("one token", "own tokens")
                                  for value, digits in (("us", 0), ("seconds", 2))), number(row["resident MB"], 1))
            for count, row in figures("waiters").items()]
    return table(("requests", "one token: processor µs each", "all answered after, s", "a token each: processor µs each",
                  "all answered after, s", "worker's own memory, MB"), rows)


def shift():
    rows = [(name, *(number(row[key]) for key in ("instructions", "fewest", "most", "added")))
            for name, row in figures("shift").items()]
    return table(("what names the group", "instructions of a hit", "fewest", "most", "added to the first"), rows)


def long_polls():
    rows = [(name, *(f"{row[f'kB_{kind}']:.3f} ({row[f'kB_{kind}_least']:.3f}, {row[f'kB_{kind}_most']:.3f})"
                     for kind in ("hit", "miss"))) for name, row in figures("memory").items()]
    return table(("kB for each long poll (least, most)", "token known", "not known, thousands at once"), rows)


def million():
    rows = [(name, *(number(row[key], 1) for key in ("rss_MB", "own_MB", "shared_MB")))
            for name, row in figures("million").items()]
    return table(("worker of", "resident, MB", "its own", "shared"), rows)


TABLES = {
    "verdicts": verdicts, "conditions": conditions, "variants": variants, "half_load": half_load, "misses": misses, "micro": micro,
    "length": growth("length", "bytes of the token"), "workers": growth("workers", "workers"),
    "population": growth("population", "tokens"), "waiters": waiters, "long_polls": long_polls,
    "million": million, "shift": shift,
}

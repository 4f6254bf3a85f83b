"""Instructions of a request whose token is known, in each variant, beside the baseline's."""

from campaign.bed import Whoami

from . import variants
from .bed import sync_workers
from .callgrind import instructions
from .results import SAME, Result, in_turns, median

MOST = 1.01
# Another processor has another memcpy and memchr, and another nginx another heap: the short form, which runs anywhere, allows for that.
MOST_ANYWHERE = 1.02
ROUNDS = 5


def hit(part):
    result = Result(part, "instructions of a hit, by callgrind, 1,000 tokens in turn over one connection: "
                          f"medians of {ROUNDS} runs in turns")
    with sync_workers(), Whoami():
        runs = in_turns(ROUNDS, [(variant,) for variant in variants.available()], instructions)
    runs = {variant.name: every for (variant,), every in runs.items()}
    counts = {name: median(every) for name, every in runs.items()}
    for name, count in counts.items():
        added = count - counts["baseline"]
        result.figure(name, instructions=count, fewest=min(runs[name]), most=max(runs[name]), added=added,
                      percent=100 * added / counts["baseline"])
    compare(result, counts)
    result.save()
    return result.passed


def compare(result, counts, most=MOST):
    baseline, ours = counts["baseline"], counts["ours"]
    added = ours - baseline
    result.check(f"a hit takes at most {most - 1:.0%} more instructions than the baseline", f"{100 * added / baseline:.2f}%",
                 ours <= most * baseline)
    for name, share in (("njs-subrequest", 50), ("lua", 12)):
        if name in counts:
            theirs = counts[name] - baseline
            result.check(f"a hit adds at most 1/{share} of what {name} adds", f"{added:,.0f} of {theirs:,.0f} instructions",
                         added * share <= theirs)


def short(part):
    """What scripts/test runs: a count, no time. Not kept: the page is of the whole run.

    The fewest of three runs, because what lay in the heap before can send malloc a longer way, by 1% of a request.
    """
    result = Result(part, "instructions of a hit, by callgrind, beside the baseline; the fewest of three runs each")
    with sync_workers(), Whoami():
        counts = {variant.name: min(instructions(variant, tokens=200, requests=600) for _ in range(3))
                  for variant in (variants.BASELINE, variants.OURS, variants.EARLY)}
    for name, count in counts.items():
        result.figure(name, instructions=count)
    compare(result, counts, MOST_ANYWHERE)
    early, late = counts["ours-preaccess"], counts["ours"]
    result.check("a hit in preaccess takes no more instructions than in precontent", f"{early - late:+,.0f} of {late:,.0f}",
                 early <= SAME * late)
    return result.passed

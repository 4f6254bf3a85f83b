"""Instructions of a request whose token is known, in each front, beside the floor's."""

from campaign.bed import Whoami

from . import fronts
from .bed import sync_workers
from .callgrind import instructions
from .results import Result, in_turns, median

MOST = 1.02
ROUNDS = 5


def hit(part):
    result = Result(part, "instructions of a hit, by callgrind, 1,000 tokens in turn over one connection: "
                          f"medians of {ROUNDS} runs in turns")
    with sync_workers(), Whoami():
        runs = in_turns(ROUNDS, [(front,) for front in fronts.available()], instructions)
    runs = {front.name: every for (front,), every in runs.items()}
    counts = {name: median(every) for name, every in runs.items()}
    for name, count in counts.items():
        added = count - counts["floor"]
        result.figure(name, instructions=count, fewest=min(runs[name]), most=max(runs[name]), added=added,
                      percent=100 * added / counts["floor"])
    compare(result, counts)
    result.save()
    return result.passed


def compare(result, counts):
    floor, ours = counts["floor"], counts["ours"]
    added = ours - floor
    result.check("a hit takes at most 2% more instructions than the floor", f"{100 * added / floor:.2f}%", ours <= MOST * floor)
    for name, share in (("njs-subrequest", 50), ("lua", 12)):
        if name in counts:
            theirs = counts[name] - floor
            result.check(f"a hit adds at most 1/{share} of what {name} adds", f"1/{theirs / added:.0f}", added * share <= theirs)


def short(part):
    """What scripts/test runs: a count, no time. Not kept: the page is of the whole run.

    The fewest of three runs, because what lay in the heap before can send malloc a longer way, by 1% of a request.
    """
    result = Result(part, "instructions of a hit, by callgrind, beside the floor; the fewest of three runs each")
    with sync_workers(), Whoami():
        counts = {front.name: min(instructions(front, tokens=200, requests=600) for _ in range(3))
                  for front in (fronts.FLOOR, fronts.OURS)}
    for name, count in counts.items():
        result.figure(name, instructions=count)
    compare(result, counts)
    return result.passed

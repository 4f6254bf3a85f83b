"""Instructions that a shift adds to a hit: where its variable names the group of sync workers, and where nobody reads it."""

import time

from campaign.bed import Whoami

from . import variants
from .bed import sync_workers
from .callgrind import instructions
from .results import SAME, Result, in_turns, median

MOST = 150
ROUNDS = 5


def shift(part):
    result = Result(part, "instructions of a hit with a shift in the middle of its time, by callgrind, as in hit: "
                          f"medians of {ROUNDS} runs in turns")
    # An hour ago, for two hours: half of all users have moved.
    unread, read = variants.shifting(int(time.time()) - 3600, 2)
    plain = variants.BY_STATUS
    cases = (plain, unread, read, variants.BY_SET, variants.SPLIT)
    with sync_workers(), Whoami():
        runs = in_turns(ROUNDS, [(variant,) for variant in cases], instructions)
    counts = {variant.name: median(every) for (variant,), every in runs.items()}
    for (variant,), every in runs.items():
        result.figure(variant.name, instructions=counts[variant.name], fewest=min(every), most=max(every),
                      added=counts[variant.name] - counts[plain.name])
    compare(result, counts)
    result.save()
    return result.passed


def compare(result, counts):
    """The price of the variable is beside that of another one in its place; the table says what the first costs beside none."""
    more, beside = counts["shift"] - counts["set"], counts["shift, not read"] - counts["status"]
    result.check(f"a hit whose group is named by a shift takes at most {MOST} instructions more than by a variable of `set`",
                 f"{more:+,.0f}", more <= MOST)
    result.check("a shift takes none of a hit that does not read its variable", f"{beside:+,.0f} of {counts['status']:,.0f}",
                 beside <= (SAME - 1) * counts["status"])

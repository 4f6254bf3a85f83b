"""Under load: processor time and requests a second at saturation, latency at half of what the floor can do."""

from campaign.bed import Whoami

from . import fronts
from .bed import FRONT, sync_workers, undisturbed
from .results import Result, in_turns, median
from .wrk import wrk

ROUNDS, SECONDS, USERS = 5, 4, 1000


def load(part):
    result = Result(part, f"one worker, {USERS} known tokens, 64 connections: medians of {ROUNDS} runs in turns of {SECONDS} s")
    chosen = fronts.available()
    with undisturbed():
        saturated = in_turns(ROUNDS, [(front, 0) for front in chosen], once)
        half = median(run["rps"] for run in saturated[fronts.FLOOR, 0]) / 2
        eased = in_turns(ROUNDS, [(front, half) for front in chosen], once)
    for front in chosen:
        at_most, at_half = saturated[front, 0], eased[front, half]
        spread = [run["us"] for run in at_most]
        result.figure(
            front.name, us=median(spread), us_least=min(spread), us_most=max(spread), rps=median(run["rps"] for run in at_most),
            rate=half, **{name: median(run[name] for run in at_half) for name in ("p50", "p99", "p999")})
    result.save()
    return result.passed


def once(front, rate):
    with sync_workers(), Whoami(), front.start() as nginx:
        # Long enough that all tokens are known.
        wrk(FRONT, "uniform", USERS, seconds=1)
        before = nginx.processor_seconds()
        run = wrk(FRONT, "uniform", USERS, seconds=SECONDS, rate=rate)
        spent = nginx.processor_seconds() - before
    return run | {"us": spent / run["requests"] * 1e6, "rps": run["requests"] / run["seconds"]}

"""Under load: processor time and requests a second at saturation, latency at half of what the baseline can do."""

from campaign.bed import Whoami

from . import variants
from .bed import FRONT, sync_workers, undisturbed
from .results import Result, in_turns, median
from .wrk import wrk

ROUNDS, SECONDS, USERS = 5, 4, 1000


def load(part):
    result = Result(part, f"one worker, {USERS} known tokens, 64 connections: medians of {ROUNDS} runs in turns of {SECONDS} s")
    chosen = variants.available()
    with undisturbed():
        saturated = in_turns(ROUNDS, [(variant, 0) for variant in chosen], once)
        half = median(run["rps"] for run in saturated[variants.BASELINE, 0]) / 2
        eased = in_turns(ROUNDS, [(variant, half) for variant in chosen], once)
    for variant in chosen:
        at_most, at_half = saturated[variant, 0], eased[variant, half]
        spread = [run["us"] for run in at_most]
        result.figure(
            variant.name, us=median(spread), us_least=min(spread), us_most=max(spread), rps=median(run["rps"] for run in at_most),
            rate=half, **{name: median(run[name] for run in at_half) for name in ("p50", "p99", "p999")})
    result.save()
    return result.passed


def once(variant, rate):
    with sync_workers(), Whoami(), variant.start() as nginx:
        # Long enough that all tokens are known.
        wrk(FRONT, "uniform", USERS, seconds=1)
        before = nginx.processor_seconds()
        run = wrk(FRONT, "uniform", USERS, seconds=SECONDS, rate=rate)
        spent = nginx.processor_seconds() - before
    return run | {"us": spent / run["requests"] * 1e6, "rps": run["requests"] / run["seconds"]}

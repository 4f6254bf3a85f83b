"""What a token costs that nobody knows yet: time, and calls of whoami."""

from campaign.bed import WHOAMI, Whoami
from tests.bed.report import percentile

from . import variants
from .bed import FRONT, sync_workers, undisturbed
from .client import Client, head
from .results import Result, in_turns, median
from .wrk import wrk

ROUNDS, EACH = 5, 100


def miss(part):
    result = Result(part, "time that a miss adds, in turn with hits and with whoami itself, one client, connections kept: "
                          f"medians of {ROUNDS} runs in turns of {EACH} misses")
    cases = [(variant, delay) for variant in variants.available() if variant.name != "baseline" for delay in (0, 1, 10)]
    with undisturbed():
        measured = in_turns(ROUNDS, cases, added)
    for (variant, delay), runs in measured.items():
        figures = {key: median(run[key] for run in runs) for key in runs[0]}
        figures["connections"] = max(run["connections"] for run in runs)
        result.figure(f"{variant.name}, whoami {delay} ms", **figures)
    for delay in (0, 1, 10):
        figures = result.figures[f"ours, whoami {delay} ms"]
        result.check(f"with whoami at {delay} ms, a miss adds at most whoami's own time and 0.2 ms at p50, over one connection",
                     f"{figures['beyond_whoami_ms']:+.3f} ms, {figures['connections']} connection",
                     figures["beyond_whoami_ms"] <= 0.2 and figures["connections"] == 1)
    result.save()
    return result.passed


def added(variant, delay):
    """Medians in ms. The three kinds take turns, so that the machine's noise is the same for all."""
    hits, misses, whoami = [], [], []
    with sync_workers(), Whoami() as homeserver, variant.with_(zone="8m").start():
        homeserver.set(delay=delay / 1000)
        with Client(FRONT) as client, Client(WHOAMI) as direct:
            for n in range(20):
                client.get(head(n))
            homeserver.forget()
            for n in range(1000, 1000 + EACH):
                misses.append(client.time(head(n)))
                hits.append(client.time(head(n)))
                whoami.append(direct.time(head(n, "/_matrix/client/v3/account/whoami")))
            # Beside the direct one, which was there before the reset.
            new = homeserver.seen()["accepted"]
    hit, missed, own = (median(times) * 1000 for times in (hits, misses, whoami))
    return {"hit_ms": hit, "miss_ms": missed, "whoami_ms": own, "beyond_whoami_ms": missed - hit - own,
            "p99_ms": percentile(misses, 0.99) * 1000, "connections": 1 + new}


def calls(part):
    """500 devices, each with a new token after every 10 requests, two of which it sends at once: as tokens of the Matrix
    Authentication Service come and go."""
    result = Result(part, "whoami calls for 10,000 tokens with 10 requests each, over 64 connections, zone or dict of 1m")
    for variant in variants.available():
        if variant.name == "baseline":
            continue
        with sync_workers(), Whoami() as homeserver, variant.start(workers=2):
            homeserver.set(delay=0.005)
            wrk(FRONT, "rotation", 10_000, connections=64, count=100_000)
            seen = homeserver.seen()
        result.figure(variant.name, calls=seen["requests"], tokens=seen["tokens"])
    result.check("10,000 tokens, each asked about once: 10,000 calls", f"{result.figures['ours']['calls']:,}",
                 result.figures["ours"]["calls"] == result.figures["ours"]["tokens"])
    result.save()
    return result.passed

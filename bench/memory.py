"""What is held: by a request that waits in a long poll, by a token, by a worker with a million tokens."""

import json
import subprocess
from pathlib import Path

from campaign.bed import Whoami

from . import variants
from .bed import FRONT, ROOT, RUN, BenchError, SilentWorker, sync_workers
from .client import Client, Crowd, head
from .results import Result, in_turns, median
from .wrk import wrk

ROUNDS, FEW, MANY = 3, 1000, 5000


def pending(part):
    result = Result(part, "memory of a request in a long poll: the slope from 1,000 to 5,000 of them, "
                          f"medians of {ROUNDS} runs in turns")
    measured = in_turns(ROUNDS, [(variant, kind) for variant in variants.available() for kind in ("hit", "miss")], long_poll)
    for (variant, kind), kilobytes in measured.items():
        name = f"kB_{kind}"
        result.figure(variant.name, **{name: median(kilobytes), f"{name}_least": min(kilobytes), f"{name}_most": max(kilobytes)})
    baseline = result.figures["baseline"]["kB_hit"]
    for name, what in (("kB_hit", "a request in a long poll"), ("kB_miss", "the same after a miss")):
        added = result.figures["ours"][name] - baseline
        result.check(f"{what} holds at most 0.5 kB more than the baseline's", f"{added:+.2f} kB", added <= 0.5)
    result.save()
    return result.passed


def long_poll(variant, kind):
    """kB for each."""
    variant = variant.with_(zone="8m")
    with sync_workers(), Whoami(), SilentWorker() as silent, variant.start() as nginx:
        if kind == "hit":
            with Client(FRONT) as client:
                for n in range(MANY):
                    client.get(head(n))
        sizes = []
        with Crowd(FRONT) as crowd:
            for first, after in ((0, FEW), (FEW, MANY)):
                crowd.send(head(n, "/pending/sync?timeout=30000") for n in range(first, after))
                crowd.wait_until(lambda after=after: silent.pending() >= after)
                sizes.append(nginx.resident())
    return (sizes[1] - sizes[0]) / (MANY - FEW) / 1024


def tokens(part):
    result = Result(part, "tokens that 1 MiB holds after 40,000 users have asked")
    for variant in variants.available():
        if variant.name == "baseline":
            continue
        with sync_workers(), Whoami(), variant.start(), Client(FRONT) as client:
            wrk(FRONT, "each", 40_000, count=40_000)
            body = client.get(b"GET /count HTTP/1.1\r\nHost: localhost\r\n\r\n")
        held = json.loads(chunks(body))["zones"]["users"]["entries"] if variant.name == "ours" else int(chunks(body))
        result.figure(variant.name, tokens=held, bytes_each=(1 << 20) / held)
    result.save()
    return result.passed


def chunks(body):
    """The body without its chunks' sizes, if it has them."""
    if not body.endswith(b"0\r\n\r\n"):
        return body
    whole = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        if int(size, 16) == 0:
            return whole
        whole, body = whole + body[:int(size, 16)], body[int(size, 16) + 2:]


def million(part):
    """The zone's pages count for a worker once it has touched them, so all of them are touched."""
    result = Result(part, "resident memory of a worker with 1,000,000 tokens, beside the baseline's worker after as many requests")
    users, requests = 1_000_000, 60_000
    variant = variants.OURS.with_(zone="36m", state=state_file(users))
    for measured in (variants.BASELINE, variant):
        with sync_workers(), Whoami() as homeserver, measured.start() as nginx, Client(FRONT) as client:
            for n in range(0, users, users // requests):
                client.get(head(n))
            result.figure(measured.name, rss_MB=nginx.resident("VmRSS") / 1e6, own_MB=nginx.resident("RssAnon") / 1e6,
                          shared_MB=nginx.resident("RssShmem") / 1e6)
            known(homeserver)
    zone = 36 * (1 << 20) / 1e6
    added = result.figures["ours"]["rss_MB"] - result.figures["baseline"]["rss_MB"] - zone
    result.check("a worker with 1,000,000 tokens holds the zone (37.7 MB) and at most 2 MB", f"{added:+.1f} MB", added <= 2)
    result.save()
    return result.passed


def known(homeserver):
    """All tokens were in the state file: but for the few that a full table drops, nobody asked."""
    asked = homeserver.seen()["requests"]
    if asked > 100:
        raise BenchError(f"{asked} requests asked whoami: the state file was not restored. Fix: see {RUN}/variant.log")


def state_file(users):
    """In which so many users are known. Outside of RUN, so that it is made once."""
    path = ROOT / f"build/bench/state/{users}.users"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        maker = ROOT / "build/bench/many_users"
        subprocess.run([maker, str(users), f"{path}.new"], check=True)
        Path(f"{path}.new").rename(path)
    # nginx saves over it when it ends: each run begins with a copy.
    RUN.mkdir(parents=True, exist_ok=True)
    copy = RUN / "users.state"
    subprocess.run(["cp", path, copy], check=True)
    return copy

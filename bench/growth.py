"""How the cost grows: with the tokens that are known, their length, the workers, the requests that wait."""

import random
import time

from campaign.bed import Whoami

from . import variants
from .bed import FRONT, sync_workers
from .callgrind import instructions
from .client import Client, Crowd, head
from .memory import known, state_file
from .results import Result, in_turns, median
from .wrk import wrk

PAIR = (variants.BASELINE, variants.OURS)
LENGTHS = (40, 100, 400, 1000, 2000, 4000)
WORKERS = (1, 2, 4, 8)
POPULATIONS = (10**2, 10**3, 10**4, 10**5, 10**6, 10**7)
WAITERS = (1, 10, 100, 1000, 10_000)


def length(part):
    result = Result(part, "instructions of a hit, by the length of the token")
    with sync_workers(), Whoami():
        for size in LENGTHS:
            counts = {variant.name: instructions(variant, tokens=100, requests=1000, length=size) for variant in PAIR}
            result.figure(str(size), **counts, added=counts["ours"] - counts["baseline"])
    result.save()
    return result.passed


def workers(part):
    result = Result(part, "a hit, by the number of workers: instructions, and processor time under load")
    loads = Loads(lambda variant, number: variant.with_(reuseport=True), workers=lambda number: number)
    with sync_workers(), Whoami():
        for number in WORKERS:
            counts = {variant.name: instructions(variant.with_(reuseport=True), tokens=200, requests=2000, workers=number)
                      for variant in PAIR}
            result.figure(str(number), baseline=counts["baseline"], ours=counts["ours"], added=counts["ours"] - counts["baseline"])
        loads.measure(result, WORKERS)
    rows = result.figures
    flat(result, "8 workers", "one", 1.1, rows["8"], rows["1"])
    result.save()
    return result.passed


def population(part):
    result = Result(part, "a hit, by the number of tokens that are known: instructions, and processor time under load")

    def configured(variant, users):
        # The baseline has no use for it, and is reloaded like ours: what lay in the heap before changes malloc's way through it,
        # by up to 400 instructions a request.
        return variant.with_(zone=f"{max(1, users * 36 // 10**6 + 1)}m", state=state_file(users))

    with sync_workers(), Whoami() as homeserver:
        for users in POPULATIONS:
            asking = random.Random(7).choices(range(users), k=2000)
            counts = {variant.name: instructions(configured(variant, users), requests=2000, numbers=asking) for variant in PAIR}
            result.figure(str(users), baseline=counts["baseline"], ours=counts["ours"], added=counts["ours"] - counts["baseline"])
        Loads(configured, users=lambda users: users).measure(result, POPULATIONS)
        known(homeserver)
    rows = result.figures
    flat(result, "10⁷ tokens", "10²", 1.3, rows[str(10**7)], rows[str(10**2)])
    result.save()
    return result.passed


def flat(result, many, few, most, at_many, at_few):
    """A hit as a whole, the proxying included, with the baseline's own growth taken out: it is not ours."""
    by_count = at_many["ours"] / at_few["ours"]
    by_time = (at_many["ours_us"] / at_many["baseline_us"]) / (at_few["ours_us"] / at_few["baseline_us"])
    result.check(f"a hit with {many} takes at most {most} × the instructions with {few}", f"{by_count:.3f} ×", by_count <= most)
    result.check(f"a hit with {many} takes at most {most} × the processor time with {few}, each relative to the baseline's then",
                 f"{by_time:.2f} ×", by_time <= most)


class Loads:
    """Processor time of baseline and ours, in turns."""

    ROUNDS, SECONDS = 5, 3

    def __init__(self, configured, users=lambda _: 1000, workers=lambda _: 1):
        self.configured, self.users, self.workers = configured, users, workers

    def measure(self, result, sizes):
        times = in_turns(self.ROUNDS, [(variant, size) for size in sizes for variant in PAIR], self.once)
        for size in sizes:
            result.figure(str(size), **{f"{variant.name}_us": median(times[variant, size]) for variant in PAIR})

    def once(self, variant, size):
        """Microseconds for each request."""
        users = self.users(size)
        with self.configured(variant, size).start(self.workers(size)) as nginx:
            wrk(FRONT, "uniform", users, seconds=1)
            before = nginx.processor_seconds()
            load = wrk(FRONT, "uniform", users, seconds=self.SECONDS)
            return (nginx.processor_seconds() - before) / load["requests"] * 1e6


def waiters(part):
    """With one token for all, one lookup; with one for each, as many lookups, 64 at a time."""
    result = Result(part, "requests that wait for a lookup: memory of each, processor time of each until it is answered")
    for number in WAITERS:
        result.figure(str(number), **waiting(number, "one token", lambda n: 0),
                      **waiting(number, "own tokens", lambda n: n))
    result.save()
    return result.passed


def waiting(number, name, user):
    variant = variants.OURS
    variant = variant.with_(location=variant.location + " matrix_user_hash_timeout 60s; matrix_user_hash_read_timeout 60s;")
    with sync_workers(), Whoami() as homeserver, variant.start() as nginx:
        with Client(FRONT) as client:
            client.get(head(10**6))
        # One token: all are there before its answer. Own tokens: each of the 64 that may ask takes 10 ms.
        homeserver.set(delay=max(1.0, number / 1500) if name == "one token" else 0.01)
        before, start = nginx.processor_seconds(), time.monotonic()
        with Crowd(FRONT) as crowd:
            crowd.send(head(user(n), "/answered/sync?timeout=30000") for n in range(number))
            memory = nginx.resident() if name == "one token" else None
            _, last = crowd.answers()
        spent = nginx.processor_seconds() - before
    figures = {f"{name}: us": spent / number * 1e6, f"{name}: seconds": last - start}
    return figures | ({"resident MB": memory / 1e6} if memory else {})

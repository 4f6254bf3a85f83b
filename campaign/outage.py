"""whoami down, slow, hanging or lying: nobody waits for longer than was said, and nobody asks more than it can bear."""

import asyncio
import itertools
import os
import time

from tests.bed.people import token

from .bed import WHOAMI, Front, Nginx, Whoami
from .client import Clients
from .report import Noise, percentile, spread


def stale(report):
    """whoami down: known users are routed with no delay; expired entries are refreshed once each"""
    front = Front(routed=True, directives="matrix_user_hash_valid 200 2s; matrix_user_hash_stale on;")
    with Whoami() as whoami, Nginx(front, report.name):
        asyncio.run(outage(report, whoami))


async def outage(report, whoami):
    users = [token(f"u{n}") for n in range(500)]
    seconds, per_second = (2, 500) if report.short else (60, 1000)
    clients = Clients()
    await clients.warm(100)
    home = {a.token: a.body for a in await clients.all(users)}
    fresh = await clients.paced(users * 2, per_second)
    baseline = [a.took for a in fresh if a.status == "HIT"]
    for how, behaviour in (("refuses", {"listen": False}), ("hangs", {"listen": True, "kind": "hang"})):
        whoami.set(**behaviour)
        await asyncio.sleep(2.2)
        with Noise() as noise:
            answers = await clients.paced((users * seconds * 3)[:seconds * per_second], per_second)
        report.equal(f"whoami {how}: STALE with the user's hash, of {seconds * per_second:,}", seconds * per_second,
                     sum(a.right and a.status == "STALE" for a in answers))
        report.equal("of which on the worker as before", seconds * per_second, sum(home[a.token] == a.body for a in answers))
        report.equal("of which held by a lookup", 0, sum(a.held > 0 for a in answers))
        added = (percentile([a.took for a in answers], 0.99) - percentile(baseline, 0.99)) * 1000
        report.at_most("added at p99 of the client's time", 5, max(0.0, added), " ms", noise.worst)
        report.note(f"client's time: {spread([a.took for a in answers])}; fresh: {spread(baseline)}")
    whoami.set(kind="ok")
    await recovered(clients)
    await refreshed_once(report, whoami, clients)
    clients.close()


# CAMPAIGN_OUTAGE: seconds, in place of an hour.
def hour(report):
    """whoami down for an hour, refusing and then hanging: every known user goes where they went before, undelayed"""
    # Entries are fresh for a minute, so for nearly all of the hour all of them are past it.
    front = Front(routed=True, directives="matrix_user_hash_valid 200 1m;")
    with Whoami() as whoami, Nginx(front, report.name) as nginx:
        asyncio.run(an_hour(report, whoami, nginx))


async def an_hour(report, whoami, nginx):
    users = [token(f"u{n}") for n in range(1000)]
    half, per_second = (3, 200) if report.short else (int(os.environ.get("CAMPAIGN_OUTAGE", "3600")) // 2, 20)
    clients = Clients()
    await clients.warm(16)
    home = {a.token: a.body for a in await clients.all(users)}
    for how, behaviour in (("refuses", {"listen": False}), ("hangs", {"listen": True, "kind": "hang"})):
        whoami.set(**behaviour)
        number = half * per_second
        answers = await clients.paced((users[n % len(users)] for n in range(number)), per_second)
        known = [a for a in answers if a.right and a.status in ("HIT", "STALE")]
        report.equal(f"whoami {how} for {half:,} s, {per_second}/s of 1,000 users: HIT or STALE with the user's hash, "
                     f"of {number:,}", number, len(known))
        report.equal("of which on the worker as before", number, sum(home[a.token] == a.body for a in known))
        report.equal("of which held by a lookup", 0, sum(a.held > 0 for a in known))
        stale_ones = sum(a.status == "STALE" for a in known)
        report.note(f"{stale_ones:,} STALE; client's time: {spread([a.took for a in known])}", key=True)
    figures = nginx.figures()
    report.note(f"lookups in all: {figures['lookups']:,}, of which {figures['refreshes']:,} in the background; "
                f"{figures['suppressed']:,} not sent because whoami was failing", key=True)
    clients.close()


async def recovered(clients):
    """Until whoami is asked again: the breaker may wait for up to 12.5 s."""
    for number in range(300):
        if (await clients.get(token(f"probe{number}"))).status == "MISS":
            return
        await asyncio.sleep(0.1)


async def refreshed_once(report, whoami, clients):
    """Each of 50 expired entries is asked for by twenty requests at once, over all workers."""
    users = [token(f"u{n}") for n in range(50)]
    await clients.all(users)
    await asyncio.sleep(2.2)
    whoami.set(delay=0.2)
    whoami.forget()
    await clients.all(users * 20, at_once=100)
    await asyncio.sleep(0.5)
    # Of entries whose refresh found no free place among the lookups in flight, the next request sees to it.
    await clients.all(users)
    await asyncio.sleep(0.5)
    asked = dict(whoami.seen()["asked"])
    report.check("whoami calls for them: one each", f"{sum(asked.values())} for {len(asked)}",
                 len(asked) == 50 and set(asked.values()) == {1})
    again = await clients.all(users)
    report.equal("then fresh", 50, sum(a.status == "HIT" for a in again))
    whoami.set(delay=0.0)


def overload(report):
    """A cold start with more tokens than whoami can take: the cap holds, nobody waits past the timeout"""
    # Workers share the cap: four of them.
    front = Front(whoami=f"server 127.0.0.1:{WHOAMI} max_fails=0; keepalive 32;", log=True,
                  directives="matrix_user_hash_max_lookups 64; matrix_user_hash_timeout 2s;")
    with Whoami() as whoami, Nginx(front, report.name) as nginx:
        asyncio.run(cold_start(report, whoami, nginx))


async def cold_start(report, whoami, nginx):
    tokens, per_second, rate = (3000, 1500, 300) if report.short else (20_000, 2000, 500)
    clients = Clients()
    await clients.warm(500)
    whoami.set(rate=rate)
    most_in_flight = 0
    with Noise() as noise:
        waves = asyncio.create_task(clients.paced((token(f"u{n}") for n in range(tokens)), per_second))
        while not waves.done():
            most_in_flight = max(most_in_flight, (await asyncio.to_thread(nginx.figures))["lookups_in_flight"])
            await asyncio.sleep(0.05)
        answers = await waves
    figures, seen = nginx.figures(), whoami.seen()
    fallen = [a for a in answers if a.status in ("TIMEOUT", "ERROR")]
    report.note(f"{tokens:,} new tokens in {tokens // per_second} s, whoami does {rate}/s: "
                f"{len(answers) - len(fallen):,} resolved, {len(fallen):,} by the fallback", key=True)
    report.equal("requests answered with 200 and the right hash", tokens, sum(a.code == 200 and a.right for a in answers))
    report.at_most("lookups in flight, as whoami counts them", 64, seen["most"])
    report.at_most("lookups in flight, as the figures say", 64, most_in_flight)
    report.at_most("the longest that a request was held", 2050, max(a.held for a in answers) * 1000, " ms", noise.worst)
    report.note(f"held: {spread([a.held for a in answers])}; client's time: {spread([a.took for a in answers])}")
    counted = figures["requests"]["timeout"] + figures["requests"]["error"]
    report.equal("fallbacks that the figures count, of those that clients saw", len(fallen), counted)
    report.at_least("of what whoami could do meanwhile, used", 80, 100 * seen["requests"] / (rate * (tokens / per_second + 2)),
                    "%")
    resolved = len(answers) - len(fallen)
    report.at_least("of whoami's answers, in time for the request", 70, 100 * resolved / seen["requests"], "%")
    whoami.set(rate=0)
    again = await clients.all([a.token for a in fallen], at_once=32)
    report.equal("fallen back, then asked again: with their user's hash", len(fallen),
                 sum(a.right and a.status in ("MISS", "HIT", "SHARED") for a in again))
    clients.close()


def breaker(report):
    """whoami refuses or hangs under load: it is left alone but for one probe at a time, and found again"""
    front = Front(directives="matrix_user_hash_timeout 1s;")
    seconds, per_second = (8, 200) if report.short else (20, 500)
    for how, behaviour in (("refuses", {"listen": False}), ("hangs", {"kind": "hang"})):
        with Whoami() as whoami, Nginx(front, report.name) as nginx:
            asyncio.run(broken(report, whoami, nginx, how, behaviour, seconds, per_second))


async def broken(report, whoami, nginx, how, behaviour, seconds, per_second):
    clients = Clients()
    await clients.warm(100)
    users = (token(f"u{how}{n}") for n in range(1_000_000))
    whoami.set(**behaviour)
    begin = time.monotonic()
    load = asyncio.create_task(clients.paced((next(users) for _ in range(seconds * per_second)), per_second))
    # A lookup that hangs takes its second to fail, and sixty-four may hang at once: then the breaker opens.
    await asyncio.sleep(1.0 if how == "refuses" else 2.2)
    after_first = nginx.figures()["lookups"]
    whoami.forget()
    answers = await load
    elapsed = time.monotonic() - begin
    figures = nginx.figures()
    tries = figures["lookups"] - after_first
    report.at_most(f"whoami {how}, {per_second} new tokens/s: lookups in the first moments", 64 + 64, after_first)
    report.at_most("lookups a second after that", 3, tries / (elapsed - 1))
    if how == "hangs":
        seen = whoami.seen()
        report.equal("probes at a time, as whoami counts them", 1, seen["most"])
        # A probe ends after the timeout of a second; then the next pause begins.
        pauses = [later - earlier - 1 for earlier, later in itertools.pairwise(seen["times"])]
        report.check("pauses between probes, each longer than the one before: 0.25 s doubled, a quarter up or down",
                     ", ".join(f"{pause:.2f}" for pause in pauses) + " s",
                     pauses and all(a < b for a, b in itertools.pairwise(pauses)))
    report.note(f"{figures['suppressed']:,} lookups not sent")
    report.equal("requests answered with 200 and the token's hash", len(answers),
                 sum(a.code == 200 and a.right and a.status in ("ERROR", "TIMEOUT") for a in answers))
    late = [a.held for a in answers[len(answers) // 2:] if a.held]
    report.note(f"held in the second half: {len(late):,} of {len(answers) // 2:,} ({spread(late)})")
    whoami.set(listen=True, kind="ok")
    back = time.monotonic()
    while (await clients.get(next(users))).status != "MISS" and time.monotonic() < back + 30:
        await asyncio.sleep(0.02)
    report.at_most("resolves again, once whoami answers, after", 12.5, time.monotonic() - back, " s")
    clients.close()


def hold(report):
    """Whatever whoami does, no request is held beyond matrix_user_hash_timeout + 50 ms"""
    timeout = 1.0
    # Longer than the whole, so that it is the module's own timeout that is measured.
    front = Front(directives="matrix_user_hash_timeout 1s; matrix_user_hash_read_timeout 20s;")
    kinds = ("ok", "hang", "drip", "close", "status-302", "html", "gzip", "megabyte", "garbage", "status-500", "refuse")
    for kind in kinds:
        with Whoami() as whoami, Nginx(front, report.name) as nginx:
            asyncio.run(held(report, whoami, kind, timeout, 100 if report.short else 2000))
            loud = sum(len(nginx.lines(level)) for level in ("crit", "alert", "emerg"))
            if loud:
                report.equal(f"{kind}: lines of [crit], [alert] and [emerg]", 0, loud)


async def held(report, whoami, kind, timeout, number):
    clients = Clients()
    await clients.warm(50)
    await clients.all([token(f"warm{n}") for n in range(50)], at_once=50)
    whoami.set(**({"listen": False} if kind == "refuse" else {"kind": kind}))
    with Noise() as noise:
        answers = await clients.all([token(f"u{kind}{n}") for n in range(number)], at_once=50)
    whoami.set(listen=True, kind="ok")
    right = sum(a.code == 200 and a.right for a in answers)
    times = [a.held * 1000 for a in answers]
    report.check(f"{kind}: answered with 200, the right hash, held ≤ {(timeout + 0.05) * 1000:.0f} ms (+ {noise.worst:.0f} ms "
                 "noise of the machine)",
                 f"{right} of {number}; {spread(times, factor=1)}; client's {spread([a.took for a in answers])}",
                 right == number and max(times) <= (timeout + 0.05) * 1000 + noise.worst)
    clients.close()


def connections(report):
    """keepalive in the whoami group: 1,000 misses one after the other use one connection a worker"""
    front = Front(whoami=f"server 127.0.0.1:{WHOAMI} max_fails=0; keepalive 8;")
    with Whoami() as whoami, Nginx(front, report.name):
        asyncio.run(one_by_one(report, whoami))


async def one_by_one(report, whoami):
    clients = Clients()
    await clients.warm(64)
    # Round and round over all connections, so that every worker gets some.
    answers = []
    for number in range(1000):
        answers.append(await clients.get(token(f"u{number}")))
        clients.idle.insert(0, clients.idle.pop())
    seen = whoami.seen()
    report.equal("misses resolved", 1000, sum(a.status == "MISS" and a.right for a in answers))
    report.equal("worker processes that took part", 4, len({a.pid for a in answers}))
    report.at_most("connections to whoami", 4, seen["accepted"])
    clients.close()

"""Floods: more tokens than fit, tokens of nobody, invented users, and a million of everything."""

import asyncio
import re
import socket
import subprocess
import time

from tests.bed.people import token
from tests.bed.processes import ROOT

from .bed import SILENT, WHOAMI, FastWhoami, Front, Nginx, Whoami
from .client import Clients
from .flood import flood

MEBIBYTE = 1 << 20


def capacity(report):
    """A zone of 1m: room, hit ratio against true LRU, the last 1,000 of 10 million"""
    if report.short:
        command = ["cargo", "test", "-q", "--release", "-p", "matrix-user-hash-core", "--test", "capacity"]
        out = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
        passed = re.search(r"(\d+) passed; 0 failed", out.stdout)
        report.check("core/tests/capacity.rs holds", passed[0] if passed else out.stdout + out.stderr, passed)
        return
    command = ["cargo", "run", "-q", "--release", "-p", "matrix-user-hash-core", "--example", "hit_ratio"]
    out = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True).stdout
    report.at_least("tokens that a zone of 1m has room for", 28_000, int(re.search(r"room for (\d+)", out)[1]))
    for line in out.splitlines():
        title, *figures = re.split(r"\s{2,}", line.strip())
        if len(figures) == 4 and title.startswith("("):
            judge_row(report, title, [float(figure.rstrip("%")) for figure in figures])


def judge_row(report, title, figures):
    """Columns: the module's, one set of 8, one set of 16, true LRU."""
    ours, best = figures[0], figures[3]
    if title.startswith("(a) kept of 28000"):
        report.at_least(title, 99, ours, "%")
    elif title.startswith("(b)"):
        report.at_least(title, 99, ours, "%")
    elif title.startswith("(c)"):
        report.at_least(f"{title}, true LRU {best:g}%", max(round(best - 3, 2), 0), ours, "%")
    elif title.startswith("(d)"):
        report.at_least(title, 1000, ours)
    else:
        report.note(f"{title}: {ours:g}% (true LRU {best:g}%)")


def eviction(report):
    """More distinct valid tokens than fit through nginx and a zone of 1m; the last 1,000 are hits"""
    tokens = 40_000 if report.short else 10_000_000
    with FastWhoami(), Nginx(Front(workers=2), report.name) as nginx:
        poured = flood("distinct", 0, tokens)
        report.equal(f"of {tokens:,} distinct valid tokens through a zone of 1m: requests that were not answered", 0,
                     tokens - poured.ok)
        before = nginx.figures()
        last = flood("distinct", tokens - 1000, 1000, connections=1)
        after = nginx.figures()
        report.note(f"{poured}")
        report.equal("hits when the last 1,000 are asked again", 1000, last.statuses.get("200 HIT", 0))
        report.equal("whoami calls then", 0, after["lookups"] - before["lookups"])
        report.at_least("entries in the zone", 28_000, after["entries"])
        report.note(f"{after['evictions']:,} evictions, {after['capacity']:,} places", key=True)
        report.equal("lines of [warn] and above", 0, sum(len(nginx.lines(level)) for level in
                                                         ("warn", "error", "crit", "alert", "emerg")))
        notices = len(nginx.lines("notice", "is full"))
        report.check(f"notices that the zone is full, in {poured.seconds:.0f} s: 1 a minute", notices,
                     1 <= notices <= 1 + poured.seconds / 60)


def refused_flood(report):
    """Millions of tokens of nobody evict no good entry; one bad token is asked about once a worker"""
    strangers = 20_000 if report.short else 5_000_000
    good, workers = 5_000, 4
    with FastWhoami(), Nginx(Front(workers=workers), report.name) as nginx:
        flood("distinct", 0, good)
        memory = []
        # The memory of refused tokens is full after 8,192 of them in each worker: that is when it is warm.
        warm = flood("strangers", 0, min(strangers // 2, 100_000))
        warmed = nginx.memory()
        poured = flood("strangers", 1_000_000, strangers, watch=lambda: memory.append(max(nginx.memory().values())))
        before = nginx.figures()
        kept = flood("distinct", 0, good)
        after = nginx.figures()
        report.note(f"{warm.answers:,} before, then {poured}")
        report.equal("tokens of nobody that were answered by a worker", strangers, poured.ok)
        report.equal(f"after it, hits when {good:,} good tokens of before are asked again", good, kept.statuses.get("200 HIT", 0))
        report.equal("whoami calls then", 0, after["lookups"] - before["lookups"])
        report.equal("evictions", 0, after["evictions"])
        report.at_most("what a worker's own memory grew by after 8,192 refused tokens", 2.0,
                       (max([*memory, *nginx.memory().values()]) - max(warmed.values())) / MEBIBYTE, " MiB")
        asyncio.run(one_bad_token(report, nginx, workers))
        report.equal("lines of [error] and above", 0, sum(len(nginx.lines(level)) for level in
                                                          ("error", "crit", "alert", "emerg")))


async def one_bad_token(report, nginx, workers):
    clients = Clients()
    await clients.warm(200)
    before = nginx.figures()["lookups"]
    # More connections than requests at once, so that all workers get some.
    answers = await clients.all([token("strangerlouis")] * 1000, at_once=200)
    clients.close()
    report.equal("workers that got the one bad token", workers, len({a.pid for a in answers}))
    report.at_most("whoami calls for 1,000 requests with it", workers, nginx.figures()["lookups"] - before)
    report.equal("of which REFUSED, with the token's hash", 1000, sum(a.status == "REFUSED" and a.right for a in answers))
    if not report.short:
        await asyncio.sleep(31)
        before = nginx.figures()["lookups"]
        clients = Clients()
        await clients.all([token("strangerlouis")] * 1000, at_once=200)
        clients.close()
        report.at_most("whoami calls for 1,000 more, 31 s later", workers, nginx.figures()["lookups"] - before)


def appservice_flood(report):
    """Users that invent user_ids add no entry; nor do bridges and puppets that name strangers"""
    invented = 10_000 if report.short else 1_000_000
    with FastWhoami(), Nginx(Front(), report.name) as nginx:
        flood("invented", 0, 100)
        before = nginx.figures()
        poured = flood("invented", 1_000, invented)
        after = nginx.figures()
        report.note(f"{poured}")
        report.equal(f"hits, of {invented:,} requests of an ordinary user with invented user_ids", invented,
                     poured.statuses.get("200 HIT", 0))
        report.equal("entries that this added", 0, after["entries"] - before["entries"])
        report.equal("whoami calls for it", 0, after["lookups"] - before["lookups"])
    with Whoami() as whoami, Nginx(Front(), report.name) as nginx:
        asyncio.run(device_less(report, whoami, nginx))


async def device_less(report, whoami, nginx):
    """Tokens without a device: an admin's puppet never masquerades, a bridge only as its own ghosts."""
    clients = Clients()
    named = [f"/_matrix/client/v3/sync?user_id=%40invented{n}%3Aexample.org" for n in range(500)]
    puppet = [await clients.get(token("puppetalice"), path) for path in named]
    report.equal("a puppet token with 500 invented user_ids: answers with its own user's hash", 500,
                 sum(a.right for a in puppet))
    report.at_most("whoami calls for it", 2, whoami.seen()["requests"])
    entries = nginx.figures()["entries"]
    report.equal("entries for it", 1, entries)
    for path in named:
        await clients.get(token("bridgeirc"), path)
    report.equal("entries for a bridge that names 500 users it does not have (its own)", 1,
                 nginx.figures()["entries"] - entries)
    ghost = await clients.get(token("bridgeirc"), "/_matrix/client/v3/sync?user_id=%40telegram_bob%3Aexample.org")
    report.equal("then a ghost of the bridge's is still found", "MISS", ghost.status)
    clients.close()


def growth(report):
    """A mix of hits, misses, refused tokens and timeouts: workers' memory and descriptors do not grow"""
    requests = 50_000 if report.short else 1_000_000
    group = f"server 127.0.0.1:{WHOAMI} max_fails=0; keepalive 8;"
    front = Front(workers=2, whoami=group, directives="""matrix_user_hash_timeout 50ms; matrix_user_hash_max_lookups 64;
            location = /held { matrix_user_hash http://127.0.0.1:%d zone=users; add_header X-Status $matrix_user_hash_status;
            empty_gif; }""" % SILENT)
    with socket.create_server(("127.0.0.1", SILENT), backlog=4096), FastWhoami(), Nginx(front, report.name) as nginx:
        # As long as it takes for the zone and the memory of refused tokens (8,192 in each worker) to be full.
        flood("strangers", 0, 10_000 if report.short else 60_000)
        flood("mixed", 10_000_000, 10_000 if report.short else 200_000)
        # What was in flight when the flood stopped ends within a second.
        time.sleep(1)
        warmed, descriptors = nginx.memory(), nginx.descriptors()
        samples = []
        poured = flood("mixed", 20_000_000, requests, watch=lambda: samples.append(sum(nginx.memory().values())), every=2.0)
        time.sleep(1)
        grown, descriptors_after = nginx.memory(), nginx.descriptors()
        report.note(f"{poured}")
        report.equal("requests that were not answered", 0, requests - poured.ok)
        report.equal("worker processes that are still the same", 2, len(set(warmed) & set(grown)))
        report.at_most("what the workers' own memory grew by, of both", 1.0 if not report.short else 2.0,
                       (sum(grown.values()) - sum(warmed.values())) / MEBIBYTE, " MiB")
        report.note(f"own memory of both: {sum(warmed.values()) / MEBIBYTE:.1f} MiB warm, "
                    f"{max([*samples, sum(grown.values())]) / MEBIBYTE:.1f} MiB at most")
        report.at_most("what their descriptors grew by", 8, sum(descriptors_after.values()) - sum(descriptors.values()))
        report.equal("panics", 0, nginx.figures()["panics"])
        report.equal("lines of [alert], [crit] and [emerg]", 0, sum(len(nginx.lines(level)) for level in
                                                                    ("alert", "crit", "emerg")))

"""Workers killed at random moments under load: nobody hangs, nobody is ever taken for somebody else."""

import asyncio
import os
import random
import re
import signal
import subprocess
import time

from tests.bed.people import token
from tests.bed.processes import ROOT

from . import variant
from .bed import Front, Nginx, Whoami
from .client import Clients
from .report import percentile, spread

WORKERS = 4
TIMEOUT = 2.0
# Many are cold again and again: a zone of 64k has 1,824 places.
USERS = 3000


def kill(report):
    """SIGKILLs of random workers under load: no hang, no crash loop, never another user"""
    plain, writing = (30, 10) if report.short else (1000, 200)
    rampage(report, "SIGKILLs of random workers under load", plain, None, "users:1m")
    # Everybody is a miss in so small a zone, so somebody is always writing, for up to 8 ms.
    rampage(report, "SIGKILLs while they write the zone, in a build that sleeps there", writing, variant.module("slow-writes"),
            "users:64k")
    torn_in_memory(report, 2 if report.short else 30)


def rampage(report, what, kills, module, zone):
    # Nothing is a hit for long, so that there are always lookups in flight: entries are fresh for two seconds.
    front = Front(workers=WORKERS, zone=zone, directives=f"matrix_user_hash_timeout {TIMEOUT:g}s; "
                  "matrix_user_hash_valid 200 2s; matrix_user_hash_stale off;")
    with Whoami() as whoami, Nginx(front, report.name, module=module) as nginx:
        whoami.set(delay=0.02)
        watch = asyncio.run(Rampage(nginx, kills).run())
        signalled = len(nginx.lines("alert", "exited on signal 9"))
        report.equal(what, kills, signalled)
        report.equal("requests that were told another user, or another's fallback", 0, watch.wrong)
        report.equal("requests without an answer for 15 s", 0, watch.silent)
        report.equal("answers with another code than 200", 0, watch.bad, key=False)
        report.note(f"{watch.answers:,} answers ({', '.join(f'{n:,} {s}' for s, n in sorted(watch.statuses.items()))}), "
                    f"{watch.cut:,} cut off with their worker, in {watch.seconds:.0f} s", key=True)
        report.note(f"held: {spread(watch.held)}")
        report.at_most("p99.9 of the time that a request was held", (TIMEOUT + 0.05) * 1000,
                       percentile(watch.held, 0.999) * 1000, " ms")
        others = [line for level in ("alert", "crit", "emerg") for line in nginx.lines(level) if "on signal 9" not in line]
        report.check("other lines of [alert], [crit] and [emerg]: 0", "; ".join(others[:3]) or 0, not others, key=False)
        report.equal("lookups in flight at the end", 0, watch.figures["lookups_in_flight"])
        counted = sum(watch.figures["requests"].values())
        report.check(f"requests that the figures count: the {watch.answers:,} that were answered, and of the {watch.cut:,} cut "
                     "off some", f"{counted:,}", watch.answers <= counted <= watch.answers + watch.cut)
        report.equal("worker processes at the end", WORKERS, len(nginx.workers()))


class Rampage:
    """The load, and who kills."""

    def __init__(self, nginx, kills):
        self.nginx, self.kills = nginx, kills
        self.wrong = self.silent = self.bad = self.cut = self.answers = 0
        self.statuses, self.held = {}, []
        self.over = False

    async def run(self):
        self.clients = Clients()
        begin = time.monotonic()
        load = [asyncio.create_task(self.ask(random.Random(n))) for n in range(48)]
        await asyncio.to_thread(self.murder)
        self.over = True
        await asyncio.gather(*load)
        self.seconds = time.monotonic() - begin
        await asyncio.sleep(TIMEOUT + 0.5)
        self.figures = self.nginx.figures()
        self.clients.close()
        return self

    async def ask(self, dice):
        while not self.over:
            # Half of the requests are of forty users, on whose lookups many wait.
            name = f"hot{dice.randrange(40)}" if dice.random() < 0.5 else f"u{dice.randrange(USERS)}"
            answer = await self.clients.get(token(name))
            if not answer.code:
                self.silent += answer.silent
                self.cut += not answer.silent
                await asyncio.sleep(0.005)
                continue
            self.answers += 1
            self.wrong += not answer.right
            self.bad += answer.code != 200
            self.statuses[answer.status] = self.statuses.get(answer.status, 0) + 1
            self.held.append(answer.held)

    def murder(self):
        dice = random.Random(7)
        for _ in range(self.kills):
            time.sleep(0.02 + dice.random() * 0.15)
            workers = self.nginx.workers()
            if workers:
                os.kill(dice.choice(workers), signal.SIGKILL)
            # A master that starts a worker a second time in the same second still does: it knows no crash loop.
            self.wait_for_all()

    def wait_for_all(self):
        end = time.monotonic() + 10
        while len(self.nginx.workers()) < WORKERS and time.monotonic() < end:
            time.sleep(0.01)


def torn_in_memory(report, seconds):
    """The same without nginx: processes on one mapping, one of which dies between two stores of its choice."""
    command = ["cargo", "test", "-q", "--release", "-p", "matrix-user-hash-core", "--test", "processes", "--", "--nocapture"]
    out = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False,
                         env={**os.environ, "PROCESSES_SECONDS": str(seconds)})
    # Behind the harness's dots.
    lines = re.findall(r"\d+ kills.*", out.stdout)
    report.check("core/tests/processes.rs: no wrong user, no key with two leaders", "; ".join(lines) or out.stdout + out.stderr,
                 out.returncode == 0 and len(lines) == 2)

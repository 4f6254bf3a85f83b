"""Reloads, binary upgrades, SIGKILLs, resizes and log rotation under load: what plain nginx survives, nginx with the module does.

Two nginx run side by side, with the module and without. Each client asks both the same at the same moment, and both get the same
events. When nginx ends a worker process it closes connections that are idle, and a request may be on its way on one: clients
repeat a request of which nothing came back, on a new connection, and nginx's log says of every such attempt whether it had
read it. One that was read may only be cut off by the SIGKILL of the worker process that held its connection.
"""

import asyncio
import collections
import importlib
import itertools
import os
import random
import re
import signal
import subprocess
import time
import types

from tests.bed import nginx as bed
from tests.bed.client import Client
from tests.bed.homeserver import Homeserver
from tests.bed.people import hash_of, name_in, token, user_hash, user_id
from tests.bed.processes import BedError, running, wait_for
from tests.bed.report import some

from . import lifecycle_clients as clients
from .bed import PORTS, WORK, Whoami
from .client import FALLBACKS
from .hostile import certificate
from .lifecycle_sides import SYNC, SYNC_CONTROL, WORKERS, Side

KNOWN, COLD, DEVICES = 100, 3000, 3
PATHS = ("/_matrix/client/v3/sync", "/brief/sync")
TRIES = 8
SEED = 1
# In each round: so many of each event, in an order that the dice say.
FULL = (20, {"reload": 25, "kill worker": 50, "upgrade": 1, "resize": 2, "rotate": 3})
SHORT = (1, {"reload": 6, "kill worker": 8, "upgrade": 1, "resize": 1, "rotate": 1})
WHAT = {"reload": "reloads", "kill worker": "SIGKILLs of a worker process", "upgrade": "binary upgrades (USR2, WINCH, QUIT)",
        "resize": "reloads with another size of the zone", "rotate": "rotations of the logs (USR1)"}


def lifecycle(report):
    """Reloads, upgrades, SIGKILLs and resizes under load: no request fails that plain nginx does not fail"""
    protocols = available(report)
    http3 = "HTTP/3" in protocols
    pem = certificate()
    with Whoami() as whoami, Homeserver(SYNC, SYNC_CONTROL, WORK / f"run/sync-{PORTS}") as sync:
        whoami.set(delay=0.02)
        # Long enough that every event comes while requests are in flight.
        sync.set(delay=0.03)
        with Side("ours", PORTS + 10, True, pem, http3) as ours, Side("plain", PORTS + 12, False, pem, http3) as plain:
            run = Run(ours, plain, protocols, *(SHORT if report.short else FULL))
            asyncio.run(run.go())
            judge(report, run)
            leaks(report, ours, plain)


def available(report):
    """The clients that this machine can run: name, the two makers and how many requests a batch has."""
    found = {"HTTP/1.1": (clients.Http1, 1)}
    hpack, missing = modules("hpack")
    if hpack:
        found["HTTP/2"] = (lambda port: clients.Http2(port, hpack), 4)
    else:
        report.note(f"HTTP/2 is not tried: {missing}", key=True)
    aioquic, missing = modules("aioquic.asyncio.protocol", "aioquic.h3.connection", "aioquic.h3.events",
                               "aioquic.quic.configuration", "aioquic.quic.connection", "aioquic.quic.events")
    says = subprocess.run([bed.nginx_binary(), "-V"], capture_output=True, text=True, check=True).stderr
    if not aioquic or "--with-http_v3_module" not in says:
        report.note(f"HTTP/3 is not tried: {missing or 'this nginx is built without --with-http_v3_module'}", key=True)
    else:
        aioquic.H3_REQUEST_REJECTED = aioquic.ErrorCode.H3_REQUEST_REJECTED
        found["HTTP/3"] = (clients.http3(aioquic), 4)
    return found


def modules(*names):
    """All that the modules define, in one namespace, or None and why not."""
    defined = types.SimpleNamespace()
    try:
        for name in names:
            defined.__dict__.update(vars(importlib.import_module(name)))
    except ImportError as error:
        return None, f"{error} (scripts/campaign installs it)"
    return defined, None


class Tally:
    """What became of the requests to one side, by protocol."""

    def __init__(self):
        # Attempts without an answer, and requests that had none after TRIES attempts.
        self.attempts, self.failed = [], []
        self.codes, self.statuses = collections.Counter(), collections.Counter()
        self.wrong = []


class Run:
    """The load, and the events."""

    def __init__(self, ours, plain, protocols, rounds, events):
        self.sides = (ours, plain)
        self.protocols, self.rounds, self.events = protocols, rounds, events
        self.tallies = {side.name: collections.defaultdict(Tally) for side in self.sides}
        self.numbers = itertools.count(1)
        self.upstreams = collections.defaultdict(set)
        self.not_hits, self.asked_again = [], 0
        self.over = False

    async def go(self):
        begin = time.monotonic()
        await self.everyone()
        load = [asyncio.create_task(self.client(name, number)) for name, count in (("HTTP/1.1", 8), ("HTTP/2", 3), ("HTTP/3", 2))
                if name in self.protocols for number in range(count)]
        try:
            for number in range(self.rounds):
                await self.round(random.Random(f"{SEED} {number}"))
        finally:
            self.over = True
            await asyncio.gather(*load)
        self.seconds = time.monotonic() - begin

    async def round(self, dice):
        order = [name for name, count in self.events.items() for _ in range(count)]
        dice.shuffle(order)
        for name in order:
            await asyncio.sleep(0.05 + dice.random() * 0.2)
            seed = dice.random()
            await asyncio.gather(*(asyncio.to_thread(side.event, name, random.Random(seed)) for side in self.sides))
        # An upgrade begins with the zone as it was saved. Everyone is asked for once; from then on nothing makes them unknown.
        await self.everyone()
        for name in ("reload", "resize"):
            await asyncio.gather(*(asyncio.to_thread(side.event, name, dice) for side in self.sides))
            answers = await self.everyone()
            self.asked_again += len(answers)
            self.not_hits += [answer for answer in answers if answer.headers.get("x-status") != "HIT"]

    async def everyone(self):
        """Asks ours for every user who is to stay known."""
        ours, answers = self.sides[0], []
        requests = iter([("HTTP/1.1", token(f"u{n}", device), PATHS[0]) for n in range(KNOWN) for device in range(DEVICES)])

        async def some_of_them():
            client = clients.Http1(ours.port)
            for one in requests:
                answers.extend(await self.insist(ours, client, [one]))
            client.close()

        await asyncio.gather(*(some_of_them() for _ in range(12)))
        return answers

    async def client(self, protocol, number):
        """Asks both sides the same, again and again."""
        make, size = self.protocols[protocol]
        dice = random.Random(f"{SEED} {protocol} {number}")
        both = [(side, make(side.quic_port if protocol == "HTTP/3" else side.port)) for side in self.sides]
        while not self.over:
            batch = [(protocol, *request(dice)) for _ in range(size)]
            await asyncio.gather(*(self.insist(side, client, batch) for side, client in both))
            await asyncio.sleep(dice.random() * 0.02)
        for _, client in both:
            client.close()

    async def insist(self, side, client, requests):
        """Asks until there are answers, as clients do that repeat what is safe to repeat. Gives the answers."""
        waiting, answers = requests, []
        for number in range(TRIES):
            batch = [clients.Attempt(next(self.numbers), *request) for request in waiting]
            await client.ask(batch)
            answers += [attempt for attempt in batch if attempt.state == clients.ANSWERED]
            without = [attempt for attempt in batch if attempt.state != clients.ANSWERED]
            if without:
                tally = self.tallies[side.name][without[0].protocol]
                tally.attempts += without
                if number == TRIES - 1:
                    tally.failed += without
            waiting = [(attempt.protocol, attempt.token, attempt.path) for attempt in without]
            if not waiting:
                break
            await asyncio.sleep(0.01)
        for answer in answers:
            self.note(side, answer)
        return answers

    def note(self, side, answer):
        """Checks one answer."""
        tally = self.tallies[side.name][answer.protocol]
        tally.codes[answer.code] += 1
        name = name_in(answer.token)
        right = answer.code != 200 or answer.user() == user_id(name)
        if side is self.sides[0]:
            status, seen = answer.headers.get("x-status", "none"), answer.headers.get("x-hash", "")
            tally.statuses[status] += 1
            right = right and seen == (hash_of(answer.token) if status in FALLBACKS else user_hash(name))
            if status not in FALLBACKS:
                self.upstreams[name].add(answer.headers.get("x-upstream"))
        if not right:
            tally.wrong.append(f"{answer.token}: {answer.headers} {answer.body[:80]}")


def request(dice):
    """A token and a path: mostly of users who are known, else of one who is asked about."""
    if dice.random() < 0.85:
        return token(f"u{dice.randrange(KNOWN)}", dice.randrange(DEVICES)), PATHS[0]
    return token(f"cold{dice.randrange(COLD)}", dice.randrange(DEVICES)), PATHS[1]


def excused(side, attempt):
    """Whether the worker process that held the connection was killed before the attempt's end."""
    for kill in side.kills:
        if not attempt.opened <= kill.moment <= attempt.ended:
            continue
        if attempt.protocol == "HTTP/3":
            # There are no ports: its packets come on one socket. Until the first answer it may have been any worker's.
            if attempt.pid in (0, kill.pid):
                return True
        elif attempt.port in kill.ports:
            return True
    return False


def judge(report, run):
    ours, plain = run.sides
    for side in run.sides:
        report.equal(f"{side.name}: SIGKILLs of worker processes that the log tells of", run.rounds * run.events["kill worker"],
                     len(side.lines("alert", "exited on signal 9")), key=side is ours)
    report.note(f"at once on both, in {run.seconds:.0f} s and {run.rounds} rounds: " + ", ".join(
        f"{run.rounds * (count + (name in ('reload', 'resize'))):,} {WHAT[name]}" for name, count in run.events.items()), key=True)
    read = {side.name: side.read() for side in run.sides}
    for side in run.sides:
        answers = sum(sum(tally.codes.values()) for tally in run.tallies[side.name].values())
        report.at_least(f"{side.name}: requests that the log says were read", answers, len(read[side.name]), key=False)
    for protocol in run.protocols:
        judge_protocol(report, run, protocol, read)
    tallies = [tally for side in run.sides for tally in run.tallies[side.name].values()]
    wrong = [text for tally in tallies for text in tally.wrong]
    report.check("answers for another user than the token's, by either nginx, or with another's hash: 0",
                 some(wrong) if wrong else 0, not wrong)
    statuses = sum((tally.statuses for tally in run.tallies[ours.name].values()), collections.Counter())
    report.note("with the module: " + ", ".join(f"{count:,} {status}" for status, count in sorted(statuses.items())), key=True)
    moved = [name for name, where in run.upstreams.items() if len(where) > 1]
    report.check(f"users who went to two sync workers, of {len(run.upstreams):,}: 0", len(moved), not moved)
    report.check(f"known tokens, asked for again after a reload and after a resize in each round: HIT, of {run.asked_again:,}",
                 f"{run.asked_again - len(run.not_hits):,}", not run.not_hits)
    logs(report, run)


def judge_protocol(report, run, protocol, read):
    """What had no answer, and whether that may be."""
    lost = {}
    for side in run.sides:
        tally = run.tallies[side.name][protocol]
        cut = [attempt for attempt in tally.attempts if not excused(side, attempt)]
        # Nobody hears that a packet of QUIC was lost.
        never = (clients.UNCONNECTED, clients.BROKEN, *(() if protocol == "HTTP/3" else (clients.SILENT,)))
        lost[side.name] = [attempt for attempt in cut if attempt.number in read[side.name] or attempt.state in never]
        what = f"{protocol}, {'with the module' if side.module else 'plain nginx'}"
        codes = {code: count for code, count in tally.codes.items() if code != 200}
        report.note(f"{what}: {sum(tally.codes.values()):,} answers; {len(tally.attempts) - len(cut):,} attempts were cut off with "
                    f"their worker, {len(cut) - len(lost[side.name]):,} had not been read and were repeated", key=True)
        if side.module:
            report.check(f"{what}: requests without an answer after {TRIES} attempts: 0", some(describe(tally.failed)) or 0,
                         not tally.failed)
            report.check(f"{what}: answers with another code than 200: 0", codes or 0, not codes)
        elif codes or tally.failed or lost[side.name]:
            report.note(f"{what}: other codes: {codes or 0}, no answer: {len(tally.failed)}, "
                        f"read and cut off by no SIGKILL: {some(describe(lost[side.name])) or 0}", key=True)
    mine, theirs = lost.values()
    report.check(f"{protocol}, with the module: requests that were read, and cut off though their worker was not killed: 0",
                 some(describe(mine)) or 0, not mine)


def describe(attempts):
    return [f"{a.number} {a.state} {a.ended - a.began:.2f} s on {a.port} of {a.pid} {a.path}" for a in attempts]


def logs(report, run):
    """What the error logs say beside the kills, and whether rotation reached everybody."""
    ours, plain = run.sides
    kinds = []
    for side in run.sides:
        lines = [line for level in ("alert", "crit", "emerg") for line in side.lines(level) if "exited on signal 9" not in line]
        kinds.append(collections.Counter(re.sub(r"\d+", "N", line.partition("] ")[2].partition(": ")[2]) for line in lines))
    report.check("lines of [alert], [crit] and [emerg] but of the SIGKILLs, of a kind that plain nginx has not written: 0",
                 some([f"{count} × {kind}" for kind, count in kinds[0].items() if kind not in kinds[1]]) or 0,
                 not set(kinds[0]) - set(kinds[1]))
    report.note(f"such lines that both wrote: {dict(kinds[1]) or 0}")
    report.check("worker processes and masters that went on writing to a log that was moved away: 0",
                 some(ours.held + plain.held) or 0, not ours.held + plain.held)
    report.equal("lines of the error log with a token in them", 0, ours.error_log.count("mat_"))


def leaks(report, ours, plain):
    """Nothing is left: of descriptors in the masters, of lookups, of processes."""
    for side in (ours, plain):
        wait_for(lambda side=side: len(running(side.binary)) == WORKERS + 1, 60, f"{side.name}: old processes do not end")
        report.equal(f"{side.name}: processes of it before its end, master and workers", WORKERS + 1, len(running(side.binary)))
    descriptors = [len(os.listdir(f"/proc/{side.master()}/fd")) for side in (ours, plain)]
    report.at_most("descriptors of the master that plain nginx's has not", 1, descriptors[0] - descriptors[1])
    with Client(ours.port) as client:
        figures = client.ask("GET", "/figures").json()["zones"]["users"]
    report.equal("lookups in flight at the end", 0, figures["lookups_in_flight"])
    report.equal("panics", 0, figures["panics"])
    for side in (ours, plain):
        side.stop(signal.SIGQUIT)
        try:
            wait_for(lambda side=side: not running(side.binary), 30, "")
        except BedError:
            pass
        report.equal(f"{side.name}: processes that are left after QUIT", 0, len(running(side.binary)))

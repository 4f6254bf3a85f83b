"""A homeserver that lies, mixed with an honest one: whatever comes, nginx takes nobody for somebody else."""

import asyncio
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote

from tests.bed.people import hash_of, token, user_hash
from tests.bed.processes import ROOT, wait_for

from .bed import CONTROL, FRONT, PORTS, WHOAMI, WORK, Front, Nginx
from .client import FALLBACKS, Clients
from .hostile_answers import BUFFER, EITHER, FALLBACK, KINDS, USER
from .report import Noise, percentile, spread

CLIENTS, USERS, DEVICES, WORKERS = 64, 1000, 3, 2
TLS = PORTS + 6
TIMEOUT = 0.3
SEED = os.environ.get("CAMPAIGN_SEED", "1")
MEBIBYTE = 1 << 20
KNOWN = ("HIT", "MISS", "SHARED", "STALE")

COMMON = f"matrix_user_hash_timeout {TIMEOUT * 1000:.0f}ms; matrix_user_hash_buffer_size {BUFFER}; matrix_user_hash_valid 200 1s;"
# Nothing is known for long, so that lookups never cease. In the second location an older answer is served, and asked for again;
# in the third each connection to whoami is used once.
DIRECTIVES = f"""{COMMON} matrix_user_hash_stale off; matrix_user_hash_valid 401 100ms; matrix_user_hash_valid any 50ms;
            matrix_user_hash_next_upstream error timeout invalid_header;
            location /stale {{ matrix_user_hash http://whoami zone=stale; matrix_user_hash_stale on; empty_gif; }}
            location /once {{ matrix_user_hash http://127.0.0.1:{WHOAMI} zone=once; empty_gif; }}"""
PATHS = ("/_matrix/client/v3/sync", "/stale/sync", "/once/sync")
GROUP = f"server 127.0.0.1:{WHOAMI} max_fails=0; server 127.0.0.2:{WHOAMI} max_fails=0; keepalive 16;"


def hostile(report):
    """A whoami that lies in over 250 ways, mixed with an honest one: nobody is taken for somebody else"""
    front = Front(workers=WORKERS, http="matrix_user_hash_zone stale:1m; matrix_user_hash_zone once:64k;", whoami=GROUP,
                  directives=DIRECTIVES)
    with Liar() as liar, Nginx(front, report.name) as nginx:
        workers = nginx.workers()
        slow = asyncio.run(each_kind(report, liar))
        liar.order(rare=slow)
        with Noise() as noise:
            mix = asyncio.run(Mix(nginx, 12 if report.short else 600).run())
        judge(report, nginx, liar, mix, workers, noise)
    rounds = 10 if report.short else 200
    tls = f"matrix_user_hash_ssl_verify off; location /tls {{ matrix_user_hash https://tls; {COMMON} empty_gif; }}"
    front = Front(workers=1, http=f"upstream tls {{ server 127.0.0.1:{TLS}; keepalive 8; }}", directives=tls,
                  whoami=f"server 127.0.0.1:{WHOAMI}; keepalive 8;")
    with Liar(certificate()) as liar, Nginx(front, report.name) as nginx:
        liar.order(honest=1.0)
        asyncio.run(late_answers(report, liar, nginx, rounds))
        asyncio.run(behind_a_full_buffer(report, rounds))


def certificate():
    """A file with a key and a certificate that it signed itself."""
    WORK.mkdir(parents=True, exist_ok=True)
    file = WORK / "hostile.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", file,
                    "-out", f"{file}.crt", "-days", "30", "-subj", "/CN=matrix.example.org"], check=True, capture_output=True)
    with file.open("ab") as both:
        both.write(Path(f"{file}.crt").read_bytes())
    return file


class Liar:
    """The stand-in homeserver, in a process of its own."""

    def __init__(self, certificate=None):
        self.tls = [str(TLS), str(certificate)] if certificate else []

    def __enter__(self):
        self.process = subprocess.Popen([sys.executable, "-m", "campaign.hostile_whoami", str(WHOAMI), str(CONTROL), SEED,
                                         *self.tls], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.process.stdout.readline()
        self.socket = socket.create_connection(("127.0.0.1", CONTROL), 30)
        self.lines = self.socket.makefile("rb")
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.process.terminate()
        self.process.stdin.close()
        self.process.wait(10)

    def order(self, **order):
        self.socket.sendall(json.dumps(order).encode() + b"\n")
        return json.loads(self.lines.readline())


def is_right(answer, path):
    """The hash of the user whom the request is for; by the fallback, that of its token."""
    if answer.status in FALLBACKS:
        return answer.hash == hash_of(answer.token)
    named = unquote(path.partition("?user_id=")[2])
    name = answer.token.split("_")[1]
    return answer.status in KNOWN and answer.hash == (hash_of(named) if named else user_hash(name))


async def each_kind(report, liar):
    """Each kind alone, some times: is it taken for what it is? Gives those that let the timeout pass."""
    clients, seen = Clients(), {}
    times = 1 if report.short else 20

    async def ask(name):
        for n in range(times):
            answer = await clients.get(token(f"kind-{name}-{n}"))
            # A machine that stood still for so long is no fault of nginx; three times it is not the machine.
            for again in range(2):
                if name in USER and answer.status not in KNOWN:
                    answer = await clients.get(token(f"kind-{name}-{n}x{again}"))
            seen.setdefault(name, []).append(answer)
            # An answer between two hangs, or lookups would be suspended.
            await clients.get(token(f"calm{name}x{n}"))

    liar.order(honest=1.0)
    # Few at once, for the same reason.
    gate = asyncio.Semaphore(4)

    async def in_turn(name):
        async with gate:
            await ask(name)

    await asyncio.gather(*(in_turn(name) for name in KINDS))
    liar.order(honest=0.5)
    clients.close()
    for what, kinds, allowed in (
            ("odd answers that name the user", USER, KNOWN), ("what is no answer: the fallback", FALLBACK, FALLBACKS),
            ("what may go either way", EITHER, KNOWN + FALLBACKS)):
        bad = [f"{name}: {a.status or 'cut off'}" for name in kinds for a in seen[name]
               if not (a.status in allowed and is_right(a, "") and a.code == 200)]
        report.check(f"{what}: {len(kinds)} kinds, {times} of each, each taken for what it is",
                     f"{'; '.join(bad[:5])}, {len(bad)} in all" if bad else "all", not bad)
    return [name for name, answers in seen.items() if any(a.status == "TIMEOUT" for a in answers)]


class Mix:
    """Clients who ask as themselves, while honest and hostile answers are mixed at random."""

    def __init__(self, nginx, seconds):
        self.nginx, self.seconds = nginx, seconds
        self.answers, self.left, self.statuses, self.held = 0, 0, {}, []
        self.wrong, self.bad, self.cut = [], 0, 0
        self.memory = []

    async def run(self):
        self.clients, self.end = Clients(), time.monotonic() + self.seconds
        await asyncio.gather(self.watch(), *(self.client(random.Random(f"{SEED} {n}")) for n in range(CLIENTS)))
        self.clients.close()
        # What is in flight ends by the timeout.
        await asyncio.sleep(TIMEOUT + 1)
        return self

    async def watch(self):
        while time.monotonic() < self.end:
            await asyncio.sleep(min(2, self.seconds / 8))
            self.memory.append(sum(self.nginx.memory().values()) / MEBIBYTE)

    async def client(self, dice):
        while time.monotonic() < self.end:
            path, chance = dice.choice(PATHS), dice.random()
            if chance < 0.05:
                bearer, path = token(f"bridge{dice.randrange(5)}"), f"{path}?user_id=%40ghost{dice.randrange(50)}%3Aexample.org"
            elif chance < 0.07:
                bearer = token(f"stranger{dice.randrange(50)}")
            else:
                bearer = token(f"u{dice.randrange(USERS)}", dice.randrange(DEVICES))
            if dice.random() < 0.02:
                # A client that leaves while it waits.
                try:
                    await asyncio.wait_for(self.clients.get(bearer, path), dice.random() * 0.02)
                except TimeoutError:
                    self.left += 1
                continue
            self.note(await self.clients.get(bearer, path), path)

    def note(self, answer, path):
        self.cut += not answer.code
        if not answer.code:
            return
        self.answers += 1
        self.statuses[answer.status] = self.statuses.get(answer.status, 0) + 1
        self.bad += answer.code != 200
        if answer.held:
            self.held.append(answer.held)
        stranger = answer.token.startswith("mat_stranger")
        if not is_right(answer, path) or stranger and answer.status not in FALLBACKS:
            self.wrong.append((answer, path))


def judge(report, nginx, liar, mix, workers, noise):
    sent = liar.order()["sent"]
    kinds = {kind: count for kind, count in sent.items() if kind in KINDS}
    wrong = [f"{a.token} {path} {a.status} {a.hash}: {liar.order(whose=a.hash)['decoy'] or 'no decoy of ours'}"
             for a, path in mix.wrong[:5]]
    report.check(f"{CLIENTS} clients, {USERS:,} users, {mix.seconds} s, seed {SEED}: requests that were told another user, or "
                 "another's fallback: 0", f"{len(mix.wrong)}: {'; '.join(wrong)}" if wrong else 0, not wrong)
    report.note(f"{mix.answers:,} requests checked ({', '.join(f'{n:,} {s}' for s, n in sorted(mix.statuses.items()))}); "
                f"{mix.left:,} clients left", key=True)
    report.note(f"whoami's answers: {sent.get('honest', 0):,} honest, {sum(kinds.values()):,} hostile", key=True)
    report.equal("kinds of hostile answers that came up", len(KINDS), len(kinds))
    report.equal("requests that were cut off, or silent for 15 s", 0, mix.cut)
    report.equal("answers with another code than 200", 0, mix.bad)
    report.note(f"held, of those that waited: {spread(mix.held)}", key=True)
    # In short the machine is anybody's.
    spare = 1.0 if report.short else 0.05
    report.at_most("p99.9 of the time that a request was held", (TIMEOUT + spare) * 1000, percentile(mix.held, 0.999) * 1000, " ms",
                   slack=noise.worst)
    report.at_most("the longest that a request was held", (TIMEOUT + spare) * 1000, max(mix.held) * 1000, " ms", slack=noise.worst * 2)
    warm = mix.memory[len(mix.memory) // 3:]
    report.at_most("what the workers' own memory grew by, of both, after the first third", 2.0 if not report.short else 4.0,
                   warm[-1] - warm[0], " MiB")
    report.check("worker processes are the same at the end", "yes" if nginx.workers() == workers else "no", nginx.workers() == workers)
    zones = figures()
    report.equal("lookups in flight at the end", 0, sum(zone["lookups_in_flight"] for zone in zones.values()))
    report.equal("panics", 0, sum(zone["panics"] for zone in zones.values()))
    report.equal("lines of [alert], [crit] and [emerg]", 0, sum(len(nginx.lines(level)) for level in ("alert", "crit", "emerg")))
    report.equal("lines of the error log with a token in them", 0, nginx.error_log.count("mat_"))


def figures():
    """Of all zones."""
    connection = http.client.HTTPConnection("127.0.0.1", FRONT, timeout=5)
    connection.request("GET", "/figures")
    zones = json.loads(connection.getresponse().read())["zones"]
    connection.close()
    return zones


async def late_answers(report, liar, nginx, rounds):
    """Answers that nobody asked for come on kept connections while nginx sleeps; when it wakes, it has a request, too.

    Only with nginx asleep it is certain which came first. An answer that comes when the connection is in use again is one that
    nobody could tell from the right one.
    """
    clients, wrong, blurted = Clients(), [], 0
    pid = nginx.workers()[0]
    for n in range(rounds):
        # Two lookups at once leave two connections.
        await asyncio.gather(*(clients.get(token(f"before{n}x{m}")) for m in range(2)))
        await asyncio.sleep(0.02)
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: is_stopped(pid), 10, "the worker does not stop")
        # Whole, or as far as a head that the next answer would complete.
        order = {"blurt": "mallory", "bytes": 1000 if n % 4 < 2 else 20 + n % 50}
        if n % 2:
            blurted += liar.order(**order)["blurted"]
        asked = [asyncio.create_task(clients.get(token(f"after{n}x{m}"))) for m in range(2)]
        await asyncio.sleep(0.02)
        if not n % 2:
            blurted += liar.order(**order)["blurted"]
        os.kill(pid, signal.SIGCONT)
        wrong += [a for a in await asyncio.gather(*asked) if not (a.status == "MISS" and a.right)]
    clients.close()
    report.check(f"{blurted} answers, whole or begun, that nobody asked for, on kept connections just before the next request takes one: requests "
                 "that were not told their user: 0", f"{len(wrong)} ({wrong[0].status} {wrong[0].hash})" if wrong else 0,
                 not wrong and blurted >= rounds)


async def behind_a_full_buffer(report, rounds):
    """An answer fills the buffer to its last byte, and another one comes behind it, in clear and within one record of TLS."""
    clients, wrong, seen = Clients(), [], 0
    for how, path in (("clear", PATHS[0]), ("tls", "/tls/sync")):
        for n in range(rounds):
            full = [await clients.get(token(f"kind-second-behind-a-full-buffer-{n}{how}"), path)]
            after = [await clients.get(token(f"full{n}{how}x{m}"), path) for m in range(2)]
            seen += full[0].status == "MISS"
            wrong += [a for a in full + after if not (a.status in (*KNOWN, *FALLBACKS) and is_right(a, path))]
    clients.close()
    report.check("answers that fill the buffer, with one of another user behind them, in clear and in TLS: requests that were told "
                 "another user: 0", f"{len(wrong)} ({wrong[0].status} {wrong[0].hash})" if wrong else 0,
                 not wrong and seen > rounds)


def is_stopped(pid):
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "T"

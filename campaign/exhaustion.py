"""A machine without memory, descriptors, connections or room on its disk: requests go on by the fallback, and nothing ends.

Each allocation of a request fails in its turn, alone and with all that follow: of the module's own, and of anybody's in the
worker process. What is asked for is in exhaustion_kinds.py.
"""

import errno
import hashlib
import http.client
import mmap
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import time
from collections import Counter
from contextlib import ExitStack

from tests.bed import preload
from tests.bed.people import token
from tests.bed.processes import BedError, wait_for

from .bed import FRONT, WHOAMI, WORK, Front, Nginx, Whoami
from .client import Answer
from .exhaustion_kinds import KINDS, KNOWN, OLD, POOLS, TIMEOUT, Asked, Scarcity, exchange
from .hostile import MEBIBYTE, SEED, Liar, certificate, figures
from .report import Noise

# Of the allocations that a request makes.
MOST = 400
THE_MODULES, EVERYBODYS = 1, 2
FOR_EVER = (1 << 32) - 1
CONNECTIONS = 64
# Nothing is kept alive to whoami, so each lookup needs a connection and a descriptor of its own.
CONNECTING = Front(workers=1, whoami=f"server 127.0.0.1:{WHOAMI};", connections=CONNECTIONS)
# nginx says of each allocation of its own that it failed, as [emerg]; of OpenSSL's as [crit], with no reason where that had no
# memory either.
OF_MEMORY = ("failed (12:", "malloc failure", "malloc lib", "SSL_write() failed while sending request to upstream,")


def exhaustion(report):
    """Each allocation fails in its turn, of requests and of a configuration; descriptors, connections and the disk run out: the fallback, never a crash"""
    memory(report)
    configuration(report)
    descriptors(report)
    connections(report)
    disk(report)


class Scarce:
    """The order to the library scarce.c: which allocations fail."""

    LAYOUT = struct.Struct("5I")

    def __init__(self):
        self.file = WORK / "scarce"
        WORK.mkdir(parents=True, exist_ok=True)
        self.file.write_bytes(bytes(mmap.PAGESIZE))
        with self.file.open("r+b") as file:
            self.order = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        os.environ["SCARCE"] = str(self.file)

    def begin(self, whose, first, last):
        # Whose it is comes last: it is what begins.
        self.order[4:20] = struct.pack("4I", first, last, 0, 0)
        self.order[0:4] = struct.pack("I", whose)

    def end(self):
        """How many allocations there were, and how many of them failed."""
        self.order[0:4] = struct.pack("I", 0)
        return self.LAYOUT.unpack_from(self.order)[3:]


def memory(report):
    library = preload.build("scarce", WORK)
    scarce, front = Scarce(), Scarcity()
    with Liar(certificate()) as liar, Nginx(front, report.name, preload=library) as nginx:
        liar.order(honest=1.0)
        pid = nginx.workers()
        exchange(FRONT, [Asked(token("known"), "/sync"), *(Asked(bearer, "/old") for bearer in OLD)])
        # Whole seconds count: now the old answers are.
        time.sleep(2.1)
        rounds = Rounds(front, scarce, random.Random(SEED))
        # With memory, and once before it is counted: what a worker process makes once is made.
        for pool in POOLS:
            for kind in KINDS:
                rounds.with_memory(kind, pool)
        before = nginx.memory()[pid[0]], nginx.descriptors()[pid[0]]
        for whose, who in ((THE_MODULES, "of the module"), (EVERYBODYS, "of the worker process")):
            for _ in range(1 if report.short else 3):
                for pool in POOLS[::3] if report.short and whose == EVERYBODYS else POOLS:
                    for kind in KINDS:
                        rounds.each(kind, pool, whose, report.short)
            rounds.judge(report, who, nginx, whose)
        # What is in flight ends by its timeout, and what was closed is.
        time.sleep(TIMEOUT + 0.5)
        is_same = nginx.workers() == pid
        report.check("the worker process is the same at the end", "yes" if is_same else "no", is_same)
        if not is_same:
            return
        after = nginx.memory()[pid[0]], nginx.descriptors()[pid[0]]
        report.at_most("what the worker process has grown by", 4.0, (after[0] - before[0]) / MEBIBYTE, " MiB")
        # A kept connection to whoami more or less, in clear and in TLS, and to a sync worker.
        report.at_most("descriptors that it has more than before", 12, after[1] - before[1])
        zones = figures()
        report.equal("lookups in flight at the end", 0, sum(zone["lookups_in_flight"] for zone in zones.values()))
        report.equal("panics", 0, sum(zone["panics"] for zone in zones.values()))
        report.equal("lookups that were not sent because whoami was failing", 0, sum(zone["suppressed"] for zone in zones.values()))


class Rounds:
    """One exchange without memory and one with it, again and again, and what came of both."""

    def __init__(self, front, scarce, dice):
        self.front, self.scarce, self.dice = front, scarce, dice
        self.number = 0
        self.forget()

    def forget(self):
        self.rounds, self.failed, self.most = 0, 0, 0
        self.told, self.wrong, self.silent, self.after = Counter(), [], [], []

    def ask(self, kind, pool):
        """An exchange with a user that nobody has asked for, and a request that is longer or shorter than the last."""
        self.number += 1
        requests = KINDS[kind].requests(f"n{self.number}", "x" * self.dice.randrange(300))
        return list(zip(requests, exchange(self.front.port_of(pool), requests), strict=True))

    def with_memory(self, kind, pool):
        for asked, answer in self.ask(kind, pool):
            is_well = answer.code == 200 and (not KINDS[kind].has_user or answer.status in KINDS[kind].statuses
                                              and asked.is_right(answer))
            if not is_well:
                self.after.append(f"{kind}, pool of {pool}: {answer.code} {answer.status} {answer.hash}")

    def each(self, kind, pool, whose, short):
        """Lets each allocation of such a request fail: it alone, and all from it on."""
        # In short, some of many.
        step = 5 if short and whose == EVERYBODYS else 1
        for are_all in (False, True):
            first = self.dice.randrange(step) + 1
            # A few that are silent say enough.
            while first <= MOST and len(self.silent) < 3 and self.one(kind, pool, whose, first, are_all):
                first += step

    def one(self, kind, pool, whose, first, are_all):
        """One round; whether anything failed in it."""
        self.scarce.begin(whose, first, FOR_EVER if are_all else first)
        answers = self.ask(kind, pool)
        if kind == "an old answer":
            # It is asked for again after its request has been answered.
            time.sleep(0.003)
        counted, failed = self.scarce.end()
        self.rounds += 1
        self.failed += failed
        self.most = max(self.most, counted)
        for asked, answer in answers:
            self.note(f"{kind}, pool of {pool}, {first}{' and all that follow' if are_all else ''}", asked, answer, kind, whose)
        self.with_memory(kind, pool)
        return failed

    def note(self, where, asked, answer, kind, whose):
        has_user = KINDS[kind].has_user
        self.told[f"{answer.code or 'cut off'} {answer.status}".strip()] += 1
        if answer.silent:
            self.silent.append(where)
        elif answer.code == 200:
            if has_user and not asked.is_right(answer, has_memory=whose == THE_MODULES):
                self.wrong.append(f"{where}: {answer.status or 'no status'} {answer.hash or 'no hash'}")
        elif whose == THE_MODULES and not (answer.code == 500 and not has_user) or 0 < answer.code < 500:
            self.wrong.append(f"{where}: {answer.code or 'cut off'}")

    def judge(self, report, who, nginx, whose):
        report.note(f"allocations {who}, at most {self.most} for a request: {self.failed:,} failed in {self.rounds:,} rounds of "
                    f"{len(KINDS)} kinds, answers {', '.join(f'{n:,} {told}' for told, n in sorted(self.told.items()))}", key=True)
        what = "its user or the fallback" if whose == THE_MODULES else "its user, the fallback, or nginx's own 5xx or end"
        none_of(report, f"requests without memory {who} that were told something else than {what}", self.wrong)
        none_of(report, "requests that stayed silent", self.silent)
        none_of(report, "requests with memory again, that were not resolved at once", self.after)
        none_of(report, "lines of [crit], [alert] and [emerg] that are not of memory",
                [line for level in ("crit", "alert", "emerg") for line in nginx.lines(level)
                 if whose == THE_MODULES or not any(words in line for words in OF_MEMORY)])
        none_of(report, "lines of the error log with a token in them",
                [line for line in nginx.error_log.splitlines() if "mat_" in line])
        self.forget()


def configuration(report):
    """Each of the module's allocations fails while a configuration is read: by `nginx -t`, and by a reload under way."""
    library = preload.build("scarce", WORK)
    scarce, front = Scarce(), Scarcity(zone=f"users:1m state={WORK}/scarce.state")
    nginx = Nginx(front, f"{report.name}-configuration", preload=library)
    nginx.configure()
    # Before it runs, for its worker processes allocate as well.
    each(report, "`nginx -t`", scarce, 5 if report.short else 1, lambda: judged_test(nginx))
    with Liar(certificate()) as liar, nginx:
        liar.order(honest=1.0)
        answers(report, "before", front)
        master = nginx.master()
        each(report, "reloads", scarce, 10 if report.short else 1, lambda: judged_reload(nginx))
        report.check("the master process is the same", "yes" if nginx.master() == master else "no", nginx.master() == master)
        nginx.reload()
        answers(report, "after a reload with memory", front)


def answers(report, when, front):
    kind = KINDS["a known user"]
    told = [answer.status for pool in POOLS for answer in exchange(front.port_of(pool), kind.requests("", ""))]
    report.equal(f"{when}: the known user is told as theirs, at {len(POOLS)} servers", len(POOLS), sum(status in KNOWN for status in told),
                 key=False)


def each(report, what, scarce, step, judged):
    """Lets each allocation of `judged` fail, or one of so many, alone and with all that follow."""
    rounds, most, wrong = 0, 0, []
    for last in (None, FOR_EVER):
        first = 1
        while len(wrong) < 3:
            scarce.begin(THE_MODULES, first, last or first)
            said = judged()
            counted, failed = scarce.end()
            if not failed:
                break
            rounds, most, first = rounds + 1, max(most, counted), first + step
            if said:
                wrong.append(f"{first - step}{' and all that follow' if last else ''}: {said}")
    report.check(f"{what} without memory of the module, at most {most} allocations: of {rounds} rounds, those that do not end as they "
                 "must: 0", f"{len(wrong)}: {'; '.join(wrong)}" if wrong else 0, rounds > 10 and not wrong)


def judged_test(nginx):
    """What is wrong with what `nginx -t` does without memory; None if it refuses the configuration and says why, or says that the
    state file cannot be read."""
    done = subprocess.run([*nginx.command(), "-t"], check=False, capture_output=True, text=True, env=nginx.environment)
    if done.returncode == 1 and "[emerg]" in done.stderr or done.returncode == 0 and "[warn]" in done.stderr:
        return None
    return f"exit status {done.returncode}, {done.stderr.strip()[-200:]}"


def judged_reload(nginx):
    """The same of a reload: it fails and says why, or there are new worker processes. None ends by a signal."""
    before, lines = nginx.workers(), len(nginx.lines("emerg"))
    nginx.send(signal.SIGHUP)
    try:
        wait_for(lambda: len(nginx.lines("emerg")) > lines or nginx.workers() and not set(before) & set(nginx.workers()), 10,
                 "nothing happens")
    except BedError as error:
        return str(error)
    return "; ".join(nginx.lines("alert")[:1]) or None


def none_of(report, what, found):
    report.check(f"{what}: 0", f"{len(found)}: {'; '.join(found[:5])}" if found else 0, not found)


def descriptors(report):
    with Whoami() as whoami, Nginx(CONNECTING, f"{report.name}-descriptors") as nginx, Kept(4) as kept:
        pid, = nginx.workers()
        before = nginx.descriptors()[pid]
        limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (before, limit[1]))
        shortage(report, "no descriptor is left", whoami, kept)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
        recovery(report, "descriptors again", kept, nginx, pid)
        report.at_most("descriptors that it has more than before", 1, nginx.descriptors()[pid] - before)


def connections(report):
    with Whoami() as whoami, Nginx(CONNECTING, f"{report.name}-connections") as nginx, ExitStack() as stack:
        pid, = nginx.workers()
        with Kept(1):
            pass
        # Each begins a request, so nginx cannot have its connection back.
        slow = []
        while not nginx.lines("alert", f"{CONNECTIONS} worker_connections are not enough"):
            if len(slow) > 2 * CONNECTIONS:
                raise BedError("nginx takes more connections than it may have")
            slow.append(stack.enter_context(socket.create_connection(("127.0.0.1", FRONT))))
            slow[-1].sendall(b"GET / HTTP/1.1\r\n")
            time.sleep(0.01)
        # One place is free for the client that asks. While it waits, its connection is in use as well.
        slow[0].close()
        time.sleep(0.1)
        kept = stack.enter_context(Kept(1))
        shortage(report, "no connection is left", whoami, kept)
        for connection in slow:
            connection.close()
        # nginx sees at its next turns that they are closed.
        time.sleep(0.2)
        recovery(report, "connections again", kept, nginx, pid)


class Kept:
    """Connections to nginx that were open before anything was lacking."""

    def __init__(self, number):
        self.connections = [http.client.HTTPConnection("127.0.0.1", FRONT, timeout=15) for _ in range(number)]

    def __enter__(self):
        for number, _ in enumerate(self.connections):
            self.ask(token("known"), number)
        return self

    def __exit__(self, *_):
        for connection in self.connections:
            connection.close()

    def ask(self, bearer, number):
        """Its status and hash, and how long that took."""
        connection, begun = self.connections[number % len(self.connections)], time.monotonic()
        connection.request("GET", "/_matrix/client/v3/sync", headers={"Authorization": f"Bearer {bearer}"})
        response = connection.getresponse()
        response.read()
        is_right = Asked(bearer, "").is_right(Answer(bearer, response.status, response.headers["X-Status"], response.headers["X-Hash"]))
        return response.headers["X-Status"], is_right and response.status == 200, time.monotonic() - begun

    def all(self, bearers):
        return [self.ask(bearer, number) for number, bearer in enumerate(bearers)]


def shortage(report, what, whoami, kept):
    whoami.forget()
    with Noise() as noise:
        cold, warm = kept.all(token(f"cold{n}") for n in range(200)), kept.all([token("known")] * 200)
    report.equal(f"{what}: requests of 200 unknown users that go on by the fallback", 200,
                 sum(status == "ERROR" and is_right for status, is_right, _ in cold))
    report.equal(f"{what}: requests of a known user that go on as theirs, of 200", 200,
                 sum(status == "HIT" and is_right for status, is_right, _ in warm))
    report.at_most(f"{what}: the longest that an unknown user waits", 250, max(took for _, _, took in cold) * 1000, " ms",
                   slack=noise.worst)
    report.equal(f"{what}: lookups that whoami saw", 0, whoami.seen()["requests"])


def recovery(report, what, kept, nginx, pid):
    again = kept.all(token(f"cold{n}") for n in range(200))
    report.equal(f"{what}: the same users are looked up at once, of 200", 200,
                 sum(status == "MISS" and is_right for status, is_right, _ in again))
    report.check(f"{what}: the worker process is the same", nginx.workers(), nginx.workers() == [pid])
    zone = nginx.figures()
    report.equal(f"{what}: lookups in flight, panics, and lookups not sent because whoami was failing", 0,
                 zone["lookups_in_flight"] + zone["panics"] + zone["suppressed"])


def disk(report):
    """The disk with the state file and the access log is full."""
    with Disk(WORK / "full-disk") as full, Whoami() as whoami:
        if not full.is_mounted:
            report.note("a full disk: not tried, for mount(8) is not permitted here", key=True)
            return
        file = full.path / "users.state"
        front = Front(workers=1, zone=f"users:1m state={file}", log=True, log_file=full.path / "access.log")
        with Nginx(front, f"{report.name}-disk") as nginx:
            filled(report, nginx, full, file, whoami)
        # A new nginx, which reads the file that the last one has written when there was room again.
        with Nginx(front, f"{report.name}-disk", fresh=False) as nginx, Kept(1) as kept:
            told = kept.all(token(f"u{n}") for n in range(1000))
            report.equal("after a restart, users who are known, of 1,000", 1000, sum(status == "HIT" and ok for status, ok, _ in told))


def filled(report, nginx, full, file, whoami):
    # It is saved in the first second of a worker process, for there was no file.
    wait_for(file.exists, 10, "there is no state file")
    full.fill()
    saved = digest(file)
    with Kept(1) as kept:
        told = kept.all(token(f"u{n}") for n in range(1000))
        report.equal("a full disk: requests that are told their user, of 1,000", 1000,
                     sum(status in ("HIT", "MISS") and ok for status, ok, _ in told))
    # A file that is an hour old is overdue, so a new worker process saves in its first second; when it ends, it tells.
    os.utime(file, (time.time() - 3600,) * 2)
    nginx.reload()
    time.sleep(3)
    nginx.reload()
    said = nginx.lines("warn", str(file))
    report.check("a full disk: lines that say why the state was not saved: 1", f"{len(said)}: {said[0].partition('error ')[2][:90]}" if said else 0,
                 len(said) == 1 and "No space left on device" in said[0])
    report.check("a full disk: the state file is the last one that was whole", saved[:16], saved == digest(file))
    none_of(report, "a full disk: files that are left beside it", [path.name for path in full.path.glob(f"{file.name}.*")])
    with Kept(1) as kept:
        told = kept.all(token(f"u{n}") for n in range(1000))
        report.equal("a full disk, after a reload: hits, of 1,000", 1000, sum(status == "HIT" and ok for status, ok, _ in told))
    full.empty()
    nginx.stop()
    report.check("with room again, the state is saved", f"{file.stat().st_size:,} bytes", digest(file) != saved)


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


class Disk:
    """A disk of a quarter of a mebibyte, in memory, where the machine lets us have one."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        self.path.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", self.path], capture_output=True, check=False)
        self.is_mounted = done.returncode == 0
        return self

    def __exit__(self, *_):
        if self.is_mounted:
            subprocess.run(["umount", self.path], check=True)

    def fill(self):
        """Until not a byte fits."""
        with (self.path / "filler").open("ab", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(1024))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def empty(self):
        (self.path / "filler").unlink()

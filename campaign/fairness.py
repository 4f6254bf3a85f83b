"""Fairness in a real nginx: what one client, or one worker process, may take from others; the engine's simulations promise it.

Clients have addresses of their own in 127.0.0.0/8, and each connection knows which worker process serves it. What must hold
is counted, and a round that does not hold is tried again, twice: a machine that stands still for seconds makes any request
time out, and does not do so three times. Times have bounds at full length only.
"""

import asyncio
import itertools
import subprocess
import sys
import time

from tests.bed import preload
from tests.bed.people import token
from tests.bed.processes import ROOT

from .bed import FRONT, WHOAMI, WORK, Front, Nginx, Whoami
from .client import Connection
from .report import percentile, spread

ATTEMPTS = 3
GROUP = f"server 127.0.0.1:{WHOAMI} max_fails=0; keepalive 64;"
KNOWN = ("HIT", "MISS", "SHARED")
# The client that takes what it can get.
GREEDY = "127.0.9.9"


def fairness(report):
    """What one client or one worker takes from others: floods, places, polls, and tokens that become known"""
    held_in_one_worker(report)
    flooded(report)
    polled(report)
    becomes_known(report)


def attempts(report, trial):
    """Runs a trial until it holds, three times at most. A trial gives whether it did, and a function that reports it."""
    for number in range(1, ATTEMPTS + 1):
        holds, tell = trial(number)
        if holds or number == ATTEMPTS:
            if number > 1:
                report.note(f"attempt {number} of {ATTEMPTS}", key=True)
            tell()
            return


async def spread_over(workers, addresses, each):
    """For each worker process so many connections that it serves; their addresses are taken from that iterator."""
    found = {pid: [] for pid in workers}
    for _ in range(200 * each * len(workers)):
        if all(len(connections) == each for connections in found.values()):
            return found
        address = next(addresses)
        connection = await Connection().open(address)
        # No token that Synapse would accept: nobody is asked about it.
        pid = (await connection.get("no token\x7f")).pid
        if len(found.get(pid, ())) < each and pid in found:
            found[pid].append(connection)
        else:
            connection.close()
    raise AssertionError("the kernel gives one worker process no connections")


def addresses(first=1):
    """127.1.0.1 and so on, without end."""
    return (f"127.1.{n // 250 % 250}.{n % 250 + 1}" for n in itertools.count(first))


class Greed:
    """Connections of one client, each of which asks for one cold token after the other."""

    def __init__(self, connections, names):
        self.connections, self.names = connections, names
        self.answers, self.over = [], False

    def start(self):
        self.tasks = [asyncio.create_task(self.ask(connection)) for connection in self.connections]
        return self

    async def ask(self, connection):
        while not self.over and connection.is_open:
            self.answers.append(await connection.get(token(next(self.names))))

    async def stop(self):
        self.over = True
        await asyncio.gather(*self.tasks)
        for connection in self.connections:
            connection.close()


def counted(names):
    """Users, or strangers, without end."""
    return (f"{names}{n}" for n in itertools.count())


def held_in_one_worker(report):
    """One client keeps 40 cold requests in one worker process; users of the other one are served as those of the first."""
    rounds = 4 if report.short else 40
    front = Front(workers=2, whoami=GROUP, directives="matrix_user_hash_max_lookups 8; matrix_user_hash_timeout 2s; "
                  "matrix_user_hash_read_timeout 2s;")

    async def run(nginx, number):
        first, second = nginx.workers()
        greedy = (await spread_over([first], itertools.repeat(GREEDY), 40))[first]
        users = await spread_over([first, second], addresses(), 12)
        greed = Greed(greedy, counted(f"greed{number}x")).start()
        await asyncio.sleep(0.5)
        answers = {first: [], second: []}

        async def user(pid, connection, name):
            for turn in range(rounds):
                answers[pid].append(await connection.get(token(f"user{number}x{name}x{turn}")))
                await asyncio.sleep(0.1)

        await asyncio.gather(*(user(pid, connection, f"{pid}x{n}") for pid, of_it in users.items()
                               for n, connection in enumerate(of_it)))
        await greed.stop()
        return answers[first], answers[second], greed.answers

    def trial(number):
        with Whoami() as whoami, Nginx(front, report.name) as nginx:
            whoami.set(delay=0.05)
            first, second, greedy = asyncio.run(run(nginx, number))
        total = len(first) + len(second)
        good = sum(a.status == "MISS" and a.right for a in first + second)
        medians = [percentile([a.held for a in answers], 0.5) * 1000 for answers in (first, second)]

        def tell():
            report.equal("one client keeps 40 cold requests in one of two worker processes, 8 places, whoami takes 50 ms: requests "
                         f"of 24 users with their user's hash, of {total:,}", total, good)
            report.note(f"held: users of its worker {spread([a.held for a in first])}, of the other one "
                        f"{spread([a.held for a in second])}, the client itself {spread([a.held for a in greedy])}, {len(greedy):,} requests", key=True)
            if not report.short:
                report.at_most("the medians of the users of both workers, the larger by the smaller", 1.5, max(medians) / min(medians))

        fair = report.short or max(medians) <= 1.5 * min(medians)
        return good == total and fair, tell

    attempts(report, trial)


def flooded(report):
    """900 connections of one address with tokens of nobody, and 48 users of 48 addresses at once."""
    rounds = 1 if report.short else 10
    front = Front(workers=2, whoami=GROUP, directives="matrix_user_hash_max_lookups 8; matrix_user_hash_timeout 4s; "
                  "matrix_user_hash_read_timeout 4s;")

    async def run(number):
        names = counted(f"stranger{number}x")
        connections = []
        while len(connections) < 900:
            connections += await asyncio.gather(*(Connection().open(GREEDY) for _ in range(100)))
        users = [await Connection().open(f"127.2.0.{n + 1}") for n in range(48)]
        greed = Greed(connections, names).start()
        # All of its requests wait, some since long.
        await asyncio.sleep(2)
        answers = []
        for turn in range(rounds):
            answers += await asyncio.gather(*(user.get(token(f"user{number}x{n}x{turn}")) for n, user in enumerate(users)))
            await asyncio.sleep(0.5)
        await greed.stop()
        return answers, greed.answers

    def trial(number):
        with Whoami() as whoami, Nginx(front, report.name):
            whoami.set(delay=0.1)
            answers, greedy = asyncio.run(run(number))
        good = sum(a.status == "MISS" and a.right for a in answers)
        late = sum(a.status == "TIMEOUT" for a in answers)

        def tell():
            report.equal("900 connections of one address with tokens of nobody, 8 places, whoami takes 100 ms, timeout 4 s: requests of 48 "
                         f"users from 48 addresses with their user's hash, of {len(answers):,}", len(answers), good)
            report.equal("of which timed out", 0, late)
            asked = sum(a.status == "REFUSED" for a in greedy)
            report.note(f"held: the users {spread([a.held for a in answers])}; of {len(greedy):,} requests of the flood "
                        f"{asked:,} had an answer of whoami", key=True)

        return good == len(answers), tell

    attempts(report, trial)


def polled(report):
    """All places are taken by one worker process; when they are free, newcomers in the other one do not keep it from seeing that."""
    brief = ("location /brief { matrix_user_hash http://whoami zone=users; matrix_user_hash_max_lookups 4; "
             "matrix_user_hash_timeout 10ms; add_header X-Pid $pid always; empty_gif; }")
    front = Front(workers=2, whoami=GROUP,
                  directives=f"matrix_user_hash_max_lookups 4; matrix_user_hash_timeout 10s; "
                  f"matrix_user_hash_read_timeout 10s; {brief}")
    lasts = 3.0
    busy = preload.build("patient", WORK)

    async def run(nginx, whoami, number):
        first, second = nginx.workers()
        holders = (await spread_over([first], addresses(), 4))[first]
        waiting = (await spread_over([second], addresses(5000), 1))[second][0]
        with Newcomers(second, f"new{number}x") as newcomers:
            whoami.forget()
            slow = [asyncio.create_task(holder.get(token(f"slow{number}x{n}"))) for n, holder in enumerate(holders)]
            while whoami.seen()["requests"] < 4:
                await asyncio.sleep(0.01)
            user = asyncio.create_task(waiting.get(token(f"waits{number}")))
            await asyncio.sleep(0.02)
            newcomers.begin()
            await asyncio.gather(*slow)
            free = time.monotonic()
            while whoami.seen()["requests"] < 5 and time.monotonic() < free + lasts:
                await asyncio.sleep(0.02)
            came = newcomers.end()
            answer = await user
        times = whoami.seen()["times"]
        return times[4] - free if len(times) > 4 else None, came, answer

    def trial(number):
        with Whoami() as whoami, Nginx(front, report.name, preload=busy) as nginx:
            whoami.set(delay=0.7)
            took, came, answer = asyncio.run(run(nginx, whoami, number))
        in_time = took is not None and took < 2.0

        def tell():
            report.check("one worker process frees all 4 places, while cold requests come to the other one in every turn of its event "
                         f"loop, for {lasts:.0f} s more: it sends the next lookup within 2 s", f"after {took * 1000:.0f} ms" if took is not None
                         else "only when they had stopped", in_time)
            report.note(f"{came:,} cold requests came meanwhile; who waited: {answer.status} after {answer.held:.1f} s", key=True)

        return in_time, tell

    attempts(report, trial)


class Newcomers:
    """A process that asks a worker process for one cold token after the other."""

    def __init__(self, pid, names):
        self.arguments = [str(FRONT), str(pid), names]

    def __enter__(self):
        self.process = subprocess.Popen([sys.executable, "-m", "campaign.newcomers", *self.arguments], cwd=ROOT, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.process.stdout.readline()
        return self

    def begin(self):
        self.process.stdin.write("begin\n")
        self.process.stdin.flush()

    def end(self):
        """Gives how many there were."""
        out, _ = self.process.communicate("end\n", timeout=30)
        return int(out)

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(10)


def becomes_known(report):
    """A token is unknown right after its login, and known a moment later; another one stays unknown for good."""
    front = Front(workers=1, whoami=GROUP, directives="matrix_user_hash_valid 401 30s; matrix_user_hash_timeout 10s; "
                  "matrix_user_hash_read_timeout 10s;")
    lasts = 4.0 if report.short else 40.0

    async def run(whoami):
        user, stranger = await Connection().open(), await Connection().open()
        whoami.set(kind="unknown-token")
        first = await user.get(token("login"))
        whoami.set(kind="ok")
        learnt = time.monotonic()
        # Clients that are refused ask again. The token of a user is known by now, the other one never will be.
        begin, answers = time.monotonic(), []
        known = None
        while time.monotonic() < begin + lasts or known is None and time.monotonic() < begin + 25:
            if known is None:
                answers.append(await user.get(token("login")))
                if answers[-1].status != "REFUSED":
                    known = time.monotonic() - learnt
            await stranger.get(token("stranger"))
            await asyncio.sleep(0.05)
        elapsed = time.monotonic() - begin
        asked = whoami.seen()["asked"]
        return first, answers, known, dict(asked).get(token("stranger"), 0), elapsed

    with Whoami() as whoami, Nginx(front, report.name):
        first, answers, known, asked, elapsed = asyncio.run(run(whoami))
    report.check("whoami refuses a token that becomes known then: its user is found before the 30 s of a refusal are over",
                 f"{first.status}, then {answers[-1].status} after {known:.2f} s" if known else f"{answers[-1].status} after 25 s",
                 first.status == "REFUSED" and known is not None and answers[-1].status == "MISS" and answers[-1].right)
    if known and not report.short:
        report.at_most("found after", 1.5, known, " s")
    # After 1 s, 2 s, 4 s, 8 s, 16 s, and 30 s each time from then on.
    most = 1 + sum(elapsed >= due for due in (1, 3, 7, 15, 31, 61))
    report.check(f"a token that stays unknown is asked about less and less often: in {elapsed:.0f} s at most {most} times, and not "
                 "once only", asked, 1 < asked <= most)

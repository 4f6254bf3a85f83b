"""scripts/limits fairness: one account with 200 parallel syncs over 20 tokens and 20 addresses, beside 50 ordinary users.

Two Synapse workers behind nginx as the companion renders it. In each round, the ordinary users alone; without the account; beside
the account in a tight loop, held to a rate; beside its long polls, held to a number at a time; without it again. At last beside the
account without any limit. "Without the account", its client asks another nginx as often, which answers 429 to everything: the client
is on the same machine, and what it takes of the processors is not what the account takes from others. The account begins BEFORE
seconds before the others are measured, and ends with them; its own figures are of the whole time.

Printed for each run: how often the account asked and was served, by how much that is off its limit, and the p99 of the others' syncs.
Exit status 1 if the account is more than 1% off its limit in any run, or if the median p99 beside it differs from that without it
by more than two runs without it do.

LIMITS_PORT is the first of its 200 ports on 127.0.0.1 (default 18400). Logs: build/e2e/fairness.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

from tests.bed.client import Client
from tests.bed.nginx import Nginx, temporary_paths, user_root
from tests.bed.processes import ROOT, BedError, Processes

from .database import Database
from .heavy import ADDRESSES, AGENT, replaced
from .homeserver import Homeserver, Refused
from .layouts import CLIENT, FEDERATION, Deployment, Layout, Worker
from .synapse import NO_LIMIT

OTHERS, ROOMS = 50, 5
ROUNDS, SECONDS = 5, 20
# Each of the others asks once in that many seconds.
PAUSE = 1.0
RATE, BURST, AT_A_TIME = 10, 20, 20
# The account has begun so long before the others are measured: its burst, and the lookups of its first tokens, are over then.
BEFORE = 3
TOKENS = ADDRESSES * (replaced(BEFORE + SECONDS, 0) + 1)
ALONE, ELSEWHERE, AGAIN = "alone", "without the account", "without the account again"
BY_RATE, BY_NUMBER, UNLIMITED = "held to a rate", "held to a number", "without limits"
LIMITS = {
    BY_RATE: f"[limits.user]\nsync = {{ per_second = {RATE}, burst = {BURST} }}\n",
    BY_NUMBER: f"[limits.user]\nparallel_syncs = {AT_A_TIME}\n",
}
NAMES = ("generic1", "generic2")

# The nginx that the account's client asks while the account is not there.
OTHER = """\
{user}
pid {directory}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
    access_log {directory}/access.log;
    {temporary}
    keepalive_requests 1000000;
    server {{
        listen 127.0.0.1:{port};
        location / {{ add_header Retry-After 1 always; return 429; }}
    }}
}}
"""
UNKNOWN = re.compile(r" user_hash_status=(?:ERROR|TIMEOUT|REFUSED) ")


class Bed(Deployment):
    """The deployment, without limits of Synapse's own."""

    def homeserver(self) -> dict:
        return {**super().homeserver(), "rc_joins_per_room": NO_LIMIT}


class Town:
    """The heavy account, and the others in their rooms."""

    def __init__(self, bed: Bed):
        self.bed = bed
        homeserver = Homeserver(bed)
        call = homeserver.call
        with ThreadPoolExecutor(6) as pool:
            heavy = homeserver.register("heavy")
            self.heavy = list(pool.map(lambda n: homeserver.login(heavy, f"D{n}")["access_token"], range(TOKENS)))
            users = list(pool.map(homeserver.register, [f"user{n}" for n in range(OTHERS)]))
            self.tokens = list(pool.map(lambda user: homeserver.login(user, "PHONE")["access_token"], users))
            rooms = [call("POST", "/_matrix/client/v3/createRoom", {"preset": "public_chat"}, token=self.tokens[n])["room_id"]
                     for n in range(ROOMS)]

            def join(number):
                call("POST", f"/_matrix/client/v3/join/{quote(rooms[number % ROOMS])}", {}, token=self.tokens[number])

            list(pool.map(join, range(ROOMS, OTHERS)))
        self.rooms = rooms
        self.since = [""] * OTHERS

    def live(self, seconds: float) -> list[float]:
        """The others sync, and one after the other writes; how long the syncs took."""
        took, lock, started = [], threading.Lock(), time.monotonic()

        def person(number):
            client = Client(self.bed.base)
            headers = {"Authorization": f"Bearer {self.tokens[number]}"}
            step = 0
            # Not all at the same moment.
            while (due := started + PAUSE * (step + number / OTHERS)) < started + seconds:
                time.sleep(max(0, due - time.monotonic()))
                step += 1
                asked = time.monotonic()
                found = client.ask("GET", f"/_matrix/client/v3/sync?timeout=0{self.since[number]}", headers)
                with lock:
                    took.append(time.monotonic() - asked)
                if found.status != 200:
                    raise Refused(f"sync: {found.status} {found.text[:300]!r}")
                self.since[number] = "&since=" + found.json()["next_batch"]
                if step % 10 == number % 10:
                    room, what = quote(self.rooms[number % ROOMS]), f"{started}-{number}-{step}"
                    client.ask("PUT", f"/_matrix/client/v3/rooms/{room}/send/m.room.message/{what}", headers,
                               json.dumps({"msgtype": "m.text", "body": "tea"}).encode())
            client.close()

        with ThreadPoolExecutor(OTHERS) as pool:
            list(pool.map(person, range(OTHERS)))
        return took

    def now(self) -> str:
        """Where a sync of the heavy account would go on that waits for news."""
        return Homeserver(self.bed).call("GET", "/_matrix/client/v3/sync?timeout=0", token=self.heavy[0])["next_batch"]

    def unknown(self, account: dict) -> int:
        """How many requests of the account passed because no lookup could tell whose they are: no limit by user counts them.

        All that passed are compared: nginx and the account must have counted the same.
        """
        lines = [line for line in (self.bed.directory / "nginx/access.log").read_text().splitlines() if line.endswith(f'"{AGENT}"')]
        passed = [line for line in lines if " refused=- " in line or " refused=" not in line]
        if (len(lines), len(passed)) != (account["asked"], len(account["passed"])):
            raise BedError(f"nginx saw {len(lines)} requests and let {len(passed)} pass, the account says otherwise: "
                           f"{account['asked']}, {len(account['passed'])}")
        return sum(bool(UNKNOWN.search(line)) for line in passed)

    def run(self, kind: str) -> tuple[float, dict]:
        """The p99 of the others in milliseconds, and what became of the heavy account."""
        self.bed.start_nginx(LIMITS.get(kind, ""))
        # Every token is known, and every worker warm.
        self.live(2)
        account = None
        if kind == ALONE:
            self.live(BEFORE)
            took = self.live(SECONDS)
        elif kind in (ELSEWHERE, AGAIN):
            directory, port = self.bed.directory / "other", self.bed.base + 90
            other = OTHER.format(user=user_root(), directory=directory, port=port, temporary=temporary_paths(directory))
            with Nginx(directory, other, port=port):
                took, _ = self.beside(port, ["0"])
        else:
            took, account = self.beside(self.bed.base, ["30000", self.now()] if kind == BY_NUMBER else ["0"])
            # What it has asked of Synapse may go on.
            time.sleep(2)
            account["unknown"] = self.unknown(account)
        return 1000 * sorted(took)[int(len(took) * 0.99)], account

    def beside(self, port: int, how: list[str]) -> tuple[list[float], dict]:
        """How long the others' syncs take while the account's client asks an nginx, and what became of that."""
        command = [sys.executable, "-m", "e2e.heavy", str(port), str(BEFORE + SECONDS), *how]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as heavy:
            heavy.stdin.write("\n".join(self.heavy))
            heavy.stdin.close()
            self.live(BEFORE)
            return self.live(SECONDS), json.loads(heavy.stdout.read())


def off(kind: str, account: dict) -> float:
    """By how much the account is off its limit."""
    if kind == BY_NUMBER:
        return at_a_time(account["passed"]) / AT_A_TIME - 1
    sent = [sent for sent, _ in account["passed"]]
    return len(sent) / (1 + BURST + RATE * (max(sent) - min(sent))) - 1


def at_a_time(passed: list[tuple[float, float | None]]) -> float:
    """How many of the account's syncs waited at the same time, on average over the run but for its first seconds."""
    end = BEFORE + SECONDS
    held = (max(0, min(end, answered or end) - max(BEFORE, sent)) for sent, answered in passed)
    return sum(held) / SECONDS


def measure(town: Town) -> bool:
    found, most_off = {}, 0.0
    for number in range(ROUNDS):
        for kind in (ALONE, ELSEWHERE, BY_RATE, BY_NUMBER, AGAIN):
            most_off = max(most_off, show(town, number + 1, kind, found))
    show(town, ROUNDS, UNLIMITED, found)
    without = statistics.median(found[ELSEWHERE] + found[AGAIN])
    noise = max(abs(a - b) for a, b in zip(found[ELSEWHERE], found[AGAIN], strict=True))
    print(f"\nmedian p99 of the others alone {statistics.median(found[ALONE]):.1f} ms, with the account's client busy elsewhere "
          f"{without:.1f} ms; two such runs of a round differ by up to {noise:.1f} ms")
    fair = True
    for kind in (BY_RATE, BY_NUMBER):
        p99 = statistics.median(found[kind])
        fair &= abs(p99 - without) <= noise
        print(f"median p99 beside the account {kind} {p99:.1f} ms: {p99 - without:+.1f} ms")
    print(f"p99 beside the account without limits {found[UNLIMITED][0]:.1f} ms")
    print(f"the account was at most {most_off:.2%} off its limit")
    return fair and most_off <= 0.01


def show(town: Town, number: int, kind: str, found: dict) -> float:
    """One run, printed; how far the account was off its limit."""
    p99, account = town.run(kind)
    found.setdefault(kind, []).append(p99)
    line = f"  round {number}, {kind}: p99 {p99:.1f} ms"
    apart = 0.0
    if account:
        line += f"; asked {account['asked']}, answers {account['statuses']}, waiting {account['waiting']}"
        line += f", passed with a user unknown {account['unknown']}"
        if kind in LIMITS:
            apart = abs(off(kind, account))
            line += f", {off(kind, account):+.2%} off its limit, Retry-After {account['retry_after']}"
    print(line, flush=True)
    return apart


def main() -> int:
    base = int(os.environ.get("LIMITS_PORT", "18400"))
    directory = ROOT / "build/e2e/fairness"
    directory.mkdir(parents=True, exist_ok=True)
    processes = Processes(directory)
    database = Database(processes, base, directory / "postgresql")
    layout = Layout("fairness", "two workers", tuple(Worker(name, (CLIENT, FEDERATION)) for name in NAMES), NAMES)
    bed = Bed(layout, directory / "synapse", base + 100, database, "fairness")
    try:
        database.start()
        database.execute("CREATE DATABASE fairness", database="postgres")
        bed.start()
        return 0 if measure(Town(bed)) else 1
    except (BedError, Refused) as error:
        print(f"scripts/limits: {error}", file=sys.stderr)
        return 1
    finally:
        bed.stop()
        processes.stop()
        database.remove()


if __name__ == "__main__":
    sys.exit(main())

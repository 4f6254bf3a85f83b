"""scripts/spread: what is gained if requests other than syncs are spread by user or room, on a real Synapse.

  scripts/spread cost [ROUNDS]    rounds of cold workers (default 5), each spread in turns, by room and by user
  scripts/spread lag              reads of what the same user has just written, while one worker hears of it late

A main process and three generic workers, which are the client readers and the workers of rooms; nginx in front, rendered by the
companion with `[spread]`.

`cost`: for each way to spread, the workers are started anew. Then USERS users ask each kind of request REPEATS times each, in
an order that is the same for all. Printed for each kind: CPU of the workers and of PostgreSQL for a request, mean time, and
cache entries of the three workers at the end. What comes before the first round is not counted: PostgreSQL is cold then.

`lag`: one worker hears of others' writes LAG seconds late, as a busy one does. Users write and read what they wrote. Printed:
reads that did not see the own write, and reads that went back behind what an earlier read had seen.

SPREAD_PORT is the first of its 300 ports on 127.0.0.1 (default 19300). Logs: build/e2e/spread.
"""

import asyncio
import contextlib
import json
import os
import random
import re
import statistics
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from tests.bed.client import Client
from tests.bed.processes import ROOT, BedError, Processes, children

from .database import Database
from .homeserver import Homeserver, Refused
from .layouts import CLIENT, FEDERATION, Deployment, Layout, Worker
from .synapse import NO_LIMIT
from .world import BACKUP, SESSION

USERS, ROOMS, MESSAGES, REPEATS, THREADS = 24, 8, 20, 6, 6
# They change their names: for each change Synapse 1.163.2 writes to every room of the user, and fails (500) if the next one comes
# meanwhile.
LONERS = 8
LAG = 0.5
# What client_reader and room are spread by.
WAYS = {
    "turns": ("turns", "turns"),
    # By default.
    "room": ("turns", "room"),
    "user, room": ("user", "room"),
    "user": ("user", "user"),
}
# Reading account data goes to the writer of the stream otherwise; here a reader answers, or there would be nothing to spread.
DEPLOYMENT = """
[[override]]
path = "^/_matrix/client/v3/user/[^/]+/account_data/"
to = "client_reader"

[spread]
client_reader = "{}"
room = "{}"
"""
NAMES = ("generic1", "generic2", "generic3")


class Relay:
    """A way to Redis on which what Redis says comes late."""

    def __init__(self, port: int, redis_port: int):
        self.port, self.redis_port, self.lag = port, redis_port, 0.0
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(asyncio.start_server(self.serve, "127.0.0.1", port), self.loop).result(10)

    async def serve(self, reader, writer):
        back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self.redis_port)
        late: asyncio.Queue = asyncio.Queue()

        async def there():
            while data := await reader.read(65536):
                back_writer.write(data)
            back_writer.close()

        async def hear():
            while data := await back_reader.read(65536):
                late.put_nowait((time.monotonic() + self.lag, data))
            late.put_nowait((0, b""))

        async def back():
            while True:
                due, data = await late.get()
                await asyncio.sleep(max(0, due - time.monotonic()))
                if not data:
                    writer.close()
                    return
                writer.write(data)

        with contextlib.suppress(OSError):
            await asyncio.gather(there(), hear(), back())


class Bed(Deployment):
    """The processes, each with a listener for its figures."""

    def listeners(self, name: str) -> list[dict]:
        metrics = {"port": self.metrics_port(name), "type": "metrics", "bind_addresses": ["127.0.0.1"]}
        return [*super().listeners(name), metrics]

    def metrics_port(self, name: str) -> int:
        return self.base + 80 + list(self.all).index(name)

    def homeserver(self) -> dict:
        return {**super().homeserver(), "enable_metrics": True, "rc_joins_per_room": NO_LIMIT}

    def child(self, name: str):
        return next(child for child in self.processes.children if child.name == name)

    def restart_workers(self) -> None:
        self.processes.stop([self.child(name) for name in NAMES], timeout=20)
        for name in NAMES:
            self.start_process(name, "synapse.app.generic_worker", self.directory / f"workers/{name}.yaml")
        for name in NAMES:
            self.wait_for_process(name)

    def cpu(self) -> tuple[float, float]:
        """Milliseconds of the workers, and of PostgreSQL."""
        postgres = next(child for child in self.database.processes.children if child.name == "postgresql")
        return (sum(cpu_ms(self.child(name).process.pid) for name in NAMES),
                sum(cpu_ms(pid) for pid in children(postgres.process.pid)))

    def cache_entries(self) -> int:
        total = 0.0
        for name in NAMES:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port(name)}/_synapse/metrics", timeout=20) as page:
                text = page.read().decode()
            total += sum(float(n) for n in re.findall(r"^synapse_util_caches_cache_size\{[^}]*\} (\S+)", text, re.M))
        return int(total)


def cpu_ms(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


class People:
    """Users who share rooms, with what they ask about; and some who are in no room."""

    def __init__(self, bed: Bed):
        self.bed = bed
        homeserver = Homeserver(bed)
        call = homeserver.call
        with ThreadPoolExecutor(THREADS) as pool:
            self.users = list(pool.map(homeserver.register, [f"user{n}" for n in range(USERS + LONERS)]))
            self.tokens = list(pool.map(lambda user: homeserver.login(user, "PHONE")["access_token"], self.users))
            sync = "/_matrix/client/v3/sync?timeout=0"
            self.since = [call("GET", sync, token=token)["next_batch"] for token in self.tokens]
            self.rooms = [call("POST", "/_matrix/client/v3/createRoom", {"preset": "public_chat", "name": f"Room {n}"},
                               token=self.tokens[0])["room_id"] for n in range(ROOMS)]

            def inhabit(room):
                for token in self.tokens[1:USERS]:
                    call("POST", f"/_matrix/client/v3/join/{quote(room)}", {}, token=token)
                for n in range(MESSAGES):
                    call("PUT", f"/_matrix/client/v3/rooms/{quote(room)}/send/m.room.message/{n}",
                         {"msgtype": "m.text", "body": f"@room {self.users[n % USERS]} {n}"}, token=self.tokens[n % USERS])

            list(pool.map(inhabit, self.rooms))

            def furnish(number):
                token, user = self.tokens[number], self.users[number]
                version = call("POST", "/_matrix/client/v3/room_keys/version", BACKUP, token=token)["version"]
                sessions = {f"session{n}": SESSION for n in range(20)}
                keys = {"rooms": {room: {"sessions": sessions} for room in self.rooms}}
                call("PUT", f"/_matrix/client/v3/room_keys/keys?version={version}", keys, token=token)
                call("PUT", f"/_matrix/client/v3/user/{quote(user)}/account_data/org.example.tea", {"n": 0}, token=token)
                call("PUT", f"/_matrix/client/v3/profile/{quote(user)}/displayname", {"displayname": "0"}, token=token)
                return version

            self.versions = list(pool.map(furnish, range(USERS + LONERS)))
            self.later = [call("GET", sync, token=token)["next_batch"] for token in self.tokens]

    def ask(self, number: int, method: str, path: str, body=None):
        """One request through nginx; its answer and how long it took."""
        headers = {"Authorization": f"Bearer {self.tokens[number]}", "Content-Type": "application/json"}
        if not hasattr(LOCAL, "client") or LOCAL.client.port != self.bed.base:
            LOCAL.client = Client(self.bed.base)
        started = time.monotonic()
        answer = LOCAL.client.ask(method, path, headers, None if body is None else json.dumps(body).encode())
        took = time.monotonic() - started
        if answer.status != 200:
            raise Refused(f"{method} {path}: {answer.status} {answer.text[:300]!r}")
        return answer.json(), took

    def questions(self):
        """Kind of request → what a user asks, the nth time."""
        users, rooms = self.users, self.rooms

        def of_user(number, what):
            return f"/_matrix/client/v3/user/{quote(users[number])}/{what}"

        return {
            # First, since it alone pays for what any request needs: whose the token is.
            "whoami": lambda u, n: ("GET", "/_matrix/client/v3/account/whoami"),
            "keys/query": lambda u, n: ("POST", "/_matrix/client/v3/keys/query",
                                        {"device_keys": {user: [] for user in users[:20]}}),
            "keys/changes": lambda u, n: ("GET", f"/_matrix/client/v3/keys/changes?from={self.since[u]}&to={self.later[u]}"),
            "room_keys": lambda u, n: ("GET", f"/_matrix/client/v3/room_keys/keys?version={self.versions[u]}"),
            "notifications": lambda u, n: ("GET", "/_matrix/client/v3/notifications?limit=20"),
            "account_data": lambda u, n: ("GET", of_user(u, "account_data/org.example.tea")),
            "profile": lambda u, n: ("GET", f"/_matrix/client/v3/profile/{quote(users[(u + n) % USERS])}"),
            "messages": lambda u, n: ("GET", f"/_matrix/client/v3/rooms/{quote(rooms[n % ROOMS])}/messages?dir=b&limit=30"),
        }


LOCAL = threading.local()


def main() -> int:
    match sys.argv[1:]:
        case ["cost"]:
            rounds = 5
        case ["cost", word] if word.isdigit() and int(word):
            rounds = int(word)
        case ["lag"]:
            rounds = 0
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    base = int(os.environ.get("SPREAD_PORT", "19300"))
    directory = ROOT / "build/e2e/spread"
    directory.mkdir(parents=True, exist_ok=True)
    processes = Processes(directory)
    database = Database(processes, base, directory / "postgresql")
    redis = {"enabled": True, "host": "127.0.0.1", "port": base + 90}
    workers = (Worker(NAMES[0], (CLIENT, FEDERATION), (), {"redis": redis}),
               *(Worker(name, (CLIENT, FEDERATION)) for name in NAMES[1:]))
    bed = Bed(Layout("spread", "three client readers", workers, NAMES), directory / "synapse", base + 100, database, "spread")
    try:
        database.start()
        database.execute("CREATE DATABASE spread", database="postgres")
        relay = Relay(base + 90, bed.redis_port)
        bed.start()
        people = People(bed)
        if rounds:
            measure(bed, people, rounds)
        else:
            stale(bed, people, relay)
        return 0
    except (BedError, Refused) as error:
        print(f"scripts/spread: {error}", file=sys.stderr)
        return 1
    finally:
        bed.stop()
        processes.stop()
        database.remove()


def measure(bed: Bed, people: People, rounds: int) -> None:
    """Cost by kind of request and way to spread."""
    found = defaultdict(list)
    entries = defaultdict(list)
    one_round(bed, people, "turns")
    for number in range(rounds):
        ways = list(WAYS)
        # No way is always first.
        for way in ways[number % len(ways):] + ways[: number % len(ways)]:
            for kind, figures in one_round(bed, people, way).items():
                found[kind, way].append(figures)
            entries[way].append(bed.cache_entries())
            print(f"  round {number + 1}, {way}: {entries[way][-1]:,} cache entries", flush=True)
    print(f"\nFor each request, medians of {rounds} rounds: worker CPU ms (least, most), PostgreSQL CPU ms, time ms")
    for kind in people.questions():
        for way in WAYS:
            workers, database, times = zip(*found[kind, way], strict=True)
            print(f"  {kind:<14} {way:<10} {statistics.median(workers):6.2f} ({min(workers):.2f}, {max(workers):.2f})"
                  f" {statistics.median(database):6.2f} {statistics.median(times):7.2f}")
    for way in WAYS:
        print(f"  cache entries, {way}: {statistics.median(entries[way]):,.0f} ({min(entries[way]):,}, {max(entries[way]):,})")


def one_round(bed: Bed, people: People, way: str) -> dict:
    """Kind of request → what one costs with cold workers: CPU of workers and of PostgreSQL, and time, in milliseconds."""
    bed.restart_workers()
    bed.start_nginx(DEPLOYMENT.format(*WAYS[way]))
    costs = {}
    for kind, question in people.questions().items():
        asked = [(u, n) for u in range(USERS) for n in range(REPEATS)]
        random.Random(kind).shuffle(asked)
        before = bed.cpu()
        with ThreadPoolExecutor(THREADS) as pool:
            times = list(pool.map(lambda one, q=question: people.ask(one[0], *q(*one))[1], asked))
        spent = [(after - early) / len(asked) for early, after in zip(before, bed.cpu(), strict=True)]
        costs[kind] = (*spent, 1000 * statistics.mean(times))
    return costs


def stale(bed: Bed, people: People, relay: Relay) -> None:
    """Reads of what the same user has just written, while one worker hears late."""
    relay.lag = LAG
    for way in ("turns", "user"):
        bed.start_nginx(DEPLOYMENT.format(*WAYS[way]))
        counts = defaultdict(lambda: [0, 0, 0])

        def of(u, kind, write, read, counts=counts):
            """Writes 1 to 5 and reads each back four times at once; what stood there before is 0."""
            seen = 0
            for n in range(1, 6):
                write(u, n)
                for _ in range(4):
                    got = read(u)
                    count = counts[kind]
                    count[0] += 1
                    count[1] += got < n
                    count[2] += got < seen
                    seen = max(seen, got)
                time.sleep(2 * LAG)

        def person(u, of=of):
            if u >= USERS:
                path = f"/_matrix/client/v3/profile/{quote(people.users[u])}/displayname"
                of(u, "profile", lambda u, n: people.ask(u, "PUT", path, {"displayname": str(n)}),
                   lambda u: int(people.ask(u, "GET", path)[0].get("displayname") or 0))
                return
            data = f"/_matrix/client/v3/user/{quote(people.users[u])}/account_data/org.example.tea"
            # The writer of the stream takes it: the main process.
            direct = Homeserver(bed)
            of(u, "account_data", lambda u, n: direct.call("PUT", data, {"n": n}, token=people.tokens[u]),
               lambda u: people.ask(u, "GET", data)[0]["n"])
            keys = f"/_matrix/client/v3/room_keys/keys/{quote(people.rooms[0])}/session0?version={people.versions[u]}"
            of(u, "room_keys", lambda u, n: people.ask(u, "PUT", keys, {**SESSION, "first_message_index": -n}),
               lambda u: -people.ask(u, "GET", keys)[0]["first_message_index"])

        for u in range(USERS):
            Homeserver(bed).call("PUT", f"/_matrix/client/v3/user/{quote(people.users[u])}/account_data/org.example.tea", {"n": 0},
                                 token=people.tokens[u])
        for u in range(USERS, USERS + LONERS):
            people.ask(u, "PUT", f"/_matrix/client/v3/profile/{quote(people.users[u])}/displayname", {"displayname": "0"})
        time.sleep(2 * LAG)
        with ThreadPoolExecutor(USERS + LONERS) as pool:
            list(pool.map(person, range(USERS + LONERS)))
        for kind, (reads, behind, back) in counts.items():
            print(f"  one worker {LAG} s late, {kind}, {way}: {reads} reads, {behind} without the own write, {back} went back")
    relay.lag = 0


if __name__ == "__main__":
    sys.exit(main())

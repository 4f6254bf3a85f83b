"""What it costs to change the workers of a group: 3 to 4 and 4 to 3, at once and user by user (scripts/moves).

One Synapse with four workers, behind nginx with the module. Every device asks for news every few seconds, people write,
and in the middle of each run the ring changes: by a reload, or by a shift over a minute. All workers start anew before
each run and are warmed up by the users that they have, so that only who moves meets cold caches. The runs take turns.
"""

import argparse
import asyncio
import collections
import json
import os
import platform
import random
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from bench.plots import BLUE, GREY, plot
from tests.bed import nginx as bed
from tests.bed.processes import ROOT, Processes, children, listens

from .homeserver import Homeserver
from .synapse import NO_LIMIT, Synapse

RESULTS = ROOT / "e2e/results/moves.json"
DIRECTORY = ROOT / "build/e2e/moves"
SLOT = 10  # seconds of a row
CHANGES = ("3 to 4", "4 to 3")
WAYS = ("at once", "gradually")


class Bed(Synapse):
    """The end-to-end test's Synapse with a fourth worker, whose workers can start anew."""

    def __init__(self, directory: Path, base: int):
        super().__init__(directory, base)
        self.worker_ports = {f"sync{n}": base + 10 + n for n in range(1, 5)}
        self.workers = Processes(directory)

    def rate_limits(self) -> dict:
        return {**super().rate_limits(), "rc_joins_per_room": NO_LIMIT}

    def restart_workers(self) -> None:
        """Ends the workers and starts them, one after the other as two processors can."""
        ours = [child for child in self.processes.children if child.name in self.worker_ports]
        self.processes.stop(ours)
        for worker in self.worker_ports:
            self.start_process(worker, "synapse.app.generic_worker", self.directory / f"{worker}.yaml")
        self.processes.wait_until("Synapse's workers", lambda: all(map(listens, self.worker_ports.values())))

    def pids(self) -> dict[str, int]:
        """The processes whose time is taken."""
        return {child.name: child.process.pid for child in self.processes.children}


def configuration(nginx: bed.Nginx, synapse: Bed, target: str, rings: dict[str, int], shift: str) -> str:
    """nginx in front of rings of the first so many workers; requests go to `target`."""
    ports = list(synapse.worker_ports.values())
    upstreams = "\n".join(
        f"""    upstream {name} {{
        zone {name} 256k;
        hash $matrix_user_hash consistent;
        {" ".join(f"server 127.0.0.1:{port} max_fails=0;" for port in ports[:count])}
        keepalive 64;
    }}""" for name, count in rings.items())
    return f"""\
load_module {bed.module()};
{bed.user_root()}
worker_processes 2;
pid {nginx.directory}/nginx.pid;
error_log {nginx.error_log_path} notice;
events {{ worker_connections 2048; }}
http {{
    log_format moves '$msec $request_time $matrix_user_hash $upstream_addr $status';
    access_log {nginx.directory}/access.log moves;
    {bed.temporary_paths(nginx.directory)}
    matrix_user_hash_zone users:1m;
    {shift}
    upstream whoami {{ zone whoami 256k; server 127.0.0.1:{synapse.main_port} max_fails=0; keepalive 8; }}
{upstreams}
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Host $host;
    proxy_set_header X-Forwarded-For $remote_addr;
    server {{
        listen 127.0.0.1:{nginx.port} backlog=1024;
        location ~ ^/_matrix/client/v3/sync$ {{
            matrix_user_hash http://whoami zone=users;
            proxy_pass http://{target};
        }}
        location / {{ access_log off; proxy_pass http://whoami; }}
    }}
}}
"""


class Device:
    """A client: where it is in the stream, and how to ask for more."""

    def __init__(self, port: int, token: str):
        self.port, self.token, self.since = port, token, ""

    async def ask(self, method: str, target: str, body: bytes = b"") -> tuple[int, bytes]:
        """One request on a connection of its own; the status is 0 where there is no answer."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)
            try:
                writer.write(f"{method} {target} HTTP/1.0\r\nHost: example.org\r\nAuthorization: Bearer {self.token}\r\n"
                             f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
                answer = await asyncio.wait_for(reader.read(), 60)
            finally:
                writer.close()
            head, _, content = answer.partition(b"\r\n\r\n")
            return int(head.split()[1]), content
        except (OSError, TimeoutError, IndexError, ValueError):
            return 0, b""

    async def sync(self) -> int:
        """News since the last time, without waiting for any."""
        since = f"&since={self.since}" if self.since else ""
        status, content = await self.ask("GET", f"/_matrix/client/v3/sync?timeout=0&set_presence=offline{since}")
        if status == 200:
            self.since = json.loads(content)["next_batch"]
        return status


class Population:
    """Users with their devices and rooms."""

    def __init__(self, synapse: Bed, users: int, devices: int, rooms: int, port: int):
        self.homeserver = Homeserver(synapse)
        self.main = synapse.main_port
        self.users = [f"@user{n}:example.org" for n in range(users)]
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda user: self.homeserver.register(user[1:].partition(":")[0]), self.users))
            tokens = list(pool.map(
                lambda user: [self.homeserver.login(user, f"DEVICE{n}")["access_token"] for n in range(devices)],
                self.users))
            self.rooms = list(pool.map(lambda own: self.homeserver.call("POST", "/_matrix/client/v3/createRoom", {
                "preset": "public_chat", "name": "Tea"}, token=own[0])["room_id"], tokens))
            # Everybody is in their own room and in those of the next.
            joins = [(tokens[(at + step) % users][0], room) for at, room in enumerate(self.rooms) for step in range(1, rooms)]
            list(pool.map(lambda join: self.homeserver.call(
                "POST", f"/_matrix/client/v3/join/{quote(join[1])}", {}, token=join[0]), joins))
        self.devices = [Device(port, token) for own in tokens for token in own]
        self.writers = [(Device(self.main, own[0]), room) for own, room in zip(tokens, self.rooms, strict=True)]

    async def begin(self) -> None:
        """The first sync of every device, a few at a time."""
        places = asyncio.Semaphore(4)

        async def one(device):
            async with places:
                assert await device.sync() == 200

        await asyncio.gather(*map(one, self.devices))


class Watch:
    """Processor time of PostgreSQL and of the workers, every second."""

    def __init__(self, synapse: Bed):
        self.pids, self.rows = synapse.pids(), []

    def look(self) -> dict[str, float]:
        found = {}
        for name, pid in self.pids.items():
            if name == "postgresql":
                # Backends are its children; those that have ended are in its own account.
                found[name] = seconds(pid, ended=True) + sum(seconds(child, ended=True) for child in children(pid))
            elif name.startswith("sync"):
                found[name] = seconds(pid)
        return found

    async def go(self, begin: float, length: float) -> None:
        while time.time() < begin + length + 1:
            self.rows.append((time.time() - begin, await asyncio.to_thread(self.look)))
            await asyncio.sleep(1)

    def by_slot(self, length: int) -> list[dict[str, float]]:
        """Seconds of a processor in each slot."""
        def at(moment):
            return min(self.rows, key=lambda row: abs(row[0] - moment))[1]

        slots = []
        for start in range(0, length, SLOT):
            before, after = at(start), at(start + SLOT)
            used = {name: after[name] - before.get(name, 0) for name in after}
            slots.append({"postgresql": round(used.pop("postgresql"), 2), "workers": round(sum(used.values()), 2),
                          "busiest": round(max(used.values()), 2)})
        return slots


def seconds(pid: int, ended: bool = False) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(field) for field in fields[11:15 if ended else 13]) / os.sysconf("SC_CLK_TCK")


async def traffic(people: Population, begin: float, length: float, period: float, pause: float) -> list:
    """Asks until it is over; (moment of asking, seconds it took, status) of every sync from `begin` on."""
    asked = []
    rng = random.Random(13)

    async def device(one):
        await asyncio.sleep(rng.random() * period)
        while time.time() < begin + length:
            started = time.time()
            status = await one.sync()
            asked.append((started - begin, time.time() - started, status))
            await asyncio.sleep(max(0.0, started + period * (0.9 + 0.2 * rng.random()) - time.time()))

    async def write():
        number = 0
        while time.time() < begin + length:
            writer, room = rng.choice(people.writers)
            number += 1
            status, _ = await writer.ask("PUT", f"/_matrix/client/v3/rooms/{quote(room)}/send/m.room.message/{begin}.{number}",
                                         b'{"msgtype":"m.text","body":"tea"}')
            if status != 200:
                asked.append((time.time() - begin, 0.0, status))
            await asyncio.sleep(pause)

    await asyncio.gather(*map(device, people.devices), write())
    return [row for row in asked if row[0] >= 0 or row[2] != 200]


def place(user: int) -> int:
    """The order of moves as docs/directives.md has it: SplitMix64's finalizer."""
    mask = (1 << 64) - 1
    user = (user ^ user >> 30) * 0xbf58476d1ce4e5b9 & mask
    user = (user ^ user >> 27) * 0x94d049bb133111eb & mask
    return user ^ user >> 31


def judge_log(log: Path, change: str, way: str, moment: float, over: float, tolerance: float = 0.1) -> dict:
    """What the access log says of who was where and when."""
    by_user = collections.defaultdict(list)
    for line in log.read_text().splitlines():
        ended, took, user, worker, _ = line.split()
        by_user[user].append((float(ended) - float(took), worker))
    moved = twice = apart = 0
    for user, requests in by_user.items():
        requests.sort()
        first, last = requests[0][1], requests[-1][1]
        changes = sum(a[1] != b[1] for a, b in zip(requests, requests[1:], strict=False))
        moved += first != last
        twice += changes > 1
        at = moment + (place(int(user, 16)) * int(over * 1000) >> 64) / 1000 if way == "gradually" else moment
        # A reload takes effect while it happens: until the last old process takes no more requests.
        until = at + tolerance if way == "gradually" else at + over
        apart += sum(worker != (first if asked < at else last)
                     for asked, worker in requests if asked < at - tolerance or asked > until)
    return {"users": len(by_user), "moved": moved, "moved_twice": twice, "requests_elsewhere": apart}


def one_run(synapse: Bed, people: Population, change: str, way: str, options) -> dict:
    synapse.restart_workers()
    directory = DIRECTORY / "nginx"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "access.log").unlink(missing_ok=True)
    nginx = bed.Nginx(directory, "", port=synapse.base, workers=2)
    before, after = (int(count) for count in change.split(" to "))
    # The shift is there from the start and begins in time: no reload is near it.
    begin = time.time() + options.warm
    moment = begin + options.before
    length = options.before + options.over + options.after
    start = datetime.fromtimestamp(int(moment), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    begin -= moment - int(moment)
    moment = float(int(moment))
    plain = configuration(nginx, synapse, "ring", {"ring": before}, "")
    shifted = configuration(nginx, synapse, "$ring", {"old": before, "new": after},
                            f"matrix_user_hash_shift $ring old new start={start} over={options.over}s;")
    changed = configuration(nginx, synapse, "ring", {"ring": after}, "")
    nginx.configure(plain if way == "at once" else shifted)
    nginx.text = None
    nginx.test()
    took = []

    async def change_at_once():
        if way == "gradually":
            return
        await asyncio.sleep(moment - time.time())
        started = time.time()
        await asyncio.to_thread(nginx.reload, changed)
        took.append(time.time() - started)

    async def everything():
        watch = Watch(synapse)
        asked, _, _ = await asyncio.gather(traffic(people, begin, length, options.period, options.pause),
                                           watch.go(begin, length), change_at_once())
        return asked, watch.by_slot(length)

    with nginx:
        asked, used = asyncio.run(everything())
    slots = []
    for number, processors in enumerate(used):
        times = sorted(row[1] for row in asked if number * SLOT <= row[0] < (number + 1) * SLOT and row[2] == 200)
        slots.append({"from": number * SLOT - options.before, "syncs": len(times),
                      "slowest_ms": round(times[-1] * 1000), "p95_ms": round(times[int(len(times) * 0.95)] * 1000),
                      "median_ms": round(statistics.median(times) * 1000), **processors})
    seen = judge_log(directory / "access.log", change, way, moment, options.over if way == "gradually" else took[0])
    return {"change": change, "way": way, "failed": sum(row[2] != 200 for row in asked), **seen, "slots": slots}


def summary(rounds: list[dict], options) -> dict:
    """Of each kind of run and slot: the median over the rounds, and the worst of the slowest."""
    table = {}
    for change in CHANGES:
        for way in WAYS:
            runs = [run for run in rounds if (run["change"], run["way"]) == (change, way)]
            rows = []
            for same in zip(*(run["slots"] for run in runs), strict=True):
                row = {"from": same[0]["from"], "worst_ms": max(slot["slowest_ms"] for slot in same)}
                for figure in ("slowest_ms", "p95_ms", "median_ms", "postgresql", "workers", "busiest"):
                    row[figure] = round(statistics.median(slot[figure] for slot in same), 2)
                rows.append(row)
            table[f"{change} {way}"] = {
                "runs": len(runs), "moved": [run["moved"] for run in runs],
                "failed": sum(run["failed"] for run in runs), "moved_twice": sum(run["moved_twice"] for run in runs),
                "requests_elsewhere": sum(run["requests_elsewhere"] for run in runs), "slots": rows}
    return table


def draw() -> None:
    """Plots of the summary, beside docs/performance.md."""
    table = json.loads(RESULTS.read_text())["summary"]
    for figure, name, title in (("slowest_ms", "slowest", "slowest sync in each 10 s, ms"),
                                ("p95_ms", "p95", "95 of 100 syncs in each 10 s were faster than this, ms"),
                                ("workers", "workers-cpu", "processor time of all sync workers in each 10 s, s")):
        for change in CHANGES:
            once, slowly = (table[f"{change} {way}"]["slots"] for way in WAYS)
            data = "\n".join(f"{a['from'] + SLOT / 2} {a[figure]} {b[figure]}" for a, b in zip(once, slowly, strict=True))
            plot(f"moves-{change.replace(' ', '-')}-{name}", f"{change} workers: {title}", f"""\
set key outside bottom center horizontal
set format y "%g"
set xlabel "seconds after the change, or after the start of the shift over a minute" textcolor rgb "#333333"
$data << EOD
{data}
EOD
plot $data using 1:2 with linespoints lw 2 pt 7 ps 0.6 lc rgb "{GREY}" title "at once", \\
     $data using 1:3 with linespoints lw 2 pt 7 ps 0.6 lc rgb "{BLUE}" title "gradually"
""")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/moves", description=__doc__)
    for name, default, what in (
            ("users", 60, "users"), ("devices", 3, "devices of each"), ("rooms", 30, "rooms of each"),
            ("rounds", 3, "rounds of all four kinds of run"), ("period", 4, "seconds between two syncs of a device"),
            ("pause", 1, "seconds between two messages"), ("warm", 25, "seconds before it counts"),
            ("before", 20, "seconds before the change"), ("over", 60, "seconds that the shift takes"),
            ("after", 20, "seconds after it")):
        parser.add_argument(f"--{name}", type=int, default=default, help=what)
    parser.add_argument("--plots", action="store_true", help="only draw the plots anew, from the results")
    options = parser.parse_args()
    if options.plots:
        draw()
        return 0
    synapse = Bed(DIRECTORY, int(os.environ.get("MOVES_PORT", "18400")))
    rounds = []
    try:
        synapse.start()
        started = time.monotonic()
        people = Population(synapse, options.users, options.devices, options.rooms, synapse.base)
        for device in people.devices:
            device.port = synapse.main_port
        asyncio.run(people.begin())
        for device in people.devices:
            device.port = synapse.base
        print(f"{options.users} users made in {time.monotonic() - started:.0f} s", flush=True)
        for number in range(options.rounds):
            kinds = [(change, way) for change in CHANGES for way in (WAYS if number % 2 else WAYS[::-1])]
            for change, way in kinds:
                run = one_run(synapse, people, change, way, options)
                rounds.append(run)
                print(f"round {number + 1}: {change} {way}: moved {run['moved']} of {run['users']}, failed {run['failed']}, "
                      f"twice {run['moved_twice']}, elsewhere {run['requests_elsewhere']}; slowest by slot "
                      f"{[slot['slowest_ms'] for slot in run['slots']]} ms", flush=True)
    finally:
        synapse.stop()
    RESULTS.parent.mkdir(exist_ok=True)
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"), "nginx": bed.version(), "machine": platform.processor() or platform.machine(),
        "processors": os.cpu_count(), "load_average": [round(load, 2) for load in os.getloadavg()],
        "options": {name: value for name, value in vars(options).items() if name != "plots"},
        "summary": summary(rounds, options), "rounds": rounds}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    wrong = [run for run in rounds if run["failed"] or run["moved_twice"] or run["requests_elsewhere"] or not run["moved"]]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""A stand-in homeserver, in a process of its own: it answers whoami well, badly, late or not at all, and says what it was asked.

In:  `python3 -m tests.bed.standin PORT[,PORT…] [--socket PATH] [--control PORT]`. Every port is the same homeserver.
Out: whoami as Synapse 1.163.2 gives it (in chunks, HTTP/1.1, kept alive) to whom a token names (people.py), unless a request's
     path or an order names another kind of answer (answers.py): `/KIND/…`. The kind `as-token` takes the kind from the token's
     own name. `/echo…` stands for a sync worker: it answers with method, length and SHA-256 of the body; `/ws` echoes
     after a 101.
     When it is ready, it writes "ready".
Control, by GET on any of the ports, of which that of --control always listens:
     /__set?…       what it does from now on: `kind=K`; `delay=SECONDS` before each answer; `rate=N` answers a second at most,
                    first come first served, 0 for no limit; `listen=0`: connections are refused, and those that are open closed
     /__forget      forgets what it has seen; /__reset: the behaviour is the first one again, too
     /__stats       numbers since then: `requests`, distinct `tokens`, `current` in progress, `most` at once, `most_of_one` token
                    at once, `accepted` connections
     /__seen        these, and `asked` (how often, by token), `times` (of each request, monotonic clock, with `now`), `ports` of
                    the connections of those in progress
     /__log         the last 20,000 requests as they were
     /__sleep?seconds=N   answers after that time
"""

import argparse
import asyncio
import collections
import hashlib
import json
import resource
import signal
import time
from urllib.parse import parse_qsl, unquote

from . import answers, people

FIRST = {"kind": "ok", "delay": 0.0, "rate": 0.0, "listen": True}
LONGEST_HEAD = 1 << 16


class Homeserver:
    """What it does, and what it has seen."""

    def __init__(self, ports, path):
        self.ports, self.path = ports, path
        self.servers = []
        self.connections = set()
        self.numbers = 0
        self.next_answer = 0.0
        self.current = 0
        self.current_of = collections.Counter()
        self.behaviour = dict(FIRST)
        self.forget()

    def forget(self):
        self.log = collections.deque(maxlen=20_000)
        self.requests = self.accepted = 0
        self.asked = collections.Counter()
        self.most = self.current
        self.most_of_one = max(self.current_of.values(), default=0)

    def stats(self):
        return {"requests": self.requests, "tokens": len(self.asked), "current": self.current, "most": self.most,
                "most_of_one": self.most_of_one, "accepted": self.accepted, **self.behaviour}

    def seen(self):
        return {**self.stats(), "asked": self.asked.most_common(5000), "times": [entry[3] for entry in self.log],
                "ports": [c.peer for c in self.connections if c.bearer is not None], "now": time.monotonic()}

    def begin(self, connection, bearer, raw, target):
        """Writes a request down."""
        self.requests += 1
        self.asked[bearer] += 1
        self.log.append((raw, target, bearer, time.monotonic(), connection.number, connection.peer_address, connection.port))
        self.current += 1
        self.most = max(self.most, self.current)
        self.current_of[bearer] += 1
        self.most_of_one = max(self.most_of_one, self.current_of[bearer])

    def end(self, bearer):
        self.current -= 1
        self.current_of[bearer] -= 1
        if not self.current_of[bearer]:
            del self.current_of[bearer]

    def due(self):
        """In how many seconds the next answer may go out."""
        now = asyncio.get_running_loop().time()
        at = now + self.behaviour["delay"]
        if self.behaviour["rate"]:
            self.next_answer = max(self.next_answer, now) + 1 / self.behaviour["rate"]
            at = max(at, self.next_answer)
        return at - now

    def set(self, query):
        """Takes an order; says what is wrong with it."""
        kind = query.get("kind", self.behaviour["kind"]) or "ok"
        if set(query) - set(FIRST) or not (kind == "as-token" or answers.known(kind)):
            return f"no such behaviour: {query}"
        self.behaviour["kind"] = kind
        for name in ("delay", "rate"):
            self.behaviour[name] = float(query.get(name) or self.behaviour[name])
        self.behaviour["listen"] = query.get("listen", str(int(self.behaviour["listen"]))) != "0"
        return None

    async def listen(self):
        """Opens its ports, or closes them and their connections, as its behaviour says."""
        loop = asyncio.get_running_loop()
        if self.behaviour["listen"] and not self.servers:
            for port in self.ports:
                self.servers.append(await loop.create_server(lambda: Connection(self), "127.0.0.1", port, backlog=1024))
            if self.path:
                self.servers.append(await loop.create_unix_server(lambda: Connection(self), self.path, backlog=1024))
        elif not self.behaviour["listen"]:
            while self.servers:
                self.servers.pop().close()
            for connection in list(self.connections):
                connection.transport.abort()

    def record(self, entry):
        """A request for `/__log`."""
        raw, target, bearer, moment, number, address, port = entry
        _, path, query = split(target)
        return {"raw": raw.decode("latin-1"), "target": path, "token": bearer, "query": query, "time": moment,
                "conn": number, "from": address, "port": port}


def split(target):
    """A request's target: as it is before the question mark, unescaped, and the first value of each argument."""
    path, _, arguments = target.partition("?")
    query = {}
    if arguments:
        for name, value in parse_qsl(arguments, keep_blank_values=True):
            query.setdefault(name, value)
    return path, unquote(path) if "%" in path else path, query


class Connection(asyncio.Protocol):
    """One connection, with one request at a time. What comes meanwhile waits."""

    def __init__(self, homeserver, for_control=False):
        self.homeserver, self.for_control = homeserver, for_control
        self.buffer = bytearray()
        self.busy = False
        # The token of the whoami request in progress.
        self.bearer = None
        # The head of a request whose body has not come yet.
        self.head = None
        self.expected = False
        self.echoes = False
        self.timer = None

    def connection_made(self, transport):
        self.transport = transport
        peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self.peer_address, self.peer = peer if isinstance(peer, tuple) else ("unix", 0)
        self.port = own[1] if isinstance(own, tuple) else "unix"
        if self.for_control:
            return
        self.homeserver.connections.add(self)
        self.homeserver.accepted += 1
        self.homeserver.numbers += 1
        self.number = self.homeserver.numbers

    def connection_lost(self, _):
        self.homeserver.connections.discard(self)
        if self.timer:
            self.timer.cancel()
        self.over()

    def data_received(self, data):
        if self.echoes:
            self.transport.write(data)
            return
        self.buffer += data
        self.go_on()

    def go_on(self):
        """Answers what has come."""
        while not self.busy and not self.transport.is_closing():
            if self.head is None:
                end = self.buffer.find(b"\r\n\r\n")
                if end < 0:
                    if len(self.buffer) > LONGEST_HEAD:
                        self.transport.close()
                    return
                self.head = bytes(self.buffer[:end + 4])
                del self.buffer[:end + 4]
                self.expected = False
            if not self.answer():
                return
            self.head = None

    def answer(self):
        """Begins the answer to `self.head`. False if its body has to come first."""
        raw = self.head
        first, _, rest = raw.partition(b"\r\n")
        words = first.decode("latin-1").split(" ")
        if len(words) != 3:
            self.transport.close()
            return True
        method, target, _ = words
        if target.startswith("/__"):
            self.control(target)
        elif target.startswith(("/echo", "/ws")):
            return self.as_worker(method, target, fields_of(rest))
        else:
            self.whoami(raw, target)
        return True

    def whoami(self, raw, target):
        bearer = raw.partition(b"uthorization: Bearer ")[2].partition(b"\r\n")[0].decode("latin-1")
        _, path, query = split(target)
        kind = ("" if path.startswith("/_matrix") else path.split("/")[1]) or self.homeserver.behaviour["kind"]
        if kind == "as-token":
            kind = people.name_in(bearer) or ""
            kind = kind if kind.split("-")[0] in ("status", "close", "hang", "http10") else "ok"
        self.busy, self.bearer = True, bearer
        self.homeserver.begin(self, bearer, raw, target)
        wait = self.homeserver.due()
        plan = iter(answers.steps(kind, *people.whoami(bearer, query)))
        if wait > 0:
            self.timer = asyncio.get_running_loop().call_later(wait, self.carry_out, plan)
        else:
            self.carry_out(plan)

    def carry_out(self, plan):
        """The steps of an answer, from where it stands."""
        if self.transport.is_closing():
            return
        for step in plan:
            if step is answers.CLOSE:
                self.over()
                self.transport.close()
                return
            if step is answers.HANG:
                return
            if isinstance(step, float):
                self.timer = asyncio.get_running_loop().call_later(step, self.carry_out, plan)
                return
            self.transport.write(step)
        self.over()
        # Not at once: who calls may be going on already.
        if self.buffer:
            asyncio.get_running_loop().call_soon(self.go_on)

    def over(self):
        self.busy = False
        if self.bearer is not None:
            self.homeserver.end(self.bearer)
            self.bearer = None

    def as_worker(self, method, target, fields):
        """One request to the stand-in sync worker. False if its body has not come yet."""
        if target.startswith("/ws"):
            self.transport.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
            self.transport.write(bytes(self.buffer))
            self.buffer.clear()
            self.echoes = self.busy = True
            return True
        if fields.get("expect", "").lower() == "100-continue" and not self.expected:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.expected = True
        body = body_of(self.buffer, fields)
        if body is None:
            return False
        told = {"method": method, "length": len(body), "sha256": hashlib.sha256(body).hexdigest(), "headers": fields}
        self.transport.write(answers.plain(200, b"" if method == "HEAD" else json.dumps(told).encode()))
        return True

    def control(self, target):
        """One order."""
        homeserver = self.homeserver
        if self in homeserver.connections:
            # The test's own connection is none of the module's.
            homeserver.connections.discard(self)
            homeserver.accepted -= 1
        _, path, query = split(target)
        wrong = None
        if path == "/__sleep":
            self.busy = True
            told = answers.plain(200, b"{}")
            self.timer = asyncio.get_running_loop().call_later(float(query["seconds"]), self.carry_out, iter([told]))
            return
        if path == "/__reset":
            homeserver.behaviour = dict(FIRST)
        if path in ("/__reset", "/__forget"):
            homeserver.forget()
        if path == "/__set":
            wrong = homeserver.set(query)
        if path in ("/__reset", "/__set"):
            self.busy = True
            asyncio.get_running_loop().create_task(self.obey(wrong))
            return
        if path == "/__log":
            told = [homeserver.record(entry) for entry in homeserver.log]
        else:
            told = homeserver.seen() if path == "/__seen" else homeserver.stats()
        self.transport.write(answers.plain(200, json.dumps(told).encode()))

    async def obey(self, wrong):
        """Changes its ports if it has to, then answers."""
        await self.homeserver.listen()
        told = json.dumps({"error": wrong} if wrong else self.homeserver.stats()).encode()
        self.carry_out(iter([answers.plain(400 if wrong else 200, told)]))


def fields_of(lines):
    """A request's header, with its names in small letters."""
    fields = {}
    for line in lines.decode("latin-1").split("\r\n"):
        name, colon, value = line.partition(":")
        if colon:
            fields[name.strip().lower()] = value.strip()
    return fields


def body_of(buffer, fields):
    """Takes the request's body from the buffer, whatever frames it; None if it has not all come."""
    if "chunked" not in fields.get("transfer-encoding", "").lower():
        length = int(fields.get("content-length", 0))
        if len(buffer) < length:
            return None
        body = bytes(buffer[:length])
        del buffer[:length]
        return body
    # Copied only when all of it is there.
    parts, at = [], 0
    while True:
        end = buffer.find(b"\r\n", at)
        if end < 0:
            return None
        size = int(bytes(buffer[at:end]).split(b";")[0], 16)
        at = end + 2 + size + 2
        if len(buffer) < at:
            return None
        if size == 0:
            body = b"".join(bytes(buffer[begin:end]) for begin, end in parts)
            del buffer[:at]
            return body
        parts.append((end + 2, at - 2))


async def serve(ports, path, control):
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    homeserver = Homeserver(ports, path)
    await homeserver.listen()
    if control:
        await asyncio.get_running_loop().create_server(lambda: Connection(homeserver, True), "127.0.0.1", control)
    print("ready", flush=True)
    await stop.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="standin")
    parser.add_argument("ports", type=lambda text: [int(port) for port in text.split(",")])
    parser.add_argument("--socket")
    parser.add_argument("--control", type=int)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    asyncio.run(serve(arguments.ports, arguments.socket, arguments.control))

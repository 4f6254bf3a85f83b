"""A stand-in for a homeserver's whoami that can be told how to behave, in a process of its own.

In: requests for whoami on one port; on another, one JSON object a line, each answered by one. `{"set": {...}}` changes
the behaviour:

    kind    ok, status (500), hang, drip, close, redirect, html, gzip, big, garbage
    delay   seconds before an answer
    rate    answers a second at most, first come first served; 0 is no limit
    listen  false: connections are refused, and those that are open are closed

`{"get": true}` gives what it saw since `{"reset": true}`: requests, their number by token, the most in progress at once,
the most with one token, connections, when each request came (seconds, monotonic clock), the connections' ports of those in progress.
"""

import asyncio
import gzip
import json
import resource
import sys
import time
from collections import Counter

from .people import owner, user_id

JSON = "Content-Type: application/json\r\n"


class Homeserver:
    def __init__(self, port):
        self.port = port
        self.server = None
        self.connections = set()
        self.behaviour = {"kind": "ok", "delay": 0.0, "rate": 0, "listen": True}
        self.next_answer = 0.0
        self.current = 0
        self.current_of = Counter()
        self.reset()

    def reset(self):
        self.asked = Counter()
        self.times = []
        self.most = self.current
        self.most_of_one = max(self.current_of.values(), default=0)
        self.accepted = 0

    def seen(self):
        return {
            "requests": sum(self.asked.values()), "tokens": len(self.asked), "asked": self.asked.most_common(5000),
            "most": self.most, "most_of_one": self.most_of_one, "current": self.current, "accepted": self.accepted, "times": self.times[-20000:],
            "ports": [conn.peer for conn in self.connections if conn.busy is not None], "now": time.monotonic(),
        }

    async def listen(self, on):
        if on and self.server is None:
            loop = asyncio.get_running_loop()
            self.server = await loop.create_server(lambda: Connection(self), "127.0.0.1", self.port, backlog=1024)
        elif not on and self.server is not None:
            self.server.close()
            self.server = None
            for connection in list(self.connections):
                connection.transport.abort()

    def due(self):
        """When the next answer may go out."""
        now = asyncio.get_running_loop().time()
        at = now + self.behaviour["delay"]
        if self.behaviour["rate"]:
            self.next_answer = max(self.next_answer, now) + 1 / self.behaviour["rate"]
            at = max(at, self.next_answer)
        return at - now


class Connection(asyncio.Protocol):
    def __init__(self, homeserver):
        self.homeserver = homeserver
        self.buffer = b""
        # The token of the request in progress.
        self.busy = None

    def connection_made(self, transport):
        self.transport = transport
        self.peer = transport.get_extra_info("peername")[1]
        self.homeserver.connections.add(self)
        self.homeserver.accepted += 1

    def connection_lost(self, _):
        self.homeserver.connections.discard(self)
        self.over()

    def data_received(self, data):
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        self.buffer = rest
        bearer = head.partition(b"uthorization: Bearer ")[2].partition(b"\r\n")[0].decode("latin-1")
        target = head.split(b" ", 2)[1].decode("latin-1")
        server = self.homeserver
        server.asked[bearer] += 1
        server.times.append(time.monotonic())
        server.current += 1
        server.most = max(server.most, server.current)
        server.current_of[bearer] += 1
        server.most_of_one = max(server.most_of_one, server.current_of[bearer])
        self.busy = bearer
        wait = server.due()
        if wait > 0:
            asyncio.get_running_loop().call_later(wait, self.answer, bearer, target)
        else:
            self.answer(bearer, target)

    def over(self):
        if self.busy is not None:
            self.homeserver.current -= 1
            self.homeserver.current_of[self.busy] -= 1
            if not self.homeserver.current_of[self.busy]:
                del self.homeserver.current_of[self.busy]
            self.busy = None

    def answer(self, bearer, target):
        if self.busy is None:
            return
        kind = self.homeserver.behaviour["kind"]
        if kind == "hang":
            return
        if kind == "drip":
            self.drip(ok(bearer, target))
            return
        if kind in ("close", "garbage"):
            self.over()
            if kind == "garbage":
                self.transport.write(b"\x16\x03\x01\x02\x00\x01\x00 SSH-2.0-OpenSSH_9.2p1\r\n\x00\xff" * 8)
            self.transport.close()
            return
        self.over()
        self.transport.write(ANSWERS[kind](bearer, target))

    def drip(self, answer):
        if self.transport.is_closing() or not answer:
            return
        self.transport.write(answer[:1])
        asyncio.get_running_loop().call_later(1, self.drip, answer[1:])


def response(status, body, head=JSON):
    return f"HTTP/1.1 {status}\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def ok(bearer, target):
    name = owner(bearer)
    if name is None:
        body = {"errcode": "M_UNKNOWN_TOKEN", "error": "Invalid access token passed.", "soft_logout": False}
        return response("401 Unauthorized", json.dumps(body).encode())
    who = {"user_id": user_id(name), "is_guest": False}
    named = target.partition("user_id=")[2].partition("&")[0].replace("%40", "@").replace("%3A", ":")
    if name.startswith("bridge"):
        # An application service: its own users are those whom it has made.
        if named and not named.startswith("@ghost"):
            return response("403 Forbidden", b'{"errcode":"M_FORBIDDEN","error":"Application service has not registered it"}')
        who["user_id"] = named or who["user_id"]
    elif not name.startswith("puppet"):
        who["device_id"] = "QJTGFCNZFH"
    body = json.dumps(who).encode()
    # Synapse answers in chunks, always.
    return (b"HTTP/1.1 200 OK\r\nServer: Synapse/1.163.2\r\nTransfer-Encoding: chunked\r\n" + JSON.encode()
            + f"\r\n{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n")


ANSWERS = {
    "ok": ok,
    "status": lambda *_: response("500 Internal Server Error", b'{"errcode":"M_UNKNOWN","error":"Internal server error"}'),
    "redirect": lambda *_: response("302 Found", b"", "Location: https://login.example.org/\r\n"),
    "html": lambda *_: response("200 OK", b"<!DOCTYPE html><title>Welcome to nginx!</title>", "Content-Type: text/html\r\n"),
    "gzip": lambda *_: response("200 OK", gzip.compress(b'{"user_id":"@alice:example.org","device_id":"A"}'),
                                JSON + "Content-Encoding: gzip\r\n"),
    "big": lambda *_: response("200 OK", b'{"user_id":"@alice:example.org","device_id":"A","pad":"' + b"x" * (1 << 20) + b'"}'),
}


async def control(homeserver, reader, writer):
    while line := await reader.readline():
        order = json.loads(line)
        if "set" in order:
            homeserver.behaviour |= order["set"]
            await homeserver.listen(homeserver.behaviour["listen"])
        if "reset" in order:
            homeserver.reset()
        writer.write(json.dumps(homeserver.seen() if "get" in order else {}).encode() + b"\n")


async def serve(port, control_port):
    homeserver = Homeserver(port)
    await homeserver.listen(True)
    orders = await asyncio.start_server(lambda r, w: control(homeserver, r, w), "127.0.0.1", control_port)
    print("ready", flush=True)
    # Whoever started it holds its standard input; when that ends, so does this.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    orders.close()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))

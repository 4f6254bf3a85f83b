#!/usr/bin/env python3
"""A stand-in homeserver for the tests: it answers whoami well, badly, late or not at all, and writes down what it was asked.

In:  `whoami.py PORT[,PORT…] [UNIX-SOCKET]`. One process, one event loop; every port is the same homeserver.
Out: whoami as Synapse 1.163.2 gives it (chunked, HTTP/1.1, kept alive), unless the request's path names another kind of
     answer: `/kind/…`, a key of KINDS. The kind `as-token` takes the kind from the token's own localpart.
     `/echo…` stands for a sync worker: it answers with method, length and SHA-256 of the body; `/ws` echoes after a 101.
Control, by GET on the same ports: `/__log` (JSON list of whoami requests), `/__stats`, `/__reset`, `/__sleep?seconds=N`,
     `/__set?kind=K&delay=SECONDS` (what whoami does from now on; `kind=` and `delay=0` put it back).

It knows its users from their tokens, so that a test can invent any number: `syt_<base64 localpart>_<20>_<6>` is
@localpart:example.org. A few localparts are special; see `whoami()`.
"""
import asyncio
import base64
import gzip
import hashlib
import json
import re
import signal
import sys
import time
from urllib.parse import parse_qsl, unquote

SERVER = "example.org"
# MAS tokens say nothing about their owner.
OPAQUE = {
    "mat_x5ZLr2cVtaP0nNqWfE3yKdJ7uGhB1s_aQ4mT2": "@alice:example.org",
    "mat_Hq8RkY6mLw2ZbTn4PvXc9sDfJ3gA0e_Wc7uE1": "@bob:example.org",
}
BRIDGE = "as_telegram_3f9c1be07d5a4c21"


class State:
    """What the control paths change and report."""

    def __init__(self):
        self.reset()
        self.inflight = 0

    def reset(self):
        self.log = []
        self.kind = ""
        self.delay = 0.0
        self.max_inflight = 0
        self.connections = 0
        self.answered = 0


S = State()


def localpart(token):
    """The localpart inside a native token, or None."""
    m = re.fullmatch(r"syt_([A-Za-z0-9+/-]+)_\w{1,20}_\w{1,6}", token)
    if not m:
        return None
    raw = m.group(1)
    try:
        return base64.b64decode(raw + "=" * (-len(raw) % 4)).decode()
    except ValueError:
        return None


def error(status, code, text, **more):
    return status, {"errcode": code, "error": text, **more}


def bridge(query):
    """An application service: its sender alone, or whom `user_id` names inside its namespace."""
    user = query.get("user_id")
    if user is None:
        return 200, {"user_id": f"@telegrambot:{SERVER}", "is_guest": False}
    if not re.fullmatch(r"@telegram_[0-9a-z=/.+-]+:" + re.escape(SERVER), user):
        return error(403, "M_FORBIDDEN", "Application service cannot masquerade as this user")
    answer = {"user_id": user, "is_guest": False}
    device = query.get("device_id") or query.get("org.matrix.msc3202.device_id")
    if device == "MISSING":
        return error(400, "M_UNKNOWN_DEVICE", "Application service trying to use a device that doesn't exist")
    if device:
        answer["device_id"] = device
    return 200, answer


def whoami(token, query):
    """Status and JSON as Synapse sends them."""
    if token == BRIDGE:
        return bridge(query)
    if token in OPAQUE:
        return 200, {"user_id": OPAQUE[token], "is_guest": False, "device_id": "mXw0kQ7bYc"}
    who = localpart(token)
    if who is None or who == "revoked":
        return error(401, "M_UNKNOWN_TOKEN", "Invalid access token passed.", soft_logout=False)
    if who == "expired":
        return error(401, "M_UNKNOWN_TOKEN", "Access token has expired", soft_logout=True)
    if who == "locked":
        return error(401, "M_USER_LOCKED", "User account has been locked", soft_logout=True)
    if who == "missing":
        return error(401, "M_MISSING_TOKEN", "Missing access token")
    if who.startswith("puppet"):
        return 200, {"user_id": f"@{who}:{SERVER}", "is_guest": False}
    return 200, {"user_id": f"@{who}:{SERVER}", "is_guest": False, "device_id": "ABKJDTRWQS"}


def head(status, *lines):
    reason = {200: "OK", 302: "Found", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden",
              404: "Not Found", 500: "Internal Server Error", 503: "Service Unavailable"}.get(status, "Whatever")
    return ("\r\n".join((f"HTTP/1.1 {status} {reason}", "Server: Synapse/1.163.2",
                         "Content-Type: application/json") + lines) + "\r\n\r\n").encode()


def chunked(body, pieces=1):
    """The body as chunks, an odd one with an extension, and a trailer when there are many."""
    size = max(1, -(-len(body) // pieces))
    out = b""
    for i in range(0, len(body), size):
        part = body[i:i + size]
        out += b"%x%s\r\n%s\r\n" % (len(part), b";name=value" if pieces > 1 and i else b"", part)
    return out + (b"0\r\nX-Checksum: none\r\n\r\n" if pieces > 1 else b"0\r\n\r\n")


def plain(status, body, *lines):
    return head(status, f"Content-Length: {len(body)}", *lines) + body


def as_json(value):
    return json.dumps(value).encode()


def hello(user):
    return as_json({"user_id": user, "device_id": "ABKJDTRWQS"})


CLOSE = object()   # a step of an answer: close the connection now
HANG = object()    # a step of an answer: keep it open and say nothing more


def steps(kind, status, body):
    """An answer of that kind, as what is sent (bytes), waited for (seconds) and then done (CLOSE, HANG)."""
    raw = as_json(body)
    good = head(status, "Transfer-Encoding: chunked") + chunked(raw)
    full = plain(status, raw)
    if kind.startswith("status-"):
        code = int(kind[7:])
        extra = ("Location: /_matrix/client/v3/account/whoami",) if code in (301, 302, 307) else ()
        return [plain(code, as_json({"errcode": "M_UNKNOWN", "error": "Internal server error"}), *extra)]
    if kind.startswith("user-id-"):
        odd = {"none": {}, "number": {"user_id": 7}, "null": {"user_id": None}, "empty": {"user_id": ""},
               "no-colon": {"user_id": "@alice"}, "no-at": {"user_id": "alice:example.org"},
               "nested": {"account": {"user_id": "@alice:example.org"}}, "array": ["@alice:example.org"]}
        return [plain(200, as_json({"device_id": "X", **odd[kind[8:]]} if isinstance(odd[kind[8:]], dict) else odd[kind[8:]]))]
    return {
        "": lambda: [good],
        "chunked": lambda: [good],
        "chunked-pieces": lambda: [head(status, "Transfer-Encoding: Chunked") + chunked(raw, 5)],
        "chunked-split": lambda: [x for c in re.findall(rb"(?s).{1,7}", good) for x in (c, 0.002)],
        "content-length": lambda: [full],
        "padded": lambda: [plain(status, raw[:-1] + b" " * 700 + b"}")],
        "lower-case": lambda: [full.replace(b"Content-Length", b"content-length").replace(b"Content-Type", b"content-type")],
        "closed": lambda: [head(status, "Connection: close") + raw, CLOSE],
        "http10": lambda: [head(status).replace(b"HTTP/1.1", b"HTTP/1.0") + raw, CLOSE],
        "http10-503-late": lambda: [head(503, "Connection: close").replace(b"HTTP/1.1", b"HTTP/1.0"), 0.05, b"<html>", CLOSE],
        "http10-late": lambda: [head(status).replace(b"HTTP/1.1", b"HTTP/1.0"), 0.05, raw[:9], 0.05, raw[9:], 0.05, CLOSE],
        "http10-hang": lambda: [head(status).replace(b"HTTP/1.1", b"HTTP/1.0") + raw[:9], HANG],
        "http10-length": lambda: [full.replace(b"HTTP/1.1", b"HTTP/1.0"), CLOSE],
        "continue-first": lambda: [b"HTTP/1.1 100 Continue\r\n\r\n" + full],
        "early-hints-first": lambda: [b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", 0.02, full],
        "drip-fast": lambda: [x for b in full for x in (bytes([b]), 0.0005)],
        "drip": lambda: [x for b in full for x in (bytes([b]), 1.0)],
        "drip-body": lambda: [head(200, f"Content-Length: {len(raw)}")] + [x for b in raw for x in (bytes([b]), 1.0)],
        "escaped": lambda: [plain(200, b'{"user_id":"\\u0040al\\u0069ce:example.org","device_id":"A"}')],
        "decoy": lambda: [plain(200, b'{"x":{"user_id":"@mallory:example.org"},"y":"\\"user_id\\":\\"@mallory:example.org\\"",'
                             b'"user_id":"@alice:example.org","device_id":"A","z":[{"user_id":"@mallory:example.org"}]}')],
        "spaces": lambda: [plain(200, b' {\n  "user_id" : "@alice:example.org" ,\n "device_id" : "A" }\n')],
        "trailing": lambda: [full + plain(200, hello("@mallory:example.org"))],
        "hang": lambda: [HANG],
        "hang-head": lambda: [head(200, "Transfer-Encoding: chunked"), HANG],
        "hang-half-head": lambda: [b"HTTP/1.1 200 OK\r\nContent-Ty", HANG],
        "hang-half-body": lambda: [full[:-5], HANG],
        "close": lambda: [CLOSE],
        "close-head": lambda: [b"HTTP/1.1 200 OK\r\nContent-Ty", CLOSE],
        "truncated-length": lambda: [full[:-5], CLOSE],
        "truncated-chunked": lambda: [good[:-5], CLOSE],
        "html": lambda: [plain(200, b"<!DOCTYPE html><html><body>It works! @alice:example.org</body></html>\n").replace(
            b"application/json", b"text/html")],
        "gzip": lambda: [plain(200, gzip.compress(raw), "Content-Encoding: gzip")],
        "megabyte": lambda: [plain(200, raw[:-1] + b" " * (1 << 20) + b"}")],
        "megabyte-head": lambda: [head(200, f"Content-Length: {len(raw)}", "X-Long: " + "a" * (1 << 20)) + raw],
        "megabyte-chunked": lambda: [head(200, "Transfer-Encoding: chunked") + chunked(raw[:-1] + b" " * (1 << 20) + b"}", 3)],
        "garbage": lambda: [bytes((i * 73 + 41) % 256 for i in range(600)), CLOSE],
        "garbage-text": lambda: [b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n\r\n", CLOSE],
        "no-status": lambda: [b"HTTP/1.1\r\n\r\n", CLOSE],
        "bad-chunk": lambda: [head(200, "Transfer-Encoding: chunked") + b"zz\r\n" + raw + b"\r\n0\r\n\r\n"],
        "huge-chunk": lambda: [head(200, "Transfer-Encoding: chunked") + b"ffffffffffffffffff\r\n" + raw, HANG],
        "bad-length": lambda: [head(200, "Content-Length: 1e3") + raw],
        "negative-length": lambda: [head(200, "Content-Length: -1") + raw],
        "two-lengths": lambda: [head(200, f"Content-Length: {len(raw)}", "Content-Length: 5") + raw],
        "length-and-chunks": lambda: [head(200, f"Content-Length: {len(chunked(raw))}", "Transfer-Encoding: chunked") + chunked(raw)],
        "said-gzip": lambda: [plain(200, raw, "Content-Encoding: gzip")],
        "empty-body": lambda: [plain(200, b"")],
        "half-json": lambda: [plain(200, raw[:-4])],
        "not-utf8": lambda: [plain(200, b'{"user_id":"@al\xffice:example.org"}')],
    }[kind]()


async def send(writer, plan):
    """Carries out the steps; says whether the connection may be used again."""
    for step in plan:
        if step is CLOSE:
            return False
        if step is HANG:
            await asyncio.sleep(3600)
        elif isinstance(step, float):
            await asyncio.sleep(step)
        else:
            writer.write(step)
            await writer.drain()
    return True


async def read_body(reader, fields):
    """The request's body, whatever frames it."""
    if "chunked" in fields.get("transfer-encoding", "").lower():
        body = b""
        while True:
            size = int((await reader.readline()).split(b";")[0], 16)
            part = await reader.readexactly(size + 2)
            if size == 0:
                return body
            body += part[:-2]
    return await reader.readexactly(int(fields.get("content-length", 0)))


def control(target, query):
    if target == "/__log":
        return S.log
    if target == "/__reset":
        S.reset()
    elif target == "/__set":
        S.kind = query.get("kind", S.kind)
        S.delay = float(query.get("delay", S.delay))
    return {"requests": len(S.log), "max_inflight": S.max_inflight, "inflight": S.inflight,
            "connections": S.connections, "answered": S.answered, "kind": S.kind, "delay": S.delay}


async def answer_whoami(writer, raw, fields, target, query, conn):
    """One whoami request: write it down, then answer by its kind."""
    auth = fields.get("authorization", "")
    token = auth[7:] if auth.startswith("Bearer ") else ""
    kind = "" if target.startswith("/_matrix") else target.split("/")[1]
    kind = kind or S.kind
    if kind == "as-token":
        kind = localpart(token) or ""
        kind = kind if kind.split("-")[0] in ("status", "close", "hang", "http10") else ""
    S.log.append({"raw": raw.decode("latin-1"), "target": target, "token": token, "query": query, "time": time.time(), **conn})
    S.inflight += 1
    S.max_inflight = max(S.max_inflight, S.inflight)
    try:
        if S.delay:
            await asyncio.sleep(S.delay)
        status, body = whoami(token, query)
        again = await send(writer, steps(kind, status, body))
        S.answered += 1
        return again
    finally:
        S.inflight -= 1


async def answer_worker(reader, writer, method, fields, target):
    """One request to the stand-in sync worker."""
    if target.startswith("/ws"):
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        while data := await reader.read(4096):
            writer.write(data)
            await writer.drain()
        return False
    if fields.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = await read_body(reader, fields)
    told = as_json({"method": method, "length": len(body), "sha256": hashlib.sha256(body).hexdigest(), "headers": fields})
    writer.write(plain(200, b"" if method == "HEAD" else told))
    return True


async def serve(reader, writer):
    S.connections += 1
    peer = writer.get_extra_info("peername")
    local = writer.get_extra_info("sockname")
    conn = {"conn": S.connections, "from": peer[0] if isinstance(peer, tuple) else "unix",
            "port": local[1] if isinstance(local, tuple) else "unix"}
    try:
        while True:
            raw = await reader.readuntil(b"\r\n\r\n")
            lines = raw.decode("latin-1").split("\r\n")
            method, target, _ = lines[0].split(" ", 2)
            fields = {}
            for line in lines[1:-2]:
                name, _, value = line.partition(":")
                fields[name.strip().lower()] = value.strip()
            path, _, args = target.partition("?")
            query = {}
            for name, value in parse_qsl(args, keep_blank_values=True):
                query.setdefault(name, value)
            path = unquote(path)
            if path == "/__sleep":
                await asyncio.sleep(float(query["seconds"]))
            if path.startswith("/__"):
                writer.write(plain(200, as_json(control(path, query))))
                S.connections -= 1  # the test's own connection is none of the module's
            elif path.startswith(("/echo", "/ws")):
                if not await answer_worker(reader, writer, method, fields, path):
                    break
            elif not await answer_whoami(writer, raw, fields, path, query, conn):
                break
            await writer.drain()
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError):
        pass
    finally:
        writer.close()


async def main():
    stop = asyncio.Event()
    for sig in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sig, stop.set)
    servers = [await asyncio.start_server(serve, "127.0.0.1", int(p), backlog=1024, limit=1 << 16)
               for p in sys.argv[1].split(",")]
    if len(sys.argv) > 2:
        servers.append(await asyncio.start_unix_server(serve, sys.argv[2]))
    print("ready", flush=True)
    await stop.wait()
    for server in servers:
        server.close()


if __name__ == "__main__":
    asyncio.run(main())

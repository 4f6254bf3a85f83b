"""Clients: many connections to the front, each with one request at a time, in one event loop.

Out comes an `Answer` per request, with what the module said of it in the headers that the front adds, and the time that
the client saw. A connection that breaks is an answer with `code` 0; one that stays silent for `PATIENCE` too, with
`silent` set: nothing may ever hang.
"""

import asyncio
import time
from dataclasses import dataclass

from tests.bed.people import hash_of, owner, user_hash

from .bed import FRONT

PATIENCE = 15.0
FALLBACKS = ("ERROR", "TIMEOUT", "REFUSED")


@dataclass(slots=True)
class Answer:
    token: str
    code: int
    status: str = ""
    hash: str = ""
    # Seconds that resolving held it, as nginx says; 0 without a lookup.
    held: float = 0.0
    # Seconds from request to answer, as the client saw.
    took: float = 0.0
    pid: int = 0
    silent: bool = False
    body: str = ""

    @property
    def right(self):
        """The user's own hash; by the fallback, the token's own."""
        name = owner(self.token)
        if self.status in FALLBACKS or name is None:
            return self.hash == hash_of(self.token)
        return self.hash == user_hash(name)


class Connection(asyncio.Protocol):
    def __init__(self):
        self.buffer = b""
        self.waiting = None
        self.transport = None

    async def open(self, address=None):
        """Connects, from that address if one is given: all of 127.0.0.0/8 is this machine's."""
        source = (address, 0) if address else None
        await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", FRONT, local_addr=source)
        return self

    def connection_made(self, transport):
        self.transport = transport

    def connection_lost(self, _):
        if self.waiting and not self.waiting.done():
            self.waiting.set_result(None)

    def data_received(self, data):
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(field(head, b"Content-Length:") or 0)
        if len(body) >= length and self.waiting and not self.waiting.done():
            self.buffer = body[length:]
            self.waiting.set_result((head, body[:length], time.monotonic()))

    @property
    def is_open(self):
        return self.transport is not None and not self.transport.is_closing()

    def close(self):
        if self.transport:
            self.transport.abort()

    async def get(self, token, path="/_matrix/client/v3/sync"):
        start = time.monotonic()
        self.waiting = asyncio.get_running_loop().create_future()
        self.transport.write(f"GET {path} HTTP/1.1\r\nHost: example.org\r\nAuthorization: Bearer {token}\r\n"
                             "User-Agent: Element/1.11.94\r\n\r\n".encode())
        silent = False
        try:
            done = await asyncio.wait_for(self.waiting, PATIENCE)
        except TimeoutError:
            done, silent = None, True
        if done is None:
            self.close()
            return Answer(token, 0, took=time.monotonic() - start, silent=silent)
        head, body, end = done
        held = field(head, b"X-Lookup-Time:")
        return Answer(token, int(head.split(b" ", 2)[1]), field(head, b"X-Status:"), field(head, b"X-Hash:"),
                      float(held) if held not in ("", "-") else 0.0, end - start, int(field(head, b"X-Pid:") or 0),
                      body=body.decode("latin-1") if len(body) < 64 and body[:3] != b"GIF" else "")


def field(head, name):
    return head.partition(name)[2].partition(b"\r\n")[0].strip().decode("latin-1")


class Clients:
    """A pool of connections. More are opened as they are needed."""

    def __init__(self):
        self.idle = []

    async def warm(self, connections):
        while len(self.idle) < connections:
            # Not all at once: they are to be accepted before the next come.
            self.idle += await asyncio.gather(*(Connection().open() for _ in range(min(200, connections - len(self.idle)))))

    async def get(self, token, path="/_matrix/client/v3/sync"):
        connection = None
        while self.idle and connection is None:
            candidate = self.idle.pop()
            connection = candidate if candidate.is_open else None
        try:
            connection = connection or await Connection().open()
        except OSError:
            return Answer(token, 0)
        try:
            answer = await connection.get(token, path)
        except asyncio.CancelledError:
            # A client that goes away.
            connection.close()
            raise
        if answer.code:
            self.idle.append(connection)
        return answer

    async def all(self, tokens, at_once=64, path="/_matrix/client/v3/sync"):
        """Asks for every token, so many at a time."""
        tokens, answers = iter(tokens), []

        async def one():
            for token in tokens:
                answers.append(await self.get(token, path))

        await asyncio.gather(*(one() for _ in range(at_once)))
        return answers

    async def paced(self, tokens, per_second):
        """Asks for every token when its time has come, whatever became of those before."""
        start, tasks = time.monotonic(), []
        for number, token in enumerate(tokens):
            wait = start + number / per_second - time.monotonic()
            if wait > 0.001:
                await asyncio.sleep(wait)
            elif number % 64 == 0:
                await asyncio.sleep(0)
            tasks.append(asyncio.create_task(self.get(token)))
        return await asyncio.gather(*tasks)

    def close(self):
        while self.idle:
            self.idle.pop().close()

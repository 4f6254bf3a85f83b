"""Clients of the campaign `lifecycle`: HTTP/1.1 and HTTP/2 on kept connections, HTTP/3 on a new one for each batch.

In: a batch of `Attempt`s, which go out at once, or one after the other in HTTP/1.1. Out: the same, each with what became of it.
No client repeats a request by itself. A connection knows its local port, and from the first answer on the worker process that
serves it.
HTTP/2 needs the package hpack, HTTP/3 the package aioquic; scripts/campaign installs both.
"""

import asyncio
import json
import struct
import time
from dataclasses import dataclass, field

# What may become of an attempt.
WAITING, ANSWERED, REFUSED, UNCONNECTED, CUT, BROKEN, SILENT = (
    "waiting", "answered", "refused as not processed", "not connected", "cut off", "cut off within its answer", "silent")
PATIENCE = 15.0
# A client of HTTP/3 whose packets reach nobody does not hear of it.
QUIC_PATIENCE = 5.0


@dataclass(slots=True)
class Attempt:
    """One request, sent once."""

    number: int
    protocol: str
    token: str
    path: str
    state: str = WAITING
    code: int = 0
    headers: dict = field(default_factory=dict)
    body: bytes = b""
    # By the monotonic clock: when its connection was opened, when it was sent, and when the end of it was known.
    opened: float = 0.0
    began: float = 0.0
    ended: float = 0.0
    port: int = 0
    pid: int = 0

    @property
    def target(self):
        """The path, with the number by which nginx's log tells of it."""
        return f"{self.path}?n={self.number}"

    def finish(self, state):
        if self.state == WAITING:
            self.state, self.ended = state, time.monotonic()

    def answered(self, headers):
        """Takes over an answer's head; gives the worker process that it comes from."""
        self.headers = headers
        self.pid = int(headers.get("x-pid", 0))
        return self.pid

    def user(self):
        """The user that the homeserver saw."""
        try:
            return json.loads(self.body).get("user_id")
        except ValueError:
            return None


class Client:
    """What the three have in common: a connection, and who serves it."""

    def __init__(self, port):
        self.server = port
        self.port = self.pid = 0
        self.opened = 0.0

    async def ask(self, batch):
        for attempt in batch:
            attempt.began = time.monotonic()
        if not await self.connect():
            for attempt in batch:
                attempt.finish(UNCONNECTED)
            return
        for attempt in batch:
            attempt.opened, attempt.port, attempt.pid = self.opened, self.port, self.pid
        await self.carry_out(batch)
        self.pid = self.pid or max(attempt.pid for attempt in batch)
        for attempt in batch:
            attempt.pid = attempt.pid or self.pid
        if any(attempt.state != ANSWERED for attempt in batch):
            self.close()

    async def connect(self):
        """Opens a connection, or keeps the one that there is. False if nobody takes it."""
        raise NotImplementedError

    async def carry_out(self, batch):
        """Sends the batch, and finishes each attempt of it."""
        raise NotImplementedError

    def close(self):
        """Closes the connection."""

    def begin(self, port):
        self.opened, self.port, self.pid = time.monotonic(), port, 0


class Http1(Client):
    """HTTP/1.1: a request after the other."""

    name = "HTTP/1.1"
    writer = None

    async def connect(self):
        if self.writer and not self.writer.is_closing() and not self.reader.at_eof():
            return True
        self.close()
        try:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.server)
        except OSError:
            return False
        self.begin(self.writer.get_extra_info("sockname")[1])
        return True

    def close(self):
        if self.writer:
            self.writer.transport.abort()
        self.writer = None

    async def carry_out(self, batch):
        for attempt in batch:
            head = b""
            try:
                async with asyncio.timeout(PATIENCE):
                    self.writer.write(f"GET {attempt.target} HTTP/1.1\r\nHost: matrix.example.org\r\n"
                                      f"Authorization: Bearer {attempt.token}\r\n\r\n".encode())
                    head = await self.reader.readuntil(b"\r\n\r\n")
                    first, *lines = head.decode("latin-1").split("\r\n")
                    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                    attempt.answered(headers)
                    attempt.body = await read_body(self.reader, headers)
            except TimeoutError:
                attempt.finish(SILENT)
            except asyncio.IncompleteReadError as error:
                attempt.finish(BROKEN if head or error.partial else CUT)
            except OSError:
                attempt.finish(BROKEN if head else CUT)
            else:
                attempt.code = int(first.split(" ")[1])
                attempt.finish(ANSWERED)
                if headers.get("connection") == "close":
                    self.close()


async def read_body(reader, headers):
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    body = b""
    while True:
        size = int(await reader.readuntil(b"\r\n"), 16)
        body += (await reader.readexactly(size + 2))[:-2]
        if size == 0:
            return body


# RFC 9113, 6: types of frames, and flags.
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM = ACK = 1
END_HEADERS, PADDED = 4, 8
REFUSED_STREAM = 7
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind, flags, stream, payload=b""):
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


class Http2(Http1):
    """HTTP/2 in clear: the requests of a batch at once. Frames are our own, because after GOAWAY the answers to come count, and the
    package h2 takes none then."""

    name = "HTTP/2"

    def __init__(self, port, hpack):
        super().__init__(port)
        self.hpack = hpack

    async def connect(self):
        if self.writer and self.leaving:
            self.close()
        old = self.writer
        if not await super().connect():
            return False
        if self.writer is not old:
            self.encoder, self.decoder = self.hpack.Encoder(), self.hpack.Decoder()
            self.next_stream, self.leaving = 1, False
            # A window that no run of this campaign fills.
            self.writer.write(PREFACE + frame(SETTINGS, 0, 0) + frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", (1 << 31) - 65_536)))
        return True

    async def carry_out(self, batch):
        streams = {}
        for attempt in batch:
            streams[self.next_stream] = attempt
            block = self.encoder.encode([
                (":method", "GET"), (":scheme", "http"), (":authority", "matrix.example.org"), (":path", attempt.target),
                ("authorization", f"Bearer {attempt.token}")])
            self.writer.write(frame(HEADERS, END_STREAM | END_HEADERS, self.next_stream, block))
            self.next_stream += 2
        try:
            async with asyncio.timeout(PATIENCE):
                while any(attempt.state == WAITING for attempt in batch):
                    head = await self.reader.readexactly(9)
                    payload = await self.reader.readexactly(int.from_bytes(head[:3], "big"))
                    self.take(streams, head[3], head[4], int.from_bytes(head[5:], "big") & 0x7FFFFFFF, payload)
        except TimeoutError:
            self.rest(batch, SILENT)
        except (asyncio.IncompleteReadError, OSError):
            self.rest(batch, CUT)

    @staticmethod
    def rest(batch, state):
        for attempt in batch:
            attempt.finish(BROKEN if attempt.headers and state == CUT else state)

    def take(self, streams, kind, flags, number, payload):
        attempt = streams.get(number)
        if kind == SETTINGS and not flags & ACK:
            self.writer.write(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self.writer.write(frame(PING, ACK, 0, payload))
        elif kind == GOAWAY:
            self.leaving = True
            last = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
            for stream, later in streams.items():
                if stream > last:
                    later.finish(REFUSED)
        elif kind == RST_STREAM and attempt:
            refused = int.from_bytes(payload, "big") == REFUSED_STREAM
            attempt.finish(REFUSED if refused else BROKEN if attempt.headers else CUT)
        elif kind == HEADERS:
            # Of every stream: what the decoder has seen is part of the next block. nginx pads nothing.
            headers = dict(self.decoder.decode(payload))
            if attempt:
                attempt.answered(headers)
                attempt.code = int(headers[":status"])
        elif kind == DATA and attempt:
            attempt.body += payload
        if kind in (HEADERS, DATA) and flags & END_STREAM and attempt:
            attempt.finish(ANSWERED)


def http3(aioquic):
    """The client of HTTP/3, made of what the package aioquic has."""

    class Protocol(aioquic.QuicConnectionProtocol):
        """One connection."""

        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.http = aioquic.H3Connection(self._quic)
            self.streams = {}
            self.terminated = False
            # Set when the handshake is over, and when no stream waits any more.
            self.ready, self.over = asyncio.Event(), asyncio.Event()

        def quic_event_received(self, event):
            if isinstance(event, aioquic.ConnectionTerminated):
                self.terminated = True
                for attempt in self.streams.values():
                    attempt.finish(BROKEN if attempt.headers else CUT)
            elif isinstance(event, aioquic.StreamReset) and event.stream_id in self.streams:
                attempt = self.streams[event.stream_id]
                rejected = event.error_code == aioquic.H3_REQUEST_REJECTED
                attempt.finish(REFUSED if rejected else BROKEN if attempt.headers else CUT)
            if isinstance(event, (aioquic.HandshakeCompleted, aioquic.ConnectionTerminated)):
                self.ready.set()
            for said in self.http.handle_event(event):
                attempt = self.streams.get(getattr(said, "stream_id", None))
                if attempt is None:
                    continue
                if isinstance(said, aioquic.HeadersReceived):
                    headers = {name.decode(): value.decode() for name, value in said.headers}
                    attempt.answered(headers)
                    attempt.code = int(headers[":status"])
                elif isinstance(said, aioquic.DataReceived):
                    attempt.body += said.data
                if said.stream_ended:
                    attempt.finish(ANSWERED)
            if self.streams and not any(attempt.state == WAITING for attempt in self.streams.values()):
                self.over.set()

        def send(self, attempt):
            stream = self._quic.get_next_available_stream_id()
            self.streams[stream] = attempt
            self.http.send_headers(stream, [
                (b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"matrix.example.org"),
                (b":path", attempt.target.encode()), (b"authorization", f"Bearer {attempt.token}".encode())], end_stream=True)

    class Http3(Client):
        """HTTP/3: a connection for each batch, whose requests go out at once."""

        name = "HTTP/3"
        transport = None

        async def connect(self):
            configuration = aioquic.QuicConfiguration(
                is_client=True, alpn_protocols=aioquic.H3_ALPN, verify_mode=0, server_name="matrix.example.org")
            quic = aioquic.QuicConnection(configuration=configuration)
            self.transport, self.protocol = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: Protocol(quic), local_addr=("127.0.0.1", 0))
            self.begin(self.transport.get_extra_info("sockname")[1])
            self.protocol.connect(("127.0.0.1", self.server))
            return True

        async def carry_out(self, batch):
            try:
                async with asyncio.timeout(QUIC_PATIENCE):
                    await self.protocol.ready.wait()
                    if not self.protocol.terminated:
                        for attempt in batch:
                            self.protocol.send(attempt)
                        self.protocol.transmit()
                        await self.protocol.over.wait()
            except TimeoutError:
                pass
            for attempt in batch:
                attempt.finish(CUT if self.protocol.terminated else SILENT)
            self.close()

        def close(self):
            if self.transport:
                self.protocol.close()
                self.transport.close()
            self.transport = None

    return Http3

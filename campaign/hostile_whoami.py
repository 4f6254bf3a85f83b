"""A stand-in for whoami that lies: honest, or in one of the ways of hostile_answers.py, as dice say. A process of its own.

    python -m campaign.hostile_whoami PORT CONTROL SEED [TLS-PORT CERTIFICATE]

The n-th answer to a token depends on the seed, the token and n alone, whatever else goes on. While not all are honest, of a
hundred connections one is reset as it is accepted. A token of `kind-NAME-…` is
always answered in that way. On CONTROL, one JSON object a line: `{"honest": SHARE, "rare": [KIND…]}` sets how many answers are
honest and which kinds come a tenth as often; `{"blurt": NAME, "bytes": N}` sends the first N bytes of an answer for that user, which nobody asked
for, on every connection that waits for a request; `{"of": TOKEN}` asks what that token was answered, `{"whose": HASH}` which answer named another user of that hash. Each is answered by what was sent so far.
"""

import asyncio
import json
import random
import resource
import socket
import ssl
import struct
import sys
from collections import Counter, defaultdict
from urllib.parse import parse_qs

from tests.bed.people import hash_of, owner, user_id

from .hostile_answers import CLOSE, CLOSE_LATER, HALF_CLOSE, HANG, KINDS, RESET, UNKNOWN, Asked, compact, in_chunks, sized

RESETS = struct.pack("ii", 1, 0)
HONEST = "honest"


class Homeserver:
    def __init__(self, seed):
        self.seed = seed
        self.honest = 0.5
        self.names, self.weights = list(KINDS), [1.0] * len(KINDS)
        self.connections = set()
        self.accepts = random.Random(seed)
        self.sent = Counter()
        self.answered = defaultdict(list)
        self.decoys = {}

    def rare(self, kinds):
        self.weights = [0.1 if name in kinds else 1.0 for name in self.names]

    def kind(self, name, token, dice):
        if name.startswith("kind-"):
            return name[5:].rpartition("-")[0]
        if dice.random() < self.honest:
            return HONEST
        return dice.choices(self.names, self.weights)[0]

    def steps(self, token, target):
        """What a request is answered with."""
        before = self.answered[token]
        dice = random.Random(f"{self.seed} {token} {len(before)}")
        name = owner(token)
        if name is None:
            before.append("stranger")
            return [sized(compact(UNKNOWN), status="401 Unauthorized")]
        kind = self.kind(name, token, dice)
        before.append(kind)
        self.sent[kind] += 1
        named = parse_qs(target.partition("?")[2]).get("user_id", [user_id(name)])[0]
        who = {"user_id": named, "is_guest": False}
        if not name.startswith("bridge"):
            who["device_id"] = "QJTGFCNZFH"
        if kind == HONEST:
            return [in_chunks(compact(who)) if dice.random() < 0.5 else sized(compact(who))]
        # One of its own for each answer, so that whoever is told it says from where it came.
        other = user_id(f"mallory-{name}-{token[-4:]}-{len(before) - 1}")
        self.decoys[hash_of(other)] = [token, len(before) - 1, kind]
        return KINDS[kind](Asked(who, other, dice))


class Connection(asyncio.Protocol):
    def __init__(self, homeserver):
        self.homeserver = homeserver
        self.buffer = b""
        self.busy = self.deaf = self.ends = False

    def connection_made(self, transport):
        self.transport = transport
        self.homeserver.connections.add(self)
        if self.homeserver.honest < 1 and self.homeserver.accepts.random() < 0.01:
            self.deaf = True
            self.end(RESET)

    def connection_lost(self, _):
        self.homeserver.connections.discard(self)
        self.deaf = True

    def data_received(self, data):
        if self.deaf or self.ends:
            # It is asked once more than it wants.
            self.transport.abort()
            return
        self.buffer += data
        self.next()

    def next(self):
        """The next request, if it has come and the one before is answered."""
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if self.busy or not found:
            return
        self.buffer = rest
        token = head.partition(b"uthorization: Bearer ")[2].partition(b"\r\n")[0].decode("latin-1")
        self.busy = True
        self.take(iter(self.homeserver.steps(token, head.split(b" ", 2)[1].decode("latin-1"))))

    def take(self, steps):
        """Steps until one of them waits."""
        for step in steps:
            if self.transport.is_closing():
                return
            if isinstance(step, bytes):
                self.transport.write(step)
            elif isinstance(step, float):
                asyncio.get_running_loop().call_later(step, self.take, steps)
                return
            else:
                self.end(step)
                return
        self.busy = False
        self.next()

    def end(self, how):
        if how == CLOSE:
            self.transport.close()
        elif how == RESET:
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESETS)
            self.transport.abort()
        elif how == HALF_CLOSE:
            self.deaf = True
            try:
                self.transport.write_eof()
            except OSError:
                # nginx has reset the connection already, and nobody has told us yet.
                self.transport.abort()
        elif how == CLOSE_LATER:
            self.ends, self.busy = True, False
        elif how == HANG:
            self.deaf = True

    def eof_received(self):
        # None: the transport closes itself.
        return None


async def control(homeserver, reader, writer):
    while line := await reader.readline():
        order = json.loads(line)
        homeserver.honest = order.get("honest", homeserver.honest)
        if "rare" in order:
            homeserver.rare(set(order["rare"]))
        blurted = 0
        if "blurt" in order:
            for connection in list(homeserver.connections):
                if not connection.busy and not connection.transport.is_closing():
                    answer = sized(compact({"user_id": user_id(order["blurt"]), "device_id": "QJTGFCNZFH"}))
                    connection.transport.write(answer[:order["bytes"]])
                    blurted += 1
        said = {"sent": homeserver.sent, "of": homeserver.answered[order["of"]] if "of" in order else None, "blurted": blurted, "decoy": homeserver.decoys.get(order.get("whose"))}
        writer.write(compact(said) + b"\n")


async def serve(port, control_port, seed, tls_port=None, certificate=None):
    homeserver = Homeserver(seed)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(homeserver), ("127.0.0.1", "127.0.0.2"), port, backlog=4096)
    if tls_port:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        await loop.create_server(lambda: Connection(homeserver), "127.0.0.1", int(tls_port), ssl=context)
    orders = await asyncio.start_server(lambda r, w: control(homeserver, r, w), "127.0.0.1", control_port)
    print("ready", flush=True)
    # Whoever started it holds its standard input; when that ends, so does this.
    await loop.run_in_executor(None, sys.stdin.read)
    for each in (orders, server):
        each.close()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))

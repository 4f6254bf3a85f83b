"""python3 -m e2e.heavy PORT SECONDS WAIT [SINCE]: one account in a tight loop of syncs, over many devices and addresses.

In:  the account's tokens on standard input, one a line. PARALLEL connections from ADDRESSES addresses of loopback sync, each again
     as soon as it has its answer and a network would have carried the next request. WAIT is the `timeout` of their syncs in
     milliseconds. SINCE is where they go on: without it, Synapse answers a sync at once, whatever its `timeout`. No request is sent
     after SECONDS; what was sent before has DRAIN seconds to be answered.
Out: one JSON object: `asked`, the answers by status, `waiting` syncs that have no answer at the end, `passed`: when each request
     was sent that was not refused, and when its answer came (null: never), in seconds from the start; and each `retry_after`.

Its own work is not what is measured: it takes the processor time that nobody else wants.
"""

import asyncio
import json
import os
import re
import sys
import time
from collections import Counter

PARALLEL, ADDRESSES = 200, 20
# The account has as many tokens at a time as addresses. Every TURN seconds one of them ends and another takes its place.
TURN = 1
# Between the account and nginx there is a network: so long after an answer, the next request is there.
ROUND_TRIP = 0.05
# After the last request, refusals and answers that are under way have so long to come; what has none then is a sync that waits.
DRAIN = 5
AGENT = "heavy/1.0"
NEXT = re.compile(rb'"next_batch":"([^"]+)"')
HEAD = "GET {path} HTTP/1.1\r\nHost: example.org\r\nAuthorization: Bearer {token}\r\nUser-Agent: {agent}\r\n\r\n"


class Heavy:
    """What the account does, and what comes back."""

    def __init__(self, port: int, seconds: float, wait: int, since: str, tokens: list[str]):
        self.port, self.wait, self.first_since, self.tokens = port, wait, since, tokens
        self.started = time.monotonic()
        self.end = self.started + seconds
        self.statuses, self.retries, self.asked = Counter(), set(), 0
        # When a request that passed was sent, and when its answer came.
        self.passed: list[tuple[float, float | None]] = []
        self.sent: dict[int, float] = {}

    async def run(self) -> dict:
        tasks = [asyncio.create_task(self.connection(number)) for number in range(PARALLEL)]
        await asyncio.wait(tasks, timeout=self.end - time.monotonic() + DRAIN)
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        self.passed += [(sent, None) for sent in self.sent.values()]
        passed = [(sent - self.started, answered and answered - self.started) for sent, answered in self.passed]
        return {"asked": self.asked, "statuses": dict(self.statuses), "waiting": len(self.sent), "passed": sorted(passed),
                "retry_after": sorted(self.retries)}

    async def connection(self, number: int):
        """One of the parallel syncs: again and again."""
        address = f"127.0.0.{2 + number % ADDRESSES}"
        reader = writer = None
        since = self.first_since
        while time.monotonic() < self.end:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(address, 0))
            device = number % ADDRESSES
            token = self.tokens[device + ADDRESSES * replaced(time.monotonic() - self.started, device)]
            path = f"/_matrix/client/v3/sync?timeout={self.wait}" + (since and f"&since={since}")
            writer.write(HEAD.format(path=path, token=token, agent=AGENT).encode())
            self.sent[number] = time.monotonic()
            self.asked += 1
            status, headers, body = await answer(reader)
            sent = self.sent.pop(number)
            self.statuses[status] += 1
            if status != 429:
                self.passed.append((sent, time.monotonic()))
            # A client goes on where its last sync ended; else it would be told the same news again at once.
            if since and status == 200:
                since = NEXT.search(body)[1].decode()
            if "retry-after" in headers:
                self.retries.add(int(headers["retry-after"]))
            if headers.get("connection") == "close":
                writer.close()
                writer = None
            await asyncio.sleep(ROUND_TRIP)


def replaced(elapsed: float, device: int) -> int:
    """How often the token of a device was replaced in a time."""
    return (int(elapsed / TURN) + ADDRESSES - 1 - device) // ADDRESSES


async def answer(reader) -> tuple[int, dict, bytes]:
    """Reads one whole answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    body = b""
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    elif headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    return int(head[0].split(" ")[1]), headers, body


def main() -> None:
    port, seconds, wait = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    since = sys.argv[4] if len(sys.argv) > 4 else ""
    tokens = sys.stdin.read().split()
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    print(json.dumps(asyncio.run(Heavy(port, seconds, wait, since, tokens).run())))


if __name__ == "__main__":
    main()

"""python3 -m e2e.heavy PORT SECONDS WAIT [SINCE]: one account that asks for syncs as fast as it can, over many devices and addresses.

In:  the account's tokens on standard input, one a line. PARALLEL connections from ADDRESSES addresses of loopback sync without a
     pause; WAIT is the `timeout` of their syncs in milliseconds. Every TURN seconds ADDRESSES other tokens are used. SINCE is where
     these syncs go on: without it, Synapse answers a sync at once, whatever its `timeout`.
Out: one JSON object: `asked`, the answers by status, `waiting` syncs that had no answer for a second at the end, `seconds`
     from the first request to the last, and the least and most `retry_after`.

Its own work is not what is measured: it takes the processor time that nobody else wants.
"""

import asyncio
import json
import os
import sys
import time
from collections import Counter

PARALLEL, ADDRESSES, TURN = 200, 20, 5
HEAD = "GET {path} HTTP/1.1\r\nHost: example.org\r\nAuthorization: Bearer {token}\r\nUser-Agent: heavy/1.0\r\n\r\n"


class Heavy:
    """What the account does, and what comes back."""

    def __init__(self, port: int, seconds: float, wait: int, since: str, tokens: list[str]):
        self.port, self.tokens = port, tokens
        self.path = f"/_matrix/client/v3/sync?timeout={wait}" + (since and f"&since={since}")
        self.end = time.monotonic() + seconds
        self.statuses, self.retries, self.asked = Counter(), set(), 0
        self.first = self.last = 0.0
        self.since = {}

    async def run(self) -> dict:
        started = time.monotonic()
        tasks = [asyncio.create_task(self.connection(number, started)) for number in range(PARALLEL)]
        await asyncio.sleep(self.end - started)
        now = time.monotonic()
        waiting = sum(now - since > 1 for since in self.since.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return {"asked": self.asked, "statuses": dict(self.statuses), "waiting": waiting,
                "seconds": self.last - self.first, "retry_after": sorted(self.retries)}

    async def connection(self, number: int, started: float):
        """One of the parallel syncs: again and again."""
        address = f"127.0.0.{2 + number % ADDRESSES}"
        reader = writer = None
        while time.monotonic() < self.end:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(address, 0))
            turn = int((time.monotonic() - started) / TURN) * ADDRESSES
            token = self.tokens[(turn + number % ADDRESSES) % len(self.tokens)]
            writer.write(HEAD.format(path=self.path, token=token).encode())
            self.last = self.since[number] = time.monotonic()
            self.first = self.first or self.last
            self.asked += 1
            status, headers = await answer(reader)
            del self.since[number]
            self.statuses[status] += 1
            if "retry-after" in headers:
                self.retries.add(int(headers["retry-after"]))
            if headers.get("connection") == "close":
                writer.close()
                writer = None


async def answer(reader) -> tuple[int, dict]:
    """Reads one whole answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    if "content-length" in headers:
        await reader.readexactly(int(headers["content-length"]))
    elif headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            await reader.readexactly(size + 2)
        await reader.readline()
    return int(head[0].split(" ")[1]), headers


def main() -> None:
    port, seconds, wait = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    since = sys.argv[4] if len(sys.argv) > 4 else ""
    tokens = sys.stdin.read().split()
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    print(json.dumps(asyncio.run(Heavy(port, seconds, wait, since, tokens).run())))


if __name__ == "__main__":
    main()

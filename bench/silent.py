"""A sync worker that takes requests and never answers, as one does whose user has nothing new.

Each line on standard input is answered with the number of requests that wait; when that input ends, so does this.
"""

import asyncio
import resource
import sys


class Connection(asyncio.Protocol):
    pending = 0

    def connection_made(self, transport):
        self.asked = 0

    def data_received(self, data):
        heads = data.count(b"\r\n\r\n")
        self.asked += heads
        Connection.pending += heads

    def connection_lost(self, _):
        Connection.pending -= self.asked


async def serve(port):
    loop = asyncio.get_running_loop()
    await loop.create_server(Connection, "127.0.0.1", port, backlog=4096)
    print("ready", flush=True)
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(Connection.pending, flush=True)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    asyncio.run(serve(int(sys.argv[1])))

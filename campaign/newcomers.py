"""Cold requests for one worker process, one each millisecond: raw, because it must be even.

In: `python3 -m campaign.newcomers PORT PID NAMES`, and a line on its input to begin and another to end. Out: "ready", and how
many requests there were. They go to /brief, whose location is to answer within a few milliseconds.
"""

import itertools
import select
import socket
import sys
import time

from tests.bed.people import token

# Each is answered when its turn comes again.
CONNECTIONS = 64
EVERY = 0.001


def connections(port, pid):
    """Connections that the worker process with that number serves."""
    found = []
    while len(found) < CONNECTIONS:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(request("no token\x7f"))
        if f"X-Pid: {pid}\r\n".encode() in connection.recv(4096):
            found.append(connection)
        else:
            connection.close()
    return found


def request(bearer):
    return f"GET /brief HTTP/1.1\r\nHost: example.org\r\nAuthorization: Bearer {bearer}\r\n\r\n".encode()


def main():
    port, pid, names = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    found = connections(port, pid)
    requests = [request(token(f"{names}{n}")) for n in range(60_000)]
    print("ready", flush=True)
    sys.stdin.readline()
    for connection in found:
        connection.setblocking(False)
    begin, sent, free = time.monotonic(), 0, set(found)
    for number in itertools.count():
        connection = found[number % CONNECTIONS]
        if connection not in free:
            try:
                free.update([connection] if connection.recv(65536) else [])
            except BlockingIOError:
                pass
        if connection in free:
            connection.send(requests[sent % len(requests)])
            free.discard(connection)
            sent += 1
        wait = begin + number * EVERY - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        if number % 64 == 0 and select.select([sys.stdin], [], [], 0)[0]:
            break
    print(sent, flush=True)


if __name__ == "__main__":
    main()

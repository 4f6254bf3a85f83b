"""A client that does one thing at a time, and tokens that look real.

One request after the other over one connection makes callgrind's counts the same each time, and tells a latency without a
queue in it. `Crowd` is many clients that send one request each and wait.
"""

import selectors
import socket
import time

from tests.bed.processes import wait_for

SYNC = "/_matrix/client/v3/sync?since=s72594_4483_1934_109_23_1_42_7_0_12&timeout=30000&filter=0&set_presence=offline"
HEAD = "\r\n".join((
    "GET {} HTTP/1.1", "Host: matrix.example.org", "User-Agent: Element/1.11.94 (Linux; x86_64)", "Accept: application/json",
    "Accept-Encoding: gzip, deflate, br", "Authorization: Bearer {}", "", ""))


def token(n, length=41):
    """The token of user number n: as long as one of the Matrix Authentication Service, if no other length is asked for."""
    head = f"mat_u{n:09d}_"
    return head + "Xk3fQ9vLwZ8pRt5yB2mN7cD4hJ"[:length - len(head)].ljust(length - len(head), "s")


def head(n, path=SYNC, length=41):
    return HEAD.format(path, token(n, length)).encode()


class Client:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), 60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def get(self, request):
        """The answer's body; the request must succeed."""
        self.socket.sendall(request)
        answer = b""
        while not is_whole(answer):
            piece = self.socket.recv(1 << 18)
            if not piece:
                raise ConnectionError(f"closed after {answer[:200]!r}")
            answer += piece
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise ConnectionError(f"answered {answer[:200]!r}")
        return answer.partition(b"\r\n\r\n")[2]

    def time(self, request):
        """Seconds that it took."""
        start = time.perf_counter()
        self.get(request)
        return time.perf_counter() - start


def is_whole(answer):
    start, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    _, with_length, rest = start.lower().partition(b"\r\ncontent-length: ")
    if with_length:
        return len(body) >= int(rest.partition(b"\r\n")[0])
    return body.endswith(b"0\r\n\r\n")


class Crowd:
    """Clients that each send one request and wait for its answer."""

    def __init__(self, port):
        self.port = port
        self.sockets = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for one in self.sockets:
            one.close()

    def send(self, requests):
        for request in requests:
            one = socket.create_connection(("127.0.0.1", self.port), 60)
            one.sendall(request)
            self.sockets.append(one)

    def wait_until(self, condition, seconds=120):
        wait_for(condition, seconds, "not all requests came through")

    def answers(self, seconds=120):
        """Waits for all answers; gives the moments of the first and the last, by time.monotonic()."""
        moments = []
        with selectors.DefaultSelector() as selector:
            for one in self.sockets:
                selector.register(one, selectors.EVENT_READ)
            end = time.monotonic() + seconds
            while selector.get_map():
                if time.monotonic() > end:
                    raise TimeoutError(f"{len(selector.get_map())} requests have no answer")
                for key, _ in selector.select(1):
                    answer = key.fileobj.recv(4096)
                    if not answer.startswith(b"HTTP/1.1 200 "):
                        raise ConnectionError(f"answered {answer[:200]!r}")
                    moments.append(time.monotonic())
                    selector.unregister(key.fileobj)
        return min(moments), max(moments)

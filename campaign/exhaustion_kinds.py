"""What the campaign exhaustion asks for, of which nginx, and what it may be told."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote, unquote

from tests.bed import nginx as bed
from tests.bed.people import hash_of, owner, token, user_hash

from .bed import FRONT, PORTS, WHOAMI
from .client import FALLBACKS, Answer, field

TLS = PORTS + 6
# `request_pool_size` of the servers: with small ones a request's blocks end at other places, and much more often.
POOLS = (4096, 1024, 512, 256)
KNOWN = ("HIT", "MISS", "SHARED", "STALE")
# No lookup takes so long, on any machine.
TIMEOUT = 2
# A client waits for longer than anything lasts.
PATIENCE = 10
# Known for longer than a second: their answers are old, and asked for again in the background.
OLD = [token(f"old{n}") for n in range(50)]


@dataclass(frozen=True)
class Scarcity:
    """The nginx that is short of memory: one worker process, and a server for each size of a request's pool."""

    zone: str = "users:1m"
    workers: int = 1

    def render(self, directory, module):
        servers = "\n".join(self.server(FRONT + 10 + n if n else FRONT, size) for n, size in enumerate(POOLS))
        return f"""\
load_module {module};
{bed.user_root()}
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log notice;
events {{ worker_connections 1024; }}
http {{
    {bed.temporary_paths(directory)}
    access_log off;
    matrix_user_hash_zone {self.zone};
    matrix_user_hash_zone narrow:64k;
    matrix_user_hash_timeout {TIMEOUT}s;
    limit_req_zone $matrix_user_hash zone=people:1m rate=1000r/s;
    upstream whoami {{ server 127.0.0.1:{WHOAMI} max_fails=0; keepalive 4; }}
    upstream secure {{ server 127.0.0.1:{TLS} max_fails=0; keepalive 4; }}
    upstream sync_workers {{
        hash $matrix_user_hash consistent;
        server 127.0.0.1:{WHOAMI} max_fails=0;
        server 127.0.0.2:{WHOAMI} max_fails=0;
        keepalive 4;
    }}
    proxy_http_version 1.1;
    proxy_set_header Connection "";
{servers}
}}
"""

    def server(self, port, pool):
        zone = self.zone.partition(":")[0]
        return f"""\
    server {{
        listen 127.0.0.1:{port};
        request_pool_size {pool};
        add_header X-Hash $matrix_user_hash always;
        add_header X-Status $matrix_user_hash_status always;
        matrix_user_hash http://whoami zone={zone};
        location / {{ empty_gif; }}
        location /proxied {{ proxy_pass http://sync_workers; }}
        location /early {{ matrix_user_hash_phase preaccess; limit_req zone=people burst=1000 nodelay; empty_gif; }}
        location /secure {{ matrix_user_hash https://secure zone={zone}; matrix_user_hash_ssl_verify off; empty_gif; }}
        location /narrow {{ matrix_user_hash http://whoami zone=narrow; matrix_user_hash_max_lookups 1; empty_gif; }}
        location /old {{ matrix_user_hash_valid 1s; matrix_user_hash_stale on; empty_gif; }}
        location /allowed {{ auth_request /yes; empty_gif; }}
        location = /yes {{ internal; return 204; }}
        location = /figures {{ matrix_user_hash off; matrix_user_hash_metrics; }}
        location = /prometheus {{ matrix_user_hash off; matrix_user_hash_metrics prometheus; }}
    }}"""

    def port_of(self, pool):
        return FRONT + 10 + POOLS.index(pool) if POOLS.index(pool) else FRONT


@dataclass(frozen=True)
class Asked:
    """One request, and for whom it is."""

    bearer: str
    target: str
    in_header: bool = True
    body: bytes = b""

    def bytes(self):
        method = "POST" if self.body else "GET"
        lines = [f"{method} {self.target} HTTP/1.1", "Host: example.org", "User-Agent: Element/1.11.94"]
        if self.in_header and self.bearer:
            lines.append(f"Authorization: Bearer {self.bearer}")
        if self.body:
            lines.append(f"Content-Length: {len(self.body)}")
        return "\r\n".join((*lines, "", "")).encode() + self.body

    def is_right(self, answer, has_memory=True):
        """Whether it was told its user's hash; by the fallback, its token's."""
        if answer.status == "ERROR" and not answer.hash:
            # There was no memory for the digits themselves.
            return not has_memory
        if answer.status in FALLBACKS:
            return answer.hash == hash_of(self.bearer)
        named, name = unquote(self.target.partition("user_id=")[2].partition("&")[0]), owner(self.bearer)
        if answer.status not in KNOWN or name is None:
            return False
        return answer.hash == (hash_of(named) if named else user_hash(name))


@dataclass(frozen=True)
class Kind:
    """Requests that come at once. Without `has_user` there is nobody to be told."""

    requests: Callable
    has_user: bool = True
    # What they are told when there is memory.
    statuses: tuple = ("MISS", "SHARED")


def escaped(text):
    return "".join(f"%{byte:02X}" for byte in text.encode())


# Each makes its requests of a name that nobody else has, and of an argument that is as long as the dice say.
KINDS = {
    "a token in the header": Kind(lambda name, pad: [Asked(token(name), f"/sync?pad={pad}")]),
    "a token in the query": Kind(lambda name, pad: [
        Asked(token(name), f"/sync?pad={pad}&access_token={escaped(token(name))}", in_header=False)]),
    "a bridge's user": Kind(lambda name, pad: [
        Asked(token("bridge"), f"/sync?user_id={quote(f'@{name}:example.org', safe='')}&device_id=%41{pad[:99]}")]),
    "a bridge's user in a query": Kind(lambda name, pad: [
        Asked(token(f"bridge{name}"), f"/sync?access_token={escaped(token(f'bridge{name}'))}&pad={pad}"
              f"&user_id={escaped(f'@{name}:example.org')}", in_header=False)]),
    "a known user": Kind(lambda name, pad: [Asked(token("known"), f"/proxied?pad={pad}")], statuses=("HIT",)),
    "an old answer": Kind(lambda name, pad: [Asked(OLD[len(pad) % len(OLD)], f"/old?pad={pad}")], statuses=("HIT", "STALE")),
    "a stranger": Kind(lambda name, pad: [Asked(token(f"stranger{name}"), f"/sync?pad={pad}")], statuses=("REFUSED",)),
    "a body": Kind(lambda name, pad: [Asked(token(name), f"/proxied?pad={pad}", body=b"{" + b" " * 20_000 + b"}")]),
    "before limits": Kind(lambda name, pad: [Asked(token(name), f"/early?pad={pad}")]),
    "behind auth_request": Kind(lambda name, pad: [Asked(token(name), f"/allowed?pad={pad}")]),
    "an answer with escapes": Kind(lambda name, pad: [Asked(token(f"kind-some-escapes-{name}"), f"/sync?pad={pad}")]),
    "an answer with lists in lists": Kind(lambda name, pad: [Asked(token(f"kind-deep-arrays-{name}"), f"/sync?pad={pad}")]),
    "whoami with TLS": Kind(lambda name, pad: [Asked(token(name), f"/secure?pad={pad}")]),
    "two of one token": Kind(lambda name, pad: [Asked(token(name), f"/sync?pad={pad}")] * 2, statuses=("MISS", "SHARED", "HIT")),
    "three for one place": Kind(lambda name, pad: [Asked(token(f"{name}x{n}"), f"/narrow?pad={pad}") for n in range(3)]),
    "figures": Kind(lambda name, pad: [Asked("", "/figures"), Asked("", "/prometheus")], has_user=False),
}


def exchange(port, requests):
    """Sends each request on a connection of its own, at once, and gives the answers. `code` 0: it was cut off."""
    connections = []
    for asked in requests:
        connection = socket.create_connection(("127.0.0.1", port), PATIENCE)
        try:
            connection.sendall(asked.bytes())
        except ConnectionError:
            pass
        connections.append(connection)
    return [answer_on(connection, asked) for connection, asked in zip(connections, requests, strict=True)]


def answer_on(connection, asked):
    """What comes on a connection, which is closed."""
    data, length = b"", None
    with connection:
        while length is None or len(data) < length:
            try:
                more = connection.recv(65536)
            except TimeoutError:
                return Answer(asked.bearer, 0, silent=True)
            except ConnectionError:
                more = b""
            if not more:
                return Answer(asked.bearer, 0)
            data += more
            head, found, _ = data.partition(b"\r\n\r\n")
            if found and length is None:
                body = field(head, b"Content-Length:")
                length = len(head) + 4 + int(body) if body else len(data)
    return Answer(asked.bearer, int(data.split(b" ", 2)[1]), field(head, b"X-Status:"), field(head, b"X-Hash:"))

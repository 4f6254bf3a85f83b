"""What the checks stand on: workers that say who they are, nginx with a rendered configuration, and the companion itself.

Everything listens on loopback, on ports 20000 to 20999. What a check starts it stops, by its process id.
"""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from tests.bed import client, nginx  # noqa: E402 - they stand in the root of the repository

TESTS = ROOT / "companion" / "tests"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
COMPANION = Path(os.environ.get("COMPANION", TARGET / "debug" / "synapse-companion"))
NGINX = Path(os.environ.get("NGINX_BINARY", ROOT / "build" / "nginx"))
MODULE = Path(os.environ.get("MODULE", ROOT / "build" / "ngx_http_matrix_user_hash_module.so"))
# The folder that the golden deployments name in their paths.
FIXED = Path("/tmp/synapse-companion-test")


# What the checks of one file share, each with a function that ends it.
SHARED = []


def end_shared():
    while SHARED:
        SHARED.pop()()


def companion(*args, expect=0):
    """Runs the companion; returns what it wrote to standard output and to standard error."""
    done = subprocess.run([COMPANION, *map(str, args)], capture_output=True, text=True, check=False)
    if done.returncode != expect:
        raise AssertionError(f"synapse-companion {args} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout, done.stderr


WHOAMI = "/_matrix/client/v3/account/whoami"


class Workers:
    """HTTP servers, each of which answers with its name and what it was asked.

    A lookup is answered with the user that a token `syt_USER_…` names, with 401 if it begins with `invented`, and else with
    what is no answer to it.
    """

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.servers = {}
        self.delay = {}
        # How late the answer to a lookup is.
        self.late_lookups = 0
        # Workers that read a request and hang up, as one that is killed does.
        self.hanging_up = set()
        self.seen = []
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def start(self, name, host="127.0.0.1", port=None, path=None):
        """Starts one, on a port or on a socket."""

        async def go():
            if path:
                listener = socket.socket(socket.AF_UNIX)
                listener.bind(path)
                listener.listen()
            else:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                listener = socket.create_server((host, port), family=family)
            listener.setblocking(False)
            connections = set()
            self.servers[name] = (listener, asyncio.create_task(self._listen(name, listener, connections)), connections)

        self._run(go())

    async def _listen(self, name, listener, connections):
        """Takes connections. asyncio.start_server has a gap: closed between accepting one and making its transport, it
        leaves it open until Python collects garbage, and nginx waits at it while other workers come and go."""
        while True:
            connection, _ = await self.loop.sock_accept(listener)
            connections.add(asyncio.create_task(self._serve(name, connection)))

    async def _serve(self, name, connection):
        reader, writer = await asyncio.open_connection(sock=connection)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._answer(name, reader, writer):
                pass
        writer.close()

    async def _answer(self, name, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = dict(line.split(": ", 1) for line in lines if ": " in line)
        lower = {key.lower(): value for key, value in headers.items()}
        length = int(lower.get("content-length", 0))
        got = len(await reader.readexactly(length)) if length else 0
        late = self.late_lookups if target.startswith(WHOAMI) else 0
        if delay := late or self.delay.get(name):
            await asyncio.sleep(delay)
        self.seen.append((name, method, target))
        if name in self.hanging_up:
            return False
        status, body = self._body(name, method, target, lower, got)
        text = json.dumps(body).encode()
        extra = "Cache-Control: public, max-age=86400\r\n" if "/media/" in target else ""
        if "/oidc/callback" in target:
            extra += f"Set-Cookie: oidc_session={'m' * 12_000}; Path=/_synapse/client/oidc; HttpOnly; Secure; SameSite=None\r\n"
        writer.write(
            f"HTTP/1.1 {status} OK\r\nContent-Type: application/json\r\nX-Worker: {name}\r\n{extra}"
            f"Access-Control-Allow-Origin: *\r\nContent-Length: {len(text)}\r\n\r\n".encode()
            + (b"" if method == "HEAD" else text)
        )
        await writer.drain()
        return True

    @staticmethod
    def _body(name, method, target, headers, got):
        if target.startswith(WHOAMI):
            token = headers.get("authorization", "").removeprefix("Bearer ")
            if token.startswith("invented"):
                return 401, {"errcode": "M_UNKNOWN_TOKEN", "error": "Invalid access token passed.", "soft_logout": False}
            if token.startswith("syt_"):
                return 200, {"user_id": f"@{token.split('_')[1]}:example.org", "device_id": "JLAFKJWSCS"}
        return 200, {"worker": name, "method": method, "target": target, "headers": headers, "body": got}

    def stop(self, name):
        """Stops one: its port refuses, its connections end."""
        listener, listening, connections = self.servers.pop(name)

        async def end():
            listening.cancel()
            self.loop.remove_reader(listener)
            listener.close()
            for connection in connections:
                connection.cancel()

        self._run(end())

    def stop_all(self):
        for name in list(self.servers):
            self.stop(name)


class Nginx(nginx.Nginx):
    """An nginx with a rendered configuration, in a folder of its own."""

    def __init__(self, conf, prefix):
        super().__init__(Path(prefix), Path(conf), binary=NGINX)

    def command(self):
        """Its errors go where its output goes: what it may not write to is part of what is tested."""
        return [self.binary, "-p", self.directory, "-c", self.configuration, "-e", "stderr"]

    def log(self):
        """The access log when it is still: nginx writes a line when the client has its answer already."""
        path, text = self.directory / "access.log", None
        while text != (text := path.read_text(errors="replace")):
            time.sleep(0.1)
        return text

    def errors(self):
        return (self.directory / f"{self.name}.out").read_text(errors="replace")


@contextlib.contextmanager
def folder():
    """A prefix for nginx: the module in its place, and room for what it writes."""
    path = Path(tempfile.mkdtemp(prefix="synapse-companion-"))
    try:
        # nginx that root started works as nobody, who must get at the temporary files.
        path.chmod(0o755)
        prepare(path)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def prepare(path):
    (path / "modules").mkdir(parents=True, exist_ok=True)
    (path / "logs").mkdir(exist_ok=True)
    link = path / "modules" / "ngx_http_matrix_user_hash_module.so"
    # A folder that stayed from a run with another nginx has the module of that one.
    if link.is_symlink() and link.readlink() != MODULE:
        link.unlink()
    if not link.is_symlink():
        link.symlink_to(MODULE)


def fixed_folder():
    """The folder that golden deployments name, with a certificate."""
    prepare(FIXED)
    if not (FIXED / "matrix.pem").exists():
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-keyout", FIXED / "matrix.key", "-out", FIXED / "matrix.pem", "-subj", "/CN=matrix.example.org",
             "-days", "3650"],
            check=True, capture_output=True)


def wrapped_nginx(path, binary=NGINX):
    """A program that is nginx with this prefix, for `check --nginx`."""
    program = path / "nginx"
    program.write_text(f"#!/bin/sh\nexec {binary} -p {path} -e stderr \"$@\"\n")
    program.chmod(0o755)
    return program


def own_paths(prefix):
    """Settings that keep everything that nginx writes below its prefix."""
    (prefix / "temp").mkdir(exist_ok=True)
    return f"""
[log]
access = "{prefix}/access.log"
error = "stderr"
error_level = "warn"

[paths]
temp = "{prefix}/temp"
pid = "{prefix}/nginx.pid"
"""


@contextlib.contextmanager
def running(deployment, *args, settings=True):
    """nginx with a deployment, given as text."""
    with folder() as prefix:
        text = deployment + (own_paths(prefix) if settings else "")
        source = prefix / "deployment.toml"
        source.write_text(text)
        companion("render", "-d", source, "--output", prefix, "--nginx", NGINX, *args)
        with Nginx(prefix / "nginx.conf", prefix) as running_nginx:
            yield running_nginx


class Client(client.Client):
    """One connection to nginx, kept open."""

    def __init__(self, port=20000, path=None):
        super().__init__(port, path, timeout=30)

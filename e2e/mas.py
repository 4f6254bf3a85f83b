"""Second part: delegated authentication, where every token is opaque and lives for minutes.

A stand-in for Matrix Authentication Service answers Synapse's introspection (synapse/api/auth/mas.py): it knows which
user and device a token belongs to, and it can forget a token or fail over one.
"""

import json
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

from tests.bed.processes import require_free
from tests.bed.report import step

from . import checks
from .client import Carrier, Session, sliding_sync, sync
from .homeserver import Homeserver
from .nginx import Variant, Nginx
from .report import Report
from .synapse import MAS_SECRET, Synapse
from .traffic import Traffic

NAMES = ["amina", "bruno", "chloe", "david", "elif", "felix"]
DEVICES = ["LAPTOP", "PHONE", "TABLET"]
GENERATIONS = 3  # tokens of each device, one after the other
CLIENT_API = "urn:matrix:client:api:*"
DEVICE = "urn:matrix:client:device:"


class Mas:
    """The stand-in. Tokens are made and ended by the test."""

    def __init__(self, port: int):
        self.tokens: dict[str, dict] = {}
        self.broken: set[str] = set()  # introspection of these fails
        require_free([port])
        self.server = ThreadingHTTPServer(("127.0.0.1", port), self.handler())
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def issue(self, name: str, device: str) -> str:
        token = f"mat_{secrets.token_urlsafe(22)}_{secrets.token_hex(3)}"
        self.tokens[token] = {"active": True, "username": name, "scope": f"{CLIENT_API} {DEVICE}{device}",
                              "expires_in": 300, "token_type": "access_token"}
        return token

    def introspect(self, token: str) -> dict:
        return self.tokens.get(token, {"active": False})

    def handler(self):
        mas = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                token = form.get("token", [""])[0]
                if self.path != "/oauth2/introspect" or self.headers["Authorization"] != f"Bearer {MAS_SECRET}":
                    self.reply(401, {"error": "invalid_client"})
                elif token in mas.broken:
                    self.reply(500, {"error": "server_error"})
                else:
                    self.reply(200, mas.introspect(token))

            def do_GET(self):
                here = f"http://127.0.0.1:{mas.server.server_port}/"
                self.reply(200, {"issuer": here, "account_management_uri": f"{here}account"})

            def reply(self, status, content):
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                """The test's output is not the place for its log."""

        return Handler


def delegated(report: Report, directory: Path, base: int, variant: Variant) -> None:
    synapse = Synapse(directory, base, mas=True)
    nginx = Nginx(directory, synapse, variant)
    mas = None
    try:
        step("delegated authentication: starting a second Synapse with a stand-in for its authentication service")
        synapse.start()
        nginx.start()
        mas = Mas(synapse.mas_port)  # after the processes: they are forked from a program with one thread
        assert_all(report, Homeserver(synapse), mas, nginx)
    finally:
        nginx.stop()
        synapse.stop()
        if mas:
            mas.stop()


def assert_all(report: Report, homeserver: Homeserver, mas: Mas, nginx: Nginx) -> None:
    sessions = [session for number, name in enumerate(NAMES) for session in a_user(homeserver, mas, number, name)]
    step(f"asking: {len(NAMES)} users with {len(DEVICES)} devices, {GENERATIONS} tokens each")
    traffic = Traffic(homeserver.synapse, nginx)
    traffic.send(sessions, lambda _: [sync(Carrier.HEADER), sync(Carrier.ENCODED_QUERY), sliding_sync(Carrier.QUERY)])
    checks.routing(report, traffic)
    checks.answers(report, "tokens that change", traffic)
    if nginx.variant is Variant.MODULE:
        checks.variables(report, traffic)
        checks.processes(report, traffic)
        checks.lookups(report, traffic, "tokens that change")
    trouble(report, homeserver, mas, nginx)
    expected = "its status was neither 200 nor a 401" if nginx.variant is Variant.MODULE else None
    checks.error_log(report, nginx, list(mas.tokens), expected)


def a_user(homeserver: Homeserver, mas: Mas, number: int, name: str) -> list[Session]:
    user = homeserver.provision(name, DEVICES)
    return [Session(user, f"{place} token", mas.issue(name, device), f"127.0.{70 + number}.{seat}")
            for seat, device in enumerate(DEVICES, 1) for place in ("first", "second", "third")[:GENERATIONS]]


def trouble(report: Report, homeserver: Homeserver, mas: Mas, nginx: Nginx) -> None:
    """What a client can provoke at whoami (401, 500, 503) must not keep the next client from its worker."""
    step("asking: unknown users and a failing authentication service, and then a good token")
    name = "greta"
    stranger = mas.issue("nobody_provisioned", "LAPTOP")
    broken = mas.issue(name, "PHONE")
    mas.broken.add(broken)
    bad = [Session("", "revoked", "mat_" + secrets.token_urlsafe(22), "127.0.90.1"),
           Session("", "not provisioned", stranger, "127.0.90.2"),
           Session("", "introspection fails", broken, "127.0.90.3")]
    provoked = Traffic(homeserver.synapse, nginx)
    provoked.send(bad, lambda _: [sync(carrier) for carrier in Carrier])
    checks.answers(report, "tokens in trouble", provoked, status=None)
    good = Traffic(homeserver.synapse, nginx)
    good.send(a_user(homeserver, mas, 9, name), lambda _: [sync(Carrier.HEADER)])
    checks.routing_of(report, good, good.proxied[0].session.user)
    checks.answers(report, "right after them", good)
    if nginx.variant is Variant.MODULE:
        checks.variables(report, good)

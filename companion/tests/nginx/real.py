"""The rendered configuration in front of a real Synapse, rendered from that Synapse's own files."""

import contextlib
import hashlib
import hmac
import json
import os
import re
import subprocess
import urllib.parse

import bed

FOLDER = bed.ROOT / "build" / "companion" / "synapse"
PORT = 20300
MAIN = PORT + 8
LIMIT = 14 << 20
PASSWORD = "correct horse battery staple"
SECRET = "e2e-registration-secret"


@contextlib.contextmanager
def synapse():
    """Starts it, and stops it by closing its standard input."""
    python = bed.ROOT / "build/e2e/venv/bin/python"
    assert python.exists(), "scripts/e2e has not made its virtual environment yet: run e2e/prepare"
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with open(FOLDER.with_suffix(".out"), "wb") as log:
        process = subprocess.Popen(
            [python, bed.TESTS / "nginx" / "real_synapse.py", FOLDER, str(PORT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=log, env={**os.environ, "PYTHONPATH": str(bed.ROOT), "PYTHONDONTWRITEBYTECODE": "1"})
    try:
        assert process.stdout.readline() == b"ready\n", FOLDER.with_suffix(".out").read_text()[-2000:]
        yield
    finally:
        process.stdin.close()
        process.wait(60)


DEPLOYMENT = f"""
[synapse]
homeserver = ["{FOLDER}/homeserver.yaml"]
workers = ["{FOLDER}/sync1.yaml", "{FOLDER}/sync2.yaml", "{FOLDER}/sync3.yaml"]

[synapse.roles]
"sync3" = ["client_reader", "room", "user_dir"]
"sync*" = "sync"

[listen]
client = [20000]
admin_allow = ["127.0.0.1"]
"""


class Matrix:
    """A client of the Matrix API, by way of nginx."""

    def __init__(self, agent, token=None):
        self.client, self.agent, self.token = bed.Client(), agent, token

    def call(self, method, path, body=None, raw=None, expect=200):
        headers = {"User-Agent": self.agent, "Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        answer = self.client.ask(method, path, headers, data)
        assert answer.status == expect, (method, path, answer.status, answer.text[:500])
        return answer


def register(name):
    nonce = Matrix("setup").call("GET", "/_synapse/admin/v1/register").json()["nonce"]
    mac = hmac.new(SECRET.encode(), "\0".join([nonce, name, PASSWORD, "notadmin"]).encode(), hashlib.sha1).hexdigest()
    Matrix("setup").call("POST", "/_synapse/admin/v1/register", {
        "nonce": nonce, "username": name, "password": PASSWORD, "admin": False, "mac": mac, "inhibit_login": True})


def login(name, device):
    got = Matrix(f"{name}-{device}").call("POST", "/_matrix/client/v3/login", {
        "type": "m.login.password", "identifier": {"type": "m.id.user", "user": name}, "password": PASSWORD,
        "device_id": device}).json()
    return Matrix(f"{name}-{device}", got["access_token"])


def served(agent, part):
    """Which Synapse processes logged a request of an agent for a path."""
    found = set()
    for log in FOLDER.glob("*.access.log"):
        for line in log.read_text().splitlines():
            if f'"{agent}"' in line and part in line:
                found.add(log.name.split(".")[0])
    return found


def people(sliding):
    """Every device of a user syncs at one worker, as Synapse's own logs say; room events go to the room worker."""
    homes = {}
    for name in ("alice", "bob", "carol", "dave", "erin", "frank"):
        register(name)
        for device in ("PHONE", "LAPTOP"):
            matrix = login(name, device)
            since = matrix.call("GET", "/_matrix/client/v3/sync?timeout=0").json()["next_batch"]
            room = matrix.call("POST", "/_matrix/client/v3/createRoom", {"name": "Tea"}).json()["room_id"]
            quoted = urllib.parse.quote(room)
            event = matrix.call("PUT", f"/_matrix/client/v3/rooms/{quoted}/send/m.room.message/txn1",
                                {"msgtype": "m.text", "body": "hello"}).json()["event_id"]
            # The worker hears of the event a moment after it was sent.
            heard = []
            for _ in range(10):
                news = matrix.call("GET", f"/_matrix/client/v3/sync?timeout=2000&since={since}").json()
                joined = news.get("rooms", {}).get("join", {}).get(room, {"timeline": {"events": []}})
                heard += [e["event_id"] for e in joined["timeline"]["events"]]
                since = news["next_batch"]
                if event in heard:
                    break
            assert event in heard, heard
            matrix.call("POST", sliding, {"lists": {"all": {"ranges": [[0, 9]], "timeline_limit": 1, "required_state": []}}})
            assert served(matrix.agent, "/send/m.room.message/") == {"sync3"}, served(matrix.agent, "/send/")
            matrix.call("PUT", f"/_matrix/client/v3/rooms/{quoted}/typing/@{name}:example.org", {"typing": False})
            homes.setdefault(name, set()).update(served(matrix.agent, "sync?timeout"), served(matrix.agent, "simplified_msc3575"))
    assert all(len(home) == 1 for home in homes.values()), homes
    assert set.union(*homes.values()) == {"sync1", "sync2"}, homes
    for name, home in homes.items():
        out, _ = bed.companion("route", "GET", "/_matrix/client/v3/sync", "-d", FOLDER.with_suffix(".toml"), "--nginx", bed.NGINX,
                               "--user", f"@{name}:example.org")
        assert f"worker    {next(iter(home))}  " in out, (name, home, out)
    return matrix


def uploads(matrix):
    """An upload of exactly the limit passes, one byte more does not; other servers may send more than clients."""
    media = matrix.call("POST", "/_matrix/media/v3/upload?filename=tea.bin", raw=b"x" * LIMIT).json()["content_uri"]
    got = matrix.call("GET", f"/_matrix/client/v1/media/download/{media.removeprefix('mxc://')}").text
    assert len(got) == LIMIT, len(got)
    over = matrix.call("POST", "/_matrix/media/v3/upload?filename=tea.bin", raw=b"x" * (LIMIT + 1), expect=413)
    assert over.json()["errcode"] == "M_TOO_LARGE" and over.headers["access-control-allow-origin"] == "*"
    # Synapse read the whole transaction before it missed the signature.
    big = Matrix("federation").call("PUT", "/_matrix/federation/v1/send/1", raw=b'{"pdus":["' + b"x" * 13_000_000 + b'"]}', expect=401)
    assert big.json()["errcode"] == "M_UNAUTHORIZED", big.text
    # Over the clients' limit, nginx still takes it from a server. Synapse hangs up on what is over its own limit, which
    # is the same for everybody (synapse/app/_base.py, max_request_body_size), so this is a 502 and not nginx's 413.
    Matrix("federation").call("PUT", "/_matrix/federation/v1/send/2", raw=b"x" * (LIMIT + 1), expect=502)


def preflights():
    """The edge's preflight answers are Synapse's, header by header."""
    for path in ["/_matrix/client/v3/sync", "/_matrix/client/unstable/org.matrix.msc4108/rendezvous", "/_matrix/media/v3/upload",
                 "/_synapse/client/rendezvous/x", "/_matrix/client/unstable/io.element.msc4388/rendezvous", "/_synapse/admin/v1/rooms"]:
        edge, own = bed.Client().ask("OPTIONS", path), bed.Client(MAIN).ask("OPTIONS", path)
        wanted = {key: value for key, value in own.headers.items() if key.startswith("access-control-")}
        given = {key: value for key, value in edge.headers.items() if key.startswith("access-control-")}
        assert (edge.status, given) == (own.status, wanted), (path, edge.status, own.status, given, wanted)


def check_in_front_of_a_real_synapse():
    """rendered from a real Synapse's own files: log in, sync, send, sliding sync, limits, preflights"""
    with synapse():
        toml = DEPLOYMENT
        FOLDER.with_suffix(".toml").write_text(toml)
        with bed.running(toml) as nginx:
            matrix = people("/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?timeout=0")
            uploads(matrix)
            preflights()
            log = nginx.log()
        assert matrix.token not in log and re.search(r"user_hash_status=(HIT|MISS)", log)
        return f"{len(log.splitlines())} requests"

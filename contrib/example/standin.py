#!/usr/bin/env python3
"""A small stand-in for Synapse: a main process that answers whoami, and sync workers.

  standin.py MAIN_PORT WORKER_PORT...

Each port on 127.0.0.1 is a process of its own to nginx. All answer whoami and sync as Synapse 1.163 does: the same
rules for where a token may stand, the same statuses and errcodes, chunked bodies over kept HTTP/1.1 connections. Users
are made up, and a device's token looks as Synapse's do; `standin.py --tokens` prints them as USER DEVICE TOKEN lines.
Needs Python's standard library only. Logs nothing.
"""

import base64
import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

USERS = [f"@{name}:example.org" for name in ("alice", "bob", "carol", "dave")]
DEVICES = ("LAPTOP", "PHONE", "TABLET")


def token(user: str, device: str) -> str:
    """syt_<base64 of the localpart>_<20 letters>_<6 letters>; opaque to everybody but this file."""
    localpart = base64.b64encode(user[1:].split(":")[0].encode()).decode().rstrip("=")
    letters = base64.b32encode(hashlib.sha256(f"{user} {device}".encode()).digest()).decode()
    return f"syt_{localpart}_{letters[:20]}_{letters[20:26]}"


OWNERS = {token(user, device): (user, device) for user in USERS for device in DEVICES}


class Refused(Exception):
    def __init__(self, errcode: str, message: str):
        super().__init__(message)
        self.body = {"errcode": errcode, "error": message}
        if errcode == "M_UNKNOWN_TOKEN":
            self.body["soft_logout"] = False


def requester(headers: list[str], query: str) -> tuple[str, str]:
    """Synapse's rules, in its order (synapse/api/auth/base.py, get_access_token_from_request)."""
    in_query = parse_qs(query, keep_blank_values=True).get("access_token")
    if headers:
        if in_query is not None:
            raise Refused("M_MISSING_TOKEN", "Mixing Authorization headers and access_token query parameters.")
        if len(headers) > 1:
            raise Refused("M_MISSING_TOKEN", "Too many Authorization headers.")
        words = headers[0].split(" ")
        if len(words) != 2 or words[0] != "Bearer" or not words[1]:
            raise Refused("M_MISSING_TOKEN", "Invalid Authorization header.")
        found = words[1]
    elif in_query:
        found = in_query[0]
    else:
        raise Refused("M_MISSING_TOKEN", "Missing access token")
    if found not in OWNERS:
        raise Refused("M_UNKNOWN_TOKEN", "Invalid access token passed.")
    return OWNERS[found]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "Synapse/stand-in"
    # One write a response: Nagle's algorithm would hold the second one back.
    wbufsize = -1

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        try:
            user, device = requester(self.headers.get_all("Authorization") or [], url.query)
        except Refused as refused:
            return self.answer(401, refused.body)
        if url.path.endswith("/account/whoami"):
            return self.answer(200, {"user_id": user, "is_guest": False, "device_id": device})
        if url.path.endswith("/sync"):
            return self.answer(200, {"next_batch": "s1_1_1", "user_id": user, "worker": self.server.server_port})
        return self.answer(404, {"errcode": "M_UNRECOGNIZED", "error": "Unrecognized request"})

    do_POST = do_PUT = do_GET

    def answer(self, status: int, body: dict):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Cache-Control", "no-cache, no-store, must-revalidate")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))

    def log_message(self, *_):
        pass


def main() -> int:
    if sys.argv[1:] == ["--tokens"]:
        for found, (user, device) in OWNERS.items():
            print(user, device, found)
        return 0
    if len(sys.argv) < 2 or not all(word.isdigit() for word in sys.argv[1:]):
        print(__doc__, file=sys.stderr)
        return 2
    servers = [ThreadingHTTPServer(("127.0.0.1", int(port)), Handler) for port in sys.argv[1:]]
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
    threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())

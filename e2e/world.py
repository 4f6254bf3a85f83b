"""What the endpoints are asked about: users, rooms, events and media, made through the same door as the question.

A `World` is one deployment as its administrator sees it. Things that a question would spoil for the next are made anew
for each, by the methods that begin with `new_`.
"""

import hashlib
import hmac
import itertools
import json
import time
from dataclasses import dataclass, field
from urllib.parse import quote

from canonicaljson import encode_canonical_json
from signedjson.key import decode_signing_key_base64
from signedjson.sign import sign_json

from tests.bed.client import Answer, Client

from .layouts import SIGNING_KEY
from .synapse import AS_TOKEN, REGISTRATION_SECRET, SERVER_NAME

PASSWORD = "correct horse battery staple"
ADMIN, BOB = f"@root:{SERVER_NAME}", f"@bob:{SERVER_NAME}"
# The smallest picture that a thumbnail can be made of: one grey pixel.
PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000" "3a7e9b550000000a49444154789c6368000000820081"
    "77cd72b60000000049454e44ae426082")
BACKUP = {"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": {"public_key": "abcdefg"}}
SESSION = {"first_message_index": 1, "forwarded_count": 0, "is_verified": False, "session_data": {"key": "value"}}


@dataclass(frozen=True)
class Login:
    """A device of a user."""

    user: str
    token: str
    device: str = ""


class Failed(Exception):
    """Something that a question needs could not be made."""


@dataclass
class World:
    """One deployment, by the port that its clients use."""

    port: int
    admin: Login
    bob: Login
    numbers: itertools.count = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self):
        self.client = Client(self.port)
        self.since = self.call("GET", "/_matrix/client/v3/sync?timeout=0")["next_batch"]
        self.room = self.new_room()
        self.join(self.room, self.bob)
        self.event = self.new_event(self.room, self.bob)
        self.media = self.new_media()

    def ask(self, method: str, target: str, body=None, token: str | None = None, raw: bytes | None = None) -> Answer:
        """One request. The body is JSON, or `raw`."""
        headers = {"Content-Type": "application/json", "User-Agent": "e2e-layouts/1.0"}
        if target.startswith(("/_matrix/federation/", "/_matrix/key/")):
            headers["Authorization"] = self.signature(method, target, body)
        elif token:
            headers["Authorization"] = f"Bearer {token}"
        content = raw if raw is not None else None if body is None else json.dumps(body).encode()
        return self.client.ask(method, target, headers, content)

    def call(self, method: str, target: str, body=None, login: Login | None = None, raw: bytes | None = None) -> dict:
        """A request that must succeed."""
        answer = self.ask(method, target, body, (login or self.admin).token, raw)
        if answer.status != 200:
            raise Failed(f"{method} {target}: {answer.status} {answer.text[:300]!r}")
        return answer.json()

    def signature(self, method: str, target: str, body) -> str:
        """What a server sends instead of a token. This one speaks to itself, so that its key is known."""
        algorithm, version, seed = SIGNING_KEY.split()
        signed = {"method": method, "uri": target, "origin": SERVER_NAME, "destination": SERVER_NAME}
        if body is not None:
            signed["content"] = json.loads(encode_canonical_json(body))
        key = decode_signing_key_base64(algorithm, version, seed)
        sign_json(signed, SERVER_NAME, key)
        value = signed["signatures"][SERVER_NAME][f"{algorithm}:{version}"]
        return (f'X-Matrix origin="{SERVER_NAME}",destination="{SERVER_NAME}",'
                f'key="{algorithm}:{version}",sig="{value}"')

    def name(self, what: str = "thing") -> str:
        """A name that nothing has yet; the same in every deployment that is asked the same."""
        return f"{what}{next(self.numbers)}"

    @staticmethod
    def until(condition, seconds: float = 30) -> None:
        """Waits for what happens a moment later."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise Failed("it does not happen")
            time.sleep(0.05)

    # --- users ---

    def new_user(self) -> str:
        user = f"@{self.name('user')}:{SERVER_NAME}"
        path = f"/_synapse/admin/v2/users/{quote(user)}"
        answer = self.ask("PUT", path, {"password": PASSWORD}, self.admin.token)
        if answer.status != 201:
            raise Failed(f"PUT {path}: {answer.status} {answer.text[:300]!r}")
        return user

    def new_login(self, user: str | None = None, **more) -> Login:
        user = user or self.new_user()
        got = self.call("POST", "/_matrix/client/v3/login", {
            "type": "m.login.password", "identifier": {"type": "m.id.user", "user": user}, "password": PASSWORD,
            "device_id": self.name("DEVICE"), **more})
        return Login(user, got["access_token"], got["device_id"])

    def new_refresh_token(self) -> str:
        return self.call("POST", "/_matrix/client/v3/login", {
            "type": "m.login.password", "identifier": {"type": "m.id.user", "user": self.new_user()},
            "password": PASSWORD, "refresh_token": True})["refresh_token"]

    @staticmethod
    def proof(login: Login) -> dict:
        """What a user says when Synapse asks for the password again."""
        return {"type": "m.login.password", "password": PASSWORD,
                "identifier": {"type": "m.id.user", "user": login.user}}

    def registration(self) -> dict:
        """The body of a registration with the shared secret."""
        nonce, name = self.call("GET", "/_synapse/admin/v1/register")["nonce"], self.name("user")
        signed = "\0".join([nonce, name, PASSWORD, "notadmin"]).encode()
        return {"nonce": nonce, "username": name, "password": PASSWORD, "admin": False,
                "mac": hmac.new(REGISTRATION_SECRET.encode(), signed, hashlib.sha1).hexdigest()}

    # --- rooms ---

    def new_room(self, login: Login | None = None, **more) -> str:
        return self.call("POST", "/_matrix/client/v3/createRoom", {
            "preset": "public_chat", "name": "Tea", **more}, login)["room_id"]

    def join(self, room: str, login: Login) -> None:
        self.call("POST", f"/_matrix/client/v3/join/{quote(room)}", {}, login)

    def member(self, room: str, action: str, login: Login | None = None, **body) -> None:
        self.call("POST", f"/_matrix/client/v3/rooms/{quote(room)}/{action}", body, login)

    def new_event(self, room: str | None = None, login: Login | None = None, **content) -> str:
        path = f"/_matrix/client/v3/rooms/{quote(room or self.room)}/send/m.room.message/{self.name('txn')}"
        return self.call("PUT", path, {"msgtype": "m.text", "body": "tea", **content}, login)["event_id"]

    def new_delayed_event(self) -> str:
        path = f"/_matrix/client/v3/rooms/{quote(self.room)}/send/m.room.message/{self.name('txn')}"
        return self.call("PUT", f"{path}?org.matrix.msc4140.delay=3600000", {"msgtype": "m.text", "body": "tea"})[
            "delay_id"]

    def new_alias(self) -> str:
        alias = f"#{self.name('alias')}:{SERVER_NAME}"
        self.call("PUT", f"/_matrix/client/v3/directory/room/{quote(alias)}", {"room_id": self.room})
        return alias

    def new_report(self) -> str:
        event = self.new_event(self.room, self.bob)
        self.call("POST", f"/_matrix/client/v3/rooms/{quote(self.room)}/report/{quote(event)}", {"reason": "spam"})
        return str(self.call("GET", "/_synapse/admin/v1/event_reports?limit=1")["event_reports"][0]["id"])

    def new_user_report(self) -> str:
        self.call("POST", f"/_matrix/client/v3/users/{quote(self.bob.user)}/report", {"reason": "spam"})
        return str(self.call("GET", "/_synapse/admin/v1/user_reports?limit=1")["user_reports"][0]["id"])

    # --- the rest ---

    def new_picture(self) -> bytes:
        """No two are the same: quarantine is for all media with the same bytes."""
        self.picture = PICTURE + self.name("picture").encode()
        return self.picture

    def new_media(self, login: Login | None = None) -> str:
        headers = {"Content-Type": "image/png", "Authorization": f"Bearer {(login or self.admin).token}"}
        answer = self.client.ask("POST", "/_matrix/media/v3/upload?filename=tea.png", headers, self.new_picture())
        if answer.status != 200:
            raise Failed(f"upload: {answer.status} {answer.text[:300]!r}")
        return answer.json()["content_uri"].rpartition("/")[2]

    def new_slot(self) -> str:
        """A media id that is yet to be filled."""
        return self.call("POST", "/_matrix/media/v1/create")["content_uri"].rpartition("/")[2]

    def new_backup(self) -> str:
        return self.call("POST", "/_matrix/client/v3/room_keys/version", BACKUP)["version"]

    def new_backed_up(self, session: str) -> str:
        version = self.new_backup()
        self.call("PUT", f"/_matrix/client/v3/room_keys/keys/{quote(self.room)}/{session}?version={version}", SESSION)
        return version

    def new_filter(self) -> str:
        path = f"/_matrix/client/v3/user/{quote(self.admin.user)}/filter"
        return self.call("POST", path, {"room": {"timeline": {"limit": 1}}})["filter_id"]

    def new_rule(self) -> str:
        path = f"pushrules/global/override/{self.name('rule')}"
        self.call("PUT", f"/_matrix/client/v3/{path}", {"actions": ["notify"], "conditions": []})
        return path

    def account_data(self, of_room: bool) -> str:
        """Account data that is there, by its type."""
        kind, room = f"org.example.{self.name()}", f"/rooms/{quote(self.room)}" if of_room else ""
        path = f"/_matrix/client/v3/user/{quote(self.admin.user)}{room}/account_data/{kind}"
        self.call("PUT", path, {"tea": "green"})
        return kind

    def openid(self) -> str:
        path = f"/_matrix/client/v3/user/{quote(self.admin.user)}/openid/request_token"
        return self.call("POST", path, {})["access_token"]

    def new_registration_token(self) -> str:
        return self.call("POST", "/_synapse/admin/v1/registration_tokens/new", {"token": self.name("token")})["token"]


BRIDGE = AS_TOKEN

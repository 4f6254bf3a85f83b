"""The client and admin API calls that make users and tokens, asked of Synapse's main process directly."""

import hashlib
import hmac
import json
import secrets
from urllib.parse import quote

from tests.bed.client import Client

from .synapse import AS_TOKEN, MAS_SECRET, REGISTRATION_SECRET, SERVER_NAME, Synapse

SETUP_ADDRESS = "198.51.100.1"
SETUP_AGENT = "e2e-setup/1.0"
PASSWORD = "correct horse battery staple"


class Refused(Exception):
    """Synapse answered a call of the set-up with an error."""


class Homeserver:
    def __init__(self, synapse: Synapse):
        self.synapse = synapse

    def call(self, method, path, body=None, *, token=None, address=SETUP_ADDRESS, agent=SETUP_AGENT) -> dict:
        headers = {"User-Agent": agent, "X-Forwarded-For": address, "X-Forwarded-Proto": "http"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        with Client(self.synapse.main_port) as client:
            answer = client.ask(method, path, headers, None if body is None else json.dumps(body).encode())
        if answer.status >= 300:
            raise Refused(f"{method} {path}: {answer.status} {answer.text.decode(errors='replace')}")
        return answer.json()

    def register(self, name: str, *, admin: bool = False) -> str:
        """Makes a user by the shared secret and returns the full user id."""
        path = "/_synapse/admin/v1/register"
        nonce = self.call("GET", path)["nonce"]
        signed = "\0".join([nonce, name, PASSWORD, "admin" if admin else "notadmin"])
        mac = hmac.new(REGISTRATION_SECRET.encode(), signed.encode(), hashlib.sha1).hexdigest()
        answer = self.call("POST", path, {
            "nonce": nonce, "username": name, "password": PASSWORD, "admin": admin, "mac": mac, "inhibit_login": True})
        return answer["user_id"]

    def login(self, user: str, device: str, *, refreshable: bool = False, **seen) -> dict:
        return self.call("POST", "/_matrix/client/v3/login", {
            "type": "m.login.password", "identifier": {"type": "m.id.user", "user": user}, "password": PASSWORD,
            "device_id": device, "initial_device_display_name": device.title(), "refresh_token": refreshable,
        }, **seen)

    def refresh(self, refresh_token: str, **seen) -> str:
        answer = self.call("POST", "/_matrix/client/v3/refresh", {"refresh_token": refresh_token}, **seen)
        return answer["access_token"]

    def make_opaque(self, token: str) -> str:
        """Gives the session of `token` another one that names nobody, by rewriting its row."""
        opaque = "mat_" + secrets.token_urlsafe(24)
        self.synapse.database.execute("UPDATE access_tokens SET token = %s WHERE token = %s", (opaque, token))
        return opaque

    def puppet(self, user: str, admin_token: str) -> str:
        path = f"/_synapse/admin/v1/users/{quote(user)}/login"
        return self.call("POST", path, {}, token=admin_token)["access_token"]

    def guest(self, **seen) -> dict:
        return self.call("POST", "/_matrix/client/v3/register?kind=guest", {}, **seen)

    def ghost(self, name: str, device: str) -> str:
        """Registers a user of the application service, with one device."""
        answer = self.call("POST", "/_matrix/client/v3/register", {
            "type": "m.login.application_service", "username": name, "device_id": device}, token=AS_TOKEN)
        return answer["user_id"]

    def room(self, name: str, **seen) -> None:
        """A room with a message, so that the answer to a sync says whose it is."""
        room = self.call("POST", "/_matrix/client/v3/createRoom", {"name": name, "preset": "private_chat"}, **seen)
        path = f"/_matrix/client/v3/rooms/{quote(room['room_id'])}/send/m.room.message/1"
        self.call("PUT", path, {"msgtype": "m.text", "body": f"Note to {name}"}, **seen)

    def session_list(self, user: str, admin_token: str) -> list[dict]:
        """Who was seen, as administrators see it: address and agent of each connection."""
        answer = self.call("GET", f"/_synapse/admin/v1/whois/{quote(user)}", token=admin_token)
        return [connection for device in answer["devices"].values() for session in device["sessions"]
                for connection in session["connections"]]

    def session_rows(self) -> list[tuple[str, str, str]]:
        """The whole table under those lists: user, address, agent."""
        return self.synapse.database.execute("SELECT user_id, ip, user_agent FROM user_ips")

    def devices(self, token: str, **seen) -> dict[str, str | None]:
        """Last seen address by device, as the user's own client shows it."""
        answer = self.call("GET", "/_matrix/client/v3/devices", token=token, **seen)
        return {device["device_id"]: device["last_seen_ip"] for device in answer["devices"]}

    def provision(self, name: str, devices: list[str]) -> str:
        """What Matrix Authentication Service does for a new user."""
        self.call("POST", "/_synapse/mas/provision_user", {"localpart": name}, token=MAS_SECRET)
        for device in devices:
            self.call("POST", "/_synapse/mas/upsert_device", {"localpart": name, "device_id": device}, token=MAS_SECRET)
        return f"@{name}:{SERVER_NAME}"
